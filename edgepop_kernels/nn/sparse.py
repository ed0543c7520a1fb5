"""Discovering Neural Wirings (Wortsman et al. 2019): weights that score themselves."""

from typing import TYPE_CHECKING

import torch
from torch import nn

from ..rules import Rule, checked_drop, keeps_best
from .parts import Device, PaddingMode, Size1, Size2, Size3
from .subnet import Subnet


class SelfScored(Subnet):
    """The mask keeps the largest weights; every weight is trained, kept or not, by dW = dW_eff.

    There are no scores; the weight is float32 whatever the layer's dtype. A dense state_dict loads as it is.
    """

    _method = "sparse"
    _weight_stands = False

    @staticmethod
    def _takes(rule: Rule | type[Rule]) -> bool:
        return keeps_best(rule)

    def _mask_with(self, rule: Rule) -> None:
        """Masks a layer built by torch's constructor by the ``rule`` on its weight."""
        self._take_rule(rule)
        self.register_parameter("scores", None)
        if self.weight.dtype != torch.float32:
            self.weight = nn.Parameter(self.weight.detach().to(torch.float32))

    def set_prune_rate(self, prune_rate: float) -> None:
        """Drops ``int(prune_rate * numel)`` weights: Discovering Neural Wirings' name, there the fraction REMOVED, in
        [0, 1). (In the layers of hidden-networks it is the fraction kept.) Raises TypeError, ValueError."""
        self.rule = self.rule.with_drop(checked_drop(prune_rate, "prune_rate"))

    def _has_scores(self) -> bool:
        return True

    def _float32_parameters(self) -> list[nn.Parameter | None]:
        return [self.weight]

    def _standing(self) -> list[nn.Parameter | None]:
        return []

    def _not_packable(self) -> str:
        return "its weight scores itself"

    def _before_folding(self, name: str) -> None:
        # The factors of a batch norm would change which weights are the largest.
        if name == "weight" and not self.rule.fixed:
            self._freeze(keep_scores=False)


class FusedSparseConv(SelfScored, nn.Conv2d):
    """A layer of ``nn.Conv2d`` that uses its largest weights and trains all: Discovering Neural Wirings.

    nn.Conv2d's arguments, then keep: fraction of weights kept, in (0, 1], 0.5 if not given; or, in its place, rule:
    how they are chosen, ``TopK(keep)`` if not given. Kaiming normal weights (``init.kaiming_normal_``) and SGD of 0.1
    work. A state_dict carries the rule and sets it when it is loaded; a dense one leaves the layer its own.
    Input (N, C, H, W) or (C, H, W), as ``masked_conv2d`` with ``scores=None``.
    """

    if TYPE_CHECKING:
        weight: nn.Parameter
        bias: nn.Parameter | None

        def __init__(
            self,
            in_channels: int,
            out_channels: int,
            kernel_size: Size2,
            stride: Size2 = 1,
            padding: Size2 | str = 0,
            dilation: Size2 = 1,
            groups: int = 1,
            bias: bool = True,
            padding_mode: PaddingMode = "zeros",
            device: Device = None,
            dtype: torch.dtype | None = None,
            *,
            keep: float | None = None,
            rule: Rule | None = None,
        ) -> None: ...

        def materialize(self) -> nn.Conv2d: ...


class FusedSparseConv1d(SelfScored, nn.Conv1d):
    """A layer of ``nn.Conv1d`` that uses its largest weights and trains all: Discovering Neural Wirings.

    nn.Conv1d's arguments, then keep or rule, as ``FusedSparseConv`` takes them. Input (N, C, L) or (C, L), as
    ``masked_conv1d`` with ``scores=None``.
    """

    if TYPE_CHECKING:
        weight: nn.Parameter
        bias: nn.Parameter | None

        def __init__(
            self,
            in_channels: int,
            out_channels: int,
            kernel_size: Size1,
            stride: Size1 = 1,
            padding: Size1 | str = 0,
            dilation: Size1 = 1,
            groups: int = 1,
            bias: bool = True,
            padding_mode: PaddingMode = "zeros",
            device: Device = None,
            dtype: torch.dtype | None = None,
            *,
            keep: float | None = None,
            rule: Rule | None = None,
        ) -> None: ...

        def materialize(self) -> nn.Conv1d: ...


class FusedSparseConv3d(SelfScored, nn.Conv3d):
    """A layer of ``nn.Conv3d`` that uses its largest weights and trains all: Discovering Neural Wirings.

    nn.Conv3d's arguments, then keep or rule, as ``FusedSparseConv`` takes them. Input (N, C, D, H, W) or (C, D, H,
    W), as ``masked_conv3d`` with ``scores=None``.
    """

    if TYPE_CHECKING:
        weight: nn.Parameter
        bias: nn.Parameter | None

        def __init__(
            self,
            in_channels: int,
            out_channels: int,
            kernel_size: Size3,
            stride: Size3 = 1,
            padding: Size3 | str = 0,
            dilation: Size3 = 1,
            groups: int = 1,
            bias: bool = True,
            padding_mode: PaddingMode = "zeros",
            device: Device = None,
            dtype: torch.dtype | None = None,
            *,
            keep: float | None = None,
            rule: Rule | None = None,
        ) -> None: ...

        def materialize(self) -> nn.Conv3d: ...


class FusedSparseConvTranspose2d(SelfScored, nn.ConvTranspose2d):
    """A layer of ``nn.ConvTranspose2d`` that uses its largest weights and trains all: Discovering Neural Wirings.

    nn.ConvTranspose2d's arguments, then keep or rule, as ``FusedSparseConv`` takes them. Input (N, C, H, W) or (C,
    H, W), as ``masked_conv_transpose2d``.
    """

    if TYPE_CHECKING:
        weight: nn.Parameter
        bias: nn.Parameter | None

        def __init__(
            self,
            in_channels: int,
            out_channels: int,
            kernel_size: Size2,
            stride: Size2 = 1,
            padding: Size2 = 0,
            output_padding: Size2 = 0,
            groups: int = 1,
            bias: bool = True,
            dilation: Size2 = 1,
            padding_mode: PaddingMode = "zeros",
            device: Device = None,
            dtype: torch.dtype | None = None,
            *,
            keep: float | None = None,
            rule: Rule | None = None,
        ) -> None: ...

        def materialize(self) -> nn.ConvTranspose2d: ...


class FusedSparseConvTranspose1d(SelfScored, nn.ConvTranspose1d):
    """A layer of ``nn.ConvTranspose1d`` that uses its largest weights and trains all: Discovering Neural Wirings.

    nn.ConvTranspose1d's arguments, then keep or rule, as ``FusedSparseConv`` takes them. Input (N, C, L) or (C, L),
    as ``masked_conv_transpose1d``.
    """

    if TYPE_CHECKING:
        weight: nn.Parameter
        bias: nn.Parameter | None

        def __init__(
            self,
            in_channels: int,
            out_channels: int,
            kernel_size: Size1,
            stride: Size1 = 1,
            padding: Size1 = 0,
            output_padding: Size1 = 0,
            groups: int = 1,
            bias: bool = True,
            dilation: Size1 = 1,
            padding_mode: PaddingMode = "zeros",
            device: Device = None,
            dtype: torch.dtype | None = None,
            *,
            keep: float | None = None,
            rule: Rule | None = None,
        ) -> None: ...

        def materialize(self) -> nn.ConvTranspose1d: ...


class FusedSparseLinear(SelfScored, nn.Linear):
    """A layer of ``nn.Linear`` that uses its largest weights and trains all: Discovering Neural Wirings.

    nn.Linear's arguments, then keep: fraction of weights kept, in (0, 1], 0.5 if not given; or, in its place, rule:
    how they are chosen, ``TopK(keep)`` if not given. What ``FusedSparseConv`` says of weights and the state_dict holds
    here too. Input (..., in_features), as ``masked_linear`` with ``scores=None``.

    >>> layer = ek.FusedSparseLinear(64, 10, keep=0.1)
    >>> layer.mask().sum().item(), layer.weight.requires_grad, layer.scores
    (64, True, None)
    """

    if TYPE_CHECKING:
        weight: nn.Parameter
        bias: nn.Parameter

        def __init__(
            self,
            in_features: int,
            out_features: int,
            bias: bool = True,
            device: Device = None,
            dtype: torch.dtype | None = None,
            *,
            keep: float | None = None,
            rule: Rule | None = None,
        ) -> None: ...

        def materialize(self) -> nn.Linear: ...
