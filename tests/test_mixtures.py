"""Weights under several masks at once: the native kernels against the look-ups of torch that define them."""

import pytest
import torch
from kernels import without_native

import edgepop_kernels as ek
from edgepop_kernels import mixing
from edgepop_kernels.backend import native

pytestmark = without_native


def drawn(shape, tasks):
    weight, slopes = torch.randn(shape), torch.randn(shape)
    masks = [torch.rand(shape) > 0.5 for _ in range(tasks)]
    return weight, slopes, masks, mixing.codes_of(torch.stack([ek.pack_mask(m) for m in masks])), torch.rand(tasks)


SHAPES = [(1,), (3,), (17, 1), (63,), (100,), (511,), (512,), (513,), (3, 5, 7), (16384,), (131, 129), (300, 784)]


@pytest.mark.parametrize("tasks", [1, 3, 8, 9, 25])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_mixtures_have_the_bits_of_the_look_ups(shape, tasks):
    weight, _, _, codes, alphas = drawn(shape, tasks)
    assert torch.equal(native.superposed(weight, codes, alphas), mixing.superposed(weight, codes, alphas))


@pytest.mark.parametrize("tasks", [1, 3, 8, 9, 25])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shares_are_the_sums_over_each_mask(shape, tasks):
    weight, slopes, masks, codes, _ = drawn(shape, tasks)
    found = native.shares_of(slopes, weight, codes, tasks)
    products = (slopes * weight).double()
    expected = torch.stack([products[m].sum() for m in masks])
    assert found.dtype is torch.float64 and found.shape == (tasks,)
    assert (found - expected).abs().max() <= 1e-12 * products.abs().sum()


def test_without_weights_there_is_nothing_to_sum():
    weight, slopes, _, codes, alphas = drawn((0, 3), 2)
    assert native.superposed(weight, codes, alphas).shape == (0, 3)
    assert native.shares_of(slopes, weight, codes, 2).tolist() == [0.0, 0.0]


def test_strides_are_no_matter():
    weight, slopes, _, codes, alphas = drawn((12, 5, 3, 3), 5)
    for w in (
        weight.contiguous(memory_format=torch.channels_last),
        weight.transpose(0, 1).contiguous().transpose(0, 1),
    ):
        assert torch.equal(native.superposed(w, codes, alphas), native.superposed(weight, codes, alphas))
        assert torch.equal(native.shares_of(slopes, w, codes, 5), native.shares_of(slopes, weight, codes, 5))
    expanded = torch.full((1,), 0.5).expand(weight.shape)
    assert torch.equal(native.superposed(expanded, codes, alphas), mixing.superposed(expanded, codes, alphas))


def test_any_number_of_threads_gives_the_same_bits():
    weight, slopes, _, codes, alphas = drawn((700, 333), 11)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            found.append((native.superposed(weight, codes, alphas), native.shares_of(slopes, weight, codes, 11)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_mixed_weight_is_the_same_by_the_native_kernels_and_without(dtype):
    weight, slopes, masks, _, alphas = drawn((31, 77), 10)
    weight, bits = weight.to(dtype), torch.stack([ek.pack_mask(m) for m in masks])
    results = []
    for backend in ("native" if dtype is torch.float32 else "auto", "reference"):
        with ek.use_backend(backend):
            w, a = weight.clone().requires_grad_(), alphas.clone().requires_grad_()
            mixed = ek.mixed_weight(w, bits, a)
            results.append((mixed.detach(), *torch.autograd.grad(mixed, (w, a), slopes.to(dtype))))
    (mixed, dw, da), (mixed_reference, dw_reference, da_reference) = results
    assert torch.equal(mixed, mixed_reference) and torch.equal(dw, dw_reference)
    torch.testing.assert_close(da, da_reference)


def test_the_native_kernels_are_taken_but_in_compiled_calls(monkeypatch, compiled):
    calls = []
    own = native.superposed
    monkeypatch.setattr(native, "superposed", lambda *operands: calls.append(1) or own(*operands))
    weight, _, masks, _, alphas = drawn((8, 9), 3)
    bits = torch.stack([ek.pack_mask(m) for m in masks])
    expected = ek.mixed_weight(weight, bits, alphas)
    assert len(calls) == 1
    compile_whole, _ = compiled
    found = compile_whole(lambda a: ek.mixed_weight(weight, bits, a))(alphas)
    assert len(calls) == 1
    torch.testing.assert_close(found, expected)


def test_the_module_refuses_codes_that_it_would_read_past():
    kernels, weight, codes = native.compiled.kernels, torch.zeros(8), torch.zeros(1, 8, dtype=torch.uint8)
    tables, out = torch.zeros(1, 256), torch.zeros(8)
    for arg in ((codes.data_ptr(), 0, 8), (codes.data_ptr(), 1, 7)):
        with pytest.raises(ValueError, match="codes: expected a row or more"):
            kernels.superpose(weight.data_ptr(), arg, tables.data_ptr(), 8, out.data_ptr(), 1)
        with pytest.raises(ValueError, match="codes: expected a row or more"):
            kernels.shares(weight.data_ptr(), weight.data_ptr(), arg, 8, out.data_ptr(), 1)
    with pytest.raises(TypeError, match="weight: expected a tensor with memory"):
        kernels.superpose(0, (codes.data_ptr(), 1, 8), tables.data_ptr(), 8, out.data_ptr(), 1)
