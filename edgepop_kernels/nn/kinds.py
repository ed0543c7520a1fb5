"""A table of torch's layers as masked ones, one row each. A new kind of layer is a product in ``functional`` and a row
here."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Proxy

from .. import functional, torch_private
from ..checks import Geometry, Geometry3d, TransposedGeometry
from ..effective import weight_of_codes
from ..masks import full_bits
from ..rules import Frozen


class _Called(Protocol):
    """A masked layer as its ``forward`` knows it."""

    def _output(self, x: torch.Tensor, *how: Any) -> torch.Tensor: ...

    def _in_graph(self, x: Proxy, *how: Any) -> torch.Tensor: ...


class Kind(NamedTuple):
    """A layer of torch, masked.

    product        of ``functional``: (x, weight, scores, rule, bias, geometry, cut, watched, update, signs)
    shape          of the layer's weight
    operands       of a forward of the layer with ``x``, and what else it takes: x as the product takes it, the geometry
    forward        the masked layers' ``forward``, with a docstring of its own
    hooks          forward pre-hooks of every layer of the kind
    updates        whether an optimizer with ``fused_backward`` can step in its backward: not where a view of the scores
                   is handed to the product
    outputs_first  the view of a weight whose fans ``init`` counts; torch counts those of transposed convolutions so too
    """

    product: Callable[..., torch.Tensor]
    shape: Callable[[Any], torch.Size]
    operands: Callable[..., tuple[torch.Tensor, tuple[Any, ...] | None]]
    forward: Callable[..., torch.Tensor]
    hooks: tuple[Callable[..., None], ...] = ()
    updates: bool = True
    outputs_first: Callable[[torch.Tensor], torch.Tensor] = lambda weight: weight


def past_no_forward(layer: Any, args: object) -> None:
    """A hook that does nothing, on every masked nn.Linear: in evaluation nn.TransformerEncoderLayer multiplies by the
    weights of its linear layers without calling them, masked or not, unless some module in it has a hook."""


def _linear_shape(layer: Any) -> torch.Size:
    return torch.Size((layer.out_features, layer.in_features))


def _conv_shape(layer: Any) -> torch.Size:
    return torch.Size((layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size))


def _linear_operands(layer: Any, x: torch.Tensor) -> tuple[torch.Tensor, None]:
    return x, None


def _linear_forward(self: _Called, x: torch.Tensor | Proxy) -> torch.Tensor:
    """The product of ``x`` and the weights that are kept, and the bias.

    x        (..., in_features), float32, bfloat16 or float16, any strides; or a nested tensor of sequences
    returns  (..., out_features) in x's dtype, under autocast in autocast's; nested where x is

    The cut is selected here, unless it is known: from ``share_selection``, or from a step of an optimizer of
    ``edgepop_kernels.optim``. Raises TypeError or ValueError for an ``x`` that does not fit.
    """
    if isinstance(x, Proxy):
        return self._in_graph(x)
    if not x.is_nested:
        return self._output(x)
    sequences = x.unbind()  # of several lengths, as nn.TransformerEncoder makes them of a padded batch
    joined = self._output(torch.cat(sequences))
    return torch.nested.as_nested_tensor(list(joined.split([len(s) for s in sequences])), layout=x.layout)


def _padded(layer: Any, x: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """x with the padding that is not of zeros, and what is left to pad."""
    if layer.padding_mode == "zeros":
        return x, layer.padding
    return F.pad(x, torch_private.padding_on_each_side(layer), mode=layer.padding_mode), "valid"


def _conv_operands(layer: Any, x: torch.Tensor) -> tuple[torch.Tensor, Geometry | Geometry3d]:
    x, padding = _padded(layer, x)
    return x, (layer.stride, padding, layer.dilation, layer.groups)


def _conv2d_forward(self: _Called, x: torch.Tensor | Proxy) -> torch.Tensor:
    """The convolution of ``x`` with the weights that are kept, and the bias.

    x        (N, C, H, W) or (C, H, W), float32, bfloat16 or float16, NCHW, channels_last or any strides
    returns  (N, O, H', W') or (O, H', W') in x's dtype, under autocast in autocast's; channels_last where x or the
             weight is

    The cut is selected here, unless it is known: from ``share_selection``, or from a step of an optimizer of
    ``edgepop_kernels.optim``. Raises TypeError or ValueError for an ``x`` that does not fit.
    """
    return self._in_graph(x) if isinstance(x, Proxy) else self._output(x)


def _conv1d_operands(layer: Any, x: torch.Tensor) -> tuple[torch.Tensor, Geometry]:
    x, padding = _padded(layer, x)
    if not isinstance(padding, str):
        padding = (0, *padding)
    return x, ((1, *layer.stride), padding, (1, *layer.dilation), layer.groups)


def _conv1d_forward(self: _Called, x: torch.Tensor | Proxy) -> torch.Tensor:
    """The convolution of ``x`` with the weights that are kept, and the bias.

    x        (N, C, L) or (C, L), float32, bfloat16 or float16, any strides
    returns  (N, O, L') or (O, L') in x's dtype, under autocast in autocast's

    The cut is selected here, unless it is known: from ``share_selection``, or from a step of an optimizer of
    ``edgepop_kernels.optim``. Raises TypeError or ValueError for an ``x`` that does not fit.
    """
    return self._in_graph(x) if isinstance(x, Proxy) else self._output(x)


def _conv3d_forward(self: _Called, x: torch.Tensor | Proxy) -> torch.Tensor:
    """The convolution of ``x`` with the weights that are kept, and the bias.

    x        (N, C, D, H, W) or (C, D, H, W), float32, bfloat16 or float16, any strides
    returns  (N, O, D', H', W') or (O, D', H', W') in x's dtype, under autocast in autocast's; channels_last_3d where x
             is

    The cut is selected here, unless it is known: from ``share_selection``, or from a step of an optimizer of
    ``edgepop_kernels.optim``. Raises TypeError or ValueError for an ``x`` that does not fit.
    """
    return self._in_graph(x) if isinstance(x, Proxy) else self._output(x)


def _transposed_shape(layer: Any) -> torch.Size:
    return torch.Size((layer.in_channels, layer.out_channels // layer.groups, *layer.kernel_size))


def _conv_transpose2d_operands(
    layer: Any, x: torch.Tensor, output_size: Sequence[int] | None = None
) -> tuple[torch.Tensor, TransposedGeometry]:
    below, right = torch_private.output_padding(layer, x, output_size)
    return x, (layer.stride, layer.padding, (below, right), layer.dilation, layer.groups)


def _conv_transpose2d_forward(
    self: _Called, x: torch.Tensor | Proxy, output_size: Sequence[int] | None = None
) -> torch.Tensor:
    """The transposed convolution of ``x`` with the weights that are kept, and the bias.

    x            (N, C, H, W) or (C, H, W), float32, bfloat16 or float16, NCHW, channels_last or any strides
    output_size  the output's H' and W', where output_padding is not to say it: as nn.ConvTranspose2d takes it
    returns      (N, O, H', W') or (O, H', W') in x's dtype, under autocast in autocast's; channels_last where x or the
                 weight is

    The cut is selected here, unless it is known: from ``share_selection``, or from a step of an optimizer of
    ``edgepop_kernels.optim``. Raises TypeError or ValueError for an ``x`` that does not fit.
    """
    how = () if output_size is None else (output_size,)
    return self._in_graph(x, *how) if isinstance(x, Proxy) else self._output(x, *how)


def _conv_transpose1d_operands(
    layer: Any, x: torch.Tensor, output_size: Sequence[int] | None = None
) -> tuple[torch.Tensor, TransposedGeometry]:
    (extra,) = torch_private.output_padding(layer, x, output_size)
    return x, ((1, *layer.stride), (0, *layer.padding), (0, extra), (1, *layer.dilation), layer.groups)


def _conv_transpose1d_forward(
    self: _Called, x: torch.Tensor | Proxy, output_size: Sequence[int] | None = None
) -> torch.Tensor:
    """The transposed convolution of ``x`` with the weights that are kept, and the bias.

    x            (N, C, L) or (C, L), float32, bfloat16 or float16, any strides
    output_size  the output's L', where output_padding is not to say it: as nn.ConvTranspose1d takes it
    returns      (N, O, L') or (O, L') in x's dtype, under autocast in autocast's

    The cut is selected here, unless it is known: from ``share_selection``, or from a step of an optimizer of
    ``edgepop_kernels.optim``. Raises TypeError or ValueError for an ``x`` that does not fit.
    """
    how = () if output_size is None else (output_size,)
    return self._in_graph(x, *how) if isinstance(x, Proxy) else self._output(x, *how)


KINDS: dict[type[nn.Module], Kind] = {
    nn.Conv2d: Kind(functional.conv2d_product, _conv_shape, _conv_operands, _conv2d_forward),
    nn.Linear: Kind(functional.linear_product, _linear_shape, _linear_operands, _linear_forward, (past_no_forward,)),
    nn.Conv1d: Kind(functional.conv1d_product, _conv_shape, _conv1d_operands, _conv1d_forward, updates=False),
    nn.Conv3d: Kind(functional.conv3d_product, _conv_shape, _conv_operands, _conv3d_forward, updates=False),
    nn.ConvTranspose2d: Kind(
        functional.conv_transpose2d_product, _transposed_shape, _conv_transpose2d_operands, _conv_transpose2d_forward
    ),
    nn.ConvTranspose1d: Kind(
        functional.conv_transpose1d_product,
        _transposed_shape,
        _conv_transpose1d_operands,
        _conv_transpose1d_forward,
        updates=False,
    ),
}

for _kind in KINDS.values():
    _kind.forward.__name__ = _kind.forward.__qualname__ = "forward"  # as help() and tracebacks call it


def name_of(plain: type[nn.Module]) -> str:
    """The kind for a message: torch's with where it stands."""
    return f"nn.{plain.__name__}" if plain.__module__.startswith("torch.nn.") else plain.__name__


def superposed_product(
    kind: Kind, layer: Any, x: torch.Tensor, codes: torch.Tensor, alphas: torch.Tensor, *how: Any
) -> torch.Tensor:
    """The product of ``x`` and a layer's weight under several masks at once, ``codes`` and ``alphas`` as in ``mixing``.

    Convolutions are this package's, of a weight of which all is kept: a ResNet-18's step took 10 % less so. Matrices
    are torch's, which are the faster ones of few rows.
    """
    weight = weight_of_codes(layer.weight, codes, alphas)
    x, geometry = kind.operands(layer, x, *how)
    if geometry is None:
        return F.linear(x, weight.to(x.dtype), None if layer.bias is None else layer.bias.to(x.dtype))
    everything = full_bits(weight.numel(), weight.device)
    return kind.product(x, weight, everything, Frozen(), layer.bias, geometry, None, torch_private.watched())
