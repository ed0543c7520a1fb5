"""The honest rival of the fused kernels: W*M written to memory, then the vendor's library (cuBLAS, cuDNN, oneDNN).

On CUDA one kernel masks and casts into a workspace that all layers of a device and dtype share: one effective weight is
held at a time, built for the forward product and again for the gradient to the input. Never chosen by "auto".
"""

import threading

import torch
import torch.nn.functional as F

from .. import reference
from . import native, triton


class _Held(threading.local):
    def __init__(self):
        self.workspaces: dict[tuple, torch.Tensor] = {}


_held = _Held()


def unavailable() -> str | None:
    return native.misset()  # whose selection it would take


def refuses(device: torch.device, dtype: torch.dtype) -> str | None:
    if dtype == torch.float64:
        return "it computes float32, bfloat16 and float16, and got torch.float64"
    return None


def _selecting(scores):
    """The fastest backend that selects and draws here: staging differs in the products only."""
    for backend in (native, triton):
        if backend.unavailable() is None and backend.refuses(scores.device, scores.dtype) is None:
            return backend
    return reference


def select(scores, kept, of, hint):
    return _selecting(scores[0]).select(scores, kept, of, hint)


def draw(scores, seed):
    return _selecting(scores).draw(scores, seed)


def mask_bits(scores, cut, of):
    return _selecting(scores).mask_bits(scores, cut, of)


def group_bits(scores, kept, group, dim, of):
    return _selecting(scores).group_bits(scores, kept, group, dim, of)


def block_sums(scores, block, of):
    return _selecting(scores).block_sums(scores, block, of)


def block_bits(sums, cut, block):
    return _selecting(sums).block_bits(sums, cut, block)


def masked_linear(x, weight, scores, cut, of, bias, signs=None):
    return F.linear(x, _effective_weight(weight, scores, cut, of, x.dtype, signs), _cast(bias, x.dtype))


def masked_linear_dx(dy, weight, scores, cut, of, signs=None):
    return dy @ _effective_weight(weight, scores, cut, of, dy.dtype, signs)


def masked_linear_dw(dy, x, weight, scores, cut, of, score_grad, weight_grad, signs=None, score_signs=None):
    dw_eff = dy.reshape(-1, dy.shape[-1]).t() @ x.reshape(-1, x.shape[-1])
    return reference.parameter_grads(dw_eff, weight, scores, cut, of, score_grad, weight_grad, signs)


def masked_conv2d(x, weight, scores, cut, of, bias, stride, padding, dilation, groups, channels_last, signs=None):
    effective = _effective_weight(weight, scores, cut, of, x.dtype, signs, channels_last)
    y = F.conv2d(x, effective, _cast(bias, x.dtype), stride, padding, dilation, groups)
    return y.contiguous(memory_format=_format(channels_last))


def masked_conv2d_dx(dy, weight, scores, cut, of, x_size, stride, padding, dilation, groups, channels_last, signs=None):
    effective = _effective_weight(weight, scores, cut, of, dy.dtype, signs, channels_last)
    dx = torch.nn.grad.conv2d_input(x_size, effective, dy, stride, padding, dilation, groups)
    return dx.contiguous(memory_format=_format(channels_last))


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
    dw_eff = torch.nn.grad.conv2d_weight(x, weight.shape, dy, stride, padding, dilation, groups)
    return reference.parameter_grads(dw_eff, weight, scores, cut, of, score_grad, weight_grad, signs)


def _cast(bias, dtype):
    return None if bias is None else bias.to(dtype)


def _format(channels_last):
    return torch.channels_last if channels_last else torch.contiguous_format


def _effective_weight(weight, scores, cut, of, dtype, signs, channels_last=False):
    """W*M in the workspace: good until the next call on this thread and stream."""
    workspace = _workspace(weight.device, dtype, weight.numel())
    strides = torch.empty(weight.shape, device="meta").contiguous(memory_format=_format(channels_last)).stride()
    workspace = workspace.as_strided(weight.shape, strides)
    if weight.is_cuda and triton.unavailable() is None and triton.refuses(weight.device, weight.dtype) is None:
        from .triton.stage import stage  # imports triton, where there is one

        stage(weight, scores, cut, of, workspace, signs)
    else:
        keep = reference.unpack_mask(scores, weight.shape) if of == "bits" else reference.mask(scores, cut, of)
        workspace.copy_(reference.signed(weight, signs)).masked_fill_(~keep, 0)
    return workspace


def _workspace(device, dtype, numel):
    # A thread's and a stream's own: two of them may be at work at once.
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else None
    held = _held.workspaces.setdefault((device, dtype, stream), torch.empty(0, dtype=dtype, device=device))
    if held.numel() < numel:
        held = _held.workspaces[device, dtype, stream] = torch.empty(numel, dtype=dtype, device=device)
    return held
