"""Output that nobody takes: one sentence, no traceback, and a run that is saved."""

import contextlib
import errno
import io
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from recipe_runs import NAME, assert_same_run, resume, start, state
from rich.console import Console

from edgepop_kernels.recipes import output, parallel
from edgepop_kernels.recipes.errors import OutputLost
from edgepop_kernels.recipes.report import Report

COMMANDS = {
    "recipes": ["recipes"],
    "help": ["train", "--help"],
    "doctor": ["doctor"],
    "train": ["train", "--epochs", "1", "--widths", "8", "--threads", "1", "--no-plots", "--out", "my runs"],
}
FULL = Path("/dev/full")


@pytest.fixture(scope="module", autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def ended(process):
    _, errors = process.communicate(timeout=240)
    return process.returncode, errors


@pytest.fixture(scope="module")
def lost(tmp_path_factory):
    """(exit code, standard error) of each command whose output nobody takes, by what takes none; all at once."""
    folder = tmp_path_factory.mktemp("lost")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    started, closed = {}, []
    for name, arguments in COMMANDS.items():
        reader, writer = os.pipe()
        os.close(reader)
        closed.append(writer)
        takers = {"pipe": writer} | ({"full": os.open(FULL, os.O_WRONLY)} if FULL.exists() else {})
        for taker, descriptor in takers.items():
            place = folder / f"{name} {taker}"
            place.mkdir()
            started[name, taker] = subprocess.Popen(
                [sys.executable, "-m", "edgepop_kernels", *arguments],
                stdout=descriptor, stderr=subprocess.PIPE, text=True, cwd=place, env=environment,
            )  # fmt: skip
            os.close(descriptor)
    return folder, {key: ended(process) for key, process in started.items()}


REASONS = {"pipe": "Broken pipe", "full": "No space left on device"}


@pytest.mark.parametrize("taker", REASONS)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_whose_output_nobody_takes_ends_with_one_sentence(lost, name, taker):
    folder, found = lost
    if (name, taker) not in found:
        pytest.skip("this system has no /dev/full")
    code, errors = found[name, taker]
    assert (code, len(errors.splitlines())) == (2, 1), errors
    sentence = f"edgepop: cannot write to standard output: {REASONS[taker]}"
    if name == "train":
        run = Path("my runs") / NAME
        sentence += f"; everything is saved in {run}: continue with `edgepop train --resume '{run}'`"
        assert state(folder / f"{name} {taker}" / run)["epoch"] == 0
    assert errors.strip() == sentence


class Taken(io.StringIO):
    """Takes so many lines, then no more."""

    def __init__(self, lines):
        super().__init__()
        self.left = lines

    def write(self, text):
        self.left -= text.count("\n")
        if self.left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(text)


@pytest.mark.parametrize("lines", [2, 3, 6, 9])
def test_an_epoch_is_saved_before_it_is_told(tmp_path, lines):
    """Two lines begin a run of four epochs, which have one each; then comes the summary."""
    taken = Taken(lines)
    with contextlib.redirect_stdout(taken), pytest.raises(OutputLost) as error, output.guarded():
        start(tmp_path / "a", report=Report(Console(width=200)))
    run = tmp_path / "a" / NAME
    assert str(error.value) == (
        f"cannot write to standard output: No space left on device; everything is saved in {run}: continue with "
        f"`edgepop train --resume {shlex.quote(str(run))}`"
    )
    assert state(run)["epoch"] == min(lines - 1, 4)
    assert (run / "summary.json").exists() == (lines > 5)
    resume(run)
    start(tmp_path / "b")
    assert_same_run(run, tmp_path / "b" / NAME)


def test_output_that_was_lost_once_is_lost_to_whoever_writes_again():
    """A library that probes the stream swallows the first error."""
    taken = Taken(0)
    with (
        contextlib.redirect_stdout(taken),
        pytest.raises(OutputLost),
        output.guarded(),
        contextlib.suppress(OutputLost),
    ):
        print("one")
    assert taken.getvalue() == "one"  # the end of the line is lost, and whatever follows


def test_what_ascii_cannot_say_is_a_question_mark():
    raw = io.BytesIO()
    terminal = io.TextIOWrapper(raw, encoding="ascii")
    with contextlib.redirect_stdout(terminal), output.guarded():
        print("91.1 % ± 0.5")
    assert raw.getvalue() == b"91.1 % ? 0.5\n"
    terminal.close()


@pytest.mark.parametrize("name", ["plain", "with space", "it's; rm -rf *"])
def test_a_command_to_type_is_one_for_a_shell(name):
    sentence = parallel.World().resumption(Path("runs") / name)
    command = sentence.removeprefix("continue with `").removesuffix("`")
    assert shlex.split(command) == ["edgepop", "train", "--resume", f"runs/{name}"]
