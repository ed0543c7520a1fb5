"""Native selection against a sort, on every hostile input, size, layout, thread count, hint and instruction set."""

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import edgepop_kernels as ek
from edgepop_kernels import ops, reference, selecting
from edgepop_kernels.backend import native
from edgepop_kernels.testing import inputs
from edgepop_kernels.testing.guard import guarded

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))

OFS = ["abs", "raw"]
# Both sides of a vector, a block, a direct selection (4096), a gather (2048) and a chunk (16384).
SIZES = [1, 2, 3, 17, 63, 100, 1000, 4099, 36864, 100003]


@pytest.fixture(autouse=True)
def _native():
    threads = torch.get_num_threads()
    with ek.use_backend("native"):
        yield
    torch.set_num_threads(threads)


def float_of_bits(bits):
    return bits.to(torch.int32).view(torch.float32)


def _nan_payloads(shape, g):
    signs = torch.randint(0, 2, shape, generator=g) * -(2**31)
    return float_of_bits(torch.randint(0x7F800000, 0x80000000, shape, generator=g) + signs)  # +-inf among them


def _one_off(shape, g):
    s = torch.ones(shape)
    s.view(-1)[s.numel() // 2] = 1.0000001
    return s


def _blocks(shape, g):
    """Runs of 64 equal scores: a sample knows far less than its size promises, so brackets miss."""
    n = torch.Size(shape).numel()
    return torch.randn(n // 64 + 1, generator=g).repeat_interleave(64)[:n].reshape(shape)


SCORES = {
    **inputs.RANKED,
    "uniform": lambda shape, g: torch.rand(shape, generator=g),
    "nan_payloads": _nan_payloads,
    "one_off": _one_off,
    "blocks": _blocks,
}


def make_scores(kind, shape, seed=0):
    return SCORES[kind](shape, inputs.generator(seed))


def expected_cuts(scores, of, counts):
    """[(key, index)] from numpy's stable sort of float64 values, NaN last; the keys' own formula is the reference's."""
    flat = scores.contiguous().flatten()
    value = flat.double().numpy()
    value = np.abs(value) if of == "abs" else value
    nan = np.isnan(value)
    order = np.lexsort((-np.where(nan, 0, value), nan))
    keys = reference.ordered_key(flat, of)
    return [(int(keys[order[m - 1]]), int(order[m - 1])) if m else reference.NOTHING for m in counts]


def counts_of(n):
    return sorted({m for m in (1, 2, 3, n // 10, n // 2, n - n // 3, n - 1, n) if 1 <= m <= n})


NO_HINT = (-1, 0)  # no score has this key: as good as none


def cuts_of(scores, of, counts, hints=None):
    """The cuts of the same scores for every count, as one call: each count is a layer of its own. With masks and signs
    written beside them, where that is possible, or without."""
    warm = None if hints is None else torch.tensor(hints)
    layers = [scores] * len(counts), counts, [of] * len(counts), warm
    cuts = ops.select(*layers)
    again, planes = ops.select_planes(*layers, [True] * len(counts))
    assert torch.equal(again, cuts)
    check_planes(scores, of, cuts, planes)
    return [tuple(cut) for cut in cuts.tolist()]


def check_planes(scores, of, cuts, planes):
    signs = reference.pack_mask(torch.signbit(scores))
    signs[-1] = not bool((scores.abs() > 0).all())  # zeros and NaNs, whose gradient has no sign
    told = scores if scores.dim() <= 4 else scores.flatten(2)  # of four dimensions at most
    for cut, written in zip(cuts, planes, strict=True):
        assert (written is not None) == told.is_contiguous()
        if written is not None:
            assert torch.equal(written[0], reference.mask_bits(scores, cut, of))
            assert len(written) == (2 if of == "abs" else 1)
            assert of == "raw" or torch.equal(written[1], signs)


def check_hostile(kind, n):
    """Every count cold, then from hints: right, stale by 0.1 % and 10 % of the ranks, garbage of three kinds."""
    scores = make_scores(kind, (n,))
    counts = counts_of(n)
    near = [min(n, m + 1 + n // 1000) for m in counts]
    far = [max(1, m - n // 10) for m in counts]
    for of in OFS:
        right = expected_cuts(scores, of, counts)
        hints = [expected_cuts(scores, of, shifted) for shifted in (counts, near, far)]
        hints += [[garbage] * len(counts) for garbage in (NO_HINT, (0, 5), (2**63 - 1, -7))]
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert cuts_of(scores, of, counts) == right, (kind, n, of, threads)
            warm = cuts_of(scores, of, counts * len(hints), [hint for row in hints for hint in row])
            assert warm == right * len(hints), (kind, n, of, threads)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("kind", SCORES)
def test_hostile_scores(kind, n):
    check_hostile(kind, n)


SHAPES = [(), (1,), (7, 1), (33, 65), (300, 401), (1, 1, 5, 5), (40, 24, 3, 3), (1, 300, 3, 3), (130, 64, 3, 3)]
# Slices (scores per output) just below and beyond 64K, where channels_last is no longer cut along them.
SHAPES += [(2, 7300, 3, 3), (3, 7000, 3, 3), (2, 3, 4, 5, 6)]


@pytest.mark.parametrize("kind", ["normal", "few", "nonfinite"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_layouts(shape, kind):
    for layout in inputs.layouts(len(shape)) if shape else ["contiguous"]:
        scores = inputs.lay_out(make_scores(kind, shape), layout)
        counts = counts_of(scores.numel())
        for of in OFS:
            right = expected_cuts(scores, of, counts)
            with guarded(scores=scores) as (view,):
                cuts = cuts_of(view, of, counts * 2, [NO_HINT] * len(counts) + right)
                assert cuts == right * 2, (layout, of)


def test_layout_of_gaps_and_permutations():
    """Views that no memory format describes: a permutation, a slice of each dimension, one index taken."""
    base = make_scores("tied", (12, 20, 9, 10))
    views = [base.permute(order) for order in [(2, 0, 3, 1), (0, 2, 3, 1), (0, 1, 3, 2), (3, 2, 1, 0)]]
    views += [base[::2, 1:19:3, :, 2:], base[:, 3], base[:, :, :, ::9]]
    views += [base[:, :1].expand(12, 20, 9, 10), base[0, 0, 0, 0].expand(3, 5000)]
    for view in views:
        counts = counts_of(view.numel())
        assert cuts_of(view, "raw", counts) == expected_cuts(view, "raw", counts), view.stride()


def many_layers():
    shapes = [(64, 3, 7, 7), (10,), (256, 64, 1, 1), (1,), (40, 64, 3, 3), (1000, 130), (0,), (300, 700)]
    kinds = ["normal", "few", "tied", "equal", "nonfinite", "bf16_grid", "normal", "blocks"]
    layers = [make_scores(kind, shape, seed) for seed, (shape, kind) in enumerate(zip(shapes, kinds, strict=True))]
    layers[4] = inputs.lay_out(layers[4], "channels_last")
    layers[5] = inputs.lay_out(layers[5], "transposed")
    keeps = [0.5, 0.3, 0.1, 1.0, 0.9, 0.5, 1.0, 0.7]
    kept = [ek.kept_count(s.numel(), keep) for s, keep in zip(layers, keeps, strict=True)]
    kept[3] = 0
    return layers, kept, ["abs", "raw"] * 4


def test_layers_together_are_layers_apart():
    layers, kept, of = many_layers()
    right = [expected_cuts(s, o, [m])[0] for s, m, o in zip(layers, kept, of, strict=True)]
    for threads in (1, 2):
        torch.set_num_threads(threads)
        cuts = ops.select(layers, kept, of, None)
        assert [tuple(cut) for cut in cuts.tolist()] == right
        assert torch.equal(ops.select(layers, kept, of, cuts), cuts)
        assert torch.equal(ops.select(layers, kept, of, cuts.roll(1, 0)), cuts)
        order = torch.randperm(len(layers)).tolist()
        shuffled = ops.select([layers[i] for i in order], [kept[i] for i in order], [of[i] for i in order], cuts[order])
        assert torch.equal(shuffled, cuts[order])


def test_nothing_kept_and_nothing_there():
    layers = [torch.randn(100), torch.empty(0, 3)], [0, 0], OFS, None
    cuts = ops.select(*layers)
    assert [tuple(cut) for cut in cuts.tolist()] == [reference.NOTHING] * 2
    again, planes = ops.select_planes(*layers, [True, True])
    assert torch.equal(again, cuts) and not any(mask[0].any() for mask in planes)
    assert planes[0][1, -1] == 1  # nobody has looked at the signs


def test_planes_are_written_where_they_are_wanted():
    scores = [torch.randn(7, 11), torch.randn(11, 7).T, torch.randn(7, 11)]
    _, planes = ops.select_planes(scores, [20] * 3, ["abs"] * 3, None, [True, True, False])
    assert [p is not None for p in planes] == [True, False, False]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
@pytest.mark.parametrize("of", OFS)
def test_select_all(layout, of):
    """Through the public functions: the count is exact, no dropped score outranks a kept one, hints change nothing."""
    layers = [inputs.lay_out(make_scores("tied", shape), layout) for shape in [(20, 30, 3, 3), (64, 8, 5, 5)]]
    rules = [ek.TopK(0.3, of), ek.TopK(0.8, of)]
    cuts = ek.select_all(layers, rules)
    again = ek.select_all(layers, rules, cuts)
    for s, rule, cut, hinted in zip(layers, rules, cuts, again, strict=True):
        assert torch.equal(cut.data, hinted.data)
        ranked = s.abs() if of == "abs" else s
        kept = ek.mask(s, rule)
        assert kept.sum() == ek.kept_count(s.numel(), rule.keep)
        assert ranked[kept].min() == cut.threshold
        assert ranked[~kept].max() <= cut.threshold
        tied = (ranked == cut.threshold).flatten()
        assert kept.flatten()[tied].tolist() == sorted(kept.flatten()[tied].tolist(), reverse=True)  # lower indices


FLOATS = st.floats(width=32) | st.sampled_from([0.0, -0.0, 1.0, -1.0, float("nan"), float("inf"), -float("inf")])


@given(st.lists(FLOATS, min_size=1, max_size=300), st.data())
def test_property_cut_is_the_sort(values, data):
    scores = torch.tensor(values, dtype=torch.float32)
    m = data.draw(st.integers(1, len(values)))
    of = data.draw(st.sampled_from(OFS))
    cuts = cuts_of(scores, of, [m])
    assert cuts == expected_cuts(scores, of, [m])
    assert reference.mask(scores, torch.tensor(cuts[0]), of).sum() == m


@given(st.integers(4097, 60000), st.integers(0, 2**16), st.floats(0, 1), st.integers(-1, 2**32))
def test_property_any_hint(n, seed, fraction, key):
    scores = torch.randn(n, generator=inputs.generator(seed)).mul(64).round().div(64)
    m = 1 + int(fraction * (n - 1))
    assert cuts_of(scores, "raw", [m], [(key, seed)]) == expected_cuts(scores, "raw", [m])


def sampled_positions(n, size, scan):
    """Where select_search.cpp samples a layer of n scores; its scramble() written in Python."""

    def scramble(x):
        x = (x + 0x9E3779B97F4A7C15) % 2**64
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
        return x ^ (x >> 31)

    runs, begin = size // 64, 0
    for run in range(runs):
        end = n * (run + 1) // runs
        place = begin + scramble(run * 4 + scan) % (end - begin - 63)
        yield from range(place, place + 64)
        begin = end


def test_samples_that_lie():
    """Every place that is sampled shows another value than the rest: all brackets fail, and bisection ends it."""
    n = 300_000
    scores = torch.rand(n, generator=inputs.generator(0)) + 1
    for scan in range(4):
        for size in (2048, n // 128 // 64 * 64):
            scores[list(sampled_positions(n, size, scan))] = 0.5
    counts = [int(keep * n) for keep in (0.1, 0.5, 0.9)]
    right = expected_cuts(scores, "abs", counts)
    lie = (int(reference.ordered_key(torch.tensor(0.5), "abs")), 0)
    assert cuts_of(scores, "abs", counts) == right
    assert cuts_of(scores, "abs", counts, [lie] * 3) == right


def check_read():
    """A bit anywhere is seen: what the benchmarks call a read leaves out nothing."""
    for n in (*SIZES, 200_003):
        for threads in (1, 2):
            layers = [torch.zeros(n), torch.zeros(n)]
            for bit, i in enumerate(sorted({0, n // 3, n // 2, max(n - 18, 0), n - 1})):
                layers[bit % 2].view(torch.int32)[i] = 1 << bit
            expected = sum(s.view(torch.int32).sum().item() for s in layers)
            assert native.compiled.kernels.read([(s.data_ptr(), n) for s in layers], threads) == expected, (n, threads)


def test_read():
    check_read()


@pytest.mark.usefixtures("other_isa_for_scores")
def test_every_instruction_set():
    for kind in SCORES:
        for n in (17, 1000, 4099, 36864):
            check_hostile(kind, n)
    check_read()
    layers, kept, of = many_layers()
    cuts = native.select(layers, kept, of, None)
    assert [tuple(c) for c in cuts.tolist()] == [
        expected_cuts(s, o, [m])[0] for s, o, m in zip(layers, of, kept, strict=True)
    ]


def test_one_missing_hint_leaves_the_others_in_use():
    scores = [torch.randn(50_000) for _ in range(3)]
    rules = [ek.TopK(0.3), ek.TopK(0.5, "raw"), ek.TopK(0.7)]
    cuts = ek.select_all(scores, rules)
    for hints in ([None, cuts[1], cuts[2]], [cuts[0], None, None], [None] * 3):
        with mock.patch.object(selecting.ops, "select_planes", wraps=ops.select_planes) as select:
            again = ek.select_all(scores, rules, hints)
        assert all(torch.equal(a.data, b.data) for a, b in zip(again, cuts, strict=True))
        warm = select.call_args.args[3]
        assert (None if warm is None else (warm[:, 0] >= 0).tolist()) == (
            None if hints == [None] * 3 else [hint is not None for hint in hints]
        )
