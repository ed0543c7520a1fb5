"""A file that is replaced is whole, whoever writes it at the same time and whatever interrupts that."""

import multiprocessing
import os

import pytest

from edgepop_kernels import files


def write_often(file, letter):
    for _ in range(40):
        files.replace(file, letter * 100_000)


def test_several_processes_may_replace_one_file_at_once(tmp_path):
    file, context = tmp_path / "x", multiprocessing.get_context("fork")
    files.replace(file, b"a" * 100_000)
    writers = [context.Process(target=write_often, args=(file, letter)) for letter in (b"a", b"b", b"c")]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        content = file.read_bytes()
        assert content == content[:1] * 100_000
    assert [writer.exitcode for writer in writers] == [0, 0, 0] and os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_what_is_interrupted_leaves_the_old_file_and_no_other(step, error, tmp_path, monkeypatch):
    file = tmp_path / "x"
    files.replace(file, b"old")

    def interrupted(*_):
        raise error

    monkeypatch.setattr(os, step, interrupted)
    with pytest.raises(error):
        files.replace(file, b"new")
    assert file.read_bytes() == b"old" and os.listdir(tmp_path) == ["x"]


def test_a_temporary_name_of_ones_own_is_written_over(tmp_path):
    file, temporary = tmp_path / "x", tmp_path / "x.part"
    temporary.write_bytes(b"of a process that was killed")
    files.replace(file, b"new", temporary)
    assert file.read_bytes() == b"new" and os.listdir(tmp_path) == ["x"]
