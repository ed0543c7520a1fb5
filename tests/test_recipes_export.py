"""Exports: plain weights with the answers of the run, all that one has to know beside them, and nothing replaced."""

import json
import os
import re

import pytest
import torch
from recipe_runs import NAME, state
from safetensors import safe_open
from safetensors.torch import load_file
from test_recipes_cli import DENSE, QUICK, assert_refused
from test_recipes_resnets import torchvisions
from typer.testing import CliRunner

import edgepop_kernels as ek
from edgepop_kernels.export import onnx
from edgepop_kernels.recipes import cli, data, dense, exported, machine, registry, resnets
from edgepop_kernels.recipes.errors import UserError


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


@pytest.fixture
def trained(edgepop, tmp_path):
    assert edgepop("train", *QUICK, "--keep", "0.3").exit_code == 0
    return tmp_path / "runs" / NAME


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_export_gives_a_plain_network_with_the_same_answers(edgepop, trained, tmp_path, suffix):
    with ek.use_backend("reference"):
        result = edgepop("export", trained, "--output", f"new/net{suffix}", "--masks", "--checkpoint", "last")
    assert result.exit_code == 0, result.output
    assert result.stdout.split() == [f"new/net{suffix}", f"new/net-masks{suffix}"]
    if suffix == ".pt":
        weights, masks = (torch.load(tmp_path / f"new/net{part}.pt", weights_only=True) for part in ("", "-masks"))
    else:
        weights, masks = (load_file(tmp_path / f"new/net{part}.safetensors") for part in ("", "-masks"))
        with safe_open(tmp_path / "new/net.safetensors", "pt") as file:
            assert json.loads(file.metadata()["config"])["keep"] == 0.3
    saved = state(trained)
    recipe = registry.from_dict(saved["config"])
    plain = dense.plain_network(recipe, (1, 8, 8), 10)
    plain.load_state_dict(weights)
    masked = recipe.network((1, 8, 8), 10)
    masked.load_state_dict(saved["model"])
    x = torch.randn(5, 1, 8, 8)
    with ek.use_backend("reference"):
        torch.testing.assert_close(plain(x), masked(x))
    for name, bits in masks.items():
        mask = ek.unpack_mask(bits, weights[f"{name}.weight"].shape)
        assert mask.sum() == ek.kept_count(mask.numel(), 0.3)
        assert torch.equal(weights[f"{name}.weight"], saved["model"][f"{name}.weight"] * mask)


def test_exported_masks_are_those_of_the_exported_weights(edgepop, tmp_path):
    """Also of a rule that draws, whose masks differ each time they are asked for."""
    assert edgepop("train", "supermask-bernoulli-digits", *QUICK, "--rescale").exit_code == 0
    assert edgepop("export", "runs/supermask-bernoulli-digits", "--output", "net.pt", "--masks").exit_code == 0
    weights, masks = (torch.load(tmp_path / f"net{part}.pt", weights_only=True) for part in ("", "-masks"))
    assert list(masks) == ["fc1", "fc2"]
    for name, bits in masks.items():
        weight = weights[f"{name}.weight"]
        mask = ek.unpack_mask(bits, weight.shape)
        assert 0 < mask.sum() < mask.numel()
        assert torch.equal(weight != 0, mask)


def test_export_errors_are_one_sentence(edgepop, trained, tmp_path):
    assert_refused(edgepop("export", "nowhere"), "the run folder nowhere does not exist")
    assert_refused(edgepop("export", tmp_path), "has neither best-validation.pt nor best-test.pt")
    assert_refused(edgepop("export", tmp_path, "--checkpoint", "last"), "cannot read", "last.pt")
    assert_refused(edgepop("export", trained, "--output", "net.onnx"), "net.onnx", ".pt or .safetensors")
    assert_refused(
        edgepop("export", trained, "--checkpoint", "worst"), "--checkpoint: expected one of last, best, first"
    )
    (trained / "best-test.pt").write_bytes((trained / "best-test.pt").read_bytes()[:-99])
    assert_refused(edgepop("export", trained), "best-test.pt is corrupt", "last.pt (epoch 2) is good")
    assert edgepop("train", "dense-digits", *DENSE).exit_code == 0
    assert_refused(edgepop("export", "runs/dense-digits", "--masks"), "has no masks to export")


def test_an_export_never_replaces_a_checkpoint(edgepop, trained, tmp_path):
    before = {file.name: file.read_bytes() for file in trained.iterdir()}
    assert {"best-test.pt", "first.pt", "last.pt"} < set(before)
    (tmp_path / "link").symlink_to(trained)
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / "last.pt").write_bytes(before["last.pt"])  # a checkpoint on its own is exported too
    for source, output in (
        (trained, trained / "last.pt"),
        (trained, tmp_path / "runs" / ".." / "link" / "best-validation.pt"),
        ("moved", trained / "first.pt"),  # of another run
        ("moved", "moved/best-test.pt"),  # one that is not there yet
    ):
        refused = edgepop("export", source, "--output", output, "--checkpoint", "last")
        assert_refused(refused, f"cannot export to {output}", "a checkpoint of a run", "expected another name")
    assert {file.name: file.read_bytes() for file in trained.iterdir()} == before
    assert sorted(os.listdir(tmp_path / "moved")) == ["last.pt"]
    assert edgepop("export", trained, "--output", "elsewhere/last.pt").exit_code == 0


def read(file):
    """Tensors and description of an export, as a user reads them."""
    if file.suffix == ".pt":
        return torch.load(file, weights_only=True), json.loads(file.with_suffix(".json").read_text())
    with safe_open(file, "pt") as opened:
        return load_file(file), {key: json.loads(value) for key, value in opened.metadata().items()}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_an_export_says_what_one_has_to_know_to_use_it(edgepop, trained, tmp_path, suffix):
    result = edgepop("export", trained, "--output", f"net{suffix}", "--checkpoint", "last")
    assert result.exit_code == 0, result.output
    assert ("net.json: what one has to know to use net.pt" in result.stderr) == (suffix == ".pt")
    weights, about = read(tmp_path / f"net{suffix}")
    mean, deviation = data.load("digits", None).moments()
    assert about["preprocessing"] == {
        "layout": "NCHW",
        "image": [1, 8, 8],
        "values": [0, 16],
        "mean": [mean.item()],
        "deviation": [deviation.item()],
    }
    assert about["class_names"] == list("0123456789")
    row = state(trained)["history"][-1]
    assert about["checkpoint"] == {"name": "last", "epoch": 2, "step": 0, "row": row, "accuracy_of": "these weights"}
    assert row["epoch"] == 2 and 0 < row["test_accuracy"] <= 1
    assert about["data"] == {"name": "digits", "sha256": data.load("digits", None).digest()}
    architecture = about["architecture"]
    assert "Linear(in_features=64, out_features=16, bias=False)" in architecture.pop("modules")
    assert architecture == {"model": "mlp", "widths": [16], "image": [1, 8, 8], "classes": 10}
    assert about["config"]["keep"] == 0.3 and registry.from_dict(about["config"]).keep == 0.3
    # By the description alone: the accuracy of the run's log, up to an image on the edge between two answers.
    plain = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, 16, bias=False), torch.nn.ReLU(), torch.nn.Linear(16, 10, bias=False)
    )
    plain.load_state_dict(dict(zip(plain.state_dict(), weights.values(), strict=True)))
    digits, about = data.load("digits", None), about["preprocessing"]
    images = (digits.test.images - torch.tensor(about["mean"])) / torch.tensor(about["deviation"])
    right = (plain(images).argmax(1) == digits.test.labels).sum().item()
    assert abs(right - 360 * row["test_accuracy"]) <= 1


def test_the_first_checkpoint_has_no_accuracy_to_tell(edgepop, trained, tmp_path):
    assert edgepop("export", trained / "first.pt", "--output", "net.safetensors").exit_code == 0
    checkpoint = read(tmp_path / "net.safetensors")[1]["checkpoint"]
    assert (checkpoint["name"], checkpoint["epoch"], checkpoint["row"]) == ("first", 0, None)


def test_a_checkpoint_is_exported_by_its_file_as_by_its_folder(edgepop, trained, tmp_path):
    for source, output in ((trained, "a.pt"), (trained / "best-test.pt", "b.pt")):
        assert edgepop("export", source, "--output", output).exit_code == 0
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    result = edgepop("export", trained / "last.pt")
    assert result.stdout.split() == [str(trained / "last-plain.pt")]
    assert_refused(
        edgepop("export", trained / "last.pt", "--checkpoint", "best"),
        "--checkpoint: leave it out beside the file of one",
        "got 'best'",
    )
    assert_refused(edgepop("export", trained / "other.pt"), "cannot read", "other.pt: No such file or directory")
    assert_refused(edgepop("export", trained / "log.csv"), "log.csv is corrupt")
    assert_refused(edgepop("export", trained / "last-plain.pt"), "last-plain.pt is not a checkpoint of this program")


def test_a_drawn_mask_is_drawn_alike_in_every_export_and_said_to_be_drawn(edgepop, tmp_path):
    assert edgepop("train", "supermask-bernoulli-digits", *QUICK).exit_code == 0
    run = tmp_path / "runs" / "supermask-bernoulli-digits"
    before = torch.random.get_rng_state()
    for name, masks in (("a", []), ("b", []), ("c", ["--masks"])):
        assert edgepop("export", run, "--output", f"{name}.pt", *masks).exit_code == 0
    assert torch.equal(before, torch.random.get_rng_state())
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()
    (weights, about), (again, _) = read(tmp_path / "a.pt"), read(tmp_path / "c.pt")
    assert weights.keys() == again.keys() and all(torch.equal(weights[name], again[name]) for name in weights)
    assert about["checkpoint"]["accuracy_of"] == "masks drawn anew"


@pytest.mark.parametrize("recipe", ["edge-popup-digits", "wirings-digits", "supermask-digits", "dense-digits"])
@pytest.mark.parametrize("model", ["resnet18", "cifar-resnet18"])
def test_a_residual_network_has_all_that_torchvisions_has(edgepop, tmp_path, recipe, model):
    options = ["--model", model, "--width-multiplier", "0.05", "--epochs", "1", "--batch-size", "1437"]
    assert edgepop("train", recipe, *options, "--threads", "1", "--no-plots", "--no-step-times").exit_code == 0
    assert edgepop("export", f"runs/{recipe}", "--output", "net.pt").exit_code == 0
    weights, about = read(tmp_path / "net.pt")
    assert model != "resnet18" or weights.keys() == torchvisions("resnet18").keys()
    plain = resnets.build(model, 1, 10, width_multiplier=0.05).eval()
    plain.load_state_dict(weights)
    saved = state(tmp_path / "runs" / recipe)
    network = registry.from_dict(saved["config"]).network((1, 8, 8), 10).eval()
    network.load_state_dict(saved["model"])
    x = torch.randn(3, 1, 8, 8)
    with ek.use_backend("reference"):
        torch.testing.assert_close(plain(x), network(x))
    assert "NonAffineBatchNorm" not in about["architecture"]["modules"]


def test_an_export_replaces_exports_only(edgepop, trained, tmp_path):
    for name in ("net.pt", "net.safetensors"):
        for checkpoint in ("first", "last"):
            arguments = ["export", trained, "--output", name, "--masks", "--checkpoint", checkpoint]
            assert edgepop(*arguments).exit_code == 0
        assert read(tmp_path / name)[1]["checkpoint"]["name"] == "last"
    (tmp_path / "theirs.pt").write_bytes(b"somebody's weights")
    (tmp_path / "theirs.safetensors").write_bytes(b"somebody's weights")
    (tmp_path / "notes.json").write_text('["somebody\'s notes"]')
    (tmp_path / "new-masks.pt").write_bytes(b"somebody's masks")
    (tmp_path / "folder.pt").mkdir()
    before = sorted((path, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file())
    for output, there in (
        ("theirs.pt", "theirs.pt"),
        ("theirs.safetensors", "theirs.safetensors"),
        ("notes.pt", "notes.json"),
        ("new.pt", "new-masks.pt"),
        ("folder.pt", "folder.pt"),
        (trained / "config.pt", trained / "config.json"),
        (trained / "summary.pt", trained / "summary.json"),
    ):
        refused = edgepop("export", trained, "--output", output, "--masks")
        assert_refused(refused, "cannot export to", f"{there} is there and is no export, expected another name")
    assert sorted((path, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file()) == before
    # Killed between its two files, an export leaves what may be written again.
    (tmp_path / "net.pt").unlink()
    assert edgepop("export", trained, "--output", "net.pt").exit_code == 0


def test_an_export_that_cannot_be_written_is_one_sentence(edgepop, trained):
    for output in ("/proc/net.pt", "/proc/net.safetensors"):
        assert_refused(edgepop("export", trained, "--output", output), "cannot write /proc/net.")
    assert_refused(edgepop("export", trained, "--output", "/dev/null/net.pt"), "cannot make the folder /dev/null")


@pytest.mark.parametrize("recipe", ["edge-popup-digits", "supermask-bernoulli-digits", "wirings-digits"])
def test_a_packed_export_has_the_network_itself(edgepop, tmp_path, recipe):
    options = [] if recipe != "supermask-bernoulli-digits" else ["--rescale"]
    assert edgepop("train", recipe, *QUICK, *options).exit_code == 0
    run = tmp_path / "runs" / recipe
    result = edgepop("export", run, "--packed", "--checkpoint", "last")
    assert result.exit_code == 0, result.output
    assert result.stdout.split() == [str(run / "last-packed.safetensors")]
    assert edgepop("export", run, "--packed", "--output", "net.safetensors", "--checkpoint", "last").exit_code == 0
    assert edgepop("export", run, "--output", "plain.safetensors", "--checkpoint", "last").exit_code == 0
    state_dict, plain = ek.load_packed("net.safetensors"), load_file("plain.safetensors")
    assert state_dict.keys() == plain.keys() and all(torch.equal(state_dict[name], plain[name]) for name in plain)
    about = read(tmp_path / "plain.safetensors")[1]
    assert about.pop("tensors_sha256")
    assert state_dict.meta == about | {"holds": "packed network"}
    network = registry.from_dict(state_dict.meta["config"]).network((1, 8, 8), 10)
    ek.load_packed("net.safetensors", network)
    assert all(layer.rule == ek.Frozen() for layer in network.modules() if hasattr(layer, "packed_mask"))
    assert os.path.getsize("net.safetensors") < os.path.getsize("plain.safetensors")


def test_options_of_an_export_that_do_not_go_together_are_refused(edgepop, trained, tmp_path):
    assert_refused(edgepop("export", trained, "--packed", "--output", "net.pt"), "net.pt", "ending in .safetensors")
    assert_refused(edgepop("export", trained, "--packed", "--masks"), "--masks: ", "beside --packed, which has them")
    assert_refused(edgepop("export", trained, "--onnx", "net.onnx", "--masks"), "--masks: ", "beside --onnx alone")
    assert_refused(edgepop("export", trained, "--onnx", "net.pt"), "cannot export to net.pt", "ending in .onnx")
    assert edgepop("train", "dense-digits", *DENSE).exit_code == 0
    assert_refused(edgepop("export", "runs/dense-digits", "--packed"), "has no masks to export")
    for name in ("net.onnx", "card.md"):
        (tmp_path / name).write_text("somebody's")
    assert_refused(edgepop("export", trained, "--onnx", "net.onnx"), "net.onnx is there and is no export")
    for options in (["--output", "card.pt"], ["--onnx", "card.onnx"], ["--packed", "--output", "card.safetensors"]):
        assert_refused(edgepop("export", trained, *options), "card.md is there and is no export")
    assert_refused(
        edgepop("export", trained, "--packed", "--output", "/proc/net.safetensors"), "cannot write /proc/net"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["card.md", "net.onnx", "runs"]


def test_a_card_says_what_is_known_of_the_run(edgepop, trained, tmp_path):
    result = edgepop("export", trained, "--output", "net.pt", "--masks", "--checkpoint", "last")
    assert "net.md: a card for people" in result.stderr
    card = (tmp_path / "net.md").read_text()
    row, record = state(trained)["history"][-1], json.loads((trained / "config.json").read_text())
    for line in (
        "# mlp on digits",
        f"| recipe | {NAME} |",
        f"| trained on | digits, SHA-256 {data.load('digits', None).digest()} |",
        "| checkpoint | last.pt, epoch 2 |",
        f"| test accuracy | {row['test_accuracy']:.2%} |",
        "| seed | 0 |",
        f"| trained with | edgepop_kernels {ek.__version__}, torch {torch.__version__} |",
        f"| weights under masks | {308 + 48:,} of {1024 + 160:,} kept (30.1 %) |",
        "| fc1 | SubnetLinear | 16x64 | TopK(0.3) | 308 | 1,024 | 30.1 |",
        f"- net.pt: {(tmp_path / 'net.pt').stat().st_size:,} bytes",
        f"- net-masks.pt: {(tmp_path / 'net-masks.pt').stat().st_size:,} bytes",
    ):
        assert line in card.splitlines(), card
    assert "keep 0.3" in card and "epochs 2" in card and "validation accuracy" not in card
    assert record["commit"] == machine.commit()
    assert (f"| commit | {record['commit']} |" in card) == (record["commit"] is not None)
    assert edgepop("export", trained / "first.pt", "--output", "net.pt").exit_code == 0
    first = (tmp_path / "net.md").read_text()
    assert "accuracy" not in first and "| checkpoint | first.pt, epoch 0 |" in first
    # Of a checkpoint that is nowhere near its run, less is known, and less is said.
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "last.pt").write_bytes((trained / "last.pt").read_bytes())
    assert edgepop("export", "alone", "--output", "net.pt", "--checkpoint", "last").exit_code == 0
    alone = (tmp_path / "net.md").read_text()
    assert not [word for word in ("| recipe |", "| trained with |", "| commit |") if word in alone]
    assert edgepop("train", "dense-digits", *DENSE).exit_code == 0
    assert edgepop("export", "runs/dense-digits", "--output", "dense.pt").exit_code == 0
    dense_card = (tmp_path / "dense.md").read_text()
    assert "| method | dense |" in dense_card and "under masks" not in dense_card


def test_the_commit_is_that_of_a_source_checkout_and_of_nothing_else(tmp_path, monkeypatch):
    commit = machine.commit()
    assert commit is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", commit)
    monkeypatch.setenv("PATH", "")
    assert machine.commit() is None  # without git
    monkeypatch.undo()
    monkeypatch.setattr(ek, "__file__", str(tmp_path / "edgepop_kernels" / "__init__.py"))
    assert machine.commit() is None  # an installed copy


@pytest.mark.parametrize("packed", [[], ["--packed"]])
def test_an_onnx_export_is_checked_or_says_what_it_lacks(edgepop, trained, tmp_path, packed):
    missing = [name for name in ("onnx", "onnxscript") if not onnx.installed(name)]
    result = edgepop("export", trained, "--onnx", "new/net.onnx", *packed, "--output", "plain.safetensors")
    if missing:
        assert_refused(result, f"ONNX needs {missing[0]}, which is not installed")
        pytest.skip(f"{', '.join(missing)} not installed")
    assert result.exit_code == 0, result.output
    assert result.stdout.split() == ["plain.safetensors", "new/net.onnx"]
    assert "new/net.onnx: onnxruntime answers as torch does, to " in result.stderr
    assert (tmp_path / "new" / "net.md").read_text().count("net.onnx: ") == 1
    library = pytest.importorskip("onnx")
    program = library.load("new/net.onnx")
    assert any(tensor.name.endswith(".bits") for tensor in program.graph.initializer) == bool(packed)
    said = {entry.key: json.loads(entry.value) for entry in program.metadata_props}
    assert said["class_names"] == list("0123456789") and said["preprocessing"]["image"] == [1, 8, 8]
    assert edgepop("export", trained, "--onnx", "new/net.onnx").stdout.split() == ["new/net.onnx"]  # replaced


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_damaged_export_is_named(tmp_path, suffix):
    file = tmp_path / f"net{suffix}"
    tensors = {"w": torch.randn(3, 5), "n": torch.tensor(3), "b": torch.ones(2, dtype=torch.bfloat16)}
    exported.write(file, tensors, {"kept": [1, 2.5, None, "é", "\udcff"]})  # the name of a folder may be no text
    found, about = exported.read(file)
    assert about["kept"] == [1, 2.5, None, "é", "\udcff"]
    assert found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in tensors)
    good = file.read_bytes()
    place = good.index(tensors["w"].numpy().tobytes())
    for damaged in (
        good[:-9],
        good[: place + 1],
        good[:20],
        b"",
        b"{}" * 40,
        good[:place] + b"\x01" + good[place + 1 :],
    ):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"net\{suffix}") as error:
            exported.read(file)
        assert "\n" not in str(error.value)
    file.write_bytes(good)
    exported.description(file).unlink()
    with pytest.raises(UserError, match=r"net\.json is not there|No such file"):
        exported.read(file)
