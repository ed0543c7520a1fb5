"""The rules of blocks and channels: what they take and refuse, which are kept, and setting how many."""

import pytest
import torch
from kernels import ON_CPU
from structures import whole
from torch import nn

import edgepop_kernels as ek


def test_rules_say_what_they_take():
    assert str(ek.Block()) == "Block(keep=0.5, shape=(1, 4), of='abs')" and ek.Block(0.5, [1, 4]) == ek.Block()
    assert str(ek.Channels(0.3)) == "Channels(keep=0.3, of='abs', dim=0)" and hash(ek.Channels()) == hash(ek.Channels())
    for make, error, message in [
        (lambda: ek.Block(0), ValueError, r"keep: the fraction of weights KEPT must be in \(0, 1\], got 0"),
        (lambda: ek.Block("half"), TypeError, r"keep: expected a float in \(0, 1\], got str"),
        (lambda: ek.Block(0.5, 4), TypeError, "shape: expected a tuple of ints, got int"),
        (lambda: ek.Block(0.5, (1, 4.0)), TypeError, r"shape: expected a tuple of ints, got \(1, 4.0\)"),
        (lambda: ek.Block(0.5, (1, 0)), ValueError, r"shape: expected 1 to 5 numbers from 1 on, got \(1, 0\)"),
        (lambda: ek.Block(0.5, ()), ValueError, r"shape: expected 1 to 5 numbers from 1 on, got \(\)"),
        (lambda: ek.Block(0.5, (1,) * 6), ValueError, "shape: expected 1 to 5 numbers"),
        (lambda: ek.Block(0.5, of="sigmoid"), ValueError, "of: expected one of 'abs', 'raw', got 'sigmoid'"),
        (lambda: ek.Channels(1.5), ValueError, r"keep: the fraction of weights KEPT must be in \(0, 1\], got 1.5"),
        (lambda: ek.Channels(0.5, dim=2), ValueError, "dim: expected 0 or 1, got 2"),
        (lambda: ek.Channels(0.5, dim=True), TypeError, "dim: expected an int, got bool"),
        (lambda: ek.Channels(0.5, "sigmoid"), ValueError, "of: expected one of 'abs', 'raw', got 'sigmoid'"),
        (lambda: ek.mask(torch.randn(7), ek.Channels()), ValueError, r"takes weights of 2 to 5 dimensions, got \(7,\)"),
        (lambda: ek.mask(torch.randn(4, 4), ek.Block(0.5, (1, 1, 3, 3))), ValueError, r"weights of 4 to 5 dimensions"),
    ]:
        with pytest.raises(error, match=message):
            make()
    message = (
        r"rule: Block\(.*\) takes weights of 2 to 5 dimensions, each a multiple of the block's, got shape \(8, 6\)"
    )
    for call in (
        lambda: ek.mask(torch.randn(8, 6), ek.Block()),
        lambda: ek.select(torch.randn(8, 6), ek.Block()),
        lambda: ek.masked_linear(torch.randn(2, 6), torch.randn(8, 6), torch.randn(8, 6), ek.Block()),
        lambda: ek.FusedSubnetLinear(6, 8, rule=ek.Block()),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(ValueError, match="rule: FusedSupermaskLinear takes one of Threshold, Bernoulli, got Block"):
        ek.FusedSupermaskLinear(8, 8, rule=ek.Block())
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    with pytest.raises(ValueError, match=r"got shape \(8, 3, 3, 3\), of 0; exclude=\.\.\. leaves that dense"):
        ek.convert(model, ek.Block())
    assert type(model[1]) is nn.Conv2d


@pytest.mark.parametrize("backend", ON_CPU)
def test_the_largest_sums_are_kept_and_of_equal_ones_the_first(backend):
    nan, inf = torch.nan, torch.inf
    scores = torch.tensor([[1.0, -1.0, 2.0, 0.0], [nan, 9.0, -3.0, 0.5], [0.0, -2.0, inf, -inf]])
    with ek.use_backend(backend):
        # |s|: 2, 2; NaN, 3.5; 2, inf
        assert ek.mask(scores, ek.Block(0.5, (1, 2)))[:, ::2].tolist() == [
            [True, False],
            [False, True],
            [False, True],
        ]
        assert ek.mask(scores, ek.Block(0.8, (1, 2)))[:, ::2].tolist() == [[True, True], [False, True], [True, True]]
        # s: 0, 2; NaN, -2.5; -2, NaN
        kept = ek.mask(scores, ek.Block(0.6, (1, 2), "raw"))[:, ::2].tolist()
        assert kept == [[True, True], [False, True], [True, False]]
        assert ek.mask(scores[:2, 2:], ek.Channels(0.5)).tolist() == [[False, False], [True, True]]
        assert ek.mask(scores[:1], ek.Channels(0.5, dim=1)).tolist() == [[True, False, True, False]]


def test_a_channel_that_is_not_kept_computes_its_bias():
    model = ek.convert(nn.Sequential(nn.Conv2d(4, 8, 3)), ek.Channels(0.25), scores="magnitude")
    y = model(torch.randn(2, 4, 5, 5))
    gone = ~model[0].mask().flatten(1).any(1)
    assert gone.sum() == 6
    assert torch.equal(y[:, gone], model[0].bias[gone].view(1, 6, 1, 1).expand(2, 6, 3, 3))


def test_blocks_of_a_transposed_layer_are_in_the_dimensions_of_its_weight():
    model = ek.convert(nn.Sequential(nn.ConvTranspose2d(8, 6, 3)), ek.Channels(0.5, dim=1))
    assert model[0].mask().sum((0, 2, 3)).unique().tolist() == [0, 72]
    x = torch.randn(2, 8, 5, 5)
    torch.testing.assert_close(model(x), ek.materialize(model, copy=True)(x))


def test_the_fraction_is_set_and_scheduled_and_a_deviation_follows_it():
    model = ek.convert(nn.Sequential(nn.Linear(32, 16)), ek.Block(0.25), init="signed_constant", scale="paper")
    assert model[0].weight.abs().max().item() == pytest.approx((2 / (32 * 0.25)) ** 0.5)
    model[0].keep = 0.75
    assert model[0].rule == ek.Block(0.75) and whole(model[0].mask(), model[0].rule) == 96
    schedule = ek.KeepSchedule(model, final=0.125, initial=1.0, end=3, shape="linear")
    kept = []
    for _ in range(3):
        schedule.step()
        kept.append(whole(model[0].mask(), model[0].rule))
    assert kept[-1] == 16 and kept == sorted(kept, reverse=True)
    ek.set_keep(model, {"0": 0.5})
    assert model[0].keep == 0.5
    trained = nn.Sequential(nn.Linear(32, 16))
    weight = trained[0].weight.detach().clone()
    ek.convert(trained, ek.Block(0.5), scores="magnitude")
    assert torch.equal(trained[0].mask(), ek.mask(weight, ek.Block(0.5)))
