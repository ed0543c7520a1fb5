"""Turning between training masks and training weights, with one optimizer over all parameters."""

import copy

import pytest
import torch
from torch import nn

import edgepop_kernels as ek


def network(method="supermask", **options):
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))
    return ek.convert(model, method=method, **options)


def steps(model, optimizer, count=3):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        x = torch.randn(16, 6, generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), x[:, :3].argmax(1)).backward()
        optimizer.step()


def values(model, name):
    return [p.detach().clone() for n, p in model.named_parameters() if n.rpartition(".")[2] in name]


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


OPTIMIZERS = pytest.mark.parametrize(
    "build",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
    ],
)


@OPTIMIZERS
def test_what_stands_still_does_not_move(build):
    """Neither momentum nor weight decay moves the parameters whose turn is over."""
    model = network(mask_bias=True)
    optimizer = build(model.parameters())
    masks, weights = ("scores", "bias_scores"), ("weight", "bias")
    for turn, moving, still in ((ek.train_masks, masks, weights), (ek.train_weights, weights, masks)) * 2:
        turn(model, optimizer)
        mask, before, kept = model[0].mask(), values(model, moving), values(model, still)
        steps(model, optimizer)
        assert same(values(model, still), kept) and not same(values(model, moving), before)
        if turn is ek.train_weights:
            assert torch.equal(model[0].mask(), mask)


@OPTIMIZERS
def test_a_turn_starts_without_the_momentum_of_the_last(build):
    model = network()
    optimizer = build(model.parameters())
    ek.train_masks(model, optimizer)
    steps(model, optimizer)
    ek.train_weights(model, optimizer)
    assert not any("momentum_buffer" in s or "exp_avg" in s for p, s in optimizer.state.items() if p is model[0].scores)
    ek.train_masks(model, optimizer)
    twin = copy.deepcopy(model)
    steps(model, optimizer, 1)
    steps(twin, build(twin.parameters()), 1)
    assert same(values(model, ("scores",)), values(twin, ("scores",)))


def test_the_mask_survives_a_checkpoint_between_the_phases():
    model = network(mask_bias=True)
    steps(model, torch.optim.SGD(model.parameters(), lr=1.0))
    ek.train_weights(model)
    other = network(mask_bias=True)
    other.load_state_dict(model.state_dict())
    x = torch.randn(4, 6)
    assert torch.equal(other(x), model(x)) and other[0].rule == ek.Frozen()
    ek.train_masks(other)
    assert other[0].rule == ek.Threshold(0.5) and torch.equal(other(x), model(x))


def test_subnets_and_wirings_turn_too():
    subnet = network("subnet")
    ek.train_weights(subnet)
    assert subnet[0].weight.requires_grad and not subnet[0].scores.requires_grad
    subnet(torch.randn(2, 6)).sum().backward()
    assert not subnet[0].weight.grad[~subnet[0].mask()].any()
    ek.train_masks(subnet)
    assert subnet[0].rule == ek.TopK(0.5) and not subnet[0].weight.requires_grad

    wiring = network("sparse")
    ek.train_weights(wiring)
    wiring(torch.randn(2, 6)).square().sum().backward()
    assert not wiring[0].weight.grad[~wiring[0].mask()].any()
    ek.train_masks(wiring)
    wiring(torch.randn(2, 6)).square().sum().backward()
    assert wiring[0].weight.requires_grad and wiring[0].weight.grad[~wiring[0].mask()].any()


def test_one_threshold_survives_the_turn():
    """Frozen one after the other, the layers left would be ranked among themselves."""
    model = ek.share_selection(network("subnet", rule=ek.GlobalTopK(0.3)))
    with torch.no_grad():
        model[2].scores.mul_(5)
    masks = [model[0].mask(), model[2].mask()]
    with pytest.raises(ValueError, match="together"):
        model[0].freeze()
    ek.train_weights(model)
    assert torch.equal(model[0].mask(), masks[0]) and torch.equal(model[2].mask(), masks[1])
    ek.train_masks(model)
    assert model[0].rule == ek.GlobalTopK(0.3) and torch.equal(model[2].mask(), masks[1])


def test_errors():
    model = network()
    scores_only = torch.optim.SGD([m.scores for m in (model[0], model[2])], lr=0.1)
    with pytest.raises(ValueError, match=r"^optimizer: it lacks 0\.weight"):
        ek.train_weights(model, scores_only)
    frozen = network()
    frozen[0].freeze()
    with pytest.raises(ValueError, match="keep_scores"):
        ek.train_masks(frozen)
    with pytest.raises(ValueError, match=r"^model: ."):
        ek.train_masks(nn.Linear(2, 2))


def test_a_turn_that_is_refused_changes_nothing():
    model = network()
    model[2].freeze()
    before = {n: (p, p.requires_grad) for n, p in model.named_parameters()}
    with pytest.raises(ValueError, match="keep_scores"):
        ek.train_masks(model)
    with pytest.raises(ValueError, match=r"^optimizer: it lacks 0\.weight"):
        ek.train_weights(model, torch.optim.SGD([model[0].scores], lr=0.1))
    assert not isinstance(model[0].rule, ek.Frozen)
    after = {n: (p, p.requires_grad) for n, p in model.named_parameters()}
    assert before.keys() == after.keys() and all(before[n][0] is after[n][0] for n in before)
    assert all(before[n][1] == after[n][1] for n in before)


@pytest.mark.parametrize(("method", "options"), [("subnet", {}), ("sparse", {}), ("supermask", {"mask_bias": True})])
@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize(
    "build",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True, foreach=True),
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, lr=0.01, fused=True, weight_decay=0.1),
        lambda p: ek.optim.ScoreSGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
        lambda p: ek.optim.ScoreAdamW(p, lr=0.01, weight_decay=0.1),
    ],
    ids=["SGD", "nesterov", "AdamW", "fused Adam", "ScoreSGD", "ScoreAdamW"],
)
def test_masked_out_weights_stand_still_while_weights_train(method, options, loaded, build):
    model = network(method, **options)
    if method == "supermask":
        nn.init.normal_(model[0].bias_scores)
        nn.init.normal_(model[0].bias)
    optimizer = build(model.parameters())
    ek.train_masks(model, optimizer)
    steps(model, optimizer)  # a self-scored weight has momentum from here
    ek.train_weights(model, optimizer)
    if loaded:
        model.load_state_dict(copy.deepcopy(model.state_dict()))
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    masks, before = [model[0].mask(), model[2].mask()], values(model, ("weight",))
    bias = model[0].bias.detach().clone()
    steps(model, optimizer, 20)
    for mask, p, old in zip(masks, values(model, ("weight",)), before, strict=True):
        assert torch.equal(p[~mask], old[~mask]) and not torch.equal(p[mask], old[mask])
    if method == "supermask":
        out = ~model[0].bias_mask.bool()
        assert out.any() and torch.equal(model[0].bias[out], bias[out])


def test_nothing_is_held_once_masks_train_again():
    model = network("sparse")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        ek.train_weights(model, optimizer)
        assert len(optimizer._optimizer_step_pre_hooks) == len(optimizer._optimizer_step_post_hooks) == 1
    ek.train_masks(model, optimizer)
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks
    mask, before = model[0].mask(), model[0].weight.detach().clone()
    steps(model, optimizer)
    assert not torch.equal(model[0].weight[~mask], before[~mask])


def test_values_loaded_between_steps_are_those_that_stand():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    ek.train_weights(model, optimizer)
    steps(model, optimizer)
    with torch.no_grad():
        model[0].weight.fill_(3.0)
    steps(model, optimizer)
    assert (model[0].weight[~model[0].mask()] == 3.0).all()


def test_layers_thawed_or_materialized_since_are_let_go():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    ek.train_weights(model, optimizer)
    steps(model, optimizer)
    ek.train_masks(model)  # without the optimizer
    steps(model, optimizer)
    ek.materialize(model)
    before = model[0].weight.detach().clone()
    optimizer.add_param_group({"params": list(model.parameters())[:1]})
    steps(model, optimizer)
    assert not torch.equal(model[0].weight, before)


def test_an_optimizer_built_before_the_conversion_is_noticed():
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))
    before = list(model.parameters())
    early = torch.optim.SGD(before, lr=0.1)
    ek.convert(model)
    with pytest.raises(
        ValueError, match=r"^optimizer: it holds none of what is to train \(0\.scores, \.\.\.\), as one built"
    ):
        ek.train_masks(model, early)
    for kind in (ek.optim.ScoreSGD, ek.optim.ScoreAdam, ek.optim.ScoreAdamW):
        with pytest.raises(ValueError, match=r"^model: none of its scores are among params; expected .* after convert"):
            kind(before, lr=0.1, model=model)
        kind(model.parameters(), lr=0.1, model=model)
        kind([model[0].scores], lr=0.1, model=model)
    ek.train_weights(model)
    ek.optim.ScoreSGD(before, lr=0.1, model=model)  # no mask is to train
