"""The native weight gradient against float64 autograd: every option, layout, dtype and instruction set."""

import random
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F

from edgepop_kernels import reference
from edgepop_kernels.backend import native
from edgepop_kernels.testing.guard import guarded
from edgepop_kernels.testing.tolerances import RELATIVE_BOUND, assert_close, assert_same_bits

DTYPES = list(RELATIVE_BOUND)
OFS = ["abs", "raw", "sigmoid", "bits"]
LAYOUTS = ["contiguous", "channels_last", "transposed", "inside", "batch_last", "expanded"]


@dataclass(frozen=True)
class Case:
    batch: int
    channels: int
    out: int
    groups: int
    size: tuple
    kernel: tuple
    stride: tuple = (1, 1)
    padding: tuple = (0, 0)
    dilation: tuple = (1, 1)
    dtype: torch.dtype = torch.float32
    weight_dtype: torch.dtype = torch.float32
    of: str = "abs"
    weight_grad: str = "kept"
    x_layout: str = "channels_last"
    dy_layout: str = "channels_last"
    weight_layout: str = "channels_last"
    scores_layout: str = "contiguous"

    @property
    def options(self):
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}


def drawn_case(seed):
    draw = random.Random(seed)
    groups = draw.choice([1, 1, 1, 2, 3])
    if draw.random() < 0.25:  # depthwise
        groups = draw.choice([2, 7, 16, 65])
        channels, out = groups, groups * draw.choice([1, 1, 3])
    else:
        channels = groups * draw.choice([1, 2, 3, 17, 63, 64, 100])
        out = groups * draw.choice([1, 3, 7, 17, 63, 64, 100])
    kernel = draw.choice([(1, 1), (2, 2), (3, 3), (5, 5), (7, 7), (3, 1), (1, 5), (2, 3)])
    stride, dilation = (draw.choice([(1, 1), (1, 1), (2, 2), (1, 3), (3, 2)]) for _ in range(2))
    padding = draw.choice([(0, 0), tuple(k // 2 for k in kernel), (1, 4)])
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    size = draw.choice([(1, 1), (4, 4), (7, 9), (13, 5), (3, 150)])
    size = tuple(max(s, r - 2 * p) for s, r, p in zip(size, reach, padding, strict=True))
    dtype = draw.choice(DTYPES)
    return Case(
        batch=draw.choice([1, 2, 3, 5]),
        channels=channels,
        out=out,
        groups=groups,
        size=size,
        kernel=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        dtype=dtype,
        weight_dtype=draw.choice([torch.float32, dtype]),
        of=draw.choice(OFS),
        weight_grad=draw.choice(["none", "kept", "all"]),
        x_layout=draw.choice(LAYOUTS),
        dy_layout=draw.choice(LAYOUTS),
        weight_layout=draw.choice(LAYOUTS[:4]),
        scores_layout=draw.choice(LAYOUTS[:3]),
    )


def laid_out(t, layout):
    """The values of a 4-d tensor in other memory; "inside" is surrounded by NaN, "expanded" repeats one value."""
    if layout == "contiguous":
        return t.contiguous()
    if layout == "channels_last":
        return t.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return t.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "batch_last":
        return t.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
    if layout == "expanded":
        return t.flatten()[:1].view(1, 1, 1, 1).expand_as(t)
    wide = torch.full([s + 2 for s in t.shape], float("nan"), dtype=t.dtype)
    wide[1:-1, 1:-1, 1:-1, 1:-1] = t
    return wide[1:-1, 1:-1, 1:-1, 1:-1]


def operands(case):
    weight_shape = (case.out, case.channels // case.groups, *case.kernel)
    x = torch.randn(case.batch, case.channels, *case.size).to(case.dtype)
    y = F.conv2d(x[:1].float(), torch.zeros(weight_shape), **case.options)
    dy = torch.randn(case.batch, *y.shape[1:]).to(case.dtype)
    weight = torch.randn(weight_shape).to(case.weight_dtype)
    scores = torch.randint(-3, 4, weight_shape).float() / 2  # ties, and zeros
    return (
        laid_out(dy, case.dy_layout),
        laid_out(x, case.x_layout),
        laid_out(weight, case.weight_layout),
        laid_out(scores, case.scores_layout),
    )


def mask_arguments(scores, of, kept):
    """(what the ops call scores, cut, the bool mask)"""
    ranked = "raw" if of == "bits" else of
    cut = reference.select([scores], [kept], [ranked], None)[0]
    mask = reference.mask(scores, cut, ranked)
    return (reference.pack_mask(mask), None, mask) if of == "bits" else (scores, cut, mask)


def dense_gradient(case, dy, x, shape):
    """dW_eff in float64."""
    weight = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    F.conv2d(x.double(), weight, **case.options).backward(dy.double())
    return weight.grad


def slope(scores, of):
    s = scores.double()
    if of == "abs":
        return s.sign()
    return s.sigmoid() * (1 - s.sigmoid()) if of == "sigmoid" else torch.ones_like(s)


def check(case):
    dy, x, weight, scores = operands(case)
    given, cut, mask = mask_arguments(scores, case.of, kept=max(1, scores.numel() // 2))
    arguments = (dy, x, weight, given, cut, case.of, case.of != "bits", case.weight_grad)
    per_threads = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        per_threads.append(native.masked_conv2d_dw(*arguments, **case.options))
    ds, dw = per_threads[0]
    for other_ds, other_dw in per_threads[1:]:
        assert_same_bits("ds", other_ds, ds)
        assert_same_bits("dw", other_dw, dw)

    dense = dense_gradient(case, dy, x, weight.shape)
    if case.of != "bits":
        assert ds.dtype == torch.float32
        assert_close("ds", ds, dense * weight.double() * slope(scores, case.of), case.dtype)
    if case.weight_grad == "none":
        return
    assert dw.dtype == weight.dtype
    rounded = max(case.dtype, case.weight_dtype, key=RELATIVE_BOUND.get)
    if case.weight_grad == "all":
        assert_close("dw", dw, dense, rounded)
    else:
        assert_close("dw", dw, dense * mask, rounded)
        assert (dw[~mask] == 0).all()


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("seed", range(150))
def test_drawn_convolution(seed):
    check(drawn_case(seed))


@pytest.mark.parametrize(
    "case",
    [
        # Many pixels for few weights: the pixels are shared out, and the shares' sums added in a fixed order.
        Case(16, 3, 8, 1, (32, 32), (3, 3), padding=(1, 1)),
        Case(9, 64, 64, 1, (20, 20), (3, 3), padding=(1, 1), dtype=torch.bfloat16, weight_dtype=torch.bfloat16),
        # Taps farther apart than a block of pixels is wide: their inputs are packed apart.
        Case(1, 5, 6, 1, (9, 600), (1, 3), dilation=(1, 200)),
        Case(2, 5, 6, 1, (9, 700), (2, 5), stride=(1, 2), dilation=(3, 150), padding=(0, 299)),
        # No tap but one ever meets the image.
        Case(2, 5, 6, 1, (1, 1), (7, 7), padding=(3, 3)),
        # More taps than a vector has lanes, for every way of writing weights.
        Case(2, 7, 70, 1, (12, 12), (5, 5), padding=(2, 2), weight_layout="contiguous"),
        Case(2, 70, 7, 1, (12, 12), (5, 5), padding=(2, 2), weight_layout="inside", scores_layout="channels_last"),
        # Enough weights for many tasks.
        Case(2, 300, 200, 1, (6, 5), (3, 3), padding=(1, 1), stride=(2, 1)),
        Case(2, 384, 256, 2, (6, 5), (3, 3), padding=(1, 1), weight_layout="contiguous"),
        # Groups that fill a vector together, with and without whole vectors.
        *(
            Case(3, c, c, c // width, (9, 7), kernel, stride, padding=(1, 2), dtype=dtype, x_layout=x, weight_layout=x)
            for c, width, kernel, stride in (
                (34, 2, (3, 3), (1, 1)),
                (36, 4, (1, 5), (1, 2)),
                (40, 8, (2, 4), (2, 1)),
                (144, 2, (3, 2), (1, 1)),
            )
            for dtype in DTYPES
            for x in ("channels_last", "contiguous")
        ),
        Case(20, 64, 64, 16, (12, 12), (3, 3), padding=(1, 1), of="sigmoid", weight_grad="all"),
        Case(3, 21, 63, 21, (11, 13), (7, 7), padding=(3, 3), dtype=torch.bfloat16),
        # First layers: the taps of a kernel row lie side by side, their channels too or each in a plane of its own.
        *(
            Case(3, c, out, groups, size, kernel, stride, padding, dilation, dtype, x_layout=x)
            for c, out, groups, size, kernel, stride, padding, dilation in (
                (1, 6, 1, (28, 28), (5, 5), (1, 1), (2, 2), (1, 1)),
                (3, 70, 1, (17, 19), (7, 7), (2, 2), (3, 3), (1, 1)),
                (4, 17, 1, (9, 140), (3, 8), (2, 3), (0, 7), (2, 1)),
                (5, 33, 1, (6, 31), (2, 5), (1, 4), (1, 1), (1, 2)),
                (6, 100, 2, (8, 9), (3, 3), (1, 2), (1, 1), (1, 2)),
                # Patch embeddings, with and without a rest, overlap and border.
                (3, 20, 1, (33, 48), (16, 16), (16, 16), (0, 0), (1, 1)),
                (3, 17, 1, (31, 40), (14, 13), (14, 13), (2, 1), (1, 1)),
                (2, 70, 1, (29, 45), (16, 17), (8, 4), (5, 9), (1, 1)),
                (5, 9, 1, (23, 61), (10, 12), (1, 1), (1, 3), (2, 1)),
                (4, 12, 2, (23, 21), (8, 7), (3, 7), (1, 2), (1, 1)),
                (3, 33, 1, (9, 160), (2, 7), (1, 6), (0, 5), (1, 3)),
                (3, 7, 1, (9, 40), (2, 7), (1, 2), (0, 5), (1, 3)),
                (1, 9, 1, (1, 700), (1, 251), (1, 3), (0, 7), (1, 1)),
                (3, 6, 1, (7, 5), (9, 9), (2, 2), (4, 4), (1, 1)),
            )
            for dtype in DTYPES
            for x in ("channels_last", "contiguous", "inside", "transposed", "expanded")
        ),
        *(
            Case(3, 3, 21, 1, (33, 31), (16, 15), (16, 15), of=of, weight_layout=w, scores_layout=s, weight_grad=grad)
            for of in OFS
            for grad in ("kept", "all")
            for w, s in (("contiguous", "channels_last"), ("inside", "transposed"))
        ),
    ],
)
def test_convolution(case):
    check(case)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (3, 17, 5), (32, 100, 63), (129, 64, 257), (300, 700, 10), (64, 784, 300)]
)
def test_linear(shape, dtype):
    rows, features, out = shape
    x, dy = torch.randn(rows, features).to(dtype), torch.randn(rows, out).to(dtype)
    weight, scores = torch.randn(out, features).to(dtype), torch.randn(out, features)
    given, cut, mask = mask_arguments(scores, "abs", kept=(out * features + 1) // 2)
    dense = dy.double().t() @ x.double()
    for dy_given, x_given in [(dy, x), (dy.t().contiguous().t(), x), (dy, x.t().contiguous().t())]:
        ds, dw = native.masked_linear_dw(dy_given, x_given, weight, given, cut, "abs", True, "kept")
        assert_close("ds", ds, dense * weight.double() * scores.double().sign(), dtype)
        assert_close("dw", dw, dense * mask, dtype)


@pytest.mark.parametrize("features", [2048, 2049])
def test_gradients_larger_than_the_caches(features):
    """8 MB of dS are stored past the caches, where its rows are aligned."""
    case = Case(3, features, 1030, 1, (1, 1), (1, 1))
    for layout in ("channels_last", "contiguous", "inside"):
        check(replace(case, weight_layout=layout, scores_layout=layout))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(0, 6, 9, 9), (2, 6, 0, 9)])
def test_nothing_to_sum_gives_zeros(shape, layout):
    x = torch.randn(shape)
    weight, scores = (laid_out(torch.randn(4, 6, 3, 3), layout) for _ in range(2))
    dy = torch.randn(shape[0], 4, shape[2], 9)
    options = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
    cut = reference.select([scores], [50], ["abs"], None)[0]
    ds, dw = native.masked_conv2d_dw(dy, x, weight, scores, cut, "abs", True, "kept", **options)
    assert (ds == 0).all()
    assert (dw == 0).all()


@pytest.mark.parametrize("weight_layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("of", OFS)
def test_every_cut(of, weight_layout):
    """dW is kept up to the cut and nowhere else, whichever of many ties is the last."""
    case = Case(2, 5, 3, 1, (4, 4), (2, 2), of=of, weight_layout=weight_layout, scores_layout=weight_layout)
    dy, x, weight, scores = operands(case)
    dense = dense_gradient(case, dy, x, weight.shape)
    for kept in range(1, scores.numel() + 1):
        given, cut, mask = mask_arguments(scores, of, kept)
        _, dw = native.masked_conv2d_dw(dy, x, weight, given, cut, of, False, "kept", **case.options)
        assert torch.equal(dw != 0, mask & (dense != 0))
    assert_close("dw", dw, dense, torch.float32)


def test_scores_without_a_sign():
    scores = torch.tensor([[0.0, -0.0, float("nan"), -float("nan"), float("inf"), -float("inf"), 1e-45, -1e-45, 2.0]])
    x, dy, weight = torch.ones(3, 9), torch.ones(3, 1), torch.ones(1, 9)
    ds, _ = native.masked_linear_dw(dy, x, weight, scores, torch.tensor([0, 8]), "abs", True, "none")
    assert ds.tolist() == [[0, 0, 0, 0, 3, -3, 3, -3, 3]]


def test_sigmoid_slope_at_the_ends():
    scores = torch.tensor([[0.0, 1.0, -30.0, 30.0, 80.0, -200.0, float("inf"), -float("inf"), float("nan")]])
    x, dy, weight = torch.ones(1, 9), torch.ones(1, 1), torch.ones(1, 9)
    ds, _ = native.masked_linear_dw(dy, x, weight, scores, torch.tensor([0, 8]), "sigmoid", True, "none")
    e = torch.exp(-scores.double().abs())
    torch.testing.assert_close(ds.double(), e / (1 + e) ** 2, rtol=1e-6, atol=1e-30, equal_nan=True)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
@pytest.mark.parametrize(
    "case",
    [
        Case(3, 17, 7, 1, (6, 7), (3, 3)),
        Case(3, 9, 9, 9, (6, 7), (3, 3)),
        Case(3, 12, 12, 6, (6, 7), (3, 3)),
        Case(2, 18, 14, 2, (1, 37), (1, 2), dtype=torch.bfloat16, x_layout="contiguous", dy_layout="contiguous"),
    ],
)
def test_writes_its_outputs_and_nothing_else(case, layout):
    dy, x, weight, scores = operands(case)
    cut = reference.select([scores], [40], ["abs"], None)[0]
    grads = [laid_out(torch.empty(weight.shape), layout) for _ in range(2)]
    with guarded(dy=dy, x=x, weight=weight, scores=scores, cut=cut, ds=grads[0], dw=grads[1]) as twins:
        dy, x, weight, scores, cut, ds, dw = twins
        native.plan_conv2d(x, weight, scores, "abs", **case.options).dw(
            dy, x, weight, scores, cut, True, "kept", into=(ds, dw)
        )
    dense = dense_gradient(case, dy, x, weight.shape)
    assert_close("ds", ds, dense * weight.double() * slope(scores, "abs"), torch.float32)
    assert_close("dw", dw, dense * reference.mask(scores, cut, "abs"), torch.float32)


@pytest.mark.parametrize("width", [1, 2, 4, 8, 16])
def test_not_a_number_stays_within_its_group(width):
    """Groups that fill a vector together are computed together: no sum may hold another group's channels."""
    case = Case(2, 48, 48, 48 // width, (6, 7), (3, 3), padding=(1, 1))
    dy, x, weight, scores = operands(case)
    x[:, width] = dy[:, 2 * width] = torch.nan
    cut = reference.select([scores], [scores.numel()], ["raw"], None)[0]
    for grad in native.masked_conv2d_dw(dy, x, weight, scores, cut, "raw", True, "all", **case.options):
        hit = grad.isnan().flatten(1).any(dim=1)
        assert hit[width : 2 * width].all()
        assert hit[2 * width]
        assert hit.sum() == width + 1


@pytest.mark.usefixtures("other_isa")
def test_drawn_on_every_instruction_set():
    for seed in range(1000, 1040):
        torch.manual_seed(seed)
        check(drawn_case(seed))
