"""Triton's masked products and weight gradients against float64 autograd: compiled where there is a CUDA device,
under Triton's interpreter where there is none."""

import dataclasses
import itertools

import pytest
import torch
import torch.nn.functional as F

import edgepop_kernels as ek
from edgepop_kernels import reference
from edgepop_kernels.testing import inputs, oracle
from edgepop_kernels.testing.guard import guarded, guarded_allocations
from edgepop_kernels.testing.tolerances import assert_close, assert_same_bits

pytest.importorskip("triton", reason="triton is not installed")

from edgepop_kernels.backend import triton as backend
from edgepop_kernels.backend.triton import product
from edgepop_kernels.tuning import Tile

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []

SMALL = Tile(m=16, n=16, k=16, splits=3, band=2)  # several tiles, bands and splits in every direction of small layers


def small_tiles(monkeypatch, tile=SMALL):
    monkeypatch.setattr(product, "tile", lambda problem, device: tile)


def drawn(kind, count, seed):
    """Cases of the shared generator, but for a channels_last weight of a linear layer, which torch has not."""
    cases = (inputs.linear_cases if kind == "linear" else inputs.conv_cases)(2 * count, seed)
    return list(itertools.islice((c for c in cases if not _impossible(kind, c)), count))


def _impossible(kind, case):
    return kind == "linear" and case.weight_layout == "channels_last"


def layer_of(case):
    if isinstance(case, inputs.LinearCase):
        return ek.masked_linear, oracle.linear

    def conv2d(x, weight, scores, rule, bias):
        options = dict(case.options)
        if case.padding_mode != "zeros":
            (ph, pw), options["padding"] = options["padding"], 0
            x = F.pad(x, (pw, pw, ph, ph), mode=case.padding_mode)
        return ek.masked_conv2d(x, weight, scores, rule, bias, **options)

    return conv2d, oracle.conv2d(**case.options, padding_mode=case.padding_mode)


def check(case):
    ours, definition = layer_of(case)
    named = dict(zip(("x", "weight", "scores", "bias", "dy"), case.tensors(), strict=True))
    expected = oracle.answer(
        definition, named["x"], named["weight"].contiguous(), named["scores"], case.rule, named["bias"], named["dy"]
    )
    present = {name: t.to(DEVICE) for name, t in named.items() if t is not None}
    with guarded(**present) as twins, guarded_allocations(), ek.use_backend("triton"):
        got = dict(zip(present, twins, strict=True))
        leaves = {n: t.requires_grad_() for n, t in got.items() if n != "dy" and t.is_floating_point()}
        y = ours(got["x"], got["weight"], got.get("scores"), case.rule, got.get("bias"))
        y.backward(got["dy"])
    assert_close("y", y, expected.y, case.dtype)
    for name, leaf in leaves.items():
        assert_close(f"d{name}", leaf.grad, getattr(expected, f"d{name}"), case.dtype)


@pytest.mark.parametrize("case", drawn("linear", 10, seed=3), ids=str)
def test_linear(case):
    check(case)


@pytest.mark.parametrize("case", drawn("linear", 8, seed=4), ids=str)
def test_linear_in_many_tiles(case, monkeypatch):
    small_tiles(monkeypatch)
    check(
        dataclasses.replace(
            case,
            rows=(*case.rows[:-1], min(case.rows[-1], 37)),
            in_features=min(case.in_features, 70),
            out_features=min(case.out_features, 40),
        )
    )


@pytest.mark.parametrize("case", drawn("conv", 10, seed=5), ids=str)
def test_conv2d(case):
    check(dataclasses.replace(case, batch=min(case.batch, 2)))


@pytest.mark.parametrize("case", drawn("conv", 6, seed=6), ids=str)
def test_conv2d_in_many_tiles(case, monkeypatch):
    small_tiles(monkeypatch)
    check(dataclasses.replace(case, batch=1, size=tuple(min(n, 7) for n in case.size)))


STRIDED = [
    inputs.ConvCase(size=(9, 7), kernel=(1, 1), stride=(2, 2)),  # three of four phases without a tap
    inputs.ConvCase(size=(10, 11), kernel=(2, 3), stride=(3, 2), padding=(1, 1)),
    inputs.ConvCase(size=(12, 13), kernel=(3, 3), stride=(2, 3), dilation=(2, 2), padding=(2, 1)),
    inputs.ConvCase(size=(13, 12), kernel=(4, 3), stride=(4, 3), dilation=(3, 2)),
    inputs.ConvCase(size=(1, 5), kernel=(1, 3), stride=(5, 1), padding=(0, 2)),
    inputs.ConvCase(size=(8, 8), in_channels=20, out_channels=18, stride=(2, 2), padding=(1, 1), groups=2),
]


@pytest.mark.parametrize("case", STRIDED, ids=str)
def test_every_stride_phase(case):
    check(case)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rule", [ek.TopK(0.3), ek.Frozen()], ids=["TopK", "Frozen"])
def test_half_precision_weights(dtype, rule):
    x, weight = torch.randn(33, 20, dtype=dtype), torch.randn(18, 20, dtype=dtype)
    scores = torch.randn(18, 20)
    scores = scores > 0 if isinstance(rule, ek.Frozen) else scores
    dy = torch.randn(33, 18, dtype=dtype)
    expected = oracle.answer(oracle.linear, x, weight, scores, rule, None, dy)
    x, weight = x.to(DEVICE).requires_grad_(), weight.to(DEVICE).requires_grad_()
    with ek.use_backend("triton"):
        y = ek.masked_linear(x, weight, scores.to(DEVICE), rule)
        y.backward(dy.to(DEVICE))
    for name, out, ref in (
        ("y", y, expected.y),
        ("dx", x.grad, expected.dx),
        ("dweight", weight.grad, expected.dweight),
    ):
        assert_close(name, out, ref, dtype)
        assert out.dtype == dtype


def test_a_stray_store_beside_an_output_is_noticed():
    def store(count):
        torch.ones(3).new_empty(3, 4).as_strided((count,), (1,)).zero_()

    with guarded_allocations():
        store(12)
    with pytest.raises(AssertionError, match=r"new_empty allocated: 1 elements .* at \+12"), guarded_allocations():
        store(13)


@pytest.mark.parametrize("splits", [1, 3])
def test_nothing_is_written_outside_the_output(splits):
    weight, scores = torch.randn(2, 21, 19, device=DEVICE)
    cut = reference.select([scores], [200], ["abs"], None)[0]
    src = torch.randn(1, 19, 1, 23, device=DEVICE)
    index = (19, 1, 0, 0, 0, 0)
    view = (weight[:, :, None, None], 0, scores[:, :, None, None], 0, index, index, cut, "abs", False)
    image = torch.zeros(1, 25, 2, 23, device=DEVICE)[:, :21, :1]  # gaps between the strides, also canaries
    with pytest.MonkeyPatch.context() as patch, guarded(out=image) as (out,):
        small_tiles(patch, dataclasses.replace(SMALL, splits=splits))
        product.masked_product(src, product.Filters(*view), None, out, product.POINT, product.POINT, 1, "ieee")
    effective = weight.double() * reference.mask(scores, cut, "abs")
    assert_close("out", out[0, :, 0], effective @ src[0, :, 0].double(), torch.float32)


@pytest.fixture
def rows_apart(monkeypatch):
    """``rows_apart(t)``: the same three rows, 2^30 elements apart. An offset of 32 bits would lead from the last one
    to NaN before the first; memory between them is never touched."""
    if DEVICE == "cuda" and torch.cuda.mem_get_info()[0] < 20 * 2**30:
        pytest.skip("two images of 8 GiB do not fit this GPU")
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)

    def apart(t):
        memory = torch.empty(2**32 + t.shape[1], dtype=t.dtype, device=t.device)
        memory[: t.shape[1]] = torch.nan
        return memory.as_strided(t.shape, (2**30, 1), 2**31).copy_(t)

    return apart


def test_rows_of_a_linear_layer_beyond_32_bits(rows_apart):
    x, dy = torch.randn(3, 32, device=DEVICE).half(), torch.randn(3, 48, device=DEVICE).half()
    weight, scores = torch.randn(2, 48, 32, device=DEVICE).unbind()
    mask = (weight, scores, reference.select([scores], [700], ["abs"], None)[0], "abs")
    calls = [
        (backend.masked_linear, (x,), (*mask, None)),
        (backend.masked_linear_dx, (dy,), mask),
        (backend.masked_linear_dw, (dy, x), (*mask, True, "kept")),
    ]
    for op, images, arguments in calls:
        near, far = op(*images, *arguments), op(*map(rows_apart, images), *arguments)
        if isinstance(near, torch.Tensor):
            near, far = (near,), (far,)
        for a, b in zip(near, far, strict=True):
            assert_same_bits(op.__name__, b, a)


def test_channels_of_a_linear_layer_beyond_32_bits(rows_apart):
    """A transposed view, whose rows are copied together."""
    x, weight = torch.randn(5, 3, device=DEVICE).half(), torch.randn(17, 3, device=DEVICE)
    mask = (weight, weight, reference.select([weight], [30], ["abs"], None)[0], "abs")
    far = rows_apart(x.t().contiguous()).t()
    assert_same_bits("y", backend.masked_linear(far, *mask, None), backend.masked_linear(x, *mask, None))


def test_more_pixels_than_positions_have_bits_for():
    x = torch.empty(1, 1, device="meta").expand(2**31 - 1, 1)
    weight = torch.empty(1, 1, device="meta")
    mask = (weight, weight, None, "abs")
    for op, images, gradients in (
        (backend.masked_linear_dx, (x,), ()),
        (backend.masked_linear_dw, (x, x), (True, "none")),
    ):
        with pytest.raises(ValueError, match="at most 1879048192 rows or output pixels in a batch, got 2147483647"):
            op(*images, *mask, *gradients)


def test_offsets_that_take_more_than_32_bits():
    weight = torch.empty(70_000, 70_000, device="meta")
    with pytest.raises(ValueError, match=r"weight: expected offsets .* below 2\*\*31, got 4899930000"):
        backend.masked_linear_dx(torch.empty(3, 70_000, device="meta"), weight, weight, None, "abs")
    geometry = (1, 1), (0, 0), (1, 1)
    for channels, groups in ((16, 1), (16, 16)):
        x = torch.empty(1, channels, 16_384, 16_384, device="meta")
        weight = torch.empty(channels, channels // groups, 1, 1, device="meta")
        mask = (weight, weight, None, "abs")
        with pytest.raises(ValueError, match=r"x: expected offsets within one image below 2\*\*31, got 4294967295"):
            backend.masked_conv2d(x, *mask, None, *geometry, groups, True)
        with pytest.raises(ValueError, match=r"x: expected offsets within one image below 2\*\*31, got 4294967295"):
            backend.masked_conv2d_dw(x, x, *mask, True, "none", *geometry, groups)


@pytest.mark.parametrize("values", inputs.SCORES)
@pytest.mark.parametrize("of", ["abs", "raw"])
def test_mask_at_every_cut(values, of):
    """An identity for an input: the product is the effective weight. Every tie, sign of zero, and NaN is settled."""
    scores = inputs.scores(values, (6, 18), 0).to(DEVICE)
    weight, eye = torch.ones_like(scores), torch.eye(18, device=DEVICE)
    for kept in (1, 2, 17, 54, 107, 108):
        cut = reference.select([scores], [kept], [of], None)[0]
        y = backend.masked_linear(eye, weight, scores, cut, of, None)
        assert_same_bits(f"kept {kept}", y.t().bool(), reference.mask(scores, cut, of))
    nothing = torch.tensor(reference.NOTHING, device=DEVICE)
    assert not backend.masked_linear(eye, weight, scores, nothing, of, None).any()


def test_same_bits_on_every_run(monkeypatch):
    small_tiles(monkeypatch)
    x, dy = torch.randn(2, 2, 6, 5, 5, device=DEVICE).unbind()
    weight, scores = torch.randn(2, 6, 6, 3, 3, device=DEVICE).unbind()
    cut = reference.select([scores], [100], ["abs"], None)[0]
    geometry = ((1, 1), (1, 1), (1, 1), 1)
    runs = [
        (
            backend.masked_conv2d(x, weight, scores, cut, "abs", None, *geometry, False),
            *backend.masked_conv2d_dw(dy, x, weight, scores, cut, "abs", True, "kept", *geometry),
        )
        for _ in range(2)
    ]
    for first, second in zip(*runs, strict=True):
        assert_same_bits("second run", second, first)


@pytest.mark.parametrize("rows", [0, 1])
def test_batches_of_none_and_of_one(rows):
    case = inputs.LinearCase(rows=(rows,), in_features=20, out_features=17)
    check(case)
    check(inputs.ConvCase(batch=rows, in_channels=17, size=(5, 5)))


def test_an_explicit_choice_is_refused_what_it_cannot_compute():
    with ek.use_backend("triton"), pytest.raises(NotImplementedError, match="float64"):
        ek.masked_linear(torch.ones(2, 3).double(), torch.ones(4, 3), torch.ones(4, 3), ek.TopK(0.5))
    assert ek.backends()["triton"] is None


def test_opcheck():
    x, dy, weight, scores = (torch.randn(n, 4, device=DEVICE) for n in (3, 6, 4, 4))
    cut = reference.select([scores], [7], ["abs"], None)[0]
    mask = (weight, scores, cut, "abs")
    with ek.use_backend("triton"):
        torch.library.opcheck(torch.ops.edgepop.masked_linear.default, (x, *mask, None))
        torch.library.opcheck(torch.ops.edgepop.masked_linear_dx.default, (dy, *mask))
        torch.library.opcheck(
            torch.ops.edgepop.masked_linear_dw.default, (dy, torch.randn_like(dy), *mask, True, "all")
        )
        torch.library.opcheck(torch.ops.edgepop.select.default, ([scores], [7], ["abs"], cut[None]))
