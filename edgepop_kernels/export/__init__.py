"""Trained networks as files for elsewhere."""

from .card import model_card
from .load import PackedState, load_packed
from .onnx import save_onnx
from .outline import PackedLayer
from .save import save_packed

__all__ = ["PackedLayer", "PackedState", "load_packed", "model_card", "save_onnx", "save_packed"]
