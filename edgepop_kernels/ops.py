"""The ops ``torch.ops.edgepop.*``: schemas, shapes, and the way to a backend. No arithmetic.

Common arguments
  weight, scores   (out, in) or (out, in/groups, kh, kw); weight float32 or of the activations' dtype; scores float32,
                   or, where of == "bits", the packed mask (``reference.pack_mask``)
  cut              int64 [2] of ``select``; None where of == "bits", and in ``_dw`` where the mask is not needed:
                   a drawn mask is in bits, its score gradient needs the scores alone
  of               "abs", "raw", "sigmoid": which function of the scores is ranked and differentiated; "bits"
  score_grad       whether dS = dW_eff * W * map'(S) is asked for
  weight_grad      "none", "kept" (dW = dW_eff * M) or "all" (dW = dW_eff)
  channels_last    the memory format of the result
  signs            None, or those of a weight of one magnitude, packed as masks are, a 1 for a negative element: then
                   weight is that number, expanded to the weight's shape, and weight_grad "none"
  score_signs      None, or those of scores whose of is "abs", as ``Cut.planes`` has them: what dS needs of the scores
                   in an eighth of a byte; a backend may read the scores all the same

``draw`` packs a Bernoulli mask of the scores; seed is an int64 scalar tensor on their device. ``mask_bits`` packs the
mask of a cut, ``group_bits`` that of the ``kept`` best of every ``group`` scores in a row along ``dim``, at least 0.
``block_sums`` adds up |s|, or s ("raw"), over blocks of so many scores in each dimension, whole ones; ``block_bits``
packs the mask of the blocks whose sums a cut keeps.
``_dx`` is the gradient to the input, ``_dw`` the pair (dS, dW), an empty tensor for the one not asked for.

``select_moving`` is ``select`` for compiled forwards whose keep changes: the fraction removed, of each layer a float64
scalar on the CPU, and the names of the rules say how many are kept; beside an empty name it is the number kept.

``_update`` is no op of torch's: a backend may have it beside ``_dw``, to carry out an optimizer's update of the scores
(``optim.step.Update``, in score_grad's place) while dS leaves the accumulators. It returns dW, or None.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch

from . import flops, torch_private
from .backend import beside, implementation
from .masks import packed_bytes
from .rules import Percentile, Ranked, TopK

_library = torch.library.Library("edgepop", "DEF")

_MASK = "Tensor weight, Tensor scores, Tensor? cut, str of"
_GEOMETRY = "int[2] stride, int[2] padding, int[2] dilation, int groups"
_GRADS = "bool score_grad, str weight_grad"
_SIGNS = "Tensor? signs=None"
_SCORE_SIGNS = "Tensor? score_signs=None"

SCHEMAS = {
    "select": "(Tensor[] scores, int[] kept, str[] of, Tensor? hint) -> Tensor",
    "draw": "(Tensor scores, Tensor seed) -> Tensor",
    "mask_bits": "(Tensor scores, Tensor cut, str of) -> Tensor",
    "group_bits": "(Tensor scores, int kept, int group, int dim, str of) -> Tensor",
    "block_sums": "(Tensor scores, int[] block, str of) -> Tensor",
    "block_bits": "(Tensor sums, Tensor cut, int[] block) -> Tensor",
    "masked_linear": f"(Tensor x, {_MASK}, Tensor? bias, {_SIGNS}) -> Tensor",
    "masked_linear_dx": f"(Tensor dy, {_MASK}, {_SIGNS}) -> Tensor",
    "masked_linear_dw": f"(Tensor dy, Tensor x, {_MASK}, {_GRADS}, {_SIGNS}, {_SCORE_SIGNS}) -> (Tensor, Tensor)",
    "masked_conv2d": f"(Tensor x, {_MASK}, Tensor? bias, {_GEOMETRY}, bool channels_last, {_SIGNS}) -> Tensor",
    "masked_conv2d_dx": f"(Tensor dy, {_MASK}, SymInt[] x_size, {_GEOMETRY}, bool channels_last, {_SIGNS}) -> Tensor",
    "masked_conv2d_dw": (
        f"(Tensor dy, Tensor x, {_MASK}, {_GRADS}, {_GEOMETRY}, {_SIGNS}, {_SCORE_SIGNS}) -> (Tensor, Tensor)"
    ),
}


_has_autocast = functools.cache(torch.amp.is_autocast_available)


def autocasts(device: str) -> bool:
    """Whether autocast is on for devices of this type; some, like meta, have none."""
    return _has_autocast(device) and torch.is_autocast_enabled(device)


def _routed(op: str) -> Callable[..., Any]:
    def kernel(first: torch.Tensor | list[torch.Tensor], *args: Any) -> Any:
        tensor = first[0] if isinstance(first, (list, tuple)) else first  # whose device and type decide who runs the op
        run = implementation(op, tensor)
        device = tensor.device.type
        if not autocasts(device):
            return run(first, *args)
        # The dtypes are settled above this op; a backend built from torch's own ops must not have them cast again.
        with torch.autocast(device, enabled=False):
            return run(first, *args)

    return kernel


def _fake_select(
    scores: list[torch.Tensor], kept: list[int] | None, of: list[str], hint: torch.Tensor | None
) -> torch.Tensor:
    return scores[0].new_empty(len(scores), 2, dtype=torch.int64)


def _fake_bits(scores: torch.Tensor, *_: object) -> torch.Tensor:
    return scores.new_empty(packed_bytes(scores.numel()), dtype=torch.uint8)


def _fake_block_sums(scores: torch.Tensor, block: Sequence[int], of: str) -> torch.Tensor:
    return scores.new_empty([n // size for n, size in zip(scores.shape, block, strict=True)])


def _fake_block_bits(sums: torch.Tensor, cut: torch.Tensor, block: Sequence[int]) -> torch.Tensor:
    return sums.new_empty(packed_bytes(sums.numel() * math.prod(block)), dtype=torch.uint8)


def _fake_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor,
    cut: torch.Tensor | None,
    of: str,
    bias: torch.Tensor | None,
    signs: torch.Tensor | None = None,
) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _fake_linear_dx(
    dy: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor,
    cut: torch.Tensor | None,
    of: str,
    signs: torch.Tensor | None = None,
) -> torch.Tensor:
    return dy.new_empty(*dy.shape[:-1], weight.shape[1])


def _fake_dw(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor,
    cut: torch.Tensor | None,
    of: str,
    score_grad: bool,
    weight_grad: str,
    *geometry: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    ds = torch.empty_like(scores) if score_grad else weight.new_empty(0)
    dw = torch.empty_like(weight) if weight_grad != "none" else weight.new_empty(0)
    return ds, dw


def _image(like: torch.Tensor, size: Sequence[int], channels_last: bool) -> torch.Tensor:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=memory_format)


def _fake_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor,
    cut: torch.Tensor | None,
    of: str,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    channels_last: bool,
    signs: torch.Tensor | None = None,
) -> torch.Tensor:
    out = (
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    )
    return _image(x, (x.shape[0], weight.shape[0], *out), channels_last)


def _fake_conv2d_dx(
    dy: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor,
    cut: torch.Tensor | None,
    of: str,
    x_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    channels_last: bool,
    signs: torch.Tensor | None = None,
) -> torch.Tensor:
    return _image(dy, x_size, channels_last)


_FAKES: dict[str, Callable[..., Any]] = {
    "select": _fake_select,
    "draw": _fake_bits,
    "mask_bits": _fake_bits,
    "group_bits": _fake_bits,
    "block_sums": _fake_block_sums,
    "block_bits": _fake_block_bits,
    "masked_linear": _fake_linear,
    "masked_linear_dx": _fake_linear_dx,
    "masked_linear_dw": _fake_dw,
    "masked_conv2d": _fake_conv2d,
    "masked_conv2d_dx": _fake_conv2d_dx,
    "masked_conv2d_dw": _fake_dw,
}

for _name, _schema in SCHEMAS.items():
    _library.define(_name + _schema, tags=torch.Tag.pt2_compliant_tag)
    _library.impl(_name, _routed(_name), "CompositeExplicitAutograd")
    torch.library.register_fake(f"edgepop::{_name}", _FAKES[_name], lib=_library)


NO_VMAP = "vmap: masked products and masks have no batching rule; pass the batch as a dimension of x, or loop over it"


def _refuse_vmap(info: object, in_dims: object, *args: object) -> NoReturn:
    raise NotImplementedError(NO_VMAP)


# The first op of a masked layer's; what else there is torch loops over, as in jacrev.
for _name in ("select", "draw", "group_bits", "block_sums"):
    torch.library.register_vmap(f"edgepop::{_name}", _refuse_vmap, lib=_library)


def _select_moving(
    scores: list[torch.Tensor], removed: list[torch.Tensor], rules: list[str], of: list[str], hint: torch.Tensor | None
) -> torch.Tensor:
    kept = [
        COUNTS[name].removing(number.item()).kept(s.numel()) if name else int(number.item())
        for name, number, s in zip(rules, removed, scores, strict=True)
    ]
    return _select_kernel(scores, kept, of, hint)


COUNTS: dict[str, type[Ranked]] = {kind.__name__: kind for kind in (TopK, Percentile)}
_select_kernel: Callable[..., torch.Tensor] = _routed("select")
_library.define(
    "select_moving(Tensor[] scores, Tensor[] removed, str[] rules, str[] of, Tensor? hint) -> Tensor",
    # A CUDA graph would hold on to the number that was in removed when it was captured.
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.cudagraph_unsafe),
)
_library.impl("select_moving", _select_moving, "CompositeExplicitAutograd")
torch.library.register_fake(
    "edgepop::select_moving",
    lambda scores, removed, rules, of, hint: _fake_select(scores, None, of, hint),
    lib=_library,
)

_FLOPS: dict[torch._ops.OpOverloadPacket[..., Any], Callable[..., int]] = {
    torch.ops.edgepop.masked_linear: flops.linear,
    torch.ops.edgepop.masked_linear_dx: flops.linear,
    torch.ops.edgepop.masked_linear_dw: flops.linear_dw,
    torch.ops.edgepop.masked_conv2d: flops.conv2d,
    torch.ops.edgepop.masked_conv2d_dx: flops.conv2d_dx,
    torch.ops.edgepop.masked_conv2d_dw: flops.conv2d_dw,
}


def _entry(op: str) -> Callable[..., Any]:
    """The op as this package calls it: straight to its kernel where nobody watches and every operand is plain memory.
    Else torch's dispatcher is asked, which has an answer for whatever tensor it is given.

    The dispatcher's way to a kernel in Python is long, and cold between the products of a training step, whose data
    have emptied the caches: 120 to 350 us in all of a convolution's step of 3.5 to 10 ms, forward and backward.
    """
    registered, kernel = getattr(torch.ops.edgepop, op).default, _routed(op)
    tensors, plain = torch_private.tensor_arguments(registered), torch_private.PLAIN

    def call(*args: Any) -> Any:
        if torch_private.watched():
            torch_private.tell_flop_counters(_FLOPS)
            return registered(*args)
        if torch_private.profiled():
            return registered(*args)
        first = args[0]
        if type(first) is list:
            for t in first:
                if type(t) not in plain or t.is_neg() or t._is_zerotensor():
                    return registered(*args)
            first = first[0]
        for i in tensors:  # torch_private.plain in a loop: half the time, of which every layer and pass takes its share
            if i >= len(args):  # the last of them, of signs, may be left out
                break
            t = args[i]
            if t is not None and (type(t) not in plain or t.is_neg() or t._is_zerotensor()):
                return registered(*args)
        device = first.device.type
        if _has_autocast(device) and torch.is_autocast_enabled(device):
            return kernel(*args)
        return implementation(op, first)(*args)

    return call


def update_of(op: str, *operands: torch.Tensor) -> Callable[..., torch.Tensor | None] | None:
    """The ``_update`` of ``op``, masked_linear or masked_conv2d, of the backend that runs its ``_dw``; None where that
    has none, or torch must see the call. operands: dy, x and the weight."""
    if torch_private.watched() or not all(map(torch_private.plain, operands)):
        return None
    return beside(f"{op}_dw", f"{op}_update", operands[0])


def select_planes(
    scores: list[torch.Tensor],
    kept: list[int],
    of: list[str],
    hint: torch.Tensor | None,
    wanted: Sequence[bool],
) -> tuple[torch.Tensor, Sequence[torch.Tensor | None]]:
    """``select``, and for each layer the planes of ``Cut`` where they are ``wanted`` and the backend's pass over the
    scores writes them; None elsewhere, and where torch must see the call or a profiler wants to list it."""
    if not (torch_private.watched() or torch_private.profiled()):
        write = beside("select", "select_planes", scores[0])
        for s in scores:  # torch_private.plain in a loop, as in _entry
            if type(s) not in torch_private.PLAIN or s.is_neg() or s._is_zerotensor():
                write = None
        if write is not None:
            cuts, planes = write(scores, kept, of, hint, wanted)
            return cuts, planes
    return select(scores, kept, of, hint), [None] * len(scores)


select: Callable[..., torch.Tensor] = _entry("select")
select_moving: Callable[..., torch.Tensor] = torch.ops.edgepop.select_moving.default
draw: Callable[..., torch.Tensor] = _entry("draw")
mask_bits: Callable[..., torch.Tensor] = _entry("mask_bits")
group_bits: Callable[..., torch.Tensor] = _entry("group_bits")
block_sums: Callable[..., torch.Tensor] = _entry("block_sums")
block_bits: Callable[..., torch.Tensor] = _entry("block_bits")
masked_linear: Callable[..., torch.Tensor] = _entry("masked_linear")
masked_linear_dx: Callable[..., torch.Tensor] = _entry("masked_linear_dx")
masked_linear_dw: Callable[..., tuple[torch.Tensor, torch.Tensor]] = _entry("masked_linear_dw")
masked_conv2d: Callable[..., torch.Tensor] = _entry("masked_conv2d")
masked_conv2d_dx: Callable[..., torch.Tensor] = _entry("masked_conv2d_dx")
masked_conv2d_dw: Callable[..., tuple[torch.Tensor, torch.Tensor]] = _entry("masked_conv2d_dw")
