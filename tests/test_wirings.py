"""Layers whose weights score themselves: Discovering Neural Wirings (Wortsman et al. 2019)."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import edgepop_kernels as ek

CONV = {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "stride": 2, "padding": 1, "groups": 2}


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_layer_is_its_equation(kind):
    """Forward with the largest |w| only; dL/dw_uv = <Z_u, dL/dI_v> for every edge, chosen or not (the update rule of
    the paper, up to the learning rate): autograd in float64 on W * M + (W - stop(W)) * (1 - M)."""
    if kind == "linear":
        layer, x, call = ek.FusedSparseLinear(5, 7, keep=0.3), torch.randn(3, 5), F.linear
    else:
        layer, x = ek.FusedSparseConv(**CONV, keep=0.3), torch.randn(2, 4, 6, 6)
        call = lambda x, w, b: F.conv2d(x, w, b, stride=2, padding=1, groups=2)  # noqa: E731
    x.requires_grad_()
    y = layer(x)
    mask = ek.mask(layer.weight.detach(), ek.TopK(0.3))
    assert torch.equal(layer.mask(), mask)
    weight = layer.weight.detach().double().requires_grad_()
    x64 = x.detach().double().requires_grad_()
    bias = layer.bias.detach().double()
    expected = call(x64, weight * mask + (weight - weight.detach()) * ~mask, bias)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    dy = torch.randn_like(y)
    y.backward(dy)
    expected.backward(dy.double())
    torch.testing.assert_close(x.grad.double(), x64.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.weight.grad.double(), weight.grad, rtol=1e-4, atol=1e-5)


def test_an_edge_can_come_back():
    """A dropped edge keeps training and takes the place of a weaker one."""
    layer = ek.FusedSparseLinear(2, 1, bias=False, keep=0.5)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.5, 0.1]]))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    for _ in range(5):
        optimizer.zero_grad()
        (layer(torch.tensor([[0.0, 1.0]])) - 2).square().sum().backward()
        optimizer.step()
    assert layer.mask().tolist() == [[False, True]]


def test_a_dense_state_dict_loads_and_saves():
    dense = nn.Conv2d(4, 6, 3)
    layer = ek.FusedSparseConv(4, 6, 3, keep=0.2)
    layer.load_state_dict(dense.state_dict())
    assert list(layer.state_dict()) == ["weight", "bias", "_extra_state"] and torch.equal(layer.weight, dense.weight)
    assert layer.keep == 0.2
    layer.keep = 0.4
    assert layer.mask().sum() == ek.kept_count(6 * 4 * 9, 0.4)
    with pytest.raises(ValueError, match=r"^rule: ."):
        ek.FusedSparseConv(4, 6, 3, rule=ek.Threshold())


def test_the_weight_stays_float32():
    for layer in (ek.FusedSparseLinear(6, 5).bfloat16(), ek.FusedSparseLinear(6, 5, dtype=torch.bfloat16)):
        assert layer.weight.dtype == torch.float32 and layer.bias.dtype == torch.bfloat16
        layer(torch.randn(2, 6, dtype=torch.bfloat16)).sum().backward()
        assert layer.weight.grad.dtype == torch.float32


def test_network():
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    ek.share_selection(ek.convert(model, ek.GlobalTopK(0.3), method="sparse"))
    assert isinstance(model[0], ek.FusedSparseConv) and isinstance(model[3], ek.FusedSparseLinear)
    x = torch.randn(2, 2, 4, 4)
    y = model(x)
    y.sum().backward()
    assert all(p.requires_grad and p.grad is not None for p in model.parameters())
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), y)
    plain = ek.materialize(model)
    torch.testing.assert_close(plain(x), y)
    nonzero = sum(int((plain[i].weight != 0).sum()) for i in (0, 3))
    assert nonzero == ek.kept_count(4 * 2 * 9 + 16 * 3, 0.3)
    ek.train_weights(twin)
    twin.zero_grad()
    twin(x).sum().backward()
    for i in (0, 3):
        assert not twin[i].weight.grad[~twin[i].mask()].any() and twin[i].weight.grad.any()


@pytest.mark.parametrize("prune_rate", [0.0, 0.1, 0.3, 0.9, 0.99, 0])
def test_prune_rate_is_the_fraction_removed_as_its_paper_has_it(prune_rate):
    layer = ek.FusedSparseLinear(13, 17)
    layer.set_prune_rate(prune_rate)
    assert int(layer.mask().sum()) == 221 - int(prune_rate * 221)


@pytest.mark.parametrize("prune_rate", [1.0, -0.1, float("nan"), True, "0.5", None])
def test_a_prune_rate_that_cannot_be_is_refused_by_its_name(prune_rate):
    layer = ek.FusedSparseConv(3, 4, 3, keep=0.3)
    with pytest.raises((TypeError, ValueError), match=r"^prune_rate: .*in \[0, 1\), got"):
        layer.set_prune_rate(prune_rate)
    assert layer.keep == 0.3
