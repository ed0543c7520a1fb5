"""Masks of whole blocks and channels in layers and networks: edge-popup's and weights that score themselves."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounter

import edgepop_kernels as ek
from edgepop_kernels.testing.tolerances import assert_close

AVAILABLE = [name for name, reason in ek.backends().items() if reason is None]
BACKENDS = [name for name in AVAILABLE if torch.cuda.is_available() or name not in ("triton", "cuda")]
RULES = [ek.Block(0.5, (1, 4)), ek.Block(0.3, (3, 2)), ek.Channels(0.25), ek.Channels(0.5, dim=1)]


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 9, 3, groups=3), nn.Flatten(), nn.Linear(36, 6)
    )


def whole(mask, rule):
    """The number of blocks that the mask keeps; asserts that it has each of them whole."""
    block = rule.block(mask.shape)
    for dim, size in enumerate(block):
        mask = mask.unflatten(2 * dim, (-1, size))
    counted = mask.movedim(list(range(1, mask.dim(), 2)), list(range(-len(block), 0))).flatten(-len(block)).sum(-1)
    full = torch.tensor(block).prod()
    assert ((counted == 0) | (counted == full)).all()
    return int((counted == full).sum())


def test_rules_say_what_they_take():
    assert str(ek.Block()) == "Block(keep=0.5, shape=(1, 4), of='abs')" and ek.Block(0.5, [1, 4]) == ek.Block()
    assert str(ek.Channels(0.3)) == "Channels(keep=0.3, of='abs', dim=0)" and hash(ek.Channels()) == hash(ek.Channels())
    for make, error, message in [
        (lambda: ek.Block(0), ValueError, r"keep: the fraction of weights KEPT must be in \(0, 1\], got 0"),
        (lambda: ek.Block("half"), TypeError, r"keep: expected a float in \(0, 1\], got str"),
        (lambda: ek.Block(0.5, 4), TypeError, "shape: expected a tuple of ints, got int"),
        (lambda: ek.Block(0.5, (1, 4.0)), TypeError, r"shape: expected a tuple of ints, got \(1, 4.0\)"),
        (lambda: ek.Block(0.5, (1, 0)), ValueError, r"shape: expected 1 to 5 numbers from 1 on, got \(1, 0\)"),
        (lambda: ek.Block(0.5, ()), ValueError, r"shape: expected 1 to 5 numbers from 1 on, got \(\)"),
        (lambda: ek.Block(0.5, (1,) * 6), ValueError, "shape: expected 1 to 5 numbers"),
        (lambda: ek.Block(0.5, of="sigmoid"), ValueError, "of: expected one of 'abs', 'raw', got 'sigmoid'"),
        (lambda: ek.Channels(1.5), ValueError, r"keep: the fraction of weights KEPT must be in \(0, 1\], got 1.5"),
        (lambda: ek.Channels(0.5, dim=2), ValueError, "dim: expected 0 or 1, got 2"),
        (lambda: ek.Channels(0.5, dim=True), TypeError, "dim: expected an int, got bool"),
        (lambda: ek.Channels(0.5, "sigmoid"), ValueError, "of: expected one of 'abs', 'raw', got 'sigmoid'"),
        (lambda: ek.mask(torch.randn(7), ek.Channels()), ValueError, r"takes weights of 2 to 5 dimensions, got \(7,\)"),
        (lambda: ek.mask(torch.randn(4, 4), ek.Block(0.5, (1, 1, 3, 3))), ValueError, r"weights of 4 to 5 dimensions"),
    ]:
        with pytest.raises(error, match=message):
            make()
    message = (
        r"rule: Block\(.*\) takes weights of 2 to 5 dimensions, each a multiple of the block's, got shape \(8, 6\)"
    )
    for call in (
        lambda: ek.mask(torch.randn(8, 6), ek.Block()),
        lambda: ek.select(torch.randn(8, 6), ek.Block()),
        lambda: ek.masked_linear(torch.randn(2, 6), torch.randn(8, 6), torch.randn(8, 6), ek.Block()),
        lambda: ek.FusedSubnetLinear(6, 8, rule=ek.Block()),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(ValueError, match="rule: FusedSupermaskLinear takes one of Threshold, Bernoulli, got Block"):
        ek.FusedSupermaskLinear(8, 8, rule=ek.Block())
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    with pytest.raises(ValueError, match=r"got shape \(8, 3, 3, 3\), of 0; exclude=\.\.\. leaves that dense"):
        ek.convert(model, ek.Block())
    assert type(model[1]) is nn.Conv2d


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_largest_sums_are_kept_and_of_equal_ones_the_first(backend):
    nan, inf = torch.nan, torch.inf
    scores = torch.tensor([[1.0, -1.0, 2.0, 0.0], [nan, 9.0, -3.0, 0.5], [0.0, -2.0, inf, -inf]])
    with ek.use_backend(backend):
        # |s|: 2, 2; NaN, 3.5; 2, inf
        assert ek.mask(scores, ek.Block(0.5, (1, 2)))[:, ::2].tolist() == [
            [True, False],
            [False, True],
            [False, True],
        ]
        assert ek.mask(scores, ek.Block(0.8, (1, 2)))[:, ::2].tolist() == [[True, True], [False, True], [True, True]]
        # s: 0, 2; NaN, -2.5; -2, NaN
        kept = ek.mask(scores, ek.Block(0.6, (1, 2), "raw"))[:, ::2].tolist()
        assert kept == [[True, True], [False, True], [True, False]]
        assert ek.mask(scores[:2, 2:], ek.Channels(0.5)).tolist() == [[False, False], [True, True]]
        assert ek.mask(scores[:1], ek.Channels(0.5, dim=1)).tolist() == [[True, False, True, False]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule", [*RULES, ek.Block(0.4, (4, 5), "raw")], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_products_and_gradients_are_those_of_the_mask(backend, rule, dtype):
    torch.manual_seed(1)
    weight, scores = torch.randn(24, 20), torch.randn(24, 20, requires_grad=True)
    x = torch.randn(7, 20, dtype=dtype, requires_grad=True)
    dy = torch.randn(7, 24, dtype=dtype)
    with ek.use_backend(backend):
        y = ek.masked_linear(x, weight, scores, rule)
        y.backward(dy)
    with ek.use_backend("reference"):
        mask = ek.mask(scores.detach(), rule)
    blocks = 24 * 20 // torch.tensor(rule.block(mask.shape)).prod().item()
    assert whole(mask, rule) == ek.kept_count(blocks, rule.keep)
    x64, w64, s64, dy64, mask = (
        x.detach().double(),
        weight.double(),
        scores.detach().double(),
        dy.double(),
        mask.double(),
    )
    slope = s64.sign() if rule.of == "abs" else 1.0
    expected = {"y": (y, x64 @ (w64 * mask).T), "dx": (x.grad, dy64 @ (w64 * mask))}
    expected["ds"] = (scores.grad, dy64.T @ x64 * w64 * slope)
    for name, (found, exact) in expected.items():
        assert_close(name, found, exact, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("itself", [False, True], ids=["scores", "weight"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("rule", [ek.Block(0.5, (1, 2)), ek.Block(0.5, (1, 1, 3, 3)), ek.Channels(0.5)], ids=str)
def test_convolutions_are_those_of_the_mask(backend, itself, layout, rule):
    torch.manual_seed(3)
    geometry = dict(stride=2, padding=1, dilation=1, groups=2)
    x = torch.randn(3, 8, 9, 7).to(memory_format=layout).requires_grad_()
    weight = torch.randn(10, 4, 3, 3).to(memory_format=layout).requires_grad_(itself)
    scores = None if itself else torch.randn(10, 4, 3, 3).to(memory_format=layout).requires_grad_()
    with ek.use_backend(backend):
        y = ek.masked_conv2d(x, weight, scores, rule, **geometry)
        dy = torch.randn_like(y)
        y.backward(dy)
    ranked = (weight if itself else scores).detach()
    with ek.use_backend("reference"):
        mask = ek.mask(ranked, rule).double()
    x64 = x.detach().double().requires_grad_()
    effective = (weight.detach().double() * mask).requires_grad_()
    y64 = F.conv2d(x64, effective, **geometry)
    y64.backward(dy.double())
    assert_close("y", y, y64, torch.float32)
    assert_close("dx", x.grad, x64.grad, torch.float32)
    if itself:
        assert_close("dw", weight.grad, effective.grad, torch.float32)
    else:
        expected = effective.grad * weight.detach().double() * ranked.double().sign()
        assert_close("ds", scores.grad, expected, torch.float32)


@pytest.mark.parametrize("method", ["subnet", "sparse"])
@pytest.mark.parametrize("rule", [ek.Block(0.5, (1, 4)), ek.Channels(0.5)], ids=str)
def test_a_network_trains_as_under_its_masks_and_keeps_its_structure(method, rule):
    model = ek.convert(network(), rule, method=method, left="ignore", exclude=["2"])
    ek.share_selection(model)
    x, y = torch.randn(9, 4, 4, 4), torch.randint(6, (9,))
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=20.0 if method == "subnet" else 1.0
    )
    masks = [model[i].mask() for i in (0, 4)]
    for _ in range(20):
        plain = ek.materialize(model, copy=True)
        torch.testing.assert_close(model(x), plain(x))
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    for before, i in zip(masks, (0, 4), strict=True):
        kept = whole(before, rule)
        assert kept == whole(model[i].mask(), rule) > 0 and not torch.equal(before, model[i].mask())
        assert model[i].keep == 0.5


def test_a_channel_that_is_not_kept_computes_its_bias():
    model = ek.convert(nn.Sequential(nn.Conv2d(4, 8, 3)), ek.Channels(0.25), scores="magnitude")
    y = model(torch.randn(2, 4, 5, 5))
    gone = ~model[0].mask().flatten(1).any(1)
    assert gone.sum() == 6
    assert torch.equal(y[:, gone], model[0].bias[gone].view(1, 6, 1, 1).expand(2, 6, 3, 3))


def test_blocks_of_a_transposed_layer_are_in_the_dimensions_of_its_weight():
    model = ek.convert(nn.Sequential(nn.ConvTranspose2d(8, 6, 3)), ek.Channels(0.5, dim=1))
    assert model[0].mask().sum((0, 2, 3)).unique().tolist() == [0, 72]
    x = torch.randn(2, 8, 5, 5)
    torch.testing.assert_close(model(x), ek.materialize(model, copy=True)(x))


def test_the_fraction_is_set_and_scheduled_and_a_deviation_follows_it():
    model = ek.convert(nn.Sequential(nn.Linear(32, 16)), ek.Block(0.25), init="signed_constant", scale="paper")
    assert model[0].weight.abs().max().item() == pytest.approx((2 / (32 * 0.25)) ** 0.5)
    model[0].keep = 0.75
    assert model[0].rule == ek.Block(0.75) and whole(model[0].mask(), model[0].rule) == 96
    schedule = ek.KeepSchedule(model, final=0.125, initial=1.0, end=3, shape="linear")
    kept = []
    for _ in range(3):
        schedule.step()
        kept.append(whole(model[0].mask(), model[0].rule))
    assert kept[-1] == 16 and kept == sorted(kept, reverse=True)
    ek.set_keep(model, {"0": 0.5})
    assert model[0].keep == 0.5
    trained = nn.Sequential(nn.Linear(32, 16))
    weight = trained[0].weight.detach().clone()
    ek.convert(trained, ek.Block(0.5), scores="magnitude")
    assert torch.equal(trained[0].mask(), ek.mask(weight, ek.Block(0.5)))


@pytest.mark.parametrize("rule", RULES[:3], ids=str)
def test_the_rule_travels_and_a_fixed_mask_stays(tmp_path, rule):
    def made(rule, **options):
        return ek.convert(network(), rule, exclude=["2"], left="ignore", **options)

    model, again = made(rule, scores="magnitude"), made(ek.TopK(0.9))
    again.load_state_dict(model.state_dict())
    assert again[0].rule == rule and torch.equal(again[4].mask(), model[4].mask())
    x = torch.randn(2, 4, 4, 4)
    expected = model(x)
    ek.save_packed(model, tmp_path / "net.safetensors")
    other = made(rule)
    ek.load_packed(tmp_path / "net.safetensors", other)
    torch.testing.assert_close(other(x), expected)
    ek.train_weights(model)
    assert whole(model[0].mask(), rule) > 0
    torch.testing.assert_close(model(x), expected)
    assert ek.summary(again).rows[0].rule == rule and type(rule).__name__ in str(ek.summary(again))


def test_a_compiled_network_selects_alike_and_follows_its_fraction():
    torch._dynamo.reset()
    model = ek.convert(nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)), ek.Block(0.5))
    x = torch.randn(3, 16)
    expected = model(x)
    expected.sum().backward()
    grad = model[0].scores.grad.clone()
    model[0].scores.grad = None
    compiled = copy.deepcopy(model)
    counts = CompileCounter()
    run = torch.compile(compiled, backend="aot_eager", fullgraph=True)
    found = run(x)
    found.sum().backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(run.get_parameter("_orig_mod.0.scores").grad, grad)
    torch._dynamo.reset()
    followed = torch.compile(compiled, backend=counts, fullgraph=True)
    for keep in (0.5, 0.4, 0.3, 0.25, 0.75, 1.0):
        ek.set_keep(compiled, keep)
        ek.set_keep(model, keep)
        torch.testing.assert_close(followed(x), model(x))
    assert counts.frame_count <= 2
    torch._dynamo.reset()


def test_score_optimizers_step_them_as_torch_does():
    def trained(make):
        model = ek.convert(network(), ek.Block(0.5, (3, 2)), exclude=["2"], left="ignore")
        optimizer = make(model)
        torch.manual_seed(3)
        for _ in range(4):
            optimizer.zero_grad()
            F.cross_entropy(model(torch.randn(9, 4, 4, 4)), torch.randint(6, (9,))).backward()
            optimizer.step()
        return [model[i].mask() for i in (0, 4)], model[4].scores.detach()

    torch.manual_seed(5)
    ours, mine = trained(lambda model: ek.optim.ScoreSGD(model, lr=0.3, momentum=0.9))
    torch.manual_seed(5)
    theirs, other = trained(lambda model: torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9))
    torch.testing.assert_close(mine, other)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
