"""Checks of what the methods accept. Each check names the argument, what it got, and what is allowed."""

import math

import torch
from torch import Tensor


def whole(name: str, value: int, least: int, most: int | None = None, why: str = "") -> None:
    """An int from ``least`` to ``most``; why: what sets the upper bound, as a clause."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected a whole number, got {value!r}")
    if value < least or (most is not None and value > most):
        allowed = f"at least {least}" if most is None else f"{least} to {most}{why}"
        raise ValueError(f"{name}: expected {allowed}, got {value}")


def pair(name: str, value: int | tuple[int, int], least: int) -> None:
    """An int of at least ``least``, or two."""
    values = value if isinstance(value, (tuple, list)) else (value, value)
    if len(values) != 2 or any(isinstance(v, bool) or not isinstance(v, int) for v in values):
        raise TypeError(f"{name}: expected a whole number or two, got {value!r}")
    if min(values) < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")


def number(name: str, value: float) -> None:
    """A finite int or float."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value}")


def positive(name: str, value: float) -> None:
    """A finite int or float above 0."""
    number(name, value)
    if not value > 0:
        raise ValueError(f"{name}: expected a number above 0, got {value}")


def one_of(name: str, value: str, allowed) -> None:
    """One of the names of ``allowed``."""
    if value not in tuple(allowed):
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, allowed))}, got {value!r}")


def real(name: str, value: Tensor) -> None:
    """A tensor of real numbers in floating point."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(f"{name}: expected floating point numbers, got {value.dtype}")


def finite(name: str, value: Tensor) -> None:
    """Such a tensor without infinities and NaN. Waits for the device."""
    real(name, value)
    if not value.isfinite().all():
        raise ValueError(f"{name}: expected finite numbers, got infinities or NaN")


def like(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Checks that a tensor is on another's device and of its shape."""
    if value.shape != other.shape:
        raise ValueError(f"{name}: expected {other_name}'s shape {tuple(other.shape)}, got {tuple(value.shape)}")
    if value.device != other.device:
        raise ValueError(f"{name}: expected it on {other_name}'s device {other.device}, got {value.device}")


def mask(value: Tensor, other_name: str, other: Tensor) -> None:
    """The argument ``mask``: a bool tensor like another."""
    if not isinstance(value, Tensor):
        raise TypeError(f"mask: expected a torch.Tensor, got {type(value).__name__}")
    if value.dtype != torch.bool:
        raise TypeError(f"mask: expected a bool mask, got {value.dtype}")
    like("mask", value, other_name, other)


def channels(x: Tensor, least: int, most: int) -> None:
    """The argument ``x``: images (N, C, H, W) of ``least`` to ``most`` channels."""
    real("x", x)
    if x.dim() != 4 or not least <= x.shape[1] <= most:
        allowed = f"{most}" if least == most else f"{least} to {most}"
        raise ValueError(f"x: expected (N, C, H, W) with C = {allowed}, got shape {tuple(x.shape)}")
