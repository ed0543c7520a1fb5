"""What a converted network has to agree with, from the definition: torch's own layers with W * M in their weight, the
mask from a stable sort, every count from the parameters. Nothing here asks this package."""

import copy
import re
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import nn

GEOMETRY = ("kernel_size", "stride", "padding", "dilation", "groups")
ARGUMENTS = {"Linear": ("in_features", "out_features"), "Conv1D": ("nf", "nx")}


def masked(model: nn.Module) -> dict[str, nn.Module]:
    """The layers with scores, by name."""
    return {name: m for name, m in model.named_modules() if "scores" in m._parameters}


def mask(layer: nn.Module) -> torch.Tensor:
    """Kept are the numel - int((1 - keep) * numel) scores of largest size; of equal ones the first."""
    size = layer.scores.detach().abs().flatten()
    best = torch.sort(size, descending=True, stable=True).indices[: len(size) - int((1 - layer.keep) * len(size))]
    return torch.zeros(size.shape, dtype=torch.bool).index_fill_(0, best, True).view(layer.scores.shape)


def plain(model: nn.Module) -> nn.Module:
    """A copy of the network with torch's own layers, and transformers', in the masked ones' places."""
    twin = copy.deepcopy(model)
    for name, layer in masked(twin).items():
        kind = next(c for c in type(layer).__mro__ if c.__module__.startswith(("torch.nn", "transformers.")))
        names = ARGUMENTS.get(kind.__name__, ("in_channels", "out_channels", *GEOMETRY))
        if getattr(layer, "transposed", False):
            names = (*names, "output_padding")
        own = kind(**{n: getattr(layer, n) for n in names})
        own.weight, own.bias = nn.Parameter(layer.weight.detach() * mask(layer)), layer.bias
        parent, _, child = name.rpartition(".")
        setattr(twin.get_submodule(parent), child, own.train(layer.training))
    return twin


def run(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The output, whatever the library wraps it in; drop-out is that of every other run."""
    torch.manual_seed(7)
    y = model(**inputs)
    return getattr(y, "logits", y)


def learn(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The output; the parameters that train get the gradients of a loss in which every output has a weight."""
    y = run(model, inputs)
    (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(8)).to(y.dtype)).sum().backward()
    return y.detach()


def off(out: torch.Tensor, ref: torch.Tensor, least: float = 0) -> float:
    """The largest difference, of the largest value or of ``least``, which is larger; NaN is infinitely off."""
    scale = max(ref.abs().max().item(), least, torch.finfo(ref.dtype).tiny)
    return ((out - ref).abs().max() / scale).nan_to_num(float("inf")).item()


def gradients(model: nn.Module, twin: nn.Module) -> dict[str, tuple[torch.Tensor | None, torch.Tensor | None]]:
    """Of all that trains in ``model``: its gradient, and what that is to be, going by its plain ``twin``."""
    found, layers, of_twin = {}, masked(model), dict(twin.named_parameters())
    for name, p in model.named_parameters():
        owner, _, key = name.rpartition(".")
        if p.requires_grad and key == "scores":
            dw, weight = of_twin[f"{owner}.weight"].grad, layers[owner].weight
            found[name] = p.grad, None if dw is None else dw * weight * p.detach().sign()
        elif p.requires_grad:
            found[name] = p.grad, of_twin[name].grad
    return found


class Dense(NamedTuple):
    """A parameter that trains outside of masks: where it was first met, and all modules that have it."""

    module: str
    kind: str
    key: str
    value: nn.Parameter
    owners: list[str]


def dense(model: nn.Module) -> list[Dense]:
    found = {}
    for name, module in model.named_modules():
        for key, p in module._parameters.items():
            if p is not None and p.requires_grad and key != "scores":
                found.setdefault(p, Dense(name, type(module).__name__, key, p, [])).owners.append(name)
    return list(found.values())


def counted(parameters: Iterable[Dense]) -> dict[str, tuple[int, int]]:
    """What there is to say of them: of each class and parameter how many, and of how many weights; norms are counted
    by module and biases all together, without weights."""
    found = {}

    def add(what, count, numel):
        before = found.get(what, (0, 0))
        found[what] = before[0] + count, before[1] + numel

    norms = {(d.kind, d.module) for d in parameters if "norm" in d.kind.lower()}
    for kind, _ in norms:
        add(kind, 1, 0)
    for d in parameters:
        if (d.kind, d.module) in norms:
            continue
        if sum(size > 1 for size in d.value.shape) > 1:
            add(d.kind if d.key == "weight" else f"{d.kind}.{d.key}", 1, d.value.numel())
        else:
            add("biases" if "bias" in d.key else f"{d.kind}.{d.key}", 1, 0)
    return found


def told(message: str) -> tuple[int, int, dict[str, tuple[int, int]]]:
    """The numbers of a LeftDense warning: weights that train without a mask, of how many, and of what."""
    sentence = r"left dense, (.*) of (.*) weights train without a mask: (.*)\. freeze_rest=True .*"
    weights, total, parts = re.fullmatch(sentence, message).groups()
    found = re.findall(r"(\d+) ([\w.]+)(?: \([^)]*: ([\d,]+) weights\))?(?:, |$)", parts)
    what = {"biases" if name == "bias" else name: (int(count), _number(numel)) for count, name, numel in found}
    return _number(weights), _number(total), what


def _number(digits):
    return int(digits.replace(",", "") or 0)
