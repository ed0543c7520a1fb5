"""Optimizer steps on CUDA, by simulated threads here: torch.optim's arithmetic, and the cuts of the updated scores."""

import copy
import dataclasses
import importlib
from functools import partial

import pytest
import torch
from cuda_host import Host, compile_host
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import edgepop_kernels as ek
from edgepop_kernels import backend as dispatch
from edgepop_kernels import reference
from edgepop_kernels.backend import cuda
from edgepop_kernels.testing import inputs

OPTIMIZERS = {
    "sgd": (ek.optim.ScoreSGD, torch.optim.SGD, dict(lr=0.05)),
    "momentum": (ek.optim.ScoreSGD, torch.optim.SGD, dict(lr=0.05, momentum=0.9, dampening=0.3, weight_decay=1e-3)),
    "nesterov": (ek.optim.ScoreSGD, torch.optim.SGD, dict(lr=0.05, momentum=0.9, nesterov=True, maximize=True)),
    "adam": (ek.optim.ScoreAdam, torch.optim.Adam, dict(lr=0.01, weight_decay=1e-3)),
    "amsgrad": (ek.optim.ScoreAdam, torch.optim.Adam, dict(lr=0.01, betas=(0.0, 0.9), amsgrad=True)),
    "adamw": (ek.optim.ScoreAdamW, torch.optim.AdamW, dict(lr=0.01, betas=(0.8, 0.95))),
}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return compile_host(tmp_path_factory.mktemp("host"))


@pytest.fixture(params=[0, 128], ids=["kernel", "small"])
def host(request, library, monkeypatch):
    """The backend "cuda" on simulated threads, chosen by name; CPU tensors taken for CUDA's."""
    if request.param:
        monkeypatch.setattr(cuda, "_LEAST_CAPACITY", 32)
    fake = dataclasses.replace(dispatch._BACKENDS["cuda"], unavailable=lambda: None, refuses=lambda device, dtype: None)
    monkeypatch.setitem(dispatch._BACKENDS, "cuda", fake)
    _forget_choices()
    with ek.use_backend("cuda"):
        yield Host(library, request.param).install(monkeypatch)
    _forget_choices()


def _forget_choices():
    dispatch._backend.cache_clear()
    dispatch._optimizer_step.cache_clear()


def network(shapes, kind="normal", rule=None):
    """Masked layers of these score shapes, in several layouts, between biases, which are no scores."""
    layers = []
    for i, shape in enumerate(shapes):
        make = ek.FusedSubnetConv if len(shape) == 4 else ek.FusedSubnetLinear
        layer = make(shape[1], shape[0], *shape[2:3], rule=rule or ek.TopK(0.3, ("abs", "raw")[i % 2]))
        layout = ("contiguous", "channels_last" if len(shape) == 4 else "transposed")[i % 2]
        layer.scores = nn.Parameter(inputs.lay_out(inputs.scores(kind, shape, i), layout))
        layers.append(layer)
    return nn.Sequential(*layers)


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


def give_gradients(params, seed):
    for i, p in enumerate(params):
        noise = torch.randn(p.shape, generator=inputs.generator(100 * seed + i))
        p.grad = (0.1 * p.detach() + noise.to(p)).to(memory_format=torch.preserve_format)


def assert_cuts(model):
    for layer in model:
        kept = layer.rule.kept(layer._ranked.numel())
        data = reference.select([layer._ranked.detach().cpu()], [kept], [layer.rule.of], None)[0]
        expected = layer.rule.cut(data, layer._ranked.numel())
        assert layer._cuts.last.data.tolist() == expected.data.tolist()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_are_torchs_to_rounding(host, name):
    """As near to the same steps in float64 as torch's float32 is, within a factor of two."""
    ours, theirs, options = OPTIMIZERS[name]
    model = network([(31, 37), (8, 3, 3, 3)])
    other = [nn.Parameter(p.detach().clone()) for p in trained(model)]
    exact = [nn.Parameter(p.detach().double()) for p in trained(model)]
    optimizers = ours(model, **options), theirs(other, **options), theirs(exact, **options)
    for step in range(20):
        for params in (trained(model), other, exact):
            give_gradients(params, step)
        for optimizer in optimizers:
            optimizer.step()
        assert_cuts(model)
    for p, q, e in zip(trained(model), other, exact, strict=True):
        found, torchs = ((t.detach().double() - e.detach()).norm().item() for t in (p, q))
        assert found <= 2 * torchs + 1e-7 * e.detach().norm().item()
    for ours_of, torchs_of in zip(optimizers[0].state.values(), optimizers[1].state.values(), strict=True):
        for key, value in torchs_of.items():
            torch.testing.assert_close(ours_of[key], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", inputs.SCORES)
def test_cuts_of_hostile_scores(host, kind):
    gradients = (
        lambda s: torch.zeros_like(s),
        lambda s: 100 * torch.randn(s.shape, generator=inputs.generator(6)),
        lambda s: s.nan_to_num(0, 0, 0) - 1,  # with lr 1 every number becomes 1
        lambda s: inputs.scores("nonfinite", s.shape, 7),
    )
    for host.blocks, gradient in enumerate(gradients, start=1):
        model = network([(1, 1), (3, 401), (5, 7, 3, 3)], kind)
        optimizer = ek.optim.ScoreSGD(model, lr=1.0, momentum=0.5)
        for _ in range(2):  # without a hint, and with the cut of the scores before
            for p in trained(model):
                p.grad = gradient(p.detach())
            optimizer.step()
            assert_cuts(model)


def test_a_small_step_finds_its_cuts_on_the_way(host):
    model = network([(90, 70), (30, 20, 3, 3)])
    optimizer = ek.optim.ScoreSGD(model, lr=1e-4)
    passes = []
    for step in range(3):
        give_gradients(trained(model), step)
        optimizer.step()
        assert_cuts(model)
        passes.append(host.passes)
    assert passes[0] > 1 and passes[1:] == [1, 1]


def test_every_element_is_updated_once_whoever_reads_it_again(host):
    """All scores become equal: every pass of the search rereads them, and only the first may change them."""
    model = network([(100, 50)])
    with torch.no_grad():
        model[0].scores.fill_(2.0)
    optimizer = ek.optim.ScoreSGD(model, lr=0.5)
    model[0].scores.grad = torch.ones_like(model[0].scores)
    optimizer.step()
    assert host.passes > 1
    assert (model[0].scores == 1.5).all()
    assert_cuts(model)


def test_more_parameters_and_settings_than_a_launch_takes(host):
    model = network([(3, 5)] * 70)
    groups = [{"params": [layer.scores], "lr": 0.1 + 0.01 * i} for i, layer in enumerate(model)]
    before = [layer.scores.detach().clone() for layer in model]
    optimizer = ek.optim.ScoreSGD(groups, model=model)
    for layer in model:
        layer.scores.grad = torch.ones_like(layer.scores)
    optimizer.step()
    assert_cuts(model)
    for i, (layer, s) in enumerate(zip(model, before, strict=True)):
        torch.testing.assert_close(layer.scores.detach(), s - (0.1 + 0.01 * i))


def test_parameters_and_gradients_off_their_alignment(host):
    model = network([(7, 11)])
    flat = torch.randn(2, 78)
    model[0].scores = nn.Parameter(flat[0, 1:].view(7, 11))
    optimizer = ek.optim.ScoreSGD(model, lr=0.1)
    before = model[0].scores.detach().clone()
    model[0].scores.grad = flat[1, 1:].view(7, 11)
    optimizer.step()
    torch.testing.assert_close(model[0].scores.detach(), before - 0.1 * flat[1, 1:].view(7, 11))
    assert_cuts(model)


def test_a_step_on_copies_finds_the_table_of_the_step_before(host, monkeypatch):
    model = network([(7, 11), (30, 20)])
    flat = torch.randn(78)
    model[0].scores = nn.Parameter(flat[1:].view(7, 11))
    optimizer = ek.optim.ScoreSGD(model, lr=0.1)
    taken = []
    for step in range(4):
        if step == 1:
            made = cuda._plan.cache_info().misses
            monkeypatch.setattr(cuda, "_captured", [])
            monkeypatch.setattr(cuda.capture, "capturing", lambda tensor: True)
        before = model[0].scores.detach().clone()
        give_gradients(trained(model), step)
        optimizer.step()
        torch.testing.assert_close(model[0].scores.detach(), before - 0.1 * model[0].scores.grad)
        taken.append(torch.randn(77))  # where a copy was
    assert cuda._plan.cache_info().misses == made


def test_replays_of_a_captured_step_start_from_each_others_cuts(host, monkeypatch):
    model = network([(90, 70), (8, 3, 3, 3)])
    optimizer = ek.optim.ScoreSGD(model, lr=0.1)
    give_gradients(trained(model), 0)
    optimizer.step()
    hints = [layer._hint().data for layer in model]
    monkeypatch.setattr(cuda, "_captured", [])
    monkeypatch.setattr(cuda.capture, "capturing", lambda tensor: True)
    give_gradients(trained(model), 1)
    optimizer.step()
    found = [layer._hint().data for layer in model]
    assert [h.tolist() for h in hints] == [f.tolist() for f in found]
    kept = [tensor for entry in cuda._captured if isinstance(entry, list) for tensor, _ in entry]
    assert all(a is b for a, b in zip(kept, hints, strict=True))


@pytest.fixture
def on_gpu(host, monkeypatch):
    """CPU tensors taken for CUDA's by the optimizers too, torch's own included."""
    monkeypatch.setattr(ek.optim.step, "on_gpu", lambda value: isinstance(value, torch.Tensor))
    torchs = importlib.import_module("torch.optim.adam")
    monkeypatch.setattr(torchs, "_get_capturable_supported_devices", lambda supports_xla=True: ["cpu"])
    return host


COUNTING = {name: OPTIMIZERS[name] for name in ("adam", "amsgrad", "adamw")}


def norms(params, exact):
    return [(p.detach().double() - e.detach()).norm().item() for p, e in zip(params, exact, strict=True)]


@pytest.mark.parametrize("rate", ["number", "tensor", "float64 tensor"])
@pytest.mark.parametrize("name", COUNTING)
def test_capturable_steps_are_torchs_to_rounding(on_gpu, name, rate):
    """The count of steps and the learning rate on the device: nearer to the steps in float64 than torch's, whose bias
    corrections are float32, and the very steps that the host's numbers give."""
    ours, theirs, options = COUNTING[name]
    model, counted = (network([(31, 37), (8, 3, 3, 3)]) for _ in range(2))
    counted.load_state_dict(model.state_dict())
    other = [nn.Parameter(p.detach().clone()) for p in trained(model)]
    exact = [nn.Parameter(p.detach().double()) for p in trained(model)]
    lr = options["lr"]
    if rate != "number":
        lr = torch.tensor(lr, dtype=torch.float64 if rate == "float64 tensor" else torch.float32)
    capturable = options | {"capturable": True, "lr": lr}
    optimizers = (
        ours(model, **capturable),
        theirs(other, **capturable),
        theirs(exact, **options),
        ours(counted, **options),
    )
    for step in range(10):
        for params in (trained(model), other, exact, trained(counted)):
            give_gradients(params, step)
        if step == 5:  # as a scheduler does
            for optimizer in optimizers:
                group = optimizer.param_groups[0]
                if isinstance(group["lr"], torch.Tensor):
                    group["lr"].copy_(0.005)
                else:
                    group["lr"] = 0.005
        for optimizer in optimizers:
            optimizer.step()
        assert_cuts(model)
    for found, torchs, e in zip(norms(trained(model), exact), norms(other, exact), exact, strict=True):
        assert found <= 2 * torchs + 1e-7 * e.detach().norm().item()
    for p, q in zip(trained(model), trained(counted), strict=True):
        torch.testing.assert_close(p, q, rtol=2e-7, atol=1e-7)
    for mine, torchs in zip(optimizers[0].state.values(), optimizers[1].state.values(), strict=True):
        assert mine.keys() == torchs.keys()
        assert mine["step"].item() == torchs["step"].item() == 10 and mine["step"].dtype == torch.float32
        for key, value in torchs.items():
            torch.testing.assert_close(mine[key], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_learning_rate_on_the_device_is_read_there(on_gpu, momentum):
    """In one group of two; more parameters than a launch takes."""
    models = [network([(3, 5)] * 70) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    lr, optimizers = torch.tensor([0.1]), []
    for model, rate in zip(models, (lr, 0.1), strict=True):
        scores = [layer.scores for layer in model]
        groups = [{"params": scores[::2], "lr": rate}, {"params": scores[1::2], "lr": 0.3}]
        optimizers.append(
            ek.optim.ScoreSGD([*groups, {"params": [m.bias for m in model]}], momentum=momentum, model=model)
        )
    for step in range(3):
        for model, optimizer in zip(models, optimizers, strict=True):
            give_gradients(trained(model), step)
            optimizer.step()
            assert_cuts(model)
        for a, b in zip(trained(models[0]), trained(models[1]), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)  # 0.1 is another number in float32
        lr.fill_(0.02 * step)
        optimizers[1].param_groups[0]["lr"] = 0.02 * step


def test_groups_that_count_on_the_host_beside_one_that_does_not(on_gpu):
    models = [network([(3, 5), (7, 4)]) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = []
    for model, capturable in zip(models, (True, False), strict=True):
        groups = [{"params": [model[0].scores], "capturable": capturable}, {"params": [model[1].scores], "lr": 0.1}]
        optimizers.append(ek.optim.ScoreAdamW(groups, lr=0.01, model=model))
    for step in range(3):
        for model, optimizer in zip(models, optimizers, strict=True):
            give_gradients(trained(model), step)
            optimizer.step()
            assert_cuts(model)
    for a, b in zip(trained(models[0]), trained(models[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-7, atol=1e-7)


def test_capturable_goes_on_where_torchs_state_left_off(on_gpu):
    p, q = (nn.Parameter(inputs.scores("normal", (9, 11))) for _ in range(2))
    whole = ek.optim.ScoreAdam([p], lr=0.1, capturable=True)
    before, after = torch.optim.Adam([q], lr=0.1), ek.optim.ScoreAdam([q], capturable=True)
    for step in range(6):
        if step == 3:
            after.load_state_dict(before.state_dict())
            after.param_groups[0]["capturable"] = True
        for params, optimizer in (([p], whole), ([q], before if step < 3 else after)):
            give_gradients(params, step)
            optimizer.step()
    torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)
    assert after.state[q]["step"].item() == 6


def test_betas_that_are_tensors_take_torchs_step(on_gpu):
    p, q = (nn.Parameter(inputs.scores("normal", (9, 11))) for _ in range(2))
    options = dict(lr=0.1, betas=(torch.tensor(0.9), torch.tensor(0.99)), capturable=True, foreach=False)
    theirs = torch.optim.Adam([q], **options)
    ours = ek.optim.ScoreAdam([p], lr=0.1, betas=options["betas"], capturable=True)
    for step in range(3):
        for params, optimizer in (([p], ours), ([q], theirs)):
            give_gradients(params, step)
            optimizer.step()
    assert on_gpu.passes is None
    torch.testing.assert_close(p, q)


class Waits(TorchDispatchMode):
    """Refuses what would make the host wait for a device."""

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        assert op.overloadpacket.__name__ not in ("_local_scalar_dense", "item", "nonzero", "lift_fresh"), op
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize("make", [ek.optim.ScoreSGD, partial(ek.optim.ScoreAdam, capturable=True)], ids=["SGD", "Adam"])
def test_nothing_is_read_from_the_device(on_gpu, make):
    model = network([(31, 37), (8, 3, 3, 3)])
    optimizer = make(model, lr=torch.tensor(0.1))
    for step in range(2):
        give_gradients(trained(model), step)
        if step == 0:
            optimizer.step()
            continue
        with Waits():
            optimizer.step()
    assert_cuts(model)


def test_a_count_on_the_host_is_not_captured(on_gpu, monkeypatch):
    model = network([(3, 5)])
    optimizer = ek.optim.ScoreAdam(model)
    give_gradients(trained(model), 0)
    before = [p.detach().clone() for p in trained(model)]
    monkeypatch.setattr(cuda.capture, "capturing", lambda tensor: True)
    with pytest.raises(RuntimeError, match=r"capturable: a CUDA graph of ScoreAdam\.step needs capturable=True"):
        optimizer.step()
    assert not optimizer.state and all(map(torch.equal, before, trained(model)))


def test_auto_steps_on_cuda_where_it_was_compiled(monkeypatch):
    """Triton, which comes first, has no optimizer."""
    for name in ("triton", "cuda"):
        able = dataclasses.replace(
            dispatch._BACKENDS[name], unavailable=lambda: None, refuses=lambda device, dtype: None
        )
        monkeypatch.setattr(dispatch, "_AUTO", tuple(able if b.name == name else b for b in dispatch._AUTO))
    _forget_choices()
    assert dispatch._optimizer_step("auto", torch.device("cuda", 0), torch.float32) is cuda.step
    _forget_choices()


@pytest.mark.gpu
class TestOnDevice:
    @pytest.fixture(autouse=True)
    def _cuda_backend(self):
        if cuda.unavailable() is not None:
            pytest.skip(cuda.unavailable())
        with ek.use_backend("cuda"):
            yield

    SHAPES = ((512, 513), (256, 64, 3, 3), (10, 3))

    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_steps_are_torchs_to_rounding(self, name):
        ours, theirs, options = OPTIMIZERS[name]
        model = network(self.SHAPES).cuda()
        other = [nn.Parameter(p.detach().clone()) for p in trained(model)]
        self._steps(50, model, other, ours(model, **options), theirs(other, **options))

    def _steps(self, count, model, other, *optimizers):
        """As many of either optimizer; in the end the parameters are the same to rounding."""
        for step in range(count):
            for params in (trained(model), other):
                give_gradients(params, step)
            for optimizer in optimizers:
                optimizer.step()
            assert_cuts(model)
        for p, q in zip(trained(model), other, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("name", COUNTING)
    def test_capturable_steps_are_torchs_to_rounding(self, name):
        """Outside of a graph, so that compute-sanitizer can watch."""
        ours, theirs, options = COUNTING[name]
        model = network(self.SHAPES).cuda()
        other = [nn.Parameter(p.detach().clone()) for p in trained(model)]
        rate = torch.tensor(options["lr"], device="cuda")
        optimizer = ours(model, **options | {"lr": rate, "capturable": True})
        self._steps(5, model, other, optimizer, theirs(other, **options))
        assert all(state["step"].is_cuda and state["step"].item() == 5 for state in optimizer.state.values())

    def test_parameters_on_both_devices(self):
        here = network(self.SHAPES)
        there = copy.deepcopy(here).cuda()
        other = [nn.Parameter(p.detach().clone()) for p in trained(here)]
        optimizer = ek.optim.ScoreSGD(nn.ModuleList([here, there]), lr=0.1, momentum=0.9)
        eager = torch.optim.SGD(other, lr=0.1, momentum=0.9)
        with ek.use_backend("auto"):
            for step in range(3):
                for params in (trained(here), trained(there), other):
                    give_gradients(params, step)
                optimizer.step(), eager.step()
        for model in (here, there):
            assert_cuts(model)
            for p, q in zip(trained(model), other, strict=True):
                torch.testing.assert_close(p.cpu(), q, rtol=1e-4, atol=1e-4)

    def test_a_hundred_runs_are_one(self):
        found = []
        for _ in range(100):
            torch.manual_seed(0)
            model = network(self.SHAPES).cuda()
            optimizer = ek.optim.ScoreAdam(model)
            for step in range(3):
                give_gradients(trained(model), step)
                optimizer.step()
            found.append([*(p.detach() for p in trained(model)), *(m._cuts.last.data for m in model)])
        assert all(torch.equal(a, b) for run in found for a, b in zip(run, found[0], strict=True))

    def test_in_a_graph_it_goes_on_stepping(self):
        model = network(self.SHAPES).cuda()
        expected = [p.detach().clone() for p in trained(model)]
        optimizer = ek.optim.ScoreSGD(model, lr=0.1)
        give_gradients(trained(model), 0)
        gradients = [p.grad.clone() for p in trained(model)]
        optimizer.step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            optimizer.step()
        for _ in range(5):
            graph.replay()
        for p, start, grad in zip(trained(model), expected, gradients, strict=True):
            torch.testing.assert_close(p.detach(), start - 6 * 0.1 * grad, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("name", COUNTING)
    def test_in_a_graph_it_counts_its_steps_and_follows_its_learning_rate(self, name):
        ours, theirs, options = COUNTING[name]
        model = network(self.SHAPES).cuda()
        other = [nn.Parameter(p.detach().clone()) for p in trained(model)]
        rate = torch.tensor(options["lr"], device="cuda")
        optimizer, eager = ours(model, **options | {"lr": rate, "capturable": True}), theirs(other, **options)
        for params in (trained(model), other):
            give_gradients(params, 0)
        optimizer.step(), eager.step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            optimizer.step()
        for step in range(1, 6):
            rate.fill_(options["lr"] / step)
            eager.param_groups[0]["lr"] = options["lr"] / step
            graph.replay(), eager.step()
            for p, q in zip(trained(model), other, strict=True):
                torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-4)
            for layer in model:
                kept = layer.rule.kept(layer._ranked.numel())
                cut = reference.select([layer._ranked.detach().cpu()], [kept], [layer.rule.of], None)[0]
                assert layer._hint().data.tolist() == cut.tolist()
        assert all(state["step"].item() == 6 for state in optimizer.state.values())

    def test_a_count_on_the_host_is_not_captured(self):
        model = network(self.SHAPES).cuda()
        optimizer = ek.optim.ScoreAdam(model)
        give_gradients(trained(model), 0)
        optimizer.step()
        torch.cuda.synchronize()
        with pytest.raises(RuntimeError, match="needs capturable=True"), torch.cuda.graph(torch.cuda.CUDAGraph()):
            optimizer.step()
