"""The tile that a kernel runs with: frozen configs, a table per device, the nearest entry to a problem."""

from .table import H200, Device, default_tile, tile_for
from .tile import Problem, Tile

__all__ = ["H200", "Device", "Problem", "Tile", "default_tile", "tile_for"]
