"""Weights of one magnitude as bits, over a network: 1 bit for each in place of 32, with the same results.

Edge-popup's best numbers come from signed constants (Ramanujan et al. 2020, section 4.4): a weight is +c or -c, and its
sign is all there is to read.
"""

from torch import nn

from .nn import MaskedLayer
from .nn.tools import check_unwrapped
from .sharing import Model


def pack_weights(model: Model) -> list[str]:
    """Packs the weight of every masked layer of ``model`` whose elements are all +c or -c, c a number of the layer's,
    to one bit each; returns the names of the layers that were packed or had been. In place.

    Every result has the same bits as before. ``layer.weight`` makes a float tensor for who asks by name; it is no
    parameter any more, so build the optimizer afterwards where it is to hold all of ``model.parameters()``. A
    state_dict has ``weight_signs`` and ``weight_magnitude`` in the weight's place; either kind loads into either.
    ``init.packed_signed_constant_(layer)`` draws packed weights that a state_dict needs a seed for, and no more.

    Other layers stay as they are. Raises ValueError where no layer can be packed, and says why of each; RuntimeError
    inside DistributedDataParallel or fully_shard.

    >>> model = nn.Sequential(ek.FusedSubnetLinear(64, 32, keep=0.5), nn.ReLU(), ek.FusedSubnetLinear(32, 10))
    >>> ek.init.signed_constant_(model[0].weight).abs().unique()
    tensor([0.1768])
    >>> ek.pack_weights(model)
    ['0']
    >>> {name: tuple(t.shape) for name, t in model[0].named_buffers()}
    {'weight_magnitude': (), 'weight_signs': (264,)}
    """
    layers = _layers(model)
    check_unwrapped("pack_weights", list(layers.values()))
    reasons = {name: m._not_packable() for name, m in layers.items() if not m._weight_is_packed()}
    if layers and all(name in reasons and reasons[name] is not None for name in layers):
        why = "; ".join(f"{name or 'the layer'}: {reason}" for name, reason in list(reasons.items())[:4])
        more = f"; and {len(reasons) - 4} more" if len(reasons) > 4 else ""
        raise ValueError(f"model: expected a masked layer whose weights are +c or -c and stand still; {why}{more}")
    for name, reason in reasons.items():
        if reason is None:
            layers[name]._pack_weight()
    return [name for name, m in layers.items() if m._weight_is_packed()]


def unpack_weights(model: Model) -> list[str]:
    """Makes float parameters of the weights that ``pack_weights`` packed, or that were drawn so; returns the names of
    their layers. In place. Raises RuntimeError inside DistributedDataParallel or fully_shard."""
    layers = _layers(model)
    check_unwrapped("unpack_weights", list(layers.values()))
    packed = [name for name, m in layers.items() if m._weight_is_packed()]
    for name in packed:
        layers[name]._unpack_weight()
    return packed


def _layers(model: nn.Module) -> dict[str, MaskedLayer]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    layers = {name: m for name, m in model.named_modules() if isinstance(m, MaskedLayer)}
    if not layers:
        raise ValueError("model: it has no masked layer; expected a converted model, or one built of Fused layers")
    return layers
