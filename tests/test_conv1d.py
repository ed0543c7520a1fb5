"""One-dimensional convolutions, through the kernels of two."""

import pytest
import torch
import torch.nn.functional as F
from convolutions import AVAILABLE, OPTIONS, check_fixed_and_self_scored, check_layer, check_network, check_product
from torch import nn

import edgepop_kernels as ek

CASES = [
    dict(x=(3, 4, 17), weight=(6, 4, 3)),
    dict(x=(4, 17), weight=(6, 4, 3), padding=1),
    dict(x=(2, 6, 100), weight=(9, 2, 5), stride=3, padding=2, dilation=2, groups=3),
    dict(x=(1, 7, 63), weight=(7, 1, 1), groups=7),
    dict(x=(2, 3, 13), weight=(5, 3, 4), padding="same"),
    dict(x=(2, 3, 13), weight=(5, 3, 3), padding="valid", stride=(2,)),
    dict(x=(2, 1, 63), weight=(1, 1, 1)),
]


@pytest.mark.parametrize("backend", AVAILABLE)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_torchs_with_the_masked_weight(backend, case, dtype):
    check_product(ek.masked_conv1d, F.conv1d, case, dtype, backend)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (dict(x=torch.randn(1, 2, 3, 4)), ValueError, r"x: expected \(N, C, L\) or \(C, L\)"),
        (dict(weight=torch.randn(3, 2)), ValueError, r"weight: expected \(O, C / groups, k\)"),
        (dict(scores=torch.randn(3, 2, 4)), ValueError, "scores: expected the weight's shape"),
        (dict(stride=1.5), TypeError, "stride: expected an int"),
        (dict(padding=True), TypeError, "padding: expected an int"),
        (dict(groups=2), ValueError, "groups"),
        (dict(x=torch.randn(2, 5, 9)), ValueError, "x: expected 2 channels"),
        (dict(rule=0.5), TypeError, "rule: expected a rule"),
    ],
)
def test_bad_input_is_named(arguments, error, words):
    given = dict(x=torch.randn(2, 2, 9), weight=torch.randn(3, 2, 3), scores=torch.randn(3, 2, 3), rule=ek.TopK(0.5))
    with pytest.raises(error, match=words):
        ek.masked_conv1d(**given | arguments)


def test_a_fixed_mask_and_weights_that_score_themselves():
    check_fixed_and_self_scored(ek.masked_conv1d, F.conv1d, torch.randn(2, 2, 9), torch.randn(3, 2, 3))


KINDS = {"subnet": ek.FusedSubnetConv1d, "supermask": ek.FusedSupermaskConv1d, "sparse": ek.FusedSparseConv1d}


@pytest.mark.parametrize("backend", AVAILABLE)
@pytest.mark.parametrize("method", KINDS)
@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
def test_a_layer_is_torchs_with_its_effective_weight(backend, method, padding_mode):
    layer = KINDS[method](6, 9, 5, stride=2, padding=2, groups=3, padding_mode=padding_mode, **OPTIONS[method])
    check_layer(layer, nn.Conv1d, torch.randn(2, 6, 37), backend)


def network():
    return nn.Sequential(
        nn.Conv1d(3, 8, 5, padding=2), nn.ReLU(), nn.AdaptiveAvgPool1d(4), nn.Flatten(), nn.Linear(32, 5)
    )


@pytest.mark.parametrize("method", KINDS)
def test_a_converted_network_trains_and_is_saved(method):
    check_network(network, method, KINDS[method], torch.randn(16, 3, 20))


def test_fused_backward_steps_conv1d_layers_as_ever():
    torch.manual_seed(0)
    models = [ek.convert(nn.Sequential(nn.Conv1d(3, 4, 3)), ek.TopK(0.5)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    x = torch.randn(2, 3, 9)
    for model, fused in zip(models, (False, True), strict=True):
        optimizer = ek.optim.ScoreSGD(model, lr=0.1, fused_backward=fused)
        for _ in range(3):
            model.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    assert torch.equal(models[0][0].scores, models[1][0].scores)
