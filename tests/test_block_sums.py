"""The sums of blocks and the packed mask of those kept: the reference's on every backend, and the reference itself."""

import itertools
import math

import numpy as np
import pytest
import torch
from kernels import KERNELS, ON_CPU, device_of, without_native

import edgepop_kernels as ek
from edgepop_kernels import ops, reference
from edgepop_kernels.backend import native
from edgepop_kernels.testing import inputs
from edgepop_kernels.testing.guard import Guarded, guarded_allocations

# Sums of random bits overflow, and infinities cancel: Triton's interpreter adds with numpy, which says so.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")

# Blocks along each dimension and along several, of powers of two and not, whole channels and single scores.
CASES = [
    ((6, 8), (1, 4)),
    ((67, 6), (1, 2)),
    ((7, 12), (1, 3)),
    ((3, 130), (1, 13)),
    ((5, 64), (1, 16)),
    ((5, 96), (1, 32)),
    ((8, 16), (4, 4)),
    ((65, 63), (13, 7)),
    ((13, 15), (13, 3)),
    ((67, 64), (67, 1)),
    ((64, 67), (1, 67)),
    ((17, 4), (1, 1)),
    ((9, 10, 3, 3), (3, 5, 1, 1)),
    ((9, 12, 3, 3), (1, 4, 1, 1)),
    ((9, 10, 3, 3), (1, 1, 3, 3)),
    ((5, 7, 3, 3), (1, 7, 3, 3)),
    ((5, 7, 3, 3), (5, 1, 3, 3)),
    ((4, 6, 5, 1), (2, 3, 5, 1)),
    ((6, 4, 5), (2, 4, 1)),
    ((100,), (5,)),
    ((2, 4, 3, 5, 6), (1, 2, 3, 1, 6)),
    ((1, 1), (1, 1)),
    ((0, 4), (1, 2)),
    ((4, 0), (2, 1)),
]


@pytest.fixture
def backend(request):
    """``backend(scores, block, of, keep)``: the sums and the bits of the backend that the test is for, among canaries,
    on the CPU."""
    name = request.param
    device = device_of(name)

    def call(scores, block, of, keep):
        guard = Guarded(scores, device=device)
        with ek.use_backend(name), guarded_allocations():
            sums = ops.block_sums(guard.tensor, block, of)
            bits = ops.block_bits(sums, cut_of(sums.cpu(), keep).to(device), block)
        guard.check("scores")
        return sums.cpu(), bits.cpu()

    return call


def cut_of(sums, keep):
    return reference.select([sums], [ek.kept_count(sums.numel(), keep)], ["raw"], None)[0]


def expected(scores, block, of, keep):
    sums = reference.block_sums(scores, block, of)
    return sums, reference.block_bits(sums, cut_of(sums, keep), block)


def same(found, sums):
    """Equal, and NaN where the other is: the bits of a NaN, and the sign of zero, rank nothing."""
    return found.shape == sums.shape and bool(((found == sums) | (found.isnan() & sums.isnan())).all())


def one_by_one(values):
    """The sum of a block's values, a numpy array, dimension by dimension: of n numbers those at even places and those
    at odd ones are summed alone, and added last. This is what halves come to."""
    if values.ndim == 0:
        return values

    def sum_of(terms):
        return terms[0] if len(terms) == 1 else sum_of(terms[::2]) + sum_of(terms[1::2])

    return one_by_one(sum_of(list(values)))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_reference_adds_in_halves_and_repeats_what_is_kept(case):
    shape, block = case
    counts = [n // size for n, size in zip(shape, block, strict=True)]
    for kind in ("few", "normal"):
        for of in ("abs", "raw"):
            scores = inputs.scores(kind, shape)
            sums, bits = expected(scores, block, of, 0.4)
            kept = reference.mask(sums, cut_of(sums, 0.4), "raw")
            assert sums.is_contiguous()
            assert not sums.numel() or sums.data_ptr() != scores.data_ptr()
            mask = torch.zeros(shape, dtype=torch.bool)
            for place in itertools.product(*map(range, counts)):
                within = tuple(slice(i * size, (i + 1) * size) for i, size in zip(place, block, strict=True))
                values = scores[within].abs() if of == "abs" else scores[within]
                with np.errstate(all="ignore"):
                    assert same(torch.tensor(one_by_one(values.numpy())), sums[place])
                mask[within] = kept[place]
            assert torch.equal(reference.unpack_mask(bits, mask.shape), mask)
            assert mask.sum() == ek.kept_count(math.prod(counts), 0.4) * math.prod(block)


@pytest.mark.parametrize("backend", KERNELS, indirect=True)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_backend_has_the_sums_and_the_bits_of_the_reference(backend, case):
    shape, block = case
    for seed, kind in enumerate(inputs.RANKED):
        for of in ("abs", "raw"):
            scores = inputs.scores(kind, shape, seed)
            sums, bits = expected(scores, block, of, 0.4)
            found, packed = backend(scores, block, of, 0.4)
            assert same(found, sums) and torch.equal(packed, bits), (kind, of)


@pytest.mark.parametrize("backend", KERNELS, indirect=True)
@pytest.mark.parametrize("keep", [1.0, 0.999, 1e-9])
def test_all_blocks_and_one(backend, keep):
    scores = inputs.scores("few", (12, 20))
    _, bits = expected(scores, (3, 4), "abs", keep)
    assert torch.equal(backend(scores, (3, 4), "abs", keep)[1], bits)
    assert reference.unpack_mask(bits, scores.shape).sum() == ek.kept_count(20, keep) * 12


@pytest.mark.parametrize("backend", KERNELS, indirect=True)
@pytest.mark.parametrize(
    "case", [((2, 9000), (1, 9000)), ((4100, 3), (4100, 1)), ((2, 2051, 2, 2), (1, 2051, 2, 2))], ids=str
)
def test_channels_of_more_terms_than_a_tile_has(backend, case):
    shape, block = case
    scores = inputs.scores("normal", shape)
    sums, bits = expected(scores, block, "raw", 0.5)
    found, packed = backend(scores, block, "raw", 0.5)
    assert torch.equal(found, sums) and torch.equal(packed, bits)


@pytest.mark.parametrize("backend", KERNELS, indirect=True)
@pytest.mark.parametrize(
    "case", [((32, 64), (4, 1)), ((9, 24, 3, 3), (1, 4, 1, 1)), ((12, 5, 3, 3), (12, 1, 3, 3))], ids=str
)
def test_layouts(backend, case):
    shape, block = case
    for layout in inputs.layouts(len(shape)):
        scores = inputs.lay_out(inputs.scores("few", shape), layout)
        sums, bits = expected(scores, block, "abs", 0.3)
        found, packed = backend(scores, block, "abs", 0.3)
        assert same(found, sums) and torch.equal(packed, bits), layout


@pytest.mark.usefixtures("other_isa_for_scores")
def test_every_instruction_set():
    for shape, block in CASES:
        for seed, kind in enumerate(inputs.RANKED):
            scores = inputs.scores(kind, shape, seed)
            sums, bits = expected(scores, block, "abs", 0.4)
            found = native.block_sums(scores, block, "abs")
            assert same(found, sums) and torch.equal(native.block_bits(found, cut_of(sums, 0.4), block), bits)


@without_native
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_thread_adds_and_packs_its_share(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for shape, block in (
            ((67, 212, 3, 3), (1, 4, 1, 1)),
            ((212, 67, 3, 3), (212, 1, 3, 3)),
            ((501, 400), (3, 5)),
            ((333, 1001), (1, 7)),
        ):
            for layout in ("contiguous", "channels_last") if len(shape) == 4 else ("contiguous",):
                scores = inputs.lay_out(inputs.scores("tied", shape), layout)
                sums, bits = expected(scores, block, "abs", 0.3)
                found = native.block_sums(scores, block, "abs")
                assert torch.equal(found, sums) and torch.equal(
                    native.block_bits(found, cut_of(sums, 0.3), block), bits
                )
    finally:
        torch.set_num_threads(before)


@without_native
def test_the_module_refuses_blocks_that_it_would_read_past():
    kernels = native.compiled.kernels
    scores, sums, bits = torch.zeros(8, 8), torch.zeros(16), torch.zeros(64, dtype=torch.uint8)
    cut = torch.zeros(2, dtype=torch.int64)
    layout = (1, 1, 8, 8), (0, 0, 8, 1)
    for counts, sizes in (((8, 2, 1, 1, 1), (1, 0, 1, 1, 1)), ((-8, 2, 1, 1, 1), (1, 4, 1, 1, 1))):
        with pytest.raises(ValueError, match="block: expected a size of at least 1"):
            kernels.block_sums(scores.data_ptr(), *layout, 0, counts, sizes, sums.data_ptr(), 1)
        with pytest.raises(ValueError, match="block: expected a size of at least 1"):
            kernels.block_bits(sums.data_ptr(), cut.data_ptr(), counts, sizes, bits.data_ptr(), 1)
    with pytest.raises(ValueError, match="block: expected blocks of as many elements"):
        kernels.block_sums(scores.data_ptr(), *layout, 0, (8, 2, 1, 1, 1), (1, 3, 1, 1, 1), sums.data_ptr(), 1)


@pytest.mark.parametrize("name", ON_CPU)
def test_opcheck(name):
    scores = torch.randn(6, 8)
    sums = reference.block_sums(scores, (2, 4), "abs")
    with ek.use_backend(name):
        torch.library.opcheck(torch.ops.edgepop.block_sums.default, (scores, (2, 4), "abs"))
        torch.library.opcheck(torch.ops.edgepop.block_bits.default, (sums, cut_of(sums, 0.5), (2, 4)))
