"""Finding a tile: coordinate descent over the steps of each field, from the tile in use."""

import dataclasses
import math
from collections.abc import Callable

from .tile import Tile

STEPS = {
    "m": (16, 32, 64, 128, 256),
    "n": (16, 32, 64, 128, 256),
    "k": (16, 32, 64, 128),
    "warps": (4, 8),
    "stages": (1, 2, 3, 4, 5),
    "splits": (1, 2, 4, 8, 16, 32),
    "band": (1, 4, 8, 16),
}
WORTH = 0.99  # a tile replaces another from 1 % less time on: less is noise


def neighbours(tile: Tile) -> list[Tile]:
    """The tiles one step away in one field."""
    found = []
    for name, steps in STEPS.items():
        value = getattr(tile, name)
        below, above = [s for s in steps if s < value], [s for s in steps if s > value]
        found += [dataclasses.replace(tile, **{name: s}) for s in (*below[-1:], *above[:1])]
    return found


def best_tile(start: Tile, seconds: Callable[[Tile], float]) -> tuple[Tile, float]:
    """(tile, its seconds) that no neighbour beats by more than noise. ``seconds`` is asked once for a tile; inf: the
    tile cannot run, or computes something else."""
    known = {start: seconds(start)}
    best = start
    while True:
        before = best
        for tile in neighbours(best):
            if tile not in known:
                known[tile] = seconds(tile)
            if known[tile] < WORTH * known[best]:
                best = tile
        if best == before:
            break
    if math.isinf(known[best]):
        raise ValueError(f"start: neither this tile nor a neighbour of it runs: {start}")
    return best, known[best]
