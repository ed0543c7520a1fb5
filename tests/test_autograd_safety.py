"""What backward relies on: inputs unchanged since forward, one differentiation, and little memory of its own."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

import edgepop_kernels as ek
from edgepop_kernels.testing.inputs import ConvCase, LinearCase
from edgepop_kernels.testing.tolerances import assert_same_bits

CASES = [LinearCase(rows=(6,), in_features=256, out_features=256), ConvCase(in_channels=64, out_channels=64)]


pytestmark = pytest.mark.usefixtures("backend")


@pytest.fixture(params=["native", "reference"])
def backend(request):
    with ek.use_backend(request.param):
        yield


def operands(case):
    x, weight, scores, bias, _ = case.tensors()
    return x.requires_grad_(), weight, scores.requires_grad_(), bias


def run(case, x, weight, scores, bias, rule=None):
    call = ek.masked_linear if isinstance(case, LinearCase) else ek.masked_conv2d
    return call(x, weight, scores, rule or case.rule, bias)


@pytest.mark.parametrize("case", CASES, ids=lambda case: type(case).__name__)
@pytest.mark.parametrize("changed", [0, 1, 2], ids=["x", "weight", "scores"])
def test_change_between_forward_and_backward_raises(case, changed):
    tensors = operands(case)
    y = run(case, *tensors)
    with torch.no_grad():
        tensors[changed].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("case", CASES, ids=lambda case: type(case).__name__)
def test_double_backward_raises(case):
    x, *others = operands(case)
    y = run(case, x, *others)
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        dx.sum().backward()


def test_a_gradient_penalty_raises_even_where_the_gradient_of_the_output_is_constant():
    """ReLUs and a sum: what reaches the layers is a constant, what leaves them hangs on their scores all the same."""
    model = ek.convert(nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 1)))
    x = torch.randn(3, 5, requires_grad=True)
    (dx,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    loss = model(x).mean() + (dx.norm(dim=1) - 1).square().mean()
    with pytest.raises(RuntimeError, match=r"^double backward: the gradients of masked products cannot"):
        loss.backward()
    model[0].freeze()
    (dx,) = torch.autograd.grad(model[0](x).sum(), x, create_graph=True)
    assert not dx.requires_grad  # W*M is all that it hangs on, and does not train


def test_transforms_of_torch_func_differentiate_once():
    model = ek.convert(nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 1)))
    x = torch.randn(3, 5)

    def loss(x):
        return model(x).sum()

    def penalty(x):
        return torch.func.grad(loss)(x).square().sum()

    with pytest.raises(RuntimeError, match=r"^double backward"):
        torch.func.grad(penalty)(x)
    with pytest.raises(RuntimeError, match=r"^double backward"):
        (penalty(x) + loss(x)).backward()
    leaf = x.clone().requires_grad_()
    assert torch.equal(torch.func.grad(loss)(x), torch.autograd.grad(loss(leaf), leaf)[0])


@pytest.mark.parametrize("case", CASES, ids=lambda case: type(case).__name__)
@pytest.mark.parametrize("rule", [ek.TopK(0.5), ek.Threshold(0.5), ek.Frozen()], ids=str)
def test_saved_for_backward(case, rule):
    """Beyond x, W and S: the cut, and where selection writes them the bits of mask and signs, or a frozen mask's bits;
    a quarter of a byte per weight, 16 of the cut and what ends the two planes, 16 each at most."""
    x, weight, scores, bias = operands(case)
    if rule == ek.Frozen():
        scores, weight = scores > 0, weight.requires_grad_()
    saved = []
    with saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        run(case, x, weight, scores, bias, rule)
    own = {t.data_ptr() for t in (x, weight, scores)}
    extra = sum(t.nbytes for t in saved if t.data_ptr() not in own)
    assert extra <= 0.25 * weight.numel() + 48, [tuple(t.shape) for t in saved]


# The reference builds mask and effective weight: it is the definition. The two tests of memory are the kernels'.
NATIVE = pytest.mark.parametrize("backend", ["native"], indirect=True)


@NATIVE
@pytest.mark.parametrize("case", CASES, ids=lambda case: type(case).__name__)
def test_forward_allocates_its_output_and_no_weight(case):
    x, weight, scores, bias = operands(case)
    run(case, x, weight, scores, bias)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        y = run(case, x, weight, scores, bias)
    allocated = sum(max(event.self_cpu_memory_usage, 0) for event in profiler.events())
    assert allocated >= y.nbytes, "the profiler saw no allocation"
    assert allocated - y.nbytes < 0.02 * weight.nbytes


PEAK = """
import sys, torch, edgepop_kernels as ek

def peak_kib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

def operands(features):
    return torch.empty(features, features).uniform_(), torch.empty(features, features).normal_()

rule, x = ek.TopK(0.5), torch.randn(4, 8192)
with ek.use_backend("native"), torch.no_grad():
    ek.masked_linear(x[:, :512].contiguous(), *operands(512), rule)
    weight, scores = operands(8192)
    before = peak_kib()
    ek.masked_linear(x, weight, scores, rule)
    print((peak_kib() - before) * 1024 / weight.nbytes)
"""


@NATIVE
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="VmHWM is Linux's")
def test_native_scratch_is_far_below_the_weight():
    """What the kernels allocate without torch: selection's candidates and panels, against a 256 MiB weight."""
    child = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    assert float(child.stdout) < 0.25


LAZY = {
    "negation": lambda t: torch._neg_view(-t),
    "zeros": lambda t: torch._efficientzerotensor(t.shape, dtype=t.dtype),
}


@pytest.mark.parametrize("name", ["x", "weight", "scores", "bias", "dy"])
@pytest.mark.parametrize("lazy", LAZY)
@pytest.mark.parametrize("case", CASES, ids=lambda case: type(case).__name__)
def test_memory_that_does_not_hold_the_values(case, lazy, name):
    """As that of ``z.conj().imag``, whose sign torch leaves to whoever reads it."""
    x, weight, scores, bias, dy = case.tensors()
    given = {"x": x, "weight": weight, "scores": scores, "bias": bias, "dy": dy}
    function = ek.masked_conv2d if isinstance(case, ConvCase) else ek.masked_linear
    options = case.options if isinstance(case, ConvCase) else {}

    def run(value):
        x, weight, scores, bias, dy = (given | {name: value}).values()
        leaves = [t.detach().requires_grad_() for t in (x, weight, scores, bias)]
        y = function(*leaves[:3], ek.TopK(0.3, "raw"), leaves[3], **options)
        return y, *torch.autograd.grad(y, leaves, dy)

    value = LAZY[lazy](given[name])
    plain = value.resolve_neg() if lazy == "negation" else torch.zeros(value.shape, dtype=value.dtype)
    for found, expected in zip(run(value), run(plain), strict=True):
        assert_same_bits(name, found, expected)


def test_a_mask_of_scores_whose_memory_holds_their_negation():
    scores = torch.randn(40, 30, dtype=torch.complex64).conj().imag
    assert scores.is_neg()
    rule = ek.TopK(0.3, "raw")
    assert torch.equal(ek.mask(scores, rule), ek.mask(scores.resolve_neg(), rule))
    both = ek.select_all([torch.randn(7), scores], [rule, rule])
    assert torch.equal(both[1].data, ek.select(scores.resolve_neg(), rule).data)
