"""The op contract: schemas, fakes and routing (opcheck), torch.compile without graph breaks, autocast, errors."""

import pytest
import torch
from torch import nn
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

import edgepop_kernels as ek
from edgepop_kernels import ops

GEOMETRY = ((2, 1), (1, 2), (1, 2), 2)
PRODUCTS = "linear", "linear_dx", "linear_dw", "conv2d", "conv2d_dx", "conv2d_dw"


def masking(shape, of):
    scores = torch.randn(shape)
    if of == "bits":
        return ek.pack_mask(scores > 0), None
    rule = ek.Threshold(0.4) if of == "sigmoid" else ek.TopK(0.4, of)
    return scores, ek.select(scores, rule).data


# Triton's interpreter takes a minute for all of these: its own tests check one of each op. Where it is compiled, it and
# "cuda" take no tensors of the CPU.
BACKENDS = [name for name, reason in ek.backends().items() if reason is None and name not in ("triton", "cuda")]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("of", ["abs", "raw", "sigmoid", "bits"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(backend, of, dtype):
    torch.manual_seed(0)
    with ek.use_backend(backend):
        x, dy, weight = torch.randn(3, 5, 4, dtype=dtype), torch.randn(3, 5, 6, dtype=dtype), torch.randn(6, 4)
        mask = (weight, *masking((6, 4), of), of)
        opcheck(torch.ops.edgepop.masked_linear.default, (x, *mask, torch.randn(6)))
        opcheck(torch.ops.edgepop.masked_linear_dx.default, (dy, *mask))
        opcheck(torch.ops.edgepop.masked_linear_dw.default, (dy, x, *mask, of != "bits", "kept"))
        x = torch.randn(2, 4, 7, 6, dtype=dtype).contiguous(memory_format=torch.channels_last)
        dy, weight = torch.randn(2, 6, 4, 6, dtype=dtype), torch.randn(6, 2, 3, 3)
        mask = (weight, *masking((6, 2, 3, 3), of), of)
        assert ops.masked_conv2d(x, *mask, None, *GEOMETRY, True).shape == dy.shape
        opcheck(torch.ops.edgepop.masked_conv2d.default, (x, *mask, torch.randn(6), *GEOMETRY, True))
        opcheck(torch.ops.edgepop.masked_conv2d_dx.default, (dy, *mask, [2, 4, 7, 6], *GEOMETRY, True))
        opcheck(torch.ops.edgepop.masked_conv2d_dw.default, (dy, x, *mask, of != "bits", "all", *GEOMETRY))


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck_select(backend):
    torch.manual_seed(0)
    scores = [torch.randn(7, 3), torch.randn(4, 2, 3, 3).contiguous(memory_format=torch.channels_last), torch.randn(1)]
    with ek.use_backend(backend):
        cuts = ops.select(scores, [10, 3, 1], ["abs", "raw", "abs"], None)
        opcheck(torch.ops.edgepop.select.default, (scores, [10, 3, 1], ["abs", "raw", "abs"], None))
        opcheck(torch.ops.edgepop.select.default, (scores, [10, 3, 1], ["abs", "raw", "abs"], cuts))


class Names(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.add(func.name())
        return func(*args, **(kwargs or {}))


EVERY_OP_OF_A_STEP = {"edgepop::select", *(f"edgepop::masked_{op}" for op in PRODUCTS)}


def test_a_mode_sees_every_op():
    with Names() as names:
        small_network()(torch.randn(2, 3, 8, 8, requires_grad=True)).sum().backward()
    assert names.seen >= EVERY_OP_OF_A_STEP


def small_network():
    torch.manual_seed(0)
    layers = ek.FusedSubnetConv(3, 6, 3, padding=1), nn.ReLU(), ek.FusedSubnetConv(6, 4, 3, stride=2, keep=0.3)
    return nn.Sequential(*layers, nn.Flatten(), ek.FusedSubnetLinear(4 * 3 * 3, 5, rule=ek.Threshold(0.5)))


@pytest.mark.parametrize("shared", [False, True], ids=["per layer", "shared selection"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiles_without_graph_breaks(shared, dynamic):
    model = small_network()
    if shared:
        ek.share_selection(model)
    x = torch.randn(2, 3, 8, 8)
    expected = model(x)
    expected.sum().backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for batch in (2, 5):
        rows = x if batch == 2 else torch.randn(batch, 3, 8, 8)
        torch.testing.assert_close(compiled(rows), model(rows))
    compiled(x).sum().backward()
    assert len(gradients) == 6  # scores and biases of three layers
    for mine, eager in zip((p.grad for p in model.parameters() if p.grad is not None), gradients, strict=True):
        torch.testing.assert_close(mine, eager)


def test_training_steps_compile_without_a_graph_break_of_ours():
    torch._dynamo.reset()
    x, target = torch.randn(2, 3, 8, 8), torch.tensor([1, 3])
    losses = []
    for compiles in (False, True):
        model = ek.share_selection(small_network())
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)

        def loss_of(x, target, model=model):
            return nn.functional.cross_entropy(model(x), target)

        update = optimizer.step
        if compiles:  # torch's own optimizers break the graph of their step once, by a call that asks for it
            loss_of = torch.compile(loss_of, fullgraph=True, backend="aot_eager")
            update = torch.compile(update, backend="aot_eager")
        for _ in range(3):
            optimizer.zero_grad()
            loss = loss_of(x, target)
            loss.backward()
            update()
            losses.append(loss.detach())
    torch.testing.assert_close(losses[3:], losses[:3])


def test_autocast_decides_the_dtype():
    model, x = small_network(), torch.randn(2, 3, 8, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert x.grad.dtype == torch.float32 and model[0].scores.grad.dtype == torch.float32
    with torch.autocast("cpu", enabled=False):
        assert model(x).dtype == torch.float32


def test_double_backward_is_refused():
    x, weight, scores = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4), torch.randn(5, 4, requires_grad=True)
    y = ek.masked_linear(x, weight, scores, ek.TopK(0.5))
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        dx.sum().backward()


@pytest.mark.parametrize("changed", ["x", "weight", "scores"])
def test_operands_changed_before_backward_are_noticed(changed):
    leaf = {"x": torch.randn(3, 4), "weight": torch.randn(5, 4), "scores": torch.randn(5, 4, requires_grad=True)}
    y = ek.masked_linear(*leaf.values(), ek.TopK(0.5))
    with torch.no_grad():
        leaf[changed].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_auto_falls_back_to_the_reference_and_says_so_once(caplog):
    x, matrix = torch.randn(3, 4, dtype=torch.float64), torch.randn(5, 4)
    from edgepop_kernels.backend import _backend

    _backend.cache_clear()
    for _ in range(2):
        assert ek.masked_linear(x, matrix, matrix, ek.TopK(0.5)).dtype == torch.float64
    messages = [r.getMessage() for r in caplog.records if "masked_linear" in r.getMessage()]
    assert len(messages) == 1
    assert all(f"{name}: " in messages[0] for name in ("native", "triton"))
