"""Weights of one magnitude as sign bits, on Triton's kernels and staged: the bits of every result that the float weight
gives; compiled where there is a CUDA device, under Triton's interpreter where there is none."""

import dataclasses

import pytest
import torch

import edgepop_kernels as ek
from edgepop_kernels import reference
from edgepop_kernels.testing import inputs
from edgepop_kernels.testing.guard import guarded, guarded_allocations
from edgepop_kernels.testing.tolerances import assert_close, assert_same_bits

pytest.importorskip("triton", reason="triton is not installed")

from edgepop_kernels.backend import staged
from edgepop_kernels.backend import triton as backend
from edgepop_kernels.backend.triton import product
from edgepop_kernels.tuning import Tile

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []

BF16, FP16 = torch.bfloat16, torch.float16
# Rows that begin with words and rows that do not, runs that end within a tile, in a word and with it.
LINEAR = [
    inputs.LinearCase(rows=(3,), in_features=1, out_features=1),
    inputs.LinearCase(rows=(17,), in_features=63, out_features=100),
    inputs.LinearCase(rows=(2, 3), in_features=100, out_features=17, scores="tied", x_layout="strided"),
    inputs.LinearCase(rows=(19,), in_features=96, out_features=130, dtype=BF16),
    inputs.LinearCase(rows=(31,), in_features=160, out_features=70, dtype=FP16, weight_dtype=FP16),
    inputs.LinearCase(rows=(9,), in_features=80, out_features=64, rule=ek.TopK(0.3, "raw"), weight_layout="transposed"),
    inputs.LinearCase(rows=(5,), in_features=33, out_features=7, rule=ek.Threshold(0.5), dy_layout="expanded"),
]
CONV = [
    inputs.ConvCase(batch=1, in_channels=3, out_channels=17, size=(9, 7), padding=(1, 1)),
    inputs.ConvCase(in_channels=64, out_channels=40, size=(5, 4), kernel=(1, 1), stride=(2, 1), dtype=BF16),
    inputs.ConvCase(in_channels=34, out_channels=20, size=(3, 5), kernel=(1, 1), groups=2, x_layout="channels_last"),
    inputs.ConvCase(batch=1, in_channels=17, out_channels=5, kernel=(2, 3), stride=(1, 2), dilation=(2, 1)),
    inputs.ConvCase(in_channels=24, out_channels=36, size=(5, 7), groups=2, weight_layout="channels_last"),
    inputs.ConvCase(in_channels=6, out_channels=12, kernel=(5, 3), stride=(2, 1), padding=(2, 1), groups=6),
]
TILES = {
    "default": None,
    "shorter than a word": Tile(m=16, n=64, k=16, splits=3, band=2),
    "longer than a word": Tile(m=64, n=32, k=64, splits=2, band=2),
}


@dataclasses.dataclass
class Layer:
    """The operands of one case: the mask once by its scores and cut, once packed; the weight in either form."""

    case: inputs.Draw
    magnitude: float = 0.37

    def __post_init__(self):
        x, _, scores, _, dy = (None if t is None else t.to(DEVICE) for t in self.case.tensors())
        self.x, self.dy, self.scores, self.of = x, dy, scores, self.case.rule.of
        self.cut = ek.select(scores, self.case.rule).data
        self.bits = reference.pack_mask(reference.mask(scores, self.cut, self.of))
        negative = torch.rand(scores.shape, generator=inputs.generator(1)) < 0.5
        self.signs = reference.pack_mask(negative).to(DEVICE)
        number = torch.tensor(self.magnitude, dtype=self.case.weight_dtype, device=DEVICE)
        self.number = number.expand(scores.shape)
        self.weight = reference.signed(self.number, self.signs)

    def like_scores(self):
        """The float weight in the memory format of the scores."""
        return torch.empty_like(self.scores, dtype=self.weight.dtype).copy_(self.weight)


def results(ops, layer, weight, signs, packed):
    scores, cut, of = (layer.bits, None, "bits") if packed else (layer.scores, layer.cut, layer.of)
    forward, backward, geometry = (None,), (), ()
    op = "masked_linear"
    if isinstance(layer.case, inputs.ConvCase):
        op, options = "masked_conv2d", layer.case.options
        geometry = tuple(options[name] for name in ("stride", "padding", "dilation", "groups"))
        forward, backward = (None, *geometry, False), (layer.x.shape, *geometry, False)
    yield "y", getattr(ops, op)(layer.x, weight, scores, cut, of, *forward, signs)
    yield "dx", getattr(ops, f"{op}_dx")(layer.dy, weight, scores, cut, of, *backward, signs)
    if not packed:
        grads = getattr(ops, f"{op}_dw")
        yield "dS", grads(layer.dy, layer.x, weight, scores, cut, of, True, "none", *geometry, signs)[0]


IN_MANY_TILES = [LINEAR[1], LINEAR[3], LINEAR[4], CONV[1], CONV[2], CONV[4]]
CASES = [(case, tile) for tile in TILES for case in (IN_MANY_TILES if TILES[tile] else LINEAR + CONV)]


@pytest.mark.parametrize("packed", [False, True], ids=["scores", "bits"])
@pytest.mark.parametrize(("case", "tile"), CASES, ids=str)
def test_same_bits_as_the_float_weight(case, packed, tile, monkeypatch):
    if TILES[tile] is not None:
        monkeypatch.setattr(product, "tile", lambda problem, device: TILES[tile])
    layer = Layer(case)
    weight = layer.weight if packed else layer.like_scores()
    expected = dict(results(backend, layer, weight, None, packed))
    reached = {"bits": layer.bits, "signs": layer.signs}
    with guarded(**reached) as (layer.bits, signs), guarded_allocations():
        got = dict(results(backend, layer, layer.number, signs, packed))
    for name, value in expected.items():
        assert_same_bits(name, got[name], value)
    for name, value in results(reference, layer, layer.number, layer.signs, packed):
        assert_close(name, got[name], value, case.dtype)


@pytest.mark.parametrize("packed", [False, True], ids=["scores", "bits"])
@pytest.mark.parametrize("case", [LINEAR[3], LINEAR[5], CONV[0], CONV[4]], ids=str)
def test_staged_takes_the_same_operands(case, packed):
    layer = Layer(case)
    expected = dict(results(staged, layer, layer.weight, None, packed))
    for name, value in results(staged, layer, layer.number, layer.signs, packed):
        assert_same_bits(name, value, expected[name])


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("packed", [False, True], ids=["scores", "bits"])
def test_stage_kernel(packed, channels_last):
    from edgepop_kernels.backend.triton.stage import stage

    layer = Layer(inputs.ConvCase(in_channels=5, out_channels=7, kernel=(3, 2), scores="tied"))
    mask = (layer.bits, None, "bits") if packed else (layer.scores, layer.cut, "abs")
    layout = torch.channels_last if channels_last else torch.contiguous_format
    workspace = torch.full_like(layer.weight, torch.nan).contiguous(memory_format=layout)
    stage(layer.number, *mask, workspace, layer.signs)
    assert_same_bits("workspace", workspace, layer.weight * reference.mask(layer.scores, layer.cut, "abs"))


@pytest.mark.parametrize("magnitude", [0.0, 1e-45, 3e38])
def test_any_magnitude(magnitude):
    layer = Layer(inputs.LinearCase(rows=(2,), in_features=5, out_features=9), magnitude)
    assert_same_bits("number", layer.weight.abs(), layer.number)
    eye = torch.eye(5, device=DEVICE)
    y = backend.masked_linear(eye, layer.number, layer.bits, None, "bits", None, layer.signs)
    mask = reference.mask(layer.scores, layer.cut, "abs")
    assert_same_bits("y", y.t(), torch.where(mask, layer.weight, 0.0))


def test_bits_that_begin_within_a_word():
    """A frozen mask may be a view of a file's bytes."""
    layer = Layer(LINEAR[1])
    expected = backend.masked_linear(layer.x, layer.number, layer.bits, None, "bits", None, layer.signs)
    for first in range(1, 4):
        bits, signs = (torch.cat([t.new_full((first,), 255), t])[first:] for t in (layer.bits, layer.signs))
        y = backend.masked_linear(layer.x, layer.number, bits, None, "bits", None, signs)
        assert_same_bits(f"from byte {first}", y, expected)
