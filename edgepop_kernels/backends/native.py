"""The C++ kernels of csrc/ on CPU tensors: takes addresses and strides, calls edgepop_kernels._native.

Nothing is copied here: the kernels read any strides. A linear layer is the 1x1 convolution whose image is one row
of pixels.
"""

import importlib

import torch

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


def refuses(tensor: torch.Tensor) -> str | None:
    if tensor.device.type != "cpu":
        return f"it runs on CPU tensors and got one on {tensor.device}"
    if tensor.dtype not in _DTYPE:
        return f"it computes float32, bfloat16 and float16, and got {tensor.dtype}"
    return None


def _tensor(t):
    return _ABSENT if t is None else (t.data_ptr(), _DTYPE[t.dtype], t.stride())


def _mask(scores, cut, of):
    if of == "bits":
        return (_OF[of], scores.data_ptr(), (0, 0, 0, 0), 0)
    return (_OF[of], scores.data_ptr(), scores.stride(), 0 if cut is None else cut.data_ptr())


def select(scores, kept, of, hint):
    cuts = torch.empty(len(scores), 2, dtype=torch.int64)
    hint = None if hint is None else hint.contiguous()
    layers = []
    flat = [s if s.dim() <= 4 else s.reshape(-1) for s in scores]
    for layer, (s, m, kind) in enumerate(zip(flat, kept, of, strict=True)):
        lead = 4 - s.dim()
        layers.append(
            (
                s.data_ptr(),
                (1,) * lead + tuple(s.shape),
                (0,) * lead + s.stride(),
                _OF[kind],
                m,
                cuts[layer].data_ptr(),
                0 if hint is None else hint[layer].data_ptr(),
            )
        )
    _native.select(layers, torch.get_num_threads())
    return cuts


def draw(scores, seed):
    bits = torch.empty(-(-scores.numel() // 64) * 8 + 8, dtype=torch.uint8)
    s = scores if scores.dim() <= 4 else scores.reshape(-1)
    lead = 4 - s.dim()
    size, stride = (1,) * lead + tuple(s.shape), (0,) * lead + s.stride()
    _native.draw(s.data_ptr(), size, stride, seed.data_ptr(), bits.data_ptr(), torch.get_num_threads())
    return bits


def _image(t):
    """Rows of features as the pixels of one image row: (..., C) -> (1, C, 1, rows), the same memory where it can be."""
    return t[None].flatten(0, -2).t()[None, :, None, :]


def _filter(t, of=None):
    """A matrix (out, in) as 1x1 filters; packed mask bits have no shape of their own."""
    return t if of == "bits" else t[:, :, None, None]


_POINTWISE = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}


def masked_linear(x, weight, scores, cut, of, bias):
    y = x.new_empty(*x.shape[:-1], weight.shape[0])
    _forward(_image(x), _filter(weight), _filter(scores, of), cut, of, bias, _image(y), **_POINTWISE)
    return y


def masked_linear_dx(dy, weight, scores, cut, of):
    dx = dy.new_empty(*dy.shape[:-1], weight.shape[1])
    _backward_input(_image(dy), _filter(weight), _filter(scores, of), cut, of, _image(dx), **_POINTWISE)
    return dx


def masked_linear_dw(dy, x, weight, scores, cut, of, score_grad, weight_grad):
    ds, dw = _parameter_grads(weight, scores, score_grad, weight_grad)
    filters = [None if t is None else _filter(t) for t in (ds, dw)]
    args = (_image(dy), _image(x), _filter(weight), _filter(scores, of), cut, of, weight_grad, *filters)
    _backward_weight(*args, **_POINTWISE)
    return _or_empty(ds, weight), _or_empty(dw, weight)


def masked_conv2d(x, weight, scores, cut, of, bias, stride, padding, dilation, groups, channels_last):
    spatial = (
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    )
    y = torch.empty(x.shape[0], weight.shape[0], *spatial, dtype=x.dtype, memory_format=_format(channels_last))
    _forward(x, weight, scores, cut, of, bias, y, stride, padding, dilation, groups)
    return y


def masked_conv2d_dx(dy, weight, scores, cut, of, x_size, stride, padding, dilation, groups, channels_last):
    dx = torch.empty(x_size, dtype=dy.dtype, memory_format=_format(channels_last))
    _backward_input(dy, weight, scores, cut, of, dx, stride, padding, dilation, groups)
    return dx


def masked_conv2d_dw(dy, x, weight, scores, cut, of, score_grad, weight_grad, stride, padding, dilation, groups):
    ds, dw = _parameter_grads(weight, scores, score_grad, weight_grad)
    _backward_weight(dy, x, weight, scores, cut, of, weight_grad, ds, dw, stride, padding, dilation, groups)
    return _or_empty(ds, weight), _or_empty(dw, weight)


def _format(channels_last):
    return torch.channels_last if channels_last else torch.contiguous_format


def _parameter_grads(weight, scores, score_grad, weight_grad):
    ds = torch.empty_like(scores) if score_grad else None
    dw = torch.empty_like(weight) if weight_grad != "none" else None
    return ds, dw


def _or_empty(t, weight):
    return weight.new_empty(0) if t is None else t


def _geometry(x, weight, y, stride, padding, dilation, groups):
    batch, in_channels, in_h, in_w = x.shape
    sizes = (batch, groups, in_channels, in_h, in_w, *y.shape[1:], *weight.shape[2:])
    return (*sizes, *stride, *padding, *dilation)


def _forward(x, weight, scores, cut, of, bias, y, stride, padding, dilation, groups):
    bias = None if bias is None else bias.to(torch.float32).contiguous()
    _native.conv_forward(
        _geometry(x, weight, y, stride, padding, dilation, groups),
        _tensor(x),
        _tensor(weight),
        _mask(scores, cut, of),
        0 if bias is None else bias.data_ptr(),
        _tensor(y),
        torch.get_num_threads(),
    )


def _backward_input(dy, weight, scores, cut, of, dx, stride, padding, dilation, groups):
    _native.conv_backward_input(
        _geometry(dx, weight, dy, stride, padding, dilation, groups),
        _tensor(dy),
        _tensor(weight),
        _mask(scores, cut, of),
        _tensor(dx),
        torch.get_num_threads(),
    )


def _backward_weight(dy, x, weight, scores, cut, of, weight_grad, ds, dw, stride, padding, dilation, groups):
    _native.conv_backward_weight(
        _geometry(x, weight, dy, stride, padding, dilation, groups),
        _tensor(dy),
        _tensor(x),
        _tensor(weight),
        _mask(scores, cut, of),
        _SCORE_MAP[of],
        _tensor(ds),
        _WEIGHT_GRAD[weight_grad],
        _tensor(dw),
        torch.get_num_threads(),
    )
