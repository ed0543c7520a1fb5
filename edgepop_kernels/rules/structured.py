"""Rules of a structure that hardware knows."""

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch

from ..cut import Bits, Cut
from .ranked import TopK, checked_keep, kept_count
from .rule import Ops, Rule, checked_of

LARGEST_GROUP = 64
MOST_DIMENSIONS = 5  # of a weight: outputs, inputs and three of a kernel


@dataclass(frozen=True)
class NM(Rule):
    """A rule that keeps the ``n`` best-scored of every ``m`` weights in a row: 2:4 is what sparse tensor cores take.

    n, m: 1 <= n <= m <= 64. of: "abs" ranks by |s|, "raw" by s itself. Ties go to the lower index, NaN ranks below
    every number. dim: the weight's dimension along which the groups lie, a multiple of ``m`` long: 1, a linear layer's
    or convolution's inputs (Zhou et al. 2021, "Learning N:M Fine-grained Structured Sparse Neural Networks From
    Scratch"); 0, those of a transposed convolution and of GPT-2's linear layers. Raises TypeError, ValueError.

    >>> ek.mask(torch.tensor([[0.1, -3.0, 2.0, -0.2, 5.0, 4.0, 0.0, 6.0]]), ek.NM(2, 4))
    tensor([[False,  True,  True, False,  True, False, False,  True]])
    """

    n: int
    m: int
    of: Literal["abs", "raw"] = "abs"
    dim: Literal[0, 1] = field(default=1, kw_only=True)
    grouped: ClassVar[bool] = True
    selects: ClassVar[type[Cut] | type[Bits]] = Bits

    def __post_init__(self) -> None:
        for name in ("n", "m", "dim"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
        if not 1 <= self.m <= LARGEST_GROUP:
            raise ValueError(f"m: expected 1 to {LARGEST_GROUP} weights in a group, got {self.m}")
        if not 1 <= self.n <= self.m:
            raise ValueError(f"n: expected 1 to m={self.m} weights kept of a group, got {self.n}")
        checked_of(self.of, ("abs", "raw"))
        if self.dim not in (0, 1):
            raise ValueError(f"dim: expected 0 or 1, got {self.dim}")

    @property
    def keep(self) -> float:
        """The fraction kept."""
        return self.n / self.m

    def check(self, shape: torch.Size) -> None:
        if len(shape) <= self.dim or shape[self.dim] % self.m:
            raise ValueError(
                f"rule: {self} takes weights whose dimension {self.dim} is a multiple of {self.m}, got shape "
                f"{tuple(shape)}"
            )

    def select(self, scores: torch.Tensor, ops: Ops) -> Bits:
        return Bits(ops.group_bits(scores, self.n, self.m, self.dim, self.of), self.of)

    def share(self, scores: torch.Tensor) -> float:
        return self.keep


@dataclass(frozen=True)
class _Blocks(Rule):
    """The base of rules that keep whole blocks of weights, those of the largest sums."""

    keep: float = 0.5
    grouped: ClassVar[bool] = True
    selects: ClassVar[type[Cut] | type[Bits]] = Bits

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", checked_keep(self.keep))
        checked_of(self.of, ("abs", "raw"))

    def block(self, shape: torch.Size) -> tuple[int, ...]:
        """The size of a block in each dimension of a weight of ``shape``."""
        raise NotImplementedError

    def select(self, scores: torch.Tensor, ops: Ops) -> Bits:
        block = self.block(scores.shape)
        sums = ops.block_sums(scores, block, self.of)
        if self.moving is not None and torch.compiler.is_compiling():
            cuts = ops.select_moving([sums], [self.moving], [TopK.__name__], ["raw"], None)
        else:
            cuts = ops.select([sums], [kept_count(sums.numel(), self.keep)], ["raw"], None)
        return Bits(ops.block_bits(sums, cuts[0], block), self.of)

    def share(self, scores: torch.Tensor) -> float:
        return self.keep

    def with_keep(self, keep: float) -> "_Blocks":
        rule = replace(self, keep=keep)
        # As a rule that ranks has it: a compiled forward takes a number as a constant, and a tensor as an input.
        object.__setattr__(rule, "moving", torch.tensor(1 - rule.keep, dtype=torch.float64, device="cpu"))
        return rule


@dataclass(frozen=True)
class Block(_Blocks):
    """A rule that keeps the fraction ``keep`` of a layer's blocks of weights, those of the largest sums.

    Exactly ``kept_count(blocks, keep)`` blocks are kept, each of them whole. A block is ranked by the sum of |s| over
    its weights, or of s with of="raw" (Narang et al. 2017, "Block-Sparse Recurrent Neural Networks", takes the largest
    weight instead); ties go to the block that comes first, one with a NaN ranks below every number.

    keep: in (0, 1]. shape: of a block, in the weight's dimensions from the first on, 1 in those that it does not name:
    (1, 4) is one output by four inputs at each place of a kernel, (16, 16) a tile, (1, 1, 3, 3) a kernel of 3 by 3. The
    weight's dimensions are multiples of it. Raises TypeError, ValueError.

    >>> ek.mask(torch.tensor([[0.1, -3.0, 2.0, -0.2], [5.0, 4.0, 0.0, 6.0]]), ek.Block(0.5, (1, 2)))
    tensor([[False, False, False, False],
            [ True,  True,  True,  True]])
    """

    shape: tuple[int, ...] = (1, 4)
    of: Literal["abs", "raw"] = "abs"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.shape, (tuple, list)):
            raise TypeError(f"shape: expected a tuple of ints, got {type(self.shape).__name__}")
        for size in self.shape:
            if isinstance(size, bool) or not isinstance(size, int):
                raise TypeError(f"shape: expected a tuple of ints, got {self.shape}")
        if not 1 <= len(self.shape) <= MOST_DIMENSIONS or min(self.shape) < 1:
            raise ValueError(f"shape: expected 1 to {MOST_DIMENSIONS} numbers from 1 on, got {self.shape}")
        object.__setattr__(self, "shape", tuple(self.shape))

    def block(self, shape: torch.Size) -> tuple[int, ...]:
        return self.shape + (1,) * (len(shape) - len(self.shape))

    def check(self, shape: torch.Size) -> None:
        named = len(self.shape)
        if not named <= len(shape) <= MOST_DIMENSIONS or any(
            n % b for n, b in zip(shape[:named], self.shape, strict=True)
        ):
            raise ValueError(
                f"rule: {self} takes weights of {named} to {MOST_DIMENSIONS} dimensions, each a multiple of the "
                f"block's, got shape {tuple(shape)}"
            )


@dataclass(frozen=True)
class Channels(_Blocks):
    """A rule that keeps the fraction ``keep`` of a layer's channels, those whose weights have the largest sums of |s|,
    or of s with of="raw" (Li et al. 2017, "Pruning Filters for Efficient ConvNets", rank filters by the sum of |w|).

    Exactly ``kept_count(channels, keep)`` channels are kept, each of them whole; ties go to the earlier, one with a NaN
    ranks below every number.

    keep: in (0, 1]. dim: the weight's dimension that counts the channels: 0, a linear layer's or convolution's outputs;
    1, its inputs, and the outputs of a transposed convolution and of GPT-2's linear layers. Raises TypeError,
    ValueError.

    >>> ek.mask(torch.tensor([[0.1, -3.0], [2.0, -0.2]]), ek.Channels(0.5))
    tensor([[ True,  True],
            [False, False]])
    """

    of: Literal["abs", "raw"] = "abs"
    dim: Literal[0, 1] = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.dim, bool) or not isinstance(self.dim, int):
            raise TypeError(f"dim: expected an int, got {type(self.dim).__name__}")
        if self.dim not in (0, 1):
            raise ValueError(f"dim: expected 0 or 1, got {self.dim}")

    def block(self, shape: torch.Size) -> tuple[int, ...]:
        return tuple(1 if d == self.dim else max(n, 1) for d, n in enumerate(shape))

    def check(self, shape: torch.Size) -> None:
        if not 2 <= len(shape) <= MOST_DIMENSIONS:
            raise ValueError(f"rule: {self} takes weights of 2 to {MOST_DIMENSIONS} dimensions, got {tuple(shape)}")
