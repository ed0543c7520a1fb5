"""The rule of N:M masks: what it takes and refuses, and which groups it means."""

import pytest
import torch
from structures import groups_kept
from torch import nn

import edgepop_kernels as ek

RULE = ek.NM(2, 4)


def test_a_rule_says_what_it_takes():
    assert str(RULE) == "NM(n=2, m=4, of='abs', dim=1)" and ek.NM(2, 4).keep == 0.5 and hash(RULE) == hash(ek.NM(2, 4))
    for arguments, error, message in [
        ((0, 4), ValueError, "n: expected 1 to m=4 weights kept of a group, got 0"),
        ((5, 4), ValueError, "n: expected 1 to m=4 weights kept of a group, got 5"),
        ((1, 65), ValueError, "m: expected 1 to 64 weights in a group, got 65"),
        ((1, 0), ValueError, "m: expected 1 to 64 weights in a group, got 0"),
        ((2.0, 4), TypeError, "n: expected an int, got float"),
        ((2, True), TypeError, "m: expected an int, got bool"),
        ((2, 4, "sigmoid"), ValueError, "of: expected one of 'abs', 'raw', got 'sigmoid'"),
    ]:
        with pytest.raises(error, match=message):
            ek.NM(*arguments)
    with pytest.raises(ValueError, match="dim: expected 0 or 1, got 2"):
        ek.NM(2, 4, dim=2)
    message = r"rule: NM\(.*\) takes weights whose dimension 1 is a multiple of 4, got shape \(8, 6\)"
    for call in (
        lambda: ek.mask(torch.randn(8, 6), RULE),
        lambda: ek.select(torch.randn(8, 6), RULE),
        lambda: ek.masked_linear(torch.randn(2, 6), torch.randn(8, 6), torch.randn(8, 6), RULE),
        lambda: ek.FusedSubnetLinear(6, 8, rule=RULE),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(ValueError, match=r"keep: this layer's rule, NM\(.*\), has none to set"):
        ek.FusedSubnetLinear(8, 8, rule=RULE).keep = 0.25


def test_convert_names_the_layer_that_has_no_whole_groups_and_changes_nothing():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    with pytest.raises(ValueError, match=r"got shape \(8, 3, 3, 3\), of 0; exclude=\.\.\. leaves that dense"):
        ek.convert(model, RULE)
    assert type(model[1]) is nn.Conv2d
    ek.convert(model, RULE, exclude="0")
    assert groups_kept(model[1].mask(), 4).unique().tolist() == [2]
    with pytest.raises(ValueError, match="rule: FusedSupermaskLinear takes one of Threshold, Bernoulli, got NM"):
        ek.FusedSupermaskLinear(8, 8, rule=RULE)


def test_groups_of_a_transposed_layer_lie_along_its_inputs_by_dim_0():
    model = ek.convert(nn.Sequential(nn.ConvTranspose2d(8, 6, 3)), ek.NM(2, 4, dim=0))
    assert groups_kept(model[0].mask(), 4, dim=0).unique().tolist() == [2]
    x = torch.randn(2, 8, 5, 5)
    torch.testing.assert_close(model(x), ek.materialize(model, copy=True)(x))


def test_a_deviation_follows_the_fraction_and_scores_may_start_from_weights():
    model = ek.convert(nn.Sequential(nn.Linear(32, 16)), ek.NM(1, 4), init="signed_constant", scale="paper")
    assert model[0].weight.abs().max().item() == pytest.approx((2 / (32 * 0.25)) ** 0.5)
    trained = nn.Sequential(nn.Linear(32, 16))
    weight = trained[0].weight.detach().clone()
    ek.convert(trained, RULE, scores="magnitude")
    assert torch.equal(trained[0].mask(), ek.mask(weight, RULE))
