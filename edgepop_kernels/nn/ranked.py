"""The constructor of the layers whose rule, unless another is given, keeps a fraction of the weights."""

from ..rules import Rule, ranked_rule
from .products import MaskedConv2d, MaskedLinear


class RankedConv2d(MaskedConv2d):
    """A masked nn.Conv2d: its arguments, then keep: fraction of weights kept; or rule."""

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
        keep: float | None = None,
        rule: Rule | None = None,
    ):
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        self._mask_with(ranked_rule(keep, rule))


class RankedLinear(MaskedLinear):
    """A masked nn.Linear: its arguments, then keep: fraction of weights kept; or rule."""

    def __init__(
        self,
        in_features,
        out_features,
        bias=True,
        device=None,
        dtype=None,
        *,
        keep: float | None = None,
        rule: Rule | None = None,
    ):
        super().__init__(in_features, out_features, bias, device, dtype)
        self._mask_with(ranked_rule(keep, rule))
