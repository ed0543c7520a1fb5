"""`edgepop eval`: the accuracies of the run exactly, of an export to rounding, and a word on whatever differs."""

import json
import math

import pytest
import torch
from PIL import Image
from recipe_runs import NAME, quiet, state
from rich.console import Console
from test_recipes_cli import DENSE, QUICK, assert_refused
from test_recipes_data import mnist_files, write_files
from typer.testing import CliRunner

from edgepop_kernels.recipes import checkpoint, cli, evaluation


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


CONV = ["--epochs", "2", "--threads", "1", "--no-plots", "--no-step-times", "--batch-size", "300"]
RUNS = {
    NAME: QUICK,
    "edge-popup-digits ": [*QUICK, "--validation", "137", "--limit-images", "900"],
    "edge-popup-digits  ": [*QUICK, "--max-steps", "30"],
    "edge-popup-digits-conv": [*CONV, "--width-multiplier", "0.2", "--dtype", "bfloat16", "--channels-last"],
    "supermask-bernoulli-digits": [*QUICK, "--validation", "137", "--rescale"],
    "wirings-digits": [*CONV, "--model", "resnet18", "--width-multiplier", "0.05"],
    "dense-digits": DENSE,
    "neural-graph-static-digits": [*CONV, "--nodes", "60", "--edges", "300"],
}


@pytest.mark.parametrize("recipe", RUNS)
def test_the_accuracies_of_a_run_come_out_again_exactly(edgepop, tmp_path, recipe):
    name = recipe.strip()
    assert edgepop("train", name, *RUNS[recipe]).exit_code == 0
    run = tmp_path / "runs" / name
    torch.manual_seed(3)  # what is drawn follows from the checkpoint, not from here
    before = torch.random.get_rng_state()
    for which in ("best", "last"):
        row = state(run, which)["history"][-1]
        parts = ["validation", "test"] if "--validation" in RUNS[recipe] else ["test"]
        found = evaluation.evaluate(run, which, None, quiet())
        assert [(part.part, part.loss, part.accuracy) for part in found] == [
            (part, row[f"{part}_loss"], row[f"{part}_accuracy"]) for part in parts
        ]
    assert torch.equal(before, torch.random.get_rng_state())
    assert found[-1].accuracy == json.loads((run / "summary.json").read_text())["test_accuracy"]
    result = edgepop("eval", run / "last.pt")
    assert result.exit_code == 0, result.output
    assert f"test accuracy {found[-1].accuracy:.2%} ({found[-1].right} of " in result.stdout
    assert result.stdout.count("; as the run did") == len(parts) and "note" not in result.stdout
    assert edgepop("export", run, "--output", "net.pt").exit_code == 0
    (whole,) = [part for part in evaluation.evaluate(tmp_path / "net.pt", None, None, quiet()) if part.part == "test"]
    best = state(run, "best")["history"][-1]
    if name == "supermask-bernoulli-digits":  # one draw of many
        assert abs(whole.accuracy - best["test_accuracy"]) < 0.2
        assert "under masks drawn anew" in edgepop("eval", "net.pt").stdout
    else:
        assert abs(whole.right - whole.images * best["test_accuracy"]) <= (2 if "bfloat16" in RUNS[recipe] else 1)
        assert math.isclose(whole.loss, best["test_loss"], rel_tol=0.02 if "bfloat16" in RUNS[recipe] else 1e-4)


@pytest.fixture
def trained(edgepop, tmp_path):
    assert edgepop("train", *QUICK).exit_code == 0
    return tmp_path / "runs" / NAME


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_an_export_is_evaluated_by_what_it_says_of_itself(edgepop, trained, tmp_path, suffix):
    assert edgepop("export", trained, "--output", f"net{suffix}", "--masks").exit_code == 0
    row = state(trained, "best")["history"][-1]
    result = edgepop("eval", f"net{suffix}")
    assert result.exit_code == 0, result.output
    assert f"net{suffix}, from best-test.pt, epoch {row['epoch']}: mlp on digits" in result.stdout
    assert f"test accuracy {row['test_accuracy']:.2%}" in result.stdout
    assert_refused(
        edgepop("eval", f"net-masks{suffix}"), f"net-masks{suffix} holds masks, expected an export of weights"
    )
    assert_refused(
        edgepop("eval", f"net{suffix}", "--checkpoint", "best"), "--checkpoint: leave it out beside an export"
    )


@pytest.mark.parametrize("recipe", [NAME, "supermask-bernoulli-digits", "wirings-digits"])
def test_a_packed_export_is_evaluated_under_its_masks(edgepop, tmp_path, recipe):
    assert edgepop("train", recipe, *QUICK).exit_code == 0
    assert edgepop("export", f"runs/{recipe}", "--packed", "--output", "net.safetensors").exit_code == 0
    row = state(tmp_path / "runs" / recipe, "best")["history"][-1]
    result = edgepop("eval", "net.safetensors")
    assert result.exit_code == 0, result.output
    assert f"net.safetensors, from best-test.pt, epoch {row['epoch']}: mlp on digits" in result.stdout
    drawn = recipe.startswith("supermask")
    assert f"{row['test_accuracy']:.2%}" in result.stdout and ("masks drawn anew" in result.stdout) == drawn
    content = bytearray((tmp_path / "net.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "net.safetensors").write_bytes(content)
    assert_refused(edgepop("eval", "net.safetensors"), "net.safetensors is damaged", "its checksum is another")


def test_what_was_not_evaluated_in_training_is_said(edgepop, trained):
    result = edgepop("eval", trained, "--checkpoint", "first")
    assert result.exit_code == 0, result.output
    assert "first.pt, epoch 0: mlp on digits" in result.stdout
    assert "; the run did not evaluate this checkpoint" in result.stdout


def test_other_data_are_evaluated_as_the_run_normalised_its_own_and_said_to_be_others(edgepop, tmp_path):
    write_files(tmp_path / "a", mnist_files(seed=0, side=8))
    write_files(tmp_path / "b", mnist_files(seed=1, side=8))
    write_files(tmp_path / "c", mnist_files(seed=1, side=9))
    assert edgepop("train", "--data", "a", *QUICK).exit_code == 0
    run = "runs/edge-popup-mnist"
    same = edgepop("eval", run)
    assert same.exit_code == 0, same.output
    assert "note" not in same.stdout and "as the run did" in same.stdout
    (tmp_path / "a").rename(tmp_path / "moved")
    assert_refused(edgepop("eval", run), "the data folder", "a does not exist")
    assert edgepop("eval", run, "--data", "moved").stdout == same.stdout
    result = edgepop("eval", run, "--data", "b")
    assert result.exit_code == 0, result.output
    assert "note: the mnist data are not those of the run: their hashes differ" in result.stdout
    assert_refused(edgepop("eval", run, "--data", "c"), "for 1x8x8 pixels and 10 classes", "the mnist data have 1x9x9")
    assert edgepop("export", run, "--output", "net.pt").exit_code == 0
    assert_refused(edgepop("eval", "net.pt"), "mnist is read from a folder: give it with --data FOLDER")
    assert "note" not in edgepop("eval", "net.pt", "--data", "moved").stdout
    # Normalised by what the run trained on: half as bright, the same data are other images to the network.
    saved = checkpoint.load(tmp_path / run / "last.pt")
    saved["preprocessing"]["mean"] = [0.0]
    (tmp_path / "alone").mkdir()
    checkpoint.save(tmp_path / "alone", ["last"], saved)
    (shifted,) = evaluation.evaluate(tmp_path / "alone" / "last.pt", None, tmp_path / "moved", quiet())
    (right,) = evaluation.evaluate(tmp_path / run, "last", tmp_path / "moved", quiet())
    assert shifted.loss != right.loss


def test_a_run_on_a_folder_of_images_and_its_export_are_evaluated(edgepop, tmp_path):
    for part, count in (("train", 5), ("val", 3)):
        for label in ("bee", "ant"):
            (tmp_path / "images" / part / label).mkdir(parents=True)
            for i in range(count):
                values = torch.randint(256, (12, 14, 3), dtype=torch.uint8).numpy()
                Image.fromarray(values).save(tmp_path / "images" / part / label / f"{i}.jpg")
    small = ["--model", "mlp", "--image-size", 8, "--batch-size", 4, "--workers", 0, "--warmup", 0]
    assert edgepop("train", "--data", "images", *QUICK, *small).exit_code == 0
    run = tmp_path / "runs" / "edge-popup-resnet50"
    result = edgepop("eval", run, "--checkpoint", "last")
    assert result.exit_code == 0, result.output
    assert "; as the run did" in result.stdout and "note" not in result.stdout
    assert edgepop("export", run, "--output", "net.pt").exit_code == 0
    about = json.loads((tmp_path / "net.json").read_text())
    assert about["class_names"] == ["ant", "bee"]
    preprocessing = about["preprocessing"]
    assert (preprocessing["shorter_side"], preprocessing["crop"], preprocessing["image"]) == (9, "middle", [3, 8, 8])
    result = edgepop("eval", "net.pt", "--data", "images")
    assert result.exit_code == 0, result.output
    assert " of 6)" in result.stdout and "note" not in result.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for the GPU that is missing elsewhere")
def test_a_run_on_a_gpu_or_with_a_missing_backend_is_evaluated_here_and_said_to_be(
    edgepop, trained, tmp_path, monkeypatch
):
    saved = checkpoint.load(trained / "last.pt")
    saved["config"] |= {"device": "cuda", "backend": "cuda"}
    (tmp_path / "alone").mkdir()
    checkpoint.save(tmp_path / "alone", ["last"], saved)
    result = edgepop("eval", "alone", "--checkpoint", "last")
    assert result.exit_code == 0, result.output
    assert "note: the run was on a GPU" in result.stdout
    assert "note: backend 'cuda' is not available" in result.stdout
    assert "as the run did" in result.stdout


def test_eval_errors_are_one_sentence(edgepop, trained, tmp_path):
    assert_refused(edgepop("eval", "nowhere"), "the run folder nowhere does not exist")
    assert_refused(edgepop("eval", trained / "other.pt"), "cannot read", "other.pt: No such file")
    assert_refused(edgepop("eval", "other.safetensors"), "cannot read other.safetensors: No such file")
    assert_refused(edgepop("eval", trained, "--checkpoint", "worst"), "--checkpoint: expected one of last, best, first")
    assert_refused(edgepop("eval", trained / "last.pt", "--checkpoint", "last"), "leave it out beside the file of one")
    torch.save({"fc.weight": torch.ones(2)}, tmp_path / "theirs.pt")
    assert_refused(
        edgepop("eval", "theirs.pt"),
        "theirs.pt is not a checkpoint of this program; nor is it an export: theirs.json does not describe it",
    )
    (tmp_path / "their.safetensors").write_bytes(b"somebody's")
    assert_refused(edgepop("eval", "their.safetensors"), "their.safetensors is damaged or does not describe an export")
    assert edgepop("export", trained, "--output", "net.pt").exit_code == 0
    about = json.loads((tmp_path / "net.json").read_text())
    about["architecture"]["classes"] = 11
    (tmp_path / "net.json").write_text(json.dumps(about))
    assert_refused(edgepop("eval", "net.pt"), "net.pt does not hold the weights of the network it describes: ")
    del about["architecture"]
    (tmp_path / "net.json").write_text(json.dumps(about))
    assert_refused(edgepop("eval", "net.pt"), "net.pt does not hold the weights of the network it describes: ")
    (trained / "last.pt").write_bytes(b"")
    assert_refused(edgepop("eval", trained / "last.pt"), "last.pt is corrupt")


def test_eval_prints_plain_lines(trained, capsys):
    evaluation.evaluate(trained, "last", None, evaluation.Report(Console(width=40)))
    assert len(capsys.readouterr().out.splitlines()) == 2
