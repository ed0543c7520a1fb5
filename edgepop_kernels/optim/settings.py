"""The numbers that a param group may hold. torch compares the constructor's arguments alone, and NaN passes its
comparisons."""

import math
import numbers
from typing import Any

import torch

MOST = torch.finfo(torch.float32).max  # what is larger is infinite to a kernel
_LEAST = {"lr": 0.0, "momentum": 0.0, "dampening": -MOST, "weight_decay": 0.0, "eps": 0.0}


def check_group(group: dict[str, Any]) -> None:
    """TypeError or ValueError, naming the setting, for a param group with one that no step can be made with."""
    for name, least in _LEAST.items():
        if name in group:
            _check(name, group[name], least, MOST, f"[{least:.8g}, {MOST:.8g}]")
    for i, beta in enumerate(group.get("betas", ())):
        _check(f"betas[{i}]", beta, 0.0, math.nextafter(1, 0), "[0, 1)")


def check_rate(lr: float | torch.Tensor) -> None:
    """ValueError for a rate that a schedule has made NaN or infinite; nothing is asked of a tensor, nor of a sign:
    rounding leaves a cosine a hair below 0."""
    if type(lr) is float and not -MOST <= lr <= MOST:
        raise ValueError(f"lr: expected a finite number, got {lr}")


def _check(name: str, value: Any, least: float, most: float, allowed: str) -> None:
    if isinstance(value, torch.Tensor):
        if type(value) is not torch.Tensor or value.device.type != "cpu" or value.numel() != 1:
            return  # the host would have to wait for it, or it is torch's to refuse
        value = value.item()
    if not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a number in {allowed}, got {value!r}")
    if not least <= float(value) <= most:
        raise ValueError(f"{name}: expected a number in {allowed}, got {value}")
