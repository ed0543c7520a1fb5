"""The table of all layers of other projects that are known, and a user's way into it."""

from collections.abc import Callable
from typing import Any

from torch import nn

from ..nn import CLASSES, KINDS, MaskedLayer
from ..nn.kinds import name_of
from ..rules import Rule
from . import dnw, hidden_networks, hydra, prune, supsup, torchao
from .origin import Method, Origin

_KNOWN = tuple(origin for project in (hidden_networks, hydra, dnw, torchao, prune, supsup) for origin in project.LAYERS)
# A user's own, which are asked first.
_REGISTERED: dict[type, Origin] = {}


def origin_of(module: nn.Module) -> Origin | None:
    """The kind of another project's layer that ``module`` is; None for what is not known."""
    registered = _REGISTERED.get(type(module))
    if registered is not None:
        return registered
    if not isinstance(module, tuple(KINDS)) or isinstance(module, MaskedLayer):
        return None
    return next((origin for origin in _KNOWN if origin.is_one(module)), None)


def subject_of(name: str, layer: nn.Module, origin: Origin) -> str:
    """The layer for a message."""
    return f"{f'layer {name!r}' if name else 'it'}, a {type(layer).__name__} of {origin.project},"


def register(
    cls: type[nn.Module],
    *,
    method: Method = "subnet",
    rule: Rule | Callable[[Any], Rule | None] | None = None,
    scores: str | None = "scores",
    mask: str | None = None,
) -> None:
    """Makes ``convert`` take layers of ``cls``, a masked layer that it does not know, as it takes hidden-networks'.

    cls     a subclass of a layer that ``convert`` takes, as nn.Conv2d: its own layers, not those of subclasses of it
    method  what trains in it: "subnet", "supermask" or "sparse", as in ``convert``
    rule    how its mask follows: a rule, or a function of a layer that makes one of its settings; None: ``convert``
            has to be told
    scores  the name of its scores, of the weight's shape; None: it has none to take over. Left out under "sparse",
            and beside a mask
    mask    the name of a fixed mask of 0 and 1, of the weight's shape: the layer becomes a frozen one

    What its weight trains stays as it is. What of the class is not said here is gone with it: its forward, its
    constraints. Registered anew, the last word counts. Raises TypeError and ValueError for what is no such class, no
    such method or no name.

    >>> class PopupLinear(nn.Linear):
    ...     def __init__(self, *sizes, k):
    ...         super().__init__(*sizes)
    ...         self.k, self.s = k, nn.Parameter(torch.randn_like(self.weight))
    >>> ek.interop.register(PopupLinear, scores="s", rule=lambda layer: ek.TopK(layer.k))
    >>> ek.convert(nn.Sequential(PopupLinear(64, 10, k=0.2)))[0].rule
    TopK(keep=0.2, of='abs')
    """
    kinds = ", ".join(map(name_of, KINDS))
    if not isinstance(cls, type) or not issubclass(cls, tuple(KINDS)) or cls in KINDS or issubclass(cls, MaskedLayer):
        raise TypeError(f"cls: expected a subclass of one of {kinds}, of another project, got {cls!r}")
    if method not in {of for of, _ in CLASSES}:
        raise ValueError(f"method: expected 'subnet', 'supermask' or 'sparse', got {method!r}")
    for argument, name in (("scores", scores), ("mask", mask)):
        if name is not None and not isinstance(name, str):
            raise TypeError(f"{argument}: expected the name of an attribute, or None, got {name!r}")
    if not (rule is None or isinstance(rule, Rule) or (callable(rule) and not isinstance(rule, type))):
        raise TypeError(f"rule: expected a rule such as TopK(0.5), or a function of a layer, got {rule!r}")
    if mask is not None and rule is not None:
        raise ValueError(f"rule: a fixed mask follows from none; expected rule or mask, got {rule} and mask={mask!r}")
    said: Callable[[Any], Rule | None] = (lambda layer: rule) if rule is None or isinstance(rule, Rule) else rule
    _REGISTERED[cls] = Origin(
        project=cls.__module__,
        is_one=lambda layer: type(layer) is cls,
        method=method,
        rule=said,
        unsaid="was registered without a rule",
        scores=None if method == "sparse" or mask is not None else scores,
        mask=None if mask is None else lambda layer: getattr(layer, mask, None),  # type: ignore[arg-type, return-value]
        gone=() if mask is None else (mask,),
    )
