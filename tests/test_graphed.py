"""A training step as one CUDA graph: what can be said of it without a device, and on one the steps that it takes."""

import contextlib
import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import edgepop_kernels as ek
from edgepop_kernels import capture, graphed
from edgepop_kernels.testing.tolerances import assert_close, assert_same_bits

X, TARGET = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([3, 7, 1])


def network(rule=None):
    torch.manual_seed(0)
    layers = ek.FusedSubnetConv(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten()
    return ek.share_selection(nn.Sequential(*layers, ek.FusedSubnetLinear(16 * 64, 10, rule=rule)))


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


def step_of(model, optimizer):
    def step(x, target):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), target)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def test_a_cpu_has_no_graphs():
    model = network()
    optimizer = torch.optim.SGD(trained(model), lr=0.1)
    with pytest.raises(ValueError, match=r"examples\[0\].*CUDA.*cpu"):
        ek.graphed_step(step_of(model, optimizer), model, optimizer, X, TARGET)
    with pytest.raises(TypeError, match=r"examples\[0\].*int"):
        ek.graphed_step(step_of(model, optimizer), model, optimizer, 3)
    with pytest.raises(ValueError, match="examples"):
        ek.graphed_step(step_of(model, optimizer), model, optimizer)


def test_all_must_be_on_one_device(monkeypatch):
    monkeypatch.setattr(graphed, "_check_on_cuda", lambda name, tensor: None)
    model, other = network(), network().to("meta")
    optimizer = torch.optim.SGD(trained(model), lr=0.1)
    step = step_of(model, optimizer)
    with pytest.raises(ValueError, match=r"examples\[1\]: expected it on cpu, as examples\[0\] is, got meta"):
        ek.graphed_step(step, model, optimizer, X, TARGET.to("meta"))
    with pytest.raises(ValueError, match=r"model: parameter 0\.weight: expected it on cpu.*got meta"):
        ek.graphed_step(step, other, optimizer, X, TARGET)
    ek.graphed_step(step, model, optimizer, X, TARGET)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ((X,), TypeError, "2 tensors, got 1"),
        ((X, 3), TypeError, r"inputs\[1\].*int"),
        ((X[:2], TARGET), ValueError, r"inputs\[0\].*\(3, 3, 8, 8\).*\(2, 3, 8, 8\)"),
        ((X, TARGET.int()), ValueError, r"inputs\[1\].*int64.*int32"),
    ],
)
def test_inputs_unlike_the_examples_are_refused(given, error, words):
    graphed.check_inputs((X, TARGET), [X, TARGET])
    with pytest.raises(error, match=words):
        graphed.check_inputs(given, [X, TARGET])


@pytest.mark.parametrize("steps_before", [0, 2])
@pytest.mark.parametrize(
    "make", [lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), lambda p: torch.optim.Adam(p)], ids=["SGD", "Adam"]
)
def test_warming_up_leaves_no_trace(make, steps_before):
    model = network()
    plain = copy.deepcopy(model)
    optimizers = [make(trained(m)) for m in (model, plain)]
    steps = [step_of(m, o) for m, o in zip((model, plain), optimizers, strict=True)]
    for _ in range(steps_before):
        assert_same_bits("loss", steps[0](X, TARGET), steps[1](X, TARGET))
    addresses = [p.data_ptr() for p in model.parameters()]
    with graphed.undone(model, optimizers[0]):
        for _ in range(3):
            steps[0](X, TARGET)
    assert addresses == [p.data_ptr() for p in model.parameters()]
    for _ in range(2):
        assert_same_bits("loss", steps[0](X, TARGET), steps[1](X, TARGET))
    for (name, a), b in zip(model.state_dict().items(), plain.state_dict().values(), strict=True):
        assert_same_bits(name, a, b)


def test_a_step_that_fails_while_warming_up_leaves_no_trace_either():
    model = network()
    optimizer = torch.optim.SGD(trained(model), lr=0.1, momentum=0.9)
    before = copy.deepcopy(model.state_dict())
    step = step_of(model, optimizer)

    def fail(x, target):
        step(x, target)
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"), graphed.undone(model, optimizer):
        fail(X, TARGET)
    for name, value in model.state_dict().items():
        assert_same_bits(name, value, before[name])
    assert not any(state["momentum_buffer"].any() for state in optimizer.state.values())


class Replays:
    """Stands in for a CUDA graph: its replays write scores as a GPU does, past torch's counts of versions."""

    def __init__(self, model):
        self.layers = [m for m in model if isinstance(m, ek.nn.MaskedLayer)]

    def replay(self):
        for layer in self.layers:
            layer.scores.data.neg_().mul_(torch.rand(layer.scores.shape))


def test_a_replay_makes_the_cuts_of_an_eager_step_unknown(monkeypatch):
    model = network()
    optimizer = ek.optim.ScoreSGD(model, lr=0.1)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(graphed.GraphedStep, "_capture", lambda step: setattr(step, "_graph", Replays(model)))
    eager = step_of(model, optimizer)
    captured = graphed.GraphedStep(eager, model, optimizer, (X, TARGET))
    eager(X, TARGET)
    assert all(layer._known_cut() is not None for layer in (model[0], model[4]))
    captured(X, TARGET)
    assert all(layer._known_cut() is None for layer in (model[0], model[4]))
    eager(X, TARGET)
    captured(X, TARGET)
    twin = copy.deepcopy(model)  # selects anew
    assert_same_bits("y", model(X), twin(X))


def test_on_which_device_a_stream_is_asked(monkeypatch):
    asked, current = [], [0]

    @contextlib.contextmanager
    def on(device):
        before, current[0] = current[0], device.index
        yield
        current[0] = before

    class On:
        def __init__(self, index):
            self.is_cuda, self.device, self.get_device = True, torch.device("cuda", index), lambda: index

    monkeypatch.setattr(torch.cuda, "device", on)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: asked.append(current[0]) or current[0] == 1)
    assert not capture.capturing(torch.ones(1)) and not asked
    assert not capture.capturing(On(0)) and capture.capturing(On(1)) and asked == [0, 1]


def test_what_a_graph_holds_as_constants_is_seen_to_change():
    model = network()
    optimizer = torch.optim.SGD(trained(model), lr=0.1, momentum=0.9)

    def constants():
        return graphed.read_by_python(model, optimizer)

    before = constants()
    step_of(model, optimizer)(X, TARGET)
    assert constants() == before
    for change in (
        lambda: optimizer.param_groups[0].update(lr=0.01),
        lambda: model[0].set_prune_rate(0.3),
        model.eval,
    ):
        change()
        assert constants() != before
        before = constants()
    optimizer = torch.optim.SGD(trained(model), lr=torch.tensor(0.1))
    before = constants()
    assert constants() == before
    optimizer.param_groups[0]["lr"].fill_(0.2)  # on the host, where a step reads it while it is captured
    assert constants() != before
    optimizer.param_groups[0]["lr"] = torch.empty((), device="meta")  # on a device
    before = constants()
    optimizer.param_groups[0]["lr"].fill_(0.2)
    assert constants() == before


@pytest.mark.parametrize("shared", [False, True], ids=["per layer", "shared selection"])
def test_while_capturing_cuts_stay_where_the_first_replay_reads_its_hints(monkeypatch, shared):
    model = network(ek.TopK(0.3, "raw"))
    if not shared:
        ek.unshare_selection(model)
    layers = [model[0], model[4]]
    model(X)
    hints = [layer._hint() for layer in layers]
    stale = [hint.data.clone() for hint in hints]
    with torch.no_grad():
        for layer in layers:
            layer.scores.mul_(1.5)
    monkeypatch.setattr(capture, "capturing", lambda tensor: True)
    model(X)
    for layer, hint, old in zip(layers, hints, stale, strict=True):
        assert layer._hint() is hint
        assert not torch.equal(hint.data, old)
        assert torch.equal(hint.data, ek.select(layer.scores, layer.rule).data)
    monkeypatch.undo()
    model(X)  # outside of the graph: its memory is left alone, and kept
    for layer, hint in zip(layers, hints, strict=True):
        assert layer._hint().data.data_ptr() != hint.data.data_ptr()
        assert any(held is hint for held in layer._cuts.captured)


WITHOUT_A_DEVICE = pytest.mark.skipif(
    torch.cuda.is_available(), reason="triton takes CPU tensors under its interpreter only, where there is no GPU"
)


class Watch(TorchDispatchMode):
    """Writes down the ops that would wait for a device, or copy to or from one."""

    WAITING = ("_local_scalar_dense", "nonzero", "_to_copy", "lift_fresh", "masked_select", "unique", "item")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        name = op.overloadpacket.__name__
        if name in self.WAITING and (name != "_to_copy" or {"device", "non_blocking"} & set(kwargs or {})):
            self.seen.append(name)
        return op(*args, **(kwargs or {}))


@WITHOUT_A_DEVICE
@pytest.mark.parametrize("rule", [ek.TopK(0.5), ek.Percentile(0.3), ek.GlobalTopK(0.5)], ids=str)
def test_a_step_on_the_triton_backend_waits_for_nothing(monkeypatch, rule):
    """Host code alone: the launches are left out."""
    pytest.importorskip("triton", reason="triton is not installed")
    from edgepop_kernels.backend.triton import depthwise, grads, product, selection

    for module in (depthwise, grads, product, selection):
        monkeypatch.setattr(module, "launch", lambda kernel, grid, tensor, args, **meta: None)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    model = network(rule)
    optimizer = torch.optim.SGD(trained(model), lr=0.1, momentum=0.9)
    step = step_of(model, optimizer)
    with ek.use_backend("triton"):
        step(X, TARGET)
        monkeypatch.setattr(capture, "capturing", lambda tensor: True)
        with Watch() as watch:
            step(X, TARGET)
    assert not watch.seen


@WITHOUT_A_DEVICE
def test_a_selection_not_run_before_is_not_captured(monkeypatch):
    pytest.importorskip("triton", reason="triton is not installed")
    monkeypatch.setattr(capture, "capturing", lambda tensor: True)
    with ek.use_backend("triton"), pytest.raises(RuntimeError, match="once before it is captured"):
        ek.select(torch.randn(12_345), ek.TopK(0.5))


RULES = [ek.TopK(0.3, "raw"), ek.Percentile(0.3), ek.Threshold(0.5, "raw")]
CASES = [(rule, shared) for rule in RULES for shared in (False, True)] + [(ek.GlobalTopK(0.5), True)]


@pytest.mark.gpu
@pytest.mark.parametrize(("rule", "shared"), CASES, ids=str)
def test_replays_take_the_steps_that_eager_ones_take(rule, shared):
    ours = network(rule).cuda()
    if not shared:
        ek.unshare_selection(ours)
    theirs = copy.deepcopy(ours)
    optimizers = [torch.optim.SGD(trained(m), lr=0.1, momentum=0.9) for m in (ours, theirs)]
    eager = step_of(theirs, optimizers[1])
    x, target = X.cuda(), TARGET.cuda()
    captured = ek.graphed_step(step_of(ours, optimizers[0]), ours, optimizers[0], x, target)
    for i in range(6):
        if i == 3:
            for optimizer in optimizers:
                optimizer.param_groups[0]["lr"] = 0.02
        inputs = x * (1 + i), target.roll(i)
        assert_close(f"loss {i}", captured(*inputs), eager(*inputs), torch.float32)
    for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert_close(name, a, b, torch.float32)
    # A step selects before it updates: the hint that a replay leaves is the cut of the scores before the last update.
    assert_same_bits("cut", ours[0]._hint().data, theirs[0]._hint().data)


@pytest.mark.gpu
def test_replays_draw_anew():
    model = network(ek.Bernoulli()).cuda()
    optimizer = torch.optim.SGD(trained(model), lr=0.0)
    x, target = X.cuda(), TARGET.cuda()
    captured = ek.graphed_step(step_of(model, optimizer), model, optimizer, x, target)
    losses = {captured(x, target).item() for _ in range(4)}
    assert len(losses) == 4


@pytest.mark.gpu
def test_replays_neither_allocate_nor_wait():
    model = network().cuda()
    optimizer = torch.optim.SGD(trained(model), lr=0.1, momentum=0.9)
    x, target = X.cuda(), TARGET.cuda()
    captured = ek.graphed_step(step_of(model, optimizer), model, optimizer, x, target)
    captured(x, target)
    allocated = torch.cuda.memory_stats()["allocation.all.allocated"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            captured(x, target)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == allocated


@pytest.mark.gpu
def test_an_evaluation_between_replays_does_not_disturb_them():
    model = network().cuda()
    other = copy.deepcopy(model)
    optimizer, plain = (torch.optim.SGD(trained(m), lr=0.1, momentum=0.9) for m in (model, other))
    x, target = X.cuda(), TARGET.cuda()
    captured, eager = ek.graphed_step(step_of(model, optimizer), model, optimizer, x, target), step_of(other, plain)
    for _ in range(3):
        assert_close("loss", captured(x, target), eager(x, target), torch.float32)
        canaries = [torch.full((2,), 7, device="cuda") for _ in range(64)]
        with torch.no_grad():
            model(x), other(x)
        assert all((c == 7).all() for c in canaries)
