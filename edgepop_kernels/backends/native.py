"""The C++ kernels of csrc/ on CPU tensors: takes addresses and strides, calls edgepop_kernels._native.

Images, matrices and weights are not copied: the kernels read any strides. A linear layer is the 1x1 convolution whose
image is one row of pixels.
"""

import importlib

import torch

from ..masks import packed_bytes

_DTYPE = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_OF = {"abs": 0, "raw": 1, "sigmoid": 1, "bits": 2}
_SCORE_MAP = {"abs": 0, "raw": 1, "sigmoid": 2, "bits": 1}
_WEIGHT_GRAD = {"none": 0, "kept": 1, "all": 2}
_ABSENT = (0, 0, (0, 0, 0, 0))

try:
    # torch is imported above: its OpenMP runtime is in the process, and the module joins that one pool.
    _native = importlib.import_module("edgepop_kernels._native")
    _missing = None
except ImportError as error:
    _native = None
    _missing = f"the compiled module did not load ({error}); install with `pip install .` where a C++ compiler is"


def unavailable() -> str | None:
    return _missing


def refuses(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cpu":
        return f"it runs on CPU tensors and got one on {device}"
    if dtype not in _DTYPE:
        return f"it computes float32, bfloat16 and float16, and got {dtype}"
    return None


def _activations(t):
    """Images (N, C, H, W), or a matrix whose rows are the pixels of one image row."""
    stride = t.stride() if t.dim() == 4 else (0, t.stride(1), 0, t.stride(0))
    return (t.data_ptr(), _DTYPE[t.dtype], stride)


def _filters(t):
    """Filters (O, I, KH, KW), or a matrix (O, I) of 1x1 filters."""
    return _ABSENT if t is None else (t.data_ptr(), _DTYPE[t.dtype], (*t.stride(), 0, 0)[:4])


def _mask(scores, cut, of):
    if of == "bits":
        return (_OF[of], scores.data_ptr(), (0, 0, 0, 0), 0)
    return (_OF[of], scores.data_ptr(), (*scores.stride(), 0, 0)[:4], 0 if cut is None else cut.data_ptr())


def select(scores, kept, of, hint):
    cuts = torch.empty(len(scores), 2, dtype=torch.int64)
    hint = None if hint is None else hint.contiguous()
    hints = [0] * len(scores) if hint is None else range(hint.data_ptr(), hint.data_ptr() + 16 * len(scores), 16)
    flat = [s if s.dim() <= 4 else s.reshape(-1) for s in scores]
    _native.select(_rankings(flat, kept, of, hints, cuts), torch.get_num_threads())
    return cuts


def _rankings(scores, kept, of, hints, cuts):
    """hints: addresses of cuts, 0 where there is none; cuts: int64 [layers, 2], to be written."""
    first = cuts.data_ptr()
    rows = enumerate(zip(scores, kept, of, hints, strict=True))
    return [(s.data_ptr(), *_sequence(s), _OF[kind], m, first + 16 * row, hint) for row, (s, m, kind, hint) in rows]


def _sequence(scores):
    """Sizes and strides of four dimensions."""
    lead = 4 - scores.dim()
    return (1,) * lead + tuple(scores.shape), (0,) * lead + scores.stride()


def step(updates, rankings):
    """Carries out each Update in place; the cuts of the first of them, which are scores, each by its Ranking."""
    cuts = torch.empty(len(rankings), 2, dtype=torch.int64)
    parameters = []
    for value, grad, moments, coefficients in updates:
        parameters.append((value.data_ptr(), grad.data_ptr(), _addresses(moments), value.numel(), coefficients[:2]))
    scores = [value for value, *_ in updates[: len(rankings)]]
    hints = [0 if r.hint is None else r.hint.data.data_ptr() for r in rankings]
    layers = _rankings(scores, [r.kept for r in rankings], [r.of for r in rankings], hints, cuts)
    _native.step(parameters, layers, torch.get_num_threads())
    return cuts


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


def _matrix(t):
    return t if t.dim() == 2 else t[None].flatten(0, -2)


def _linear_geometry(rows, weight):
    out_features, in_features = weight.shape
    return (1, 1, in_features, 1, rows, out_features, 1, rows, 1, 1, 1, 1, 0, 0, 1, 1)


def masked_linear(x, weight, scores, cut, of, bias):
    y = x.new_empty(*x.shape[:-1], weight.shape[0])
    x = _matrix(x)
    _forward(_linear_geometry(x.shape[0], weight), x, weight, scores, cut, of, bias, _matrix(y))
    return y


def masked_linear_dx(dy, weight, scores, cut, of):
    dx = dy.new_empty(*dy.shape[:-1], weight.shape[1])
    dy = _matrix(dy)
    _backward_input(_linear_geometry(dy.shape[0], weight), dy, weight, scores, cut, of, _matrix(dx))
    return dx


def masked_linear_dw(dy, x, weight, scores, cut, of, score_grad, weight_grad):
    dy, x = _matrix(dy), _matrix(x)
    geometry = _linear_geometry(dy.shape[0], weight)
    return _parameter_grads(geometry, dy, x, weight, scores, cut, of, score_grad, weight_grad)


def masked_conv2d(x, weight, scores, cut, of, bias, stride, padding, dilation, groups, channels_last):
    spatial = (
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    )
    y = torch.empty(x.shape[0], weight.shape[0], *spatial, dtype=x.dtype, memory_format=_format(channels_last))
    geometry = _geometry(x, weight, y, stride, padding, dilation, groups)
    _forward(geometry, x, weight, scores, cut, of, bias, y)
    return y


def masked_conv2d_dx(dy, weight, scores, cut, of, x_size, stride, padding, dilation, groups, channels_last):
    dx = torch.empty(x_size, dtype=dy.dtype, memory_format=_format(channels_last))
    _backward_input(_geometry(dx, weight, dy, stride, padding, dilation, groups), dy, weight, scores, cut, of, dx)
    return dx


def masked_conv2d_dw(dy, x, weight, scores, cut, of, score_grad, weight_grad, stride, padding, dilation, groups):
    geometry = _geometry(x, weight, dy, stride, padding, dilation, groups)
    return _parameter_grads(geometry, dy, x, weight, scores, cut, of, score_grad, weight_grad)


def masked_linear_update(dy, x, weight, scores, cut, of, update, weight_grad):
    dy, x = _matrix(dy), _matrix(x)
    geometry = _linear_geometry(dy.shape[0], weight)
    return _updated(geometry, dy, x, weight, scores, cut, of, update, weight_grad)


def masked_conv2d_update(dy, x, weight, scores, cut, of, update, weight_grad, stride, padding, dilation, groups):
    geometry = _geometry(x, weight, dy, stride, padding, dilation, groups)
    return _updated(geometry, dy, x, weight, scores, cut, of, update, weight_grad)


def _format(channels_last):
    return torch.channels_last if channels_last else torch.contiguous_format


def _geometry(x, weight, y, stride, padding, dilation, groups):
    batch, in_channels, in_h, in_w = x.shape
    sizes = (batch, groups, in_channels, in_h, in_w, *y.shape[1:], *weight.shape[2:])
    return (*sizes, *stride, *padding, *dilation)


def _forward(geometry, x, weight, scores, cut, of, bias, y):
    bias = None if bias is None else bias.to(torch.float32).contiguous()
    _native.conv_forward(
        geometry,
        _activations(x),
        _filters(weight),
        _mask(scores, cut, of),
        0 if bias is None else bias.data_ptr(),
        _activations(y),
        torch.get_num_threads(),
    )


def _backward_input(geometry, dy, weight, scores, cut, of, dx):
    _native.conv_backward_input(
        geometry,
        _activations(dy),
        _filters(weight),
        _mask(scores, cut, of),
        _activations(dx),
        torch.get_num_threads(),
    )


def _backward_weight(geometry, dy, x, weight, scores, cut, of, weight_grad, ds, dw):
    _native.conv_backward_weight(
        geometry,
        _activations(dy),
        _activations(x),
        _filters(weight),
        _mask(scores, cut, of),
        _SCORE_MAP[of],
        _filters(ds),
        _WEIGHT_GRAD[weight_grad],
        _filters(dw),
        torch.get_num_threads(),
    )


def _updated(geometry, dy, x, weight, scores, cut, of, update, weight_grad):
    """dW, None where it is not asked for."""
    dw = torch.empty_like(weight) if weight_grad != "none" else None
    _native.conv_update_scores(
        geometry,
        _activations(dy),
        _activations(x),
        _filters(weight),
        _mask(scores, cut, of),
        _SCORE_MAP[of],
        update.coefficients[:2],
        _addresses(update.moments),
        _WEIGHT_GRAD[weight_grad],
        _filters(dw),
        torch.get_num_threads(),
    )
    return dw


def _parameter_grads(geometry, dy, x, weight, scores, cut, of, score_grad, weight_grad):
    """(dS, dW), an empty tensor for the one not asked for."""
    ds = torch.empty_like(scores) if score_grad else None
    dw = torch.empty_like(weight) if weight_grad != "none" else None
    _backward_weight(geometry, dy, x, weight, scores, cut, of, weight_grad, ds, dw)
    return tuple(weight.new_empty(0) if t is None else t for t in (ds, dw))
