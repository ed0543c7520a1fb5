"""Calls that are prepared once: what decides a plan is in its key, and what torch must see goes by ops."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import edgepop_kernels as ek
from edgepop_kernels.backend import prepared
from edgepop_kernels.functional import calls
from edgepop_kernels.testing.oracle import mask as oracle_mask
from edgepop_kernels.testing.tolerances import assert_close

RULE = ek.TopK(0.5)


def operands(rows=5, inputs=17, outputs=3):
    return torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(outputs, inputs)


def expected(x, weight, scores, rule=RULE):
    return F.linear(x.double(), weight.double() * oracle_mask(scores, rule))


def variants():
    """Calls that differ in one thing each, and whose plans must not be each other's."""
    x, weight, scores = operands(6, 16, 4)
    yield "as it is", (x, weight, scores)
    yield "x of other strides", (x.t().contiguous().t(), weight, scores)
    yield "x of gaps", (torch.randn(6, 32)[:, ::2], weight, scores)
    yield "fewer rows", (x[:5].clone(), weight, scores)
    yield "more dimensions", (x.view(2, 3, 16), weight, scores)
    yield "one dimension", (x[0].clone(), weight, scores)
    yield "a strided batch", (torch.randn(3, 2, 16).transpose(0, 1), weight, scores)
    yield "weight of other strides", (x, weight.t().contiguous().t(), scores)
    yield "scores of other strides", (x, weight, scores.t().contiguous().t())
    yield "no rows", (x[:0], weight, scores)
    yield "an image", (torch.randn(2, 3, 5, 16), weight, scores)
    yield "channels_last", (torch.randn(2, 5, 16, 16).contiguous(memory_format=torch.channels_last), weight, scores)


@pytest.mark.parametrize("again", range(2))
def test_calls_that_differ_in_layout_have_plans_of_their_own(again):
    for name, (x, weight, scores) in variants():
        leaves = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in (x, weight, scores)]
        y = ek.masked_linear(*leaves, RULE)
        if x.numel() == 0:
            assert y.shape == (0, 4)
            continue
        assert_close(name, y, expected(x, weight, scores), torch.float32)
        g = torch.randn_like(y)
        dx, _, ds = torch.autograd.grad(y, leaves, g)
        kept = oracle_mask(scores, RULE)
        assert_close(name, dx, g.double() @ (weight.double() * kept), torch.float32)
        dense = g.double().reshape(-1, 4).t() @ x.double().reshape(-1, 16)
        assert_close(name, ds, dense * weight.double() * scores.sign(), torch.float32)


def test_the_backend_and_the_rule_belong_to_the_key():
    x, weight, scores = operands()
    for rule in (ek.TopK(0.5), ek.TopK(0.2), ek.TopK(0.5, "raw"), ek.Threshold(0.3, "abs"), ek.Percentile(0.5)):
        native = ek.masked_linear(x, weight, scores, rule)
        with ek.use_backend("reference"):
            assert_close("y", ek.masked_linear(x, weight, scores, rule), native.double(), torch.float32)


def test_sizes_that_are_no_numbers_are_refused_after_those_that_are():
    x, weight, scores = torch.randn(1, 2, 5, 5), torch.randn(3, 2, 3, 3), torch.randn(3, 2, 3, 3)
    y = ek.masked_conv2d(x, weight, scores, RULE, None, 1, 1)
    assert torch.equal(ek.masked_conv2d(x, weight, scores, RULE, None, [1, 1], [1, 1]), y)
    for wrong in (True, 1.0):
        with pytest.raises(TypeError, match="stride: expected an int"):
            ek.masked_conv2d(x, weight, scores, RULE, None, wrong, 1)
        with pytest.raises(TypeError, match="groups: expected an int"):
            ek.masked_conv2d(x, weight, scores, RULE, None, 1, 1, 1, wrong)


@pytest.mark.parametrize("padding", [0, 1, (2, 1), "same", "valid"])
@pytest.mark.parametrize("kernel", [(3, 3), (2, 3)])
def test_images_without_a_batch_and_padding_in_words(padding, kernel):
    weight, scores = torch.randn(4, 3, *kernel), torch.randn(4, 3, *kernel)
    for shape in ((2, 3, 7, 6), (3, 7, 6)):
        x = torch.randn(shape)
        want = F.conv2d(x.double(), weight.double() * oracle_mask(scores, RULE), padding=padding)
        for _ in range(2):
            assert_close("y", ek.masked_conv2d(x, weight, scores, RULE, None, 1, padding), want, torch.float32)


def test_a_backward_that_torch_must_see_goes_by_ops():
    x, weight, scores = (t.requires_grad_() for t in operands())
    y = ek.masked_linear(x, weight, scores, RULE)
    with FlopCounterMode(display=False) as counter:
        grads = torch.autograd.grad(y.sum(), (x, weight, scores))
    assert counter.get_total_flops() == 2 * 2 * x.shape[0] * weight.numel()  # dx, and dS with dW
    again = torch.autograd.grad(ek.masked_linear(x, weight, scores, RULE).sum(), (x, weight, scores))
    assert all(map(torch.equal, grads, again))


def test_a_graph_of_the_backward_is_made_and_not_differentiated():
    x, weight, scores = (t.requires_grad_() for t in operands())
    (dx,) = torch.autograd.grad(ek.masked_linear(x, weight, scores, RULE).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        dx.sum().backward()


def test_what_is_prepared_does_not_grow_without_end(monkeypatch):
    monkeypatch.setattr(calls, "_MOST_PREPARED", 8)
    prepared.clear()
    _, weight, scores = operands()
    for rows in range(1, 30):
        ek.masked_linear(torch.randn(rows, 17), weight, scores, RULE)
    assert 0 < len(prepared) <= 8


def test_nan_inputs_and_a_plan_that_has_seen_none():
    x, weight, scores = operands()
    ek.masked_linear(x, weight, scores, RULE)
    x[2, 3] = math.nan
    y = ek.masked_linear(x, weight, scores, RULE)
    assert y[2].isnan().any() and not y[[0, 1, 3, 4]].isnan().any()
