"""Masked layers as modules: constructors, parameters, state dicts, dtype moves, freezing, materialising."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import edgepop_kernels as ek
from edgepop_kernels.testing.tolerances import assert_close

X = torch.ones(4, 8)
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
    """Keys weight, scores (and bias): what its SubnetConv saves, strictly; the rule is ours."""
    layer = ek.FusedSubnetConv(4, 6, 3, bias=False)
    theirs = {"weight": torch.randn(6, 4, 3, 3), "scores": torch.randn(6, 4, 3, 3)}
    assert layer.load_state_dict(theirs).missing_keys == []
    assert list(layer.state_dict()) == ["weight", "scores", "_extra_state"]
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


def test_a_mask_to_freeze_is_looked_at_first():
    layer = ek.FusedSubnetLinear(8, 4)
    for mask, error in ((torch.ones(3).bool(), ValueError), (torch.ones(8, 4).bool(), ValueError), (X, TypeError)):
        with pytest.raises(error, match=r"^mask: expected"):
            layer.freeze(mask)
        assert layer.scores is not None and layer.rule == ek.TopK(0.5)


def test_another_mask_for_a_frozen_layer():
    layer = ek.FusedSubnetLinear(8, 4)
    some, fewer = torch.rand(4, 8) < 0.5, torch.rand(4, 8) < 0.2
    layer.train_weight(some)
    layer.train_weight(fewer)
    assert torch.equal(layer.mask(), fewer)
    layer.freeze()
    assert torch.equal(layer.mask(), fewer) and layer.scores is None
    layer.freeze(some)
    assert torch.equal(layer.mask(), some)


def test_a_rule_is_looked_at_when_it_is_assigned():
    layer = ek.FusedSupermaskLinear(8, 4, rescale=True)
    with pytest.raises(ValueError, match=r"^rule: FusedSupermaskLinear takes one of"):
        layer.rule = ek.TopK(0.3)
    layer.rule = ek.Threshold(0.2)
    layer.freeze(keep_scores=True)
    with pytest.raises(ValueError, match=r"^rule: this layer is frozen"):
        layer.rule = ek.Threshold(0.3)
    layer.thaw()
    assert layer.rule == ek.Threshold(0.2)
    with pytest.raises(ValueError, match=r"^keep: "):
        ek.FusedSubnetLinear(8, 4, keep=17, rule=ek.TopK(0.3))


@pytest.mark.parametrize("build", [ek.FusedSubnetLinear, lambda i, o: ek.FusedSupermaskLinear(i, o, mask_bias=True)])
@pytest.mark.parametrize("sizes", [(9, 16), (8, 17), (64, 2)], ids=str)
@pytest.mark.parametrize("keep_scores", [False, True])
def test_a_state_that_does_not_fit_changes_nothing(build, sizes, keep_scores):
    """(64, 2) has as many weights, and as many packed bytes."""
    layer, other = build(8, 16), build(*sizes)
    other.freeze(keep_scores=keep_scores)
    before, x = copy.deepcopy(layer), torch.randn(2, 8)
    with pytest.raises(RuntimeError, match="size mismatch"):
        layer.load_state_dict(other.state_dict())
    assert layer.rule == before.rule and layer.state_dict().keys() == before.state_dict().keys()
    assert torch.equal(layer.scores, before.scores) and layer(x).shape == (2, 16)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    "build",
    [ek.FusedSubnetLinear, ek.FusedSparseLinear, lambda i, o: ek.FusedSupermaskLinear(i, o, mask_bias=True)],
    ids=["subnet", "sparse", "supermask"],
)
def test_a_layer_is_frozen_or_not_as_the_one_that_was_saved(build, strict):
    loose, frozen, x = build(8, 16), build(8, 16), torch.randn(3, 8)
    frozen.freeze(torch.rand(16, 8) < 0.5, keep_scores=True)
    states = [copy.deepcopy(m.state_dict()) for m in (loose, frozen)]
    outputs = [m(x) for m in (loose, frozen)]
    trained = [loose.scores is not None and loose.scores.requires_grad, False]
    for layer in (loose, frozen):
        for i in (0, 1, 0):
            layer.load_state_dict(states[i], strict=strict)
            assert torch.equal(layer(x), outputs[i])
            assert (layer.scores is not None and layer.scores.requires_grad) == trained[i]


def test_scores_follow_the_memory_format_in_any_dtype():
    layer = ek.FusedSubnetConv(8, 6, 3).to(dtype=torch.bfloat16, memory_format=torch.channels_last)
    assert layer.scores.dtype == torch.float32 and layer.weight.dtype == torch.bfloat16
    assert layer.scores.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_takes_weights_of_either_half(dtype):
    layer = ek.FusedSubnetLinear(40, 30).to(dtype)
    other = torch.bfloat16 if dtype == torch.float16 else torch.float16
    x = torch.randn(20, 40, requires_grad=True)
    with torch.autocast("cpu", other):
        y = layer(x)
        expected = F.linear(x, layer.effective_weight(), layer.bias)
    assert y.dtype == expected.dtype == other
    assert_close("y", y, expected, torch.bfloat16)
    y.sum().backward()
    assert layer.scores.grad.count_nonzero() > 1000


def test_on_meta_shapes_come_out():
    layer = ek.FusedSubnetConv(3, 8, 3, device="meta")
    assert layer(torch.randn(2, 3, 9, 9, device="meta")).shape == (2, 8, 7, 7)


def test_a_subclass_of_a_layer_is_its_own_and_not_what_convert_makes():
    """FSDP makes one of every layer's class, users of some."""

    class Loud(ek.FusedSubnetLinear):
        def forward(self, x):
            return super().forward(x) * 2

    class Own(type(ek.FusedSubnetLinear(3, 4)).__mro__[1], nn.Linear):
        pass

    torch.manual_seed(0)
    layer, x = Loud(5, 3, keep=0.4), torch.randn(2, 5)
    plain = ek.FusedSubnetLinear(5, 3, keep=0.4)
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), 2 * plain(x))
    assert Own(3, 4).mask().sum() == 6
    assert type(ek.convert(nn.Sequential(nn.Linear(5, 3)))[0]) is ek.FusedSubnetLinear
    assert type(layer.materialize()) is nn.Linear
