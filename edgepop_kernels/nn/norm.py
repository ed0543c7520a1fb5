"""Normalisation that leaves nothing to learn, for networks whose weights stay random."""

import torch
from torch import nn


class NonAffineBatchNorm(nn.BatchNorm2d):
    """A layer of ``nn.BatchNorm2d`` without scale and shift, running statistics kept (Ramanujan et al. 2020)."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-05,
        momentum: float | None = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine=False, device=device, dtype=dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The ``input`` with each channel at mean 0 and deviation 1, over the batch in training, by the running
        statistics in evaluation.

        input    (N, num_features, H, W), of a floating dtype
        returns  the same shape and dtype
        """
        return super().forward(input)
