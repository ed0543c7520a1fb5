"""The attention of a network taken apart into layers that masks reach, and put together again."""

from typing import Any

from torch import nn

from .nn import SplitAttention
from .nn.attention import joint_parameters, projections
from .nn.tools import check_unwrapped, replaced_forward
from .sharing import Model

_NESTS = "_nests_with_torchs_attention"  # of a TransformerEncoder: what it did before


def split_attention(model: Model) -> list[str]:
    """Makes a ``SplitAttention`` of every ``nn.MultiheadAttention`` of ``model``, in place, whose four projections are
    layers that ``convert`` masks; returns their names.

    To be called before ``convert`` and before the optimizer is built: the projections' parameters are new ones, with
    the values and requires_grad of ``in_proj_weight`` and ``in_proj_bias``. Results are those of torch's module, up to
    rounding. In evaluation torch's transformer layers take no fused path past their attention, nor nested tensors; hand
    in the whole network, for an nn.TransformerEncoder has to know. ``join_attention`` is the way back.

    Raises TypeError for what is no module, ValueError where there is nothing to split, and for attention whose
    parameters are computed (parametrize, torch.nn.utils.prune) or shared with another module, or whose forward was
    replaced; RuntimeError inside DistributedDataParallel or fully_shard. An exception leaves the model as it was.

    >>> model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    >>> ek.split_attention(model)
    ['self_attn']
    >>> _ = ek.convert(model, keep=0.5)
    >>> model.self_attn.v_proj
    FusedSubnetLinear(in_features=16, out_features=16, bias=True, rule=TopK(keep=0.5, of='abs'))
    """
    found = _found(model, nn.MultiheadAttention)
    if not found:
        raise ValueError("model: it has no nn.MultiheadAttention to split")
    check_unwrapped("split_attention", list(found.values()))
    owners = [id(p) for m in model.modules() for p in m._parameters.values() if p is not None]
    for name, attention in found.items():
        subject = f"model: {name or 'it'}"
        if replaced_forward(attention):
            raise ValueError(f"{subject} has a forward of its own, which would not see the projections; take it off")
        held = {**attention._parameters, "out_proj.weight": attention.out_proj._parameters.get("weight")}
        joint = attention.kdim == attention.vdim == attention.embed_dim
        weights = ["out_proj.weight", *(["in_proj_weight"] if joint else [f"{part}_proj_weight" for part in "qkv"])]
        for weight in weights:
            p = held.get(weight)
            if p is None:
                raise ValueError(f"{subject} has a computed {weight}; make a parameter of it first")
            if owners.count(id(p)) > 1:
                raise ValueError(f"{subject} shares its {weight} with another module; untie it first")
    layers = [projections(attention) for attention in found.values()]
    for attention, made in zip(found.values(), layers, strict=True):
        attention.__class__ = SplitAttention
        attention._split(made)
    for encoder in _encoders(model):
        vars(encoder).setdefault(_NESTS, encoder.use_nested_tensor)
        encoder.use_nested_tensor = False  # it would read in_proj_weight
    return list(found)


def join_attention(model: Model) -> list[str]:
    """Makes torch's ``nn.MultiheadAttention`` of every ``SplitAttention`` of ``model`` again, in place; returns their
    names. To be called after ``materialize``: then they have the masked weights, and nothing of this package is left.

    Raises TypeError for what is no module, ValueError where there is nothing to join and where a projection is no
    layer of ``nn.Linear`` with parameters of its own, as a masked one is not; RuntimeError inside
    DistributedDataParallel or fully_shard. An exception leaves the model as it was.

    >>> model = ek.SplitAttention(16, 2)
    >>> ek.join_attention(model)
    ['']
    >>> model.in_proj_weight.shape
    torch.Size([48, 16])
    """
    found = _found(model, SplitAttention)
    if not found:
        raise ValueError("model: it has no SplitAttention to join")
    check_unwrapped("join_attention", list(found.values()))
    for name, attention in found.items():
        layers = {part: getattr(attention, part) for part in ("q_proj", "k_proj", "v_proj", "out_proj")}
        for part, layer in layers.items():
            if type(layer) is not nn.Linear or "weight" not in layer._parameters:
                raise ValueError(
                    f"model: {f'{name}.' if name else ''}{part} is a {type(layer).__name__}; expected nn.Linear with "
                    "a weight of its own: call materialize(model) first, which makes these of masked layers"
                )
        if len({layer.bias is None for layer in layers.values()}) > 1:
            raise ValueError(f"model: {name or 'it'} has a bias in some projections; expected it in all or in none")
    parameters = [joint_parameters(attention) for attention in found.values()]
    for encoder in _encoders(model):
        encoder.use_nested_tensor = encoder.__dict__.pop(_NESTS, encoder.use_nested_tensor)
    for attention, made in zip(found.values(), parameters, strict=True):
        attention._join(made)
    return list(found)


def _found(model: nn.Module, kind: type[nn.Module]) -> dict[str, Any]:
    """The modules of just this class. Subclasses of torch's have projections of their own."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    return {name: m for name, m in model.named_modules() if type(m) is kind}


def _encoders(model: nn.Module) -> list[Any]:
    """The encoders of ``model`` with split attention in their layers."""
    encoders = [m for m in model.modules() if isinstance(m, nn.TransformerEncoder)]
    return [e for e in encoders if any(isinstance(m, SplitAttention) for m in e.modules())]
