"""The tile that is tuned, and the problem for which. Both are values: a table maps one to the other."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """A matrix product as a kernel sees it.

    kernel: "product" (forward, gradient to the input; m weights rows, n pixels, k taps * channels) or "grad" (gradient
    to the weight; m output channels, n taps * input channels, k pixels); all per group. precision: "half", "tf32",
    "float32". scattered: an operand's elements have addresses of their own, for taps and channels share an axis, or
    its rows are no 16-byte runs (NCHW images, contiguous filters, odd numbers of channels).
    """

    kernel: str
    precision: str
    m: int
    n: int
    k: int
    groups: int = 1
    scattered: bool = False


@dataclass(frozen=True)
class Tile:
    """Blocks of the output (m, n) and of the reduction (k); warps, pipeline stages; parts the reduction is split into;
    rows of tiles that run together, for reuse in L2."""

    m: int
    n: int
    k: int
    warps: int = 4
    stages: int = 3
    splits: int = 1
    band: int = 8
