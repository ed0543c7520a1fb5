"""Run folders: RUNS/name, name-1, name-2... never an existing one, and the table RUNS/results.csv beside them."""

import json
import os
from pathlib import Path

from .errors import ConfigError, UserError, reason
from .files import append_csv, csv_bytes, make_folder, read_bytes, read_csv, write_atomic

RESULTS = "results.csv"
RESULT_COLUMNS = [
    "run",
    "started",
    "recipe",
    "settings",  # that differ from the recipe's, but seed and machine: alike in the runs of one row of a sweep
    "method",
    "variant",  # of a comparison: which of its trainings
    "dataset",
    "model",
    "keep",
    "epochs",
    "seed",
    "dtype",
    "backend",
    "threads",
    "test_accuracy",
    "validation_accuracy",
    "best_validation_accuracy",
    "best_validation_epoch",
    "test_accuracy_at_best_validation",
    "best_test_accuracy",
    "best_test_epoch",
    "kept",
    "weights",
    "weights_unchanged",
]


def check_name(name: str) -> str:
    """The name, where it can be a run folder's. Raises ConfigError."""
    if name in ("", RESULTS) or name.startswith((".", "-")) or "/" in name or not name.isprintable():
        allowed = f"a folder's name without /, not beginning with . or -, other than {RESULTS}"
        raise ConfigError(f"expected {allowed}, got {name!r}", "name")
    return name


def create(runs: Path, name: str) -> Path:
    """A new folder: ``runs/name``, or the first of ``name-1``, ``name-2``... that does not exist."""
    make_folder(runs)
    results = runs / RESULTS
    if results.exists():
        read_csv(results, RESULT_COLUMNS)  # refuse a foreign table now, not after hours of training
    number = 0
    while True:
        folder = runs / (f"{name}-{number}" if number else name)
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        except OSError as error:
            raise UserError(f"cannot make the run folder {folder}: {reason(error)}") from error
        else:
            return folder


def write_record(folder: Path, record: dict) -> None:
    """config.json: recipe name, start, data folder, every setting under "config", versions under "environment",
    and the commit of the source checkout, None where that is not known."""
    write_atomic(folder / "config.json", (json.dumps(record, indent=2) + "\n").encode())


def is_run(folder: Path) -> bool:
    return os.path.exists(folder / "config.json")  # False where Path.exists raises: in a folder that may not be read


def read_record(folder: Path) -> dict:
    file = folder / "config.json"
    if not folder.is_dir():
        raise UserError(f"the run folder {folder} does not exist")
    if not is_run(folder):
        raise UserError(f"{folder} is not a run folder: it has no config.json")
    try:
        record = json.loads(read_bytes(file))
        missing = {"recipe", "started", "data", "config", "environment"} - record.keys()
    except (ValueError, AttributeError) as error:
        raise UserError(f"{file} is damaged: {error}") from error
    if missing:
        raise UserError(f"{file} is damaged: it lacks {', '.join(sorted(missing))}")
    for name in ("config", "environment"):
        if not isinstance(record[name], dict):
            raise UserError(f"{file} is damaged: its {name} is no table")
    return record


def write_log(folder: Path, history: list[dict]) -> None:
    """log.csv from the whole history: a resumed run rewrites the rows it repeats instead of doubling them.

    Its columns are what a row has: of a validation part where images are held out, the churn where there are masks.
    """
    write_atomic(folder / "log.csv", csv_bytes(list(history[0]), history))


def append_result(runs: Path, row: dict) -> None:
    append_csv(runs / RESULTS, RESULT_COLUMNS, row, key=("run", "started", "variant"))
