"""The command line: what it prints and leaves behind, and one sentence with exit code 2 for whatever goes wrong."""

import errno
import importlib.util
import io
import json
import os
import re
import sys
import types

import pytest
import torch
from PIL import Image
from recipe_runs import NAME, RECIPE, rows, start, state
from rich.console import Console
from source_tree import ROOT
from test_recipes_data import mnist_files, write_files
from typer.testing import CliRunner

import edgepop_kernels as ek
from edgepop_kernels.recipes import cli, files, plots, registry, trainer
from edgepop_kernels.recipes.report import Report

DENSE = ["--epochs", "2", "--widths", "16", "--threads", "1", "--no-plots", "--no-step-times"]
QUICK = [*DENSE, "--backend", "reference"]


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def edgepop(tmp_path, monkeypatch):
    """Runs `edgepop ARGUMENTS` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: CliRunner().invoke(cli.app, [str(a) for a in arguments])


def assert_refused(result, *words):
    """Exit code 2 and one sentence on stderr with these words, which is returned."""
    assert result.exit_code == 2, (result.exception, result.output)
    assert isinstance(result.exception, SystemExit)
    lines = result.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("edgepop: ")
    for word in words:
        assert word in lines[0]
    return lines[0]


def test_train_on_digits(edgepop, tmp_path):
    result = edgepop("train", *QUICK, "--seed", 3, "--plots")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    for words in ("epoch 2/2", "test accuracy", "512 of 1,024 (50.00%)", "(bit-identical)"):
        assert words in result.stdout
    run = tmp_path / "runs" / NAME
    made = {"best-test.pt", "config.json", "first.pt", "last.pt", "log.csv", "summary.json", "training.png"}
    assert set(os.listdir(run)) == made
    log = rows(run / "log.csv")
    assert [row["epoch"] for row in log] == ["1", "2"]
    assert float(log[1]["lr"]) == pytest.approx(0.05)
    (row,) = rows(tmp_path / "runs" / "results.csv", without=())
    assert (row["run"], row["seed"], row["keep"], row["kept"], row["weights"]) == (NAME, "3", "0.5", "592", "1184")
    assert row["weights_unchanged"] == "True"
    assert row["test_accuracy"] == log[1]["test_accuracy"]
    assert json.loads((run / "summary.json").read_text())["layers"][0] == {"name": "fc1", "kept": 512, "weights": 1024}
    assert (run / "training.png").read_bytes().startswith(b"\x89PNG")


def test_a_terminal_gets_a_progress_bar(tmp_path):
    screen = io.StringIO()
    start(tmp_path, RECIPE.override(epochs=2), Report(Console(file=screen, force_terminal=True, width=100)))
    assert "epoch 1/2" in screen.getvalue()
    assert "46/46 steps" in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())


def test_runs_never_overwrite_each_other(edgepop, tmp_path):
    for _ in range(2):
        assert edgepop("train", *QUICK, "--epochs", 1, "--out", "here").exit_code == 0
    assert sorted(os.listdir(tmp_path / "here")) == [NAME, f"{NAME}-1", "results.csv"]
    assert len(rows(tmp_path / "here" / "results.csv")) == 2


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("dense-digits", DENSE),
        ("wirings-digits", DENSE),
        ("neural-graph-static-digits", [*DENSE[4:], "--nodes", 50, "--edges", 300, "--batch-size", 256]),
    ],
)
def test_a_method_that_freezes_no_weight_says_nothing_of_frozen_weights(edgepop, tmp_path, recipe, options):
    result = edgepop("train", recipe, *options, "--epochs", 1)
    assert result.exit_code == 0, result.output
    assert "sha256" not in result.stdout and "identical" not in result.stdout
    assert rows(tmp_path / "runs" / "results.csv")[0]["weights_unchanged"] == ""
    assert json.loads((tmp_path / "runs" / recipe / "summary.json").read_text())["frozen_weights_sha256"] is None


def test_the_dense_baseline_has_no_mask(edgepop, tmp_path):
    result = edgepop("train", "dense-digits", *DENSE)
    assert result.exit_code == 0, result.output
    assert "kept" not in result.stdout
    assert rows(tmp_path / "runs" / "results.csv")[0]["keep"] == ""
    assert_refused(edgepop("train", "dense-digits", "--keep", "0.5"), "--keep: the method dense has no such setting")


def test_the_data_folder_chooses_the_recipe(edgepop, tmp_path):
    write_files(tmp_path / "files", mnist_files(side=28))
    result = edgepop("train", "--data", "files", *QUICK)
    assert result.exit_code == 0, result.output
    assert "edge-popup-mnist: mlp (12,704 weights) on mnist (6 training images)" in result.stdout
    result = edgepop("train", "--resume", "runs/edge-popup-mnist", "--no-plots")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("recipe", "dataset"),
    [("edge-popup-conv2", "cifar10"), ("edge-popup-resnet50", "imagenet"), ("supermask-init-mnist", "mnist")],
)
def test_a_recipe_without_its_data_is_refused_and_says_how_to_give_it(edgepop, tmp_path, recipe, dataset):
    sentence = assert_refused(edgepop("train", recipe))
    assert sentence == (
        f"edgepop: {dataset} is read from a folder: give it with --data FOLDER, or train on the embedded digits with "
        "--dataset digits"
    )
    assert not (tmp_path / "runs").exists()


def test_every_recipe_trains_on_the_embedded_digits_where_that_is_asked(edgepop, tmp_path):
    conv = ["--epochs", 1, "--backend", "reference", "--threads", 1, "--no-plots", "--width-multiplier", 0.05]
    result = edgepop("train", "edge-popup-conv2", "--dataset", "digits", *conv)
    assert result.exit_code == 0, result.output
    assert rows(tmp_path / "runs" / "results.csv")[0]["dataset"] == "digits"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no-such-recipe"], ["there is no recipe 'no-such-recipe'", "`edgepop recipes` lists them"]),
        (["edge-popup-digit"], ["did you mean edge-popup-digits"]),
        (["--keep", "0"], ["--keep: expected a number in (0, 1], got 0.0"]),
        (["--keep", "much"], ["--keep: expected a number in (0, 1], got 'much'"]),
        (["--epochs", "1.5"], ["--epochs: expected a whole number, at least 1, got '1.5'"]),
        (["--out"], ["--out", "requires an argument"]),
        (["--threads", "100000000"], ["--threads: expected a whole number in [0, 1024], got 100000000"]),
        (["--lr", "-1"], ["--lr: expected a number above 0, at most 1e+30, got -1.0"]),
        (["--lr", "1e300"], ["--lr: expected a number above 0, at most 1e+30, got 1e+300"]),
        (["--weight-decay", "1e300"], ["--weight-decay: expected a number in [0, 1e+30], got 1e+300"]),
        (["--widths", "3,,4"], ["--widths: expected whole numbers above 0", "'3,,4'"]),
        (["--dataset", "imagenette"], ["--dataset: expected one of digits, mnist", "'imagenette'"]),
        (["--backend", "warp"], ["--backend: expected one of auto", "'warp'"]),
        (["--frobnicate"], ["there is no option --frobnicate"]),
        (["one", "two"], ["unexpected extra argument"]),
        (["--data", "nowhere"], ["the data folder nowhere does not exist"]),
        (["edge-popup-mnist", "--dataset", "mnist"], ["mnist is read from a folder", "--data FOLDER"]),
        (["edge-popup-mnist", "--data", "."], [". has no train-images-idx3-ubyte"]),
        (["--data", "."], [". holds none of the data sets"]),
        (["edge-popup-digits", "--data", "."], ["leave out --data"]),
        (["--resume", "nowhere"], ["the run folder nowhere does not exist"]),
        (["--resume", "."], [". is not a run folder"]),
        (["edge-popup-digits", "--resume", "."], ["a resumed run has its own"]),
        (["--resume", ".", "--out", "elsewhere"], ["--out: a resumed run stays in its folder", "got elsewhere"]),
        (["--resume", ".", "--out", "runs"], ["--out: a resumed run stays in its folder", "got runs"]),
        (["--out", "/dev/null/runs"], ["cannot make the folder /dev/null/runs: Not a directory"]),
        (["--out", "/proc/runs"], ["cannot make the folder /proc/runs: No such file or directory"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith(("-", "no", "edge", "one")) else "",
)
def test_a_wrong_command_is_one_sentence(edgepop, tmp_path, arguments, words):
    assert_refused(edgepop("train", *arguments), *words)
    assert not (tmp_path / "runs").exists()


def test_an_unknown_command_is_one_sentence(edgepop):
    assert_refused(edgepop("trian"), "No such command 'trian'")


def test_a_corrupt_data_file_is_one_sentence(edgepop, tmp_path):
    content = mnist_files()
    content["train-images-idx3-ubyte"] = content["train-images-idx3-ubyte"][:-1]
    write_files(tmp_path, content)
    assert_refused(edgepop("train", "--data", tmp_path), str(tmp_path / "train-images-idx3-ubyte"), "holds only 149")


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for the GPU that is missing elsewhere")
def test_a_missing_gpu_is_one_sentence(edgepop):
    assert_refused(edgepop("train", "--device", "cuda"), "PyTorch finds no GPU here")


def test_an_unavailable_backend_is_one_sentence(edgepop, monkeypatch):
    use = ek.use_backend

    def refuse(name):
        if name == "reference":
            raise RuntimeError(f"backend {name!r} is not available: no compiler")
        return use(name)

    monkeypatch.setattr(ek, "use_backend", refuse)
    assert_refused(edgepop("train", *QUICK), "backend 'reference' is not available: no compiler")


@pytest.mark.parametrize(("package", "option"), [("matplotlib", "--plots"), ("tensorboard", "--tensorboard")])
def test_a_missing_package_is_one_sentence_before_training(edgepop, monkeypatch, package, option):
    find = importlib.util.find_spec
    monkeypatch.setattr(plots.importlib.util, "find_spec", lambda name: None if name == package else find(name))
    assert_refused(edgepop("train", *QUICK, option), f"pip install {package}")


class Scalars(list):
    """Stands in for torch.utils.tensorboard, which imports a package that only users of it have."""

    def __init__(self, folder, purge_step):
        self.append(purge_step)
        written[folder] = self

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.append("closed")

    def add_scalar(self, name, value, epoch):
        self.append((name, value, epoch))


written = {}


def test_tensorboard_gets_every_number_of_the_log(edgepop, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "check", lambda *_: None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Scalars))
    assert edgepop("train", *QUICK, "--tensorboard").exit_code == 0
    log = rows(f"runs/{NAME}/log.csv")
    numbers = [(name, float(v), int(row["epoch"])) for row in log for name, v in row.items() if name != "epoch"]
    (scalars,) = written.values()
    assert scalars == [1, *numbers, "closed"]
    assert edgepop("train", "--resume", f"runs/{NAME}/first.pt", "--tensorboard", "--no-plots").exit_code == 0
    assert edgepop("train", "--resume", f"runs/{NAME}", "--tensorboard", "--no-plots").exit_code == 0
    assert list(written.values()) == [[3, "closed"]]  # a finished run has no numbers to add, and none to take back


def test_a_folder_of_images_chooses_the_recipe_and_a_damaged_one_is_one_sentence(edgepop, tmp_path):
    for part, count in (("train", 5), ("val", 2)):
        for label in ("a", "b"):
            (tmp_path / "images" / part / label).mkdir(parents=True)
            for i in range(count):
                values = torch.randint(256, (12, 14, 3), dtype=torch.uint8).numpy()
                Image.fromarray(values).save(tmp_path / "images" / part / label / f"{i}.jpg")
    small = ["--model", "mlp", "--image-size", 8, "--batch-size", 4, "--workers", 0, "--warmup", 0]
    result = edgepop("train", "--data", "images", *QUICK, *small)
    assert result.exit_code == 0, result.output
    assert "edge-popup-resnet50: mlp (3,104 weights) on imagenet (10 training images)" in result.stdout
    damaged = tmp_path / "images" / "val" / "b" / "1.jpg"
    good = damaged.read_bytes()
    damaged.write_bytes(good[: len(good) // 2])
    run = tmp_path / "runs" / "edge-popup-resnet50-1"
    assert_refused(
        edgepop("train", "--data", "images", *QUICK, *small), "cannot decode the image", "images/val/b/1.jpg"
    )
    assert state(run)["epoch"] == 0
    damaged.write_bytes(good)
    assert edgepop("train", "--resume", run, "--no-plots").exit_code == 0
    assert state(run)["epoch"] == 2


def test_a_loss_that_is_no_number_names_epoch_and_step_and_keeps_the_last_checkpoint(edgepop, tmp_path, monkeypatch):
    step, calls = trainer.train_step, []

    def diverges(*arguments):
        sums = step(*arguments)
        calls.append(sums)
        return sums * torch.nan if len(calls) == 23 + 7 else sums

    monkeypatch.setattr(trainer, "train_step", diverges)
    sentence = assert_refused(edgepop("train", *QUICK), "not a finite number in epoch 2, step 7 of 23", "lr than 0.1")
    last = tmp_path / "runs" / NAME / "last.pt"
    assert f"{last.relative_to(tmp_path)} still holds epoch 1" in sentence
    saved = state(last.parent)
    assert (saved["epoch"], saved["step"]) == (1, 0)
    assert all(tensor.isfinite().all() for tensor in saved["model"].values())


def test_a_diverging_run_stops(edgepop):
    assert_refused(edgepop("train", "dense-digits", *DENSE, "--lr", "1e30"), "not a finite number in epoch 1, step ")


def test_a_full_disk_keeps_the_last_good_checkpoint(edgepop, tmp_path, monkeypatch):
    replace, run = os.replace, tmp_path / "runs" / NAME

    def full(source, target):
        if os.path.basename(target) == "last.pt" and (run / "log.csv").read_text().count("\n") == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", lambda s, t: full(s, t) if (run / "log.csv").exists() else replace(s, t))
    assert_refused(edgepop("train", *QUICK), "cannot write", "last.pt: No space left on device")
    assert state(run)["epoch"] == 1
    assert not [name for name in os.listdir(run) if name.endswith(".tmp")]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert edgepop("train", "--resume", run, "--no-plots").exit_code == 0
    assert state(run)["epoch"] == 2


def test_ctrl_c_exits_130_with_one_sentence(edgepop, tmp_path, monkeypatch):
    from edgepop_kernels.recipes import job
    from edgepop_kernels.recipes.errors import Interrupted

    def stopped(*_):
        raise Interrupted("stopped by SIGINT after epoch 1, step 2; everything is saved")

    monkeypatch.setattr(job, "_fit", stopped)
    result = edgepop("train", *QUICK)
    assert (result.exit_code, result.stderr.count("\n")) == (130, 1)
    assert "stopped by SIGINT" in result.stderr


def test_resume_refuses_another_setting_by_name(edgepop):
    assert edgepop("train", *QUICK).exit_code == 0
    assert_refused(edgepop("train", "--resume", f"runs/{NAME}", "--keep", "0.3"), "keep is 0.5 in its checkpoint, 0.3")


def test_a_defect_is_not_dressed_up_as_a_user_error(edgepop, monkeypatch):
    monkeypatch.setattr(trainer, "sums_over", lambda *_: 1 / 0)
    assert isinstance(edgepop("train", *QUICK).exception, ZeroDivisionError)


def test_recipes_lists_every_recipe_with_its_goal(edgepop):
    result = edgepop("recipes")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    for name, entry in registry.RECIPES.items():
        (first,) = (i for i, line in enumerate(lines) if line.startswith(f"{name} "))
        assert f"{entry.recipe.model} on {entry.recipe.dataset}" in lines[first]
        assert f"aims at: {entry.goal} ({entry.source})" in lines[first + 1]


def test_bench_hands_its_arguments_to_pytest(edgepop, monkeypatch):
    commands = []

    def run(command, cwd, check):
        commands.append((command[1:], cwd))
        return type("Finished", (), {"returncode": 5})

    monkeypatch.setattr(cli.subprocess, "run", run)
    # An installed copy, as in `make oldest`, has no benchmarks beside it.
    monkeypatch.setattr(cli, "__file__", str(ROOT / "edgepop_kernels" / "recipes" / "cli.py"))
    assert edgepop("bench", "-k", "select").exit_code == 5
    assert commands == [(["-m", "pytest", "benchmarks", "--benchmark-only", "-k", "select"], ROOT)]


def test_bench_outside_a_checkout_is_one_sentence(edgepop, monkeypatch, tmp_path):
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "a" / "b" / "cli.py"))
    assert_refused(edgepop("bench"), "part of the source checkout")
