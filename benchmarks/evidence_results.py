"""What a row of ``evidence_rows`` was found to reach: read from its run folders, kept in a JSON file of each row."""

import csv
import io
import json
import statistics
from collections import defaultdict
from pathlib import Path

import torch
from evidence_rows import Row

from edgepop_kernels.recipes import checkpoint, comparison, registry, runs
from edgepop_kernels.recipes.errors import UserError
from edgepop_kernels.recipes.files import read_bytes, write_atomic
from edgepop_kernels.recipes.neural_graphs import NeuralGraph

ALONE = "network"  # the name of a training that is compared with none
CELLS = 25  # a side, of the wirings that are kept of a graph
KEPT = {"row", "recipe", "settings", "runs"}
OF_A_RUN = {"seed", "config", "commit", "processor", "environment", "processor_s", "layers", "trainings"}


def file_of(row: Row, folder: Path) -> Path:
    return folder / f"{row.results}.json"


def read(row: Row, folder: Path) -> dict:
    """The record of the row, without runs where there is none yet. UserError where it is damaged, or of other settings
    than the row has."""
    settings = json.loads(json.dumps(row.settings))
    file = file_of(row, folder)
    if not file.exists():
        return {"row": row.results, "recipe": row.recipe, "settings": settings, "runs": []}
    try:
        record = json.loads(read_bytes(file))
        lacks = _lacking(row, record)
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is damaged ({error}): restore it, or remove it to train its row again") from error
    if lacks:
        raise UserError(f"{file} is damaged (it lacks {', '.join(sorted(lacks))}): restore it, or remove it")
    for name, value in (("row", row.results), ("recipe", row.recipe), ("settings", settings)):
        if record[name] != value:
            raise UserError(f"{file}: expected {name} {value}, as the list of rows says, got {record[name]}; remove it")
    return record


def _lacking(row: Row, record: dict) -> set[str]:
    """What a whole record has, and this one has not."""
    lacks = KEPT - record.keys()
    for run in record.get("runs", []):
        lacks |= OF_A_RUN - run.keys()
        trainings = run.get("trainings", {})
        if not row.best:
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
    about |= {"layers": layers, "trainings": trainings}
    return about | ({"wiring": _wiring(run)} if config.get("method") == NeuralGraph.method else {})


def _alone(run: Path, summary: dict) -> tuple[dict, list]:
    rows = list(csv.DictReader(io.StringIO(read_bytes(run / "log.csv").decode())))
    parts = {part: [float(row[f"{part}_accuracy"]) for row in rows] for part in ("train", "test")}
    return {ALONE: parts}, [[layer["name"], layer["kept"], layer["weights"]] for layer in summary["layers"]]


def _compared(run: Path) -> tuple[dict, list]:
    finished = comparison.load(run)["finished"]
    parts = {
        name: {part: found[part] for part in ("train", "test", "before")} | {"kept": _kept(found["layers"])}
        for name, found in finished.items()
    }
    return parts, [list(layer) for layer in next((f["layers"] for f in reversed(finished.values()) if f["layers"]), [])]


def _kept(layers: list) -> list[int] | None:
    """[weights kept, weights] of all masked layers; None where there are none."""
    return [sum(kept for _, kept, _ in layers), sum(weights for _, _, weights in layers)] if layers else None


def _wiring(run: Path) -> dict:
    """The edges of a graph before and after its training, counted in ``CELLS`` x ``CELLS`` cells of nodes, a row for
    each cell of receiving nodes; stayed: how many of its edges are those of the start."""
    before, after = (_adjacency(run, name) for name in ("first", "last"))
    counted = {name: _cells(found).tolist() for name, found in (("before", before), ("after", after))}
    return counted | {"nodes": len(after), "edges": int(after.sum()), "stayed": int((before & after).sum())}


def _adjacency(run: Path, name: str) -> torch.Tensor:
    state = checkpoint.load(checkpoint.path(run, name))
    model = registry.from_dict(state["config"]).network(tuple(state["image"]), state["classes"])
    model.load_state_dict(state["model"])
    return model.graph.adjacency()


def _cells(adjacency: torch.Tensor) -> torch.Tensor:
    """int64 [CELLS, CELLS]: the edges of each; the last ones have fewer nodes where those cannot be divided."""
    cells = torch.arange(len(adjacency)) * CELLS // len(adjacency)
    to, sender = adjacency.nonzero().T
    return torch.bincount(cells[to] * CELLS + cells[sender], minlength=CELLS**2).view(CELLS, CELLS)


def rounds(run: dict) -> dict[str, list[dict]]:
    """The trainings of rounds of pruning, by their line; each begins with that of the whole network."""
    (_, whole), *trainings = run["trainings"].items()
    lines = defaultdict(lambda: [whole])
    for name, found in trainings:
        lines[name.rpartition(", round ")[0]].append(found)
    return dict(lines)


def number(row: Row, run: dict) -> float:
    """The accuracy in percent that the row is judged by."""
    trainings = run["trainings"]
    if row.best:
        # The first training is of the whole network: its mask is none.
        masked = list(trainings.values())[1:]
        return 100 * max(found["before"] if row.best == "before" else found["test"][-1] for found in masked)
    return 100 * trainings[row.training or ALONE]["test"][-1]


def mean(row: Row, record: dict) -> float | None:
    return statistics.mean(number(row, run) for run in record["runs"]) if record["runs"] else None
