"""Evaluation of few rows at a time, where what a call costs outside of its kernel shows."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from columns import masked_layers
from measure import Contest
from rows import RULE, randn

import edgepop_kernels as ek
from edgepop_kernels.testing import oracle
from edgepop_kernels.testing.tolerances import assert_close


@dataclass(frozen=True)
class EvalRow:
    """A network's forward in evaluation, its scores unchanged since the one before: in "fused" the cuts are known.

    frozen    its masks are kept for good
    one by one  "fused" with the network's layers called from outside, so that none calls for the others' cuts
    """

    label: str
    template: object
    x_shape: tuple[int, ...]
    rule: Any = RULE
    one_by_one: bool = False
    full = False
    compiled = False
    group = "eval"
    budget_s = 0.5
    launches = True

    @property
    def columns(self):
        return ("fused", "frozen", *(("one by one",) if self.one_by_one else ()), "dense")

    def __str__(self):
        return f"{self.label} batch {self.x_shape[0]} f32 fwd"

    def contest(self, columns, setup):
        torch.manual_seed(0)
        dense = self.template().to(setup.device).eval()
        fused = ek.convert(copy.deepcopy(dense), self.rule).eval()
        if self.one_by_one:
            ek.share_selection(fused)
        frozen = ek.convert(copy.deepcopy(dense), RULE).eval()
        x = randn(self.x_shape, 1, setup.device)
        masks = {name: oracle.mask(m.scores, RULE) for name, m in fused.named_modules() if m in masked_layers(fused)}
        if self.one_by_one:
            masks = {name: fused.get_submodule(name).mask() for name in masks}
        for name, mask in masks.items():
            frozen.get_submodule(name).freeze(mask)
        plain = copy.deepcopy(dense).double()
        for name, mask in masks.items():
            plain.get_submodule(name).weight.data.masked_fill_(~mask, 0)

        def layer_by_layer():
            y = x
            for layer in fused:
                y = layer(y)
            return y

        networks = {
            "fused": lambda: fused(x),
            "frozen": lambda: frozen(x),
            "one by one": layer_by_layer,
            "dense": lambda: dense(x),
        }

        def evaluated(network):
            def run():
                with torch.no_grad():
                    return network()

            return run

        calls = {c: setup.on_its_backend("dense" if c == "dense" else "fused", evaluated(networks[c])) for c in columns}

        def check():
            with torch.no_grad():
                expected = plain(x.double())
            for column in set(columns) - {"dense"}:
                assert_close(column, calls[column](), expected, torch.float32)

        return Contest(check, calls)
