"""Edge-popup's layers (Ramanujan et al. 2020): random weights stay, scores are trained."""

from ..rules import Rule, TopK
from .masked import MaskedConv2d, MaskedLinear


class FusedSubnetConv(MaskedConv2d):
    """nn.Conv2d that uses the subnetwork its scores select: edge-popup (Ramanujan et al. 2020).

    nn.Conv2d's arguments, then keep: fraction of weights kept, in (0, 1]; rule: in place of ``TopK(keep)``.
    The weight stays as initialised, the scores are trained. A hidden-networks SubnetConv state_dict (``weight``,
    ``scores``) loads as it is. Input (N, C, H, W) or (C, H, W), as ``masked_conv2d``.
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


class FusedSubnetLinear(MaskedLinear):
    """nn.Linear that uses the subnetwork its scores select: edge-popup (Ramanujan et al. 2020).

    nn.Linear's arguments, then keep: fraction of weights kept, in (0, 1]; rule: in place of ``TopK(keep)``.
    Input (..., in_features), as ``masked_linear``.
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
