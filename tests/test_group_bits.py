"""The packed mask of the best of each group (N:M): the reference's bits on every backend, and the reference itself."""

import itertools

import pytest
import torch
from kernels import KERNELS, ON_CPU, ON_GPU, device_of, without_native

import edgepop_kernels as ek
from edgepop_kernels import ops, reference
from edgepop_kernels.backend import native
from edgepop_kernels.testing import inputs
from edgepop_kernels.testing.guard import Guarded, guarded_allocations

KINDS = [*inputs.RANKED]
# Of groups that divide a word of 64 weights and that do not, alone and all, next to each other and far apart.
CASES = [
    ((5, 8), 2, 4, 1),
    ((5, 8), 1, 2, 1),
    ((67, 96), 8, 16, 1),
    ((3, 128), 63, 64, 1),
    ((3, 128), 64, 64, 1),
    ((7, 9), 2, 3, 1),
    ((11, 65), 3, 13, 1),
    ((17, 4), 1, 1, 1),
    ((9, 8, 3, 3), 2, 4, 1),
    ((4, 6, 1, 1), 2, 3, 1),
    ((3, 10, 5, 5), 4, 5, 1),
    ((2, 4, 7), 3, 4, 1),
    ((8, 5, 3, 3), 2, 4, 0),
    ((12, 7), 1, 4, 0),
    ((64, 33), 31, 32, 0),
    ((2, 4, 3, 5, 6), 2, 4, 1),
    ((0, 4), 2, 4, 1),
    ((4, 0), 2, 4, 0),
]


@pytest.fixture
def packs(request):
    """``packs(scores, kept, group, dim, of)``: the bits of the backend that the test is for, among canaries."""
    name = request.param

    def call(scores, *arguments):
        guard = Guarded(scores, device=device_of(name))
        with ek.use_backend(name), guarded_allocations():
            bits = ops.group_bits(guard.tensor, *arguments)
        guard.check("scores")
        return bits.cpu()

    return call


def one_by_one(scores, kept, group, dim, of):
    """The mask, by Python's own sort of each group."""
    key = reference.ordered_key(scores, of).movedim(dim, -1)
    mask = torch.zeros(key.shape, dtype=torch.bool)
    for place in itertools.product(*map(range, key.shape[:-1])):
        for first in range(0, key.shape[-1], group):
            ranked = sorted(range(first, first + group), key=lambda i: (-int(key[(*place, i)]), i))
            for i in ranked[:kept]:
                mask[(*place, i)] = True
    return mask.movedim(-1, dim)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_reference_keeps_the_best_of_each_group(case):
    shape, *arguments = case
    for kind in ("few", "random_bits"):
        for of in ("abs", "raw"):
            scores = inputs.scores(kind, shape)
            found = reference.unpack_mask(reference.group_bits(scores, *arguments, of), scores.shape)
            assert torch.equal(found, one_by_one(scores, *arguments, of))


@pytest.mark.parametrize("packs", KERNELS, indirect=True)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_backend_packs_the_reference_mask(packs, case, request):
    shape, *arguments = case
    # Interpreted, a group costs its size: large ones see the scores that have ties, NaN and both zeros.
    slow = arguments[1] > 8 and "triton" in request.node.name and not ON_GPU
    for seed, kind in enumerate(("random_bits", "few") if slow else KINDS):
        for of in ("abs", "raw"):
            scores = inputs.scores(kind, shape, seed)
            assert torch.equal(packs(scores, *arguments, of), reference.group_bits(scores, *arguments, of)), (kind, of)


@pytest.mark.parametrize("packs", KERNELS, indirect=True)
@pytest.mark.parametrize(("shape", "dim"), [((32, 64), 1), ((9, 24, 3, 3), 1), ((12, 5, 3, 3), 0)], ids=str)
def test_layouts_of_the_reference_mask(packs, shape, dim):
    for layout in inputs.layouts(len(shape)):
        scores = inputs.lay_out(inputs.scores("few", shape), layout)
        assert torch.equal(packs(scores, 2, 4, dim, "abs"), reference.group_bits(scores, 2, 4, dim, "abs")), layout


@pytest.mark.usefixtures("other_isa_for_scores")
def test_every_instruction_set(request):
    for case in CASES:
        test_every_backend_packs_the_reference_mask(native.group_bits, case, request)


@without_native
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_thread_packs_its_share(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for shape, dim in (((67, 212, 3, 3), 1), ((212, 67, 3, 3), 0), ((501, 400), 1)):
            for layout in ("contiguous", "channels_last") if len(shape) == 4 else ("contiguous",):
                scores = inputs.lay_out(inputs.scores("tied", shape), layout)
                expected = reference.group_bits(scores, 2, 4, dim, "abs")
                with ek.use_backend("native"):
                    assert torch.equal(ops.group_bits(scores, 2, 4, dim, "abs"), expected)
    finally:
        torch.set_num_threads(before)


@without_native
@pytest.mark.parametrize("group", [(0, 1, 1), (65, 1, 1), (4, 0, 1), (4, 5, 1), (4, 2, 0), (5, 2, 1)], ids=str)
def test_the_module_refuses_groups_that_it_would_read_past(group):
    bits = torch.zeros(64, dtype=torch.uint8)
    scores = torch.zeros(8, 8)
    with pytest.raises(ValueError, match="group: expected one of 1 to 64 scores"):
        native.compiled.kernels.group_bits(scores.data_ptr(), (1, 1, 8, 8), (0, 0, 8, 1), 0, group, bits.data_ptr(), 1)


@pytest.mark.parametrize("backend", ON_CPU)
def test_opcheck(backend):
    with ek.use_backend(backend):
        torch.library.opcheck(torch.ops.edgepop.group_bits.default, (torch.randn(7, 8), 2, 4, 1, "abs"))
