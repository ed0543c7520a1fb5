"""Rules and the count of kept weights."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import edgepop_kernels as ek


@pytest.mark.parametrize(
    ("numel", "keep", "kept"),
    [(10, 0.5, 5), (10, 0.9, 10), (10, 1.0, 10), (1, 0.01, 1), (1000, 0.3, 300), (7, 0.5, 4), (0, 0.5, 0)],
)
def test_kept_count_follows_getsubnet(numel, keep, kept):
    """numel - int((1 - keep) * numel) in double arithmetic; (1 - 0.9) * 10 truncates to 0."""
    assert ek.kept_count(numel, keep) == kept


@given(st.integers(1, 1 << 40), st.floats(0, 1, exclude_min=True))
def test_kept_count_is_monotone_in_keep(numel, keep):
    kept = ek.kept_count(numel, keep)
    assert 0 <= kept <= numel
    assert kept <= ek.kept_count(numel, min(1.0, keep * 2))


def test_rules_are_values():
    assert ek.TopK(0.5) == ek.TopK(keep=0.5, of="abs")
    assert len({ek.TopK(1), ek.TopK(1.0), ek.Threshold(), ek.Threshold(0.5, "sigmoid"), ek.Frozen()}) == 3
    with pytest.raises(AttributeError):
        ek.TopK().keep = 0.3


def float32_neighbours(value):
    middle = torch.tensor(value, dtype=torch.float64).to(torch.float32)
    up, down = torch.tensor(math.inf), torch.tensor(-math.inf)
    return torch.stack([torch.nextafter(middle, down), middle, torch.nextafter(middle, up)])


@pytest.mark.parametrize("cutoff", [0.5, 0.1, 0.73, 1e-30, 0.999999])
def test_sigmoid_threshold_is_exact_at_its_edge(cutoff):
    """s > logit(cutoff), compared in float64, on the float32 numbers around the logit."""
    logit = math.log(cutoff) - math.log1p(-cutoff)
    scores = float32_neighbours(logit)
    assert torch.equal(ek.mask(scores, ek.Threshold(cutoff)), scores.double() > logit)
    assert torch.equal(ek.mask(scores, ek.Threshold(cutoff, inclusive=True)), scores.double() >= logit)


@pytest.mark.parametrize("of", ["abs", "raw"])
@pytest.mark.parametrize("cutoff", [0.0, 0.25, 0.1, -0.1, -1.0, math.inf, -math.inf, 1e-45, 1e39])
def test_threshold_is_strict_or_inclusive(of, cutoff):
    around = float32_neighbours(max(-3e38, min(cutoff, 3e38)))
    scores = torch.cat([around, -around, torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, -math.nan])])
    value = scores.double().abs() if of == "abs" else scores.double()
    assert torch.equal(ek.mask(scores, ek.Threshold(cutoff, of)), value > cutoff)
    assert torch.equal(ek.mask(scores, ek.Threshold(cutoff, of, inclusive=True)), value >= cutoff)


def test_zeros_are_at_a_threshold_of_zero_whatever_their_sign_and_the_processor_flushes():
    scores = torch.tensor([-1.0, -1e-45, -0.0, 0.0, 1e-45, math.nan])
    for flushes in (False, True):
        torch.set_flush_denormal(flushes)
        try:
            rule = ek.Threshold(0.0, of="raw", inclusive=True)
            assert ek.mask(scores, rule).tolist() == [False, False, True, True, True, False]
            assert ek.mask(scores, ek.Threshold(0.5, inclusive=True)).tolist() == ek.mask(scores, rule).tolist()
        finally:
            torch.set_flush_denormal(False)
    assert repr(rule) == "Threshold(cutoff=0.0, of='raw', inclusive=True)" and repr(ek.Threshold()) == (
        "Threshold(cutoff=0.5, of='sigmoid')"
    )


def test_threshold_at_the_ends_of_the_sigmoid():
    scores = torch.tensor([-math.inf, -1.0, 0.0, 1.0, math.inf, math.nan])
    assert ek.mask(scores, ek.Threshold(0.0)).tolist() == [False, True, True, True, True, False]
    assert not ek.mask(scores, ek.Threshold(1.0)).any()
    assert ek.mask(scores, ek.Threshold(0.0, inclusive=True)).tolist() == [True, True, True, True, True, False]
    assert ek.mask(scores, ek.Threshold(1.0, inclusive=True)).tolist() == [False, False, False, False, True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", ["native", "triton", "staged", "reference"])
def test_scores_at_zero_are_kept_in_every_product(backend, dtype):
    if ek.backends()[backend] is not None:
        pytest.skip(ek.backends()[backend])
    values = torch.tensor([-1.0, -1e-45, -0.0, 0.0, 1e-45, math.nan, 2.0, -1e-38, 1e-38])
    scores = torch.stack([values, values.roll(1), values.roll(4)]).requires_grad_()
    weight = torch.randint(1, 5, (3, 9)).float().requires_grad_()
    device = "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"
    with ek.use_backend(backend):
        x = torch.eye(9, dtype=dtype, device=device)
        y = ek.masked_linear(x, weight.to(device), scores.to(device), ek.Threshold(0.0, of="raw", inclusive=True))
        y.sum().backward()
    kept = scores.detach() >= 0
    assert torch.equal(y.detach().cpu().float().t(), weight.detach() * kept)
    assert torch.equal(weight.grad, kept.float()) and torch.equal(scores.grad, weight.detach())
