"""A run interrupted anywhere and resumed is the run that was not interrupted, bit for bit."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from recipe_runs import NAME, RECIPE, STEPS, SignalAt, assert_same, assert_same_run, resume, rows, start, state
from rich.console import Console

from edgepop_kernels.recipes import checkpoint
from edgepop_kernels.recipes.errors import ConfigError, Interrupted, UserError
from edgepop_kernels.recipes.files import locked
from edgepop_kernels.recipes.report import Report
from edgepop_kernels.recipes.trainer import frozen_digest


@pytest.fixture(scope="module", autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    start(folder)
    return folder / NAME


def test_one_seed_gives_one_run_and_another_seed_another(straight, tmp_path):
    start(tmp_path)
    assert_same_run(tmp_path / NAME, straight)
    start(tmp_path, RECIPE.override(seed=1))
    other = state(tmp_path / f"{NAME}-1")["model"]
    assert not torch.equal(other["fc1.scores"], state(straight)["model"]["fc1.scores"])
    assert not torch.equal(other["fc1.weight"], state(straight)["model"]["fc1.weight"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("step", [1, 2 * STEPS - 1, 2 * STEPS, 2 * STEPS + 7])
def test_resumed_after_a_signal_it_is_the_same_run(straight, tmp_path, step, number):
    # After the last step of an epoch it stops before the test part is evaluated.
    epoch, done = (step - 1) // STEPS, (step - 1) % STEPS + 1
    with pytest.raises(Interrupted, match=f"stopped by {number.name} after epoch {epoch}, step {done};"):
        start(tmp_path, report=SignalAt(step, number))
    stopped = state(tmp_path / NAME)
    assert (stopped["epoch"], stopped["step"]) == (epoch, done)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    resume(tmp_path / NAME)
    assert_same_run(tmp_path / NAME, straight)


def test_the_fused_path_on_two_threads_resumes_to_the_same_run(tmp_path):
    """Selections start from the last cut, which a resumed run does not have: the cut must not depend on it."""
    recipe = RECIPE.override(backend="auto", threads=2, epochs=2, widths=(100, 30))
    start(tmp_path / "a", recipe)
    with pytest.raises(Interrupted):
        start(tmp_path / "b", recipe, SignalAt(30))
    resume(tmp_path / "b" / NAME)
    assert_same_run(tmp_path / "b" / NAME, tmp_path / "a" / NAME)


def test_resumed_twice_with_adam_a_conv_network_and_bfloat16(tmp_path):
    recipe = RECIPE.override(
        optimizer="adam", lr=0.01, dtype="bfloat16", model="small-conv", width_multiplier=0.2, channels_last=True,
        epochs=2, warmup=1, label_smoothing=0.1,
    )  # fmt: skip
    start(tmp_path / "a", recipe)
    with pytest.raises(Interrupted):
        start(tmp_path / "b", recipe, SignalAt(5))
    with pytest.raises(Interrupted):
        resume(tmp_path / "b" / NAME, report=SignalAt(20))
    resume(tmp_path / "b" / NAME)
    assert_same_run(tmp_path / "b" / NAME, tmp_path / "a" / NAME)


def test_resumed_from_an_earlier_checkpoint_it_repeats_the_rows(straight, tmp_path):
    start(tmp_path)
    resume(tmp_path / NAME / "first.pt")
    assert_same_run(tmp_path / NAME, straight)
    assert len(rows(tmp_path / "results.csv")) == 1


def test_resuming_a_finished_run_only_shows_its_summary(straight, tmp_path):
    before = state(straight)
    summary = resume(straight)
    assert summary.accuracy == before["history"][-1]["test_accuracy"]
    assert_same(state(straight), before, "last")
    assert len(rows(straight.parent / "results.csv")) == 1


def test_killed_at_any_moment_it_resumes_to_the_same_run():
    """Four of what ``python tests/kill_runs.py 20`` does; in a process that has no threads yet, for it forks."""
    tests = Path(__file__).parent
    paths = os.pathsep.join([str(tests), str(tests.parent)])
    command = [sys.executable, str(tests / "kill_runs.py"), "4", "1"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": the same") == 4


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"lr": 0.05}, "lr is 0.1 in its checkpoint, 0.05 in the command line"),
        ({"epochs": 8}, "epochs is 4 in its checkpoint, 8 in the command line"),
        ({"widths": "16,16"}, r"widths is \[16\] in its checkpoint, \[16, 16\] in the command line"),
    ],
)
def test_another_setting_is_refused_on_resume(straight, asked, words):
    with pytest.raises(ConfigError, match=f"cannot resume .*{words}"):
        resume(straight, asked)


def test_the_same_setting_is_welcome_on_resume(straight):
    resume(straight, {"lr": 0.1, "widths": "16"})


def test_a_config_file_edited_since_is_refused(tmp_path):
    with pytest.raises(Interrupted):
        start(tmp_path, report=SignalAt(3))
    config = tmp_path / NAME / "config.json"
    config.write_text(config.read_text().replace('"momentum": 0.9', '"momentum": 0.8'))
    with pytest.raises(ConfigError, match=r"momentum is 0\.9 in its checkpoint, 0\.8 in config\.json"):
        resume(tmp_path / NAME)


def test_another_torch_version_is_mentioned_on_resume(straight, tmp_path):
    shutil.copytree(straight, tmp_path / NAME)
    config = tmp_path / NAME / "config.json"
    record = json.loads(config.read_text())
    record["environment"]["torch"] = "1.0"
    config.write_text(json.dumps(record))
    report = Report(Console(file=io.StringIO()))
    resume(tmp_path / NAME, report=report)
    assert f"note: torch was 1.0 and is {torch.__version__}" in report.console.file.getvalue()


def test_other_data_are_refused(straight, tmp_path, monkeypatch):
    from edgepop_kernels.recipes.data import digits

    monkeypatch.setattr(digits, "TRAIN", 1438)
    with pytest.raises(UserError, match=r"the digits data are not those this run was started with"):
        resume(straight)


def test_two_processes_cannot_train_in_one_folder(straight):
    with locked(straight, wait=False), pytest.raises(UserError, match=r"another process is training in"):
        resume(straight)


def damage(file, kind):
    content = bytearray(file.read_bytes())
    if kind == "flipped bit":
        # A score, which PyTorch's own reader would take as it is.
        scores = checkpoint.load(file)["model"]["fc1.scores"]
        content[content.index(scores.numpy().tobytes()) + 9] ^= 4
    file.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "foreign": b"hello"}.get(kind, content))


@pytest.mark.parametrize("kind", ["flipped bit", "cut", "empty", "foreign"])
def test_a_corrupt_last_checkpoint_is_reported_with_a_good_one(tmp_path, kind):
    run = tmp_path / NAME
    with pytest.raises(Interrupted):
        start(tmp_path, report=SignalAt(STEPS + 3))
    damage(run / "last.pt", kind)
    with pytest.raises(UserError) as error:
        resume(run)
    sentence = str(error.value)
    assert f"the checkpoint {run / 'last.pt'} is corrupt" in sentence
    assert f"{run / 'best-test.pt'} (epoch 1) is good: give that instead" in sentence
    assert "\n" not in sentence
    damage(run / "best-test.pt", kind)
    with pytest.raises(UserError, match=r"first\.pt \(epoch 0\) is good"):
        resume(run)
    damage(run / "first.pt", kind)
    with pytest.raises(UserError, match=r"last\.pt is corrupt: [^;]*$"):
        resume(run)


def test_a_checkpoint_that_is_another_files_is_refused(tmp_path):
    file = tmp_path / "last.pt"
    torch.save({"model": torch.nn.Linear(2, 2)}, file)
    with pytest.raises(UserError, match=r"is not a checkpoint of this program"):
        checkpoint.load(file)
    torch.save({"format": 99}, file)
    with pytest.raises(UserError, match=r"is not a checkpoint of this version"):
        checkpoint.load(file)
    with pytest.raises(UserError, match=r"cannot read .*No such file"):
        checkpoint.load(tmp_path / "none.pt")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_digest_of_what_does_not_train_follows_its_values_alone(dtype):
    model = torch.nn.Conv2d(3, 4, 1, bias=False, dtype=dtype).requires_grad_(False)
    digest = frozen_digest(model)
    assert frozen_digest(model.to(memory_format=torch.channels_last)) == digest
    model.weight[3, 2] += 1
    assert frozen_digest(model) != digest


def test_random_states_of_all_generators_come_back():
    import random

    import numpy

    checkpoint.seed_everything(3)
    random.gauss(0, 1)
    saved = checkpoint.random_state()
    drawn = [torch.rand(3).tolist(), random.gauss(0, 1), numpy.random.normal()]  # noqa: NPY002
    checkpoint.set_random_state(saved)
    assert [torch.rand(3).tolist(), random.gauss(0, 1), numpy.random.normal()] == drawn  # noqa: NPY002
