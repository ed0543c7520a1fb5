"""Files are whole or absent, tables keep their rows, run folders are never reused."""

import errno
import multiprocessing
import os

import pytest

from edgepop_kernels.recipes import files, runs
from edgepop_kernels.recipes.errors import UserError


def test_write_atomic_replaces(tmp_path):
    file = tmp_path / "x"
    files.write_atomic(file, b"one")
    files.write_atomic(file, b"two")
    assert file.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, step):
    file = tmp_path / "x"
    files.write_atomic(file, b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, step, full)
    with pytest.raises(UserError, match=r"cannot write .*/x: No space left on device"):
        files.write_atomic(file, b"new")
    assert file.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_write_into_a_missing_folder(tmp_path):
    with pytest.raises(UserError, match=r"cannot write .*: No such file or directory"):
        files.write_atomic(tmp_path / "none" / "x", b"")


COLUMNS = ["run", "value"]


def append_many(path, worker, count):
    for i in range(count):
        files.append_csv(path, COLUMNS, {"run": f"{worker}-{i}", "value": 0.1 + i}, key=("run",))


def test_rows_appended_by_several_processes_at_once_are_all_there(tmp_path):
    path = tmp_path / "results.csv"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=append_many, args=(path, worker, 20)) for worker in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    rows = files.read_csv(path, COLUMNS)
    assert sorted(row["run"] for row in rows) == sorted(f"{w}-{i}" for w in range(3) for i in range(20))
    assert {float(row["value"]) for row in rows} == {0.1 + i for i in range(20)}


def test_a_row_with_a_known_key_is_not_appended_again(tmp_path):
    path = tmp_path / "results.csv"
    for value in (1, 2):
        files.append_csv(path, COLUMNS, {"run": 'a, "b"\nc', "value": value}, key=("run",))
    assert files.read_csv(path, COLUMNS) == [{"run": 'a, "b"\nc', "value": "1"}]


@pytest.mark.parametrize(
    "content", [b"other,columns\n1,2\n", b"run,value\n1\n", b"run,value\n1,2,3\n", b"\xff\xfe", b""]
)
def test_a_foreign_table_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "results.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"results\.csv is (not )?a table"):
        files.append_csv(path, COLUMNS, {"run": "a", "value": 1}, key=("run",))
    assert path.read_bytes() == content


def test_run_folders_are_numbered(tmp_path):
    made = [runs.create(tmp_path / "runs", "x").name for _ in range(3)]
    assert made == ["x", "x-1", "x-2"]


def test_a_foreign_results_table_is_refused_before_training(tmp_path):
    (tmp_path / "results.csv").write_text("mine\n1\n")
    with pytest.raises(UserError, match=r"move it away"):
        runs.create(tmp_path, "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "is damaged"), ("[]", "is damaged"), ('{"config": {}}', "lacks data, environment, recipe, started"),
     ('{"config": 3, "data": null, "recipe": "x", "started": "", "environment": {}}', "its config is no table")],
)  # fmt: skip
def test_a_damaged_config_file_is_named(tmp_path, content, words):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=f"config.json.*{words}"):
        runs.read_record(tmp_path)
