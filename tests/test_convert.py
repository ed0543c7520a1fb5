"""Whole networks: convert, materialize, share_selection."""

from unittest import mock

import pytest
import torch
from torch import nn

import edgepop_kernels as ek
from edgepop_kernels import functional


def network():
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(4 * 4 * 4, 16), nn.ReLU(), nn.Linear(16, 3))
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Flatten(), head
    )


def fused(model):
    return [name for name, m in model.named_modules() if isinstance(m, (ek.FusedSubnetConv, ek.FusedSubnetLinear))]


def test_convert_keeps_identity_weights_and_hooks():
    model = network()
    seen = []
    model[0].register_forward_hook(lambda *_: seen.append("called"))
    first, weight = model[0], model[0].weight
    assert ek.convert(model, ek.TopK(0.3)) is model
    assert fused(model) == ["0", "3", "5.0", "5.2"]
    assert model[0] is first and model[0].weight is weight and not weight.requires_grad
    model(torch.randn(2, 2, 4, 4)).sum().backward()
    assert seen == ["called"]
    assert model[1].weight.grad is not None and all(m.scores.grad is not None for m in (model[0], model[5][2]))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"include": "5.*"}, ["5.0", "5.2"]),
        ({"exclude": ["0", "5.2"]}, ["3", "5.0"]),
        ({"include": ["0", "3"], "exclude": "3"}, ["0"]),
    ],
)
def test_convert_by_name(options, expected):
    assert fused(ek.convert(network(), **options)) == expected


def test_convert_a_single_layer_and_leave_subclasses():
    layer = nn.Linear(3, 4)
    assert isinstance(ek.convert(layer), ek.FusedSubnetLinear)
    attention = ek.convert(nn.MultiheadAttention(8, 2))
    assert fused(attention) == []  # its projection is read as a plain weight, not called


class SubnetConv(nn.Conv2d):
    """The shape of hidden-networks' layer: scores beside the weight, prune_rate the fraction kept."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.scores = nn.Parameter(torch.randn_like(self.weight))
        self.prune_rate = 0.25


def test_convert_takes_hidden_networks_layers():
    model = nn.Sequential(SubnetConv(3, 5, 3, bias=False))
    scores = model[0].scores.detach().clone()
    ek.convert(model)
    assert type(model[0]) is ek.FusedSubnetConv and model[0].keep == 0.25
    assert torch.equal(model[0].scores, scores) and not hasattr(model[0], "prune_rate")


def test_materialize_leaves_nothing_of_ours():
    model = ek.share_selection(ek.convert(network(), ek.TopK(0.4))).eval()
    model[0].freeze()
    x = torch.randn(2, 2, 4, 4)
    y, masks = model(x), [model[0].mask(), model[3].mask()]
    plain = ek.materialize(model)
    torch.testing.assert_close(plain(x), y)
    assert list(plain.state_dict()) == list(network().state_dict())
    assert not any(type(m).__module__.startswith("edgepop_kernels") for m in plain.modules())
    assert not plain._forward_hooks and not plain._forward_pre_hooks
    assert not any("edgepop" in key for m in plain.modules() for key in m.__dict__)
    assert torch.equal(plain[0].weight != 0, masks[0]) and torch.equal(plain[3].weight != 0, masks[1])


def test_shared_selection_is_one_call_and_changes_nothing():
    model = ek.convert(network(), ek.TopK(0.4))
    model[5][0].rule = ek.Threshold(0.5)
    model[5][2].freeze()
    model.eval()
    x = torch.randn(2, 2, 4, 4)
    alone = model(x)
    ek.share_selection(model)
    with mock.patch.object(functional.ops, "select", wraps=functional.ops.select) as select:
        torch.testing.assert_close(model(x), alone, rtol=0, atol=0)
    assert select.call_count == 1 and len(select.call_args.args[0]) == 2
    assert all(m.shared_cut is None for m in (model[0], model[3]))


def test_shared_selection_follows_the_scores_and_survives_errors():
    model = ek.share_selection(ek.convert(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))))
    x = torch.randn(3, 6)
    before = model(x)
    with pytest.raises(ValueError, match="x"):
        model(torch.randn(3, 7))
    assert model[0].shared_cut is None and model[1].shared_cut is None
    with torch.no_grad():
        for layer in model:
            layer.scores.neg_().add_(0.3)
    after = model(x)
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, ek.unshare_selection(model)(x), rtol=0, atol=0)
    assert not model._forward_hooks and not model._forward_pre_hooks
