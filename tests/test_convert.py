"""Whole networks: convert, materialize, share_selection."""

import copy
import io
import pickle
import re
from unittest import mock

import pytest
import torch
from torch import nn

import edgepop_kernels as ek
from edgepop_kernels import selecting
from edgepop_kernels.testing.tolerances import assert_close


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
    network = ek.convert(nn.Sequential(nn.MultiheadAttention(8, 2), nn.Linear(8, 8)), left="ignore")
    assert fused(network) == ["1"]  # the attention's projection is read as a plain weight, not called


@pytest.mark.parametrize("wrong", [0.5, "topk", 1, ek.TopK], ids=str)
@pytest.mark.parametrize("method", ["subnet", "sparse", "supermask"])
def test_what_is_no_rule_is_answered_by_the_right_call(wrong, method):
    example = "Threshold(0.5) or Bernoulli()" if method == "supermask" else "TopK(0.5), or keep=0.5"
    expected = rf"^rule: expected a rule such as {re.escape(example)}, one of .+, got {re.escape(repr(wrong)[:9])}"
    for call in (lambda: ek.convert(network(), wrong, method=method), lambda: layer_of(method)(3, 4, rule=wrong)):
        with pytest.raises(TypeError, match=expected):
            call()


@pytest.mark.parametrize("method", ["edge-popup", "dnw", "topk", 1, ["subnet"]], ids=str)
def test_what_is_no_method_is_answered_by_those_there_are(method):
    with pytest.raises(ValueError, match=r"^method: expected 'subnet' \(edge-popup\), .*'sparse' \(.*DNW\), got "):
        ek.convert(network(), method=method)


def layer_of(method):
    layers = {"subnet": ek.FusedSubnetLinear, "supermask": ek.FusedSupermaskLinear, "sparse": ek.FusedSparseLinear}
    return layers[method]


def test_keep_alone_is_top_k():
    for method in ("subnet", "sparse"):
        model = ek.convert(network(), keep=0.3, method=method)
        assert model[0].rule == model[5][2].rule == ek.TopK(0.3)
    theirs = nn.Sequential(SubnetConv(3, 5, 3))
    assert ek.convert(theirs, keep=0.4)[0].keep == 0.4  # it stands before their prune_rate


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        (dict(rule=ek.Threshold(0.5), method="sparse"), "rule"),
        (dict(rule=ek.TopK(0.5), method="supermask"), "rule"),
        (dict(rule=ek.Frozen()), "rule"),
        (dict(rule=0.5), "rule"),
        (dict(method="supermask", scores_init="one"), "scores_init"),
        (dict(method="supermask", dropout=0.5), "dropout"),
        (dict(exclude="*"), "exclude"),
        (dict(exclude=["0", "[35]*"]), "exclude"),
        (dict(keep=0.5, rule=ek.TopK(0.5)), "keep"),
        (dict(init="signed_constant_"), "init"),
        pytest.param(dict(init=ek.init.signed_constant_), "init", id="init-a-function"),
        (dict(init="scores"), "init"),
        (dict(scale="paper"), "scale"),
        (dict(init="signed_constant", scale="half"), "scale"),
        (dict(init="signed_constant", scale=None), "scale"),
        (dict(init="xavier_normal", scale="paper"), "scale"),
        (dict(init="signed_constant", scale="paper", method="supermask"), "scale"),
        (dict(init="signed_constant", scale="hidden-networks", keep=1.0), "keep"),
    ],
    ids=str,
)
def test_a_refused_conversion_leaves_the_model_as_it_was(options, argument):
    model = network()
    before, random = copy.deepcopy(model), torch.get_rng_state()
    with pytest.raises((TypeError, ValueError), match=rf"^{argument}: ."):
        ek.convert(model, **options)
    assert repr(model) == repr(before) and torch.equal(torch.get_rng_state(), random)
    assert all(
        torch.equal(p, q) and p.requires_grad for p, q in zip(model.parameters(), before.parameters(), strict=True)
    )
    theirs = nn.Sequential(nn.Linear(3, 3), SubnetConv(3, 5, 3))
    theirs[1].prune_rate = 0.0
    with pytest.raises(ValueError, match=r"^keep: "):
        ek.convert(theirs)
    assert type(theirs[0]) is nn.Linear and theirs[1].prune_rate == 0.0


@pytest.mark.parametrize("method", ["subnet", "supermask", "sparse"])
@pytest.mark.parametrize("name", ek.init.NAMES)
def test_init_draws_every_converted_layer(name, method):
    """Linear layers too: with torch's own start of them edge-popup reached 78 % of the digits, not 91."""
    model = network()
    left = copy.deepcopy(model[3])
    torch.manual_seed(7)
    ek.convert(model, init=name, method=method, exclude="3")
    for layer in (model[0], model[5][0], model[5][2]):
        fan_in, fan_out = layer.weight[0].numel(), layer.weight[:, 0].numel()
        std = (2 / (fan_in + fan_out)) ** 0.5 if name.startswith("xavier") else (2 / fan_in) ** 0.5
        assert layer.weight.square().mean().sqrt().item() == pytest.approx(std, rel=0.4)
        assert ("constant" in name) == (layer.weight.abs().max().item() == pytest.approx(std))
    assert torch.equal(model[3].weight, left.weight)
    again = network()
    torch.manual_seed(7)
    ek.convert(again, init=name, method=method, exclude="3")
    assert torch.equal(again[5][2].weight, model[5][2].weight)


@pytest.mark.parametrize(("scale", "factor"), [("none", 1), ("paper", 0.2), ("hidden-networks", 0.8)])
def test_scale_follows_the_fraction_that_a_layer_keeps(scale, factor):
    for options in (dict(keep=0.2), dict(rule=ek.Percentile(0.2)), dict(keep=0.2, method="sparse")):
        layer = ek.convert(nn.Linear(50, 3), init="signed_constant", scale=scale, **options)
        assert layer.weight.abs().max().item() == pytest.approx((2 / (50 * factor)) ** 0.5)
    theirs = SubnetConv(2, 3, 5)
    theirs.prune_rate = 0.2
    ek.convert(theirs, init="signed_constant", scale=scale)
    assert theirs.weight.abs().max().item() == pytest.approx((2 / (50 * factor)) ** 0.5)


def test_without_init_trained_weights_stay():
    model = network()
    before = copy.deepcopy(model.state_dict())
    ek.convert(model)
    assert all(torch.equal(t, model.state_dict()[name]) for name, t in before.items())


def test_convert_that_converts_nothing_is_an_error():
    for model in (nn.Sequential(nn.ReLU()), ek.convert(nn.Linear(3, 4)), nn.MultiheadAttention(8, 2)):
        with pytest.raises(ValueError, match=r"^model: it has no nn\.Conv2d, nn\.Linear"):
            ek.convert(model, ek.TopK(0.1))


@pytest.mark.parametrize(
    ("method", "options"),
    [("subnet", {}), ("supermask", {}), ("supermask", {"rescale": True, "mask_bias": True}), ("sparse", {})],
    ids=["subnet", "supermask", "rescaled", "sparse"],
)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    "build", [lambda layer: layer, lambda layer: nn.TransformerEncoder(layer, 2)], ids=["layer", "encoder"]
)
def test_a_transformer_is_masked_in_evaluation_too(method, options, shared, build):
    """torch's inference reads the weights of its linear layers, without a call, where no hook is attached."""
    torch.manual_seed(0)
    model = build(nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)).eval()
    rule = ek.TopK(0.2) if method != "supermask" else ek.Threshold(0.5)
    model = ek.convert(model, rule, method=method, left="ignore", **options)
    for module in model.modules():
        if isinstance(module, nn.Linear) and getattr(module, "scores", None) is not None:
            nn.init.normal_(module.scores)
    if shared:
        ek.share_selection(model)
    x, padding = torch.randn(3, 5, 16), torch.arange(5) >= torch.tensor([[5], [3], [4]])
    trained = model(x, src_key_padding_mask=padding)
    with torch.no_grad():
        assert_close("y", model(x, src_key_padding_mask=padding)[~padding], trained[~padding], torch.float32)
        assert_close("y", ek.materialize(model)(x, src_key_padding_mask=padding)[~padding], trained[~padding], x.dtype)
    assert not any(module._forward_pre_hooks for module in model.modules())


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


@pytest.mark.parametrize(
    "options",
    [
        dict(rule=ek.TopK(0.4)),
        dict(rule=ek.GlobalTopK(0.4)),
        dict(method="sparse", keep=0.2),
        dict(method="supermask", rule=ek.Bernoulli(at_eval="round"), mask_bias=True, rescale=True),
    ],
    ids=str,
)
def test_a_plain_copy_leaves_the_network_as_it_is(options):
    model = ek.share_selection(ek.convert(network(), **options)).eval()
    if options.get("method") == "supermask":
        for layer in (model[0], model[3], model[5][0], model[5][2]):
            nn.init.normal_(layer.scores)
    else:
        model[0].freeze(torch.rand(4, 2, 3, 3) < 0.5, keep_scores=True)
    x = torch.randn(2, 2, 4, 4)
    y, before, kinds = model(x), copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]
    plain = ek.materialize(model, copy=True)
    assert_close("y", plain(x), y, x.dtype)
    assert not any(type(m).__module__.startswith("edgepop_kernels") for m in plain.modules())
    assert not plain._forward_hooks and not plain._forward_pre_hooks
    with torch.no_grad():
        for p in plain.parameters():
            p.zero_()
    assert [type(m) for m in model.modules()] == kinds and torch.equal(model(x), y)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert model.state_dict().keys() == before.keys() and model._forward_hooks
    model(x).sum().backward()
    assert model[5][2].bias_scores.grad is not None if "rescale" in options else model[5][2].bias.grad is not None


def test_materialized_weights_train_all_and_kept_ones_alone_before():
    """As the docstring says: zeros move once they are plain weights, and stay under ``train_weights``."""

    def trained(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(torch.randn(2, 2, 4, 4)).square().sum().backward()
        optimizer.step()
        return model

    model = ek.convert(network(), keep=0.3)
    mask = model[5][2].mask()
    assert torch.equal(ek.materialize(trained(ek.train_weights(copy.deepcopy(model))))[5][2].weight != 0, mask)
    assert trained(ek.materialize(model))[5][2].weight[~mask].count_nonzero() > 0


def test_shared_selection_is_one_call_and_changes_nothing():
    model = ek.convert(network(), ek.TopK(0.4))
    model[5][0].rule = ek.Threshold(0.5)
    model[5][2].freeze()
    model.eval()
    x = torch.randn(2, 2, 4, 4)
    alone = model(x)
    ek.share_selection(model)
    for layer in (model[0], model[3]):
        layer.forget()
    with mock.patch.object(selecting.ops, "select_planes", wraps=selecting.ops.select_planes) as select:
        torch.testing.assert_close(model(x), alone, rtol=0, atol=0)
        assert select.call_count == 1 and len(select.call_args.args[0]) == 2
        model(x)
    assert select.call_count == 1  # in evaluation nothing is selected again
    assert all(m._cuts.shared is None for m in (model[0], model[3]))


def test_shared_selection_follows_the_scores_and_survives_errors():
    model = ek.share_selection(ek.convert(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))))
    x = torch.randn(3, 6)
    before = model(x)
    with pytest.raises(ValueError, match="x"):
        model(torch.randn(3, 7))
    assert model[0]._cuts.shared is None and model[1]._cuts.shared is None
    with torch.no_grad():
        for layer in model:
            layer.scores.neg_().add_(0.3)
    after = model(x)
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, ek.unshare_selection(model)(x), rtol=0, atol=0)
    assert not model._forward_hooks and not model._forward_pre_hooks


def test_materialize_leaves_what_is_not_ours():
    layer = nn.Linear(3, 4)
    layer.tag = "encoder"
    layer.register_buffer("statistics", torch.ones(2))
    seen = []
    layer.register_forward_pre_hook(lambda *_: seen.append("called"))
    ek.materialize(ek.convert(layer, method="supermask", mask_bias=True))
    layer(torch.randn(2, 3))
    assert type(layer) is nn.Linear and layer.tag == "encoder" and layer.statistics.sum() == 2 and seen == ["called"]


def test_an_interrupted_forward_leaves_no_cut_behind():
    class Interrupted(nn.Module):
        on = False

        def forward(self, x):
            if self.on:
                raise KeyboardInterrupt  # for which torch calls no hook
            return x

    model = ek.share_selection(nn.Sequential(ek.FusedSubnetLinear(8, 8), Interrupted(), ek.FusedSubnetLinear(8, 8)))

    def interrupt():
        model[1].on = True
        with pytest.raises(KeyboardInterrupt):
            model(torch.randn(2, 8))
        model[1].on = False
        for layer in (model[0], model[2]):
            layer.reset_scores()

    x = torch.randn(2, 8)
    interrupt()
    expected = copy.deepcopy(model)
    assert_close("y", model(x), ek.materialize(expected)(x), x.dtype)
    interrupt()
    ek.unshare_selection(model)
    expected = copy.deepcopy(model)
    assert_close("y", model(x), ek.materialize(expected)(x), x.dtype)
    ek.share_selection(model)
    interrupt()
    ek.train_weights(model)
    assert model(x).shape == x.shape


def test_a_layer_is_copied_without_its_network():
    model = ek.share_selection(nn.Sequential(ek.FusedSubnetLinear(4, 4), ek.FusedSubnetLinear(300, 300)))
    file = io.BytesIO()
    torch.save(model[0], file)
    assert len(file.getvalue()) < 20_000  # the other layer takes 720,000
    alone = copy.deepcopy(model[0])
    assert alone._group is None
    again = ek.share_selection(nn.Sequential(alone))
    assert alone._group is not None and alone._group is not model[0]._group and again[0] is alone
    itself = ek.share_selection(ek.FusedSubnetLinear(4, 4))
    for whole in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), itself):
        layers = [m for m in whole.modules() if isinstance(m, ek.FusedSubnetLinear)]
        copied = copy.deepcopy(whole)
        both = [*layers, *(m for m in copied.modules() if isinstance(m, ek.FusedSubnetLinear))]
        assert len({m._group for m in both}) == 2 and None not in {m._group for m in both}


def test_layers_are_not_shared_from_within_and_without():
    part = nn.Sequential(ek.FusedSubnetLinear(8, 8, rule=ek.GlobalTopK(0.3)))
    model = nn.Sequential(part, ek.FusedSubnetLinear(8, 8, rule=ek.GlobalTopK(0.3)))
    ek.share_selection(model)
    with pytest.raises(ValueError, match=r"^model: its layer 0 shares its selection with a network outside"):
        ek.share_selection(part)
    ek.unshare_selection(model)
    ek.share_selection(part)
    ek.share_selection(model)  # the layer stays with its part
    assert part[0]._group is not model[1]._group


def test_a_network_that_is_gone_leaves_its_layers_free():
    network = ek.share_selection(nn.Sequential(ek.FusedSubnetLinear(8, 8), ek.FusedSubnetLinear(8, 3), nn.Softmax(-1)))
    layers = list(network)[:-1]
    trunk = ek.share_selection(nn.Sequential(*layers))
    groups = {layer._group for layer in layers}
    assert len(groups) == 1 and None not in groups
    ek.unshare_selection(network)  # which its layers have left
    assert {layer._group for layer in layers} == groups
    ek.unshare_selection(trunk)
    assert {layer._group for layer in layers} == {None}


def test_a_replica_cannot_rank_with_the_others():
    model = ek.share_selection(nn.Sequential(ek.FusedSubnetLinear(8, 8, rule=ek.GlobalTopK(0.3))))
    replica = model[0]._replicate_for_data_parallel()
    for name, p in model[0].named_parameters():
        setattr(replica, name, p)
    with pytest.raises(RuntimeError, match="DataParallel"):
        replica(torch.randn(2, 8))


def test_a_part_is_materialized_while_the_rest_shares_on():
    model = ek.share_selection(nn.Sequential(ek.FusedSubnetLinear(8, 8), nn.ReLU(), ek.FusedSubnetLinear(8, 3)))
    x = torch.randn(2, 8)
    expected = model(x)
    ek.materialize(model[0])
    copied = copy.deepcopy(model)
    for network in (model, copied):
        assert_close("y", network(x), expected, x.dtype)
        assert not {"_group", "_cuts"} & vars(network[0]).keys()
        assert type(ek.materialize(network)[2]) is nn.Linear
        assert_close("y", network(x), expected, x.dtype)


def test_materialized_networks_hold_torchs_norms():
    model = nn.Sequential(ek.FusedSubnetConv(3, 4, 3, bias=False), ek.NonAffineBatchNorm(4), nn.ReLU())
    x = torch.randn(2, 3, 6, 6)
    model(x)
    y = model.eval()(x)
    plain = ek.materialize(model)
    assert not [m for m in plain.modules() if type(m).__module__.startswith("edgepop_kernels")]
    assert type(plain[1]) is nn.BatchNorm2d and not plain[1].affine
    torch.testing.assert_close(plain(x), y)
