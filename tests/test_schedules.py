"""How much each layer keeps: over layers (density, keep by names) and over time (KeepSchedule)."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import edgepop_kernels as ek


def network():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.Flatten(),
        nn.Linear(32 * 16, 50),
        nn.Linear(50, 7),
    )


def sizes(model, names):
    return {name: model.get_submodule(name).weight.numel() for name in names}


def whole(model, densities):
    """The fraction that all layers together keep."""
    numel = sizes(model, densities)
    return sum(densities[name] * numel[name] for name in densities) / sum(numel.values())


def by_one_at_a_time(model, keep):
    """Erdős-Rényi-Kernel as its authors find it: the densest layer becomes dense, and all is counted anew."""
    shapes = {name: m.weight.shape for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    dense = set()
    while True:
        others = shapes.keys() - dense
        total = sum(s.numel() for s in shapes.values())
        if not others:
            return dict.fromkeys(shapes, 1.0)
        left = keep * total - sum(shapes[name].numel() for name in dense)
        raw = {name: sum(shapes[name]) / shapes[name].numel() for name in others}
        scale = left / sum(raw[name] * shapes[name].numel() for name in others)
        highest = max(others, key=raw.get)
        if raw[highest] * scale <= 1:
            return {name: 1.0 if name in dense else raw[name] * scale for name in shapes}
        dense.add(highest)


@pytest.mark.parametrize("keep", [0.01, 0.1, 0.3, 0.77, 0.999, 1, 1.0])
def test_erk_is_the_authors_and_keeps_the_whole(keep):
    model = network()
    found = ek.density.erk(model, keep)
    assert list(found) == ["0", "1", "2", "4", "5"]
    assert found == pytest.approx(by_one_at_a_time(model, keep))
    assert whole(model, found) == pytest.approx(keep) and all(0 < d <= 1 for d in found.values())


@pytest.mark.parametrize("keep", [0.05, 0.1, 0.3, 0.9, 1.0])
def test_uniform_plus_has_its_two_layers_and_keeps_the_whole(keep):
    model = network()
    found = ek.density.uniform_plus(model, keep)
    assert found["0"] == 1 and found["5"] >= 0.2 - 1e-12
    assert found["1"] == found["2"] == found["4"]
    assert whole(model, found) == pytest.approx(keep)
    assert found["5"] == max(0.2, found["4"])


def test_uniform_plus_says_what_it_cannot_keep():
    with pytest.raises(ValueError, match=r"keep: 0 and 5 take 0\.01612 of all weights, expected more, got 0\.01"):
        ek.density.uniform_plus(network(), 0.01)


def test_uniform_plus_of_linear_layers_alone_and_of_one():
    model = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10))
    assert ek.density.uniform_plus(model, 0.15) == pytest.approx({"0": 0.1, "1": 0.2})
    assert ek.density.uniform_plus(nn.Sequential(nn.Linear(4, 4)), 0.5) == {"0": 0.5}


def test_uniform_is_one_number():
    assert ek.density.uniform(network(), 0.3) == dict.fromkeys(["0", "1", "2", "4", "5"], 0.3)


@pytest.mark.parametrize("name", ["uniform", "erk", "uniform_plus"])
def test_densities_are_of_a_plain_network_and_of_a_converted_one(name):
    density, plain = getattr(ek.density, name), network()
    converted = ek.convert(network(), exclude="5", left="ignore")
    assert density(converted, 0.3) == density(plain, 0.3, exclude="5") == density(plain, 0.3, include=["[0-4]"])
    assert density(converted, 0.3, exclude=["0", "4"]).keys() == {"1", "2"}
    with pytest.raises(ValueError, match=r"exclude: '5' matches none of the layers 0, 1, 2, 4"):
        density(converted, 0.3, exclude="5")
    with pytest.raises(ValueError, match=r"keep: the fraction of weights KEPT must be in \(0, 1\], got 0"):
        density(plain, 0)
    with pytest.raises(ValueError, match=r"model: expected masked layers whose rule has a keep .*under Threshold"):
        density(ek.convert(network(), ek.Threshold()), 0.3)


def test_convert_takes_densities_and_masks_keep_them():
    model = network()
    densities = ek.density.erk(model, 0.1)
    ek.convert(model, keep=densities)
    for name, numel in sizes(model, densities).items():
        layer = model.get_submodule(name)
        assert layer.rule == ek.TopK(densities[name])
        assert layer.mask().sum() == ek.kept_count(numel, densities[name])


def test_a_name_comes_before_patterns_and_then_the_first():
    model = ek.convert(network(), keep={"*": 0.9, "4": 0.1}, init="signed_constant", scale="paper")
    assert [m.keep for m in model if hasattr(m, "keep")] == [0.9, 0.9, 0.9, 0.1, 0.9]
    ek.set_keep(model, {"[45]": 0.2, "[0-4]": 0.3})
    assert [m.keep for m in model if hasattr(m, "keep")] == [0.3, 0.3, 0.3, 0.2, 0.2]
    ek.set_keep(model, {"5": 0.7})
    assert [m.keep for m in model if hasattr(m, "keep")] == [0.3, 0.3, 0.3, 0.2, 0.7]
    ek.set_keep(model, 0.4)
    assert [m.keep for m in model if hasattr(m, "keep")] == [0.4] * 5
    ek.set_keep(model, {"?": 0.5, "*": 0.1})  # a rest of none
    assert {m.keep for m in model if hasattr(m, "keep")} == {0.5}


def test_a_drawn_weight_follows_its_own_layers_keep():
    model = ek.convert(
        nn.Sequential(nn.Linear(50, 50), nn.Linear(50, 50)),
        keep={"0": 0.25, "1": 1.0},
        init="signed_constant",
        scale="paper",
    )
    assert model[0].weight.abs().max() == pytest.approx(2 * model[1].weight.abs().max().item())


WRONG = [
    ({"x": 0.1}, ValueError, r"keep: 'x' matches none of the layers 0, 1, 2, 4, 5"),
    ({"3": 0.1}, ValueError, r"keep: '3' matches none of the layers"),
    ({"?": 0.2, "[01]": 0.3}, ValueError, r"keep: '\[01\]' decides nothing, what it matches goes by '\?'"),
    ({"*": 0}, ValueError, r"keep\['\*'\]: the fraction of weights KEPT must be in \(0, 1\], got 0"),
    ({"*": "half"}, TypeError, r"keep\['\*'\]: expected a float in \(0, 1\], got str"),
    ({}, ValueError, "keep: expected a fraction for some pattern of layers' names, got none"),
    ({0: 0.1}, TypeError, r"keep: expected patterns of layers' names, got 0"),
    ([0.1], TypeError, r"keep: expected a float in \(0, 1\], got list"),
    (2.0, ValueError, r"keep: the fraction of weights KEPT must be in \(0, 1\], got 2.0"),
]


@pytest.mark.parametrize(("keep", "error", "message"), WRONG, ids=str)
def test_wrong_keeps_are_named_and_change_nothing(keep, error, message):
    plain, model = network(), ek.convert(network(), keep=0.5)
    with pytest.raises(error, match=message):
        ek.set_keep(model, keep)
    assert {m.keep for m in model if hasattr(m, "keep")} == {0.5}
    with pytest.raises(error, match=message):
        ek.convert(plain, keep=keep)
    assert not [m for m in plain.modules() if hasattr(m, "scores")]


def test_convert_wants_a_keep_for_every_layer():
    with pytest.raises(ValueError, match=r"keep: no pattern has 1, 2, 4, 5; expected one, '\*' for the rest"):
        ek.convert(network(), keep={"0": 0.5})
    with pytest.raises(ValueError, match="keep: expected keep or rule"):
        ek.convert(network(), ek.TopK(0.5), keep={"*": 0.5})
    with pytest.raises(ValueError, match="keep: a supermask's rule is a threshold or a draw"):
        ek.convert(network(), method="supermask", keep={"*": 0.5})


def test_set_keep_leaves_layers_that_do_not_rank():
    model = ek.convert(network(), ek.TopK(0.5, of="raw"))
    model[0].rule = ek.Threshold()
    ek.set_keep(model, 0.25)
    assert model[0].rule == ek.Threshold() and model[4].rule == ek.TopK(0.25, of="raw")
    with pytest.raises(ValueError, match="keep: '0' matches none of the layers 1, 2, 4, 5"):
        ek.set_keep(model, {"0": 0.5})
    ek.train_weights(model)
    with pytest.raises(ValueError, match=r"under Frozen; train_masks\(model\) thaws frozen ones"):
        ek.set_keep(model, 0.5)
    with pytest.raises(ValueError, match="it has no masked layer; convert it first"):
        ek.set_keep(network(), 0.5)
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got list"):
        ek.set_keep([], 0.5)


def test_layers_ranked_together_have_one_number():
    model = ek.share_selection(ek.convert(network(), ek.GlobalTopK(0.5, at_least=0.1)))
    ek.set_keep(model, 0.25)
    model(torch.randn(2, 3, 4, 4))
    layers = [m for m in model if hasattr(m, "keep")]
    numel = sum(m.weight.numel() for m in layers)
    assert sum(int(m.mask().sum()) for m in layers) == ek.kept_count(numel, 0.25)
    for keep in ({"0": 0.3}, {"0": 0.3, "*": 0.4}):
        with pytest.raises(ValueError, match=r"keep: 0, 1, 2, 4, 5 are ranked together by .*expected one number"):
            ek.set_keep(model, keep)
    with pytest.raises(ValueError, match=r"keep: 0 cannot keep 0.05: at_least: expected a fraction in \[0, 0.05\]"):
        ek.set_keep(model, 0.05)
    assert {m.rule for m in layers} == {ek.GlobalTopK(0.25, at_least=0.1)}


def curve(shape, final=0.2, initial=0.9, begin=3, end=13, steps=16, every=1):
    model = ek.convert(nn.Sequential(nn.Linear(10, 10)))
    schedule = ek.KeepSchedule(model, final, initial, begin, end=end, every=every, shape=shape)
    kept = [model[0].keep]
    for _ in range(steps):
        schedule.step()
        assert schedule.keep == {"0": model[0].keep}
        kept.append(model[0].keep)
    return kept


def test_keep_follows_the_published_equation():
    over = [min(max((t - 3) / 10, 0), 1) for t in range(17)]
    assert curve("cubic") == pytest.approx([0.2 + 0.7 * (1 - o) ** 3 for o in over])
    assert curve("linear") == pytest.approx([0.2 + 0.7 * (1 - o) for o in over])
    assert curve("cosine") == pytest.approx([0.2 + 0.7 * (1 + math.cos(math.pi * o)) / 2 for o in over])
    for shape in ("cubic", "linear", "cosine"):
        assert curve(shape)[13:] == [0.2] * 4 and curve(shape)[:4] == [0.9] * 4  # to the bit


def test_every_few_steps_and_at_the_end():
    each, kept = curve("cubic"), curve("cubic", every=4)
    assert kept == [each[3]] * 7 + [each[7]] * 4 + [each[11]] * 2 + [0.2] * 4


def test_keep_may_grow_and_go_by_names():
    model = ek.convert(network(), keep=0.5)
    final = ek.density.erk(model, 0.3, exclude="0")
    schedule = ek.KeepSchedule(model, final, initial={"[1-5]": 0.05}, end=2, shape="linear")
    assert model[0].keep == 0.5 and model[1].keep == 0.05
    schedule.step()
    assert model[1].keep == pytest.approx((0.05 + final["1"]) / 2)
    schedule.step()
    assert {name: model.get_submodule(name).keep for name in final} == final and model[0].keep == 0.5


WRONG_SCHEDULES = [
    (dict(final=0.1, end=0), ValueError, "end: expected at least 1, got 0"),
    (dict(final=0.1, end=3, begin=3), ValueError, "end: expected more steps than begin=3, got 3"),
    (dict(final=0.1, end=3, begin=-1), ValueError, "begin: expected at least 0, got -1"),
    (dict(final=0.1, end=3.0), TypeError, "end: expected a number of steps, an int, got float"),
    (dict(final=0.1, end=3, every=0), ValueError, "every: expected at least 1, got 0"),
    (dict(final=0.1, end=3, shape="square"), ValueError, "shape: expected one of 'cubic', 'linear', 'cosine', got"),
    (dict(final=0, end=3), ValueError, "final: the fraction of weights KEPT must be in"),
    (dict(final={"x": 0.1}, end=3), ValueError, "final: 'x' matches none of the layers"),
    (dict(final=0.1, initial=1.5, end=3), ValueError, "initial: the fraction of weights KEPT must be in"),
    (dict(final=0.1, initial={"0": 1.0}, end=3), ValueError, "initial: expected the layers of final, got '1' in one"),
]


@pytest.mark.parametrize(("options", "error", "message"), WRONG_SCHEDULES, ids=str)
def test_wrong_schedules_are_named_and_change_nothing(options, error, message):
    model = ek.convert(network(), keep=0.5)
    with pytest.raises(error, match=message):
        ek.KeepSchedule(model, **options)
    assert {m.keep for m in model if hasattr(m, "keep")} == {0.5}


def test_an_end_that_a_rule_does_not_take_is_heard_of_at_the_start():
    model = ek.share_selection(ek.convert(network(), ek.GlobalTopK(0.5, at_least=0.1)))
    with pytest.raises(ValueError, match=r"final: 0 cannot keep 0.05: at_least"):
        ek.KeepSchedule(model, 0.05, end=10)
    assert model[0].rule == ek.GlobalTopK(0.5, at_least=0.1)


def test_a_frozen_network_stops_the_count_before_it_counts():
    model = ek.convert(network(), keep=0.5)
    schedule = ek.KeepSchedule(model, 0.1, end=10)
    schedule.step()
    state = schedule.state_dict()
    ek.train_weights(model)
    with pytest.raises(ValueError, match="model: expected masked layers whose rule has a keep to set"):
        schedule.step()
    assert schedule.state_dict() == state
    ek.train_masks(model)
    schedule.step()
    assert schedule.state_dict()["step"] == 2


def training(steps, stop=None):
    """A run of ``steps``, interrupted after ``stop`` and taken up by another process's objects."""
    torch.manual_seed(0)
    x, y = torch.randn(steps, 32, 12), torch.randint(5, (steps, 32))

    def made():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 5))
        ek.convert(model, init="signed_constant")
        optimizer = ek.optim.ScoreSGD(model, lr=0.1, momentum=0.9)
        return model, optimizer, ek.KeepSchedule(model, {"0": 0.1, "2": 0.5}, end=8, every=2)

    parts = made()
    for step in range(steps):
        if step == stop:
            states = [copy.deepcopy(part.state_dict()) for part in parts]
            parts = made()
            for part, state in zip(parts, states, strict=True):
                part.load_state_dict(state)
        model, optimizer, schedule = parts
        optimizer.zero_grad()
        F.cross_entropy(model(x[step]), y[step]).backward()
        optimizer.step()
        schedule.step()
    return parts


@pytest.mark.parametrize("stop", [1, 5, 8, 11])
def test_training_resumes_to_the_bit(stop):
    through, resumed = training(12), training(12, stop)
    for a, b in zip(through[0].state_dict().values(), resumed[0].state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert through[2].state_dict() == resumed[2].state_dict() and through[2].keep == {"0": 0.1, "2": 0.5}
    assert [through[0][i].mask().sum().item() for i in (0, 2)] == [48, 100]


def test_a_state_is_of_its_schedule_and_of_plain_values(tmp_path):
    model = ek.convert(network(), keep=0.5)
    schedule = ek.KeepSchedule(model, ek.density.erk(model, 0.1), end=10)
    for _ in range(3):
        schedule.step()
    torch.save(schedule.state_dict(), tmp_path / "schedule.pt")
    state = torch.load(tmp_path / "schedule.pt", weights_only=True)
    kept = schedule.keep
    other = ek.KeepSchedule(model, 0.1, end=10)
    with pytest.raises(ValueError, match="state: it is of a schedule with final="):
        other.load_state_dict(state)
    with pytest.raises(ValueError, match=r"state: expected what KeepSchedule.state_dict\(\) returns, got {}"):
        other.load_state_dict({})
    with pytest.raises(ValueError, match="state: step: expected at least 0, got -1"):
        schedule.load_state_dict(state | {"step": -1})
    schedule = ek.KeepSchedule(model, ek.density.erk(model, 0.1), end=10)
    schedule.load_state_dict(state)
    assert schedule.keep == kept and model[2].keep == kept["2"]


def test_a_compiled_network_follows_a_schedule(compiled):
    compile, made = compiled
    model = ek.convert(nn.Sequential(nn.Linear(13, 33), nn.ReLU(), nn.Linear(33, 5)))
    schedule = ek.KeepSchedule(model, {"0": 0.1, "2": 0.3}, initial=0.9, end=6)
    run, x = compile(model), torch.randn(3, 13)
    for _ in range(8):
        torch.testing.assert_close(run(x), ek.materialize(model, copy=True)(x))
        schedule.step()
    assert len(made) <= 2
