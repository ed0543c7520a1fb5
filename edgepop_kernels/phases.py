"""Turns between training masks and training weights, as when a supermask serves as an initialisation.

A parameter whose turn is over must not move: torch's optimizers skip those without a gradient, so gradients are
cleared here. And it must not start its next turn with the momentum of the last one, which belongs to another loss
surface: given the optimizer, its state of parameters that stop training is dropped. Nor must weights outside of a mask
move in their turn: weight decay and momentum reach them without a gradient (20 steps of SGD moved them by 0.11, of
AdamW by 2.5e-3). Given the optimizer, hooks around its steps put them back.
"""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from .nn import MaskedLayer
from .nn.tools import check_unwrapped
from .sharing import Model, layer_masks

# Of each optimizer and model whose masked-out weights its steps leave alone: the handles of both hooks.
_HELD: WeakKeyDictionary[Optimizer, WeakKeyDictionary[nn.Module, tuple[RemovableHandle, ...]]] = WeakKeyDictionary()


def train_masks(model: Model, optimizer: Optimizer | None = None) -> Model:
    """Trains the scores of the masked layers of ``model``, while weights, and biases under a mask, stand still. In
    place.

    Layers whose weights score themselves go back to choosing their edges. Raises ValueError for a layer frozen without
    its scores, and for an ``optimizer`` that lacks a parameter which now trains, or holds none of the scores because it
    was built before ``convert``; RuntimeError inside DistributedDataParallel or fully_shard, which would not sum the
    gradients of what now trains.
    """
    return _turn(model, optimizer, masks=True)


def train_weights(model: Model, optimizer: Optimizer | None = None) -> Model:
    """Trains weights and biases of the masked layers of ``model`` under their present masks, while scores stand still.

    Only kept weights get a gradient. With ``optimizer``, of whatever class, its steps leave those outside of the masks
    as they are, to the bit, biases under a mask too: a copy of the weights is made around each step. Without it, or
    under another optimizer, weight decay, and momentum from before, move weights that are masked out: no output sees
    that before ``train_masks``, or under a mask that is set later.

    In place; ``train_masks`` turns back. A state_dict says which masks are kept, not
    what trains: to resume from one of this turn, load it, then call this again. Raises ValueError for an ``optimizer``
    that lacks a parameter which now trains; RuntimeError as ``train_masks``.

    >>> model = ek.convert(nn.Sequential(nn.Linear(64, 10)), keep=0.5)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> layer = ek.train_weights(model, optimizer)[0]
    >>> layer.weight.requires_grad, layer.scores.requires_grad
    (True, False)
    """
    return _turn(model, optimizer, masks=False)


def _turn(model: Model, optimizer: Optimizer | None, masks: bool) -> Model:
    layers = [m for m in model.modules() if isinstance(m, MaskedLayer)]
    if not layers:
        raise ValueError("model: it has no masked layer; expected a converted model, or one built of Fused layers")
    check_unwrapped("train_masks" if masks else "train_weights", layers)
    if masks:
        for layer in layers:
            layer._check_thaws()
    if optimizer is not None:
        _check_holds(optimizer, model, {p for layer in layers for p in layer._trained(masks)})
    before = {p: p.requires_grad for p in model.parameters()}
    if masks:
        for layer in layers:
            layer._train_mask()
    else:
        for layer, mask in zip(layers, layer_masks(layers), strict=True):
            layer._train_weight(mask)
    turned = {n: p for n, p in model.named_parameters() if p.requires_grad != before[p]}
    for p in turned.values():
        p.grad = None
    if optimizer is not None:
        for p in turned.values():
            if not p.requires_grad:
                optimizer.state.pop(p, None)
        _hold(model, optimizer, layers=[] if masks else layers)
    return model


def _hold(model: nn.Module, optimizer: Optimizer, layers: list[MaskedLayer]) -> None:
    """Makes steps of ``optimizer`` leave alone what is masked out in ``layers``, and in no others."""
    of_models = _HELD.setdefault(optimizer, WeakKeyDictionary())
    for handle in of_models.pop(model, ()):
        handle.remove()
    if layers:
        held = _MaskedOut(layers)
        before = optimizer.register_step_pre_hook(held.keep)
        of_models[model] = (before, optimizer.register_step_post_hook(held.put_back))


class _MaskedOut:
    """Hooks around a step: what masks leave out is after it what it was before."""

    def __init__(self, layers: list[MaskedLayer]) -> None:
        self.layers = layers
        self.kept: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    @torch.no_grad()
    def keep(self, optimizer: object, args: object, kwargs: object) -> None:
        # A layer may have been thawed or materialized since; a bias has a mask of its own in supermasks alone.
        layers = [m for m in self.layers if isinstance(m, MaskedLayer) and m.rule.fixed]
        masked: list[tuple[Any, Any]] = [(m.weight, m.mask()) for m in layers]
        masked += [(m.bias, m.bias_mask) for m in layers if getattr(m, "bias_mask", None) is not None]
        self.kept = [(p, mask, p.detach().clone()) for p, mask in masked if p.requires_grad]

    @torch.no_grad()
    def put_back(self, optimizer: object, args: object, kwargs: object) -> None:
        for p, mask, value in self.kept:
            p.copy_(torch.where(mask.to(torch.bool), p, value))
        self.kept = []


def _check_holds(optimizer: Optimizer, model: nn.Module, trained: set[torch.Tensor]) -> None:
    held = {p for group in optimizer.param_groups for p in group["params"]}
    names = {p: name for name, p in model.named_parameters() if p in trained}
    for p, name in names.items():
        if not p.requires_grad and p not in held:
            raise ValueError(f"optimizer: it lacks {name}, which is to train; build it over all of model.parameters()")
    if not any(p in held for p in names):
        raise ValueError(
            f"optimizer: it holds none of what is to train ({next(iter(names.values()))}, ...), as one built before "
            "convert; build it afterwards, over all of model.parameters()"
        )
