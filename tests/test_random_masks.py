"""Bernoulli masks: the generator, the comparison with the sigmoid, and one draw for forward and backward."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

import edgepop_kernels as ek
from edgepop_kernels import ops, reference

AVAILABLE = [name for name, reason in ek.backends().items() if reason is None]
# Triton's kernels, which "cuda" draws with too, run compiled where there is a CUDA device, under its interpreter where
# there is none.
DEVICE = {name: "cuda" if name in ("triton", "cuda") and torch.cuda.is_available() else "cpu" for name in AVAILABLE}
BACKENDS = [
    pytest.param(name, marks=pytest.mark.gpu) if DEVICE[name] == "cuda" else pytest.param(name) for name in AVAILABLE
]
OTHERS = [backend for backend in BACKENDS if backend.values != ("reference",)]
SPECIAL = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, -math.nan, 1e-45, -1e-40, 21.99, 22, -22, 100])


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_published_answers(counter, key, expected):
    """The known answers of Salmon et al. 2011 for philox4x32-10."""
    words = reference.philox([torch.tensor(c) for c in counter], [torch.tensor(k) for k in key])
    assert " ".join(f"{int(w):08x}" for w in words) == expected


def test_uniforms_are_uniform_and_differ_from_seed_to_seed():
    n = 1 << 18
    r = torch.stack([reference.uniform24(n, torch.tensor(seed)) for seed in (0, 1, 1 << 32, -1)])
    assert r.min() >= 0 and r.max() < 1 << 24
    counts = torch.stack([torch.bincount(row >> 16, minlength=256) for row in r]).double()
    chi_squared = ((counts - n / 256) ** 2 / (n / 256)).sum(1)  # 255 degrees of freedom: deviation 22.6
    assert ((chi_squared - 255).abs() < 5 * 22.6).all()
    correlation = torch.corrcoef(torch.cat([r.double(), r[:1].roll(1, 1).double()]))
    assert (correlation - torch.eye(5)).abs().max() < 5 / n**0.5
    assert torch.equal(reference.uniform24(1000, torch.tensor(1)), r[1, :1000])


def test_probability_is_the_sigmoid():
    """P(kept) = 1 / (1 + exp(-s)), in the integers of the comparison, against float64."""
    s = torch.cat([torch.linspace(-23, 23, 1_000_001), torch.randn(100_000) * 1e-3])
    odds = reference.exp_minus(s.abs()).double() / 2**31
    probability = torch.where(s >= 0, 1 / (1 + odds), odds / (1 + odds))
    assert (probability - s.double().sigmoid()).abs().max() < 2**-26


def test_share_kept_is_the_sigmoid():
    n = 1 << 18
    for s in (-4.0, -1.0, 0.0, 0.3, 2.0, 30.0):
        p = 1 / (1 + math.exp(-s))
        kept = ek.mask(torch.full((n,), s), ek.Bernoulli()).float().mean().item()
        assert abs(kept - p) <= 5 * math.sqrt(p * (1 - p) / n), s


@pytest.mark.parametrize("backend", BACKENDS)
def test_special_scores(backend):
    with ek.use_backend(backend):
        share = ek.mask(SPECIAL.repeat(4096).to(DEVICE[backend]), ek.Bernoulli()).view(-1, 12).float().mean(0).tolist()
    for i, expected in enumerate([0.5, 0.5, 1, 0, 0, 0, 0.5, 0.5, 1, 1, 0, 1]):
        assert abs(share[i] - expected) <= (0.05 if expected == 0.5 else 0), SPECIAL[i]


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("shape", [(0,), (1,), (63,), (64,), (65,), (7, 5), (16, 8, 3, 3), (2, 3, 4, 5, 6)])
def test_every_backend_draws_the_reference_mask(backend, shape):
    scores = torch.randn(shape) * 4
    for seed in (0, -1, 1234567890123456789):
        same_draw(backend, scores, torch.tensor(seed))
        if scores.dim() == 4:
            same_draw(backend, scores.contiguous(memory_format=torch.channels_last), torch.tensor(seed))
        if scores.dim() == 2:
            same_draw(backend, scores.t().contiguous().t(), torch.tensor(seed))


@pytest.mark.parametrize("backend", OTHERS)
def test_millions_of_weights_are_drawn_alike(backend):
    interpreted = backend == "triton" and DEVICE[backend] == "cpu"
    same_draw(backend, torch.randn(100_003 if interpreted else 3_000_003) * 6, torch.tensor(42))


def same_draw(backend, scores, seed):
    expected = reference.draw(scores, seed)
    with ek.use_backend(backend):
        assert torch.equal(ops.draw(scores.to(DEVICE[backend]), seed.to(DEVICE[backend])).cpu(), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck_draw(backend):
    with ek.use_backend(backend):
        scores, seed = torch.randn(7, 3).to(DEVICE[backend]), torch.tensor(3).to(DEVICE[backend])
        torch.library.opcheck(torch.ops.edgepop.draw.default, (scores, seed))


@pytest.mark.parametrize("layer", ["linear", "conv"])
@pytest.mark.parametrize("trains_weight", [False, True])
def test_gradients_use_the_mask_of_the_forward(layer, trains_weight):
    """W_eff = W * M, M = Bern(p) + p - stop(p), p = sigmoid(s) (Zhou et al. 2019): autograd in float64 on that
    expression. dW (where the weight trains) and dx follow from the same draw."""
    shape = (6, 4) if layer == "linear" else (6, 2, 3, 2)
    x = torch.randn(*((5, 4) if layer == "linear" else (2, 4, 7, 6)), dtype=torch.float64)
    weight, scores = torch.randn(shape).double(), torch.randn(shape)
    options = {} if layer == "linear" else {"stride": (2, 1), "padding": (1, 2), "groups": 2}
    masked, plain = (ek.masked_linear, F.linear) if layer == "linear" else (ek.masked_conv2d, F.conv2d)
    with ek.use_backend("reference"):
        draw = ek.select(scores, ek.Bernoulli())
        ours = [t.clone().requires_grad_(i != 1 or trains_weight) for i, t in enumerate((x, weight, scores))]
        y = masked(*ours, ek.Bernoulli(), **options, cut=draw)
        theirs = [t.clone().requires_grad_() for t in (x, weight, scores.double())]
        p = theirs[2].sigmoid()
        expected = plain(theirs[0], theirs[1] * (ek.unpack_mask(draw.bits, shape) + p - p.detach()), **options)
        torch.testing.assert_close(y, expected)
        dy = torch.randn_like(y)
        y.backward(dy)
        expected.backward(dy)
    for mine, other in zip(ours, theirs, strict=True):
        if mine.requires_grad:
            torch.testing.assert_close(mine.grad, other.grad.to(mine.dtype))


def test_draws_follow_torchs_generator():
    layer = ek.FusedSupermaskLinear(32, 16, rule=ek.Bernoulli(), scores_init=0.0)
    x = torch.randn(4, 32)

    def run():
        torch.manual_seed(7)
        return layer(x), layer(x)

    (first, second), (again, _) = run(), run()
    assert torch.equal(first, again) and not torch.equal(first, second)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_repeats_the_draw(reentrant):
    layer = ek.FusedSupermaskLinear(32, 16, rule=ek.Bernoulli(), scores_init=0.0)
    x = torch.randn(4, 32, requires_grad=True)
    gradients = []
    for call in (layer, lambda x: checkpoint(layer, x, use_reentrant=reentrant)):
        torch.manual_seed(5)
        layer.scores.grad = x.grad = None
        call(x).square().sum().backward()
        gradients.append((layer.scores.grad, x.grad))
    for plain, checkpointed in zip(*gradients, strict=True):
        assert torch.equal(plain, checkpointed)


def test_compiles_without_graph_breaks():
    model = ek.FusedSupermaskLinear(32, 16, rule=ek.Bernoulli(), scores_init=0.0)
    x = torch.randn(4, 32)
    torch.manual_seed(3)
    expected = model(x)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.manual_seed(3)
    torch.testing.assert_close(compiled(x), expected)
    compiled(x).sum().backward()
    assert model.scores.grad.any()


def test_evaluation_samples_or_rounds():
    x = torch.randn(4, 32)
    sampled = ek.FusedSupermaskLinear(32, 16, rule=ek.Bernoulli(), scores_init=0.0).eval()
    assert not torch.equal(sampled(x), sampled(x))
    rounded = ek.FusedSupermaskLinear(32, 16, rule=ek.Bernoulli(at_eval="round"))
    with torch.no_grad():
        rounded.scores.copy_(torch.randn(16, 32))
    assert not torch.equal(rounded(x), rounded(x))
    rounded.eval()
    torch.testing.assert_close(rounded(x), F.linear(x, rounded.weight * (rounded.scores > 0), rounded.bias))
    assert torch.equal(rounded.train().mask(), rounded.scores > 0)
    assert not torch.equal(rounded(x), rounded(x))  # after an evaluation as before it
    assert abs(rounded.keep - rounded.scores.sigmoid().mean().item()) < 1e-6
