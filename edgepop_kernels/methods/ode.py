"""Initial value problems dy/dt = f(t, y) by the Runge-Kutta pair of Dormand & Prince 1980, orders 5 and 4.

Written in differentiable operations: gradients flow back through the accepted steps.

>>> import torch
>>> from edgepop_kernels.methods.ode import odeint
>>> start = torch.ones(1, requires_grad=True)
>>> end = odeint(lambda t, y: -2 * t * y, start, 0.0, 1.0, rtol=1e-5, atol=1e-5)  # y = exp(-t^2)
>>> end.backward()
>>> f"{end.item():.3f}, and as much of it for each unit of the start: {start.grad.item():.3f}"
'0.368, and as much of it for each unit of the start: 0.368'
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from . import arguments

# The tableau: stage i looks at time t + C[i] h and at y + h sum A[i][j] k_j; the last row of A is the 5th order result.
_C = (0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1)
_A = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)  # 5th minus 4th order weights
_SAFETY, _SLOWEST, _FASTEST = 0.9, 0.2, 10.0


def odeint(
    f: Callable[[float, Tensor], Tensor], y: Tensor, start: float, stop: float, *, rtol: float, atol: float
) -> Tensor:
    """Solves for y at ``stop`` from ``y`` at ``start`` < stop; each step's error stays within atol + rtol |y|, root
    mean square.

    f(t, y) is dy/dt, of y's shape; y: real, floating point. Where f stops being finite, the result is not finite
    either. Reads the error of each step on the host. Raises ValueError and TypeError, and RuntimeError where no step is
    small enough.

    >>> one = torch.ones(1, dtype=torch.float64)
    >>> odeint(lambda t, y: -y, one, 0.0, 1.0, rtol=1e-6, atol=1e-6)  # exp(-1)
    tensor([0.3679], dtype=torch.float64)
    """
    if not callable(f):
        raise TypeError(f"f: expected a function of (t, y), got {f!r}")
    arguments.real("y", y)
    for name, value in (("start", start), ("stop", stop)):
        arguments.number(name, value)
    if not start < stop:
        raise ValueError(f"stop: expected a time after start {start}, got {stop}")
    for name, value in (("rtol", rtol), ("atol", atol)):
        arguments.positive(name, value)
    t, slope = start, f(start, y)
    arguments.real("f(start, y)", slope)
    arguments.like("f(start, y)", slope, "y", y)  # another shape would broadcast
    h = _first_step(f, t, y, slope, rtol, atol)
    while t < stop:
        if t + h == t:
            raise RuntimeError(f"odeint: no step from time {t:g} on is small enough for rtol {rtol:g}, atol {atol:g}")
        last = t + h >= stop
        h = stop - t if last else h
        result, slopes = _step(f, t, y, slope, h)
        error = h * sum(w * k.detach() for w, k in zip(_ERROR, slopes, strict=True) if w)
        ratio = _size(error, _scale(y, result, rtol, atol))
        if not math.isfinite(ratio):
            return result
        if ratio <= 1:
            t, y, slope = (stop if last else t + h), result, slopes[-1]
        h *= min(_FASTEST, max(1.0 if ratio <= 1 else _SLOWEST, _SAFETY * max(ratio, 1e-10) ** -0.2))
    return y


def _step(f, t, y, slope, h):
    """The 5th order result and all slopes; the last slope is the first of the next step."""
    slopes = [slope]
    for c, row in zip(_C[1:], _A[1:], strict=True):
        at = y + h * sum(a * k for a, k in zip(row, slopes, strict=True) if a)
        slopes.append(f(t + c * h, at))
    return at, slopes


def _scale(y, other, rtol, atol):
    return atol + rtol * torch.maximum(y.detach().abs(), other.detach().abs())


def _size(value, scale):
    """Root mean square of value / scale, on the host; 0 of nothing."""
    return (value / scale).square().mean().sqrt().item() if value.numel() else 0.0


@torch.no_grad()
def _first_step(f, t, y, slope, rtol, atol):
    """The starting step of Hairer, Norsett & Wanner, Solving Ordinary Differential Equations I, section II.4."""
    scale = _scale(y, y, rtol, atol)
    d0, d1 = _size(y, scale), _size(slope, scale)
    if not math.isfinite(d1):
        return 1.0  # the step itself shows it
    h0 = 1e-6 if min(d0, d1) < 1e-5 else 0.01 * d0 / d1
    d2 = _size(f(t + h0, y + h0 * slope) - slope, scale) / h0
    h1 = max(1e-6, h0 * 1e-3) if max(d1, d2) <= 1e-15 else (0.01 / max(d1, d2)) ** 0.2
    return min(100 * h0, h1)
