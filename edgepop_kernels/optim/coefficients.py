"""The numbers of one optimizer's step, as every backend takes them."""

from typing import NamedTuple

import torch


class Coefficients(NamedTuple):
    """The factors of a step, and where those are read that only the device knows.

    kind    the optimizer's name in csrc/common/update.h: "sgd" or "adam"
    values  the fields of its struct there, in their order; those that follow from the device left at any value
    rates   Adam's learning rate, both betas, AdamW's weight decay: what those that follow are made from
    count   None, or the steps taken so far, a float32 scalar on the GPU: made one more in a launch before the step's
    lr      None, or the learning rate, a float32 scalar on the GPU: read there, so that nothing waits for it and a
            CUDA graph can replay it
    """

    kind: str
    values: tuple[float, ...]
    rates: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    count: torch.Tensor | None = None  # type: ignore[assignment]  # in place of tuple.count, which nobody calls
    lr: torch.Tensor | None = None

    @property
    def follow(self) -> bool:
        """Whether some of the values follow from numbers on the device."""
        return self.count is not None or self.lr is not None
