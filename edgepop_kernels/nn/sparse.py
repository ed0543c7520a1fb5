"""Discovering Neural Wirings (Wortsman et al. 2019): weights that score themselves."""

import torch
from torch import nn

from ..rules import Ranked, Rule, TopK
from .masked import MaskedConv2d, MaskedLayer, MaskedLinear


class SelfScored(MaskedLayer):
    """The mask keeps the largest weights; every weight is trained, kept or not, by dW = dW_eff.

    There are no scores; the weight is float32 whatever the layer's dtype. A dense state_dict loads as it is.
    """

    rules = (Ranked,)

    def mask_with(self, rule: Rule) -> None:
        """Masks a layer built by torch's constructor by the ``rule`` on its weight."""
        self._take_rule(rule)
        self.register_parameter("scores", None)
        if self.weight.dtype != torch.float32:
            self.weight = nn.Parameter(self.weight.detach().to(torch.float32))

    def train_mask(self) -> None:
        """The weight chooses its edges again, and trains."""
        self.thaw()
        self.weight.requires_grad_()

    def _float32_parameters(self):
        return [self.weight]


class FusedSparseConv(SelfScored, MaskedConv2d):
    """nn.Conv2d that uses its largest weights and trains all: sparse training by Discovering Neural Wirings.

    nn.Conv2d's arguments, then keep: fraction of weights kept, in (0, 1]; rule: in place of ``TopK(keep)``.
    Input (N, C, H, W) or (C, H, W), as ``masked_conv2d`` with ``scores=None``.
    """

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        stride=1,
        padding=0,
        dilation=1,
        groups=1,
        bias=True,
        padding_mode="zeros",
        device=None,
        dtype=None,
        *,
        keep: float = 0.5,
        rule: Rule | None = None,
    ):
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        self.mask_with(TopK(keep) if rule is None else rule)


class FusedSparseLinear(SelfScored, MaskedLinear):
    """nn.Linear that uses its largest weights and trains all: sparse training by Discovering Neural Wirings.

    nn.Linear's arguments, then keep: fraction of weights kept, in (0, 1]; rule: in place of ``TopK(keep)``.
    Input (..., in_features), as ``masked_linear`` with ``scores=None``.
    """

    def __init__(
        self,
        in_features,
        out_features,
        bias=True,
        device=None,
        dtype=None,
        *,
        keep: float = 0.5,
        rule: Rule | None = None,
    ):
        super().__init__(in_features, out_features, bias, device, dtype)
        self.mask_with(TopK(keep) if rule is None else rule)
