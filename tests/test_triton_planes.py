"""Triton's mask and signs beside a cut: the reference's bits, and layers that train by them as they do by the scores;
compiled where there is a CUDA device, under Triton's interpreter where there is none."""

import pytest
import torch

import edgepop_kernels as ek
from edgepop_kernels import ops, reference
from edgepop_kernels.testing import inputs
from edgepop_kernels.testing.guard import Guarded, guarded_allocations
from edgepop_kernels.testing.tolerances import assert_same_bits
from edgepop_kernels.tuning import roofline

pytest.importorskip("triton", reason="triton is not installed")

from edgepop_kernels.backend import cuda
from edgepop_kernels.backend.triton import conv, linear

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []


@pytest.fixture
def packing(monkeypatch):
    """Layers of any size are packed, in training."""
    monkeypatch.setattr(roofline, "LEAST_PACKED", 0)


def selected(scores, of, keep, wanted=None):
    kept = [ek.kept_count(s.numel(), keep) for s in scores]
    with ek.use_backend("triton"):
        return ops.select_planes(scores, kept, of, None, wanted or [True] * len(scores))


def assert_planes(scores, cut, of, planes):
    mask = reference.pack_mask(reference.mask(scores, cut, of))
    assert planes.shape == (2 if of == "abs" else 1, len(mask))
    assert torch.equal(planes[0], mask)
    if of == "abs":
        signs = reference.pack_mask(scores.signbit())
        assert planes[1, -1] == bool(((scores == 0) | scores.isnan()).any())
        assert torch.equal(planes[1, :-1], signs[:-1])


@pytest.mark.parametrize("kind", inputs.SCORES)
def test_planes_are_the_reference_mask_and_the_signs(kind, packing):
    shapes = [(1,), (3, 17), (63,), (64,), (7, 5, 3, 3), (131, 127), (0, 4)]
    guards = [Guarded(inputs.scores(kind, shape, i), device=torch.device(DEVICE)) for i, shape in enumerate(shapes)]
    scores = [g.tensor for g in guards]
    for keep in (0.3, 1.0):
        of = ["abs", "raw", "abs", "sigmoid", "abs", "abs", "abs"]
        with guarded_allocations():
            cuts, planes = selected(scores, of, keep)
        for s, cut, kind_of, written in zip(scores, cuts, of, planes, strict=True):
            assert_planes(s, cut, kind_of, written)


def test_one_zero_of_many_scores_says_so(packing):
    scores = inputs.scores("normal", (300, 130)).to(DEVICE)
    for zero in (0, 20_000, 38_999):
        one = scores.clone()
        one.view(-1)[zero] = 0.0
        cuts, (planes, without) = selected([one, scores], ["abs", "abs"], 0.5)
        assert_planes(one, cuts[0], "abs", planes)
        assert_planes(scores, cuts[1], "abs", without)
        assert planes[1, -1] == 1 and without[1, -1] == 0


def test_planes_where_they_are_wanted_and_lie_in_order(packing):
    plain = torch.randn(4, 8, 3, 3, device=DEVICE)
    others = [plain.contiguous(memory_format=torch.channels_last), torch.randn(289, device=DEVICE)[1:]]
    cuts, planes = selected([*others, plain, plain], ["abs"] * 4, 0.5, [True, True, False, True])
    assert [p is None for p in planes] == [True, True, True, False]
    assert_planes(plain, cuts[3], "abs", planes[3])


def test_evaluation_and_small_layers_read_scores(packing):
    scores = torch.randn(40, 30, device=DEVICE)
    with torch.no_grad():
        assert selected([scores], ["abs"], 0.5)[1] == [None]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roofline, "LEAST_PACKED", 16384)
        assert selected([scores], ["abs"], 0.5)[1] == [None]
    assert selected([scores], ["abs"], 0.5)[1] != [None]


def test_cuda_packs_by_its_own_cuts(packing, monkeypatch):
    cut = torch.tensor([[reference.ordered_key(torch.tensor([0.25]), "abs").item(), 700]], device=DEVICE)
    monkeypatch.setattr(cuda, "select", lambda *args: cut)
    scores = torch.randn(40, 30, device=DEVICE)
    cuts, (planes,) = cuda.select_planes([scores], [500], ["abs"], None, [True])
    assert cuts is cut
    assert_planes(scores, cut[0], "abs", planes)


GRADS = {  # weight, and x, of which dy follows
    "linear": ((17, 33), (5, 33), {}),
    "linear, rows in words": ((7, 64), (3, 64), {}),
    "pixels in splits": ((3, 17), (3000, 17), {}),
    "conv": ((20, 17, 3, 3), (2, 17, 6, 5), {"padding": (1, 1)}),
    "conv, taps folded": ((5, 3, 3, 3), (2, 3, 9, 7), {"stride": (2, 1), "dilation": (1, 2)}),
    "groups": ((6, 20, 1, 3), (2, 40, 4, 7), {"groups": 2}),
    "depthwise": ((6, 1, 3, 3), (2, 3, 5, 5), {"groups": 3}),
}


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("kind", GRADS)
def test_score_gradients_by_signs(kind, zero):
    """Scores in memory are read where one of all has no sign, and only there."""
    size, x_size, geometry = GRADS[kind]
    weight, x = torch.randn(size, device=DEVICE), torch.randn(x_size, device=DEVICE)
    scores = inputs.scores("normal", size).to(DEVICE)
    if zero:
        scores.view(-1)[-1], scores.view(-1)[0] = 0.0, float("nan")
    score_signs = reference.pack_mask(scores.signbit()).to(DEVICE)
    score_signs[-1] = int(zero)
    if weight.dim() == 2:
        op, dy, rest = ops.masked_linear_dw, torch.randn(x_size[0], size[0], device=DEVICE), ()
    else:
        rest = [
            geometry.get(name, default)
            for name, default in (("stride", (1, 1)), ("padding", (0, 0)), ("dilation", (1, 1)), ("groups", 1))
        ]
        op, dy = ops.masked_conv2d_dw, torch.randn_like(torch.nn.functional.conv2d(x, weight, None, *rest))
    others = scores if zero else torch.full_like(scores, float("nan"))
    with ek.use_backend("triton"):
        by_scores, _ = op(dy, x, weight, scores, None, "abs", True, "none", *rest)
        by_signs, _ = op(dy, x, weight, others, None, "abs", True, "none", *rest, None, score_signs)
    assert_same_bits(kind, by_signs, by_scores)


@pytest.fixture
def read(monkeypatch):
    """What each op was told of its mask, in the order of the calls."""
    told = []

    def watch(module, name, at):
        function = getattr(module, name)

        def watched(*args):
            told.append((name, args[at]))
            return function(*args)

        monkeypatch.setattr(module, name, watched)

    for module, op in ((linear, "masked_linear"), (conv, "masked_conv2d")):
        watch(module, op, 4)
        watch(module, f"{op}_dx", 4)
        watch(module, f"{op}_dw", 5)
    return told


LAYERS = {
    "linear": (lambda: ek.FusedSubnetLinear(33, 17), (5, 33)),
    "conv": (lambda: ek.FusedSubnetConv(3, 8, 3, stride=2, padding=1), (2, 3, 9, 7)),
    "raw": (lambda: ek.FusedSubnetLinear(20, 9, rule=ek.TopK(0.4, "raw")), (4, 20)),
}


@pytest.mark.filterwarnings("ignore:the weight of a masked layer trains")
@pytest.mark.parametrize("trains_weight", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_training_step_reads_bits_where_it_would_read_scores_twice(kind, trains_weight, read, packing, monkeypatch):
    make, size = LAYERS[kind]
    layer, x = make().to(DEVICE), torch.randn(size, device=DEVICE)
    layer.weight.requires_grad_(trains_weight)
    of, results = layer.rule.of, []
    for least in (0, 16384):
        monkeypatch.setattr(roofline, "LEAST_PACKED", least)
        read.clear()
        leaves = [x.clone().requires_grad_(), layer.scores] + [layer.weight] * trains_weight
        with ek.use_backend("triton"):
            y = layer(leaves[0])
            results.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
        assert [told for _, told in read] == (["bits", "bits", of] if least == 0 else [of, of, of])
    for by_bits, by_scores in zip(*results, strict=True):
        assert_same_bits(kind, by_bits, by_scores)
    with torch.no_grad(), ek.use_backend("triton"):
        read.clear()
        layer.scores.add_(0.01)
        layer(x)
        assert [told for _, told in read] == [of]


def test_compiled_steps_read_scores(read, packing):
    layer, x = ek.FusedSubnetLinear(33, 17).to(DEVICE), torch.randn(5, 33, device=DEVICE)
    with ek.use_backend("triton"):
        torch.compile(layer, backend="aot_eager", fullgraph=True)(x).sum().backward()
    assert [told for _, told in read] == ["abs", "abs"]
