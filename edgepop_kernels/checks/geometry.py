"""Checks of the geometry of convolutions."""

from collections.abc import Sequence

import torch

from .values import shown

Pair = int | tuple[int, int]
Single = int | tuple[int]
Triple = int | tuple[int, int, int]
# Stride, padding, dilation and groups, as they are handed in, and with their numbers as pairs.
Geometry = tuple[Pair, Pair | str, Pair, int]
Pairs = tuple[tuple[int, int], tuple[int, int] | str, tuple[int, int], int]
# The same of three dimensions.
Geometry3d = tuple[Triple, Triple | str, Triple, int]
Triples = tuple[tuple[int, int, int], tuple[int, int, int] | str, tuple[int, int, int], int]
# Of a transposed convolution: stride, padding, output_padding, dilation and groups.
TransposedGeometry = tuple[Pair, Pair, Pair, Pair, int]
TransposedPairs = tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int], int]


def transposed_size(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, ...]:
    """The size of a transposed convolution's output, of images of ``size``."""
    of_axes = zip(size, kernel, stride, padding, output_padding, dilation, strict=True)
    return tuple((n - 1) * s - 2 * p + d * (k - 1) + extra + 1 for n, k, s, p, extra, d in of_axes)


def single(name: str, value: Single) -> int:
    if isinstance(value, (tuple, list)) and len(value) == 1:
        return value[0]
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an int, got {shown(value)}")
    return value


def pair(name: str, value: Pair, least: int) -> tuple[int, int]:
    two = (value, value) if isinstance(value, int) else value
    if type(two) is tuple and len(two) == 2 and type(two[0]) is type(two[1]) is int and min(two) >= least:
        return two  # what a layer hands in, each step
    if (
        not isinstance(two, (tuple, list, torch.Size))
        or len(two) not in (1, 2)
        or any(isinstance(v, bool) or not isinstance(v, int) for v in two)
    ):
        raise TypeError(f"{name}: expected an int or a pair of ints, got {shown(value)}")
    two = (two[0], two[-1])
    if min(two) < least:
        raise ValueError(f"{name}: expected at least {least}, got {shown(value)}")
    return two


def triple(name: str, value: Triple, least: int) -> tuple[int, int, int]:
    three = (value,) * 3 if isinstance(value, int) else value
    if (
        not isinstance(three, (tuple, list, torch.Size))
        or len(three) not in (1, 3)
        or any(isinstance(v, bool) or not isinstance(v, int) for v in three)
    ):
        raise TypeError(f"{name}: expected an int or three ints, got {shown(value)}")
    if min(three) < least:
        raise ValueError(f"{name}: expected at least {least}, got {shown(value)}")
    return three[0], three[len(three) // 2], three[-1]


def groups_of(groups: int, channels: int, of: str) -> None:
    if isinstance(groups, bool) or not isinstance(groups, int):
        raise TypeError(f"groups: expected an int, got {shown(groups)}")
    if groups < 1 or channels % groups:
        raise ValueError(f"groups: expected a positive divisor of {channels} {of} channels, got {groups}")


def named_padding(padding: str, stride: tuple[int, ...]) -> bool:
    """Whether a padding by name is "same", and not "valid". Raises ValueError."""
    if padding not in ("same", "valid"):
        raise ValueError(f"padding: expected 'same', 'valid' or numbers, got {padding!r}")
    if padding == "same" and max(stride) > 1:
        raise ValueError(f"padding: 'same' needs stride 1, got stride {stride}")
    return padding == "same"


def reach(axis: str, size: int, kernel: int, padding: int, dilation: int) -> None:
    span = dilation * (kernel - 1) + 1
    if size + 2 * padding < span:
        raise ValueError(
            f"x: {axis} is {size} and padding {padding}, smaller than the kernel's reach {span} "
            f"(kernel {kernel}, dilation {dilation})"
        )
