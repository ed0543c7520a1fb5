"""Fractions kept over the layers of a network: {name: keep}, for ``convert(model, keep=...)`` and ``set_keep``.

Each function takes a network and the fraction kept of all its weights together. The layers are its masked ones whose
rule has a ``keep`` to set; of a network without any, those that ``convert`` would take. include, exclude: as
``convert`` has them.
``kept_count`` rounds layer by layer, so that the whole may be off by a weight a layer. Each raises TypeError or
ValueError for arguments that ``convert`` would not take.
"""

from typing import Any, cast

import torch
from torch import nn

from ..candidates import Wanted, chosen, narrowed
from ..nn import MaskedLayer
from ..rules import checked_keep
from .by_name import layers_with_keep


def uniform(model: nn.Module, keep: float, *, include: Wanted | None = None, exclude: Wanted = ()) -> dict[str, float]:
    """The same fraction for every layer.

    >>> model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(16, 10))
    >>> ek.density.uniform(model, 0.25)
    {'0': 0.25, '1': 0.25, '3': 0.25}
    """
    keep = checked_keep(keep)
    return dict.fromkeys(_layers(model, include, exclude), keep)


def erk(model: nn.Module, keep: float, *, include: Wanted | None = None, exclude: Wanted = ()) -> dict[str, float]:
    """Erdős-Rényi-Kernel: a layer keeps in proportion to the sum of its weight's sizes over their product, so that
    large layers keep less; those that would keep more than everything are dense, and the others share what is left
    (Evci et al. 2020, "Rigging the Lottery", section 3; Mocanu et al. 2018 for linear layers).

    >>> model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(16, 10))
    >>> {name: round(keep, 3) for name, keep in ek.density.erk(model, 0.25).items()}
    {'0': 0.513, '1': 0.146, '3': 1.0}
    """
    keep = checked_keep(keep)
    shapes = _layers(model, include, exclude)
    sizes = {name: shape.numel() for name, shape in shapes.items()}
    left = keep * sum(sizes.values())
    found = dict[str, float]()
    rest = dict(shapes)
    while rest:
        # A layer keeps scale * sum(sizes) of its weights; as a fraction that is over their product.
        scale = left / sum(sum(shape) for shape in rest.values())
        dense = [name for name, shape in rest.items() if scale * sum(shape) >= sizes[name]]
        if not dense:
            found |= {name: scale * sum(shape) / sizes[name] for name, shape in rest.items()}
            break
        for name in dense:
            found[name] = 1.0
            left -= sizes[name]
            del rest[name]
    return {name: found[name] for name in shapes}


def uniform_plus(
    model: nn.Module, keep: float, *, include: Wanted | None = None, exclude: Wanted = ()
) -> dict[str, float]:
    """Uniform but for two layers that suffer most: the first convolution is dense, the last linear layer keeps a fifth
    at least (Gale et al. 2019, "The State of Sparsity in Deep Neural Networks"; the name is of Lee et al. 2021, LAMP).
    The others keep less for it, so that ``keep`` is that of the whole. First and last by the order of
    ``model.named_modules()``. Raises ValueError where these two are all that may be kept, or more.

    >>> model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(16, 10))
    >>> {name: round(keep, 3) for name, keep in ek.density.uniform_plus(model, 0.25).items()}
    {'0': 1.0, '1': 0.114, '3': 0.2}
    """
    keep = checked_keep(keep)
    shapes = _layers(model, include, exclude)
    sizes = {name: shape.numel() for name, shape in shapes.items()}
    convolutions = [name for name, shape in shapes.items() if len(shape) > 2]
    linear = [name for name in shapes if name not in convolutions]
    fixed = dict.fromkeys(convolutions[:1], 1.0)
    kept = _of_others(keep, sizes, fixed)
    if linear and kept < _LAST:
        fixed[linear[-1]] = _LAST
        kept = _of_others(keep, sizes, fixed)
    if kept <= 0 and len(fixed) < len(sizes):
        taken = sum(sizes[name] * fraction for name, fraction in fixed.items())
        raise ValueError(
            f"keep: {' and '.join(fixed)} take {taken / sum(sizes.values()):.4g} of all weights, expected "
            f"more, got {keep}"
        )
    return {name: fixed.get(name, kept) for name in shapes}


_LAST = 0.2  # what the last linear layer keeps at least


def _of_others(keep: float, sizes: dict[str, int], fixed: dict[str, float]) -> float:
    """The fraction that the layers without a fixed one keep, where all together keep ``keep``."""
    others = sum(size for name, size in sizes.items() if name not in fixed)
    left = keep * sum(sizes.values()) - sum(sizes[name] * fraction for name, fraction in fixed.items())
    return min(left / others, 1.0) if others else 0.0


def _layers(model: nn.Module, include: Wanted | None, exclude: Wanted) -> dict[str, torch.Size]:
    """The shape of each layer's weight, by name. Raises TypeError, ValueError."""
    if any(isinstance(m, MaskedLayer) for m in model.modules()):
        masked = layers_with_keep(model)
        return {name: masked[name]._weight_shape() for name in narrowed(masked, include, exclude)[0]}
    return {name: torch.Size(m.weight.shape) for name, m in cast(Any, chosen(model, include, exclude)[0]).items()}
