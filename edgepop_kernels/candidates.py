"""The layers of a network that a conversion is about: by type, by name, by a function of both."""

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from .adapters import adapter_parts
from .interop.kinds import learn
from .interop.table import origin_of
from .nn import KINDS, MaskedLayer
from .nn.kinds import name_of

_One = str | Callable[[str, nn.Module], bool]
Wanted = _One | Iterable[_One]


def chosen(
    model: nn.Module, include: Wanted | None, exclude: Wanted
) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """({name: layer} to convert, {name: module} left out on purpose). Raises TypeError, ValueError.

    include  None: all, or of a model with masked layers of another project those alone
    """
    learn(model)
    of_adapters = adapter_parts(model)
    candidates = {name: m for name, m in model.named_modules() if is_candidate(m) and m not in of_adapters}
    if not candidates:
        raise ValueError(_why_none(model))
    # What stays dense whatever one asks for may be named here, to say that it is meant.
    others = {name: m for name, m in model.named_modules() if m._parameters and not isinstance(m, MaskedLayer)}
    names, patterns = narrowed(candidates, include, exclude, others, partial(_instead, model, candidates))
    plain = set[str]()  # beside masked layers of another project: dense by that project's choice, not by the user's
    if include is None and any(origin_of(candidates[name]) for name in names):
        plain = {name for name in names if not origin_of(candidates[name])}
        names = [name for name in names if name not in plain]
    left = {name: m for name, m in candidates.items() if name not in names and name not in plain}
    left |= {name: m for name, m in others.items() if name not in names and matches(patterns, name, m)}
    return {name: candidates[name] for name in names}, left


def narrowed(
    layers: Mapping[str, nn.Module],
    include: Wanted | None,
    exclude: Wanted,
    others: Mapping[str, nn.Module] | None = None,
    instead: Callable[[str], str] | None = None,
) -> tuple[list[str], tuple[str, ...]]:
    """The names of those of ``layers`` that ``include`` has, None for all, and ``exclude`` has not; the patterns of
    ``exclude``. Raises TypeError, ValueError.

    others   what else ``exclude`` may name
    instead  what a pattern matches that matches none of the layers, for the message
    """
    instead = instead or (lambda pattern: f"none of the layers {listed(layers)}")
    wanted = _checked("include", "*" if include is None else include, layers, instead)
    unwanted = _checked("exclude", exclude, {*layers, *(others or ())}, instead)
    included = [name for name, m in layers.items() if matches(wanted, name, m)]
    if not included:
        raise ValueError(f"include: expected to choose one of the layers {listed(layers)}, got {_shown(wanted)}")
    names = [name for name in included if not matches(unwanted, name, layers[name])]
    if not names:
        raise ValueError(f"exclude: expected to leave one of the layers {listed(included)}, got {_shown(unwanted)}")
    return names, tuple(w for w in unwanted if isinstance(w, str))  # functions are written for layers


def is_candidate(module: nn.Module) -> bool:
    """Whether convert takes the module, or has to refuse it by name: parametrizations change a layer's class."""
    return parametrize.type_before_parametrizations(module) in KINDS or origin_of(module) is not None


def unknown_kinds(modules: Iterable[nn.Module]) -> list[str]:
    """The classes among those of ``modules`` that are subclasses of the layers that convert takes, but nothing that it
    knows. torch's own are known to be none."""
    kinds = [type(m) for m in modules if isinstance(m, tuple(KINDS)) and not isinstance(m, MaskedLayer)]
    unknown = [kind for kind in kinds if kind not in KINDS and not kind.__module__.startswith("torch.")]
    return list(dict.fromkeys(kind.__name__ for kind in unknown))


def listed(names: Iterable[str], most: int = 8) -> str:
    """The names for a message, the first ``most`` of them."""
    names = [name or "(the model itself)" for name in names]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def matches(wanted: tuple[_One, ...], name: str, module: nn.Module) -> bool:
    """Whether one of the patterns or predicates has the module."""
    return any(fnmatch.fnmatchcase(name, w) if isinstance(w, str) else w(name, module) for w in wanted)


def _checked(argument: str, wanted: Wanted, among: Iterable[str], instead: Callable[[str], str]) -> tuple[_One, ...]:
    """A tuple of patterns and predicates. Raises TypeError, and ValueError for a pattern that nothing matches."""
    expected = "patterns of layers' names, or functions of (name, layer)"
    several: Any = (wanted,) if isinstance(wanted, str) or _is_predicate(wanted) else wanted
    if not isinstance(several, Iterable):
        raise TypeError(f"{argument}: expected {expected}, got {wanted!r}")
    checked = tuple(several)
    for w in checked:
        if not isinstance(w, str) and not _is_predicate(w):
            raise TypeError(f"{argument}: expected {expected}, got {w!r}")
        if isinstance(w, str) and w != "*" and not any(fnmatch.fnmatchcase(name, w) for name in among):
            raise ValueError(f"{argument}: {w!r} matches {instead(w)}")
    return checked


def _is_predicate(wanted: object) -> bool:
    return callable(wanted) and not isinstance(wanted, type | nn.Module)


def _shown(wanted: Iterable[_One]) -> str:
    return repr(tuple(w if isinstance(w, str) else getattr(w, "__name__", w) for w in wanted))


def _instead(model: nn.Module, layers: Iterable[str], pattern: str) -> str:
    """A description of what a pattern without a layer matches."""
    other = [(name, m) for name, m in model.named_modules() if fnmatch.fnmatchcase(name, pattern)]
    weighty = [(name, m) for name, m in other if m._parameters]
    if weighty:
        name, module = weighty[0]
        return f"{name or 'the model itself'}, {_what(module)}; the layers to convert are {listed(layers)}"
    return f"none of the layers {listed(layers)}"


def _what(module: nn.Module) -> str:
    """Why convert leaves a module alone."""
    kind = type(module).__name__
    if isinstance(module, MaskedLayer):
        return f"a {kind}, which is masked already"
    if isinstance(module, nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params():
        return f"a {kind} that has not seen an input yet: run one forward first"
    for taken in KINDS:
        if isinstance(module, taken):
            return (
                f"a {kind}, a subclass of {name_of(taken)}, which convert leaves alone unless "
                "edgepop_kernels.interop.register says what it is"
            )
    return f"a {kind}, which convert leaves alone"


def _why_none(model: nn.Module) -> str:
    kinds: dict[str, nn.Module] = {}
    for module in model.modules():
        if module._parameters:
            kinds.setdefault(type(module).__name__, module)
    masked = [k for k, m in kinds.items() if isinstance(m, MaskedLayer)]
    *others, last = map(name_of, KINDS)
    message = f"model: it has no {', '.join(others)} or {last} to convert"
    if masked:
        return f"{message}, only {listed(masked)}, masked already; such layers change their rule by layer.rule = ..."
    return message + (f"; it has {'; '.join(_what(m) for m in list(kinds.values())[:4])}" if kinds else "")
