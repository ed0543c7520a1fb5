"""Products with a weight of one magnitude, its signs one bit each and the magnitude one number: the same bits of every
result as with the float weight."""

import pytest
import torch
from test_planes import CONV, DTYPES, LINEAR, SCORES, selected

from edgepop_kernels import reference
from edgepop_kernels.backend import native
from edgepop_kernels.optim.coefficients import Coefficients
from edgepop_kernels.optim.steady import Update
from edgepop_kernels.testing import inputs

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))

OF = ["abs", "raw", "sigmoid", "bits"]


def one_magnitude(shape, dtype, generator, magnitude=0.37):
    """(the float weight, one number expanded, its signs)."""
    negative, number = torch.rand(shape, generator=generator) < 0.5, torch.tensor(magnitude).to(dtype)
    return torch.where(negative, -number, number), number.expand(shape), reference.pack_mask(negative)


def check(make_plan, x, y_size, shape, dtype, of, kind, generator, layout=torch.Tensor.contiguous, magnitude=0.37):
    """Forward, dx and dS by the signs, with planes and without, against the float weight."""
    weight, number, signs = one_magnitude(shape, dtype, generator, magnitude)
    scores = SCORES[kind](shape, generator=generator)
    cut, planes = selected(scores, "abs" if of == "bits" else of, 0.5)
    dy = torch.randn(y_size, generator=generator).to(x.dtype)
    ranked, cut = (planes[0], None) if of == "bits" else (layout(scores), cut)

    def results(w, planes, *signs):
        plan = make_plan(x, w, ranked, of)
        yield plan.forward(x, w, ranked, cut, None, None, planes, *signs)
        yield plan.dx(dy, w, ranked, cut, None, planes, *signs)
        if of != "bits":
            ds, dw = plan.dw(dy, x, w, ranked, cut, True, "none", None, planes, *signs)
            assert dw is None
            yield ds

    torch.set_num_threads(1)
    expected = list(results(weight, None))
    for given, threads in ((None, 1), (None, 2), (planes, 1), (planes, 2)):
        torch.set_num_threads(threads)
        for by_floats, by_signs in zip(expected, results(number, given, signs), strict=True):
            assert torch.equal(by_floats, by_signs)


def check_linear(case, x_dtype, dtype, of, kind="normal", **options):
    rows, n, m = case
    g = inputs.generator(rows + n + m)
    x = torch.randn(rows, n, generator=g).to(x_dtype)
    check(native.plan_linear, x, (rows, m), (m, n), dtype, of, kind, g, **options)


def check_conv(case, x_dtype, dtype, of, kind="normal", channels_last=False, **options):
    batch, channels, size, out, kernel, stride, padding, dilation, groups = case
    g = inputs.generator(channels + out)
    x = torch.randn(batch, channels, *size, generator=g).to(x_dtype)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    shape = (out, channels // groups, *kernel)
    y_size = torch.nn.functional.conv2d(
        x.float(), torch.zeros(shape), None, stride, padding, dilation, groups
    ).shape  # of a product of zeros
    formats = dict(x_channels_last=channels_last, y_channels_last=channels_last)

    def make_plan(*operands):
        return native.plan_conv2d(*operands, stride, padding, dilation, groups, **formats)

    check(make_plan, x, y_size, shape, dtype, of, kind, g, **options)


@pytest.mark.parametrize("of", OF)
@pytest.mark.parametrize("x_dtype", DTYPES)
@pytest.mark.parametrize("case", [*LINEAR, (3, 4096, 40), (40, 33, 640)], ids=str)
def test_a_linear_layer_is_the_same_by_signs(case, x_dtype, of):
    for dtype in DTYPES:
        check_linear(case, x_dtype, dtype, of)


@pytest.mark.parametrize("of", OF)
@pytest.mark.parametrize("x_dtype", DTYPES)
@pytest.mark.parametrize("case", CONV, ids=str)
def test_a_convolution_is_the_same_by_signs(case, x_dtype, of):
    for dtype, channels_last in zip(DTYPES, (False, True, False), strict=True):
        check_conv(case, x_dtype, dtype, of, channels_last=channels_last)


@pytest.mark.parametrize("kind", ["tied", "with zeros"])
def test_ties_and_zeros_among_the_scores(kind):
    for case in LINEAR:
        check_linear(case, torch.float32, torch.float32, "abs", kind)
    for case in CONV:
        check_conv(case, torch.float32, torch.float32, "abs", kind)


@pytest.mark.parametrize("of", ["abs", "raw", "sigmoid"])
def test_scores_in_any_layout(of):
    """Signs lie in logical order, wherever the scores are."""

    def turned(scores):
        return scores.transpose(0, -1).contiguous().transpose(0, -1)

    for case in LINEAR:
        check_linear(case, torch.float32, torch.float32, of, layout=turned)
    for case in CONV:
        check_conv(case, torch.bfloat16, torch.float32, of, layout=turned)
        check_conv(case, torch.float32, torch.float32, of, channels_last=True, layout=turned)


@pytest.mark.parametrize("magnitude", [0.0, 1e-40, 1.0, 3e38, torch.inf])
def test_any_magnitude(magnitude):
    """Products of infinity are selected, not multiplied: where the mask is not set, nothing of it leaks."""
    weight, number, signs = one_magnitude((17, 33), torch.float32, inputs.generator(1), magnitude)
    for dtype in DTYPES:
        x = torch.eye(33).to(dtype)
        scores = torch.randn(17, 33, generator=inputs.generator(2))
        cut, planes = selected(scores, "abs", 0.5)
        plan = native.plan_linear(x[:1], number, scores, "abs")
        for row in x.split(1):
            y = plan.forward(row, number, scores, cut, None, None, planes, signs)
            expected = native.masked_linear(row, weight, scores, cut, "abs", None)
            assert torch.equal(y.nan_to_num(7), expected.nan_to_num(7))


@pytest.mark.parametrize("threads", [1, 2])
def test_an_optimizer_steps_on_the_gradient_by_signs(threads):
    torch.set_num_threads(threads)
    step = Coefficients("sgd", (0.05, 0.9, 0.7, 1e-3, 1.0, 1.0, 0.0))
    for batch, channels, size, out, kernel, stride, padding, dilation, groups in CONV:
        g = inputs.generator(out)
        weight, number, signs = one_magnitude((out, channels // groups, *kernel), torch.float32, g)
        x, scores = torch.randn(batch, channels, *size, generator=g), torch.randn(weight.shape, generator=g)
        geometry = stride, padding, dilation, groups
        dy = torch.randn_like(torch.nn.functional.conv2d(x, weight, None, *geometry))
        for of in ("abs", "raw", "sigmoid"):
            cut, _ = selected(scores, of, 0.5)
            spent = []
            for w, *by in ((weight,), (number, signs)):
                s, buffer = scores.clone(), torch.ones_like(scores)
                update = Update(s, None, (buffer,), step)
                assert native.masked_conv2d_update(dy, x, w, s, cut, of, update, "none", *geometry, *by) is None
                spent.append((s, buffer))
            for by_floats, by_signs in zip(*spent, strict=True):
                assert torch.equal(by_floats, by_signs)
            assert not torch.equal(spent[0][0], scores)


def test_the_functions_of_the_backend_take_signs_last():
    g = inputs.generator(0)
    weight, number, signs = one_magnitude((6, 3, 3, 2), torch.float32, g)
    scores, x = torch.randn(weight.shape, generator=g), torch.randn(2, 6, 9, 7, generator=g)
    cut, _ = selected(scores, "abs", 0.3)
    geometry = (1, 2), (1, 0), (1, 1), 2
    y = native.masked_conv2d(x, number, scores, cut, "abs", None, *geometry, False, signs)
    assert torch.equal(y, native.masked_conv2d(x, weight, scores, cut, "abs", None, *geometry, False))
    dx = native.masked_conv2d_dx(y, number, scores, cut, "abs", x.shape, *geometry, False, signs)
    assert torch.equal(dx, native.masked_conv2d_dx(y, weight, scores, cut, "abs", x.shape, *geometry, False))
    ds, dw = native.masked_conv2d_dw(y, x, number, scores, cut, "abs", True, "none", *geometry, signs)
    expected, _ = native.masked_conv2d_dw(y, x, weight, scores, cut, "abs", True, "none", *geometry)
    assert torch.equal(ds, expected) and dw.numel() == 0

    flat = scores.flatten(1), cut, "abs"
    weight, number, x = weight.flatten(1), number.flatten(1), torch.randn(2, 3, 18, generator=g)
    bias = torch.randn(6, generator=g)
    y = native.masked_linear(x, number, *flat, bias, signs)
    assert torch.equal(y, native.masked_linear(x, weight, *flat, bias))
    assert torch.equal(native.masked_linear_dx(y, number, *flat, signs), native.masked_linear_dx(y, weight, *flat))
    ds, _ = native.masked_linear_dw(y, x, number, *flat, True, "none", signs)
    assert torch.equal(ds, native.masked_linear_dw(y, x, weight, *flat, True, "none")[0])
    update = Update(scores, None, (), Coefficients("sgd", (0.05, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0)))
    before = scores.flatten(1).clone()
    native.masked_linear_update(y, x, number, *flat, update, "none", signs)
    assert torch.allclose(scores.flatten(1), before - 0.05 * ds, atol=1e-6)


def test_the_module_refuses_what_it_has_no_kernel_for():
    """Products by signs read bits alone, and such a weight has no gradient; the plans keep to both."""
    t = torch.zeros(64)
    a = t.data_ptr(), 0, (0, 1, 0, 8)
    geometry = (1, 1, 8, 1, 8, 8, 1, 8, 1, 1, 1, 1, 0, 0, 1, 1)
    scores, weight = (0, t.data_ptr(), (8, 1, 0, 0), t.data_ptr(), 0), (*a, t.data_ptr())
    with pytest.raises(ValueError, match="mask: expected packed bits beside a weight of signs, got scores"):
        native.compiled.kernels.conv_forward(geometry, a, weight, scores, 0, a, 1)
    with pytest.raises(ValueError, match="mask: expected packed bits beside a weight of signs, got scores"):
        native.compiled.kernels.conv_backward_input(geometry, a, weight, scores, a, 1)
    with pytest.raises(ValueError, match="weight_grad: expected none beside a weight of signs"):
        native.compiled.kernels.conv_backward_weight(geometry, a, a, weight, scores, 0, a, 1, a, 1)


@pytest.mark.slow
@pytest.mark.usefixtures("other_isa")
def test_every_instruction_set_reads_signs():
    for x_dtype, dtype in zip(DTYPES, (torch.float32, torch.float32, torch.bfloat16), strict=True):
        for of in OF:
            for shape in [*LINEAR, (3, 4096, 40), (40, 33, 640)]:
                check_linear(shape, x_dtype, dtype, of)
            for case in CONV:
                check_conv(case, x_dtype, dtype, of)
