"""Mask criteria and treatments of Zhou et al. 2019 against their definitions on small numbers."""

import pytest
import torch

import edgepop_kernels as ek
from edgepop_kernels.methods import criteria

WI = torch.tensor([[0.5, -1.0, 0.2, -0.1], [2.0, -0.3, 0.05, 0.7]])
WF = torch.tensor([[0.9, -0.2, -0.6, -0.4], [2.1, 0.1, 0.02, 0.6]])


@pytest.mark.parametrize(
    ("criterion", "best"),
    [
        ("large_final", {0, 2, 4, 7}),  # |w_f| .9 .2 .6 .4 2.1 .1 .02 .6
        ("small_final", {1, 3, 5, 6}),
        ("large_init", {0, 1, 4, 7}),  # |w_i| .5 1 .2 .1 2 .3 .05 .7
        ("small_init", {2, 3, 5, 6}),
        ("magnitude_increase", {0, 2, 3, 4}),  # .4 -.8 .4 .3 .1 -.2 -.03 -.1
        ("movement", {0, 1, 2, 5}),  # .4 .8 .8 .3 .1 .4 .03 .1
        ("snip", {1, 4, 5, 7}),  # |g w_i| with g = 1: as large_init, but for g = 2 on index 5
        ("grad", {0, 1, 2, 5}),
    ],
)
def test_criterion_keeps_its_best_half(criterion, best):
    gradient = torch.ones_like(WI)
    gradient[1, 1] = 2.0
    score = criteria.scores(criterion, WI, WF, gradient=gradient)
    assert set(criteria.prune(score, 0.5).flatten().nonzero().flatten().tolist()) == best


def test_two_criteria_at_once_are_an_intersection():
    """The top n of large_init_large_final lie in both top sets of the smallest common size."""
    wi, wf = torch.randn(20, 30), torch.randn(20, 30)
    both = criteria.prune(criteria.scores("large_init_large_final", wi, wf), 0.2)
    for keep in torch.linspace(0.2, 1, 400).tolist():
        common = criteria.prune(wi.abs(), keep) & criteria.prune(wf.abs(), keep)
        if common.sum() >= both.sum():
            assert (both & common).sum() >= both.sum() - 1  # the last two candidates may enter together
            break


def test_signs():
    changed = WI.sign() != WF.sign()
    for sign, expected in (("same", ~changed), ("different", changed)):
        score = criteria.scores("movement", WI, WF, sign=sign)
        assert torch.equal(score.isfinite(), expected)
        assert torch.equal(criteria.sign_mask(sign, WI, WF), expected)
    assert criteria.sign_mask("any", WI, WF).all()


def test_pruned_stay_pruned():
    score = torch.randn(10, 10)
    first = criteria.prune(score, 0.5)
    second = criteria.prune(-score, 0.8, first)
    assert first.sum() == 50 and second.sum() == ek.kept_count(50, 0.8) and not (second & ~first).any()
    assert torch.equal(second, first & (-score >= (-score)[second].min()))


def test_what_kept_weights_become():
    wi = torch.randn(40, 30)
    mask = criteria.prune(wi.abs(), 0.3)
    treated = {action: criteria.treat_kept(action, wi, mask) for action in criteria.MASK_1}
    assert all(not value[~mask].any() for value in treated.values())
    assert torch.equal(treated["rewind"], wi * mask)
    for action in ("random_reshuffle", "signed_reshuffle"):
        assert torch.equal(treated[action][mask].abs().sort().values, wi[mask].abs().sort().values)
        assert not torch.equal(treated[action], wi * mask)
    assert treated["random_reinit"][mask].abs().mean() < wi[mask].abs().mean()  # drawn from all weights
    for action in ("signed_reinit", "signed_reshuffle", "signed_constant"):
        assert torch.equal(treated[action].sign(), (wi * mask).sign())
    for action in ("signed_constant", "random_signed_constant"):
        torch.testing.assert_close(treated[action][mask].abs(), wi.std(correction=0).expand(int(mask.sum())))
    rescaled = criteria.treat_kept("rewind", wi, mask, rescale=True)
    torch.testing.assert_close(rescaled, wi * mask * (1200 / 360))


def test_what_pruned_weights_become():
    mask = criteria.prune(WF.abs(), 0.5)
    shrank = WF.abs() < WI.abs()
    start = {action: criteria.treat_pruned(action, WI, WF, mask) for action in criteria.MASK_0}
    assert torch.equal(start["zero"], WI * mask)
    assert torch.equal(start["freeze_init"], WI)
    assert torch.equal(start["freeze_init_zero_mask"], WI * (mask | ~shrank))
    assert torch.equal(start["freeze_init_zero_all"], WI * ~shrank)
    assert torch.equal(start["freeze_init_zero_rev"], WI * (mask | shrank))
    shuffled = start["freeze_init_zero_reshuffle"]
    assert torch.equal(shuffled[mask], WI[mask])
    assert ((shuffled == 0) & ~mask).sum() == (shrank & ~mask).sum() and ((shuffled == WI) | (shuffled == 0)).all()


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: criteria.scores("largest", WI, WF), "criterion"),
        (lambda: criteria.scores("snip", WI, WF), "gradient"),
        (lambda: criteria.scores("movement", WI, WF[:1]), "final"),
        (lambda: criteria.scores("movement", WI, WF, sign="flipped"), "sign"),
        (lambda: criteria.scores("snip", WI, WF, gradient=WF[:1]), "gradient"),
        (lambda: criteria.prune(WI, 0.5, (WI > 0).T), "mask"),
        (lambda: criteria.prune(WI, 0.5, (WI > 0)[0]), "mask"),
        (lambda: criteria.prune(WI, 0.5, (WI > 0)[:, 0]), "mask"),
        (lambda: criteria.treat_kept("rewind", WI, (WI > 0)[0]), "mask"),
        (lambda: criteria.treat_pruned("zero", WI, WF, (WI > 0)[:1]), "mask"),
        (lambda: criteria.treat_pruned("freeze_init_zero_all", WI, WF[:1], WI > 0), "final"),
        (lambda: criteria.treat_kept("reset", WI, WI > 0), "action"),
        (lambda: criteria.treat_pruned("reset", WI, WF, WI > 0), "action"),
    ],
)
def test_bad_input_is_named(call, name):
    with pytest.raises(ValueError, match=rf"^{name}: ."):
        call()


def test_a_mask_is_bool():
    number = (WI > 0).to(torch.uint8)
    for call in (
        lambda: criteria.prune(WI, 0.5, number),
        lambda: criteria.prune(WI, 0.5, WI),
        lambda: criteria.treat_kept("rewind", WI, number),
        lambda: criteria.treat_pruned("freeze_init", WI, WF, number),
    ):
        with pytest.raises(TypeError, match=r"^mask: expected a bool mask, got torch\."):
            call()
