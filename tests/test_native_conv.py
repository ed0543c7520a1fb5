"""Native conv_forward and conv_backward_input against float64: the masked weight from the definition, torch's layer.

Operands lie in canary buffers and outputs start as NaN, so a stray access or an element not written shows. A linear
layer is the 1x1 case on one image row; it takes the same entries through ``native.masked_linear``.
"""

import random
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F

from edgepop_kernels import reference
from edgepop_kernels.backend import native
from edgepop_kernels.testing.guard import Guarded
from edgepop_kernels.testing.tolerances import assert_close, assert_same_bits

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


def _every_second(t):
    wide = t.new_zeros((*t.shape[:-1], 2 * t.shape[-1] + 1))
    view = wide[..., 1::2]
    view.copy_(t)
    return view


LAYOUTS = {
    "nchw": lambda t: t.contiguous(),
    "nhwc": lambda t: t.contiguous(memory_format=torch.channels_last),
    "strided": _every_second,
    "wide": lambda t: torch.cat([t, t, t], 1).contiguous(memory_format=torch.channels_last)[:, : t.shape[1]],
    "whcn": lambda t: t.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    "expanded": lambda t: t[:1, :, :1].expand(t.shape),
}


@dataclass(frozen=True)
class Case:
    batch: int = 2
    channels: tuple[int, int] = (16, 16)  # in, out
    size: tuple[int, int] = (8, 8)
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    dtype: torch.dtype = F32
    weight_dtype: torch.dtype = F32
    x: str = "nhwc"
    weight: str = "nchw"
    scores: str = "nchw"
    y: str = "nhwc"
    of: str = "abs"
    keep: float = 0.5
    ties: bool = False
    bias: bool = True
    seed: int = 0

    @property
    def weight_shape(self):
        return self.channels[1], self.channels[0] // self.groups, *self.kernel

    @property
    def out_size(self):
        spans = zip(self.size, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in spans)

    @property
    def geometry(self):
        return self.stride, self.padding, self.dilation, self.groups

    def __str__(self):
        c, s, k = (f"{a}x{b}" for a, b in (self.channels, self.size, self.kernel))
        types = f"{str(self.dtype)[6:]}-{str(self.weight_dtype)[6:]}"
        layouts = "-".join((self.x, self.weight, self.scores, self.y))
        shape = f"{self.batch}-{c}-{s}-k{k}-s{self.stride}p{self.padding}d{self.dilation}g{self.groups}"
        return f"{shape}-{types}-{layouts}-{self.of}"


def _tensors(case):
    g = torch.Generator().manual_seed(case.seed)
    x = torch.randn(case.batch, case.channels[0], *case.size, generator=g).to(case.dtype)
    dy = torch.randn(case.batch, case.channels[1], *case.out_size, generator=g).to(case.dtype)
    fan_in = max(1, torch.Size(case.weight_shape[1:]).numel())
    weight = (torch.randn(case.weight_shape, generator=g) * fan_in**-0.5).to(case.weight_dtype)
    scores = torch.randn(case.weight_shape, generator=g)
    if case.ties:
        scores = scores.round()
    bias = torch.randn(case.channels[1], generator=g) if case.bias else None
    return LAYOUTS[case.x](x), LAYOUTS[case.x](dy), LAYOUTS[case.weight](weight), LAYOUTS[case.scores](scores), bias


def _cut(case, scores):
    """(scores or bits, cut, the bool mask)."""
    of = "abs" if case.of == "bits" else case.of
    kept = round(case.keep * scores.numel())
    cut = reference.select([scores], [kept], [of], None)[0]
    mask = reference.mask(scores, cut, of)
    return (reference.pack_mask(mask), None, mask) if case.of == "bits" else (scores, cut, mask)


def _output(case, shape):
    """A guarded output of NaN in the layout of the case; expanded outputs make no sense."""
    layout = "nhwc" if case.y == "expanded" else case.y
    return Guarded(LAYOUTS[layout](torch.full(shape, torch.nan, dtype=case.dtype)))


def _forward(case, x, weight, scores, cut, bias):
    y = _output(case, (case.batch, case.channels[1], *case.out_size))
    native.plan_conv2d(x, weight, scores, case.of, *case.geometry).forward(x, weight, scores, cut, bias, y.tensor)
    y.check("y")
    return y.tensor


def _backward_input(case, dy, weight, scores, cut):
    dx = _output(case, (case.batch, case.channels[0], *case.size))
    native.plan_conv2d(dx.tensor, weight, scores, case.of, *case.geometry).dx(dy, weight, scores, cut, dx.tensor)
    dx.check("dx")
    return dx.tensor


def _results(case):
    x, dy, weight, scores, bias = _tensors(case)
    scores, cut, mask = _cut(case, scores)
    x, dy, weight, scores = (Guarded(t).tensor for t in (x, dy, weight, scores))
    y = _forward(case, x, weight, scores, cut, bias)
    dx = _backward_input(case, dy, weight, scores, cut)
    return (x, dy, weight, bias, mask), y, dx


def check(case):
    (x, dy, weight, bias, mask), y, dx = _results(case)
    effective = weight.double().masked_fill(~mask, 0)
    ref = F.conv2d(x.double(), effective, None if bias is None else bias.double(), *case.geometry)
    assert_close("y", y, ref, case.dtype)
    ref_dx = torch.nn.grad.conv2d_input(dx.shape, effective, dy.double(), *case.geometry)
    assert_close("dx", dx, ref_dx, case.dtype)


BASE = Case()
KERNELS = [(1, 1), (2, 2), (5, 5), (7, 7), (1, 5), (7, 2)]
DILATED = [((1, 1), (2, 3)), ((2, 2), (2, 1)), ((3, 2), (2, 2))]
HUGE_WINDOW = replace(BASE, batch=1, dilation=(50, 50), padding=(50, 50), size=(104, 104), x="nchw")
# The same of few channels, whose taps of a kernel row are read together.
LONG_ROWS = replace(HUGE_WINDOW, channels=(15, 5), size=(330, 40), kernel=(2, 12), dilation=(300, 1), padding=(0, 0))
TYPES = (F32, BF16, F16)
# Few channels under more taps than a block of the reduction has addresses for: patch embeddings and the like.
PATCHES = [
    ((3, 20), (33, 48), (16, 16), (16, 16), (0, 0)),
    ((3, 17), (31, 40), (14, 13), (14, 13), (2, 1)),
    ((2, 33), (40, 37), (16, 16), (8, 4), (5, 9)),
    ((1, 5), (23, 23), (11, 10), (4, 3), (2, 4)),
    ((15, 9), (21, 35), (7, 16), (7, 16), (0, 3)),
    ((5, 70), (13, 29), (10, 12), (1, 1), (1, 3)),
    ((3, 18), (65, 64), (32, 32), (32, 32), (0, 0)),  # more than one block of a panel
    ((2, 7), (45, 60), (40, 41), (3, 5), (1, 1)),
    ((1, 9), (1, 700), (1, 251), (1, 3), (0, 7)),  # rows longer than a run of pairs
    ((3, 6), (5, 450), (3, 200), (2, 5), (1, 100)),
    ((2, 3), (2, 1700), (2, 1601), (1, 2), (1, 0)),  # and than a panel
]
# Windows side by side that cover the images, whose input gradient is one product.
WINDOWS = [
    ((3, 20), (32, 48), (16, 16)),
    ((3, 17), (35, 26), (7, 13)),
    ((1, 33), (6, 9), (2, 3)),
    ((5, 70), (3, 20), (3, 4)),
    ((17, 9), (4, 10), (1, 5)),
    ((2, 5), (64, 96), (32, 32)),
    ((40, 3), (10, 6), (2, 2)),
]
NAMED = [
    BASE,
    *(replace(BASE, channels=(c, o)) for c, o in [(1, 1), (1, 64), (3, 17), (17, 3), (63, 100), (64, 64), (5, 130)]),
    *(replace(BASE, kernel=k, padding=(k[0] // 2, k[1] // 2)) for k in KERNELS),
    *(replace(BASE, stride=s) for s in [(2, 2), (1, 3), (4, 2), (9, 9)]),
    *(replace(BASE, stride=s, dilation=d, padding=(3, 2)) for s, d in DILATED),
    *(replace(BASE, padding=p) for p in [(0, 0), (5, 4), (0, 7)]),
    *(replace(BASE, kernel=(1, 1), padding=(0, 0), stride=s) for s in [(1, 1), (2, 2)]),
    *(replace(BASE, channels=c, groups=g) for c, g in [((16, 32), 2), ((12, 6), 3), ((64, 64), 8), ((4, 8), 4)]),
    *(replace(BASE, channels=(c, c), groups=c) for c in (2, 16, 33, 100)),
    *(replace(BASE, channels=(c, c), groups=g, stride=s, dtype=d, x=x, of=o)
      for c, g in ((34, 17), (36, 9), (40, 5)) for d in TYPES
      for x, s, o in (("nhwc", (1, 1), "abs"), ("nchw", (2, 1), "bits"), ("wide", (1, 2), "raw"))),
    *(replace(BASE, channels=(33, 33), groups=33, stride=(2, 1), x=x, dtype=d) for x in LAYOUTS for d in TYPES),
    *(replace(BASE, channels=(c, 40), dtype=d, x=x, y=x)
      for c in (3, 17, 32) for d in (BF16, F16) for x in ("nhwc", "nchw")),
    *(replace(BASE, channels=(c, 40), dtype=d, x=x, kernel=(7, 5), stride=(2, 1), padding=(3, 2))
      for c in (1, 3, 6) for d in TYPES for x in ("nhwc", "nchw", "wide")),
    *(replace(BASE, channels=(20, 36), x=x, y=y) for x in LAYOUTS for y in LAYOUTS if y != "expanded"),
    *(replace(BASE, channels=(18, 35), weight=w, scores=s, of=o)
      for w in ("nchw", "nhwc", "strided") for s in ("nchw", "nhwc", "whcn") for o in ("abs", "raw", "bits")),
    *(replace(BASE, channels=(18, 35), kernel=(1, 1), weight_dtype=d, dtype=e) for d in (BF16, F16) for e in (F32, d)),
    *(replace(BASE, ties=True, of=o, keep=k, weight=w)
      for o in ("abs", "raw") for k in (0.2, 0.5, 0.9) for w in ("nchw", "nhwc")),
    *(replace(BASE, keep=k, of=o) for k in (0.0, 1 / 2304, 1.0) for o in ("abs", "raw", "bits")),
    replace(BASE, kernel=(11, 11), padding=(5, 5), size=(12, 12), channels=(17, 9)),
    replace(BASE, kernel=(16, 16), stride=(16, 16), padding=(0, 0), size=(33, 32), channels=(3, 20)),
    *(replace(BASE, channels=c, size=s, kernel=k, stride=t, padding=p, dtype=d, x=x, y=x, weight=w, of=o)
      for c, s, k, t, p in PATCHES for d in TYPES
      for x, w, o in (("nchw", "nchw", "abs"), ("nhwc", "nchw", "raw"), ("nchw", "nhwc", "bits"))),
    *(replace(BASE, channels=c, size=s, kernel=k, stride=k, padding=(0, 0), dtype=d, x=x, y=x, weight=w, scores=r, of=o)
      for c, s, k in WINDOWS for d in TYPES
      for x, w, r, o in (("nchw", "nchw", "nchw", "abs"), ("nhwc", "nchw", "strided", "raw"),
                         ("strided", "nhwc", "nchw", "bits"), ("whcn", "nchw", "nhwc", "bits"))),
    *(replace(BASE, channels=(3, 20), size=(33, 48), kernel=(16, 15), stride=(16, 15), padding=(0, 0), x=x, weight=w,
              scores=s, y=y, of=o, ties=True)
      for x in LAYOUTS for w, s, y in (("nchw", "nhwc", "whcn"), ("whcn", "nchw", "nchw"), ("strided", "nchw", "wide"))
      for o in ("abs", "bits")),
    *(replace(BASE, channels=(6, 40), size=(29, 31), kernel=(9, 12), stride=(5, 12), groups=2, dtype=d, x=x, y=x)
      for d in TYPES for x in ("nchw", "nhwc")),
    replace(BASE, channels=(3, 8), size=(40, 41), kernel=(11, 13), dilation=(2, 1), x="nchw"),
    replace(BASE, channels=(3, 8), size=(40, 41), kernel=(11, 13), dilation=(1, 2), x="nchw"),
    replace(HUGE_WINDOW, channels=(40, 33)),
    replace(HUGE_WINDOW, channels=(40, 40), groups=40),
    *(replace(LONG_ROWS, dtype=d, x=x, y=x) for d in TYPES for x in ("nchw", "nhwc")),
    # Strided depthwise gradients go a few images at a time through all phases: 2, 2 and 1 of these, 102 KB each.
    replace(BASE, batch=5, channels=(64, 64), groups=64, size=(39, 40), stride=(2, 2)),
    replace(BASE, batch=2, channels=(300, 70), size=(7, 7)),
    replace(BASE, batch=2, channels=(300, 70), size=(7, 7), x="nchw", y="nchw"),
    replace(BASE, batch=1, channels=(800, 70), size=(6, 5), dtype=BF16),
    replace(BASE, batch=1, channels=(8, 8), size=(3, 700), x="nchw", y="nchw"),
    replace(BASE, channels=(85, 256), dtype=BF16),  # four panels of an odd depth fill the panel memory to the brim
]  # fmt: skip


@pytest.mark.parametrize("case", NAMED, ids=str)
def test_named(case):
    check(case)


def _draw(r, seed):
    kind = r.choice(["dense", "dense", "grouped", "depthwise"])
    groups = 1 if kind == "dense" else r.choice([2, 3, 5, 16, 17])
    per = (1, 1) if kind == "depthwise" else (r.choice([1, 2, 3, 16, 17, 32, 63]), r.choice([1, 3, 4, 16, 31, 65]))
    if kind == "grouped":
        per = (min(per[0], 17), min(per[1], 17))
    dtype = r.choice([F32, F32, BF16, F16])
    return Case(
        batch=r.choice([1, 2, 3, 5]),
        channels=(groups * per[0], groups * per[1]),
        size=(r.randint(1, 17), r.randint(1, 17)),
        kernel=r.choice([(1, 1), (3, 3), (3, 3), (2, 2), (5, 5), (1, 3), (3, 1), (7, 7), (2, 5)]),
        stride=r.choice([(1, 1), (1, 1), (2, 2), (1, 2), (3, 2)]),
        padding=r.choice([(0, 0), (1, 1), (2, 2), (3, 0), (4, 5)]),
        dilation=r.choice([(1, 1), (1, 1), (2, 2), (1, 3)]),
        groups=groups,
        dtype=dtype,
        weight_dtype=r.choice([F32, F32, dtype]),
        x=r.choice(list(LAYOUTS)),
        weight=r.choice(["nchw", "nchw", "nhwc", "strided", "whcn"]),
        scores=r.choice(["nchw", "nchw", "nhwc", "strided"]),
        y=r.choice(["nhwc", "nchw", "strided", "wide", "whcn"]),
        of=r.choice(["abs", "raw", "bits"]),
        keep=r.choice([0.1, 0.5, 0.9]),
        ties=r.random() < 0.5,
        bias=r.random() < 0.5,
        seed=seed,
    )


def drawn(count):
    r = random.Random(1)
    cases = []
    while len(cases) < count:
        case = _draw(r, len(cases))
        if min(case.out_size) < 1:
            continue
        pixels = min(torch.Size(case.out_size).numel(), torch.Size(case.size).numel())
        outputs = case.batch * min(case.channels) * pixels
        if case.dtype is F32 or outputs >= 64:  # a norm over a handful of cancelling outputs says nothing
            cases.append(case)
    return cases


@pytest.mark.parametrize("case", drawn(150), ids=str)
def test_drawn(case):
    check(case)


@pytest.mark.usefixtures("other_isa")
def test_windows_on_every_instruction_set():
    for case in NAMED:
        if (case.channels, case.size, case.kernel) in WINDOWS:
            check(case)


@pytest.mark.usefixtures("other_isa")
def test_drawn_on_every_instruction_set():
    for case in drawn(150):
        check(case)


LINEAR = [(1, 1, 64), (1, 100, 17), (7, 63, 100), (33, 17, 1), (64, 3000, 70), (130, 64, 65), (600, 33, 20)]
LINEAR += [(7, 1100, 301), (130, 331, 1100)]  # input gradients of several panels and several blocks


@pytest.mark.parametrize(("rows", "inputs", "outputs"), LINEAR)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("layout", ["rows", "columns", "gaps", "expanded"])
def test_linear(rows, inputs, outputs, dtype, layout):
    if layout == "expanded" and dtype is not F32:
        outputs = max(outputs, 16)  # one row of outputs is all that differs: enough of them for a norm
    lay_out = {
        "rows": lambda t: t,
        "columns": lambda t: t.t().contiguous().t(),
        "gaps": lambda t: torch.cat([t, t], 1)[:, : t.shape[1]],
        "expanded": lambda t: t[:1].expand(t.shape),
    }[layout]
    x, dy = (Guarded(lay_out(torch.randn(rows, n).to(dtype))).tensor for n in (inputs, outputs))
    weight, scores = Guarded(torch.randn(outputs, inputs)).tensor, torch.randn(outputs, inputs)
    cut = reference.select([scores], [(scores.numel() + 1) // 2], ["abs"], None)[0]
    effective = weight.double().masked_fill(~reference.mask(scores, cut, "abs"), 0)
    bias = torch.randn(outputs)
    y = native.masked_linear(x, weight, scores, cut, "abs", bias)
    assert_close("y", y, F.linear(x.double(), effective, bias.double()), dtype)
    if dtype is F32 or (rows * inputs >= 16 and layout != "expanded"):
        dx = native.masked_linear_dx(dy, weight, scores, cut, "abs")
        assert_close("dx", dx, dy.double() @ effective, dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("of", ["abs", "raw", "bits"])
def test_what_is_masked_out_contributes_nothing_even_if_it_is_not_a_number(dtype, of):
    case = replace(BASE, dtype=dtype, of=of, channels=(17, 33))
    x, dy, weight, scores, bias = _tensors(case)
    scores, cut, mask = _cut(case, scores)
    clean, poison = weight.masked_fill(~mask, 0), torch.tensor([torch.nan, torch.inf, -torch.inf])
    weight = torch.where(mask, weight, poison[torch.arange(weight.numel()) % 3].view_as(weight))
    assert_same_bits("y", *(_forward(case, x, w, scores, cut, bias) for w in (weight, clean)))
    assert_same_bits("dx", *(_backward_input(case, dy, w, scores, cut) for w in (weight, clean)))


@pytest.mark.parametrize("channels", [1, 3, 17, 33])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("layout", ["nhwc", "nchw", "wide"])
def test_not_a_number_in_one_pixel_stays_within_its_window(channels, dtype, layout):
    """Tails of an odd depth are paired with zero weights; what lies behind the tail must not be multiplied in."""
    case = replace(BASE, channels=(channels, 20), dtype=dtype, size=(9, 9), x=layout, of="raw", keep=1.0)
    x, _, weight, scores, bias = _tensors(case)
    scores, cut, _ = _cut(case, scores)
    x[0, :, 4, 4] = torch.nan
    y = _forward(case, x, weight, scores, cut, bias)
    hit = torch.zeros(y.shape, dtype=torch.bool)
    hit[0, :, 3:6, 3:6] = True
    assert torch.equal(y.isnan(), hit)


@pytest.mark.parametrize("width", [1, 2, 4, 8, 16])
def test_not_a_number_stays_within_its_group(width):
    """Groups that fill a vector together are computed together: no sum may hold another group's channels."""
    case = replace(BASE, channels=(48, 48), groups=48 // width, of="raw", keep=1.0)
    x, dy, weight, scores, bias = _tensors(case)
    scores, cut, _ = _cut(case, scores)
    x[:, width] = dy[:, width] = torch.nan
    for result in (_forward(case, x, weight, scores, cut, bias), _backward_input(case, dy, weight, scores, cut)):
        hit = result.isnan().any(dim=(0, 2, 3))
        assert hit[width : 2 * width].all()
        assert not hit[:width].any() and not hit[2 * width :].any()


def test_nan_scores_are_kept_only_when_everything_is():
    for of in ("abs", "raw"):
        case = replace(BASE, of=of, keep=0.9)
        x, _, weight, scores, bias = _tensors(case)
        scores.view(-1)[::7] = torch.nan
        scores, cut, mask = _cut(case, scores)
        effective = weight.double().masked_fill(~mask, 0)
        y = _forward(case, x, weight, scores, cut, bias)
        assert_close("y", y, F.conv2d(x.double(), effective, bias.double(), *case.geometry), F32)


THREADED = [
    BASE,
    replace(BASE, batch=3, channels=(70, 130), size=(13, 11)),
    replace(BASE, batch=3, channels=(70, 130), size=(13, 11), dtype=BF16, x="nchw", y="nchw"),
    replace(BASE, batch=1, channels=(400, 64), size=(5, 7), dtype=BF16),
    replace(BASE, batch=1, channels=(400, 64), size=(5, 7), stride=(2, 2)),
    replace(BASE, channels=(60, 60), groups=5, dtype=F16),
    replace(BASE, channels=(50, 50), groups=50),
    replace(BASE, channels=(60, 60), groups=15),
    *(replace(BASE, channels=c, size=s, kernel=k, stride=t, padding=p, x="nchw", y="nchw", dtype=d)
      for c, s, k, t, p in PATCHES[::3] for d in (F32, BF16)),
    replace(BASE, batch=1, channels=(1100, 301), size=(1, 7), kernel=(1, 1), padding=(0, 0)),
    replace(BASE, batch=1, channels=(331, 1100), size=(1, 130), kernel=(1, 1), padding=(0, 0), dtype=BF16),
]  # fmt: skip


@pytest.mark.parametrize("case", THREADED, ids=str)
def test_any_number_of_threads_gives_the_same_bits(case):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        _, y, dx = _results(case)
        for threads in (2, 3, 7):
            torch.set_num_threads(threads)
            _, other_y, other_dx = _results(case)
            assert_same_bits("y", other_y, y)
            assert_same_bits("dx", other_dx, dx)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(0, 4, 5, 5), (2, 4, 5, 5)])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_nothing_to_compute(shape, dtype):
    case = replace(BASE, batch=shape[0], channels=(4, 6), size=shape[2:], dtype=dtype)
    x, _, weight, scores, bias = _tensors(case)
    scores, cut, _ = _cut(case, scores)
    y = _forward(case, x, weight, scores, cut, bias)
    assert y.shape == (shape[0], 6, 5, 5)
    assert not y.isnan().any()


@pytest.mark.parametrize("groups", [1, 4])
def test_gradient_of_no_images(groups):
    case = replace(BASE, batch=0, channels=(4, 4), groups=groups, stride=(2, 2))
    _, dy, weight, scores, _ = _tensors(case)
    scores, cut, _ = _cut(case, scores)
    assert _backward_input(case, dy, weight, scores, cut).shape == (0, 4, 8, 8)


@pytest.mark.parametrize("dtype", TYPES)
def test_of_no_channels_nothing_comes(dtype):
    for channels in ((0, 3), (3, 0)):
        case = replace(BASE, channels=channels, dtype=dtype)
        x, dy, weight, scores, bias = _tensors(case)
        cut = torch.tensor([0, -1])
        y = _forward(case, x, weight, scores, cut, bias)
        assert torch.equal(y, bias.to(dtype)[:, None, None].expand_as(y))
        assert not _backward_input(case, dy, weight, scores, cut).count_nonzero()


def test_without_inputs_only_the_bias_is_left():
    bias = torch.randn(5)
    empty, cut = torch.empty(5, 0), torch.tensor([0, -1])
    assert torch.equal(native.masked_linear(torch.empty(3, 0), empty, empty, cut, "abs", bias), bias.expand(3, 5))
    assert torch.equal(native.masked_linear_dx(torch.empty(3, 0), empty.t(), empty.t(), cut, "abs"), torch.zeros(3, 5))
