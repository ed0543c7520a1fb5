"""The examples run, in little time, and what they print is what they say."""

import ast
import gzip
import importlib.util
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
needs_gloo = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="torch without gloo"
)


def run(name, *arguments, processes=0, refused=False):
    """What an example prints; without warnings, which are no part of what it shows."""
    command = [sys.executable, "-W", "error::UserWarning:edgepop_kernels"]
    if processes:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    users = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [*command, str(EXAMPLES / f"{name}.py"), *map(str, arguments)],
        env=users | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,  # for what hangs: alone, each takes seconds
        check=False,
    )
    if refused:
        assert done.returncode != 0 and "Traceback" not in done.stderr
        return done.stderr
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def percents(printed):
    return [float(number) for number in re.findall(r"([\d.]+)%", printed)]


@pytest.fixture(scope="module")
def digits():
    """1,797 real digits, as uint8 images of 28 x 28 and their labels."""
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = (torch.from_numpy(a) for a in datasets.load_digits(return_X_y=True))
    images = F.interpolate(images.float().view(-1, 1, 8, 8) * 15.9, (28, 28), mode="bilinear")
    return images.squeeze(1).to(torch.uint8), labels.to(torch.uint8)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_short_says_what_it_shows_and_is_run_here(path):
    text = path.read_text()
    assert len(text.splitlines()) < 80
    says = ast.get_docstring(ast.parse(text))
    assert says.splitlines()[0].endswith(".")
    assert path.stem == "quickstart" or f"examples/{path.name}" in says
    assert f'run("{path.stem}"' in Path(__file__).read_text()


def test_quickstart(digits):
    printed = run("quickstart")
    assert "kept in all: 5,020 of 50,200 weights" in printed
    (accuracy,) = percents(printed.splitlines()[-1])
    assert accuracy > 85  # chance is 10
    assert len((EXAMPLES / "quickstart.py").read_text().splitlines()) <= 25


def test_swap_one_line(digits):
    printed = run("swap_one_line", "--epochs", 1)
    dense, masked = printed.splitlines()
    assert "52,768 weights trained" in dense and masked.endswith(" 0 weights trained")


def as_idx(tensor):
    sizes = b"".join(size.to_bytes(4, "big") for size in tensor.shape)
    return bytes([0, 0, 8, tensor.dim()]) + sizes + tensor.numpy().tobytes()


def test_train_mnist(digits, tmp_path):
    images, labels = digits
    for part, rows in (("train", slice(0, 320)), ("t10k", slice(320, 420))):
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(as_idx(images[rows]))
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(as_idx(labels[rows])))
    printed = run("train_mnist", tmp_path, "--epochs", 2, "--batch-size", 32)
    assert [line[:8] for line in printed.splitlines()] == ["epoch 1:", "epoch 2:"]
    assert percents(printed)[-1] > 20  # chance is 10
    missing = run("train_mnist", tmp_path / "nowhere", refused=True)
    assert "train-images-idx3-ubyte.gz: no such file; expected the data set's four IDX files there" in missing
    assert "the following arguments are required: folder" in run("train_mnist", refused=True)


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
def test_masked_finetuning_bert():
    printed = run("masked_finetuning_bert", "--steps", 30)
    assert "13 layers masked" in printed and "beside the scores 0 values train" in printed
    before, after = percents(printed.replace("\n", " "))[-2:]
    assert after > before


@needs_gloo
def test_resnet_cifar_ddp(tmp_path):
    draw = torch.Generator().manual_seed(0)
    for name in ("data_batch_1", "test_batch"):
        labels = torch.randint(10, (50,), generator=draw)
        shades = labels[:, None] * 25 + torch.randint(6, (50, 3072), generator=draw)
        content = {b"data": shades.to(torch.uint8).numpy(), b"labels": labels.tolist()}
        (tmp_path / name).write_bytes(pickle.dumps(content))
    printed = run("resnet_cifar_ddp", tmp_path, "--epochs", 1, "--batch-size", 25, processes=2)
    assert re.fullmatch(r"epoch 1: loss \d+\.\d+, accuracy [\d.]+%\n", printed)
    assert "has no test_batch; expected cifar-10-batches-py" in run("resnet_cifar_ddp", tmp_path / "no", refused=True)


@needs_gloo
def test_fsdp(digits):
    printed = run("fsdp", "--epochs", 2, processes=2)
    assert "process 0 of 2: 15,000 of the second layer's 30,000 scores" in printed
    assert "process 1 of 2: 15,000" in printed
    assert re.search(r"loaded into one process: outputs within (0e\+00|\de-0[6-9]), 5,020 weights kept", printed)
    assert percents(printed)[0] > 50


def test_superposition(digits):
    printed = run("superposition", "--tasks", 3, "--epochs", 3).splitlines()
    for t, line in enumerate(printed[:3]):
        assert line.startswith(f"task {t}: ") and percents(line)[0] > 60
        assert int(re.search(r"found in (\d) of 6", line)[1]) >= 5
    assert printed[3] == "a task takes 41,536 bytes beside the 1,328,000 of the weights"


def test_own_rule(digits):
    top, own, saved = run("own_rule", "--epochs", 4).splitlines()
    assert own.endswith("each of 300 units hears 20 to 20 of 64 pixels") and percents(own)[0] > 50
    assert not top.endswith("hears 20 to 20 of 64 pixels")
    assert saved == "a state_dict brought PerOutput(keep=0.3)"


def test_export_packed(digits, tmp_path):
    trained, plain, packed = run("export_packed", tmp_path, "--epochs", 2).splitlines()
    assert percents(trained)[0] > 50
    sizes = [int(re.search(r"([\d,]+) bytes", line)[1].replace(",", "")) for line in (plain, packed)]
    assert sizes == [(tmp_path / name).stat().st_size for name in ("plain.pt", "packed.safetensors")]
    assert sizes[0] > 18 * sizes[1]
    assert all(float(line.rpartition(" ")[2]) < 1e-4 for line in (plain, packed))
    assert {type(v) for v in torch.load(tmp_path / "plain.pt", weights_only=True).values()} == {torch.Tensor}


@pytest.mark.skipif(importlib.util.find_spec("lightning") is None, reason="lightning is not installed")
def test_lightning_module(digits):
    printed = run("lightning_module", "--epochs", 2)
    assert printed.endswith("with 5,020 weights\n") and percents(printed)[-1] > 50
