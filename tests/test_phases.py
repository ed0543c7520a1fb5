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
