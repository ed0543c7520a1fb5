"""Rules that are told what to remove: they count as sources count that say so, to the weight."""

import copy
import dataclasses
import pickle

import pytest
import torch
from torch import nn

import edgepop_kernels as ek

# ResNet-50's layers, and sizes at which a fraction of them is nearly whole.
NUMELS = [
    *(1, 3, 10, 17, 63, 100, 997, 1000, 5120, 9408, 4096, 16384, 36864, 65536, 32768, 147456, 131072, 262144, 524288),
    *(589824, 1048576, 2359296, 2048000),
]
RATES = [i / 1000 for i in range(1, 1000)]


def chosen_edges(numel, prune_rate):
    """What Discovering Neural Wirings' layers keep (Wortsman et al. 2019, its code): int(prune_rate * n) are zeroed."""
    return numel - int(prune_rate * numel)


def percentile_kept(numel, sparsity):
    """What is at or above the j-th smallest, j = 1 + round(.01 * q * (n - 1)), q = 100 * sparsity."""
    return numel - (1 + round(0.01 * float(sparsity * 100) * (numel - 1))) + 1


def test_what_is_dropped_is_counted_as_given():
    apart = 0
    for rate in RATES:
        top, percentile, by_keep = ek.TopK(drop=rate), ek.Percentile(drop=rate), ek.TopK(1 - rate)
        for numel in NUMELS:
            expected = chosen_edges(numel, rate)
            assert top.kept(numel) == ek.GlobalTopK(drop=rate).kept(numel) == expected, (numel, rate)
            assert ek.kept_count(numel, drop=rate) == expected
            assert percentile.kept(numel) == percentile_kept(numel, rate), (numel, rate)
            apart += by_keep.kept(numel) != expected
    assert apart > 100  # 1 - rate is another number


@pytest.mark.parametrize("keep", [i / 100 for i in range(1, 101)])
def test_what_is_kept_is_counted_as_before(keep):
    for numel in NUMELS:
        assert ek.TopK(keep).kept(numel) == ek.kept_count(numel, keep) == numel - int((1 - keep) * numel)
    assert repr(ek.TopK(keep)) == f"TopK(keep={keep}, of='abs')"


@pytest.mark.parametrize("kind", [ek.TopK, ek.Percentile])
@pytest.mark.parametrize(("shape", "drop"), [((64, 80), 0.1), ((10, 1), 0.1), ((17, 63), 0.7), ((7, 3), 0.0)], ids=str)
def test_masks_have_that_count(kind, shape, drop):
    scores = torch.randn(shape)
    count = (chosen_edges if kind is ek.TopK else percentile_kept)(scores.numel(), drop)
    for of in ("abs", "raw"):
        mask = ek.mask(scores, kind(of=of, drop=drop))
        ranked = scores.abs() if of == "abs" else scores
        assert torch.equal(mask, ranked >= ranked.flatten().sort().values[-count])


def test_the_fraction_kept_is_one_less_what_is_dropped():
    rule = ek.TopK(drop=0.1)
    assert (rule.keep, rule.drop, rule.of) == (0.9, 0.1, "abs") and rule != ek.TopK(0.9)
    assert repr(rule) == "TopK(keep=0.9, of='abs', drop=0.1)" and eval(repr(rule), {"TopK": ek.TopK}) == rule
    assert (ek.TopK().keep, ek.TopK().drop) == (0.5, None) and ek.TopK(drop=0).keep == 1
    assert rule.with_keep(0.3) == ek.TopK(0.3) and rule.with_drop(0.3) == ek.TopK(drop=0.3)
    assert ek.TopK(0.2).with_drop(0.3).kept(1000) == 700
    assert dataclasses.replace(ek.TopK(0.2), keep=0.3) == ek.TopK(0.3)
    assert dataclasses.replace(ek.TopK(of="raw"), drop=0.3) == ek.TopK(of="raw", drop=0.3)
    assert pickle.loads(pickle.dumps(rule)) == copy.deepcopy(rule) == rule and hash(rule) == hash(copy.copy(rule))
    assert ek.GlobalTopK(0.5, "raw", 0.1) == ek.GlobalTopK(0.5, of="raw", at_least=0.1)


@pytest.mark.parametrize("kind", [ek.TopK, ek.Percentile, ek.GlobalTopK])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(keep=0.5, drop=0.7), r"^drop: expected keep or drop, one of the two, got keep=0.5 and drop=0.7"),
        (dict(keep=0.3, drop=0.7), r"^drop: expected keep or drop, one of the two, got keep=0.3 and drop=0.7"),
        (dict(drop=1.0), r"^drop: the fraction of weights REMOVED must be in \[0, 1\), got 1.0"),
        (dict(drop=-0.1), r"^drop: the fraction of weights REMOVED must be in \[0, 1\), got -0.1"),
        (dict(drop=float("nan")), r"^drop: the fraction of weights REMOVED must be in \[0, 1\), got nan"),
        (dict(drop=True), r"^drop: expected a float in \[0, 1\), got bool"),
        (dict(drop="0.5"), r"^drop: expected a float in \[0, 1\), got str"),
    ],
    ids=str,
)
def test_wrong_fractions_are_named(kind, arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        kind(**arguments)


def test_kept_count_takes_one_of_the_two():
    for given in ({}, dict(keep=0.5, drop=0.5)):
        with pytest.raises(ValueError, match=r"^keep: expected keep or drop, one of the two, got keep="):
            ek.kept_count(10, **given)


@pytest.mark.parametrize("rule", [ek.TopK(drop=0.1), ek.Percentile(of="raw", drop=0.1), ek.TopK(0.9)], ids=str)
def test_a_state_dict_has_it(rule):
    layer, other = ek.FusedSubnetLinear(64, 80, rule=rule), ek.FusedSubnetLinear(64, 80)
    assert other.load_state_dict(layer.state_dict()) == ([], [])
    assert other.rule == rule and torch.equal(other.mask(), layer.mask())
    assert ("drop" in bytes(layer.state_dict()["_extra_state"].tolist()).decode()) == (rule.drop is not None)
    layer.freeze(keep_scores=True)
    other.load_state_dict(layer.state_dict())
    other.thaw()
    assert other.rule == rule


def test_the_layers_of_discovering_neural_wirings_drop_what_they_are_told():
    layer = ek.FusedSparseConv(64, 80, 1)
    layer.set_prune_rate(0.1)
    assert int(layer.mask().sum()) == chosen_edges(5120, 0.1) == 4608 and layer.keep == 0.9
    layer.set_prune_rate(0)
    assert layer.mask().all()


def test_a_compiled_forward_follows_what_is_dropped():
    """keep moves, and a layer that stays counts as it was told."""
    model = nn.Sequential(ek.FusedSparseLinear(64, 80, keep=0.5), ek.FusedSubnetLinear(80, 64, rule=ek.TopK(drop=0.1)))
    x = torch.randn(3, 64)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for rate in (0.3, 0.1, 0.2):
        model[0].set_prune_rate(rate)
        expected = nn.functional.linear(x, model[0].effective_weight(), model[0].bias)
        expected = nn.functional.linear(expected, model[1].effective_weight(), model[1].bias)
        torch.testing.assert_close(compiled(x), expected)
        assert int(model[0].mask().sum()) == chosen_edges(5120, rate)
        assert int(model[1].mask().sum()) == 4608


def test_the_op_of_a_keep_that_moves_counts_by_what_is_removed():
    scores = [torch.randn(5120), torch.randn(5120)]
    rules = [ek.TopK(0.5).with_drop(0.1), ek.Percentile(0.5).with_keep(0.9)]
    cuts = torch.ops.edgepop.select_moving(
        scores, [r.moved() for r in rules], [type(r).__name__ for r in rules], ["abs", "abs"], None
    )
    for s, rule, cut in zip(scores, rules, cuts, strict=True):
        assert torch.equal(rule.cut(cut, 5120).data, ek.select(s, rule).data)
        assert int((s.abs() >= ek.Cut(cut, "abs").threshold).sum()) == rule.kept(5120)
