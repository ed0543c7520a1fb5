"""Model cards: what is known of a network, as a page of Markdown. Nothing stands there that nobody said or counted."""

from typing import Any

import torch
from torch import nn

from ..nn import MaskedLayer
from ..overview import brief, summary
from .outline import named_layers, unwrapped

_METHODS = {
    "subnet": "edge-popup (Ramanujan et al. 2020): random weights stand still, scores choose among them",
    "supermask": "supermask (Zhou et al. 2019): weights stand still, the sigmoid of scores is thresholded or drawn",
    "sparse": "Discovering Neural Wirings (Wortsman et al. 2019): the largest weights are used, all are trained",
}


@torch.no_grad()
def model_card(model: nn.Module, title: str, **facts: Any) -> str:
    """A page of Markdown about a network: its method, rules, sizes and what every layer keeps, as counted here, and
    before them ``facts``, as they are handed in.

    facts: whatever is known, by name: ``accuracy="91.4 %"``, ``seed=0``, ``trained_on="digits"``; an underscore is
    shown as a space, and what is None is left out. Raises TypeError.

    >>> model = ek.convert(nn.Sequential(nn.Linear(64, 10)), keep=0.3)
    >>> print(ek.model_card(model, "Digits", accuracy="91.4 %", seed=None))
    # Digits
    <BLANKLINE>
    | | |
    |---|---|
    | accuracy | 91.4 % |
    | method | edge-popup (Ramanujan et al. 2020): random weights stand still, scores choose among them |
    | weights under masks | 192 of 640 kept (30.0 %) |
    | other values | 10 |
    <BLANKLINE>
    | layer | kind | weight | rule | kept | of | % |
    |---|---|---|---|---:|---:|---:|
    | 0 | SubnetLinear | 10x64 | TopK(0.3) | 192 | 640 | 30.0 |
    <BLANKLINE>
    """
    if not isinstance(title, str):
        raise TypeError(f"title: expected a string, got {type(title).__name__}")
    inner = unwrapped(model)
    layers, account = named_layers(inner), summary(inner)
    said = {name.replace("_", " "): value for name, value in facts.items() if value is not None}
    if account.rows:
        said.setdefault("method", "; ".join(dict.fromkeys(_METHODS[m._method] for m in layers.values())))
        said["weights under masks"] = (
            f"{account.kept:,} of {account.total:,} kept ({_percent(account.kept, account.total)} %)"
        )
    said["other values"] = f"{_others(inner):,}"
    lines = [f"# {title}", "", "| | |", "|---|---|", *(f"| {_cell(n)} | {_cell(v)} |" for n, v in said.items()), ""]
    if account.rows:
        lines += ["| layer | kind | weight | rule | kept | of | % |", "|---|---|---|---|---:|---:|---:|"]
    for row in account.rows:
        rule = layers[row.name]._loose_rule if row.rule.fixed else None  # of a frozen layer the one that chose
        cells = (
            *(row.name or "(itself)", row.kind.removeprefix("Fused"), "x".join(map(str, row.shape))),
            *(brief(rule or row.rule), f"{row.kept:,}", f"{row.total:,}", _percent(row.kept, row.total)),
        )
        lines.append(f"| {' | '.join(map(_cell, cells))} |")
    return "\n".join([*lines, ""]) if account.rows else "\n".join(lines)


def _others(model: nn.Module) -> int:
    """How many values there are in parameters and running statistics outside of masked weights."""
    found = dict[int, torch.Tensor]()
    for module in model.modules():
        own = (
            [module.bias]
            if isinstance(module, MaskedLayer)
            else [*module._parameters.values(), *module._buffers.values()]
        )
        found |= {id(t): t for t in own if t is not None}
    return sum(t.numel() for t in found.values())


def _percent(kept: int, total: int) -> str:
    return f"{100 * kept / max(total, 1):.1f}"


def _cell(value: object) -> str:
    """A text within one cell of a table."""
    return " ".join(str(value).split()).replace("|", "\\|")
