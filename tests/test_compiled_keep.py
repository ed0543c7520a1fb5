"""A keep that changes does not compile a network anew."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from torch import nn

import edgepop_kernels as ek

RULES = [ek.TopK(0.95), ek.TopK(0.95, of="raw"), ek.Percentile(0.95), ek.Block(0.95, (1, 1)), ek.Channels(0.95)]


@pytest.mark.parametrize("shared", [False, True], ids=["per layer", "shared selection"])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_keep_that_changes_in_every_step_compiles_twice_in_all(compiled, rule, shared):
    compile, made = compiled
    model = ek.convert(nn.Sequential(nn.Linear(13, 33), nn.ReLU(), nn.Linear(33, 5)), rule)
    if shared:
        ek.share_selection(model)
    run, x = compile(model), torch.randn(3, 13)
    for step in range(20):
        if step:
            for layer in (model[0], model[2]):
                layer.keep = 0.95 - 0.04 * step
        y = run(x)
        kept = [int(layer.mask().sum()) for layer in (model[0], model[2])]
        assert kept == [int(ek.mask(m.scores, replace(rule, keep=m.keep)).sum()) for m in (model[0], model[2])]
        torch.testing.assert_close(y, ek.materialize(model, copy=True)(x))
    assert len(made) == 2  # of the keep that it began with, and of one that moves


def test_a_rule_with_another_keep_is_a_value_like_any():
    rule = ek.TopK(0.5).with_keep(0.3)
    assert rule == ek.TopK(0.3) and hash(rule) == hash(ek.TopK(0.3)) and repr(rule) == repr(ek.TopK(0.3))
    for twin in (copy.deepcopy(rule), pickle.loads(pickle.dumps(rule))):
        assert twin == rule and twin.moving.item() == 0.7


def test_the_op_of_a_keep_that_moves_selects_as_select_does():
    scores, removed = torch.randn(5, 17), torch.tensor(1 - 0.3, dtype=torch.float64)
    for rule in (ek.TopK(0.3), ek.Percentile(0.3)):
        arguments = [scores], [removed], [type(rule).__name__], [rule.of], None
        found = torch.ops.edgepop.select_moving(*arguments)
        expected = torch.ops.edgepop.select([scores], [rule.kept(scores.numel())], [rule.of], None)
        assert torch.equal(found, expected)
        torch.library.opcheck(torch.ops.edgepop.select_moving.default, arguments)
