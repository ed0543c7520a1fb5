"""Trained networks as files for elsewhere."""

from .load import PackedState, load_packed
from .outline import PackedLayer
from .save import save_packed

__all__ = ["PackedLayer", "PackedState", "load_packed", "save_packed"]
