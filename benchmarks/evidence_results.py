"""What a row of ``evidence_rows`` was found to reach: read from its run folders, kept in a JSON file of each row."""

import csv
import io
import json
import statistics
from pathlib import Path

from evidence_rows import Row

from edgepop_kernels.recipes import comparison, runs
from edgepop_kernels.recipes.errors import UserError
from edgepop_kernels.recipes.files import read_bytes, write_atomic

ALONE = "network"  # the name of a training that is compared with none
KEPT = {"row", "recipe", "settings", "runs"}
OF_A_RUN = {"seed", "config", "commit", "processor", "environment", "processor_s", "layers", "trainings"}


def file_of(row: Row, folder: Path) -> Path:
    return folder / f"{row.name}.json"


def read(row: Row, folder: Path) -> dict:
    """The record of the row, without runs where there is none yet. UserError where it is damaged, or of other settings
    than the row has."""
    settings = json.loads(json.dumps(row.settings))
    file = file_of(row, folder)
    if not file.exists():
        return {"row": row.name, "recipe": row.recipe, "settings": settings, "runs": []}
    try:
        record = json.loads(read_bytes(file))
        lacks = _lacking(row, record)
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is damaged ({error}): restore it, or remove it to train its row again") from error
    if lacks:
        raise UserError(f"{file} is damaged (it lacks {', '.join(sorted(lacks))}): restore it, or remove it")
    for name, value in (("row", row.name), ("recipe", row.recipe), ("settings", settings)):
        if record[name] != value:
            raise UserError(f"{file}: expected {name} {value}, as the list of rows says, got {record[name]}; remove it")
    return record


def _lacking(row: Row, record: dict) -> set[str]:
    """What a whole record has, and this one has not."""
    lacks = KEPT - record.keys()
    for run in record.get("runs", []):
        lacks |= OF_A_RUN - run.keys()
        trainings = run.get("trainings", {})
        if not row.before:
            lacks |= {row.training or ALONE} - trainings.keys()
        for name, found in trainings.items():
            test, train = (found.get(part, []) for part in ("test", "train"))
            lacks |= {f"accuracies of {name}"} if not test or len(test) != len(train) else set()
    return lacks


def add(row: Row, folder: Path, run: dict) -> None:
    """Writes the row's file with the results ``run`` too, in the order of the seeds."""
    record = read(row, folder)
    record["runs"] = sorted([*record["runs"], run], key=lambda found: found["seed"])
    folder.mkdir(parents=True, exist_ok=True)
    about = json.dumps(record | {"runs": []}, indent=1).removesuffix("[]\n}")
    lines = ",\n".join(map(json.dumps, record["runs"]))  # a line each
    write_atomic(file_of(row, folder), f"{about}[\n{lines}\n]}}\n".encode())


def of_run(row: Row, seed: int, run: Path) -> dict:
    """The results in the run folder, without what the driver knows of it. UserError where it was made of other
    settings."""
    record, summary = runs.read_record(run), json.loads(read_bytes(run / "summary.json"))
    config = record["config"]
    for name, value in (row.settings | {"seed": seed}).items():
        if config.get(name) != (list(value) if isinstance(value, tuple) else value):
            raise UserError(
                f"{run}: expected {name} {value}, as the list of rows says, got {config.get(name)}; remove it"
            )
    trainings, layers = _compared(run) if "variants" in summary else _alone(run, summary)
    environment = {name: record["environment"][name] for name in ("edgepop_kernels", "torch", "python")}
    about = {"seed": seed, "config": config, "commit": record["commit"], "environment": environment}
    return about | {"layers": layers, "trainings": trainings}


def _alone(run: Path, summary: dict) -> tuple[dict, list]:
    rows = list(csv.DictReader(io.StringIO(read_bytes(run / "log.csv").decode())))
    parts = {part: [float(row[f"{part}_accuracy"]) for row in rows] for part in ("train", "test")}
    return {ALONE: parts}, [[layer["name"], layer["kept"], layer["weights"]] for layer in summary["layers"]]


def _compared(run: Path) -> tuple[dict, list]:
    finished = comparison.load(run)["finished"]
    parts = {
        name: {"train": found["train"], "test": found["test"], "before": found["before"]}
        for name, found in finished.items()
    }
    return parts, [list(layer) for layer in next((f["layers"] for f in reversed(finished.values()) if f["layers"]), [])]


def number(row: Row, run: dict) -> float:
    """The accuracy in percent that the row is judged by."""
    trainings = run["trainings"]
    if row.before:
        # The first training is of the whole network: its mask is none.
        return 100 * max(found["before"] for found in list(trainings.values())[1:])
    return 100 * trainings[row.training or ALONE]["test"][-1]


def mean(row: Row, record: dict) -> float | None:
    return statistics.mean(number(row, run) for run in record["runs"]) if record["runs"] else None
