"""What the fused layers are compared with: the same mask made by sorting, by kthvalue, and no mask at all.

Each column of a row starts from the same weights and scores. The baselines are written from the published definitions
(Ramanujan et al. 2020, hidden-networks' GetSubnet and GetSubnetFaster) and given every courtesy: they rank a view of
the scores in memory order, so that channels_last costs them no copy, and keep the threshold on the device.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

import edgepop_kernels as ek
from edgepop_kernels.backend import native
from edgepop_kernels.recipes.unfused import GetSubnet, in_memory_order

# A training step with our optimizer instead of torch's: the next cuts from its pass; that inside backward; and the
# former with weights of one magnitude as bits.
OUR_OPTIMIZER = ("ScoreSGD", "fused_backward", "ScoreSGD packed")
PACKED = ("packed", "ScoreSGD packed")
OURS = ("fused", "packed", "graphed", *OUR_OPTIMIZER)


def kth_score(scores: torch.Tensor, keep: float) -> torch.Tensor:
    """The score at the quantile 1 - keep, GetSubnetFaster's threshold."""
    flat = in_memory_order(scores)
    return flat.kthvalue(1 + round((1 - keep) * (flat.numel() - 1))).values


def read(scores: list[torch.Tensor]) -> Callable:
    """One read of dense scores and nothing else. On a CPU the native one, as many streams at once as memory serves best
    and with selection's threads: torch.sum takes 1.5 times as long. On a GPU torch.sum."""
    if scores[0].device.type != "cpu":
        return lambda: [s.sum() for s in scores]
    ranges = [(s.data_ptr(), s.numel()) for s in scores]
    return lambda: native.compiled.kernels.read(ranges, torch.get_num_threads())


class GetSubnetFaster(torch.autograd.Function):
    """Compare with the kth value; straight-through backward."""

    @staticmethod
    def forward(ctx, magnitudes, keep):
        return (magnitudes >= kth_score(magnitudes, keep)).to(magnitudes.dtype)

    @staticmethod
    def backward(ctx, grad):
        return grad, None


class MaskedLayer(nn.Module):
    """A torch layer called on weight * mask, the mask made anew by ``subnet`` in every forward pass."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, scores: torch.Tensor, keep: float, subnet):
        super().__init__()
        self.layer, self.keep, self.subnet = layer.requires_grad_(False), keep, subnet
        self.scores = nn.Parameter(scores)

    def forward(self, x):
        layer = self.layer
        weight = layer.weight * self.subnet.apply(self.scores.abs(), self.keep)
        if isinstance(layer, nn.Linear):
            return F.linear(x, weight, layer.bias)
        return F.conv2d(x, weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)


def masked_layers(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if hasattr(m, "scores")]


def _baseline(model: nn.Module, scores: list[torch.Tensor], keep: float, subnet) -> nn.Module:
    plain = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    for (name, layer), s in zip(plain, scores, strict=True):
        model.set_submodule(name, MaskedLayer(layer, s, keep, subnet))
    return model


def _fused(model: nn.Module, scores: list[torch.Tensor], keep: float) -> nn.Module:
    ek.convert(model, ek.TopK(keep))
    layers = masked_layers(model)
    for m, s in zip(layers, scores, strict=True):
        m.scores.data.copy_(s)
    if len(layers) > 1:
        ek.share_selection(model)
    return model


def model_of(column: str, template: Callable[[], nn.Module], keep: float, device: torch.device) -> nn.Module:
    """``template()`` with its layers masked the way ``column`` does it; same weights and scores in every column, but
    for packed ones, whose weights have the others' signs and one magnitude a layer."""
    torch.manual_seed(0)
    model = template().to(device)
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    scores = [nn.init.kaiming_uniform_(torch.empty_like(w), a=5**0.5) for w in weights]
    if column in ("dense", "dense + fused SGD"):
        return model
    if column in PACKED:
        for w in weights:
            w.data.sign_().mul_(w.shape[1:].numel() ** -0.5)
    if column in (*OURS, "staged"):
        model = _fused(model, scores, keep)
        if column in PACKED:
            ek.pack_weights(model)
        return model
    if column == "GetSubnet":
        return _baseline(model, scores, keep, GetSubnet)
    faster = _baseline(model, scores, keep, GetSubnetFaster)
    return torch.compile(faster) if column == "compile" else faster


def fused_backend(device: torch.device) -> str:
    """The backend of the fused column, by name, so that no row falls back to another unseen; reported with the table.

    A CPU without the native kernels fails. A GPU without kernels is timed on the reference: the baselines are news too.
    """
    if device.type == "cpu":
        return "native"
    found = ek.backends()
    return next(name for name in ("triton", "cuda", "reference") if found.get(name, "not built") is None)


def on_backend(backend: str, call: Callable) -> Callable:
    def run():
        with ek.use_backend(backend):
            return call()

    return run
