"""How much each layer keeps: over layers, and over time."""

from . import density
from .by_name import Keep, checked_by_name, keep_of_layers, set_keep
from .over_time import SHAPES, KeepSchedule

__all__ = ["SHAPES", "Keep", "KeepSchedule", "checked_by_name", "density", "keep_of_layers", "set_keep"]
