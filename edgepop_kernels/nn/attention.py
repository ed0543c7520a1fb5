"""nn.MultiheadAttention with its projections as layers, which can be masked as any others."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Proxy

# Of nn.MultiheadAttention's out_proj: a linear layer that is not to be quantized, as it is read and not called.
_TORCHS_LINEAR = nn.modules.linear.NonDynamicallyQuantizableLinear
_PROJECTIONS = ("q_proj", "k_proj", "v_proj")
_TORCHS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias")


class SplitAttention(nn.MultiheadAttention):
    """Attention as ``nn.MultiheadAttention``'s, whose projections are four layers of ``nn.Linear``, ``q_proj``,
    ``k_proj``, ``v_proj`` and ``out_proj``, in place of parameters that no mask reaches: ``convert`` masks them.

    nn.MultiheadAttention's arguments. ``split_attention(model)`` makes these of a network's own, and
    ``join_attention(model)`` torch's of these. A state_dict of nn.MultiheadAttention loads, ``in_proj_weight`` taken
    apart; one of this has ``q_proj.weight`` and so on.

    >>> attention = ek.convert(ek.SplitAttention(16, 2, batch_first=True), keep=0.5)
    >>> x = torch.randn(4, 7, 16)
    >>> attention(x, x, x, need_weights=False)[0].shape
    torch.Size([4, 7, 16])
    """

    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._split(projections(self))

    def _split(self, layers: Mapping[str, nn.Linear]) -> None:
        """Takes the ``projections`` of torch's module, which this was, in its parameters' place."""
        for name in _TORCHS:
            self.register_parameter(name, None)
        for name, layer in layers.items():
            setattr(self, name, layer)
        if type(self.out_proj) is _TORCHS_LINEAR:
            self.out_proj.__class__ = nn.Linear  # type: ignore[assignment]  # whose subclass it is

    def _join(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Takes ``joint_parameters`` in the projections' place, and is torch's module."""
        for name in _PROJECTIONS:
            delattr(self, name)
        self.__class__ = nn.MultiheadAttention  # type: ignore[assignment]  # none of ours any more
        for name, p in parameters.items():
            setattr(self, name, p)
        self.out_proj.__class__ = _TORCHS_LINEAR

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attention as nn.MultiheadAttention's, of as many heads.

        query                 (L, N, embed_dim), with batch_first (N, L, embed_dim), or (L, embed_dim); float32,
                              bfloat16 or float16
        key                   (S, N, kdim), (N, S, kdim) or (S, kdim), in query's dtype
        value                 the same of vdim
        key_padding_mask      (N, S) or (S): bool, True where a key is left out, or floats that are added
        need_weights          whether to return the weights too; without, torch's fused attention is taken
        attn_mask             (L, S) or (N * num_heads, L, S), as key_padding_mask
        average_attn_weights  whether weights are returned as their mean over the heads
        is_causal             says that attn_mask is the causal one
        returns               (output, weights): the output as query, under autocast in its dtype; None, or weights of
                              (N, L, S), of (N, num_heads, L, S), for one sequence without N

        Raises TypeError or ValueError for what does not fit.
        """
        if isinstance(query, Proxy):
            how = (key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal)
            tracer: Any = query.tracer
            proxy: Any = tracer.create_proxy("call_module", tracer.path_of_module(self), (query, key, value, *how), {})
            return proxy[0], proxy[1]
        self._check(query, key, value)
        one, sequence = query.dim() == 2, 1 if self.batch_first and query.dim() == 3 else 0
        q, k, v = (
            self._heads(layer(x), one, sequence)
            for layer, x in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )
        if is_causal and attn_mask is None:
            raise ValueError("is_causal: it says what attn_mask is; expected one, got None")
        causal = is_causal and key_padding_mask is None and not need_weights
        padding = (k.shape[2],) if one else (k.shape[0], k.shape[2])
        mask = self._mask(q, k, None if causal else attn_mask, key_padding_mask, padding, query.dtype)
        k, v, mask = self._longer(k, v, mask)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            products = (q * (1 / math.sqrt(self.head_dim))) @ k.transpose(-2, -1)
            weights = F.dropout(F.softmax(products if mask is None else products + mask, dim=-1), dropout)
            y = weights @ v
            weights = weights.mean(dim=1) if average_attn_weights else weights
            weights = weights[0] if one else weights
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask, dropout, causal)
        y = y.permute(0, 2, 1, 3) if sequence == 1 else y.permute(2, 0, 1, 3)
        y = y.reshape(*y.shape[:2], self.embed_dim)
        output: torch.Tensor = self.out_proj(y[:, 0] if one else y)
        return output, weights

    def _check(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        named = (("query", query, self.embed_dim), ("key", key, self.kdim), ("value", value, self.vdim))
        for name, x, dim in named:
            if x.is_nested:
                raise TypeError(f"{name}: expected a padded batch and its key_padding_mask, got a nested tensor")
            if x.dim() not in (2, 3) or x.dim() != query.dim() or x.shape[-1] != dim:
                shape = f"(sequence, batch, {dim}), batch first where that is so, or (sequence, {dim})"
                alike = "" if name == "query" else ", as many dimensions as query"
                raise ValueError(f"{name}: expected {shape}{alike}, got {tuple(x.shape)}")
        if key.shape[:-1] != value.shape[:-1]:
            raise ValueError(
                f"value: expected key's {tuple(key.shape[:-1])} of sequences, got {tuple(value.shape[:-1])}"
            )
        batch = 0 if self.batch_first else 1
        if query.dim() == 3 and query.shape[batch] != key.shape[batch]:
            raise ValueError(f"key: expected query's batch of {query.shape[batch]}, got {key.shape[batch]}")

    def _heads(self, x: torch.Tensor, one: bool, sequence: int) -> torch.Tensor:
        """A projection as (N, num_heads, sequence, head_dim), a view."""
        x = (x[:, None] if one else x).unflatten(-1, (self.num_heads, self.head_dim))
        return x.permute(0, 2, 1, 3) if sequence == 1 else x.permute(1, 2, 0, 3)

    def _mask(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        attn_mask: torch.Tensor | None,
        key_padding_mask: torch.Tensor | None,
        padding: tuple[int, ...],
        dtype: torch.dtype,
    ) -> torch.Tensor | None:
        """What is added to the products of queries and keys, that (N, num_heads, L, S) broadcasts with; None for
        nothing. padding: the shape that key_padding_mask has to have. Raises TypeError or ValueError."""
        (batch, heads, length), keys = q.shape[:3], k.shape[2]
        masks = []
        if attn_mask is not None:
            allowed = {
                (length, keys): (1, 1, length, keys),
                (batch * heads, length, keys): (batch, heads, length, keys),
            }
            masks.append(_added("attn_mask", attn_mask, allowed, dtype))
        if key_padding_mask is not None:
            masks.append(_added("key_padding_mask", key_padding_mask, {padding: (batch, 1, 1, keys)}, dtype))
        return sum(masks[1:], masks[0]) if masks else None

    def _longer(
        self, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Keys and values with the further one that is learned (add_bias_kv) and that of zeros (add_zero_attn)."""
        batch, heads = k.shape[:2]
        if self.bias_k is not None and self.bias_v is not None:
            further = [
                b.to(k.dtype).view(1, heads, 1, -1).expand(batch, -1, -1, -1) for b in (self.bias_k, self.bias_v)
            ]
            k, v = torch.cat([k, further[0]], dim=2), torch.cat([v, further[1]], dim=2)
            mask = None if mask is None else F.pad(mask, (0, 1))
        if self.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
            mask = None if mask is None else F.pad(mask, (0, 1))
        return k, v, mask

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Loads as torch does, and takes apart what nn.MultiheadAttention has saved."""
        for kind in ("weight", "bias"):
            joint = state_dict.pop(f"{prefix}in_proj_{kind}", None)
            parts = [None] * 3 if joint is None else joint.chunk(3)
            for name, part in zip(_PROJECTIONS, parts, strict=True):
                part = state_dict.pop(f"{prefix}{name}_{kind}", part)
                if part is not None:
                    state_dict[f"{prefix}{name}.{kind}"] = part
        super()._load_from_state_dict(state_dict, prefix, *args)


def projections(attention: nn.MultiheadAttention) -> dict[str, nn.Linear]:
    """Layers with copies of the parameters that torch's module projects by."""
    weights = [attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight]
    if attention.in_proj_weight is not None:
        weights = _parts(attention.in_proj_weight)
    biases = [None] * 3 if attention.in_proj_bias is None else _parts(attention.in_proj_bias)
    made = {}
    for name, weight, bias in zip(_PROJECTIONS, weights, biases, strict=True):
        made[name] = layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
        layer.weight, layer.bias = _joint([weight]), None if bias is None else _joint([bias])
    return made


def joint_parameters(attention: SplitAttention) -> dict[str, nn.Parameter]:
    """The parameters by which torch's module projects as ``attention`` does, by name: copies."""
    layers = {name: getattr(attention, name) for name in _PROJECTIONS}
    if attention.kdim == attention.vdim == attention.embed_dim:
        made = {"in_proj_weight": _joint([layer.weight for layer in layers.values()])}
    else:
        made = {f"{name}_weight": _joint([layer.weight]) for name, layer in layers.items()}
    if attention.q_proj.bias is not None:
        made["in_proj_bias"] = _joint([layer.bias for layer in layers.values()])
    return made


def _parts(joint: nn.Parameter) -> list[nn.Parameter]:
    return [nn.Parameter(part, joint.requires_grad) for part in joint.detach().chunk(3)]


def _joint(parts: Sequence[nn.Parameter]) -> nn.Parameter:
    """A copy."""
    return nn.Parameter(torch.cat([p.detach() for p in parts]), any(p.requires_grad for p in parts))


def _added(
    name: str, mask: torch.Tensor, allowed: Mapping[tuple[int, ...], tuple[int, ...]], dtype: torch.dtype
) -> torch.Tensor:
    """A mask as what is added: -inf where a bool one leaves out. allowed: shapes, and what becomes of them."""
    shape = tuple(mask.shape)
    if shape not in allowed:
        raise ValueError(f"{name}: expected {' or '.join(map(str, allowed))}, got {shape}")
    if mask.dtype is torch.bool:
        mask = torch.zeros(shape, dtype=dtype, device=mask.device).masked_fill_(mask, -math.inf)
    elif not mask.is_floating_point():
        raise TypeError(f"{name}: expected bool or floats, got {mask.dtype}")
    return mask.view(allowed[shape])
