"""Rules that rank beyond one layer's exact top-k: one threshold for a network, and a percentile with its ties."""

import pytest
import torch
from torch import nn

import edgepop_kernels as ek


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
