"""ek.summary: what masks keep, and what trains outside of them."""

import pytest
import torch
from torch import nn

import edgepop_kernels as ek


def network(**options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(45, 7), nn.Linear(7, 3))
    return ek.convert(model, exclude="4", **options)


@pytest.mark.parametrize(
    "options",
    [
        {"rule": ek.TopK(0.3)},
        {"rule": ek.GlobalTopK(0.3)},
        {"keep": 0.2, "method": "sparse"},
        {"method": "supermask"},
        {"method": "supermask", "rule": ek.Bernoulli(at_eval="round"), "mask_bias": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("frozen", [False, True])
def test_it_counts_what_the_masks_keep(options, frozen):
    model = ek.share_selection(network(**options))
    if frozen:
        ek.train_weights(model)
    found = ek.summary(model)
    assert [row.name for row in found.rows] == ["0", "3"]
    assert [row.kept for row in found.rows] == [int(m.mask().sum()) for m in (model[0], model[3])]
    assert [row.shape for row in found.rows] == [(5, 2, 3, 3), (7, 45)] and found.total == 90 + 315
    assert found.kept == sum(row.kept for row in found.rows)
    assert all(
        row.rule == model[0].rule and row.kind == type(model[0 if row.name == "0" else 3]).__name__
        for row in found.rows
    )
    for row, layer in zip(found.rows, (model[0], model[3]), strict=True):
        assert set(row.trains) == {n for n, p in layer.named_parameters() if p.requires_grad}
    biases = [] if options.get("mask_bias") else ["0.bias", "3.bias"]
    assert sorted(f"{left.name}.{left.parameter}" for left in found.left) == sorted(
        [*biases, "1.weight", "1.bias", "4.weight", "4.bias"]
    )
    assert found.dense == sum(left.numel for left in found.left) == 10 + 24 + (12 if biases else 0)


def test_it_changes_and_draws_nothing():
    model = network(method="supermask", rule=ek.Bernoulli())
    nn.init.constant_(model[3].scores, 1.0)
    before, random = {n: t.clone() for n, t in model.state_dict().items()}, torch.get_rng_state()
    found = ek.summary(model)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert found.rows[1].kept == round(315 * torch.sigmoid(torch.tensor(1.0)).item())


def test_its_string_is_a_table_of_a_hundred_columns():
    table = str(ek.summary(network(rule=ek.TopK(0.3))))
    assert "0     SubnetConv   5x2x3x3 TopK(0.3)   28  90 31.1 bias, scores" in table.splitlines()
    assert "kept in all: 123 of 405 weights (30.37%)" in table
    assert "training outside of masks, 46 values: 1 Linear (4: 21 weights), 1 BatchNorm2d, 3 biases" in table
    deep = nn.Sequential()
    deep.add_module("a_rather_long_name_of_a_block_" * 4, nn.Sequential(network(keep=0.3), nn.LSTM(3, 4)))
    long = ek.summary(deep)
    assert max(map(len, str(long).splitlines())) <= 100
    assert long.rows[0].name.endswith(".0.0")
    dense = str(ek.summary(nn.Linear(3, 4).requires_grad_(False)))
    assert dense.splitlines() == ["no masked layers", "outside of masks, not training: 16 values"]


def test_what_an_optimizer_does_not_hold_is_named():
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    early = torch.optim.SGD(model.parameters(), lr=0.1)
    ek.convert(model)
    found = ek.summary(model, early)
    assert found.lacking == ["0.scores", "1.scores"]
    assert "training, but not held by the optimizer: 0.scores, 1.scores" in str(found)
    assert ek.summary(model, ek.optim.ScoreSGD(model, lr=0.1)).lacking == []
    with pytest.raises(TypeError, match=r"^model: expected a torch\.nn\.Module, got str"):
        ek.summary("model")
