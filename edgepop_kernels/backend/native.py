"""The C++ kernels of csrc/ on CPU tensors: takes addresses and strides, calls edgepop_kernels._native.

Images, matrices and weights are not copied: the kernels read any strides. A linear layer is the 1x1 convolution whose
image is one row of pixels.
"""

import functools
import importlib
import math
from collections.abc import Callable, Sequence

import torch

from .. import torch_private
from ..masks import packed_bytes

_DTYPE = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_OF = {"abs": 0, "raw": 1, "sigmoid": 1, "bits": 2}
_SCORE_MAP = {"abs": 0, "raw": 1, "sigmoid": 2, "bits": 1}
_WEIGHT_GRAD = {"none": 0, "kept": 1, "all": 2}
_BITS = _OF["bits"]
_ABSENT = (0, 0, (0, 0, 0, 0))

try:
    # torch is imported above: its OpenMP runtime is in the process, and the module joins that one pool.
    _native = importlib.import_module("edgepop_kernels._native")
    _missing = None
except ImportError as error:
    _native = None
    _missing = f"the compiled module did not load ({error}); install with `pip install .` where a C++ compiler is"


def not_loaded() -> str | None:
    """Why there is no compiled module."""
    return _missing


def misset() -> str | None:
    """Why the instruction set that EDGEPOP_ISA names cannot be had: something to tell the user, not to work around."""
    if _native is None:
        return None
    try:
        _native.isa()
    except RuntimeError as error:
        return str(error)
    return None


def unavailable() -> str | None:
    return not_loaded() or misset()


def refuses(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cpu":
        return f"it runs on CPU tensors and got one on {device}"
    if dtype not in _DTYPE:
        return f"it computes float32, bfloat16 and float16, and got {dtype}"
    return None


def select(scores, kept, of, hint):
    return select_planes(scores, kept, of, hint, [False] * len(scores))[0]


def select_planes(scores, kept, of, hint, wanted):
    """The cuts, and beside each the planes of its layer (``Cut``): the pass that finds a cut writes mask and signs too,
    where they are wanted and the scores lie in logical order."""
    cuts, planes = torch.empty(len(scores), 2, dtype=torch.int64), []
    hint = None if hint is None else hint.contiguous()
    hints = [0] * len(scores) if hint is None else range(hint.data_ptr(), hint.data_ptr() + 16 * len(scores), 16)
    for s in scores:
        if s.dim() > 4:  # held until the call is over
            scores = [s if s.dim() <= 4 else s.reshape(-1) for s in scores]
            break
    into, rankings = cuts.data_ptr(), []
    for s, m, kind, start, wants in zip(scores, kept, of, hints, wanted, strict=True):
        bits, ranking = _ranking(s, m, kind, into, start, wants)
        planes.append(bits)
        rankings.append(ranking)
        into += 16
    _native.select(rankings, torch.get_num_threads())
    return cuts, planes


_packed_bytes = functools.cache(packed_bytes)


def _ranking(scores, kept, of, cut, hint, wants):
    """The planes of a layer to be ranked, and what the module is told of it. Planes lie in logical order: there are
    none where the scores do not, nor where they are not wanted. cut, hint: addresses."""
    lead = 4 - scores.dim()
    size, stride = (1,) * lead + tuple(scores.shape), (0,) * lead + scores.stride()
    planes, mask, signs = None, 0, 0
    if wants and scores.is_contiguous():
        plane = _packed_bytes(scores.numel())
        planes = torch.empty(2 if of == "abs" else 1, plane, dtype=torch.uint8)
        mask = planes.data_ptr()
        if of == "abs":  # else the gradient has no sign of the scores in it
            signs = mask + plane
    return planes, (scores.data_ptr(), size, stride, _OF[of], kept, cut, hint, mask, signs)


def _sequence(scores):
    """Sizes and strides of four dimensions."""
    lead = 4 - scores.dim()
    return (1,) * lead + tuple(scores.shape), (0,) * lead + scores.stride()


def fingerprint(scores: Sequence[torch.Tensor]) -> Callable[[], object] | None:
    """A function that makes something to compare of all the scores where they lie, which most writes of one change; to
    be called while they lie there. None where it cannot be had at once: on a GPU, of more than four dimensions, of what
    is no plain memory, and without the native module."""
    if _native is None:
        return None
    looks = []
    for s in scores:
        lead = 4 - s.dim()
        if s.device.type != "cpu" or lead < 0 or type(s) not in torch_private.PLAIN or s.is_neg() or s._is_zerotensor():
            return None
        size, stride = (1,) * lead + tuple(s.shape), (0,) * lead + s.stride()
        looks.append(functools.partial(_native.fingerprint, s.data_ptr(), size, stride))
    return looks[0] if len(looks) == 1 else lambda: [look() for look in looks]


def step(updates, rankings):
    """Carries out each Update in place; the cuts and planes of the first of them, which are scores, each by its
    Ranking."""
    cuts = torch.empty(len(rankings), 2, dtype=torch.int64)
    parameters, layers, planes, into = [], [], [], cuts.data_ptr()
    for value, grad, moments, coefficients in updates:
        addresses = [0, 0, 0]
        for i, moment in enumerate(moments):
            addresses[i] = moment.data_ptr()
        parameters.append((value.data_ptr(), grad.data_ptr(), addresses, value.numel(), coefficients[:2]))
    for (value, *_), (kept, of, hint, wants) in zip(updates, rankings, strict=False):  # those that are scores first
        bits, layer = _ranking(value, kept, of, into, 0 if hint is None else hint.data.data_ptr(), wants)
        planes.append(bits)
        layers.append(layer)
        into += 16
    _native.step(parameters, layers, torch.get_num_threads())
    return cuts, planes


def _addresses(moments):
    return [m.data_ptr() for m in moments] + [0] * (3 - len(moments))


def draw(scores, seed):
    bits = torch.empty(packed_bytes(scores.numel()), dtype=torch.uint8)
    s = scores if scores.dim() <= 4 else scores.reshape(-1)
    _native.draw(s.data_ptr(), *_sequence(s), seed.data_ptr(), bits.data_ptr(), torch.get_num_threads())
    return bits


def mask_bits(scores, cut, of):
    bits = torch.empty(packed_bytes(scores.numel()), dtype=torch.uint8)
    s = scores if scores.dim() <= 4 else scores.reshape(-1)
    cut = cut.contiguous()
    _native.mask_bits(s.data_ptr(), *_sequence(s), _OF[of], cut.data_ptr(), bits.data_ptr(), torch.get_num_threads())
    return bits


def group_bits(scores, kept, group, dim, of):
    bits = torch.empty(packed_bytes(scores.numel()), dtype=torch.uint8)
    apart = max(math.prod(scores.shape[dim + 1 :]), 1)  # without elements there is no group, however far apart
    s = scores if scores.dim() <= 4 else scores.reshape(-1)
    groups = group, kept, apart
    _native.group_bits(s.data_ptr(), *_sequence(s), _OF[of], groups, bits.data_ptr(), torch.get_num_threads())
    return bits


def block_sums(scores, block, of):
    counts, sizes = _blocks([n // size for n, size in zip(scores.shape, block, strict=True)], block)
    sums = torch.empty(counts[: scores.dim()], dtype=torch.float32)
    s = scores if scores.dim() <= 4 else scores.reshape(-1)
    threads = torch.get_num_threads()
    _native.block_sums(s.data_ptr(), *_sequence(s), _OF[of], counts, sizes, sums.data_ptr(), threads)
    return sums


def block_bits(sums, cut, block):
    bits = torch.empty(packed_bytes(sums.numel() * math.prod(block)), dtype=torch.uint8)
    sums, cut = sums.contiguous(), cut.contiguous()
    blocks = _blocks(sums.shape, block)
    _native.block_bits(sums.data_ptr(), cut.data_ptr(), *blocks, bits.data_ptr(), torch.get_num_threads())
    return bits


def _blocks(counts, sizes):
    """As five dimensions, the number of blocks in each and their size."""
    behind = (1,) * (5 - len(counts))
    return (*counts, *behind), (*sizes, *behind)


def masked_linear(x, weight, scores, cut, of, bias, signs=None):
    return plan_linear(x, weight, scores, of).forward(x, weight, scores, cut, bias, signs=signs)


def masked_linear_dx(dy, weight, scores, cut, of, signs=None):
    x = torch.empty(*dy.shape[:-1], weight.shape[1], dtype=dy.dtype, device="meta")
    return plan_linear(x, weight, scores, of).dx(dy, weight, scores, cut, signs=signs)


def masked_linear_dw(dy, x, weight, scores, cut, of, score_grad, weight_grad, signs=None, score_signs=None):
    plan = plan_linear(x, weight, scores, of)
    return _of_both(weight, *plan.dw(dy, x, weight, scores, cut, score_grad, weight_grad, signs=signs))


def masked_linear_update(dy, x, weight, scores, cut, of, update, weight_grad, signs=None):
    return plan_linear(x, weight, scores, of).update(dy, x, weight, scores, cut, update, weight_grad, signs)


def masked_conv2d(x, weight, scores, cut, of, bias, stride, padding, dilation, groups, channels_last, signs=None):
    plan = plan_conv2d(x, weight, scores, of, stride, padding, dilation, groups, y_channels_last=channels_last)
    return plan.forward(x, weight, scores, cut, bias, signs=signs)


def masked_conv2d_dx(dy, weight, scores, cut, of, x_size, stride, padding, dilation, groups, channels_last, signs=None):
    x = torch.empty(x_size, dtype=dy.dtype, device="meta", memory_format=_format(channels_last))
    plan = plan_conv2d(x, weight, scores, of, stride, padding, dilation, groups, x_channels_last=channels_last)
    return plan.dx(dy, weight, scores, cut, signs=signs)


def masked_conv2d_dw(
    dy,
    x,
    weight,
    scores,
    cut,
    of,
    score_grad,
    weight_grad,
    stride,
    padding,
    dilation,
    groups,
    signs=None,
    score_signs=None,
):
    plan = plan_conv2d(x, weight, scores, of, stride, padding, dilation, groups)
    return _of_both(weight, *plan.dw(dy, x, weight, scores, cut, score_grad, weight_grad, signs=signs))


def masked_conv2d_update(
    dy, x, weight, scores, cut, of, update, weight_grad, stride, padding, dilation, groups, signs=None
):
    plan = plan_conv2d(x, weight, scores, of, stride, padding, dilation, groups)
    return plan.update(dy, x, weight, scores, cut, update, weight_grad, signs)


def _of_both(weight, ds, dw):
    """(dS, dW), an empty tensor for the one not asked for."""
    return tuple(weight.new_empty(0) if t is None else t for t in (ds, dw))


def plan_linear(x, weight, scores, of):
    """The plan of ``masked_linear`` for operands like these."""
    out_features, in_features = weight.shape
    rows = x.numel() // in_features if in_features else math.prod(x.shape[:-1])
    geometry = (1, 1, in_features, 1, rows, out_features, 1, rows, 1, 1, 1, 1, 0, 0, 1, 1)
    return Plan(x, weight, scores, of, geometry, (*x.shape[:-1], out_features))


def plan_conv2d(
    x, weight, scores, of, stride, padding, dilation, groups, *, x_channels_last=False, y_channels_last=False
):
    """The plan of ``masked_conv2d`` for operands like these; x_, y_channels_last: the memory formats of dx and y."""
    batch, in_channels, in_h, in_w = x.shape
    out_channels, _, kernel_h, kernel_w = weight.shape
    out_h = (in_h + 2 * padding[0] - dilation[0] * (kernel_h - 1) - 1) // stride[0] + 1
    out_w = (in_w + 2 * padding[1] - dilation[1] * (kernel_w - 1) - 1) // stride[1] + 1
    sizes = (batch, groups, in_channels, in_h, in_w, out_channels, out_h, out_w, kernel_h, kernel_w)
    geometry = (*sizes, *stride, *padding, *dilation)
    formats = _format(x_channels_last), _format(y_channels_last)
    return Plan(x, weight, scores, of, geometry, (batch, out_channels, out_h, out_w), *formats)


class Plan:
    """A masked product of operands of given shapes, strides and dtypes: what no call of it has to find out again.

    scores: float32, or the packed mask where of == "bits". Made by ``plan_linear`` and ``plan_conv2d``. A call asks for
    addresses and goes to the kernel: one frame of Python each, as small networks feel every one.

    Calls take ``signs``, packed as a mask is, of a weight that is one number expanded: element i is minus the number
    where bit i is set. Their products read the mask as bits alone, which are made where the call brings none.
    """

    __slots__ = (
        *("dtype", "ds_stride", "dw_stride", "dx_stride", "flat", "geometry", "mask", "of", "planes", "score_signs"),
        *("w", "x", "x_format", "x_size", "y_format", "y_size", "y_stride"),
    )

    def __init__(
        self,
        x,
        weight,
        scores,
        of,
        geometry,
        y_size,
        x_format=torch.contiguous_format,
        y_format=torch.contiguous_format,
    ):
        linear = weight.dim() == 2
        self.geometry, self.of, self.flat = geometry, of, linear and x.dim() != 2
        self.dtype, self.x_size, self.x_format, self.y_size, self.y_format = (
            x.dtype,
            x.shape,
            x_format,
            y_size,
            y_format,
        )
        self.x = _DTYPE[x.dtype], _image((_matrix(x) if linear else x).stride())
        self.w = _DTYPE[weight.dtype], _four(weight.stride())
        self.mask = _OF[of], _ABSENT[2] if of == "bits" else _four(scores.stride())
        # Planes lie in logical order, as signs do; a weight that does not would have its bits looked up one by one.
        in_order = weight.is_contiguous() or not any(weight.stride())
        self.planes = of != "bits" and in_order and scores.is_contiguous()
        self.score_signs = packed_bytes(scores.numel()) if self.planes and of == "abs" else None
        # Of outputs as they are made here: rows without gaps, or images of the format.
        self.dx_stride = (0, 1, 0, geometry[2]) if linear else _strides(x.shape, x_format)
        self.y_stride = (0, 1, 0, geometry[5]) if linear else _strides(y_size, y_format)
        self.ds_stride, self.dw_stride = (_four(torch.empty_like(t, device="meta").stride()) for t in (scores, weight))

    def forward(self, x, weight, scores, cut, bias, y=None, planes=None, signs=None):
        """y: where to write, in place of a new tensor of the plan's size and format. planes: of the cut, to be read in
        the scores' place."""
        if self.flat:
            x = _matrix(x)
        if bias is not None and (bias.dtype is not torch.float32 or not bias.is_contiguous()):
            bias = bias.to(torch.float32).contiguous()
        y_stride = self.y_stride
        if y is None:
            y = torch.empty(self.y_size, dtype=self.dtype, memory_format=self.y_format)
        else:
            y_stride = y.stride()
        bits = planes if self.planes else None
        if signs is not None and bits is None and self.of != "bits":
            bits = mask_bits(scores, cut, self.of)
        if bits is not None:
            mask = _BITS, bits.data_ptr(), _ABSENT[2], 0, 0
        else:
            of, stride = self.mask
            mask = of, scores.data_ptr(), stride, 0 if cut is None else cut.data_ptr(), 0
        _native.conv_forward(
            self.geometry,
            (x.data_ptr(), *self.x),
            (weight.data_ptr(), *self.w, 0 if signs is None else signs.data_ptr()),
            mask,
            0 if bias is None else bias.data_ptr(),
            (y.data_ptr(), self.x[0], y_stride),
            torch.get_num_threads(),
        )
        return y

    def dx(self, dy, weight, scores, cut, dx=None, planes=None, signs=None):
        """dx: where to write, in place of a new tensor of the plan's size and format."""
        if self.flat:
            dy = _matrix(dy)
        dx_stride, dy_stride = self.dx_stride, dy.stride()
        if dx is None:
            dx = torch.empty(self.x_size, dtype=self.dtype, memory_format=self.x_format)
        else:
            dx_stride = dx.stride()
        bits = planes if self.planes else None
        if signs is not None and bits is None and self.of != "bits":
            bits = mask_bits(scores, cut, self.of)
        if bits is not None:
            mask = _BITS, bits.data_ptr(), _ABSENT[2], 0, 0
        else:
            of, stride = self.mask
            mask = of, scores.data_ptr(), stride, 0 if cut is None else cut.data_ptr(), 0
        _native.conv_backward_input(
            self.geometry,
            (dy.data_ptr(), self.x[0], dy_stride if len(dy_stride) == 4 else (0, dy_stride[1], 0, dy_stride[0])),
            (weight.data_ptr(), *self.w, 0 if signs is None else signs.data_ptr()),
            mask,
            (dx.data_ptr(), self.x[0], dx_stride),
            torch.get_num_threads(),
        )
        return dx

    def dw(self, dy, x, weight, scores, cut, score_grad, weight_grad, into=None, planes=None, signs=None):
        """(dS, dW), None for the one not asked for. planes: as in ``forward``, of which dS takes the signs. into: two
        tensors where to write both."""
        if self.flat:
            dy, x = _matrix(dy), _matrix(x)
        dy_stride, (of, stride), ds, dw = dy.stride(), self.mask, None, None
        score_signs = 0 if planes is None or self.score_signs is None else planes.data_ptr() + self.score_signs
        ds_arg = dw_arg = _ABSENT
        if into is not None:
            ds, dw = into
            ds_arg, dw_arg = _filters(ds), _filters(dw)
        else:
            if score_grad:
                ds = torch.empty_like(scores)
                ds_arg = ds.data_ptr(), 0, self.ds_stride
            if weight_grad != "none":
                dw = torch.empty_like(weight)
                dw_arg = dw.data_ptr(), self.w[0], self.dw_stride
        _native.conv_backward_weight(
            self.geometry,
            (dy.data_ptr(), self.x[0], dy_stride if len(dy_stride) == 4 else (0, dy_stride[1], 0, dy_stride[0])),
            (x.data_ptr(), *self.x),
            (weight.data_ptr(), *self.w, 0 if signs is None else signs.data_ptr()),
            (of, scores.data_ptr(), stride, 0 if cut is None else cut.data_ptr(), score_signs),
            _SCORE_MAP[self.of],
            ds_arg,
            _WEIGHT_GRAD[weight_grad],
            dw_arg,
            torch.get_num_threads(),
        )
        return ds, dw

    def update(self, dy, x, weight, scores, cut, update, weight_grad, signs=None):
        """Takes the optimizer's step on the scores in place of dS; dW, None where it is not asked for."""
        if self.flat:
            dy, x = _matrix(dy), _matrix(x)
        dw = torch.empty_like(weight) if weight_grad != "none" else None
        of, stride = self.mask
        _native.conv_update_scores(
            self.geometry,
            (dy.data_ptr(), self.x[0], _image(dy.stride())),
            (x.data_ptr(), *self.x),
            (weight.data_ptr(), *self.w, 0 if signs is None else signs.data_ptr()),
            (of, scores.data_ptr(), stride, 0 if cut is None else cut.data_ptr(), 0),
            _SCORE_MAP[self.of],
            update.coefficients[:2],
            _addresses(update.moments),
            _WEIGHT_GRAD[weight_grad],
            _filters(dw),
            torch.get_num_threads(),
        )
        return dw


def _matrix(t):
    """Rows of features, a view where the strides allow one."""
    return t if t.dim() == 2 else t[None].flatten(0, -2)


def _image(stride):
    """Strides of images (N, C, H, W); of a matrix, whose rows are the pixels of one image row."""
    return stride if len(stride) == 4 else (0, stride[1], 0, stride[0])


def _four(stride):
    """Strides of filters (O, I, KH, KW), or of a matrix (O, I) of 1x1 filters."""
    return (*stride, 0, 0)[:4]


def _strides(size, memory_format):
    return torch.empty(size, device="meta", memory_format=memory_format).stride()


def _filters(t):
    return _ABSENT if t is None else (t.data_ptr(), _DTYPE[t.dtype], _four(t.stride()))


def _format(channels_last):
    return torch.channels_last if channels_last else torch.contiguous_format
