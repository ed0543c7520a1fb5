"""torch's two layers, masked: the products, and the way back."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Proxy

from .. import functional, torch_private
from ..cut import Selection
from .masked import MaskedLayer


class MaskedConv2d(MaskedLayer, nn.Conv2d):
    """A masked nn.Conv2d: input (N, C, H, W) or (C, H, W), as ``masked_conv2d``."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The convolution of ``x`` with the weights that are kept, and the bias.

        x        (N, C, H, W) or (C, H, W), float32, bfloat16 or float16, NCHW, channels_last or any strides
        returns  (N, O, H', W') or (O, H', W') in x's dtype, under autocast in autocast's; channels_last where x or the
                 weight is

        The cut is selected here, unless it is known: from ``share_selection``, or from a step of an optimizer of
        ``edgepop_kernels.optim``. Raises TypeError or ValueError for an ``x`` that does not fit.
        """
        return self._in_graph(x) if type(x) is Proxy else self._output(x)

    def _masked(self, x: torch.Tensor, bias: torch.Tensor | None, cut: Selection | None) -> torch.Tensor:
        """The convolution of ``x`` with the masked weight."""
        padding = self.padding
        if self.padding_mode != "zeros":
            x = F.pad(x, torch_private.padding_on_each_side(self), mode=self.padding_mode)
            padding = 0
        scores, rule = self._masking()
        geometry = (self.stride, padding, self.dilation, self.groups)
        return self._product(functional.conv2d_product, x, self.weight, scores, rule, bias, geometry, cut)

    def materialize(self) -> nn.Conv2d:
        """A plain nn.Conv2d whose weight is the effective weight; nothing of this package in it."""
        plain = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.bias is not None,
            self.padding_mode,
            device="meta",
        )
        return _filled(plain, self)


def past_no_forward(layer, args):
    """A hook that does nothing, on every masked nn.Linear: in evaluation nn.TransformerEncoderLayer multiplies by the
    weights of its linear layers without calling them, masked or not, unless some module in it has a hook."""


class MaskedLinear(MaskedLayer, nn.Linear):
    """A masked nn.Linear: input (..., in_features), as ``masked_linear``."""

    def _take_rule(self, rule):
        super()._take_rule(rule)
        self.register_forward_pre_hook(past_no_forward)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The product of ``x`` and the weights that are kept, and the bias.

        x        (..., in_features), float32, bfloat16 or float16, any strides; or a nested tensor of sequences
        returns  (..., out_features) in x's dtype, under autocast in autocast's; nested where x is

        The cut is selected here, unless it is known: from ``share_selection``, or from a step of an optimizer of
        ``edgepop_kernels.optim``. Raises TypeError or ValueError for an ``x`` that does not fit.
        """
        if type(x) is Proxy:
            return self._in_graph(x)
        if not x.is_nested:
            return self._output(x)
        sequences = x.unbind()  # of several lengths, as nn.TransformerEncoder makes them of a padded batch
        joined = self._output(torch.cat(sequences))
        return torch.nested.as_nested_tensor(list(joined.split([len(s) for s in sequences])), layout=x.layout)

    def _masked(self, x: torch.Tensor, bias: torch.Tensor | None, cut: Selection | None) -> torch.Tensor:
        """The product of ``x`` and the masked weight."""
        scores, rule = self._masking()
        return self._product(functional.linear_product, x, self.weight, scores, rule, bias, cut)

    def materialize(self) -> nn.Linear:
        """A plain nn.Linear whose weight is the effective weight; nothing of this package in it."""
        plain = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        return _filled(plain, self)


def _filled(plain, layer):
    plain.weight = nn.Parameter(layer.effective_weight())
    if layer.bias is not None:
        bias = layer.effective_bias().detach().clone()
        plain.bias = nn.Parameter(bias, requires_grad=layer.bias.requires_grad)
    return plain.train(layer.training)
