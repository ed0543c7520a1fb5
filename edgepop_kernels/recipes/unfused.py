"""Masked networks as the methods' authors compute them: sort, write zeros and ones, multiply, call torch's layer.

What step times are compared with. Both functions rank a view in memory order: channels_last costs them no copy.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import edgepop_kernels as ek

_SELF_SCORED = (ek.FusedSparseConv, ek.FusedSparseLinear)
_LAYERS = (ek.FusedSubnetConv, ek.FusedSubnetLinear, *_SELF_SCORED)


def authors_name(model: nn.Module) -> str | None:
    """The authors' name for the function behind this network's masks; None where they have another, or it has none."""
    layers = [layer for layer in model.modules() if hasattr(layer, "mask")]
    sorted_alone = [isinstance(m, _LAYERS) and isinstance(m.rule, ek.TopK) and m.rule.of == "abs" for m in layers]
    if not layers or not all(sorted_alone):
        return None
    return "ChooseEdges" if isinstance(layers[0], _SELF_SCORED) else "GetSubnet"


def unfused(model: nn.Module) -> nn.Module:
    """``model``, which ``authors_name`` knows, with its masks made the authors' way; in place, parameters stay."""
    ek.unshare_selection(model)
    ek.unpack_weights(model)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, _LAYERS):
            model.set_submodule(name, _Sorted(layer))
    return model


class _Sorted(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer
        if layer.scores is None:
            weight = ChooseEdges.apply(layer.weight, layer.keep)
        else:
            weight = layer.weight * GetSubnet.apply(layer.scores.abs(), layer.keep)
        if isinstance(layer, nn.Linear):
            return F.linear(x, weight, layer.bias)
        return F.conv2d(x, weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)


class GetSubnet(torch.autograd.Function):
    """The mask of the largest ``magnitudes``; its gradient is theirs (hidden-networks, Ramanujan et al. 2020)."""

    @staticmethod
    def forward(ctx, magnitudes, keep):
        order = in_memory_order(magnitudes).sort().indices
        dropped = int((1 - keep) * order.numel())
        mask = torch.empty_like(magnitudes)
        flat = in_memory_order(mask)
        flat[order[:dropped]] = 0
        flat[order[dropped:]] = 1
        return mask

    @staticmethod
    def backward(ctx, grad):
        return grad, None


class ChooseEdges(torch.autograd.Function):
    """The weight without its smallest magnitudes; every weight has the gradient of its edge (Wortsman et al. 2019)."""

    @staticmethod
    def forward(ctx, weight, keep):
        chosen = weight.clone()
        flat = in_memory_order(chosen)
        order = flat.abs().sort().indices
        flat[order[: int((1 - keep) * order.numel())]] = 0
        return chosen

    @staticmethod
    def backward(ctx, grad):
        return grad, None


def in_memory_order(t: Tensor) -> Tensor:
    """A one-dimensional view of a dense tensor, contiguous or channels_last."""
    return t.view(-1) if t.is_contiguous() else t.permute(0, 2, 3, 1).view(-1)
