"""Every backend computes what the definition says: drawn layers against float64, through the public functions.

The oracle is ``edgepop_kernels.testing.oracle``, the bounds are ``edgepop_kernels.testing.tolerances``.
"""

from contextlib import contextmanager

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import edgepop_kernels as ek
from edgepop_kernels import ops
from edgepop_kernels.testing import inputs, oracle
from edgepop_kernels.testing.guard import Guarded
from edgepop_kernels.testing.inputs import ConvCase, LinearCase, TransposedCase
from edgepop_kernels.testing.tolerances import assert_close, assert_same_bits

# The two that every CPU must have are named: where the native module is missing these tests fail, they do not vanish.
BACKENDS = ["native", "reference"]
BACKENDS += [pytest.param(name, marks=pytest.mark.gpu) for name in ek.backends() if name not in BACKENDS]


@pytest.fixture(params=BACKENDS)
def backend(request):
    """The name of the backend that runs the test."""
    missing = ek.backends()["cuda"] if request.param == "cuda" else None  # the one that is built only where nvcc is
    if missing is not None:
        pytest.skip(missing)
    with ek.use_backend(request.param), threads(1):
        yield request.param


@pytest.fixture
def device(backend):
    """Its device."""
    return torch.device("cpu" if backend in ("native", "reference") else "cuda")


@contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def leaves(case, device):
    """The case's tensors in canary buffers, those that take a gradient requiring it."""
    x, weight, scores, bias, dy = (None if t is None else Guarded(t, device=device).tensor for t in case.tensors())
    learned = [x, bias, weight if case.trains_weight else None]
    if scores is not None and scores.dtype == torch.float32:
        learned.append(scores)
    for t in learned:
        if t is not None:
            t.requires_grad_()
    return x, weight, scores, bias, dy


def check(case, layer, run, device):
    """Output and every gradient of ``run(x, weight, scores, bias)`` against the oracle's ``layer``.

    Operands lie in canary buffers: what a kernel reads beside them is NaN. Odd cases run on two threads, even ones on
    one, as does the oracle: on busy cores a small parallel region may wait a scheduler's slice for its second thread.
    """
    x, weight, scores, bias, dy = leaves(case, device)
    with threads(1 + case.seed % 2):
        y = run(x, weight, scores, bias)
        y.backward(dy)
    assert y.dtype == case.dtype
    with threads(1):
        want = oracle.answer(layer, x, weight, scores, case.rule, bias, dy)
    assert_close("y", y, want.y, case.dtype)
    assert_close("dx", x.grad, want.dx, case.dtype)
    if want.dscores is not None:
        assert scores.grad.dtype == torch.float32
        assert_close("dscores", scores.grad, want.dscores, case.dtype)
    if bias is not None:
        assert_close("dbias", bias.grad, want.dbias, case.dtype)
    if case.trains_weight:
        assert weight.grad.dtype == weight.dtype
        assert_close("dweight", weight.grad, want.dweight, case.dtype)
    else:
        assert weight.grad is None


def check_linear(case, device):
    check(case, oracle.linear, lambda x, w, s, b: ek.masked_linear(x, w, s, case.rule, b), device)


def check_conv(case, device):
    def run(x, weight, scores, bias):
        return ek.masked_conv2d(x, weight, scores, case.rule, bias, **case.options)

    check(case, oracle.conv2d(**case.options), run, device)


def check_transposed(case, device):
    def run(x, weight, scores, bias):
        return ek.masked_conv_transpose2d(x, weight, scores, case.rule, bias, **case.options)

    check(case, oracle.conv_transpose2d(**case.options), run, device)


@pytest.mark.parametrize("case", inputs.linear_cases(200), ids=str)
def test_linear(case, device):
    check_linear(case, device)


ZERO_PADDED = [case for case in inputs.conv_cases(300) if case.padding_mode == "zeros"]


@pytest.mark.parametrize("case", ZERO_PADDED, ids=str)
def test_conv2d(case, device):
    check_conv(case, device)


@pytest.mark.parametrize("case", inputs.transposed_cases(150), ids=str)
def test_conv_transpose2d(case, device):
    check_transposed(case, device)


@pytest.mark.parametrize(
    "case",
    [
        TransposedCase(batch=0),
        TransposedCase(batch=1, in_channels=1, out_channels=63, size=(1, 1), kernel=(1, 1)),
        TransposedCase(size=(2, 2), kernel=(2, 2), stride=(3, 3), output_padding=(2, 1)),  # outputs of the bias alone
        TransposedCase(size=(8, 8), padding=(4, 4)),  # more than the kernel reaches
        TransposedCase(dilation=(2, 3), output_padding=(1, 2), padding=(2, 2)),  # rows beyond the stride
        TransposedCase(batch=1, in_channels=70, out_channels=300, size=(7, 7), stride=(2, 2), x_layout="channels_last"),
        TransposedCase(batch=3, in_channels=64, out_channels=64, stride=(2, 2), kernel=(4, 4), dtype=torch.bfloat16),
        TransposedCase(in_channels=48, out_channels=48, size=(9, 9), groups=48, padding=(1, 1), stride=(2, 2)),
    ],
    ids=str,
)
def test_conv_transpose2d_edges(case, device):
    check_transposed(case, device)


@pytest.mark.parametrize(
    "case",
    [
        LinearCase(rows=(), in_features=40, out_features=30),
        LinearCase(rows=(0,), in_features=5, out_features=7),
        LinearCase(rows=(3, 0), in_features=5, out_features=7, trains_weight=True),
        LinearCase(rows=(1,), in_features=1, out_features=1),
        LinearCase(rows=(2,), in_features=5000, out_features=3),  # one long sum
        LinearCase(rows=(1000,), in_features=6, out_features=5),  # one long sum in the weight's gradient
        LinearCase(rows=(300,), in_features=300, out_features=300, dtype=torch.bfloat16, scores="equal"),
    ],
    ids=str,
)
def test_linear_edges(case, device):
    check_linear(case, device)


@pytest.mark.parametrize(
    "case",
    [
        ConvCase(batch=0),
        ConvCase(batch=1, in_channels=1, out_channels=1, size=(1, 1), kernel=(1, 1)),
        ConvCase(size=(3, 3), padding=(0, 0)),  # one output pixel
        ConvCase(size=(2, 2), kernel=(1, 1), padding=(3, 3)),  # most pixels see padding only
        ConvCase(size=(5, 5), kernel=(2, 2), stride=(3, 3)),  # input pixels that no output reads
        ConvCase(batch=1, in_channels=300, out_channels=70, size=(7, 7), padding=(1, 1), x_layout="channels_last"),
        ConvCase(batch=3, in_channels=64, out_channels=64, size=(16, 16), padding=(1, 1), dtype=torch.bfloat16),
        ConvCase(batch=2, in_channels=48, out_channels=48, size=(9, 9), groups=48, padding=(1, 1), stride=(2, 2)),
    ],
    ids=str,
)
def test_conv2d_edges(case, device):
    check_conv(case, device)


def layer_of(case, device):
    if isinstance(case, LinearCase):
        layer = ek.FusedSubnetLinear(case.in_features, case.out_features, case.bias, rule=case.rule)
    else:
        sizes = case.in_channels, case.out_channels, case.kernel
        mode = case.padding_mode
        layer = ek.FusedSubnetConv(*sizes, **case.options, bias=case.bias, padding_mode=mode, rule=case.rule)
    return layer.to(device)


LAYERS = [
    case
    for case in inputs.linear_cases(60, seed=1) + inputs.conv_cases(150, seed=1)
    if not case.self_scored and not isinstance(case.rule, ek.Frozen) and case.weight_dtype == torch.float32
]


@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_layer(case, device):
    """The layers: padding modes, and a second forward whose selection starts from the first one's cut."""
    layer = layer_of(case, device)
    reference = oracle.linear
    if isinstance(case, ConvCase):
        reference = oracle.conv2d(**case.options, padding_mode=case.padding_mode)

    def run(x, weight, scores, bias):
        # Assigned, not copied: the drawn layouts are part of the case.
        layer.weight = torch.nn.Parameter(weight.detach(), requires_grad=weight.requires_grad)
        layer.scores = torch.nn.Parameter(torch.randn_like(scores))
        layer(x)
        layer.scores = torch.nn.Parameter(scores.detach())
        if bias is not None:
            layer.bias = torch.nn.Parameter(bias.detach())
        y = layer(x)
        for leaf, parameter in ((weight, layer.weight), (scores, layer.scores), (bias, layer.bias)):
            if leaf is not None and leaf.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda p, leaf=leaf: setattr(leaf, "grad", p.grad))
        return y

    check(case, reference, run, device)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # the oracle may copy
@pytest.mark.parametrize("kernel", [(3, 3), (2, 4)], ids=str)
@pytest.mark.parametrize("dilation", [1, 3])
def test_same_padding_and_unbatched_input(kernel, dilation, device):
    case = ConvCase(batch=1, size=(9, 10), kernel=kernel, bias=True)
    x, weight, scores, bias, _ = leaves(case, device)
    y = ek.masked_conv2d(x[0], weight, scores, case.rule, bias, padding="same", dilation=dilation)
    y.sum().backward()
    want = oracle.answer(oracle.conv2d(padding="same", dilation=dilation), x, weight, scores, case.rule, bias)
    assert_close("y", y, want.y[0], case.dtype)
    assert_close("dx", x.grad, want.dx, case.dtype)
    assert_close("dscores", scores.grad, want.dscores, case.dtype)


def masks_in_effect(scores, rule, dtype, dim):
    """The masks that forward, dx and dW applied, read off layers whose weights are one and whose inputs pick one each.

    dim 2: linear, input and gradient are identity matrices. dim 4: convolution, one image for each weight of a filter.
    """
    out, *per_filter = scores.shape
    weight = torch.ones(scores.shape, device=scores.device, requires_grad=True)
    taps = torch.Size(per_filter).numel()
    x = torch.eye(taps, dtype=dtype, device=scores.device).view(taps, *per_filter).requires_grad_()
    learned = scores.clone().requires_grad_() if scores.is_floating_point() else scores
    y = (ek.masked_linear if dim == 2 else ek.masked_conv2d)(x, weight, learned, rule)
    forward = y.detach().reshape(taps, out).t().reshape(scores.shape)
    # Every entry of dW_eff is one for a gradient of ones.
    (dw,) = torch.autograd.grad(y, weight, torch.ones_like(y), retain_graph=True)
    backward = []
    for o in range(out):
        dy = torch.zeros_like(y)
        dy[0].view(out)[o] = 1
        backward.append(torch.autograd.grad(y, x, dy, retain_graph=True)[0][0])
    return forward, torch.stack(backward), dw


def assert_in_effect(name, mask, want, backend):
    """``mask``, as ``masks_in_effect`` has it, is ``want`` bit for bit. Not so where cuDNN convolves: of its algorithms
    Winograd's multiply by constants such as 1/6 and FFT's by roots of one, so that a one comes out as nearly one, and a
    zero as nearly zero. What the masked copy keeps is then what is nearer to one."""
    if backend == "staged" and mask.dim() == 4:
        assert_close(name, mask, want, mask.dtype)
        mask = mask.round()
    assert_same_bits(name, mask, want.to(mask.dtype))


@pytest.mark.parametrize("kind", inputs.SCORES)
@pytest.mark.parametrize("shape", [(33, 70), (8, 5, 3, 3)], ids=str)
@pytest.mark.parametrize(
    "rule",
    [ek.TopK(0.3), ek.TopK(0.7, "raw"), ek.Threshold(0.5), ek.Threshold(0.0, "raw", inclusive=True)],
    ids=str,
)
def test_mask_in_effect(kind, shape, rule, backend, device):
    """Ties, NaN, infinities, denormals and signed zeros, in every layout: one mask, in every kernel that applies it."""
    scores = inputs.scores(kind, shape).to(device)
    want = oracle.mask(scores, rule)
    for layout in inputs.layouts(len(shape), expanded=False):
        placed = inputs.lay_out(scores, layout)
        assert_same_bits(f"mask {layout}", ek.mask(placed, rule), want)
        for name, mask in zip(
            ("forward", "dx", "dW"), masks_in_effect(placed, rule, torch.float32, len(shape)), strict=True
        ):
            assert_in_effect(f"{name} {layout}", mask, want, backend)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rule", [ek.TopK(0.5), ek.Frozen()], ids=str)
@pytest.mark.parametrize("shape", [(33, 70), (8, 5, 3, 3)], ids=str)
def test_mask_in_effect_reduced_precision(dtype, rule, shape, backend, device):
    scores = inputs.scores("tied", shape).to(device)
    scores = scores > 0 if rule == ek.Frozen() else scores
    for mask in masks_in_effect(scores, rule, dtype, len(shape))[:2]:
        assert_in_effect("mask", mask, oracle.mask(scores, rule), backend)


@given(
    values=st.lists(st.floats(width=32), min_size=1, max_size=40),
    keep=st.floats(min_value=0, max_value=1, exclude_min=True),
    of=st.sampled_from(["abs", "raw"]),
)
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_any_scores(backend, values, keep, of):
    """Whatever the scores: exactly kept_count of them, and those the oracle keeps."""
    scores = torch.tensor(values)
    with ek.use_backend(backend):
        mask = ek.mask(scores, ek.TopK(keep, of))
    assert_same_bits("mask", mask, oracle.mask(scores, ek.TopK(keep, of)))
    assert int(mask.sum()) == ek.kept_count(len(values), keep)


LOSSES = {
    "sum": lambda y, c: y.sum(),  # every stride 0
    "rows": lambda y, c: (y.sum(0) * c[0]).sum(),  # stride 0 along the batch
    "cat": lambda y, c: (torch.cat([c, y], -1) * torch.cat([c, c], -1)).sum(),  # a strided view
    "transposed": lambda y, c: (y.transpose(0, 1) * c.transpose(0, 1).contiguous()).sum(),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)
@pytest.mark.parametrize("make", [LinearCase, ConvCase])
def test_gradient_as_it_arrives(loss, dtype, make, device):
    case = make(dtype=dtype)
    x, weight, scores, bias, c = leaves(case, device)
    run = ek.masked_linear if make is LinearCase else ek.masked_conv2d
    LOSSES[loss](run(x, weight, scores, case.rule, bias), c).backward()

    y = c.clone().requires_grad_()
    (dy,) = torch.autograd.grad(LOSSES[loss](y, c), y)
    layer = oracle.linear if make is LinearCase else oracle.conv2d()
    want = oracle.answer(layer, x, weight, scores, case.rule, bias, dy)
    for name, out, ref in (("dx", x.grad, want.dx), ("dscores", scores.grad, want.dscores)):
        assert_close(name, out, ref, dtype)
    assert_close("dbias", bias.grad, want.dbias, dtype)


@pytest.mark.parametrize("make", [LinearCase, ConvCase])
def test_autocast(make, device):
    """float32 operands under autocast: rounded to bfloat16 as a kernel reads them, gradients in their own dtypes."""
    case = make()
    x, weight, scores, bias, dy = leaves(case, device)
    run = ek.masked_linear if make is LinearCase else ek.masked_conv2d
    with torch.autocast(device.type, torch.bfloat16):
        y = run(x, weight, scores, case.rule, bias)
    assert y.dtype == torch.bfloat16
    y.backward(dy.bfloat16())
    assert x.grad.dtype == scores.grad.dtype == torch.float32
    layer = oracle.linear if make is LinearCase else oracle.conv2d()
    want = oracle.answer(layer, x, weight, scores, case.rule, bias, dy.bfloat16())
    for name, out, ref in (("y", y, want.y), ("dx", x.grad, want.dx), ("dscores", scores.grad, want.dscores)):
        assert_close(name, out, ref, torch.bfloat16)


THREADED = [
    LinearCase(rows=(67,), in_features=300, out_features=130),
    LinearCase(rows=(1,), in_features=1000, out_features=1000),
    ConvCase(batch=5, in_channels=40, out_channels=33, size=(17, 13), padding=(1, 1)),
    ConvCase(batch=1, in_channels=64, out_channels=64, size=(12, 12), dtype=torch.bfloat16, x_layout="channels_last"),
    ConvCase(batch=4, in_channels=12, out_channels=12, size=(9, 9), groups=12),
]


@pytest.mark.parametrize("case", THREADED, ids=str)
def test_thread_count_does_not_change_a_bit(case):
    def everything():
        x, weight, scores, bias, dy = leaves(case, "cpu")
        if isinstance(case, LinearCase):
            y = ek.masked_linear(x, weight, scores, case.rule, bias)
        else:
            y = ek.masked_conv2d(x, weight, scores, case.rule, bias, **case.options)
        y.backward(dy)
        return {"y": y, "dx": x.grad, "dscores": scores.grad}

    with ek.use_backend("native"):
        with threads(1):
            one = everything()
        with threads(2):
            two = everything()
    for name in one:
        assert_same_bits(name, two[name], one[name])


@pytest.mark.usefixtures("other_isa")
def test_every_instruction_set():
    """Layers of every kind through the public functions, and the draw of a Bernoulli mask bit for bit."""
    seed, scores = torch.tensor(5), torch.randn(37, 11, 3)
    with ek.use_backend("reference"):
        bits = ops.draw(scores, seed)
    with ek.use_backend("native"):
        assert torch.equal(ops.draw(scores, seed), bits)
        for case in inputs.linear_cases(200):
            check_linear(case, torch.device("cpu"))
        for case in ZERO_PADDED:
            check_conv(case, torch.device("cpu"))
