"""The reference against definitions written out here; every kernel is then tested against the reference."""

import math

import pytest
import torch
import torch.nn.functional as F

import edgepop_kernels as ek
from edgepop_kernels import reference

SPECIAL = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 1.0, -1.0, 3e38, -3e38, math.inf, -math.inf, math.nan, -math.nan])


@pytest.fixture(autouse=True)
def reference_backend():
    with ek.use_backend("reference"):
        yield


@pytest.mark.parametrize("of", ["abs", "raw"])
def test_keys_order_as_the_scores(of):
    value = (SPECIAL.double().abs() if of == "abs" else SPECIAL.double()).tolist()
    key = reference.ordered_key(SPECIAL, of).tolist()
    assert min(key) >= 0 and max(key) < 1 << 32
    for i in range(len(key)):
        for j in range(len(key)):
            below = value[i] < value[j] or (math.isnan(value[i]) and not math.isnan(value[j]))
            assert (key[i] < key[j]) == below, (SPECIAL[i], SPECIAL[j])


def kept_by_definition(scores, kept, of):
    """The first ``kept`` in the order: numbers before NaN, larger before smaller, lower index before higher."""
    flat = scores.flatten().tolist()
    rank = [abs(s) if of == "abs" else s for s in flat]
    order = sorted(range(len(flat)), key=lambda i: (1, 0, i) if math.isnan(flat[i]) else (0, -rank[i], i))
    mask = torch.zeros(len(flat), dtype=torch.bool)
    mask[order[:kept]] = True
    return mask.view(scores.shape)


@pytest.mark.parametrize("of", ["abs", "raw"])
@pytest.mark.parametrize("keep", [0.01, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("kind", ["normal", "tied", "equal", "special"])
def test_mask_keeps_exactly_the_best(of, keep, kind):
    torch.manual_seed(0)
    scores = {
        "normal": torch.randn(7, 5, 3, 3),
        "tied": torch.randint(-3, 4, (7, 5, 3, 3)).float() * 0.25,
        "equal": torch.full((7, 5, 3, 3), -0.5),
        "special": SPECIAL[torch.randint(0, 12, (7, 5, 3, 3))],
    }[kind]
    mask = ek.mask(scores, ek.TopK(keep, of))
    assert torch.equal(mask, kept_by_definition(scores, ek.kept_count(scores.numel(), keep), of))
    assert torch.equal(mask, ek.mask(scores.contiguous(memory_format=torch.channels_last), ek.TopK(keep, of)))


def test_cut_names_the_last_kept():
    scores = torch.tensor([0.5, -2.0, 0.5, 1.0, -0.5])
    cut = ek.select(scores, ek.TopK(0.75))
    assert cut.threshold.item() == 0.5 and cut.index.item() == 2
    cut = ek.select(scores, ek.TopK(1.0, of="raw"))
    assert cut.threshold.item() == -2.0 and cut.index.item() == 1
    assert ek.select(torch.tensor([math.nan, 1.0]), ek.TopK(1.0)).threshold.isnan()


@pytest.mark.parametrize("numel", [0, 1, 7, 8, 63, 64, 65, 1000])
def test_packed_mask_round_trip(numel):
    torch.manual_seed(numel)
    mask = torch.rand(numel) < 0.5
    bits = ek.pack_mask(mask)
    assert bits.dtype == torch.uint8 and bits.numel() == -(-numel // 64) * 8 + 8
    assert torch.equal(ek.unpack_mask(bits, mask.shape), mask)
    assert all(bool(bits[i // 8] >> (i % 8) & 1) == bool(mask[i]) for i in range(numel))


def straight_through(x, weight, scores, bias, rule, call):
    """y through M + (map(S) - map(S).detach()), so that autograd itself makes dM/dmap(S) = 1."""
    mapped = {"abs": scores.abs, "raw": lambda: scores, "sigmoid": scores.sigmoid}[rule.of]()
    mask = ek.mask(scores.detach().float(), rule).to(mapped)
    return call(x, weight * (mask + (mapped - mapped.detach())), bias)


@pytest.mark.parametrize("rule", [ek.TopK(0.4), ek.TopK(0.6, "raw"), ek.Threshold(0.5), ek.Threshold(0.3, "abs")])
@pytest.mark.parametrize("layer", ["linear", "conv"])
def test_gradients_are_straight_through(rule, layer):
    """dS = dW_eff * W * map'(S), dW = dW_eff * M, dx, db: against autograd on the straight-through expression."""
    torch.manual_seed(1)
    shape = (6, 4) if layer == "linear" else (6, 2, 3, 2)
    x = torch.randn(*((5, 4) if layer == "linear" else (2, 4, 7, 6)), dtype=torch.float64)
    weight, bias, scores = torch.randn(shape).double(), torch.randn(6).double(), torch.randn(shape)
    options = {} if layer == "linear" else {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2}
    masked, plain = (ek.masked_linear, F.linear) if layer == "linear" else (ek.masked_conv2d, F.conv2d)
    ours = [t.clone().requires_grad_() for t in (x, weight, scores, bias)]
    theirs = [t.clone().requires_grad_() for t in (x, weight, scores.double(), bias)]
    y = masked(*ours[:3], rule, ours[3], **options)
    expected = straight_through(*theirs, rule, lambda *operands: plain(*operands, **options))
    torch.testing.assert_close(y, expected)
    dy = torch.randn_like(y)
    y.backward(dy)
    expected.backward(dy)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad.to(mine.dtype))


def test_weight_that_scores_itself_gets_the_gradient_of_every_edge():
    """Discovering Neural Wirings: forward top-k of |w|, backward the dense gradient dW_eff."""
    torch.manual_seed(2)
    x, weight = torch.randn(5, 8), torch.randn(6, 8, requires_grad=True)
    y = ek.masked_linear(x, weight, None, ek.TopK(0.25))
    dy = torch.randn_like(y)
    y.backward(dy)
    torch.testing.assert_close(y.detach(), F.linear(x, weight.detach() * ek.mask(weight.detach(), ek.TopK(0.25))))
    torch.testing.assert_close(weight.grad, dy.t() @ x)


def test_gradcheck_in_float64():
    torch.manual_seed(3)
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, dtype=torch.float64, requires_grad=True)
    scores, rule = torch.randn(4, 2, 3, 3), ek.TopK(0.5)
    weight = torch.randn(4, 2, 3, 3, dtype=torch.float64)  # its own gradient is checked above: M is not smooth in W
    assert torch.autograd.gradcheck(lambda x, b: ek.masked_conv2d(x, weight, scores, rule, b, 2, 1, 1, 2), (x, bias))
    rows = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, b: ek.masked_linear(x, weight[..., 0, 0], scores[..., 0, 0], rule, b), (rows, bias)
    )


def test_masked_out_infinities_do_not_reach_the_result():
    weight, scores = torch.ones(2, 3), torch.tensor([[1.0, 2.0, 0.0], [3.0, 4.0, 0.0]])
    weight[:, 2] = torch.tensor([math.inf, math.nan])
    assert ek.masked_linear(torch.ones(1, 3), weight, scores, ek.TopK(4 / 6)).tolist() == [[2.0, 2.0]]
