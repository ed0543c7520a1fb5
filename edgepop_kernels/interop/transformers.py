"""The layer of GPT-2 in transformers, as masked ones: a linear layer whose weight stands (in_features, out_features).

Imported where a network has such a layer (``kinds``), or where one is loaded that was saved whole.
"""

from typing import Any

import torch
from torch import nn
from torch.fx import Proxy
from transformers.pytorch_utils import Conv1D

from .. import functional
from ..nn import KINDS
from ..nn.kinds import Kind
from ..nn.sparse import SelfScored
from ..nn.subnet import Subnet
from ..nn.supermask import Supermask


def _shape(layer: Any) -> torch.Size:
    return torch.Size((layer.nx, layer.nf))


def _operands(layer: Any, x: torch.Tensor) -> tuple[torch.Tensor, tuple[()]]:
    return x, ()


def _forward(self: Any, x: torch.Tensor | Proxy) -> Any:
    """The product of ``x`` and the weights that are kept, and the bias.

    x        (..., nx), float32, bfloat16 or float16, any strides
    returns  (..., nf) in x's dtype, under autocast in autocast's

    The cut is selected here, unless it is known: from ``share_selection``, or from a step of an optimizer of
    ``edgepop_kernels.optim``. Raises TypeError or ValueError for an ``x`` that does not fit.
    """
    return self._in_graph(x) if isinstance(x, Proxy) else self._output(x)


_forward.__name__ = _forward.__qualname__ = "forward"
KINDS[Conv1D] = Kind(
    functional.transposed_linear_product, _shape, _operands, _forward, outputs_first=lambda weight: weight.t()
)


class _Drawn(nn.Module):
    """What torch's layers have and Conv1D lacks: a way to draw its parameters anew, and a text of its sizes."""

    weight: nn.Parameter
    bias: nn.Parameter | None
    nx: int
    nf: int

    def reset_parameters(self) -> None:
        """Draws as Conv1D does."""
        nn.init.normal_(self.weight, std=0.02)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        """The sizes, in the order of the constructor."""
        return f"nf={self.nf}, nx={self.nx}"

    __repr__ = nn.Module.__repr__


class FusedSubnetConv1D(Subnet, _Drawn, Conv1D):
    """A layer of transformers' ``Conv1D`` that uses the subnetwork its scores select: edge-popup.

    Conv1D's arguments (nf, nx), then keep or rule, as ``FusedSubnetLinear`` takes them. Input (..., nx).
    """


class FusedSupermaskConv1D(Supermask, _Drawn, Conv1D):
    """A layer of transformers' ``Conv1D`` under a supermask.

    Conv1D's arguments (nf, nx), then rule, scores_init, mask_bias and rescale as in ``FusedSupermaskLinear``.
    """


class FusedSparseConv1D(SelfScored, _Drawn, Conv1D):
    """A layer of transformers' ``Conv1D`` that uses its largest weights and trains all: Discovering Neural Wirings.

    Conv1D's arguments (nf, nx), then keep or rule, as ``FusedSparseLinear`` takes them.
    """
