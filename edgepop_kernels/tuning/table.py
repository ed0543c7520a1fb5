"""The way from a problem to a tile: the device's table where it has a near entry, else a rule of thumb."""

import dataclasses
import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path

from ..files import replace
from .tile import Problem, Tile

NEAR = 2.0  # an entry serves problems up to this many octaves away, summed over m, n and k
MOST_SPLITS = 32


@dataclass(frozen=True)
class Device:
    """The properties of a device that the choice of a tile asks for; the name as ``torch.cuda.get_device_name`` gives
    it."""

    name: str
    multiprocessors: int
    shared: int  # bytes a block may have

    @property
    def warpgroups(self) -> bool:
        """Whether its tensor cores work for four warps at once, each with rows of its own (sm_90 and sm_100, which are
        told from others by their shared memory)."""
        return self.shared >= 200 * 1024


H200 = Device("NVIDIA H200", multiprocessors=132, shared=227 * 1024)


@functools.cache
def tile_for(problem: Problem, device: Device) -> Tile:
    near = [
        (octaves, tile) for known, tile in table(device.name).items() if (octaves := _octaves(known, problem)) <= NEAR
    ]
    return min(near, key=lambda entry: entry[0])[1] if near else default_tile(problem, device)


@functools.cache
def table(device: str) -> dict[Problem, Tile]:
    """The tuned entries of a device, empty where none are committed."""
    return read_table(table_file(device))


def table_file(device: str) -> Path:
    """The place where a device's table lies, or would."""
    return Path(__file__).with_name("tables") / f"{device.lower().replace(' ', '-')}.json"


def read_table(file: Path) -> dict[Problem, Tile]:
    """The entries of a table, empty where there is no such file."""
    if not file.is_file():
        return {}
    return {Problem(**entry["problem"]): Tile(**entry["tile"]) for entry in json.loads(file.read_text())["entries"]}


def write_table(file: Path, entries: dict[Problem, Tile]) -> None:
    """Writes a table whole or not at all, entries in a fixed order; tables read before are forgotten."""
    rows = sorted(entries.items(), key=lambda entry: dataclasses.astuple(entry[0]))
    record = {"entries": [{"problem": dataclasses.asdict(p), "tile": dataclasses.asdict(t)} for p, t in rows]}
    file.parent.mkdir(parents=True, exist_ok=True)
    replace(file, (json.dumps(record, indent=1) + "\n").encode())
    table.cache_clear()
    tile_for.cache_clear()


def _octaves(a, b):
    if (a.kernel, a.precision, a.groups > 1, a.scattered) != (b.kernel, b.precision, b.groups > 1, b.scattered):
        return math.inf
    return sum(abs(math.log2(max(p, 1) / max(q, 1))) for p, q in ((a.m, b.m), (a.n, b.n), (a.k, b.k)))


def default_tile(problem: Problem, device: Device) -> Tile:
    """A tile that compiles without spills for sm_80 and later, and fills the device by splitting the reduction.

    Masked on the way to the tensor cores, W and S pass through registers: with 64 rows, four warps hold 32 columns of
    them beside the accumulators, with 128 rows eight warps hold 64. Addresses of scattered elements take registers too,
    two for each. A split pays for its second pass only where it still walks several steps, hence at least four of them.
    """
    large = problem.precision == "half" and not problem.scattered
    m = 128 if problem.m > 64 and large else 64
    narrow = problem.scattered and (problem.kernel == "grad" or problem.precision == "float32")
    n = _power_of_two(problem.n, 16, 128 if large else 32 if narrow else 64)
    if problem.precision == "float32" or (problem.scattered and problem.kernel == "product"):
        k = 16
    else:
        k = 64 if large and (m == 128 or problem.kernel == "grad") else 32
    if problem.kernel == "product":
        k = min(k, _power_of_two(problem.k, 16, 64))
    warps = 8 if m == 128 and (problem.kernel == "product" or n >= 64) else 4
    tiles = -(-problem.m // m) * -(-problem.n // n) * problem.groups
    steps = -(-problem.k // k)
    splits = max(1, min(device.multiprocessors // max(tiles, 1), steps // 4, MOST_SPLITS))
    return Tile(m, n, k, warps, 3 if device.warpgroups else 2, _power_of_two(splits, 1, MOST_SPLITS, down=True))


def _power_of_two(value, least, most, down=False):
    exponent = math.floor(math.log2(max(value, 1))) if down else math.ceil(math.log2(max(value, 1)))
    return min(max(2**exponent, least), most)
