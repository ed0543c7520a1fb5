"""The packed mask of a cut: the reference's bits on every backend, for any scores, layout and cut."""

import pytest
import torch
from cuda_host import Host, compile_host
from torch.utils._python_dispatch import TorchDispatchMode

import edgepop_kernels as ek
from edgepop_kernels import ops, reference
from edgepop_kernels.backend import cuda, native
from edgepop_kernels.testing import inputs
from edgepop_kernels.testing.guard import Guarded, guarded_allocations

AVAILABLE = [name for name, reason in ek.backends().items() if reason is None]
# Kernels for GPUs run there where there is one; else Triton's under its interpreter, CUDA's on simulated threads.
ON_GPU = torch.cuda.is_available()
BACKENDS = [
    pytest.param(name, marks=pytest.mark.gpu if ON_GPU and name in ("triton", "cuda") else [])
    for name in dict.fromkeys([*AVAILABLE, "cuda"])
    if name != "reference"
]
KINDS = [*inputs.RANKED]
RULES = [ek.TopK(0.3), ek.TopK(0.7, "raw"), ek.TopK(1.0), ek.Percentile(0.5), ek.Threshold(0.4)]
RULES += [ek.Threshold(0.0, "raw", inclusive=True), ek.Threshold(0.1, "abs", inclusive=True)]
# A key and index of a cut that no selection gives: nothing kept, all, keys of no score, both zeros, infinities.
KEYS = [-5, 0, 1, 0x7FFFFF, 0x7FFFFFFF, 0x80000000, 0x7F800001, 0x7F800002, 0xFF800000, 0xFF800001, 1 << 32]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return None if ON_GPU else compile_host(tmp_path_factory.mktemp("host"))


@pytest.fixture
def packs(request, library, monkeypatch):
    """``packs(scores, cut, of)``: the bits of the backend that the test is for, from and among canaries."""
    name = request.param
    device = "cuda" if ON_GPU and name in ("triton", "cuda") else "cpu"
    if name == "cuda" and library is not None:
        Host(library, 128).install(monkeypatch)
        run = cuda.mask_bits
    elif name not in AVAILABLE:
        pytest.skip(ek.backends()[name])
    else:

        def run(*call):
            with ek.use_backend(name):
                return ops.mask_bits(*call)

    def call(scores, cut, of):
        guard = Guarded(scores, device=torch.device(device))
        with guarded_allocations():
            bits = run(guard.tensor, cut.to(device), of)
        guard.check("scores")
        return bits.cpu()

    return call


def assert_packed(packs, scores, cut, of):
    expected = reference.pack_mask(reference.mask(scores, cut, of))
    assert torch.equal(packs(scores, cut, of), expected), (cut.tolist(), of)


def cuts_of(scores, rule):
    if isinstance(rule, ek.Threshold):
        return rule.select(scores).data
    cut = reference.select([scores], [rule.kept(scores.numel())], [rule.of], None)[0]
    if isinstance(rule, ek.Percentile):
        cut[1] = scores.numel() - 1
    return cut


@pytest.mark.parametrize("packs", BACKENDS, indirect=True)
@pytest.mark.parametrize("kind", KINDS)
def test_every_backend_packs_the_reference_mask(packs, kind):
    for shape in ((1,), (3, 17), (7, 3, 3, 3), (1009,)):
        scores = inputs.scores(kind, shape, len(shape))
        for rule in RULES:
            assert_packed(packs, scores, cuts_of(scores, rule), rule.of)


@pytest.mark.parametrize("packs", BACKENDS, indirect=True)
@pytest.mark.parametrize(
    "shape", [(33, 65), (9, 24, 3, 3), (1, 30, 3, 3), (5, 1, 1, 7), (2, 3, 4, 5, 6), (0, 4)], ids=str
)
def test_layouts_of_the_reference_mask(packs, shape):
    for layout in inputs.layouts(len(shape)):
        scores = inputs.lay_out(inputs.scores("few", shape), layout)
        for of in ("abs", "raw"):
            rule = ek.TopK(0.4, of)
            assert_packed(packs, scores, cuts_of(scores, rule) if scores.numel() else torch.tensor([1 << 32, -1]), of)


@pytest.mark.parametrize("packs", BACKENDS, indirect=True)
def test_any_cut_of_the_reference_mask(packs):
    special = [0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 3.4e38, -3.4e38, torch.inf, -torch.inf, torch.nan, -torch.nan]
    scores = torch.tensor(special).repeat(12)
    for key in KEYS:
        for index in (-1, 0, 62, 63, 64, 100, 143, 1000):
            for of in ("abs", "raw", "sigmoid"):
                assert_packed(packs, scores, torch.tensor([key, index]), of)


@pytest.mark.usefixtures("other_isa_for_scores")
def test_every_instruction_set():
    for kind in KINDS:
        test_every_backend_packs_the_reference_mask(native.mask_bits, kind)
    test_any_cut_of_the_reference_mask(native.mask_bits)


@pytest.mark.skipif("native" not in AVAILABLE, reason="the compiled module did not load")
@pytest.mark.parametrize("threads", [1, 2])
def test_every_thread_packs_its_share(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for layout in ("contiguous", "channels_last"):
            scores = inputs.lay_out(inputs.scores("tied", (67, 211, 3, 3)), layout)
            cut = cuts_of(scores, ek.TopK(0.3))
            with ek.use_backend("native"):
                assert torch.equal(ops.mask_bits(scores, cut, "abs"), reference.mask_bits(scores, cut, "abs"))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("backend", [name for name in AVAILABLE if name not in ("triton", "cuda")])
def test_opcheck(backend):
    scores = torch.randn(7, 3)
    with ek.use_backend(backend):
        cut = ek.select(scores, ek.TopK(0.5)).data
        torch.library.opcheck(torch.ops.edgepop.mask_bits.default, (scores, cut, "abs"))


def test_more_scores_than_an_index_has_bits_for():
    with pytest.raises(ValueError, match=r"scores: expected at most 2\*\*31 - 1 scores in a layer, got 2147483648"):
        cuda.mask_bits(torch.empty(1).expand(2**31), torch.zeros(2, dtype=torch.int64), "abs")


class Largest(TorchDispatchMode):
    """The bytes of the largest tensor that an op returns, views of ``known`` aside."""

    def __init__(self, known):
        super().__init__()
        self.known, self.bytes = known.untyped_storage().data_ptr(), 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        result = op(*args, **(kwargs or {}))
        for t in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() != self.known:
                self.bytes = max(self.bytes, t.numel() * t.element_size())
        return result


@pytest.mark.skipif("native" not in AVAILABLE, reason="the compiled module did not load")
@pytest.mark.parametrize("rule", [ek.TopK(0.3), ek.Threshold(0.2, "raw"), ek.Bernoulli()], ids=str)
def test_freezing_makes_no_mask_of_a_byte_per_weight(rule):
    kind = ek.FusedSupermaskLinear if isinstance(rule, ek.Bernoulli) else ek.FusedSubnetLinear
    layer = kind(300, 200, rule=rule)
    scores = layer.scores.detach()
    torch.manual_seed(1)
    expected = ek.mask(scores, rule)
    torch.manual_seed(1)
    with Largest(scores) as largest:
        layer.freeze()
    assert largest.bytes == layer.mask_bits.numel()
    assert torch.equal(layer.mask(), expected) and torch.equal(layer.packed_mask(), layer.mask_bits)
    assert layer.packed_mask() is not layer.mask_bits


def test_layers_ranked_together_are_packed_together():
    model = ek.share_selection(
        torch.nn.Sequential(*(ek.FusedSubnetLinear(9, 7, rule=ek.GlobalTopK(0.3)) for _ in "ab"))
    )
    for layer in model:
        assert torch.equal(ek.unpack_mask(layer.packed_mask(), layer.weight.shape), layer.mask())
    assert sum(int(layer.mask().sum()) for layer in model) == ek.kept_count(126, 0.3)
