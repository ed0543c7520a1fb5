"""A search for what a training must not hold: NaN and infinity. The loss need not tell: scores that are NaN still keep
as many weights as ever, and those are finite."""

import math
from collections.abc import Iterator

import torch
from torch import nn

from .errors import NotFinite


def check(model: nn.Module, optimizer: torch.optim.Optimizer, epoch: int, lr: float) -> None:
    """NotFinite, naming the first parameter, buffer or state of the optimizer with a value that is no finite number,
    and the ``epoch`` (from 0) under way. A GPU is waited for."""
    name = not_finite(_held(model, optimizer))
    if name is not None:
        raise NotFinite(f"{name} is not finite any more in epoch {epoch + 1}: try a lower lr than {lr:g}")


def check_drawn(model: nn.Module) -> None:
    """NotFinite, naming it, for a parameter or buffer that is no finite number before any training."""
    name = not_finite(_tensors(model))
    if name is not None:
        raise NotFinite(f"{name} is not finite as it is drawn: try another init, a nearer scale or a larger keep")


def check_loss(part: str, loss: float, lr: float) -> None:
    """NotFinite for a loss over a part of the data that is no finite number: answers that are NaN count as the first
    class, so their accuracy means nothing."""
    if not math.isfinite(loss):
        raise NotFinite(
            f"the {part} loss is not a finite number: the network's answers overflow, try a lower lr than {lr:g}"
        )


def not_finite(named: Iterator[tuple[str, torch.Tensor]]) -> str | None:
    """The first name whose tensor holds NaN or infinity."""
    return next((name for name, t in named if not t.isfinite().all()), None)


def _tensors(model):
    yield from model.named_parameters()
    yield from model.named_buffers()


def _held(model, optimizer):
    yield from _tensors(model)
    for name, p in model.named_parameters():
        for what, value in optimizer.state.get(p, {}).items():
            if isinstance(value, torch.Tensor):
                yield f"{what} of {name}", value
