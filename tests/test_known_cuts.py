"""A cut that is known is that of the scores as they are: whatever has written them, and whether torch counted it."""

import copy
import pickle

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

import edgepop_kernels as ek
from edgepop_kernels.backend import native

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))

KEEP = 0.3


def fingerprint(*scores):
    return native.fingerprint(scores)()


def kept(layer):
    """The mask that a forward uses, read off its outputs."""
    bias = 0 if layer.bias is None else layer.bias
    return (layer(torch.eye(layer.in_features)) - bias).t() != 0


def expected(layer):
    return ek.mask(layer.scores.detach().contiguous(), layer.rule)


def stepped(lr=0.1, **options):
    """A layer whose optimizer has just found the cut of its scores."""
    torch.manual_seed(0)
    layer = ek.FusedSubnetLinear(12, 32, keep=KEEP, **options)
    optimizer = ek.optim.ScoreSGD(layer, lr=lr)
    layer(torch.randn(4, 12)).square().sum().backward()
    optimizer.step()
    assert layer._known_cut() is not None
    return layer, optimizer


@pytest.fixture(scope="module")
def process_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def written_by_numpy(scores):
    array = scores.detach().numpy()
    array[...] = array[::-1] * 0.5


UNCOUNTED = {
    "copied through data": lambda s: s.data.copy_(torch.randn_like(s)),
    "scaled through data": lambda s: s.data.mul_(0.1),
    "negated and moved through data": lambda s: s.data.neg_().add_(1),
    "clamped through data": lambda s: s.data.clamp_(-0.1, 0.1),
    "drawn through data": lambda s: s.data.normal_(),
    "averaged, as EMA does": lambda s: s.data.lerp_(torch.randn_like(s), 0.5),
    "numpy": written_by_numpy,
}


@pytest.mark.parametrize("write", UNCOUNTED)
@pytest.mark.parametrize("shared", [False, True], ids=["per layer", "shared selection"])
def test_writes_that_torch_does_not_count_are_seen(write, shared):
    layer, _ = stepped()
    if shared:
        ek.share_selection(layer)
    UNCOUNTED[write](layer.scores)
    assert torch.equal(kept(layer), expected(layer))
    layer.eval()
    assert torch.equal(kept(layer), expected(layer))
    UNCOUNTED[write](layer.scores)
    assert torch.equal(kept(layer), expected(layer))


def all_but_those_looked_at(scores):
    """Which of the scores no fingerprint hangs on."""
    changed = torch.ones(scores.numel(), dtype=torch.bool)
    before = fingerprint(scores)
    for i in range(scores.numel()):
        other = scores.detach().clone()
        other.view(-1)[i] += 1
        changed[i] = fingerprint(other) == before
    return changed.view_as(scores)


@pytest.mark.parametrize("shared", [False, True], ids=["per layer", "shared selection"])
def test_averages_that_stand_in_for_evaluation_are_seen_to_the_last_score(shared):
    """Inputs that are never there leave their scores as they are: of those that are looked at, all may be theirs."""
    layer, _ = stepped()
    if shared:
        ek.share_selection(layer)
    unseen = all_but_those_looked_at(layer.scores)
    assert unseen.sum() == 12 * 32 - 32
    training, average = layer.scores.detach().clone(), torch.where(unseen, torch.randn(32, 12), layer.scores.detach())
    layer.eval()
    layer.scores.data.copy_(average)
    assert torch.equal(kept(layer), expected(layer))
    layer.train()
    layer.scores.data.copy_(training)
    assert torch.equal(kept(layer), expected(layer))
    layer.eval()
    assert torch.equal(kept(layer), expected(layer))


def test_a_change_to_single_scores_that_is_not_counted_needs_forget():
    """As docs/limits.md says. Where this fails because such a write is seen, that page is to say so."""
    layer, _ = stepped()
    unseen = all_but_those_looked_at(layer.scores)
    with torch.no_grad():
        layer.scores.data.view(-1)[unseen.view(-1).nonzero()[0]] = 100
    assert not torch.equal(kept(layer), expected(layer))
    layer.forget()
    assert torch.equal(kept(layer), expected(layer))


def test_a_broadcast_and_a_reduction_are_seen(process_group):
    layer, _ = stepped()
    layer.scores.data.mul_(-1).add_(0.5)
    dist.all_reduce(layer.scores.data)
    assert torch.equal(kept(layer), expected(layer))


def test_a_flat_buffer_under_the_parameters_is_seen():
    torch.manual_seed(0)
    layer = ek.FusedSubnetLinear(12, 32, keep=KEEP)
    flat = layer.scores.detach().flatten().clone()
    layer.scores.data = flat.view_as(layer.scores)
    optimizer = ek.optim.ScoreSGD(layer, lr=0.1)
    layer(torch.randn(4, 12)).square().sum().backward()
    optimizer.step()
    flat.normal_()
    assert torch.equal(kept(layer), expected(layer))


@pytest.mark.parametrize("fused", [True, False])
def test_another_optimizer_takes_over(fused):
    """torch's fused optimizers write without counting, in some versions."""
    torch.manual_seed(0)
    model = ek.convert(nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 5)), ek.TopK(KEEP))
    x, labels = torch.randn(8, 12), torch.arange(8) % 5
    ours = ek.optim.ScoreSGD(model, lr=0.1)
    F.cross_entropy(model(x), labels).backward()
    ours.step()
    theirs = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05, fused=fused)
    for _ in range(5):
        theirs.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        theirs.step()
    for layer in (model[0], model[2]):
        assert torch.equal(kept(layer), expected(layer))


def test_in_evaluation_a_layer_selects_once(monkeypatch):
    calls = []
    select = native.select_planes
    monkeypatch.setattr(native, "select_planes", lambda *arguments: calls.append(1) or select(*arguments))
    layer = ek.FusedSubnetLinear(12, 32, keep=KEEP).eval()
    x = torch.randn(3, 12)
    with torch.no_grad():
        first = layer(x)
        for _ in range(3):
            assert torch.equal(layer(x), first)
        assert len(calls) == 1
        layer.scores.neg_().add_(0.1)
        layer(x)
        assert len(calls) == 2
        layer.keep = 0.6
        assert torch.equal(kept(layer), expected(layer))


class Outer(nn.Module):
    """Whose child is called, as a training_step does: hooks on the outer module never run."""

    def __init__(self, rule):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(12, 9), nn.Linear(9, 7, bias=False), nn.Linear(7, 5))
        ek.share_selection(ek.convert(self, rule))

    def forward(self, x):
        return self.net(x)

    def kept(self):
        return [kept(layer) for layer in self.net]

    def expected(self):
        scores = [layer.scores.detach().contiguous() for layer in self.net]
        cuts = ek.select_all(scores, [layer.rule for layer in self.net])
        return [ek.selecting.selected_mask(s, cut) for s, cut in zip(scores, cuts, strict=True)]


@pytest.fixture
def selections(monkeypatch):
    calls = []
    select = native.select
    monkeypatch.setattr(native, "select", lambda *arguments: calls.append(1) or select(*arguments))
    return calls


def all_equal(masks, others):
    return all(torch.equal(a, b) for a, b in zip(masks, others, strict=True))


WRITES = UNCOUNTED | {"counted by torch": lambda s: s.detach().neg_().add_(0.1)}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_layers_ranked_together_and_called_one_by_one_are_selected_once_for_each_change(selections, write):
    outer, x = Outer(ek.GlobalTopK(KEEP)), torch.randn(3, 12)
    for _ in range(3):
        outer.net(x).sum().backward()
    assert len(selections) == 1
    for layer in outer.net:  # whichever has changed, all are ranked anew
        write(layer.scores)
        del selections[:]
        masks = outer.kept()
        assert len(selections) == 1
        assert all_equal(masks, outer.expected())
    with torch.no_grad():
        del selections[:]
        outer.net(x)
        outer.eval()(x)
        outer.net[1](torch.randn(2, 9))
        assert selections == []


def test_layers_ranked_together_in_evaluation_are_selected_once(selections):
    outer, x = Outer(ek.GlobalTopK(KEEP)).eval(), torch.randn(3, 12)
    with torch.no_grad():
        first = outer(x)
        for _ in range(3):
            assert torch.equal(outer(x), first)
        assert len(selections) == 1
        outer.net[2].scores.neg_().add_(0.1)
        assert not torch.equal(outer(x), first)
        assert len(selections) == 2
        assert all_equal(outer.kept(), outer.expected())


def test_a_layer_that_leaves_the_ranking_of_all_ends_what_was_known_of_the_others():
    outer = Outer(ek.GlobalTopK(KEEP))
    outer.kept()
    outer.net[1].rule = ek.TopK(0.9)
    assert all_equal(outer.kept(), outer.expected())
    outer.net[1].rule = ek.GlobalTopK(KEEP)
    assert all_equal(outer.kept(), outer.expected())
    outer.net[0].freeze(outer.net[0].mask())
    assert torch.equal(kept(outer.net[2]), outer.net[2].mask())
    for layer in (outer.net[1], outer.net[2]):
        layer.rule = ek.GlobalTopK(0.7)
    cuts = ek.select_all([m.scores.detach() for m in outer.net[1:]], [ek.GlobalTopK(0.7)] * 2)
    for layer, cut in zip(outer.net[1:], cuts, strict=True):
        assert torch.equal(kept(layer), ek.selecting.selected_mask(layer.scores.detach().contiguous(), cut))


def test_what_was_known_ends_with_the_parameter_and_the_rule():
    layer, _ = stepped()
    layer.rule = ek.TopK(0.7)
    assert torch.equal(kept(layer), expected(layer))
    layer, _ = stepped()
    layer.scores = nn.Parameter(torch.randn(32, 12))
    assert torch.equal(kept(layer), expected(layer))


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "strided"])
def test_scores_of_any_layout_are_looked_at(layout):
    layer, optimizer = stepped()
    values = torch.randn(32, 12)
    layouts = {
        "contiguous": values,
        "transposed": values.t().contiguous().t(),
        "strided": torch.stack([values, values], -1)[..., 0],
    }
    layer.scores.data = layouts[layout]
    optimizer.zero_grad()
    layer(torch.randn(4, 12)).square().sum().backward()
    optimizer.step()
    assert layer._known_cut() is not None
    layer.scores.data.neg_().add_(0.3)
    assert torch.equal(kept(layer), expected(layer))


def test_copies_have_a_memory_of_their_own():
    layer, _ = stepped()
    for copied in (copy.deepcopy(layer), copy.copy(layer)):
        copied.rule = ek.TopK(0.9)
        assert torch.equal(kept(copied), expected(copied))
        assert torch.equal(kept(layer), expected(layer))


def test_the_fingerprint_of_few_and_of_many_scores():
    for shape in ((), (1,), (2,), (31,), (33,), (100, 7), (3, 2, 5, 5), (3, 2, 3, 4, 5)):
        scores = torch.randn(shape)
        before = fingerprint(scores)
        assert before == fingerprint(scores.clone())
        assert before != fingerprint(scores * 0.5)
        first, last = scores.clone(), scores.clone()
        first.view(-1)[0] += 1
        last.view(-1)[-1] += 1
        assert before != fingerprint(first) and before != fingerprint(last)
    assert fingerprint(torch.empty(0, 3)) == fingerprint(torch.empty(0, 3))
    assert native.fingerprint([torch.randn(2, 3, 5, 4, 3).transpose(2, 4)]) is None  # no view of four dimensions
    assert native.fingerprint([torch.randn(3, dtype=torch.complex64).conj().imag]) is None


@torch.no_grad()
def test_scores_that_are_told_anew_through_data_at_the_same_address_are_seen():
    layer = ek.FusedSubnetLinear(16, 16, keep=KEEP).eval()
    layer(torch.randn(1, 16))
    assert layer._known_cut() is not None
    layer.scores.data = layer.scores.data.t()  # neither counted nor moved, and the corners stay where they are
    assert layer._known_cut() is None
    assert torch.equal(kept(layer), expected(layer))


@torch.no_grad()
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_layers_ranked_together_starts_with_no_cuts(copied):
    model = ek.convert(nn.Sequential(nn.Linear(9, 12), nn.Linear(12, 7)), ek.GlobalTopK(KEEP)).eval()
    ek.share_selection(model)
    x = torch.randn(3, 9)
    y = model[0](x)  # by itself, which ranks both
    other = copied(model)
    assert torch.equal(other[0](x), y)
    other[1].scores.data.mul_(100)
    assert not torch.equal(other[0](x), y)
    assert torch.equal(model[0](x), y)
