"""The CUDA selection against the reference's stable sort: on simulated threads here, on a device where there is one."""

import dataclasses

import pytest
import torch
from cuda_host import Host, as_cuts, compile_host
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import edgepop_kernels as ek
from edgepop_kernels import backend as dispatch
from edgepop_kernels import reference
from edgepop_kernels.backend import cuda
from edgepop_kernels.testing import inputs
from edgepop_kernels.testing.guard import Guarded

KINDS = [*inputs.RANKED]
NOTHING = (-1, 0)  # no score has this key: as good as no hint
GARBAGE = [NOTHING, (0, 5), (2**32 - 1, 0), (2**63 - 1, -7), (0x80000000, 3)]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return compile_host(tmp_path_factory.mktemp("host"))


@pytest.fixture(params=[128, 256])
def host(request, library, monkeypatch):
    """Small chunks, digits, lists and candidate buffers: small layers take every way through the search."""
    monkeypatch.setattr(cuda, "_LEAST_CAPACITY", 32)
    return Host(library, request.param).install(monkeypatch)


def assert_exact(scores, kept, of, hints=None):
    expected = as_cuts(reference.select(scores, kept, of, None))
    guards = [Guarded(s) for s in scores]
    found = cuda.select([g.tensor for g in guards], kept, of, None if hints is None else torch.tensor(hints))
    for guard in guards:
        guard.check("scores")
    assert as_cuts(found) == expected
    return expected


def assert_exact_as_they_lie(scores, kept, of):
    assert as_cuts(cuda.select(scores, kept, of, None)) == as_cuts(reference.select(scores, kept, of, None))


def counts_of(n):
    return sorted({m for m in (1, n // 10, n // 2, n) if 1 <= m <= n})


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_scores_cold_and_from_any_hint(host, kind):
    for host.blocks, n in ((1, 1), (2, 33), (5, 1500)):
        scores = inputs.scores(kind, (n,), n)
        for of in ("abs", "raw"):
            counts = counts_of(n)
            right = assert_exact([scores] * len(counts), counts, [of] * len(counts))
            hints = [*right, *right[1:], right[0], *GARBAGE]
            wanted = counts + counts + counts[:1] * len(GARBAGE)
            assert_exact([scores] * len(wanted), wanted, [of] * len(wanted), hints)


@pytest.mark.parametrize("kind", ["normal", "few", "nonfinite"])
def test_layouts(host, kind):
    for shape in [(7, 1), (33, 65), (9, 24, 3, 3), (1, 300, 3, 3), (2, 3, 4, 5, 6)]:
        layers = [inputs.lay_out(inputs.scores(kind, shape), layout) for layout in inputs.layouts(len(shape))]
        kept, of = [layers[0].numel() // 3] * len(layers), ["abs"] * len(layers)
        cuts = assert_exact(layers, kept, of)
        assert_exact(layers, kept, of, cuts)


def test_views_off_their_alignment_or_with_gaps(host):
    base = inputs.scores("tied", (12, 20, 9, 10))
    layers = [torch.randn(1001)[1:], base.permute(2, 0, 3, 1), base.permute(0, 2, 3, 1), base[::2, 1:19:3, :, 2:]]
    kept = [s.numel() // 4 for s in layers]
    assert_exact(layers, kept, ["raw"] * 4, assert_exact(layers, kept, ["raw"] * 4))


@pytest.mark.parametrize("aligned", [[], [1], [0, 2]])
def test_scores_that_are_copied_find_the_table_of_the_call_before(host, aligned, monkeypatch):
    """Also while a graph is captured, when none can be made; the copies of each call are at other addresses."""
    memory = [inputs.scores("tied", (n + 1,), n) for n in (301, 600, 700)]
    scores = [m[:-1] if i in aligned else m[1:] for i, m in enumerate(memory)]
    arguments = [100, 200, 300], ["raw", "abs", "raw"]
    assert_exact_as_they_lie(scores, *arguments)
    made, taken = cuda._plan.cache_info().misses, []
    monkeypatch.setattr(cuda, "_captured", [])
    monkeypatch.setattr(cuda.capture, "capturing", lambda tensor: True)
    for _ in range(3):
        assert_exact_as_they_lie(scores, *arguments)
        taken.append(torch.randn(999))  # where a copy was
    assert cuda._plan.cache_info().misses == made


def test_layers_together_are_layers_apart_in_any_order_of_blocks(host):
    shapes = [(64, 3, 7, 7), (10,), (0,), (40, 20, 3, 3), (1,), (100, 13), (30, 70)]
    kinds = ["normal", "few", "normal", "equal", "normal", "nonfinite", "tied"]
    scores = [inputs.scores(kind, shape, seed) for seed, (kind, shape) in enumerate(zip(kinds, shapes, strict=True))]
    kept, of = [3000, 3, 0, 5000, 0, 1, 2100], ["abs", "raw"] * 3 + ["sigmoid"]
    for host.blocks in (1, 3, 40):
        cuts = assert_exact(scores, kept, of)
        assert_exact(scores, kept, of, cuts)
        assert_exact(scores, kept, of, cuts[1:] + cuts[:1])


def test_nothing_kept_at_all(host):
    assert_exact([torch.randn(0, 4), torch.randn(9), torch.randn(3, 0, 5)], [0, 0, 0], ["abs", "raw", "abs"])


def test_a_hint_saves_passes_until_the_cut_has_left_its_bracket(host, monkeypatch):
    scores = inputs.scores("normal", (4000,), 3)
    (cut,) = assert_exact([scores], [1500], ["abs"])
    assert host.passes > 1
    drifted = scores * (1 + 1e-4 * torch.randn(4000))
    assert_exact([drifted], [1500], ["abs"], [cut])
    assert host.passes == 1
    assert_exact([scores * 2], [1500], ["abs"], [cut])
    assert host.passes > 2


def test_a_layer_that_fits_its_candidates_takes_one_pass(host):
    scores = inputs.scores("normal", (32,))
    assert_exact([scores], [10], ["raw"])
    assert host.passes == 1


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_property_the_cut_is_the_sorts(host, data):
    values = st.floats(width=32) | st.sampled_from([0.0, -0.0, 1.0, float("nan"), float("inf"), -float("inf")])
    repeat = data.draw(st.integers(1, 20))
    scores = torch.tensor(data.draw(st.lists(values, min_size=1, max_size=100)) * repeat, dtype=torch.float32)
    host.blocks = data.draw(st.integers(1, 6))
    m = data.draw(st.integers(1, scores.numel()))
    of = data.draw(st.sampled_from(["abs", "raw"]))
    hint = (data.draw(st.integers(-1, 2**32)), data.draw(st.integers(-1, 2000)))
    assert_exact([scores] * 2, [m, m], [of] * 2, [hint, as_cuts(reference.select([scores], [m], [of], None))[0]])


@pytest.mark.parametrize("kind", ["normal", "equal", "few", "sorted", "nonfinite"])
def test_the_shape_of_the_kernel(library, monkeypatch, kind):
    host = Host(library, 0, blocks=4).install(monkeypatch)
    scores = [
        inputs.scores(kind, (50_001,)),
        inputs.lay_out(inputs.scores(kind, (30, 40, 3, 3), 1), "channels_last"),
        inputs.scores(kind, (100,)),
    ]
    kept, of = [15_000, 5_000, 50], ["abs", "raw", "abs"]
    cuts = assert_exact(scores, kept, of)
    cold = host.passes
    assert_exact(scores, kept, of, cuts)
    assert host.passes < cold


def test_more_scores_in_a_layer_than_an_index_has_bits_for(host):
    layer = cuda._Layer(0, 2**31, 1, 0, (1, 1, 1, 2**31), (0, 0, 0, 1))
    with pytest.raises(
        ValueError, match=r"scores\[0\]: expected at most 2\*\*31 - 1 scores in a layer, got 2147483648"
    ):
        cuda._plan((layer,), 4096, torch.device("cpu"))


@pytest.mark.parametrize(
    ("fault", "message"),
    [(0, "a barrier that not every thread reaches"), (1, "lanes of a warp meet different operations")],
)
def test_the_simulator_refuses_what_a_device_forbids(library, fault, message):
    assert message in Host(library, 128).misbehave(fault)


class TestRouting:
    @pytest.fixture
    def on_host(self, host, monkeypatch):
        """The backend "cuda" as on a machine with a GPU, CPU tensors taken for CUDA's."""
        fake = dataclasses.replace(
            dispatch._BACKENDS["cuda"], unavailable=lambda: None, refuses=lambda device, dtype: None
        )
        monkeypatch.setitem(dispatch._BACKENDS, "cuda", fake)
        dispatch._backend.cache_clear()
        yield host
        dispatch._backend.cache_clear()

    def test_select_all_runs_on_the_named_backend(self, on_host):
        scores, rules = [torch.randn(50, 60), torch.randn(300)], [ek.TopK(0.3), ek.TopK(0.7, "raw")]
        with ek.use_backend("cuda"):
            cuts = ek.select_all(scores, rules)
            assert on_host.passes > 1
            again = ek.select_all(scores, rules, cuts)
            assert on_host.passes == 1
        with ek.use_backend("reference"):
            expected = ek.select_all(scores, rules)
        for a, b, c in zip(cuts, again, expected, strict=True):
            assert a.data.tolist() == b.data.tolist() == c.data.tolist()

    def test_its_other_ops_are_tritons(self):
        pytest.importorskip("triton", reason="triton is not installed")
        from edgepop_kernels.backend import triton

        for op in ("draw", "masked_linear", "masked_linear_dx", "masked_conv2d", "masked_conv2d_dw"):
            assert getattr(cuda, op) is getattr(triton, op)

    def test_auto_prefers_triton_until_a_gpu_has_been_measured(self):
        order = [backend.name for backend in dispatch._AUTO]
        assert order.index("triton") < order.index("cuda") < order.index("reference")

    def test_a_module_without_cuda_says_so(self, monkeypatch):
        monkeypatch.setattr(cuda, "_cuda", None)
        assert "no CUDA kernels: it was built without nvcc" in ek.backends()["cuda"]
        with pytest.raises(RuntimeError, match="backend 'cuda' is not available: the compiled module has no CUDA"):
            ek.use_backend("cuda")

    def test_it_refuses_tensors_of_other_devices(self):
        assert cuda.refuses(torch.device("cpu"), torch.float32) == "it runs on CUDA tensors and got one on cpu"


@pytest.mark.gpu
class TestOnDevice:
    @pytest.fixture(autouse=True)
    def _cuda_backend(self):
        if cuda.unavailable() is not None:
            pytest.skip(cuda.unavailable())

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_cuts_are_the_references(self, kind):
        shapes = [(64, 3, 7, 7), (256, 64, 1, 1), (128, 128, 3, 3), (1000, 513), (10,), (1,), (600_000,)]
        scores = [inputs.scores(kind, shape, seed) for seed, shape in enumerate(shapes)]
        scores[2] = inputs.lay_out(scores[2], "channels_last")
        scores[3] = inputs.lay_out(scores[3], "transposed")
        kept, of = [max(1, int(s.numel() * 0.3)) for s in scores], ["abs", "raw"] * 3 + ["abs"]
        expected = reference.select(scores, kept, of, None)
        on_device = [s.cuda() for s in scores]
        assert torch.equal(cuda.select(on_device, kept, of, None).cpu(), expected)
        for hints in (expected, expected.roll(1, 0), torch.tensor([GARBAGE[2]] * 7)):
            assert torch.equal(cuda.select(on_device, kept, of, hints.cuda()).cpu(), expected)

    def test_a_hundred_runs_are_one(self):
        scores = [inputs.scores(kind, (300_007,)).cuda() for kind in ("normal", "tied", "equal")]
        arguments = (scores, [100_000] * 3, ["abs"] * 3)
        first = cuda.select(*arguments, None)
        assert all(torch.equal(cuda.select(*arguments, hint), first) for hint in [None, first] * 50)

    def test_in_a_graph_it_follows_the_scores(self):
        scores, arguments = torch.randn(500_000, device="cuda"), ([250_000], ["abs"])
        hint = cuda.select([scores], *arguments, None)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            cuts = cuda.select([scores], *arguments, hint)
        for kind in ("normal", "equal", "nonfinite", "sorted"):
            scores.copy_(inputs.scores(kind, (500_000,), 7))
            graph.replay()
            assert as_cuts(cuts) == as_cuts(reference.select([scores.cpu()], *arguments, None))

    def test_on_another_stream(self):
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            scores = torch.randn(1_000_000, device="cuda").mul_(3)
            cuts = cuda.select([scores], [1000], ["raw"], None)
        stream.synchronize()
        assert as_cuts(cuts) == as_cuts(reference.select([scores.cpu()], [1000], ["raw"], None))
