"""Masked layers as modules: constructors, parameters, state dicts, dtype moves, freezing, materialising."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import edgepop_kernels as ek

CONV = {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "stride": 2, "padding": 1, "groups": 2}


def test_constructor_is_torchs_with_keep_and_rule_added():
    layer = ek.FusedSubnetConv(4, 6, (3, 5), 2, (1, 2), 1, 2, False, "reflect", keep=0.25)
    assert isinstance(layer, nn.Conv2d) and layer.bias is None and layer.padding_mode == "reflect"
    assert layer.rule == ek.TopK(0.25) and layer.keep == 0.25
    assert [n for n, _ in layer.named_parameters()] == ["weight", "scores"]
    assert not layer.weight.requires_grad and layer.scores.requires_grad
    assert ek.FusedSubnetLinear(3, 2, rule=ek.Threshold(0.4)).rule == ek.Threshold(0.4)
    assert "keep=0.25" in repr(layer)


def test_scores_start_kaiming_uniform():
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)), hidden-networks' kaiming_uniform_(a=sqrt(5))."""
    torch.manual_seed(0)
    scores = ek.FusedSubnetConv(64, 64, 3).scores.detach()
    bound = 1 / (64 * 9) ** 0.5
    assert scores.abs().max() <= bound and scores.abs().max() > 0.99 * bound
    assert abs(scores.std().item() / (bound / 3**0.5) - 1) < 0.02


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [0, (1, 2), "same", "valid"])
@pytest.mark.parametrize("kernel", [3, (2, 4)])
def test_forward_is_conv2d_with_the_masked_weight(mode, padding, kernel):
    torch.manual_seed(0)
    layer = ek.FusedSubnetConv(4, 6, kernel, padding=padding, dilation=(1, 2), padding_mode=mode, keep=0.4)
    plain = nn.Conv2d(4, 6, kernel, padding=padding, dilation=(1, 2), padding_mode=mode)
    plain.load_state_dict({"weight": layer.effective_weight(), "bias": layer.bias})
    for x in (torch.randn(2, 4, 9, 11), torch.randn(4, 9, 11)):
        torch.testing.assert_close(layer(x), plain(x))


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5), (0, 5)])
def test_linear_takes_any_batch_shape(shape):
    layer = ek.FusedSubnetLinear(5, 7, keep=0.4)
    x = torch.randn(shape, requires_grad=True)
    y = layer(x)
    torch.testing.assert_close(y, F.linear(x, layer.effective_weight(), layer.bias))
    y.sum().backward()
    assert x.grad.shape == x.shape and layer.scores.grad.shape == layer.weight.shape


def test_keep_and_set_prune_rate():
    layer = ek.FusedSubnetLinear(10, 10, keep=0.5)
    layer.keep = 0.2
    assert layer.mask().sum() == ek.kept_count(100, 0.2)
    layer.set_prune_rate(0.3)
    assert layer.rule == ek.TopK(0.3)
    threshold = ek.FusedSubnetLinear(10, 10, rule=ek.Threshold(0.5))
    assert threshold.keep == threshold.mask().float().mean().item()
    with pytest.raises(ValueError, match="keep"):
        threshold.keep = 0.2


def test_only_scores_and_bias_are_trained():
    layer = ek.FusedSubnetConv(**CONV)
    layer(torch.randn(2, 4, 6, 6)).sum().backward()
    assert layer.weight.grad is None and layer.scores.grad is not None and layer.bias.grad is not None
    layer.weight.requires_grad_()
    layer(torch.randn(2, 4, 6, 6)).sum().backward()
    assert not layer.weight.grad[~layer.mask()].any() and layer.weight.grad[layer.mask()].any()


def test_state_dict_is_hidden_networks():
    """Keys weight, scores (and bias): what its SubnetConv saves, strictly."""
    layer = ek.FusedSubnetConv(4, 6, 3, bias=False)
    theirs = {"weight": torch.randn(6, 4, 3, 3), "scores": torch.randn(6, 4, 3, 3)}
    assert layer.load_state_dict(theirs).missing_keys == []
    assert list(layer.state_dict()) == ["weight", "scores"]
    assert torch.equal(layer.mask(), ek.mask(theirs["scores"], ek.TopK(0.5)))


@pytest.mark.parametrize("move", [lambda m: m.half(), lambda m: m.bfloat16(), lambda m: m.to(torch.bfloat16)])
def test_scores_stay_float32(move):
    layer = ek.FusedSubnetLinear(16, 8)
    before = layer.scores.detach().clone()
    layer(torch.randn(2, 16)).sum().backward()
    move(layer)
    assert layer.weight.dtype != torch.float32 and layer.scores.dtype == layer.scores.grad.dtype == torch.float32
    assert torch.equal(layer.scores, before)
    y = layer(torch.randn(2, 16, dtype=layer.weight.dtype))
    y.sum().backward()
    assert y.dtype == layer.weight.dtype


def test_channels_last_changes_nothing():
    """GetSubnet writes its mask through flatten(), which copies under channels_last, and so masks nothing."""
    torch.manual_seed(0)
    layer = ek.FusedSubnetConv(8, 16, 3, keep=0.1)
    with torch.no_grad():
        layer.scores.copy_((layer.scores * 50).round())  # ties
    x = torch.randn(2, 8, 9, 9)
    mask, y = layer.mask(), layer(x)
    last = copy.deepcopy(layer).to(memory_format=torch.channels_last)
    assert last.scores.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last.mask(), mask) and mask.sum() == ek.kept_count(mask.numel(), 0.1)
    out = last(x.contiguous(memory_format=torch.channels_last))
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, y)


def test_freeze_keeps_the_mask_and_trains_the_weight():
    layer = ek.FusedSubnetConv(**CONV, keep=0.3)
    x = torch.randn(2, 4, 6, 6)
    mask, y = layer.mask(), layer(x)
    layer.freeze()
    assert layer.scores is None and torch.equal(layer.mask(), mask) and layer.rule == ek.Frozen()
    assert torch.equal(layer(x), y)
    layer.weight.requires_grad_()
    layer(x).square().sum().backward()
    assert torch.equal(layer.weight.grad != 0, mask)
    assert layer.mask_bits.numel() <= layer.weight.numel() / 8 + 16
    thawed = ek.FusedSubnetConv(**CONV)
    thawed.load_state_dict(layer.state_dict())
    assert torch.equal(thawed(x), y) and thawed.rule == ek.Frozen()


def test_copies_and_pickles():
    model = ek.share_selection(nn.Sequential(ek.FusedSubnetLinear(4, 8), nn.ReLU(), ek.FusedSubnetLinear(8, 2)))
    x = torch.randn(3, 4)
    y = model(x)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False)):
        assert torch.equal(other(x), y)
        with torch.no_grad():
            other[0].scores.mul_(torch.randn_like(other[0].scores))
        assert not torch.equal(other(x), y) and torch.equal(model(x), y)


@pytest.mark.parametrize("build", [lambda: ek.FusedSubnetConv(**CONV, keep=0.3), lambda: ek.FusedSubnetLinear(6, 5)])
def test_materialize_layer(build):
    layer = build()
    plain = layer.materialize()
    assert type(plain) in (nn.Conv2d, nn.Linear) and list(plain.state_dict()) == ["weight", "bias"]
    x = torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(plain(x), layer(x))
    assert torch.equal(plain.weight != 0, layer.mask())
