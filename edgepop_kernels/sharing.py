"""One selection for all masked layers of a network."""

import warnings
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from . import capture, checks, selecting, torch_private
from .cut import Cut, Selection
from .masks import popcount
from .nn import MaskedLayer
from .nn.cuts import CutsTogether
from .rules import Rule

_SHARED = "_edgepop_shared_selection"
Model = TypeVar("Model", bound=nn.Module)


def layer_masks(layers: list[MaskedLayer]) -> list[torch.Tensor]:
    """The masks of ``layers`` as evaluation uses them, those under equal GlobalTopK rules that share a selection ranked
    together."""
    groups: dict[Any, list[MaskedLayer]] = {}
    for layer in layers:
        if not layer.rule.fixed:
            groups.setdefault(layer._group, []).append(layer)
    found: dict[MaskedLayer, torch.Tensor] = {}
    for group in groups.values():
        ranked = [torch_private.whole(m._ranked) for m in group]
        selections = selecting.select_all(ranked, [m._settled_rule() for m in group])
        found |= {m: selecting.selected_mask(r, s) for m, r, s in zip(group, ranked, selections, strict=True)}
    return [found[layer] if layer in found else layer.mask() for layer in layers]


def _selects_together(rule: Rule) -> bool:
    # A layer that draws does so in its own forward: there activation checkpointing restores the generator, and repeats
    # the draw.
    return not (rule.fixed or rule.fresh)


def _at_hand(
    layers: Sequence[MaskedLayer], ranked: Sequence[torch.Tensor]
) -> tuple[list[MaskedLayer], list[torch.Tensor]]:
    """The layers, and what they rank, that can be selected before their forwards. In a torch.fx trace none can.
    Where fully_shard gathers a layer's scores for its forward alone, the layer selects there: but for GlobalTopK, which
    needs all of them now, they are gathered once more."""
    found = []
    for layer, scores in zip(layers, ranked, strict=True):
        sharded = torch_private.sharded(scores)
        if isinstance(scores, torch.Tensor) and (not sharded or layer.rule.together):
            found.append((layer, torch_private.whole(scores)))
    return [layer for layer, _ in found], [scores for _, scores in found]


def _by_rule(layers: Iterable[MaskedLayer]) -> list[tuple[Rule, list[MaskedLayer]]]:
    """Those of ``layers`` that are ranked together, their scores being at hand."""
    groups: dict[Rule, list[MaskedLayer]] = {}
    for layer in layers:
        rule = layer._forward_rule()
        if rule.together and type(layer._ranked) in torch_private.PLAIN:
            groups.setdefault(rule, []).append(layer)
    return list(groups.items())


class _SharedSelection:
    """Hooks on a network's root: one select_all before its forward, nothing kept after it."""

    def __init__(self, model: nn.Module) -> None:
        names = {m: name for name, m in model.named_modules() if isinstance(m, MaskedLayer) and m._group is None}
        self.layers, self.names = list(names), list(names.values())
        self.looked = False  # whether a layer that keeps nothing would have been named
        self.together = CutsTogether()
        for layer in self.layers:
            layer._group = self
        self.handles = [
            model.register_forward_pre_hook(self.select),
            # always_call: a forward that raises must not leave its cuts to a later one.
            model.register_forward_hook(self.forget, always_call=True),
        ]

    def select(self, model: nn.Module, args: object) -> None:
        if model.__dict__.get("_is_replica"):  # of nn.DataParallel, whose layers are not ours: they select themselves
            return
        self._clear()  # a forward that was interrupted has left its cuts: torch calls no hook then
        layers = [m for m in self.layers if isinstance(m, MaskedLayer) and _selects_together(m._forward_rule())]
        layers = [m for m in layers if m._mixture is None]
        watched = torch_private.watched()  # traced, or of tensors that stand for others: nothing of it may stay
        for layer in layers:
            layer._cuts.shared = None if watched else layer._known_cut()
        for rule, members in () if watched else _by_rule(layers):
            for layer, cut in zip(members, self.together.of([m._ranked for m in members], rule) or (), strict=False):
                layer._cuts.shared = cut
        layers = [m for m in layers if m._cuts.shared is None]
        ranked: list[torch.Tensor] = [m._ranked for m in layers]
        if [s for s in ranked if type(s) not in torch_private.PLAIN]:
            layers, ranked = _at_hand(layers, ranked)
        if not layers:
            return
        rules = [m._forward_rule() for m in layers]
        hints = None if watched else [m._hint() for m in layers]
        checks.selections(ranked, rules, hints)
        planes = [m.scores is not None for m in layers]  # nobody reads those of a weight that scores itself
        selections = selecting.selections(ranked, rules, hints or [None] * len(ranked), planes)
        for layer, scores, rule, selection in zip(layers, ranked, rules, selections, strict=True):
            layer._cuts.shared = selection
            if not watched:
                layer._cuts.start_from(selection, scores, rule, stays=not layer.training)
        if not (watched or model.training):  # then the scores are expected to be as they are in the next forward
            for _, members in _by_rule(layers):
                self._learn(members, [m._cuts.shared for m in members])
        if not self.looked:
            self._look_for_empty(dict(zip(layers, ranked, strict=True)))

    def _look_for_empty(self, ranked: dict[MaskedLayer, torch.Tensor]) -> None:
        """Warns, at the first selection, of layers that a ranking of all together leaves without a weight."""
        if torch.compiler.is_compiling() or torch_private.transformed():
            return
        self.looked = True
        empty = []
        for layer, name in zip(self.layers, self.names, strict=True):
            if layer not in ranked or not layer.rule.together or capture.capturing(ranked[layer]):
                continue
            if layer.scores is None:
                continue  # a weight that scores itself learns where it is not kept, too
            selection = layer._cuts.shared
            if selection is not None and popcount(selecting.selected_bits(ranked[layer], selection)).item() == 0:
                empty.append(f"{name} (0 of {ranked[layer].numel():,})")
        if empty:
            warnings.warn(
                f"GlobalTopK keeps nothing of {', '.join(empty)}, so that no gradient passes: the scores of these "
                "layers are on a smaller scale than the others'. GlobalTopK(keep, at_least=...) keeps a fraction of "
                "every layer",
                stacklevel=3,
            )

    def forget(self, model: nn.Module, args: object, output: object) -> None:
        if not model.__dict__.get("_is_replica"):
            self._clear()

    def _clear(self) -> None:
        for layer in self.layers:
            if isinstance(layer, MaskedLayer):
                layer._cuts.shared = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Layers keep their group out of their own state: copied alone, one would take its whole network along.
        self.__dict__.update(state)
        for layer in self.layers:
            if isinstance(layer, MaskedLayer):
                layer._group = self

    def selection_of(self, layer: MaskedLayer) -> Selection:
        """The selection of one layer, whose rule ranks it together with others."""
        rule = layer._rule
        members = [m for m in self.layers if isinstance(m, MaskedLayer) and (m._rule is rule or m._rule == rule)]
        if layer not in members:
            raise RuntimeError(
                "rule: a replica of a layer under GlobalTopK cannot rank it together with the others; train in several "
                "processes (DistributedDataParallel), not with nn.DataParallel"
            )
        ranked: list[torch.Tensor] = [m._ranked for m in members]
        plain = not [s for s in ranked if type(s) not in torch_private.PLAIN]
        watched = torch_private.watched()
        known = self.together.of(ranked, rule) if plain and not watched else None
        if known is not None:
            return known[members.index(layer)]
        selections = selecting.select_all([torch_private.whole(s) for s in ranked], [m.rule for m in members])
        if plain and not watched and all(s is m._ranked for s, m in zip(ranked, members, strict=True)):
            self._learn(members, selections)
        return selections[members.index(layer)]

    def _learn(self, members: list[MaskedLayer], selections: Sequence[Selection | None]) -> None:
        """Layers that are ranked together may be called one by one: the next asks for the same cuts."""
        rules = {m.rule for m in self.layers if isinstance(m, MaskedLayer)}
        cuts = [cut for cut in selections if isinstance(cut, Cut)]
        self.together.learn(cuts, [m._ranked for m in members], members[0].rule, rules)

    def dissolve(self) -> None:
        for handle in self.handles:
            handle.remove()
        for layer in self.layers:
            if getattr(layer, "_group", None) is self:  # not materialized since, nor taken over
                layer._group = layer._cuts.shared = None


def share_selection(model: Model) -> Model:
    """Makes every forward of ``model`` select all its masked layers' cuts in one call, instead of one call a layer.

    Layers under a GlobalTopK rule need it. Layers added later are not seen: call it again. Sub-modules called on their
    own select for themselves; layers that a part of the model shares already stay with it. Returns the model;
    ``unshare_selection`` undoes it. Raises ValueError for a model without masked layers, or with one that shares its
    selection with a network outside of it.

    >>> model = ek.convert(nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)), ek.GlobalTopK(0.1))
    >>> ek.share_selection(model)(torch.randn(2, 64)).shape
    torch.Size([2, 10])
    """
    unshare_selection(model)
    inside = {m.__dict__[_SHARED] for m in model.modules() if _SHARED in m.__dict__}
    layers = {name: m for name, m in model.named_modules() if isinstance(m, MaskedLayer)}
    for name, m in layers.items():
        if m._group is None or m._group in inside:
            continue
        if set(m._group.layers) <= set(layers.values()):
            m._group.dissolve()  # of a network that is gone, its layers taken over
        else:
            raise ValueError(
                f"model: its layer {name or 'itself'} shares its selection with a network outside of the model; call "
                "unshare_selection on that first"
            )
    if not layers:
        raise ValueError("model: it has no masked layer; expected a converted model, or one built of Fused layers")
    setattr(model, _SHARED, _SharedSelection(model))
    return model


def unshare_selection(model: Model) -> Model:
    """Takes back ``share_selection``; does nothing where it was not shared."""
    shared = model.__dict__.pop(_SHARED, None)
    if shared is not None:
        shared.dissolve()
    return model
