"""The table of ratios at the end of a benchmark run, and the same as JSON."""

import json
import platform
import statistics
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from measure import interleave
from rows import ONE_ROW, ONE_WEIGHT

import edgepop_kernels as ek
from edgepop_kernels.doctor import installed, processor
from edgepop_kernels.files import replace


@dataclass(frozen=True)
class Result:
    """One row: median, least and number of samples of every column, and what the fused column achieves."""

    group: str
    row: str
    median_s: dict[str, float]
    least_s: dict[str, float]
    rounds: dict[str, int]
    ratio: dict[str, float]  # column / fused: above 1 where fused is faster
    gflops: float | None  # operations with padding counted, as is customary
    gbytes: float | None  # each operand of each kernel once
    floor_s: float | None
    floor_percent: float | None  # floor / fused: 100 where nothing faster is possible
    packing_percent: float | None  # (one row - one weight) / fused: what a weight of this size costs by itself

    @classmethod
    def of(cls, row, contest, samples, peak):
        traffic = sum(work.traffic for work, _ in contest.kernels)
        floor = sum(peak.floor(work, precision) for work, precision in contest.kernels)
        median = {name: statistics.median(s) for name, s in samples.items()}
        fused = median["fused"]
        return cls(
            row.group,
            str(row),
            median,
            {name: min(s) for name, s in samples.items()},
            {name: len(s) for name, s in samples.items()},
            {name: m / fused for name, m in median.items() if name not in ("fused", ONE_ROW, ONE_WEIGHT)},
            contest.flops / fused / 1e9 if contest.flops else None,
            traffic / fused / 1e9 if traffic else None,
            floor or None,
            100 * floor / fused if floor else None,
            100 * (median[ONE_ROW] - median[ONE_WEIGHT]) / fused if ONE_ROW in median else None,
        )


def measured(row, columns, setup, peak):
    """(Result of a row, the samples of its columns), after it has passed its check."""
    contest = row.contest(columns, setup)
    contest.check()
    samples = interleave(contest.columns, setup.device, row.budget_s, row.launches)
    return Result.of(row, contest, samples, peak), samples


def print_table(terminal, setup, peak, results):
    terminal.section(f"medians of fused (backend {setup.backend}), and each column's multiple of it")
    columns = list(dict.fromkeys(name for r in results for name in r.ratio if name != "read"))
    unit, scale = ("TFLOP/s", 1e3) if setup.device.type == "cuda" else ("GFLOP/s", 1)
    head = ["", "fused ms", *columns, unit, "GB/s", "% of floor", "% packing", "reads"]
    lines = [head]
    for r in results:
        ratios = [f"{r.ratio[c]:.2f}x" if c in r.ratio else "" for c in columns]
        reads = f"{1 / r.ratio['read']:.2f}" if "read" in r.ratio else ""
        flops = r.gflops and r.gflops / scale
        speed = [f"{v:.1f}" if v else "" for v in (flops, r.gbytes, r.floor_percent, r.packing_percent)]
        lines.append([f"{r.group} {r.row}", f"{r.median_s['fused'] * 1e3:.3f}", *ratios, *speed, reads])
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    for name, *cells in lines:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        terminal.write_line("  ".join([name.ljust(widths[0]), *padded]))
    terminal.write_line("reads: time of fused in units of one read of the same scores, as fast as this machine can")
    terminal.write_line(f"% of floor: what the masked kernels must take at the peaks ({peak.source}), of fused's time")
    terminal.write_line("% packing: one row or pixel with a known cut, less the same for one weight, of fused's time")


def write_results(path, setup, peak, rows, command):
    """Replaces the file whole; ``rows`` are Results as dicts."""
    record = {**environment(setup, command), "peak": asdict(peak), "rows": rows}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    replace(Path(path), (json.dumps(record, indent=1) + "\n").encode())


def environment(setup, command):
    """What a reader needs to judge the numbers: processor, threads, instruction set, versions, commit."""
    cuda = setup.device.type == "cuda"
    return {
        "command": command,
        "device": torch.cuda.get_device_name(setup.device) if cuda else processor(),
        "threads": torch.get_num_threads(),
        "fused_backend": setup.backend,
        "backends": ek.backends(),
        "versions": {
            "edgepop_kernels": ek.__version__,
            "torch": torch.__version__,
            "triton": installed("triton"),
            "cuda": torch.version.cuda if cuda else None,
            "driver": _driver() if cuda else None,
            "python": platform.python_version(),
        },
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def _driver():
    """The version of NVIDIA's driver, as its own tool says, where there is one."""
    said = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return said.splitlines()[0].strip() if said else None


def _git(*command):
    """What git says of this checkout, or None outside one."""
    return _output("git", *command)


def _output(*command):
    """What the command prints, or None where it is missing or fails: results are not lost for a version."""
    try:
        run = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip()
