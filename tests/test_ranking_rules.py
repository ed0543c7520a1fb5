"""Rules that rank beyond one layer's exact top-k: one threshold for a network, and a percentile with its ties."""

import math
import warnings

import pytest
import torch
from torch import nn

import edgepop_kernels as ek
from edgepop_kernels import selecting


def tied_scores():
    return [torch.randint(-4, 5, shape).float() * 0.5 for shape in ((7, 5), (3, 2, 3, 3), (40,))]


@pytest.mark.parametrize("of", ["abs", "raw"])
@pytest.mark.parametrize("keep", [0.01, 0.3, 0.5, 1.0])
def test_global_topk_is_topk_of_the_joined_scores(of, keep):
    """{|s| > tau over all layers}, tau so that exactly kept_count remain; ties by layer, then index."""
    scores = tied_scores()
    joined = torch.cat([s.flatten() for s in scores])
    expected = ek.mask(joined, ek.TopK(keep, of)).split([s.numel() for s in scores])
    cuts = ek.select_all(scores, [ek.GlobalTopK(keep, of)] * 3)
    for s, cut, part in zip(scores, cuts, expected, strict=True):
        x = torch.eye(s[0].numel()) if s.dim() > 1 else torch.eye(s.numel())
        matrix = s.reshape(-1, x.shape[0])
        y = ek.masked_linear(x, torch.ones_like(matrix), matrix, ek.GlobalTopK(keep, of), cut=cut)
        assert torch.equal(y.t().bool(), part.view(matrix.shape))
    channels_last = [scores[1].contiguous(memory_format=torch.channels_last)]
    again = ek.select_all([scores[0], *channels_last, scores[2]], [ek.GlobalTopK(keep, of)] * 3)
    assert all(torch.equal(a.data, b.data) for a, b in zip(cuts, again, strict=True))


def test_global_rules_group_by_equality_and_mix_with_others():
    scores = [torch.randn(50) for _ in range(5)]
    one, two = ek.GlobalTopK(0.2), ek.GlobalTopK(0.7)
    cuts = ek.select_all(scores, [one, two, ek.TopK(0.3), two, one])
    for i, j, rule in ((0, 4, one), (1, 3, two)):
        pair = ek.select_all([scores[i], scores[j]], [rule, rule])
        assert torch.equal(cuts[i].data, pair[0].data) and torch.equal(cuts[j].data, pair[1].data)
    assert torch.equal(cuts[2].data, ek.select(scores[2], ek.TopK(0.3)).data)


def test_a_network_under_one_threshold():
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    ek.convert(model, ek.GlobalTopK(0.25))
    with pytest.raises(ValueError, match="share_selection"):
        model(torch.randn(2, 8))
    ek.share_selection(model)
    with torch.no_grad():
        model[2].scores.mul_(10)
    x = torch.randn(2, 8)
    y = model(x)
    masks = [model[0].mask(), model[2].mask()]
    assert sum(int(m.sum()) for m in masks) == ek.kept_count(8 * 16 + 16 * 4, 0.25) and masks[1].float().mean() > 0.5
    scores = torch.cat([model[0].scores.flatten(), model[2].scores.flatten()])
    assert torch.equal(torch.cat([m.flatten() for m in masks]), ek.mask(scores.detach(), ek.TopK(0.25)))
    plain = ek.materialize(model)
    torch.testing.assert_close(plain(x), y)
    assert [torch.equal(plain[i].weight != 0, m) for i, m in zip((0, 2), masks, strict=True)] == [True, True]


def getsubnet_faster(scores, keep):
    """scores >= kthvalue(1 + round(.01 q (n - 1))), q the percentage removed."""
    q = (1 - keep) * 100
    j = 1 + round(0.01 * float(q) * (scores.numel() - 1))
    return scores >= scores.flatten().kthvalue(j).values


@pytest.mark.parametrize("keep", [0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0])
@pytest.mark.parametrize("kind", ["normal", "tied", "equal"])
def test_percentile_is_getsubnet_faster(keep, kind):
    scores = {"normal": torch.randn(1000), "tied": torch.randint(1, 9, (1000,)).float(), "equal": torch.ones(1000)}[
        kind
    ]
    assert torch.equal(ek.mask(scores, ek.Percentile(keep, "raw")), getsubnet_faster(scores, keep))
    assert torch.equal(ek.mask(scores, ek.Percentile(keep)), getsubnet_faster(scores.abs(), keep))


def test_percentile_counts_differ_from_topk_as_published():
    scores = torch.randperm(1000).float()
    counts = [(ek.mask(scores, rule(keep)).sum().item()) for keep in (0.3, 0.9) for rule in (ek.Percentile, ek.TopK)]
    assert counts == [301, 300, 900, 901]
    assert ek.mask(torch.zeros(0), ek.Percentile(0.5)).numel() == 0


@pytest.mark.parametrize("of", ["abs", "raw"])
@pytest.mark.parametrize("at_least", [0.05, 0.2, 0.4])
def test_a_floor_keeps_each_layers_best_and_ranks_the_rest_together(of, at_least):
    """Of all masks with the floors, that of the highest threshold which keeps no more than kept_count in all."""
    scores = [torch.randn(7, 5) * 10, torch.randn(100) * 0.1, torch.randint(-4, 5, (3, 3)).float()]
    rule = ek.GlobalTopK(0.4, of, at_least=at_least)
    masks = [selecting.selected_mask(s, cut) for s, cut in zip(scores, ek.select_all(scores, [rule] * 3), strict=True)]
    floors = [ek.mask(s, ek.TopK(at_least, of)) for s in scores]
    ranked = [s.abs() if of == "abs" else s for s in scores]
    for r, mask, floor in zip(ranked, masks, floors, strict=True):
        assert bool((mask | ~floor).all())  # nothing of a floor is missing
        assert lowest(r[mask]) >= highest(r[~mask])  # a layer keeps its best
    numel = sum(s.numel() for s in scores)
    assert sum(int(m.sum()) for m in masks) == max(ek.kept_count(numel, 0.4), sum(int(f.sum()) for f in floors))
    # Beyond the floors one threshold holds for all layers.
    beyond = min(lowest(r[m & ~f]) for r, m, f in zip(ranked, masks, floors, strict=True))
    assert beyond >= max(highest(r[~m]) for r, m in zip(ranked, masks, strict=True))


def lowest(values):
    return values.min().item() if len(values) else math.inf


def highest(values):
    return values.max().item() if len(values) else -math.inf


@pytest.mark.parametrize(
    ("at_least", "error"), [(-0.1, ValueError), (0.5, ValueError), (float("nan"), ValueError), ("0.1", TypeError)]
)
def test_a_floor_is_a_fraction_up_to_keep(at_least, error):
    with pytest.raises(error, match="at_least: expected a"):
        ek.GlobalTopK(0.3, at_least=at_least)


def scaled_network(rule):
    """Scores on scales as different as the layers' fans."""
    model = nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
    ek.convert(model, rule)
    with torch.no_grad():
        model[2].scores.mul_(0.01)
    return ek.share_selection(model)


def test_a_layer_that_keeps_nothing_is_named_once():
    model = scaled_network(ek.GlobalTopK(0.2))
    with pytest.warns(UserWarning, match=r"GlobalTopK keeps nothing of 2 \(0 of 30,000\)"):
        model(torch.randn(2, 64))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(torch.randn(2, 64))


def test_with_a_floor_every_layer_keeps_some(recwarn):
    model = scaled_network(ek.GlobalTopK(0.2, at_least=0.05))
    assert model(torch.randn(2, 64)).ne(0).any()
    assert model[2].mask().sum() == ek.kept_count(30_000, 0.05)
    assert not recwarn.list
