"""Plans of masked products: what calls with operands of the same shapes, strides and dtypes have in common."""

import math

import torch

from ...masks import packed_bytes
from . import compiled
from .compiled import DTYPE, OF
from .scores import mask_bits

_SCORE_MAP = {"abs": 0, "raw": 1, "sigmoid": 2, "bits": 1}
_WEIGHT_GRAD = {"none": 0, "kept": 1, "all": 2}
_ABSENT = (0, 0, (0, 0, 0, 0))


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
    formats = memory_format(x_channels_last), memory_format(y_channels_last)
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
        self.x = DTYPE[x.dtype], _image((_matrix(x) if linear else x).stride())
        self.w = DTYPE[weight.dtype], _four(weight.stride())
        self.mask = OF[of], _ABSENT[2] if of == "bits" else _four(scores.stride())
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
            mask = OF["bits"], bits.data_ptr(), _ABSENT[2], 0, 0
        else:
            of, stride = self.mask
            mask = of, scores.data_ptr(), stride, 0 if cut is None else cut.data_ptr(), 0
        compiled.kernels.conv_forward(
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
            mask = OF["bits"], bits.data_ptr(), _ABSENT[2], 0, 0
        else:
            of, stride = self.mask
            mask = of, scores.data_ptr(), stride, 0 if cut is None else cut.data_ptr(), 0
        compiled.kernels.conv_backward_input(
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
        compiled.kernels.conv_backward_weight(
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
        compiled.kernels.conv_update_scores(
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


def _addresses(moments):
    """Those of an optimizer's moments, of which there are up to three: 0 for one that it has not."""
    return [moment.data_ptr() for moment in moments] + [0] * (3 - len(moments))


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
    return _ABSENT if t is None else (t.data_ptr(), DTYPE[t.dtype], _four(t.stride()))


def memory_format(channels_last):
    return torch.channels_last if channels_last else torch.contiguous_format
