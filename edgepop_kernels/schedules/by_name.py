"""A fraction kept for each layer by its name, and setting it."""

import fnmatch
from collections.abc import Iterable, Mapping

from torch import nn

from ..candidates import listed
from ..nn import MaskedLayer
from ..rules import Rule, checked_keep, sets_keep

Keep = float | Mapping[str, float]


def keep_of_layers(keep: Keep, names: Iterable[str], argument: str = "keep") -> dict[str, float]:
    """{name: fraction kept} of the layers of ``names`` that ``keep`` is about: of all where it is a number.

    keep: a number in (0, 1], or such numbers by fnmatch patterns on names. A layer's own name comes before patterns,
    and of several patterns the first that has the layer counts. Raises TypeError for what is neither, ValueError for
    numbers out of range and for a pattern other than ``"*"`` that decides no layer, calling it by ``argument``.
    """
    names = list(names)
    keep = checked_by_name(keep, argument)
    if not isinstance(keep, Mapping):
        return dict.fromkeys(names, keep)
    used: dict[str, str] = {}
    for name in names:
        found = name if name in keep else next((p for p in keep if fnmatch.fnmatchcase(name, p)), None)
        if found is not None:
            used[name] = found
    for pattern in keep:
        if pattern == "*" or pattern in used.values():  # a rest of none is no mistake
            continue
        if taken := [name for name in used if fnmatch.fnmatchcase(name, pattern)]:
            by = ", ".join(repr(p) for p in dict.fromkeys(used[name] for name in taken))
            raise ValueError(
                f"{argument}: {pattern!r} decides nothing, what it matches goes by {by}: a layer's own name comes "
                "first, then the first of the patterns"
            )
        raise ValueError(f"{argument}: {pattern!r} matches none of the layers {listed(names)}")
    return {name: float(keep[pattern]) for name, pattern in used.items()}


def checked_by_name(keep: Keep, argument: str = "keep") -> Keep:
    """``keep``, where it is a fraction or fractions by patterns. Raises TypeError, ValueError."""
    if not isinstance(keep, Mapping):
        return checked_keep(keep, argument)
    if not keep:
        raise ValueError(f"{argument}: expected a fraction for some pattern of layers' names, got none")
    for pattern, number in keep.items():
        if not isinstance(pattern, str):
            raise TypeError(f"{argument}: expected patterns of layers' names, got {pattern!r}")
        checked_keep(number, f"{argument}[{pattern!r}]")
    return keep


def set_keep(model: nn.Module, keep: Keep) -> None:
    """Sets the fraction of weights kept of the masked layers of ``model`` whose rule has it to set (``TopK``,
    ``Percentile``, ``GlobalTopK``, ``Block``, ``Channels``), from the next forward on: ``layer.keep = ...`` of each.

    keep: a number in (0, 1] for all of them, or {pattern: number} by fnmatch patterns on their qualified names, as
    ``convert`` takes it and ``density`` makes it: a layer's own name comes before patterns, of several patterns the
    first counts, and a layer that none has stays as it is. Layers under ``GlobalTopK`` are ranked together and have one
    number. Raises TypeError or ValueError, before anything changes, where there is no such layer, for a number out of
    range, for a pattern that decides no layer, and for what a layer's rule does not take.

    >>> model = ek.convert(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)), keep=0.5)
    >>> ek.set_keep(model, {"0": 0.25, "*": 0.75})
    >>> [layer.keep for layer in model]
    [0.25, 0.75]
    """
    set_all(plan(model, keep))


def plan(model: nn.Module, keep: Keep, argument: str = "keep") -> list[tuple[MaskedLayer, Rule]]:
    """The layers that ``keep`` is about, each with its rule to be. Raises TypeError, ValueError."""
    layers = layers_with_keep(model)
    rules = dict[str, Rule]()
    for name, fraction in keep_of_layers(keep, layers, argument).items():
        try:
            rules[name] = layers[name].rule.with_keep(fraction)
        except ValueError as error:
            raise ValueError(f"{argument}: {name or 'the model itself'} cannot keep {fraction}: {error}") from error
    _check_together(layers, rules, argument)
    return [(layers[name], rule) for name, rule in rules.items()]


def set_all(planned: Iterable[tuple[MaskedLayer, Rule]]) -> None:
    """Gives each layer its rule."""
    for layer, rule in planned:
        layer.rule = rule


def layers_with_keep(model: nn.Module) -> dict[str, MaskedLayer]:
    """The masked layers whose rule has a keep to set, by name. Raises TypeError, ValueError where there is none."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    masked = {name: m for name, m in model.named_modules() if isinstance(m, MaskedLayer)}
    found = {name: m for name, m in masked.items() if sets_keep(m.rule)}
    if not found:
        rules = ", ".join(dict.fromkeys(type(m.rule).__name__ for m in masked.values()))
        there = f"its masked layers are under {rules}" if masked else "it has no masked layer; convert it first"
        frozen = "; train_masks(model) thaws frozen ones" if any(m.rule.fixed for m in masked.values()) else ""
        raise ValueError(f"model: expected masked layers whose rule has a keep to set (TopK, for one), {there}{frozen}")
    return found


def _check_together(layers: dict[str, MaskedLayer], rules: dict[str, Rule], argument: str) -> None:
    """Raises ValueError where layers that are ranked together would no longer be."""
    groups: dict[Rule, list[str]] = {}
    for name, layer in layers.items():
        if layer.rule.together:
            groups.setdefault(layer.rule, []).append(name)
    for rule, members in groups.items():
        after = {rules.get(name, rule) for name in members}
        if len(after) > 1:
            raise ValueError(
                f"{argument}: {listed(members)} are ranked together by {rule}, which has one keep; expected one number "
                f"for all of them, got {', '.join(sorted(str(r) for r in after))}"
            )
