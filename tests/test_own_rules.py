"""Rules that a user writes: they mask, train, compile and are saved as this package's do, on every backend."""

import io
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import edgepop_kernels as ek

BACKENDS = [name for name, reason in ek.backends().items() if reason is None]


@dataclass(frozen=True)
class PerOutput(ek.Rule):
    """The best-scored weights of every output, as many of each."""

    each: int = 2
    of: ClassVar[str] = "abs"
    selects: ClassVar[type] = ek.Bits

    def check(self, shape):
        if shape[1:].numel() < self.each:
            raise ValueError(f"each: expected at most {shape[1:].numel()}, the weights of an output, got {self.each}")

    def select(self, scores, ops):
        best = scores.abs().flatten(1).topk(self.each).indices
        kept = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
        return ek.Bits(ek.pack_mask(kept.flatten(1).scatter(1, best, True).view_as(kept)), self.of)


@dataclass(frozen=True)
class SquareRoot(ek.Rule):
    """As many weights as the square root of what a layer has: a cut found by this package's selection."""

    of: ClassVar[str] = "raw"

    def select(self, scores, ops):
        return ek.select(scores, ek.TopK(scores.numel() ** -0.5, of="raw"))


@dataclass(frozen=True)
class Few(ek.TopK):
    """TopK with a most that it keeps."""

    most: int = 20

    def kept(self, numel):
        return min(super().kept(numel), self.most)


OWN = [PerOutput(3), SquareRoot(), Few(0.7, most=30)]


def network(rule):
    body = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(45, 7))
    return ek.convert(body, rule)


def expected_mask(scores, rule):
    scores = scores.detach()
    if isinstance(rule, SquareRoot):
        kept = ek.kept_count(scores.numel(), scores.numel() ** -0.5)
        return scores >= scores.flatten().sort().values[-kept]
    if isinstance(rule, Few):
        return scores.abs() >= scores.abs().flatten().sort().values[-rule.kept(scores.numel())]
    least = scores.abs().flatten(1).sort(1).values[:, -rule.each]
    return scores.abs() >= least.view(-1, *[1] * (scores.dim() - 1))


@pytest.mark.parametrize("rule", OWN, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_it_masks_products_and_gradients(backend, rule):
    x, weight, scores = torch.randn(4, 17), torch.randn(11, 17), torch.randn(11, 17, requires_grad=True)
    mask = expected_mask(scores, rule)
    slope = scores.detach().sign() if rule.of == "abs" else 1
    with ek.use_backend(backend):
        assert torch.equal(ek.mask(scores, rule), mask) and 0 < mask.sum() < mask.numel()
        y = ek.masked_linear(x, weight, scores, rule)
        y.sum().backward()
        torch.testing.assert_close(y, F.linear(x, weight * mask))
        torch.testing.assert_close(scores.grad, torch.ones(11, 4) @ x * weight * slope, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shared", [False, True], ids=["per layer", "shared selection"])
@pytest.mark.parametrize("rule", OWN, ids=str)
def test_a_network_trains_turns_and_becomes_plain(rule, shared):
    model, x = network(rule), torch.randn(6, 3, 5, 5)
    if shared:
        ek.share_selection(model)
    optimizer = ek.optim.ScoreSGD(model, lr=0.5, momentum=0.9)
    before = model(x)
    for _ in range(4):
        optimizer.zero_grad()
        F.cross_entropy(model(x), torch.arange(6)).backward()
        optimizer.step()
        for layer in (model[0], model[3]):
            assert torch.equal(layer.mask(), expected_mask(layer.scores, rule))
    y = model(x)
    assert not torch.equal(y, before)
    torch.testing.assert_close(torch.compile(model, backend="aot_eager", fullgraph=True)(x), y)
    torch.testing.assert_close(ek.materialize(model, copy=True)(x), y)
    kept = sum(int(layer.mask().sum()) for layer in (model[0], model[3]))
    assert ek.summary(model).kept == kept and type(rule).__name__ in str(ek.summary(model))
    torch.testing.assert_close(ek.train_weights(model)(x), y)
    torch.testing.assert_close(ek.train_masks(model)(x), y)


@pytest.mark.parametrize("rule", OWN, ids=str)
def test_a_state_dict_has_it(rule):
    saved, file = network(rule), io.BytesIO()
    torch.save(saved.state_dict(), file)
    file.seek(0)
    model = network(ek.TopK(0.2))
    model.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(2, 3, 5, 5)
    assert model[0].rule == model[3].rule == rule and torch.equal(model(x), saved(x))


def test_a_keep_that_is_set_leaves_the_rest_of_a_ranked_rule_to_it():
    torch._dynamo.reset()
    layer, x = ek.FusedSubnetLinear(20, 10, rule=Few(0.9, most=100)), torch.randn(3, 20)
    run = torch.compile(layer, backend="eager", fullgraph=True)
    for keep, kept in ((0.9, 100), (0.3, 60), (0.8, 100)):
        layer.keep = keep
        assert layer.rule == Few(keep, most=100) and layer.mask().sum() == kept
        torch.testing.assert_close(run(x), layer.materialize()(x))


def test_its_check_speaks_before_anything_runs():
    refused = pytest.raises(ValueError, match=r"^each: expected at most 4, the weights of an output, got 9")
    with refused:
        ek.FusedSubnetLinear(4, 3, rule=PerOutput(9))
    layer, scores = ek.FusedSubnetLinear(4, 3), torch.randn(3, 4)
    plain = nn.Sequential(nn.Linear(9, 4), nn.Linear(4, 3))
    with refused:
        layer.rule = PerOutput(9)
    with refused:
        ek.convert(plain, PerOutput(9))
    with refused:
        ek.mask(scores, PerOutput(9))
    with refused:
        ek.masked_linear(torch.randn(2, 4), scores, scores, PerOutput(9))
    saved = ek.FusedSubnetLinear(9, 3, rule=PerOutput(9)).state_dict()
    with pytest.raises(RuntimeError, match=r"_extra_state: each: expected at most 4"):
        layer.load_state_dict(layer.state_dict() | {"_extra_state": saved["_extra_state"]})
    assert layer.rule == ek.TopK(0.5) and type(plain[0]) is nn.Linear


def rule_that(selects, returned=None, **values):
    """A rule whose ``select`` returns what it should not."""
    body = {"of": "abs", "selects": selects, "select": lambda self, scores, ops: returned, **values}
    return dataclass(frozen=True)(type("Wrong", (ek.Rule,), body | {"__module__": f"{__name__}.{len(body)}"}))()


@pytest.mark.parametrize(
    ("rule", "error", "message"),
    [
        (rule_that(ek.Bits, ek.Bits(torch.zeros(3, dtype=torch.uint8), "abs")), ValueError, "expected 24 contiguous"),
        (rule_that(ek.Bits, ek.Bits(torch.zeros(24), "abs")), TypeError, "bits: expected packed uint8"),
        (rule_that(ek.Bits, ek.Bits(torch.zeros(24, dtype=torch.uint8), "raw")), ValueError, r"Wrong\.select: it was"),
        (rule_that(ek.Bits, torch.ones(7, 13, dtype=torch.bool)), TypeError, r"Wrong\.select: expected a Bits"),
        (rule_that(ek.Cut, ek.Cut(torch.zeros(1, dtype=torch.int64), "abs")), ValueError, "expected two contiguous"),
        (rule_that(ek.Cut, of="cube"), ValueError, "rule: expected its of to be 'abs', 'raw' or 'sigmoid', got 'cube'"),
        (Few(most=-3), ValueError, r"kept to return 0 to 91, the scores that there are, got -3"),
        (Few(most=2.0), TypeError, r"kept to return an int, got float"),
    ],
    ids=["short", "floats", "another of", "a mask", "a short cut", "an of of its own", "below 0", "no count"],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_a_rule_returns_is_looked_at(backend, rule, error, message):
    with ek.use_backend(backend), pytest.raises(error, match=message):
        ek.masked_linear(torch.randn(2, 13), torch.randn(7, 13), torch.randn(7, 13), rule)


def test_a_rule_is_a_dataclass():
    class Plain(ek.Rule):
        def select(self, scores, ops):
            return ek.select(scores, ek.TopK())

    with pytest.raises(TypeError, match=r"^rule: expected a frozen dataclass, .*, got Plain"):
        ek.FusedSubnetLinear(3, 4, rule=Plain())


def test_no_rule_takes_the_name_of_another():
    with pytest.raises(TypeError, match=r"^rule: a state_dict knows a rule by its name, and TopK is one of edgepop"):
        type("TopK", (ek.Rule,), {})
    state = network(PerOutput(3)).state_dict()
    twin = type("PerOutput", (ek.Rule,), {"__module__": "elsewhere"})
    assert twin is not PerOutput
    with pytest.raises(RuntimeError, match=r"expected one class of rules called PerOutput, got .*elsewhere\.PerOutput"):
        network(ek.TopK()).load_state_dict(state)
    ek.rules.rule._DEFINED["PerOutput"].pop(("elsewhere", "PerOutput"))
    network(ek.TopK()).load_state_dict(state)


def test_a_file_whose_rule_nobody_has_defined_says_so():
    @dataclass(frozen=True)
    class Gone(PerOutput):
        pass

    state = network(Gone()).state_dict()
    ek.rules.rule._DEFINED.pop("Gone")
    with pytest.raises(RuntimeError, match=r"or a rule of your own whose class is imported, got \{'kind': 'Gone'"):
        network(ek.TopK()).load_state_dict(state)


def test_one_beside_a_keep_that_moved_compiles_in_a_shared_selection():
    torch.manual_seed(0)
    body = nn.Sequential(ek.FusedSubnetLinear(9, 11, rule=Few(0.7, most=30)), ek.FusedSubnetLinear(11, 5, keep=0.5))
    compiled = torch.compile(ek.share_selection(body), backend="eager", fullgraph=True)
    x = torch.randn(3, 9)
    for keep in (0.4, 0.3):
        body[1].keep = keep
        assert torch.equal(compiled(x), body(x)) and body[0].mask().sum() == 30
