"""Weights of one magnitude as bits: the same results as with floats, to the bit, and all else that a layer does."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import edgepop_kernels as ek
from edgepop_kernels.testing import inputs

RULES = [
    ek.TopK(0.3),
    ek.TopK(0.6, of="raw"),
    ek.Threshold(0.5),
    ek.Bernoulli(),
    ek.Percentile(0.4),
    ek.GlobalTopK(0.4),
]


def network(rule=RULES[0], method="subnet"):
    """Convolutions of all kinds and linear layers, their weights signed constants."""
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, groups=12, stride=2),
        nn.Conv2d(12, 18, 3, groups=3, dilation=2, padding="same"),
        nn.ReLU(),
        nn.Flatten(2),
        nn.Conv1d(18, 7, 5, padding=2),
        nn.Flatten(),
        nn.Linear(7 * 25, 17),
        nn.ReLU(),
        nn.Linear(17, 1),
    )
    ek.convert(model, rule, method=method, init="signed_constant", left="ignore")
    return ek.share_selection(model) if rule.together else model


def batch(count=3):
    return torch.randn(count, 3, 11, 11, generator=inputs.generator(count))


def gradients(model, x, seed=0):
    torch.manual_seed(seed)  # of what is drawn
    model.zero_grad()
    x = x.clone().requires_grad_()
    y = model(x)
    y.float().square().sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in model.parameters() if p.grad is not None)]


def equal(ours, theirs):
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


def both(**kwargs):
    floats, packed = network(**kwargs), network(**kwargs)
    ek.pack_weights(packed)
    return floats, packed


@pytest.mark.parametrize("backend", ["auto", "reference", "staged"])
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_outputs_and_gradients_are_those_of_the_float_weights(rule, backend):
    kept = isinstance(rule, ek.Threshold | ek.Bernoulli)
    floats, packed = both(rule=rule, method="supermask" if kept else "subnet")
    with ek.use_backend(backend):
        assert equal(gradients(packed, batch()), gradients(floats, batch()))
        assert equal(gradients(packed.eval(), batch(1)), gradients(floats.eval(), batch(1)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_has_the_bits_of_the_float_weights(dtype):
    floats, packed = both()
    with torch.autocast("cpu", dtype):
        assert equal(gradients(packed, batch()), gradients(floats, batch()))
    assert equal(gradients(packed.to(dtype), batch().to(dtype)), gradients(floats.to(dtype), batch().to(dtype)))
    other = torch.float16 if dtype == torch.bfloat16 else torch.bfloat16
    with torch.autocast("cpu", other):
        assert equal(gradients(packed, batch().to(dtype)), gradients(floats, batch().to(dtype)))


@pytest.mark.parametrize(
    "build",
    [
        lambda scores: ek.optim.ScoreSGD(scores, lr=0.1, momentum=0.9, weight_decay=1e-4),
        lambda scores: ek.optim.ScoreAdam(scores, lr=0.01),
        lambda scores: ek.optim.ScoreSGD(scores, lr=0.1, momentum=0.9, fused_backward=True),
        lambda scores: torch.optim.SGD([p for p in scores.parameters() if p.requires_grad], lr=0.1, momentum=0.9),
    ],
    ids=["ScoreSGD", "ScoreAdam", "fused_backward", "torch"],
)
def test_training_steps_have_the_bits_of_the_float_weights(build):
    models = both()
    optimizers = [build(m) for m in models]
    for step in range(4):
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            model(batch(step + 1)).square().sum().backward()
            optimizer.step()
        for ours, theirs in zip(*models, strict=True):
            if isinstance(ours, ek.FusedSubnetConv | ek.FusedSubnetLinear):
                assert torch.equal(ours.scores, theirs.scores)


def test_a_packed_layer_holds_a_bit_a_weight_and_no_float_parameter():
    layer = ek.FusedSubnetLinear(100, 63, bias=False)
    ek.init.signed_constant_(layer.weight)
    before = layer.weight.detach().clone()
    assert ek.pack_weights(layer) == [""]
    assert [name for name, _ in layer.named_parameters()] == ["scores"]
    assert layer.weight_signs.numel() == -(-6300 // 64) * 8 + 8 and layer.weight_magnitude.numel() == 1
    assert torch.equal(layer.weight, before) and "packed weight" in repr(layer)
    assert ek.pack_weights(layer) == [""]  # again: nothing changes
    assert ek.unpack_weights(layer) == [""] and ek.unpack_weights(layer) == []
    assert torch.equal(layer.weight, before) and isinstance(layer.weight, nn.Parameter)
    assert not layer.weight.requires_grad and sorted(layer.state_dict()) == ["_extra_state", "scores", "weight"]


def test_weights_without_a_sign_are_packed_too():
    layer = ek.FusedSubnetConv(3, 5, 3)
    ek.init.unsigned_constant_(layer.weight)
    y = layer(batch())
    ek.pack_weights(layer)
    assert torch.equal(layer(batch()), y)
    with torch.no_grad():
        ek.unpack_weights(layer)
        layer.weight.zero_()
    assert ek.pack_weights(layer) == [""] and layer(batch()).detach().sub(layer.bias.view(-1, 1, 1)).eq(0).all()


def test_what_cannot_be_packed_stays_or_is_refused_by_name():
    model = nn.Sequential(ek.FusedSubnetLinear(8, 8), ek.FusedSubnetLinear(8, 8), ek.FusedSparseLinear(8, 8))
    with pytest.raises(ValueError, match=r"0: its weight has more than one magnitude; .*2: its weight scores itself"):
        ek.pack_weights(model)
    ek.init.signed_constant_(model[1].weight)
    model[1].weight.requires_grad_()
    with pytest.raises(ValueError, match="1: its weight trains"):
        ek.pack_weights(model)
    model[1].weight.requires_grad_(False)
    assert ek.pack_weights(model) == ["1"]
    assert isinstance(model[0].weight, nn.Parameter)
    with pytest.raises(ValueError, match="no masked layer"):
        ek.pack_weights(nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got str"):
        ek.unpack_weights("model")
    with torch.no_grad():
        model[0].weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="more than one magnitude"):
        ek.pack_weights(model[0])


@pytest.mark.parametrize("saved", ["packed", "seeded", "floats"])
@pytest.mark.parametrize("into", ["packed", "seeded", "floats"])
@pytest.mark.parametrize("assign", [False, True])
def test_a_state_dict_of_either_kind_loads_into_either(saved, into, assign):
    def made(kind, seed):
        torch.manual_seed(seed)
        model = nn.Sequential(ek.FusedSubnetConv(3, 5, 3), nn.Flatten(), ek.FusedSubnetLinear(5 * 81, 7))
        for layer in model[::2]:
            ek.init.packed_signed_constant_(layer, 0.5, scale="paper", seed=seed) if kind == "seeded" else (
                ek.init.signed_constant_(layer.weight, 0.5, scale="paper")
            )
        if kind == "packed":
            ek.pack_weights(model)
        return model

    one, other = made(saved, 1), made(into, 2)
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True), assign=assign)
    assert torch.equal(other(batch()), one(batch()))
    assert ("0.weight" in other.state_dict()) == (into == "floats")  # each keeps its form
    assert ("0.weight_seed" in other.state_dict()) == (saved == "seeded" and into != "floats")
    again = made(into, 3)
    again.load_state_dict(other.state_dict())
    assert torch.equal(again(batch()), one(batch()))


def test_a_packed_layer_refuses_a_state_dict_of_other_weights_and_keeps_its_own():
    layer = ek.init.packed_signed_constant_(ek.FusedSubnetLinear(9, 5), seed=4)
    before, weight = {name: t.clone() for name, t in layer.state_dict().items()}, layer.weight
    with pytest.raises(RuntimeError, match=r"weight: expected a weight of one magnitude.*unpack_weights"):
        layer.load_state_dict(ek.FusedSubnetLinear(9, 5).state_dict())
    for wrong in (ek.FusedSubnetLinear(9, 6), ek.init.packed_signed_constant_(ek.FusedSubnetLinear(90, 5), seed=4)):
        with pytest.raises(RuntimeError, match=r"size mismatch|weight_signs|of this layer's shape"):
            layer.load_state_dict(wrong.state_dict())
    assert all(torch.equal(layer.state_dict()[name], t) for name, t in before.items() if "weight" in name)
    assert torch.equal(layer.weight, weight)


def test_a_seed_tells_all_signs_and_they_are_even():
    one = ek.init.packed_signed_constant_(ek.FusedSubnetLinear(200, 100), seed=7)
    assert set(one.state_dict()) == {"bias", "scores", "weight_magnitude", "weight_seed", "_extra_state"}
    with ek.use_backend("reference"):
        same = ek.init.packed_signed_constant_(ek.FusedSubnetLinear(200, 100), seed=7)
    other = ek.init.packed_signed_constant_(ek.FusedSubnetLinear(200, 100), seed=8)
    assert torch.equal(one.weight, same.weight) and not torch.equal(one.weight, other.weight)
    assert abs((one.weight < 0).float().mean().item() - 0.5) < 5 * 0.5 / 20000**0.5
    assert one.weight.abs().unique().tolist() == [torch.tensor((2 / 200) ** 0.5).item()]
    torch.manual_seed(1)
    drawn = ek.init.packed_signed_constant_(ek.FusedSubnetLinear(20, 10))
    torch.manual_seed(1)
    again = ek.init.packed_signed_constant_(ek.FusedSubnetLinear(20, 10))
    assert torch.equal(drawn.weight, again.weight)
    for seed in (True, 1.5, 2**63):
        with pytest.raises(ValueError, match="seed: expected an int of 64 bits"):
            ek.init.packed_signed_constant_(drawn, seed=seed)
    with pytest.raises(TypeError, match="layer: expected a masked layer, got Linear"):
        ek.init.packed_signed_constant_(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="scores itself"):
        ek.init.packed_signed_constant_(ek.FusedSparseLinear(3, 3))


def test_copies_pickles_and_materialized_layers_are_those_of_the_float_weights():
    floats, packed = both()
    for made in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert equal([made(batch())], [floats(batch())]) and len(ek.unpack_weights(made)) == 6
    plain, ours = ek.materialize(floats), ek.materialize(packed)
    for theirs, mine in zip(plain.state_dict().items(), ours.state_dict().items(), strict=True):
        assert theirs[0] == mine[0] and torch.equal(theirs[1], mine[1])


def test_freezing_thawing_and_new_weights():
    floats, packed = both()
    for model in (floats, packed):
        for layer in model[0], model[8]:
            layer.freeze(keep_scores=True)
    assert equal(gradients(packed, batch()), gradients(floats, batch()))
    with pytest.raises(ValueError, match=r"unpack_weights\(model\) first"):
        ek.train_weights(packed)
    assert not packed[2].rule.fixed  # nothing was changed
    ek.train_masks(packed)
    ek.train_masks(floats)
    assert equal(gradients(packed, batch()), gradients(floats, batch()))
    ek.unpack_weights(packed)
    ek.train_weights(packed)
    ek.train_weights(floats)
    assert equal(gradients(packed, batch()), gradients(floats, batch()))
    _, packed = both()
    packed[0].weight = nn.Parameter(torch.ones(12, 3, 3, 3), requires_grad=False)  # in the bits' place
    assert "weight_signs" not in packed[0].state_dict() and packed[0](batch()).shape == (3, 12, 11, 11)
    packed[8].reset_parameters()
    assert packed[8].weight.unique().numel() > 2


def test_torch_compiles_and_exports_packed_layers():
    floats, packed = both()
    compiled = torch.compile(packed, backend="aot_eager", fullgraph=True)
    assert equal(gradients(compiled, batch()), gradients(floats, batch()))
    program = torch.export.export(packed.eval(), (batch(),))
    assert torch.equal(program.module()(batch()), floats.eval()(batch()))


def test_functions_take_signs_beside_a_number():
    x, scores = torch.randn(5, 33), torch.randn(17, 33)
    negative = torch.rand(17, 33) < 0.5
    weight = torch.where(negative, -0.25, 0.25)
    one, signs = torch.tensor(0.25).expand(17, 33), ek.pack_mask(negative)
    expected = ek.masked_linear(x, weight, scores, ek.TopK(0.3))
    assert torch.equal(ek.masked_linear(x, one, scores, ek.TopK(0.3), signs=signs), expected)
    with pytest.raises(ValueError, match="signs: expected the weight beside them to be one number"):
        ek.masked_linear(x, weight, scores, ek.TopK(0.3), signs=signs)
    with pytest.raises(ValueError, match="signs: expected 80 contiguous bytes for 561 weights"):
        ek.masked_linear(x, one, scores, ek.TopK(0.3), signs=signs[:-8])
    with pytest.raises(TypeError, match=r"signs: expected packed uint8, got torch.bool"):
        ek.masked_linear(x, one, scores, ek.TopK(0.3), signs=negative)
    with pytest.raises(ValueError, match="signs: expected them beside a weight that does not train"):
        ek.masked_linear(x, torch.tensor(0.25, requires_grad=True).expand(17, 33), scores, ek.TopK(0.3), signs=signs)
    with pytest.raises(ValueError, match="signs: expected them beside a weight that does not train"):
        ek.masked_linear(x, one, None, ek.TopK(0.3), signs=signs)


def test_a_sum_over_processes_is_not_pulled_from_under_a_wrapper():
    import torch.distributed as dist

    file = dist.HashStore()
    dist.init_process_group("gloo", store=file, rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(network())
        with pytest.raises(RuntimeError, match="pack_weights: the model is inside DistributedDataParallel"):
            ek.pack_weights(model.module)
        with pytest.raises(RuntimeError, match="unpack_weights: the model is inside DistributedDataParallel"):
            ek.unpack_weights(model.module)
    finally:
        dist.destroy_process_group()
