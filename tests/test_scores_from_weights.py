"""Scores that start from the weights: init.scores_from_weight_, convert(scores=...)."""

import copy
import math

import pytest
import torch
from torch import nn

import edgepop_kernels as ek

LAYERS = [nn.Linear(7, 11), nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose2d(4, 6, 3)]


@pytest.mark.parametrize("how", ["magnitude", "hydra"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "layer", [nn.Linear(7, 11), nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose2d(4, 6, 3)], ids=str
)
def test_scores_of_weights_start_at_the_largest(layer, dtype, how):
    model = nn.Sequential(copy.deepcopy(layer).to(dtype))
    weight = model[0].weight.detach().clone().float()
    ek.convert(model, keep=0.3, scores=how)
    found, fan_in = model[0].scores.detach(), model[0]._fan_in()
    expected = weight.abs() if how == "magnitude" else math.sqrt(6 / fan_in) * weight / weight.abs().max()
    torch.testing.assert_close(found, expected)
    assert found.dtype == torch.float32 and model[0].scores.requires_grad
    assert torch.equal(model[0].mask(), ek.mask(weight, ek.TopK(0.3)))
    assert torch.equal(model[0].weight.float(), weight)


def test_fan_in_is_of_outputs_and_zeros_stay_zeros():
    layer = ek.FusedSubnetConvTranspose2d(4, 6, 3)
    with torch.no_grad():
        layer.weight.zero_()
    ek.init.scores_from_weight_(layer, "hydra")
    assert not layer.scores.any()


def test_scores_follow_the_weights_that_are_drawn():
    model = ek.convert(nn.Sequential(nn.Linear(9, 9)), keep=0.5, init="kaiming_normal", scores="magnitude")
    assert torch.equal(model[0].scores, model[0].weight.abs())


def test_scores_from_weights_say_what_they_do_not_take():
    def plain():
        return nn.Sequential(nn.Linear(4, 4))

    with pytest.raises(ValueError, match="scores: expected 'magnitude' or 'hydra', got 'snip'"):
        ek.convert(plain(), scores="snip")
    with pytest.raises(ValueError, match="scores: with method 'sparse' the weight scores itself"):
        ek.convert(plain(), method="sparse", scores="magnitude")
    with pytest.raises(ValueError, match="scores: 'magnitude' is of rules that rank, expected TopK, for one"):
        ek.convert(plain(), method="supermask", scores="magnitude")
    with pytest.raises(ValueError, match="scores: 'hydra' has scores of either sign, expected a rule of 'abs'"):
        ek.convert(plain(), ek.TopK(0.5, of="raw"), scores="hydra")
    with pytest.raises(TypeError, match="layer: expected a masked layer, got Linear"):
        ek.init.scores_from_weight_(nn.Linear(4, 4))
    with pytest.raises(ValueError, match="layer: expected one with scores"):
        ek.init.scores_from_weight_(ek.FusedSparseLinear(4, 4))
    with pytest.raises(ValueError, match="how: expected 'magnitude' or 'hydra', got 'random'"):
        ek.init.scores_from_weight_(ek.FusedSubnetLinear(4, 4), "random")
    layer = ek.FusedSubnetLinear(4, 4)
    layer.freeze(keep_scores=True)
    with pytest.raises(ValueError, match="how: 'magnitude' is of rules that rank, expected TopK, for one, got Frozen"):
        ek.init.scores_from_weight_(layer)


def test_masks_of_another_project_bring_their_own_scores():
    model = nn.Sequential(nn.Linear(4, 4))
    nn.utils.prune.l1_unstructured(model[0], "weight", 0.5)
    with pytest.raises(ValueError, match=r"scores: .* brings its own; expected 'random', got 'magnitude'"):
        ek.convert(model, scores="magnitude")
