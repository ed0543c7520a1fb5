"""Triton's selection against the reference's stable sort: the same cuts, bit for bit, from every start."""

import pytest
import torch

import edgepop_kernels as ek
from edgepop_kernels import reference
from edgepop_kernels.testing import inputs
from edgepop_kernels.testing.guard import Guarded, guarded_allocations
from edgepop_kernels.testing.tolerances import assert_same_bits

pytest.importorskip("triton", reason="triton is not installed")

from edgepop_kernels.backend.triton import selection

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []

SHAPES = [(1,), (3, 5), (300,), (21, 21), (9, 5, 3, 3)]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several chunks, tiles and samples, and candidates that overflow, on small layers."""
    monkeypatch.setattr(selection, "_CHUNK", 512)
    monkeypatch.setattr(selection, "_TILE", 128)
    monkeypatch.setattr(selection, "_NARROW", 64)
    monkeypatch.setattr(selection, "_WARPS", 2)
    monkeypatch.setattr(selection, "_SAMPLE", 512)
    monkeypatch.setattr(selection, "_SAMPLE_OF_MISSED", 256)
    monkeypatch.setattr(selection, "_ROOM", 16)
    monkeypatch.setattr(selection, "_LEAST_CAPACITY", 32)


def assert_exact(scores, kept, of, hint=None):
    guards = [Guarded(s.to(DEVICE)) for s in scores]
    with guarded_allocations():
        cuts = selection.select([g.tensor for g in guards], kept, of, None if hint is None else hint.to(DEVICE))
    for guard in guards:
        guard.check("scores")
    expected = reference.select(scores, kept, of, None)
    assert cuts.tolist() == expected.tolist()
    return expected


def sampled_positions(n, size):
    """Where select.py samples a layer of n scores; sampled_end written in Python."""
    runs = size // 8
    for run in range(runs):
        scrambled = run * 0x9E3779B1 % 2**32
        scrambled = (scrambled ^ (scrambled >> 15)) * 0x85EBCA77 % 2**32
        scrambled ^= scrambled >> 13
        place = run * (n // runs) + run * (n % runs) // runs + (scrambled * max(n // runs - 7, 1) >> 32)
        yield from (min(place + i, n - 1) for i in range(8))


def network(values, seed):
    layouts = ("contiguous", "channels_last", "transposed", "strided")
    for i, shape in enumerate(SHAPES):
        s = inputs.scores(values, shape, 10 * seed + i)
        layout = layouts[(seed + i) % 4]
        yield inputs.lay_out(s, layout) if layout != "channels_last" or s.dim() == 4 else s


@pytest.mark.parametrize("values", inputs.SCORES)
def test_all_layers_cold_and_warm(values):
    scores = list(network(values, seed=len(values)))
    kept = [max(1, int(share * s.numel())) for share, s in zip((1, 0.5, 0.1, 0.9, 0.3), scores, strict=True)]
    of = ["abs", "raw", "abs", "sigmoid", "raw"]
    cuts = assert_exact(scores, kept, of)
    assert_exact(scores, kept, of, hint=cuts)


@pytest.mark.parametrize("drift", [1e-4, 1e-2, 10.0])
def test_a_hint_that_hits_or_misses(drift):
    before = [torch.randn(64, 100), torch.randn(900)]
    kept, of = [3000, 90], ["abs", "raw"]
    hint = reference.select(before, kept, of, None)
    assert_exact([s * (1 + drift * torch.randn(s.shape)) for s in before], kept, of, hint)


@pytest.mark.parametrize("hint", [reference.NOTHING, (0, 0), (0x80000000, 5), (0xFFFFFFFF, -1)])
def test_a_hint_that_says_nothing(hint):
    assert_exact([torch.randn(999)], [100], ["raw"], torch.tensor([hint]))


def test_a_hint_taken_after_the_cut_moved_far():
    before, after = torch.randn(2000), torch.randn(2000) * 1e-3
    hint = reference.select([before], [1000], ["abs"], None)
    assert_exact([after], [1000], ["abs"], hint)


def test_more_candidates_than_there_is_room_for():
    scores = torch.cat([torch.full((900,), 0.5), torch.rand(300)])[torch.randperm(1200)]
    assert_exact([scores], [600], ["abs"])
    assert_exact([scores.view(30, 40).t()], [600], ["abs"], reference.select([scores], [600], ["abs"], None))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_ties_are_found_by_their_index(layout):
    scores = inputs.lay_out(torch.full((20, 9, 3, 3), 0.5), layout)
    scores[3, 4, 1, 1] = 1.0
    for kept in (1, 2, 800, 1620):
        assert_exact([scores], [kept], ["abs"])


def test_a_sample_that_lies():
    """The scores that are sampled are larger than all others: the layer is walked whole."""
    scores = torch.rand(6661)
    scores[list(sampled_positions(6661, 512))] += 5
    assert_exact([scores], [3000], ["abs"])


@pytest.mark.parametrize("kept", [899, 901])
def test_two_keys_with_more_ties_than_there_is_room_for(kept):
    scores = torch.tensor([0.5, 0.75]).repeat(900)
    assert_exact([scores.view(60, 30).t()], [kept], ["raw"])


def test_candidates_that_lie_together():
    """More of them on one warp's shelf than it takes, though the list would."""
    scores = torch.cat([torch.rand(4000) + 5, torch.rand(300) * 1e-3 + 1, torch.rand(4000)])
    assert_exact([scores], [4100], ["abs"])


@pytest.mark.parametrize("hint", [None, "near", "far"])
def test_two_launches(hint, monkeypatch):
    launched = []

    def noted(kernel, *args, **meta):
        launched.append(kernel)
        launch(kernel, *args, **meta)

    launch = selection.launch
    monkeypatch.setattr(selection, "launch", noted)
    scores = [inputs.scores("normal", (n,), n) for n in (30, 700)]
    arguments = [10, 300], ["abs", "raw"]
    hints = {"near": reference.select(scores, *arguments, None), "far": torch.zeros(2, 2, dtype=torch.int64)}
    assert_exact(scores, *arguments, hints.get(hint))
    assert len(launched) == 2


@pytest.mark.gpu
def test_a_hundred_runs_of_large_layers_are_one(monkeypatch):
    monkeypatch.undo()  # blocks of the size that networks get
    sizes = 1, 300, 36_864, 2_359_296, 5_000_011
    scores = [inputs.scores("normal", (n,), n) for n in sizes]
    arguments = [-(-n // 2) for n in sizes], ["abs", "raw", "abs", "raw", "abs"]
    expected = reference.select(scores, *arguments, None)
    near = reference.select([s * 1.001 for s in scores], *arguments, None)
    there = [s.cuda() for s in scores]
    for hint in (None, near.cuda(), torch.zeros(len(sizes), 2, dtype=torch.int64, device="cuda")):
        found = [selection.select(there, *arguments, hint) for _ in range(100)]
        assert all(cuts.tolist() == expected.tolist() for cuts in found)


def test_more_scores_than_positions_have_bits_for():
    layer = selection._Layer(0, 2**31 - 1, 1, 0, (1, 1, 1, 2**31 - 1), (0, 0, 0, 1))
    with pytest.raises(ValueError, match=r"scores\[0\]: expected at most 2147418112 scores in a layer, got 2147483647"):
        selection._plan((layer,), torch.device("cpu"), 512, 16, 32)


def test_scores_off_their_alignment():
    scores = torch.randn(1001)[1:]
    assert_exact([scores], [300], ["raw"])


@pytest.mark.parametrize("aligned", [[], [1], [0, 2]])
def test_scores_that_are_copied_find_the_tables_of_the_call_before(aligned, monkeypatch):
    """Also while a graph is captured, when none can be made; the copies of each call are at other addresses."""
    shapes = (301,), (20, 30), (700,)
    memory = [torch.randn(torch.Size(s).numel() + 1, device=DEVICE) for s in shapes]
    scores = [(m[:-1] if i in aligned else m[1:]).view(s) for i, (m, s) in enumerate(zip(memory, shapes, strict=True))]
    arguments = [100, 200, 300], ["raw", "abs", "raw"]
    expected = reference.select([s.cpu() for s in scores], *arguments, None).tolist()
    found, taken = [selection.select(scores, *arguments, None)], []
    made = selection._plan.cache_info().misses
    monkeypatch.setattr(selection.capture, "capturing", lambda tensor: True)
    for _ in range(3):
        found.append(selection.select(scores, *arguments, None))
        taken.append(torch.randn(999, device=DEVICE))  # where a copy was
    assert selection._plan.cache_info().misses == made
    assert all(cuts.tolist() == expected for cuts in found)


def test_tables_of_other_constants_are_not_found(monkeypatch):
    scores = torch.randn(3000, device=DEVICE)
    expected = reference.select([scores.cpu()], [1000], ["abs"], None).tolist()
    for name, value in (("_CHUNK", 1024), ("_ROOM", 32), ("_LEAST_CAPACITY", 64)):
        assert selection.select([scores], [1000], ["abs"], None).tolist() == expected
        made = selection._plan.cache_info().misses
        monkeypatch.setattr(selection, name, value)
        assert selection.select([scores], [1000], ["abs"], None).tolist() == expected
        assert selection._plan.cache_info().misses == made + 1


def test_an_empty_layer_keeps_nothing():
    assert_exact([torch.randn(0, 4), torch.randn(9), torch.randn(2, 0)], [0, 4, 0], ["abs", "abs", "raw"])


@pytest.mark.parametrize("numel", [1, 63, 1025])
def test_draws_the_reference_mask_and_nothing_beside_it(numel):
    scores, seed = Guarded(torch.randn(numel), device=DEVICE), torch.tensor(5, device=DEVICE)
    with guarded_allocations():
        bits = selection.draw(scores.tensor, seed)
    assert_same_bits("bits", bits, reference.draw(scores.tensor, seed))


def test_select_all_of_a_network():
    scores = [torch.randn(shape, device=DEVICE) for shape in SHAPES]
    rules = [ek.TopK(0.5), ek.TopK(0.1, "raw"), ek.Threshold(0.3), ek.TopK(1.0), ek.TopK(0.7)]
    with ek.use_backend("triton"):
        cuts = ek.select_all(scores, rules)
        again = ek.select_all(scores, rules, cuts)
    with ek.use_backend("reference"):
        expected = ek.select_all(scores, rules)
    for a, b, c in zip(cuts, again, expected, strict=True):
        assert a.data.tolist() == b.data.tolist() == c.data.tolist()
