"""An account of a network: what its masks keep, and what still trains outside of them."""

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any, cast

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from .nn import MaskedLayer
from .rules import Rule
from .sharing import layer_masks

_COLUMNS = 100


class LeftDense(UserWarning):
    """A warning by ``convert`` about weights that go on training without a mask."""


@dataclass(frozen=True)
class Left:
    """A parameter that trains outside of masks: of which module, of what class; shape () while it is not known."""

    name: str
    kind: str
    parameter: str
    shape: tuple[int, ...]
    numel: int

    @property
    def minor(self) -> bool:
        """Whether it is a norm's, a bias or another vector: nothing that a mask would be for."""
        return (self.numel > 0 and sum(size > 1 for size in self.shape) < 2) or "norm" in self.kind.lower()


@dataclass(frozen=True)
class Row:
    """A masked layer. kept: of its ``total`` weights, in evaluation; under a rule that draws there, to be expected.
    trains: the names of its parameters that train."""

    name: str
    kind: str
    shape: tuple[int, ...]
    rule: Rule
    kept: int
    total: int
    trains: tuple[str, ...]


@dataclass(frozen=True)
class Summary:
    """An account of a network, as ``summary`` makes it; as a string a table of 100 columns.

    rows      one per masked layer
    left      what trains outside of masks, biases of masked layers too
    still     how many values of parameters outside of masks do not train
    lacking   names of parameters that train but that the optimizer, where one was given, does not hold
    """

    rows: list[Row]
    left: list[Left]
    still: int
    lacking: list[str] = field(default_factory=list)

    @property
    def kept(self) -> int:
        """The number of weights kept in all masked layers."""
        return sum(row.kept for row in self.rows)

    @property
    def total(self) -> int:
        """The number of weights of all masked layers."""
        return sum(row.total for row in self.rows)

    @property
    def dense(self) -> int:
        """The number of values that train outside of masks."""
        return sum(left.numel for left in self.left)

    def __str__(self) -> str:
        lines = []
        if self.rows:
            lines.append(f"kept in all: {self.kept:,} of {self.total:,} weights ({self.kept / max(self.total, 1):.2%})")
        if self.left:
            lines.append(f"training outside of masks, {self.dense:,} values: {described(self.left)}")
        if self.still:
            lines.append(f"outside of masks, not training: {self.still:,} values")
        if self.lacking:
            lines.append(f"training, but not held by the optimizer: {_some(self.lacking)}")
        return "\n".join([*_table(self.rows), *(part for line in lines for part in textwrap.wrap(line, _COLUMNS))])


@torch.no_grad()
def summary(model: nn.Module, optimizer: Optimizer | None = None) -> Summary:
    """Counts what the masks of ``model`` keep, and what else of it trains; ``print(ek.summary(model))`` shows a table.

    optimizer  where given, the summary names what trains without being among its parameters, as after a ``convert``
               that came later than the optimizer

    Nothing is changed, nor drawn. Raises TypeError for what is no module.

    >>> model = ek.convert(nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)), keep=0.5)
    >>> account = ek.summary(model)
    >>> account.kept, account.total
    (1184, 2368)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    layers = {name: m for name, m in model.named_modules() if isinstance(m, MaskedLayer)}
    drawing = [m for m in layers.values() if m._settled_rule().fresh]
    counted = [m for m in layers.values() if m not in drawing]
    kept = {m: int(mask.sum()) for m, mask in zip(counted, layer_masks(counted), strict=True)}
    kept |= {m: round(m.keep * m._weight_shape().numel()) for m in drawing}
    rows = [
        Row(
            name,
            type(m).__name__,
            tuple(m._weight_shape()),
            m.rule,
            kept[m],
            m._weight_shape().numel(),
            tuple(n for n, p in m.named_parameters(recurse=False) if p.requires_grad),
        )
        for name, m in layers.items()
    ]
    left = left_dense(model)
    masked = {p for m in layers.values() for n, p in m.named_parameters(recurse=False) if n != "bias"}
    still = sum(_numel(p) for p in model.parameters() if p not in masked and not p.requires_grad)
    lacking = []
    if optimizer is not None:
        held = {p for group in optimizer.param_groups for p in group["params"]}
        lacking = [name for name, p in model.named_parameters() if p.requires_grad and p not in held]
    return Summary(rows, left, still, lacking)


def left_dense(model: nn.Module, masked: Iterable[nn.Module] = (), meant: Iterable[str] = ()) -> list[Left]:
    """The parameters of ``model`` that train outside of masks.

    masked  layers that are about to be, whose weight does not count
    meant   names of modules to pass over; what another module has as well is that one's
    """
    masked, meant, seen, found = set(masked), set(meant), set(), []
    for name, module in model.named_modules():
        if name in meant:
            continue
        under_mask: tuple[str, ...] = ()
        if isinstance(module, MaskedLayer):
            under_mask = ("weight", module._scores_name, "bias_scores")
        if module in masked:  # of another project it may hold scores and weight by other names
            under_mask = tuple(key for key in module._parameters if key != "bias")
        elif getattr(module, "bias_scores", None) is not None or getattr(module, "bias_mask", None) is not None:
            under_mask = (*under_mask, "bias")
        for key, p in module._parameters.items():
            if p is None or not p.requires_grad or key in under_mask or p in seen:
                continue
            seen.add(p)
            shape = () if is_lazy(p) else tuple(p.shape)
            found.append(Left(name, type(module).__name__, key, shape, _numel(p)))
    return found


def described(left: list[Left]) -> str:
    """The parameters that are left, counted by class and parameter, with names of the larger ones."""
    weights: dict[str, list[Left]] = {}
    norms: dict[str, set[str]] = {}
    others: dict[str, int] = {}
    for entry in left:
        if not entry.minor:
            of = "" if entry.parameter == "weight" else f".{entry.parameter}"
            weights.setdefault(f"{entry.kind}{of}", []).append(entry)
        elif "norm" in entry.kind.lower():
            norms.setdefault(entry.kind, set()).add(entry.name)
        else:
            what = "biases" if "bias" in entry.parameter else f"{entry.kind}.{entry.parameter}"
            others[what] = others.get(what, 0) + 1
    parts = []
    for kind, entries in sorted(weights.items(), key=lambda item: -sum(e.numel for e in item[1])):
        numel, names = sum(e.numel for e in entries), dict.fromkeys(e.name or "the model itself" for e in entries)
        size = f"{numel:,} weights" if numel else "not known before a forward"
        parts.append(f"{len(entries)} {kind} ({_some(names)}: {size})")
    parts += [f"{len(names)} {kind}" for kind, names in norms.items()]
    parts += [f"{count} {'bias' if what == 'biases' and count == 1 else what}" for what, count in others.items()]
    return ", ".join(parts)


def _numel(p: torch.Tensor) -> int:
    return 0 if is_lazy(p) else p.numel()


def _some(names: Iterable[str], most: int = 2) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _table(rows: list[Row]) -> list[str]:
    """Lines of at most 100 columns: the name gives way first, then the rule."""
    if not rows:
        return ["no masked layers"]
    head = ("layer", "kind", "weight", "rule", "kept", "of", "%", "trains")
    cells = [head]
    for row in rows:
        share = f"{100 * row.kept / max(row.total, 1):.1f}"
        shape = "x".join(map(str, row.shape))
        trains = ", ".join(row.trains) or "nothing"
        rule = _shortened(brief(row.rule), 18)
        kept, total = f"{row.kept:,}", f"{row.total:,}"
        cells.append((row.name or "(itself)", row.kind.removeprefix("Fused"), shape, rule, kept, total, share, trains))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    widths[0] = min(widths[0], max(8, _COLUMNS - sum(widths[1:]) - len(widths) + 1))
    lines = []
    for line in cells:
        padded = [
            cell.rjust(width) if 4 <= i <= 6 else _shortened(cell, width).ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append(" ".join(padded).rstrip()[:_COLUMNS])
    return lines


def brief(rule: Rule) -> str:
    """The rule without what is as ever: TopK(0.3), Threshold(0.5, of='raw')."""
    said = []
    for i, f in enumerate(fields(cast(Any, rule))):
        value = getattr(rule, f.name)
        if i == 0 and isinstance(value, float):
            said.append(f"{value:.4g}")
        elif value != f.default:
            said.append(f"{f.name}={value!r}")
    return f"{type(rule).__name__}({', '.join(said)})"


def _shortened(text: str, width: int) -> str:
    """``text``, its middle left out where it is longer than ``width``."""
    if len(text) <= width:
        return text
    end = (width - 2) // 2
    return f"{text[: width - 2 - end]}..{text[len(text) - end :]}"
