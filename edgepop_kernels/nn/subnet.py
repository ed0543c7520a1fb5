"""Edge-popup's layers (Ramanujan et al. 2020): random weights stay, scores are trained."""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..rules import Rule, ranked_rule
from .masked import MaskedLayer
from .parts import Device, PaddingMode, Size1, Size2, Size3


class Subnet(MaskedLayer):
    """Scores choose the best fraction ``keep`` of the weights, or as another rule says."""

    _method = "subnet"

    def __init__(self, *args: Any, keep: float | None = None, rule: Rule | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._mask_with(ranked_rule(keep, rule))


class FusedSubnetConv(Subnet, nn.Conv2d):
    """A layer of ``nn.Conv2d`` that uses the subnetwork its scores select: edge-popup (Ramanujan et al. 2020).

    nn.Conv2d's arguments, then keep: fraction of weights kept, in (0, 1], 0.5 if not given; or, in its place, rule:
    how they are chosen, ``TopK(keep)`` if not given.
    The weight stays as initialised, the scores are trained: signed constants (``init.signed_constant_``) and SGD of
    0.1 work. A state_dict carries the rule and sets it when it is loaded; a hidden-networks SubnetConv's (``weight``,
    ``scores``) loads as it is and leaves the layer its own. Input (N, C, H, W) or (C, H, W), as ``masked_conv2d``.

    >>> conv = ek.FusedSubnetConv(3, 8, kernel_size=3, padding=1, bias=False, keep=0.25)
    >>> conv(torch.randn(2, 3, 16, 16)).shape
    torch.Size([2, 8, 16, 16])
    >>> conv.mask().sum().item(), conv.weight.numel()
    (54, 216)
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


class FusedSubnetConv1d(Subnet, nn.Conv1d):
    """A layer of ``nn.Conv1d`` that uses the subnetwork its scores select: edge-popup (Ramanujan et al. 2020).

    nn.Conv1d's arguments, then keep or rule, as ``FusedSubnetConv`` takes them. Input (N, C, L) or (C, L), as
    ``masked_conv1d``.
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


class FusedSubnetConv3d(Subnet, nn.Conv3d):
    """A layer of ``nn.Conv3d`` that uses the subnetwork its scores select: edge-popup (Ramanujan et al. 2020).

    nn.Conv3d's arguments, then keep or rule, as ``FusedSubnetConv`` takes them. Input (N, C, D, H, W) or (C, D, H,
    W), as ``masked_conv3d``.
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


class FusedSubnetConvTranspose2d(Subnet, nn.ConvTranspose2d):
    """A layer of ``nn.ConvTranspose2d`` that uses the subnetwork its scores select: edge-popup (Ramanujan et al. 2020).

    nn.ConvTranspose2d's arguments, then keep or rule, as ``FusedSubnetConv`` takes them. Input (N, C, H, W) or (C,
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


class FusedSubnetConvTranspose1d(Subnet, nn.ConvTranspose1d):
    """A layer of ``nn.ConvTranspose1d`` that uses the subnetwork its scores select: edge-popup (Ramanujan et al. 2020).

    nn.ConvTranspose1d's arguments, then keep or rule, as ``FusedSubnetConv`` takes them. Input (N, C, L) or (C, L),
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


class FusedSubnetLinear(Subnet, nn.Linear):
    """A layer of ``nn.Linear`` that uses the subnetwork its scores select: edge-popup (Ramanujan et al. 2020).

    nn.Linear's arguments, then keep: fraction of weights kept, in (0, 1], 0.5 if not given; or, in its place, rule:
    how they are chosen, ``TopK(keep)`` if not given. What ``FusedSubnetConv`` says of the weight, the scores and the
    state_dict holds here too. Input (..., in_features), as ``masked_linear``.

    >>> layer = ek.FusedSubnetLinear(64, 10, keep=0.5)
    >>> layer(torch.randn(4, 64)).sum().backward()
    >>> layer.weight.grad is None, layer.scores.grad.shape
    (True, torch.Size([10, 64]))
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
