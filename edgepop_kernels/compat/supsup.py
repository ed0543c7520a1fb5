"""Layers of supsup's ``models/modules.py`` and of its notebook (Wortsman et al. 2020, "Supermasks in Superposition").

How many tasks there are, the fraction KEPT (``sparsity``) and whether weights train is said once for the whole program,
by its ``args``: ``uses(args)`` names that object, and layers made later read it as they are made. ``task``,
``num_tasks_learned`` and ``alphas`` are set on the layers by the program, as ever.

A task's mask is applied inside the product; the cache of masks is 1 bit a weight and task, and the superposition one
product with a weight that is made of the bits.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from .. import mixing, selecting, torch_private
from ..cut import Selection
from ..interop.supsup import FAST
from ..nn import KINDS, FusedSubnetConv
from ..nn.cuts import Cuts
from ..nn.kinds import superposed_product
from ..rules import Rule, TopK
from .theirs import Theirs

__all__ = [
    "FastMultitaskMaskConv",
    "FastMultitaskMaskLinear",
    "MaskConv",
    "MultitaskMaskConv",
    "MultitaskMaskLinear",
    "StackedFastMultitaskMaskConv",
    "uses",
]

_args: Any = None


def uses(args: Any) -> None:
    """Names the program's ``args``: an object with ``num_tasks``, ``sparsity`` (the fraction KEPT) and
    ``train_weight_tasks`` (0: weights stand still), which layers read when they are made."""
    global _args
    _args = args


def _said(name: str, absent: Any) -> Any:
    return getattr(_args, name, absent)


def _stop_weight(layer: Any) -> None:
    if _said("train_weight_tasks", 0) == 0:
        layer.weight.requires_grad_(False)


class MaskConv(Theirs, FusedSubnetConv):
    """A convolution that keeps the best |scores|, of one task: nn.Conv2d's arguments.

    ``sparsity`` is the fraction KEPT, ``args.sparsity`` or 0.5 until it is set.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, keep=_said("sparsity", 0.5), **kwargs)
        self.weight.requires_grad_()
        _stop_weight(self)

    @property
    def sparsity(self) -> float:
        """The fraction KEPT."""
        return self.keep

    @sparsity.setter
    def sparsity(self, sparsity: float) -> None:
        self.keep = sparsity


class _Tasks(nn.Module):
    """What all layers of several tasks are, beside a layer of torch."""

    weight: Any  # torch's, as the bias
    bias: Any
    scores: nn.ParameterList
    task: int
    num_tasks_learned: int
    alphas: torch.Tensor

    def __init__(self, *args: Any, num_tasks: int | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        tasks = _said("num_tasks", None) if num_tasks is None else num_tasks
        if isinstance(tasks, bool) or not isinstance(tasks, int) or tasks < 1:
            raise ValueError(
                f"num_tasks: expected a whole number above 0, got {tasks!r}; edgepop_kernels.compat.supsup.uses(args) "
                "takes it from args.num_tasks"
            )
        self.scores = nn.ParameterList(self._drawn(tasks))
        self._of_tasks_cuts = [Cuts() for _ in range(tasks)]
        self._of_tasks_bits: torch.Tensor | None = None
        self._of_tasks_codes: torch.Tensor | None = None
        _stop_weight(self)

    def _drawn(self, tasks: int) -> Iterator[nn.Parameter]:
        for _ in range(tasks):
            scores = torch.empty_like(self.weight, dtype=torch.float32)
            yield nn.Parameter(nn.init.kaiming_uniform_(scores, a=math.sqrt(5)))

    @property
    def _rule(self) -> Rule:
        return FAST

    def cache_masks(self) -> None:
        """Packs the masks of all tasks, for superposed forwards."""
        self._of_tasks_bits = self._packed(len(self.scores))
        self._of_tasks_codes = mixing.codes_of(self._of_tasks_bits)

    def clear_masks(self) -> None:
        """Drops the masks that ``cache_masks`` packed."""
        self._of_tasks_bits = self._of_tasks_codes = None

    @property
    def stacked(self) -> torch.Tensor | None:
        """The cached masks in float32, [tasks, ...], made when asked for; None where there are none."""
        bits = self._of_tasks_bits
        if bits is None:
            return None
        return torch.stack([selecting.unpack_mask(b, self.weight.shape) for b in bits]).to(torch.float32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The product of ``x`` and the weights that the mask of ``task`` keeps; where that is below 0, of the
        superposition of the tasks learned, of those whose alpha is above 0."""
        kind = next(kind for plain, kind in KINDS.items() if isinstance(self, plain))
        if self.task < 0:
            return superposed_product(kind, self, x, *self._superposed())
        scores, watched = self.scores[self.task], torch_private.watched()
        cut = self._selected(scores, watched)
        x, geometry = kind.operands(self, x)
        return kind.product(x, self.weight, scores, self._rule, self.bias, geometry, cut, watched)

    def _selected(self, scores: torch.Tensor, watched: bool) -> Selection:
        rule, cuts = self._rule, self._of_tasks_cuts[self.task]
        if watched:
            return selecting.selection(scores, rule, None, False)
        known = cuts.of(scores, rule)
        if known is not None:
            return known
        selection = selecting.selection(scores, rule, cuts.hint(rule))
        cuts.start_from(selection, scores, rule, stays=not self.training)
        return selection

    def _superposed(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The masks as ``mixing`` reads them, and their shares."""
        if self._of_tasks_codes is None:
            raise AttributeError("stacked: there are no masks to superpose; call cache_masks() on this layer first")
        alphas = self.alphas[: self.num_tasks_learned].flatten()
        return self._of_tasks_codes, torch.where(alphas > 0, alphas, 0)

    def _packed(self, tasks: int) -> torch.Tensor:
        """The masks of the first ``tasks`` tasks, [tasks, bytes]."""
        scores = [s.detach() for s in self.scores[:tasks]]
        selections = selecting.select_all(scores, [self._rule] * len(scores))
        return torch.stack([selecting.selected_bits(s, chosen) for s, chosen in zip(scores, selections, strict=True)])

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        for cuts in self._of_tasks_cuts:
            cuts.forget()  # may be on the device left behind
        if self._of_tasks_bits is not None:
            self._of_tasks_bits = fn(self._of_tasks_bits)
            self._of_tasks_codes = mixing.codes_of(self._of_tasks_bits)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # as torch has it

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()}, num_tasks={len(self.scores)})"


class MultitaskMaskConv(_Tasks, nn.Conv2d):
    """A convolution that keeps the best |scores| of its ``task``: nn.Conv2d's arguments, and by name num_tasks, else
    ``args.num_tasks``. ``sparsity`` is the fraction KEPT, ``args.sparsity`` until it is set.

    >>> from edgepop_kernels.compat.supsup import MultitaskMaskConv
    >>> conv = MultitaskMaskConv(3, 8, kernel_size=3, bias=False, num_tasks=2)
    >>> conv.sparsity, conv.task = 0.25, 1
    >>> conv(torch.randn(2, 3, 16, 16)).shape, sorted(conv.state_dict())
    (torch.Size([2, 8, 14, 14]), ['scores.0', 'scores.1', 'weight'])
    """

    def __init__(self, *args: Any, num_tasks: int | None = None, **kwargs: Any) -> None:
        super().__init__(*args, num_tasks=num_tasks, **kwargs)
        self.sparsity = _said("sparsity", 0.5)

    @property
    def sparsity(self) -> float:
        """The fraction KEPT, in (0, 1]."""
        return self._of_tasks_rule.keep

    @sparsity.setter
    def sparsity(self, sparsity: float) -> None:
        self._of_tasks_rule = TopK(sparsity)

    @property
    def _rule(self) -> Rule:
        return self._of_tasks_rule


class FastMultitaskMaskConv(_Tasks, nn.Conv2d):
    """A convolution that keeps the scores of at least 0 of its ``task``: nn.Conv2d's arguments, and by name num_tasks,
    else ``args.num_tasks``."""


class StackedFastMultitaskMaskConv(FastMultitaskMaskConv):
    """``FastMultitaskMaskConv`` without a cache, for tasks that come unannounced: a superposed forward makes the masks
    of all tasks learned from their scores, and mixes them with whatever alphas."""

    def _superposed(self) -> tuple[torch.Tensor, torch.Tensor]:
        bits = self._packed(min(len(self.scores), self.num_tasks_learned))
        return mixing.codes_of(bits), self.alphas[: self.num_tasks_learned].flatten()

    @property
    def cache_masks(self) -> Any:
        """Not there, as in that project, whose helpers look for it: AttributeError."""
        raise AttributeError("cache_masks")

    @property
    def clear_masks(self) -> Any:
        """Not there, as in that project, whose helpers look for it: AttributeError."""
        raise AttributeError("clear_masks")


class FastMultitaskMaskLinear(_Tasks, nn.Linear):
    """A linear layer that keeps the scores of at least 0 of its ``task``: nn.Linear's arguments, and by name num_tasks,
    else ``args.num_tasks``."""


class MultitaskMaskLinear(FastMultitaskMaskLinear):
    """The linear layer of supsup's notebook: ``FastMultitaskMaskLinear`` over signed constants that stand still, of one
    task where num_tasks does not say another number."""

    def __init__(self, *args: Any, num_tasks: int = 1, **kwargs: Any) -> None:
        super().__init__(*args, num_tasks=num_tasks, **kwargs)
        self.num_tasks = num_tasks
        self.weight.requires_grad_(False)
        fan = nn.init._calculate_correct_fan(self.weight, "fan_in")
        with torch.no_grad():
            self.weight.copy_(self.weight.sign() * (nn.init.calculate_gain("relu") / math.sqrt(fan)))
