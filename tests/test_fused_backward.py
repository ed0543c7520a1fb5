"""Optimizer steps inside backward: the bits of steps after it, no gradient in memory, errors instead of wrong sums."""

import copy
import gc
import io
import math
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from test_native_wgrad import drawn_case, laid_out, mask_arguments, operands
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import edgepop_kernels as ek
from edgepop_kernels.backend import native
from edgepop_kernels.optim.coefficients import Coefficients
from edgepop_kernels.optim.steady import Update
from edgepop_kernels.testing import inputs
from edgepop_kernels.testing.guard import guarded
from edgepop_kernels.testing.tolerances import assert_same_bits

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))


@pytest.fixture(autouse=True)
def _threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


OPTIMIZERS = {
    "sgd": (ek.optim.ScoreSGD, dict(lr=0.05)),
    "momentum": (ek.optim.ScoreSGD, dict(lr=0.05, momentum=0.9, dampening=0.3, weight_decay=1e-3)),
    "nesterov": (ek.optim.ScoreSGD, dict(lr=0.05, momentum=0.9, nesterov=True, maximize=True)),
    "adam": (ek.optim.ScoreAdam, dict(lr=0.01, weight_decay=1e-3)),
    "amsgrad": (ek.optim.ScoreAdam, dict(lr=0.01, betas=(0.0, 0.9), amsgrad=True)),
    "adamw": (ek.optim.ScoreAdamW, dict(lr=0.01)),
}


# The kernel: what it leaves must be the bits of its own dS, stepped with by the optimizer's kernel.
COEFFICIENTS = {
    "first": Coefficients("sgd", (0.05, 0.9, 0.7, 1e-3, 1.0, 1.0, 1.0)),
    "nesterov": Coefficients("sgd", (0.05, 0.9, 0.7, 1e-3, -1.0, 1.0, 0.0)),
    "plain": Coefficients("sgd", (0.05, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0)),
    "adam": Coefficients("adam", (0.01, 3.0, 0.1, -0.9, 0.999, 0.001, 1e-8, 1e-3, 1.0, 1.0)),
    "adamw": Coefficients("adam", (0.01, 3.0, 0.1, -0.9, 0.999, 0.001, 1e-8, 0.0, 0.99, -1.0)),
}
MOMENTS = {"first": 1, "nesterov": 1, "plain": 0, "adam": 3, "adamw": 2}


def check_kernel(seed):
    """Every layout, geometry, dtype and thread count; NaN around the scores and the moments is neither read nor hit."""
    case, kind = drawn_case(seed), list(COEFFICIENTS)[seed % len(COEFFICIENTS)]
    dy, x, weight, scores = operands(case)
    of = "sigmoid" if case.of == "bits" else case.of
    _, cut, _ = mask_arguments(scores, of, kept=max(1, scores.numel() // 2))
    moments = [laid_out(torch.rand(scores.shape), case.scores_layout) for _ in range(MOMENTS[kind])]

    def expected():
        s, m = torch.empty_like(scores).copy_(scores), [torch.empty_like(t).copy_(t) for t in moments]
        ds, dw = native.masked_conv2d_dw(dy, x, weight, s, cut, of, True, case.weight_grad, **case.options)
        native.step([Update(s, ds, tuple(m), COEFFICIENTS[kind])], [])
        return s, m, dw if case.weight_grad != "none" else None

    want_scores, want_moments, want_dw = expected()
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        named = {f"moment{i}": m for i, m in enumerate(moments)}
        with guarded(scores=scores, **named) as (s, *m):
            update = Update(s, None, tuple(m), COEFFICIENTS[kind])
            dw = native.masked_conv2d_update(dy, x, weight, s, cut, of, update, case.weight_grad, **case.options)
        assert_same_bits("scores", s, want_scores)
        for got, want in zip(m, want_moments, strict=True):
            assert_same_bits("moment", got, want)
        assert (dw is None) == (want_dw is None)
        if dw is not None:
            assert_same_bits("dw", dw, want_dw)


@pytest.mark.parametrize("seed", range(80))
def test_kernel(seed):
    check_kernel(seed)


# Whole networks: 20 steps.
def linear():
    return nn.Sequential(nn.Linear(63, 101), nn.ReLU(), nn.Linear(101, 3, bias=False)), (5, 63)


def conv():
    layers = [nn.Conv2d(3, 17, 3, padding=1), nn.ReLU(), nn.Conv2d(17, 34, (3, 2), stride=2, groups=17), nn.ReLU()]
    layers += [nn.Conv2d(34, 36, 3, padding=2, dilation=2, groups=2), nn.Conv2d(36, 36, 3, groups=18, padding=1)]
    return nn.Sequential(*layers, nn.Conv2d(36, 7, 1), nn.Flatten(), nn.LazyLinear(3)), (3, 3, 9, 11)


def shared_out():
    """Pixels in shares, whose partial sums are added before they are spent; more taps than lanes."""
    layers = nn.Conv2d(2, 5, 5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)
    return nn.Sequential(*layers), (4, 2, 28, 28)


def built(make, rule, *, channels_last=False, weights=False):
    torch.manual_seed(3)
    model, shape = make()
    model(torch.randn(shape))
    rule = rule or ek.TopK(0.4)
    method = "supermask" if isinstance(rule, (ek.Threshold, ek.Bernoulli)) else "subnet"
    ek.convert(model, rule, method=method)
    if isinstance(rule, ek.GlobalTopK):
        ek.share_selection(model)
    if channels_last:
        model.to(memory_format=torch.channels_last)
    for layer in scored(model):
        nn.init.normal_(layer.scores)
        layer.weight.requires_grad_(weights)
    return model, shape


def scored(model):
    return [m for m in model.modules() if getattr(m, "scores", None) is not None]


def train(model, shape, optimizer, steps, *, autocast=False, first=0):
    for step in range(first, first + steps):
        x = torch.randn(shape, generator=inputs.generator(step))
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = F.cross_entropy(model(x).float(), torch.arange(shape[0]) % 3)
        loss.backward()
        optimizer.step()


def assert_equal_training(ours, theirs):
    """Parameters, optimizer states and known cuts of two (model, optimizer), bit by bit."""
    (model, optimizer), (other, reference) = ours, theirs
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        assert_same_bits(name, p.detach(), q.detach())
    states = optimizer.state_dict()["state"], reference.state_dict()["state"]
    assert states[0].keys() == states[1].keys()
    for key, state in states[0].items():
        assert state.keys() == states[1][key].keys()
        for name, value in state.items():
            assert_same_bits(f"{key}.{name}", value, states[1][key][name])
    assert optimizer.state_dict()["param_groups"] == reference.state_dict()["param_groups"]
    for layer, twin in zip(scored(model), scored(other), strict=True):
        cuts = layer._known_cut(), twin._known_cut()
        assert (cuts[0] is None) == (cuts[1] is None)
        if cuts[0] is not None:
            assert torch.equal(cuts[0].data, cuts[1].data)


def compare(make, name, rule=None, steps=20, autocast=False, threads=(2, 1, 2), **options):
    """Steps after backward on threads[0] threads, inside it on the others."""
    kind, settings = OPTIMIZERS[name]
    trained = []
    for fused, count in zip((False, True, True)[: len(threads)], threads, strict=True):
        torch.set_num_threads(count)
        model, shape = built(make, rule, **options)
        optimizer = kind(model, **settings, fused_backward=fused)
        torch.manual_seed(5)
        before = [layer.scores.detach().clone() for layer in scored(model)]
        train(model, shape, optimizer, steps, autocast=autocast)
        for layer, scores in zip(scored(model), before, strict=True):
            assert (layer.scores.grad is None) == fused
            assert not torch.equal(layer.scores, scores)
        trained.append((model, optimizer))
    for ours in trained[1:]:
        assert_equal_training(ours, trained[0])


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("make", [linear, conv, shared_out])
def test_training_equals_the_unfused(make, name):
    compare(make, name)


@pytest.mark.parametrize("make", [linear, conv])
@pytest.mark.parametrize(
    "options",
    [dict(channels_last=True), dict(weights=True), dict(autocast=True), dict(autocast=True, weights=True)],
    ids=str,
)
def test_layouts_dtypes_and_trained_weights(make, options):
    compare(make, "momentum", **options)


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize(
    "rule",
    [ek.TopK(0.3, "raw"), ek.Percentile(0.5), ek.GlobalTopK(0.5), ek.Threshold(), ek.Bernoulli(), ek.TopK(1.0)],
    ids=str,
)
def test_rules(rule, weights):
    compare(conv, "adamw", rule, weights=weights)


@pytest.mark.usefixtures("other_isa")
def test_every_instruction_set():
    for seed in range(1000, 1020):
        check_kernel(seed)
    for name in ("nesterov", "amsgrad"):
        compare(conv, name)
        compare(linear, name)


@pytest.mark.parametrize("backend", ["reference", "staged"])
@pytest.mark.parametrize("name", ["momentum", "amsgrad"])
def test_backends_that_do_not_fuse_step_layer_by_layer(backend, name):
    with ek.use_backend(backend):
        compare(conv, name, steps=3, threads=(1, 1))  # torch's products depend on the number of threads


def test_scores_with_gaps_and_other_dtypes():
    """Scores that the kernel cannot step through, and float64 activations, which the reference computes."""
    trained = []
    for fused in (False, True):
        model, shape = built(linear, None)
        wide = torch.full((101, 2 * 63), torch.nan)
        model[0].scores = nn.Parameter(wide[:, ::2].copy_(model[0].scores.detach()))
        optimizer = ek.optim.ScoreSGD(model, lr=0.1, momentum=0.9, fused_backward=fused)
        train(model, shape, optimizer, 3)
        model.double()
        optimizer.zero_grad()
        model(torch.ones(shape, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
        trained.append((model, optimizer))
    assert trained[0][0][0].scores.stride() == (126, 2)
    assert_equal_training(*trained)


# Memory.
def test_nothing_of_the_scores_size_is_allocated():
    largest = {}
    for fused in (False, True):
        model = nn.Sequential(ek.FusedSubnetLinear(256, 512), nn.ReLU(), ek.FusedSubnetLinear(512, 256))
        optimizer = ek.optim.ScoreSGD(model, lr=0.1, momentum=0.9, fused_backward=fused)
        images = inputs.generator(0)
        for _ in range(2):  # the first step makes the optimizer's state
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
                optimizer.zero_grad()
                model(torch.randn(4, 256, generator=images)).square().mean().backward()
                optimizer.step()
        largest[fused] = max(event.self_cpu_memory_usage for event in profiler.events())
    scores = 4 * 256 * 512
    assert largest[False] >= scores, "the profiler saw no gradient"
    assert 0 < largest[True] < scores / 8


PEAK = """
import sys, torch, edgepop_kernels as ek

def peak_kib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

def trained(features):
    layer = ek.FusedSubnetLinear(features, features, bias=False)
    optimizer = ek.optim.ScoreSGD(layer, lr=0.1, momentum=0.9, fused_backward=sys.argv[1] == "fused")
    optimizer.state[layer.scores]["momentum_buffer"] = torch.ones_like(layer.scores)

    def step():
        optimizer.zero_grad()
        layer(torch.ones(4, features)).mean().backward()
        optimizer.step()

    return step, layer.scores.nbytes

trained(512)[0]()
step, size = trained(4096)
before = peak_kib()
step()
print((peak_kib() - before) * 1024 / size)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="VmHWM is Linux's")
def test_peak_of_the_process():
    """Of a whole step with scores of 64 MiB, what kernels allocate without torch included."""
    grown = {}
    for kind in ("fused", "unfused"):
        child = subprocess.run([sys.executable, "-c", PEAK, kind], capture_output=True, text=True, check=False)
        assert child.returncode == 0, child.stderr
        grown[kind] = float(child.stdout)
    assert grown["unfused"] > 1
    assert grown["fused"] < 0.25


# What a training script does.
def fused(params, **settings):
    return ek.optim.ScoreSGD(params, lr=0.1, momentum=0.9, fused_backward=True, **settings)


def layer_and_optimizer(features=6):
    layer = ek.FusedSubnetLinear(features, features, bias=False)
    return layer, fused(layer)


def test_a_resumed_run_is_the_same_bit_for_bit():
    model, shape = built(conv, None)
    optimizer = ek.optim.ScoreAdam(model, lr=0.01, fused_backward=True)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    train(model, shape, optimizer, 4)
    scheduler.step()
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    twin, _ = built(conv, None)
    resumed = ek.optim.ScoreAdam(twin, lr=7.0, fused_backward=True)
    train(twin, shape, resumed, 1)
    saved = torch.load(file)
    twin.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    for m, o in ((model, optimizer), (twin, resumed)):
        train(m, shape, o, 4, first=4)
        assert scored(m)[0].scores.grad is None
    assert_equal_training((twin, resumed), (model, optimizer))


def test_states_are_torchs():
    model, shape = built(linear, None)
    optimizer = ek.optim.ScoreAdam(model, lr=0.01, fused_backward=True)
    train(model, shape, optimizer, 2)
    other = torch.optim.Adam(model.parameters())
    other.load_state_dict(optimizer.state_dict())
    assert other.state[model[0].scores]["step"] == 2
    optimizer.load_state_dict(other.state_dict())
    train(model, shape, optimizer, 1)
    assert optimizer.state[model[0].scores]["step"] == 3


@pytest.mark.parametrize("pickled", [False, True])
def test_copies_step_for_themselves(pickled):
    model, shape = built(linear, None)
    optimizer = fused(model)
    train(model, shape, optimizer, 2)
    if pickled:
        file = io.BytesIO()
        torch.save((model, optimizer), file)
        file.seek(0)
        twin, steps = torch.load(file, weights_only=False)
    else:
        twin, steps = copy.deepcopy((model, optimizer))
    for m, o in ((twin, steps), (model, optimizer)):
        train(m, shape, o, 2, first=2)
        assert m[0].scores.grad is None
    assert_equal_training((twin, steps), (model, optimizer))


def test_a_copy_of_the_model_alone_has_gradients():
    model, shape = built(linear, None)
    optimizer = fused(model)
    twin = copy.deepcopy(model)
    twin(torch.randn(shape)).sum().backward()
    assert twin[0].scores.grad is not None
    assert optimizer.state_dict()["state"] == {}


def test_layers_have_gradients_again_when_the_optimizer_is_gone():
    layer, optimizer = layer_and_optimizer()
    del optimizer
    gc.collect()
    layer(torch.randn(3, 6)).sum().backward()
    assert layer.scores.grad is not None


def test_groups_of_their_own_settings_closure_and_scores_left_out():
    model, shape = built(linear, None)
    first, last = scored(model)
    optimizer = fused([{"params": [last.scores], "lr": 0.0}], model=model)

    def closure():
        optimizer.zero_grad()
        loss = model(torch.randn(shape)).square().mean()
        loss.backward()
        return loss

    before = last.scores.detach().clone()
    assert optimizer.step(closure) > 0
    assert first.scores.grad is not None  # none of the optimizer's
    assert torch.equal(last.scores, before)
    assert last.scores.grad is None
    assert last._known_cut() is not None
    optimizer.add_param_group({"params": [first.scores], "lr": 1.0})
    first.scores.grad = None
    before = first.scores.detach().clone()
    optimizer.step(closure)
    assert first.scores.grad is None
    assert not torch.equal(first.scores, before)


class Checkpointed(nn.Sequential):
    reentrant = False

    def forward(self, x):
        layers = list(self)
        x = layers[0](x)
        x = checkpoint(nn.Sequential(*layers[1:3]), x, use_reentrant=self.reentrant)
        return nn.Sequential(*layers[3:])(x)


@pytest.mark.parametrize("rule", [ek.TopK(0.4), ek.Bernoulli()], ids=str)
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant, rule):
    trained = []
    for kind in (nn.Sequential, Checkpointed):
        plain, shape = built(conv, rule)
        model = kind(*plain)
        model.reentrant = reentrant
        optimizer = fused(model)
        torch.manual_seed(5)
        train(model, shape, optimizer, 3)
        assert scored(model)[1].scores.grad is None
        trained.append((model, optimizer))
    assert_equal_training(*trained)


def test_saved_tensors_kept_elsewhere():
    trained = []
    for elsewhere in (False, True):
        model, shape = built(conv, None)
        optimizer = fused(model)
        for _ in range(2):
            with torch.autograd.graph.save_on_cpu() if elsewhere else torch.enable_grad():
                train(model, shape, optimizer, 1)
        trained.append((model, optimizer))
    assert_equal_training(*trained)


def test_under_a_dispatch_mode():
    trained = []
    for watched in (False, True):
        model, shape = built(conv, None)
        optimizer = fused(model)
        with FlopCounterMode(display=False) if watched else torch.enable_grad():
            train(model, shape, optimizer, 2)
        trained.append((model, optimizer))
    assert_equal_training(*trained)


def test_compiled():
    layer, optimizer = layer_and_optimizer()
    x = torch.randn(3, 6)
    with pytest.raises(Exception, match="fused_backward"):
        torch.compile(layer, backend="eager", fullgraph=True)(x)
    before = layer.scores.detach().clone()
    torch.compile(layer, backend="eager")(x).sum().backward()
    optimizer.step()
    assert not torch.equal(layer.scores, before)
    assert layer.scores.grad is None


def test_what_ends_without_a_gradient_to_the_scores_leaves_them():
    layer, optimizer = layer_and_optimizer()
    before = layer.scores.detach().clone()
    x = torch.randn(3, 6, requires_grad=True)
    with torch.no_grad():
        layer(x)
    layer(x)  # a graph that is dropped
    y = layer(x).sum()
    (dx,) = torch.autograd.grad(y, x, retain_graph=True)  # of the input alone, as attacks need it
    assert torch.equal(dx, (layer.weight * layer.mask()).sum(0).expand(3, 6))
    assert torch.equal(layer.scores, before)
    y.backward()
    assert not torch.equal(layer.scores, before)
    optimizer.step()


def test_a_layer_frozen_and_thawed():
    layer, optimizer = layer_and_optimizer()
    layer.weight.requires_grad_()
    for frozen in (False, True, False):
        before = layer.scores.detach().clone()
        layer.freeze(keep_scores=True) if frozen else layer.thaw()
        layer(torch.randn(3, 6)).square().sum().backward()
        optimizer.step()
        assert torch.equal(layer.scores, before) == frozen
        assert layer.weight.grad is not None
        layer.weight.grad = None


def test_rescaled_scores_have_gradients():
    layer = ek.FusedSupermaskLinear(6, 6, rescale=True)
    optimizer = ek.optim.ScoreSGD(layer, lr=0.1, fused_backward=True)
    layer(torch.randn(3, 6)).square().sum().backward()
    assert layer.scores.grad is not None
    before = layer.scores.detach().clone()
    optimizer.step()
    assert not torch.equal(layer.scores, before)


# What is refused, before any scores change.
def unchanged(*layers):
    before = [layer.scores.detach().clone() for layer in layers]
    return lambda: all(torch.equal(layer.scores, s) for layer, s in zip(layers, before, strict=True))


def test_a_layer_used_twice_is_refused():
    first, last = ek.FusedSubnetLinear(6, 6), ek.FusedSubnetLinear(6, 6)
    optimizer = fused(nn.Sequential(first, last))
    same = unchanged(first, last)
    y = last(first(first(torch.randn(3, 6)))).sum()
    with pytest.raises(RuntimeError, match="fused_backward: scores are used by 2 forwards"):
        y.backward()
    assert same()
    del y
    last(first(torch.randn(3, 6))).sum().backward()
    assert not same()
    optimizer.step()


def test_accumulation_is_refused():
    layer, optimizer = layer_and_optimizer()
    x = torch.randn(3, 6)
    layer(x).sum().backward()
    y = layer(x).sum()
    same = unchanged(layer)
    optimizer.zero_grad()
    with pytest.raises(RuntimeError, match="since the last step"):
        y.backward()
    assert same()
    optimizer.step()
    y = layer(x).sum()
    y.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="since the last step"):
        y.backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_no_layer_moves_where_a_deeper_one_accumulates():
    first, last = ek.FusedSubnetLinear(6, 6), ek.FusedSubnetLinear(6, 6)
    optimizer = fused(nn.Sequential(first, last))
    first(torch.randn(3, 6)).sum().backward()
    y, same = last(first(torch.randn(3, 6))).sum(), unchanged(first, last)
    with pytest.raises(RuntimeError, match="since the last step"):
        y.backward()
    assert same()
    optimizer.step()


def test_gradients_that_somebody_waits_for_are_refused():
    layer, optimizer = layer_and_optimizer()
    x, same = torch.randn(3, 6), unchanged(layer)
    with pytest.raises(RuntimeError, match=r"torch\.autograd\.grad asks"):
        torch.autograd.grad(layer(x).sum(), layer.scores)
    for hook in (layer.scores.register_hook, layer.scores.register_post_accumulate_grad_hook):
        handle = hook(lambda grad: None)
        with pytest.raises(RuntimeError, match="a hook on these scores"):
            layer(x).sum().backward()
        handle.remove()
    layer.scores.grad = torch.zeros_like(layer.scores)
    with pytest.raises(RuntimeError, match=r"scores have a \.grad"):
        layer(x).sum().backward()
    layer.scores.grad = None
    assert same()
    (layer(x).sum() + layer.scores.sum()).backward()
    with pytest.raises(RuntimeError, match=r"scores have a \.grad"):
        optimizer.step()


def test_changed_scores_are_refused():
    layer, optimizer = layer_and_optimizer()
    y = layer(torch.randn(3, 6)).sum()
    with torch.no_grad():
        layer.scores.mul_(2)
    same = unchanged(layer)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()
    y = layer(torch.randn(3, 6)).sum()
    layer.scores.data = layer.scores.data.clone()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()
    assert same()
    assert optimizer.state_dict()["state"] == {}


def test_another_use_of_the_scores_is_guarded():
    layer, _optimizer = layer_and_optimizer()
    y, penalty = layer(torch.randn(3, 6)).sum(), layer.scores.square().sum()
    y.backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        penalty.backward()


def test_an_optimizer_that_lost_its_layers_says_so():
    layer, optimizer = layer_and_optimizer()
    later = fused(layer)
    layer(torch.randn(3, 6)).sum().backward()
    with pytest.raises(RuntimeError, match="a later optimizer"):
        optimizer.step()
    later.step()


@pytest.mark.parametrize("kind", [ek.optim.ScoreSGD, ek.optim.ScoreAdam, ek.optim.ScoreAdamW])
@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        (dict(params=[nn.Parameter(torch.ones(2))], fused_backward=True), ValueError, "fused_backward: .* got none"),
        (dict(params=nn.Linear(2, 2), fused_backward=True), ValueError, "fused_backward: .* got one without"),
        (dict(params=ek.FusedSubnetLinear(2, 2), fused_backward=1), TypeError, "fused_backward: expected a bool"),
    ],
)
def test_bad_arguments(kind, arguments, error, sentence):
    with pytest.raises(error, match=sentence):
        kind(**arguments, lr=0.1)


def test_scores_of_two_layers_are_refused_before_they_change():
    first, second = ek.FusedSubnetLinear(8, 8), ek.FusedSubnetLinear(8, 8)
    second.scores = first.scores
    model = nn.Sequential(first, nn.ReLU(), second)
    optimizer = ek.optim.ScoreSGD(model, lr=0.1, fused_backward=True)
    before, y = first.scores.detach().clone(), model(torch.randn(3, 8))
    with pytest.raises(RuntimeError, match="fused_backward: scores are used by 2 forwards"):
        y.sum().backward()
    assert torch.equal(first.scores, before)
    del y
    first(torch.randn(3, 8)).sum().backward()  # one of the layers alone is one use
    optimizer.step()
    assert not torch.equal(first.scores, before)


def test_a_gradient_whose_memory_holds_its_negation():
    """The second output's, of ``torch.complex(first, second).conj()``."""
    trained, x = [], torch.randn(5, 8)
    for fused_backward in (False, True):
        torch.manual_seed(1)
        model = nn.ModuleList([ek.FusedSubnetLinear(8, 4, bias=False), ek.FusedSubnetLinear(8, 4, bias=False)])
        optimizer = ek.optim.ScoreSGD(model, lr=0.1, fused_backward=fused_backward)
        z = torch.complex(model[0](x), model[1](x)).conj()
        (torch.view_as_real(z.resolve_conj()) * torch.arange(40.0).view(5, 4, 2)).sum().backward()
        optimizer.step()
        trained.append([layer.scores.detach() for layer in model])
    with ek.use_backend("reference"):
        torch.manual_seed(1)
        model = nn.ModuleList([ek.FusedSubnetLinear(8, 4, bias=False), ek.FusedSubnetLinear(8, 4, bias=False)])
        optimizer = torch.optim.SGD([layer.scores for layer in model], lr=0.1)
        z = torch.complex(model[0](x), model[1](x)).conj()
        (torch.view_as_real(z.resolve_conj()) * torch.arange(40.0).view(5, 4, 2)).sum().backward()
        optimizer.step()
    for plain, fused, expected in zip(*trained, model, strict=True):
        torch.testing.assert_close(plain, expected.scores.detach())
        torch.testing.assert_close(fused, expected.scores.detach())


def test_an_optimizer_that_is_refused_takes_no_layers_over():
    model, x = nn.Sequential(ek.FusedSubnetLinear(5, 3)), torch.randn(2, 5)
    optimizer = ek.optim.ScoreSGD(model, lr=0.1, fused_backward=True)
    for wrong in (dict(lr=math.nan), dict(lr=-1.0), dict(lr=0.1, momentum=-1)):
        with pytest.raises(ValueError, match=r"lr|learning rate|momentum"):
            ek.optim.ScoreSGD(model, **wrong, fused_backward=True)
    before = model[0].scores.detach().clone()
    model(x).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model[0].scores, before)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_gradient_scaler_is_refused_and_works_without(optimizer):
    kind, options = OPTIMIZERS[optimizer]

    def scaled_step(fused, **scaling):
        torch.manual_seed(0)
        layer = ek.FusedSubnetLinear(5, 7)
        stepping = kind(layer, fused_backward=fused, **options)
        scaler = torch.amp.GradScaler("cpu", **scaling)
        scaler.scale(layer(torch.randn(3, 5)).square().sum()).backward()
        scaler.step(stepping)
        scaler.update()
        return layer.scores

    with pytest.raises(RuntimeError, match=r"^fused_backward: GradScaler .* without it"):
        scaled_step(True, init_scale=65536.0)
    expected = scaled_step(False, enabled=False)
    assert torch.equal(scaled_step(True, enabled=False), expected)
    torch.testing.assert_close(scaled_step(False, init_scale=1024.0), expected)


CLIPPING = {
    "norm": lambda model: nn.utils.clip_grad_norm_(model.parameters(), 1e-3),
    "value": lambda model: nn.utils.clip_grad_value_(model.parameters(), 1e-3),
    "nothing": lambda model: None,
    "looked at": lambda model: [p.grad.norm() for p in model.parameters() if p.grad is not None],
    "dropped": lambda model: model.zero_grad(),
}


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("clipping", CLIPPING)
def test_clipping_that_does_not_reach_the_scores_is_told_of_once(clipping, set_to_none):
    torch.manual_seed(0)
    model = ek.convert(nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)))
    optimizer = ek.optim.ScoreSGD(model, lr=0.05, fused_backward=True)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(3):
            optimizer.zero_grad(set_to_none=set_to_none)
            model(torch.randn(3, 5)).square().sum().backward()
            CLIPPING[clipping](model)
            optimizer.step()
    told = [str(w.message) for w in seen]
    assert len(told) == (clipping in ("norm", "value"))
    assert all(
        message.startswith("fused_backward: gradients of other parameters have been changed") for message in told
    )
