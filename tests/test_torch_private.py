"""What torch_private.py relies on in torch: each function answers a question whose answer is known."""

import importlib

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import edgepop_kernels as ek
from edgepop_kernels import torch_private


class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class Wrapper(torch.Tensor):
    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise NotImplementedError("a wrapper")


def test_torch_watches_under_a_mode_a_transform_and_a_compiler_and_else_not():
    assert not torch_private.watched()
    with Watching():
        assert torch_private.watched()
    seen = []

    def f(x):
        seen.append((torch_private.transformed(), torch_private.watched()))
        return x.sum()

    torch.func.grad(f)(torch.ones(2))
    torch.compile(f, backend="eager", fullgraph=True)
    assert seen == [(True, True)]
    assert not torch_private.transformed()


def test_tangents_go_forward_within_a_level_with_and_without_a_graph():
    assert not torch_private.tangents_go_forward()
    with torch.autograd.forward_ad.dual_level():
        assert torch_private.tangents_go_forward()
        with torch.no_grad():
            assert torch_private.tangents_go_forward()
    assert not torch_private.tangents_go_forward()


def test_plain_memory_is_told_from_what_only_stands_for_values():
    x = torch.randn(3, dtype=torch.complex64)
    assert torch_private.plain(torch.ones(3))
    assert torch_private.plain(nn.Parameter(torch.ones(3)))
    assert not torch_private.plain(Wrapper(torch.ones(3)))
    assert not torch_private.plain(x.conj().imag)
    assert not torch_private.plain(torch._efficientzerotensor(3))


def test_writes_are_counted():
    x = torch.ones(3)
    before = torch_private.version(x)
    x.add_(1)
    assert torch_private.version(x) > before


def test_the_tensors_among_an_ops_arguments_are_known():
    assert torch_private.tensor_arguments(torch.ops.edgepop.masked_linear.default) == [0, 1, 2, 3, 5, 6]
    assert torch_private.tensor_arguments(torch.ops.edgepop.select.default) == [3]


def test_all_are_copied():
    into, source = [torch.zeros(2), torch.zeros(3)], [torch.ones(2), torch.full((3,), 2.0)]
    torch_private.copy_all(into, source)
    assert torch.equal(torch.cat(into), torch.cat(source))


@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
def test_a_hook_on_a_parameter_is_seen_while_it_is_there(register):
    p = nn.Parameter(torch.ones(2))
    assert not torch_private.waits_for_gradient(p)
    handle = getattr(p, register)(lambda _: None)
    assert torch_private.waits_for_gradient(p)
    handle.remove()
    assert not torch_private.waits_for_gradient(p)


def test_a_backward_has_a_number_and_says_what_it_reaches():
    p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    found = []

    class Asks(torch.autograd.Function):
        @staticmethod
        def forward(ctx, p, q):
            return p + q

        @staticmethod
        def backward(ctx, g):
            numbers.append(torch_private.current_backward())
            found.append([torch_private.backward_reaches(node) for node, _ in ctx.next_functions])
            return g, g

    numbers = []
    assert torch_private.current_backward() == -1
    Asks.apply(p, q).sum().backward()
    torch.autograd.backward([Asks.apply(p, q).sum()], inputs=[p])
    assert found == [[True, True], [True, False]]
    assert numbers[0] != numbers[1]
    assert -1 not in numbers
    with pytest.raises(RuntimeError):
        torch.autograd.grad(Asks.apply(p, q).sum(), [p])


def test_what_is_to_be_done_after_a_backward_finds_all_gradients():
    class Asks(torch.autograd.Function):
        @staticmethod
        def forward(ctx, a):
            return a * 2

        @staticmethod
        def backward(ctx, g):
            torch_private.after_backward(lambda: found.append(p.grad.item()))
            return g * 2

    found, p = [], torch.zeros((), requires_grad=True)
    for _ in range(2):
        Asks.apply(p).backward()
    assert found == [2, 4]


def test_a_convolution_says_what_padding_it_adds():
    conv = nn.Conv2d(1, 1, (3, 4), padding="same", padding_mode="circular")
    assert list(torch_private.padding_on_each_side(conv)) == [1, 2, 1, 1]


def test_a_transposed_convolution_says_how_it_makes_an_output_of_a_size():
    conv = nn.ConvTranspose2d(1, 1, 3, stride=(2, 4), output_padding=(1, 0))
    x = torch.randn(1, 1, 5, 5)
    assert torch_private.output_padding(conv, x, None) == (1, 0)
    assert torch_private.output_padding(conv, x, (11, 22)) == (0, 3)
    with pytest.raises(ValueError, match="output size"):
        torch_private.output_padding(conv, x, (13, 22))


def test_a_forward_pre_hook_is_removed_without_its_handle():
    def ours(module, args):
        calls.append("ours")

    calls, layer = [], nn.Linear(2, 2)
    layer.register_forward_pre_hook(ours)
    layer.register_forward_pre_hook(lambda module, args: calls.append("theirs"))
    torch_private.remove_forward_pre_hook(layer, ours)
    layer(torch.ones(1, 2))
    assert calls == ["theirs"]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_flops_of_masked_layers_are_those_of_dense_ones(device):
    conv = dict(
        stride=2, padding=1, bias=True
    )  # without groups, which torch's formula of a weight's gradient leaves out
    dense = nn.Sequential(nn.Conv2d(4, 6, (3, 2), **conv), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 4 * 4, 5))
    masked = nn.Sequential(
        ek.FusedSparseConv(4, 6, (3, 2), **conv), nn.ReLU(), nn.Flatten(), ek.FusedSparseLinear(6 * 4 * 4, 5)
    )

    def counted(model):
        x = torch.randn(3, 4, 7, 6, device=device, requires_grad=True)
        with FlopCounterMode(display=False) as forward:
            y = model.to(device)(x)
        with FlopCounterMode(display=False) as backward:
            y.sum().backward()
        return forward.get_total_flops(), backward.get_total_flops()

    assert counted(masked) == counted(dense)
    assert min(counted(dense)) > 0


def test_the_onnx_exporter_is_quiet_about_libraries_that_are_not_here(caplog):
    pytest.importorskip("onnxscript")
    registration = importlib.import_module("torch.onnx._internal.exporter._registration")
    with torch_private.quiet_onnx():
        registration.logger.warning("torchvision is not installed")
    assert not caplog.records
    registration.logger.warning("again")
    assert [record.message for record in caplog.records] == ["again"]


def test_an_onnx_export_is_seen_by_its_flag(monkeypatch):
    assert not torch_private.exports_onnx()
    flags = importlib.import_module("torch.onnx._internal.exporter._flags")
    monkeypatch.setattr(flags, "_is_onnx_exporting", True)
    assert torch_private.exports_onnx() and torch.onnx.is_in_onnx_export()


def test_a_trace_of_torch_jit_is_seen():
    saw = []
    torch.jit.trace(lambda x: saw.append(torch_private.jit_traces()) or x + 1, torch.ones(2))
    assert saw[0] is True and torch_private.jit_traces() is False


@pytest.mark.parametrize(
    ("layer", "fold", "norm"),
    [(nn.Conv2d, fuse_conv_bn_eval, nn.BatchNorm2d), (nn.Linear, fuse_linear_bn_eval, nn.BatchNorm1d)],
)
def test_a_fold_of_batch_norm_is_seen_where_it_sets_a_parameter(layer, fold, norm):
    class Watching(layer):
        def register_parameter(self, name, param):
            saw.append((name, torch_private.folds_batch_norm()))
            super().register_parameter(name, param)

    saw = []
    watching = Watching(2, 2, *[1] * (layer is nn.Conv2d)).eval()
    watching.weight = nn.Parameter(torch.ones_like(watching.weight))
    fold(watching, norm(2).eval())
    assert saw == [("weight", False), ("bias", False), ("weight", False), ("weight", True), ("bias", True)]


def test_who_folds_a_weight_is_known_by_name_but_for_torchs_own():
    class Layer:
        @property
        def weight(self):
            return torch_private.folded_by()

    def fuse(layer):
        return layer.weight

    def _fuse_bn_tensor(layer):
        return layer.weight

    def fused_step(layer):
        return layer.weight

    assert [f(Layer()) for f in (fuse, _fuse_bn_tensor, fused_step)] == ["fuse", "_fuse_bn_tensor", None]
    assert Layer().weight is None


def test_a_module_is_held_while_its_distributed_wrapper_is():
    layer, other = nn.Linear(2, 3), nn.Linear(2, 3)
    assert torch_private.holder_of([layer]) is None
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        wrapper = nn.parallel.DistributedDataParallel(nn.Sequential(layer))
        assert torch_private.holder_of([other, layer]) is wrapper
        assert torch_private.holder_of([other]) is None
        del wrapper
        assert torch_private.holder_of([layer]) is None
    finally:
        dist.destroy_process_group()
