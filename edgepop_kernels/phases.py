"""Turns between training masks and training weights, as when a supermask serves as an initialisation.

A parameter whose turn is over must not move: torch's optimizers skip those without a gradient, so gradients are
cleared here. And it must not start its next turn with the momentum of the last one, which belongs to another loss
surface: given the optimizer, its state of parameters that stop training is dropped.
"""

from torch import nn
from torch.optim import Optimizer

from .nn import MaskedLayer
from .nn.tools import check_unwrapped
from .sharing import layer_masks


def train_masks(model: nn.Module, optimizer: Optimizer | None = None) -> nn.Module:
    """The masked layers of ``model`` train their scores; weights, and biases under a mask, stand still. In place.

    Layers whose weights score themselves go back to choosing their edges. Raises ValueError for a layer frozen without
    its scores, and for an ``optimizer`` that lacks a parameter which now trains; RuntimeError inside
    DistributedDataParallel or fully_shard, which would not sum the gradients of what now trains.
    """
    return _turn(model, optimizer, masks=True)


def train_weights(model: nn.Module, optimizer: Optimizer | None = None) -> nn.Module:
    """The masked layers of ``model`` keep their present masks and train weights and biases; scores stand still.

    Only kept weights get a gradient. In place; ``train_masks`` turns back. A state_dict says which masks are kept, not
    what trains: to resume from one of this turn, load it, then call this again. Raises ValueError for an ``optimizer``
    that lacks a parameter which now trains; RuntimeError as ``train_masks``.
    """
    return _turn(model, optimizer, masks=False)


def _turn(model, optimizer, masks):
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
    return model


def _check_holds(optimizer, model, trained):
    held = {p for group in optimizer.param_groups for p in group["params"]}
    for name, p in model.named_parameters():
        if p in trained and not p.requires_grad and p not in held:
            raise ValueError(f"optimizer: it lacks {name}, which is to train; build it over all of model.parameters()")
