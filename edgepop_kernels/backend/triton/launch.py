"""Launching a kernel: the device, the precision of its products, its tile."""

import contextlib
import functools
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import triton.language as tl
from triton import knobs

from ...tuning import H200, Device, Problem, Tile, tile_for

INTERPRETED = knobs.runtime.interpret
OPTIONS = {"enable_fp_fusion": True}  # triton's default until 3.9, its opposite afterwards
_DOT = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def launch(kernel, grid: tuple[int, ...], tensor: torch.Tensor, args: tuple, **meta) -> None:
    """Runs ``kernel`` on the device of ``tensor``. An empty grid is an empty result: nothing runs."""
    if 0 in grid:
        return
    device = torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
    with device:
        binary = kernel[grid](*args, **OPTIONS, **meta)
    if _trial is not None:
        _trial.binaries.append(binary)


def operands(dtype: torch.dtype, switch: str) -> dict:
    """DOT: the dtype of a product's operands. PRECISION: of a float32 product, as torch's ``switch`` has it.

    The interpreter's product of bfloat16 operands is wrong by orders of magnitude (triton 3.6 to 3.9), of float32 ones
    exact; there every product is one of float32.
    """
    return {"DOT": tl.float32 if INTERPRETED else _DOT[dtype], "PRECISION": "tf32" if switch == "tf32" else "ieee"}


class Signs(NamedTuple):
    """A weight of one magnitude: that number, and the packed signs as kernels read them."""

    magnitude: torch.Tensor
    words: torch.Tensor

    @property
    def args(self):
        """(weight, weight_strides, signs) of a kernel."""
        return self.magnitude, None, self.words


def taken_apart(weight, scores, of, signs) -> tuple[torch.Tensor, Signs | None]:
    """(weight, signs of it). Beside signs the weight is without memory, for its shape and the strides that it would
    have, those of the scores: by these tiles are chosen, and sums are in the order that they have with a float weight.
    """
    if signs is None:
        return weight, None
    laid_out = torch.empty(weight.shape, device="meta") if of == "bits" else torch.empty_like(scores, device="meta")
    return laid_out, Signs(weight, words(signs))


def words(bits: torch.Tensor) -> torch.Tensor:
    """Packed bits as kernels read them, by 32; a copy where no word can begin at their address."""
    return (bits if bits.data_ptr() % 4 == 0 else bits.clone()).view(torch.int32)


def kind(dtype: torch.dtype, switch: str) -> str:
    """The precision of a product as a ``Problem`` names it."""
    return "half" if dtype != torch.float32 else "tf32" if switch == "tf32" else "float32"


def tile(problem: Problem, device: torch.device) -> Tile:
    chosen = tile_for(problem, device_of(device))
    return chosen if _trial is None else _trial.tiles.setdefault(problem, chosen)


def warpgroups(device: torch.device) -> bool:
    return device_of(device).warpgroups


@dataclass
class Trial:
    """tiles: tried before those of the device's table; problems that asked for another are added with what they got.
    binaries: what was launched (None under the interpreter)."""

    tiles: dict[Problem, Tile] = field(default_factory=dict)
    binaries: list = field(default_factory=list)


_trial: Trial | None = None


@contextlib.contextmanager
def trial(tiles: dict[Problem, Tile] | None = None):
    """Yields the Trial that all launches inside, of any thread, are part of."""
    global _trial
    _trial = Trial(dict(tiles or {}))
    try:
        yield _trial
    finally:
        _trial = None


@functools.cache
def device_of(device: torch.device) -> Device:
    """The device by which tiles are chosen."""
    if device.type != "cuda":
        return H200  # the interpreter walks the tiles of a real device
    properties = torch.cuda.get_device_properties(device)
    return Device(properties.name, properties.multi_processor_count, properties.shared_memory_per_block_optin)
