"""Three stages of ``first_contact.py``: rows of the benchmarks are checked, timed, and tuned where they lost."""

import importlib
import re
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from columns import fused_backend
from journal import Journal, main
from peaks import peak_of
from report import measured, write_results
from rows import ConvRow, LinearRow, Setup, columns_of
from train_rows import TrainRow

from edgepop_kernels import tune as tuning
from edgepop_kernels.tuning.workloads import WORKLOADS, Conv, Linear

# The rows in the order in which they are worth their time: a group, and what the text of a row has.
IMPORTANCE = (
    ("select", "ResNet-50"),
    ("linear", "fwd.bwd"),
    ("conv", "^256x.*fwd.bwd"),
    ("train", "Conv4|ResNet-18"),
    ("linear", ""),
    ("conv", "fwd.bwd"),
    ("train", ""),
    ("select", ""),
    ("optim", ""),
    ("eval", ""),
    ("conv", ""),
)


def check(worker):
    """Every row held to float64, which compiles its kernels."""
    setup = _setup(worker)

    def checked(row):
        row.contest(columns_of(row, setup.device), setup).check()
        torch.cuda.empty_cache()  # for the processes beside this one
        return "within its bounds", None

    worker.run({name: partial(checked, row) for name, row in rows_of(worker.job["device"]).items()})


def rows(worker):
    """Every row timed, and written into the device's results at once."""
    measure = _Measure(worker)
    worker.run({name: partial(measure, name, row) for name, row in rows_of(worker.job["device"]).items()})


def tune(worker):
    """Tiles for the rows that dense or staged layers beat, into the table where the package looks; then those anew."""
    measure, known = _Measure(worker), rows_of(worker.job["device"])
    on_gpu = worker.job["device"] == "cuda"
    stand_in = {} if on_gpu else {"device": measure.setup.device, "timer": _wall_seconds}
    output = None if on_gpu else Path(worker.job["folder"]) / "table.json"
    known_tiles = set()

    def tuned(name, row):
        asked = {(workload, row.dtype): workload for workload in workloads_of(row)}
        fresh = [workload for key, workload in asked.items() if key not in known_tiles]
        tuning.tune(output, workloads=fresh, dtype=row.dtype, **stand_in)
        known_tiles.update(asked)
        return measure(name, row)

    lost = [name for name in lost_rows(Journal(worker.job["journals"]["rows"])) if workloads_of(known[name])]
    worker.run({name: partial(tuned, name, known[name]) for name in lost})


def rows_of(device):
    """{group and text: row}, the most important first."""
    found = {}
    for group in dict.fromkeys(group for group, _ in IMPORTANCE):
        module = importlib.import_module(f"test_bench_{group}")
        found[group] = [row for row in (module.GPU_ROWS if device == "cuda" else module.ROWS) if not row.full]
    ordered = ((group, row) for group, text in IMPORTANCE for row in found[group] if re.search(text, str(row)))
    return {f"{group} {row}": row for group, row in ordered}


def lost_rows(journal):
    """The rows of a journal in which a dense or a staged layer was faster, those that lost most first."""
    least = {
        name: min(record["result"]["ratio"].get(column, 1.0) for column in ("dense", "staged"))
        for name, record in journal.latest().items()
        if record["outcome"] == "passed"
    }
    return sorted((name for name in least if least[name] < 1), key=least.get)


def workloads_of(row):
    """The layers of a row for which tiles are tuned: those that the table's test knows."""
    found = []
    if isinstance(row, LinearRow):
        found.append(Linear(*row.shape))
    elif isinstance(row, ConvRow):
        found.append(Conv(*row.shape))
    elif isinstance(row, TrainRow):

        def note(layer, inputs, y):
            (x,) = inputs
            if isinstance(layer, torch.nn.Linear):
                found.append(Linear(x.shape[0], *reversed(layer.weight.shape)))
            elif isinstance(layer, torch.nn.Conv2d):
                shape = (*x.shape[:3], layer.out_channels, layer.kernel_size[0], layer.stride[0], layer.groups)
                found.append(Conv(*shape))

        with torch.device("meta"):
            model, x = row.template(), torch.empty(row.x_shape)
        for layer in model.modules():
            layer.register_forward_hook(note)
        model(x)
    return [workload for workload in dict.fromkeys(found) if workload in WORKLOADS]


class _Measure:
    """measure(name, row): times the row, and writes the results of all that are known."""

    def __init__(self, worker):
        self.setup = _setup(worker)
        self._journals = [Journal(worker.job["journals"][stage]) for stage in ("rows", "tune")]
        self._file, self._device = worker.job["results"], worker.job["device"]
        self._peak = peak_of(self.setup.device)

    def __call__(self, name, row):
        result, _ = measured(row, columns_of(row, self.setup.device), self.setup, self._peak)
        known = {n: r["result"] for journal in self._journals for n, r in journal.latest().items() if r.get("result")}
        known[name] = asdict(result)
        ordered = [known[n] for n in rows_of(self._device) if n in known]
        write_results(self._file, self.setup, self._peak, ordered, "make gpu")
        ratios = ", ".join(f"{column} {ratio:.2f}x" for column, ratio in result.ratio.items())
        return f"{1e3 * result.median_s['fused']:.3f} ms; {ratios}", known[name]


def _setup(worker):
    device = torch.device(worker.job["device"])
    return Setup(device, fused_backend(device))


def _wall_seconds(call):
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


if __name__ == "__main__":
    main(check, rows, tune)
