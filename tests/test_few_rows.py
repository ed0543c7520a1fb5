"""Native products of a linear layer with few rows or few columns, which pack no panel, against float64."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from edgepop_kernels import reference
from edgepop_kernels.backend import native
from edgepop_kernels.testing.guard import Guarded, guarded_allocations
from edgepop_kernels.testing.tolerances import assert_close, assert_same_bits

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
# Rows, inputs, outputs: odd ones, and more channels (4099) and columns (1030) than are held at once. From 9 rows on the
# weight is packed, but where there are no more than two columns, and sixteen channels.
SHAPES = [(1, 1, 1), (1, 3, 17), (2, 63, 100), (3, 100, 63), (5, 257, 33), (7, 17, 1030), (8, 4099, 19), (9, 31, 37)]
SHAPES += [(33, 32, 1), (1031, 17, 2), (9, 4101, 2), (10, 300, 1), (17, 2, 37), (12, 1, 100), (40, 15, 1)]
LAYOUTS = {
    "rows": lambda t: t,
    "columns": lambda t: t.t().contiguous().t(),
    "gaps": lambda t: torch.cat([t, t], 1)[:, : t.shape[1]],
    "expanded": lambda t: t[:1].expand(t.shape),
}


def _mask(shape, of, ties):
    """(scores or bits, cut, the bool mask), the cut's index somewhere within a run where there are ties."""
    scores = torch.randn(shape)
    scores = scores.round() if ties else scores
    ranked = "abs" if of == "bits" else of
    cut = reference.select([scores], [(scores.numel() + 1) // 2], [ranked], None)[0]
    mask = reference.mask(scores, cut, ranked)
    return (reference.pack_mask(mask), None, mask) if of == "bits" else (scores, cut, mask)


def check(shape, dtype, weight_dtype, layout, of, ties, transposed=False, seed=0):
    torch.manual_seed(seed)
    rows, inputs, outputs = shape
    x, dy = (Guarded(LAYOUTS[layout](torch.randn(rows, n).to(dtype))).tensor for n in (inputs, outputs))
    weight = (torch.randn(outputs, inputs) * inputs**-0.5).to(weight_dtype)
    scores, cut, mask = _mask((outputs, inputs), of, ties)
    if transposed:
        weight = weight.t().contiguous().t()
    weight, bias = Guarded(weight).tensor, torch.randn(outputs)
    effective = weight.double().masked_fill(~mask, 0)
    with guarded_allocations():
        y = native.masked_linear(x, weight, scores, cut, of, bias)
        dx = native.masked_linear_dx(dy, weight, scores, cut, of)
    assert_close("y", y, F.linear(x.double(), effective, bias.double()), dtype)
    if dtype is F32 or inputs * rows >= 64:  # a norm over a handful of cancelling outputs says nothing
        assert_close("dx", dx, dy.double() @ effective, dtype)


def check_all():
    for shape, of, (dtype, weight_dtype) in itertools.product(
        SHAPES, ("abs", "raw", "bits"), ((F32, F32), (BF16, F32), (BF16, BF16), (F16, F32), (F16, F16))
    ):
        if dtype is F32 or shape[0] * shape[2] >= 64:
            for ties in (False, True):
                check(shape, dtype, weight_dtype, "rows", of, ties)


@pytest.mark.usefixtures("other_isa")
def test_on_every_instruction_set():
    check_all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("of", ["abs", "bits"])
def test_any_layout(layout, transposed, of):
    for shape in SHAPES:
        check(shape, F32, F32, layout, of, ties=True, transposed=transposed)
        if shape[0] > 1 and layout != "expanded":
            check(shape, BF16, F32, layout, of, ties=True, transposed=transposed)


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize("of", ["abs", "raw", "bits"])
def test_what_is_masked_out_contributes_nothing_even_if_it_is_not_a_number(dtype, of):
    torch.manual_seed(0)
    x, dy, weight = torch.randn(5, 301).to(dtype), torch.randn(5, 67).to(dtype), torch.randn(67, 301)
    scores, cut, mask = _mask(weight.shape, of, ties=False)
    poison = torch.tensor([torch.nan, torch.inf, -torch.inf])[torch.arange(weight.numel()) % 3].view_as(weight)
    poisoned, clean = torch.where(mask, weight, poison), weight.masked_fill(~mask, 0)
    for name, product, operand in (("y", native.masked_linear, x), ("dx", native.masked_linear_dx, dy)):
        bias = (None,) if name == "y" else ()
        assert_same_bits(name, *(product(operand, w, scores, cut, of, *bias) for w in (poisoned, clean)))


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_not_a_number_stays_in_its_row(dtype):
    x, weight, dy = torch.randn(4, 33).to(dtype), torch.randn(37, 33), torch.randn(4, 37).to(dtype)
    x[2, 32] = dy[1, 36] = torch.nan  # behind the last whole vector, and in the last channel
    bits = reference.pack_mask(torch.ones(37, 33, dtype=torch.bool))
    y, dx = (
        native.masked_linear(x, weight, bits, None, "bits", None),
        native.masked_linear_dx(dy, weight, bits, None, "bits"),
    )
    assert y.isnan().all(1).tolist() == y.isnan().any(1).tolist() == [False, False, True, False]
    assert dx.isnan().all(1).tolist() == dx.isnan().any(1).tolist() == [False, True, False, False]


@pytest.mark.parametrize("shape", [(3, 701, 613), (2051, 130, 1)])
@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("of", ["abs", "bits"])
def test_the_same_bits_for_any_number_of_threads(shape, dtype, of):
    """Of so many products that several threads share them, in numbers that are no multiple of a cache line."""
    rows, inputs, outputs = shape
    x, dy = torch.randn(rows, inputs).to(dtype), torch.randn(rows, outputs).to(dtype)
    weight = torch.randn(outputs, inputs)
    scores, cut, _ = _mask(weight.shape, of, ties=True)
    found, threads = [], torch.get_num_threads()
    try:
        for n in (1, 2, 3, 7):
            torch.set_num_threads(n)
            y = native.masked_linear(x, weight, scores, cut, of, None)
            found.append((y, native.masked_linear_dx(dy, weight, scores, cut, of)))
    finally:
        torch.set_num_threads(threads)
    for y, dx in found[1:]:
        assert_same_bits("y", y, found[0][0])
        assert_same_bits("dx", dx, found[0][1])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_the_same_bits_however_the_mask_is_given(shape, dtype):
    """By scores in logical order or in another, by bits."""
    rows, inputs, outputs = shape
    x, dy = torch.randn(rows, inputs).to(dtype), torch.randn(rows, outputs).to(dtype)
    weight = torch.randn(outputs, inputs)
    scores, cut, mask = _mask(weight.shape, "abs", ties=True)
    found = []
    for given in (
        (scores, cut, "abs"),
        (scores.t().contiguous().t(), cut, "abs"),
        (reference.pack_mask(mask), None, "bits"),
    ):
        found.append((native.masked_linear(x, weight, *given, None), native.masked_linear_dx(dy, weight, *given)))
    for y, dx in found[1:]:
        assert_same_bits("y", y, found[0][0])
        assert_same_bits("dx", dx, found[0][1])
