"""Masked weights and masks as tensors: gradients flow through them as through masked products."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import edgepop_kernels as ek
from edgepop_kernels.testing import inputs, oracle
from edgepop_kernels.testing.tolerances import assert_close, assert_same_bits

RULES = [
    *(ek.TopK(0.3), ek.TopK(0.3, of="raw"), ek.Percentile(0.4), ek.Threshold(0.5), ek.Threshold(0.1, of="abs")),
    *(ek.GlobalTopK(0.5), ek.Bernoulli(), ek.Frozen()),
]
SIZES = [(1, 1), (3, 17), (63, 3), (17, 101)]


@pytest.fixture(params=["reference", "native"])
def backend(request):
    with ek.use_backend(request.param):
        yield request.param


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("kind", ["tied", "normal", "signed_zeros"])
def test_linear_with_a_masked_weight_is_masked_linear(rule, size, kind):
    x, dy = torch.randn(5, size[1], dtype=torch.float64), torch.randn(5, size[0], dtype=torch.float64)
    weight, scores = torch.randn(size, dtype=torch.float64).requires_grad_(), inputs.scores(kind, size)
    scores = scores > 0 if rule.fixed else scores.requires_grad_()
    cut = None if rule.fixed else ek.select(scores, rule)  # of a draw the same for both
    with ek.use_backend("reference"):
        expected = ek.masked_linear(x, weight, scores, rule, cut=cut)
        effective = ek.masked_weight(weight, scores, rule, cut=cut)
        y = F.linear(x, effective)
        torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
        of = [t for t in (weight, scores) if t.requires_grad]
        ours, theirs = torch.autograd.grad(y, of, dy), torch.autograd.grad(expected, of, dy)
        for a, b in zip(ours, theirs, strict=True):
            assert a.dtype == b.dtype
            bound = 1e-12 if a.dtype == torch.float64 else 1e-6
            torch.testing.assert_close(a, b, rtol=bound, atol=bound)
    if not rule.fresh:
        assert torch.equal(effective != 0, ek.mask(scores, rule))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided", "transposed"])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_convolution_with_a_masked_weight_is_masked_conv2d(backend, rule, layout):
    shape = (7, 3, 3, 3)
    x, dy = torch.randn(2, 3, 9, 9), torch.randn(2, 7, 9, 9)
    weight, scores = (inputs.lay_out(t, layout) for t in (torch.randn(shape), inputs.scores("tied", shape)))
    weight, scores = weight.requires_grad_(), scores > 0 if rule.fixed else scores.requires_grad_()
    cut = None if rule.fixed else ek.select(scores, rule)
    effective = ek.masked_weight(weight, scores, rule, cut=cut)
    expected = ek.masked_conv2d(x, weight, scores, rule, padding=1, cut=cut)
    y = F.conv2d(x, effective, padding=1)
    assert_close("y", y, expected, torch.float32)
    of = [t for t in (weight, scores) if t.requires_grad]
    for ours, theirs in zip(torch.autograd.grad(y, of, dy), torch.autograd.grad(expected, of, dy), strict=True):
        assert_close("gradient", ours, theirs, torch.float32)


@pytest.mark.parametrize("rule", [ek.TopK(0.3), ek.Threshold(0.5), ek.Frozen()], ids=str)
def test_against_the_definition_in_float64(backend, rule):
    shape = (17, 63)
    x, weight = torch.randn(5, 63), torch.randn(shape)
    scores = inputs.scores("normal", shape)
    scores = scores > 0 if rule.fixed else scores
    dy = torch.randn(5, 17)
    answer = oracle.answer(oracle.linear, x, weight, scores, rule, None, dy)
    weight.requires_grad_()
    if not rule.fixed:
        scores.requires_grad_()
    F.linear(x, ek.masked_weight(weight, scores, rule)).backward(dy)
    assert_close("dW", weight.grad, answer.dweight, torch.float32)
    if not rule.fixed:
        assert_close("dS", scores.grad, answer.dscores, torch.float32)


@pytest.mark.parametrize("rule", [ek.TopK(0.3), ek.Percentile(0.3), ek.GlobalTopK(0.3)], ids=str)
def test_a_weight_that_scores_itself_gets_all_of_its_gradient(backend, rule):
    weight, g = inputs.scores("tied", (17, 31)).requires_grad_(), torch.randn(17, 31)
    effective = ek.masked_weight(weight, None, rule)
    assert_same_bits("W*M", effective.detach(), weight.detach() * ek.mask(weight.detach(), rule))
    effective.backward(g)
    assert_same_bits("dW", weight.grad, g)
    with pytest.raises(TypeError, match=r"^weight: scoring itself it must be float32, got torch.bfloat16"):
        ek.masked_weight(weight.bfloat16(), None, rule)


@pytest.mark.parametrize("weight_grad", ["all", "kept", "none", None])
@pytest.mark.parametrize("scored", ["scores", "itself", "frozen"])
def test_which_weights_get_a_gradient_is_to_choose(scored, weight_grad):
    weight, g = torch.randn(7, 13, requires_grad=True), torch.randn(7, 13)
    rule = ek.Frozen() if scored == "frozen" else ek.TopK(0.4)
    scores = {"scores": torch.randn(7, 13), "itself": None, "frozen": torch.randn(7, 13) > 0}[scored]
    mask = ek.mask(weight.detach() if scores is None else scores, rule)
    effective = ek.masked_weight(weight, scores, rule, weight_grad=weight_grad)
    effective.backward(g)
    chosen = weight_grad or ("all" if scored == "itself" else "kept")
    if chosen == "none":
        assert weight.grad is None
    else:
        assert torch.equal(weight.grad, g if chosen == "all" else g * mask)


@pytest.mark.parametrize("rule", [ek.TopK(0.4), ek.TopK(0.4, of="raw"), ek.Threshold(0.6), ek.Bernoulli()], ids=str)
def test_the_gradient_of_scores_may_be_without_the_weight(rule):
    weight, g = torch.randn(7, 13), torch.randn(7, 13)
    scores = torch.randn(7, 13, requires_grad=True)
    ek.masked_weight(weight, scores, rule, score_grad="unweighted").backward(g)
    slope = {"abs": torch.sign, "raw": torch.ones_like, "sigmoid": lambda s: s.sigmoid() * (1 - s.sigmoid())}[rule.of]
    torch.testing.assert_close(scores.grad, g * slope(scores.detach()))
    alone = scores.detach().clone().requires_grad_()
    ek.masked(alone, rule).backward(g)
    assert torch.equal(alone.grad, scores.grad)


@pytest.mark.parametrize("shape", [(1,), (17,), (3, 5, 7), (2, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("rule", [r for r in RULES if not r.fixed], ids=str)
def test_a_float_mask_is_the_mask_with_a_gradient(backend, rule, shape):
    scores, g = inputs.scores("tied", shape).requires_grad_(), torch.randn(shape)
    cut = ek.select(scores, rule)
    mask = ek.masked(scores, rule, cut=cut)
    assert mask.dtype == torch.float32 and set(mask.unique().tolist()) <= {0.0, 1.0}
    if not rule.fresh:
        assert torch.equal(mask.bool(), ek.mask(scores, rule))
    assert torch.equal(mask, ek.masked(scores, rule, cut=cut))
    mask.backward(g)
    by_weight = scores.detach().clone().requires_grad_()
    ek.masked_weight(torch.ones(shape), by_weight, rule, cut=cut).backward(g)
    assert torch.equal(scores.grad, by_weight.grad)


def test_a_frozen_float_mask_is_the_bool_mask():
    mask = torch.tensor([True, False, True])
    assert ek.masked(mask, ek.Frozen()).tolist() == [1.0, 0.0, 1.0]
    with pytest.raises(TypeError, match=r"^scores: expected a bool mask, got torch.uint8"):
        ek.masked(ek.pack_mask(mask), ek.Frozen())


def test_masks_on_the_vectors_of_a_norm_train():
    scores, x = torch.randn(9, requires_grad=True), torch.randn(5, 9)
    gamma = torch.rand(9)
    y = F.batch_norm(x, None, None, gamma * ek.masked(scores, ek.Threshold(0.0, of="raw")), training=True)
    y.square().sum().backward()
    assert torch.equal(y.detach() == 0, (scores <= 0).expand(5, 9)) and (scores.grad[scores > 0] != 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(backend, dtype):
    weight, scores = torch.randn(17, 63).to(dtype).requires_grad_(), torch.randn(17, 63).requires_grad_()
    g = torch.randn(17, 63).to(dtype)
    effective = ek.masked_weight(weight, scores, ek.TopK(0.3))
    assert effective.dtype == dtype
    effective.backward(g)
    assert weight.grad.dtype == dtype and torch.equal(weight.grad, g * ek.mask(scores, ek.TopK(0.3)))
    assert torch.equal(scores.grad, g.float() * weight.detach().float() * scores.detach().sign())


def test_under_autocast_a_product_rounds_after_masking():
    x, weight, scores = torch.randn(5, 63), torch.randn(17, 63), torch.randn(17, 63, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        effective = ek.masked_weight(weight, scores, ek.TopK(0.3))
        y, expected = F.linear(x, effective), ek.masked_linear(x, weight, scores, ek.TopK(0.3))
    assert effective.dtype == torch.float32 and y.dtype == expected.dtype == torch.bfloat16
    assert_close("y", y, expected, torch.bfloat16)
    (ours,), (theirs,) = (torch.autograd.grad(out.float().square().sum(), scores) for out in (y, expected))
    assert_close("dS", ours, theirs, torch.bfloat16)


@pytest.mark.parametrize("rule", [ek.TopK(0.3), ek.Threshold(0.5), ek.Percentile(0.3)], ids=str)
def test_compiled_whole(rule):
    def loss(x, weight, scores):
        return (
            F.linear(x, ek.masked_weight(weight, scores, rule)[:7, 3:]).square().sum()
            + (ek.masked(scores, rule)[0] * weight[0]).sum()
        )

    x, weight, scores = torch.randn(5, 14), torch.randn(11, 17, requires_grad=True), torch.randn(11, 17)
    scores.requires_grad_()
    expected = torch.autograd.grad(loss(x, weight, scores), (weight, scores))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(torch.autograd.grad(compiled(x, weight, scores), (weight, scores)), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_torch_func_differentiates_and_a_second_time_raises():
    weight, scores, g = torch.randn(7, 13), torch.randn(7, 13), torch.randn(7, 13)

    def loss(scores):
        return (ek.masked_weight(weight, scores, ek.TopK(0.3)) * g).sum()

    assert torch.equal(torch.func.grad(loss)(scores), g * weight * scores.sign())
    with pytest.raises(RuntimeError, match=r"^double backward"):
        torch.func.grad(lambda s: torch.func.grad(loss)(s).square().sum())(scores)
    leaf = scores.clone().requires_grad_()
    (ds,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match=r"^double backward"):
        ds.sum().backward()
    with pytest.raises(NotImplementedError, match=r"^vmap"):
        torch.func.vmap(loss)(scores.expand(3, 7, 13))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(weight=torch.ones(3, 4, dtype=torch.int64)), r"^weight: expected float32, bfloat16"),
        (dict(weight=[1.0]), r"^weight: expected a torch.Tensor, got list"),
        (dict(scores=torch.ones(4, 3)), r"^scores: expected the weight's shape \(3, 4\), got \(4, 3\)"),
        (dict(scores=torch.ones(3, 4).bfloat16()), r"^scores: scores are float32 on every path"),
        (dict(scores=torch.ones(3, 4, device="meta")), r"^scores: expected it on weight's device cpu, got meta"),
        (dict(rule=0.5), r"^rule: expected a rule such as TopK"),
        (dict(scores=None, rule=ek.Threshold(0.5)), r"^scores: None \(the weight scores itself\) needs a rule that"),
        (dict(weight_grad="some"), r"^weight_grad: expected 'all', 'kept', 'none' or None, got 'some'"),
        (dict(score_grad=None), r"^score_grad: expected 'weighted' or 'unweighted', got None"),
        (dict(cut=ek.Cut(torch.zeros(2, dtype=torch.int64), "raw")), r"^cut: it was selected with of='raw'"),
        (dict(signs=torch.zeros(3, dtype=torch.uint8)), r"^signs: expected 16 contiguous bytes for 12 weights"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_arguments_are_named(change, message):
    arguments = dict(weight=torch.ones(3, 4), scores=torch.ones(3, 4), rule=ek.TopK(0.5)) | change
    with pytest.raises((TypeError, ValueError), match=message):
        ek.masked_weight(**arguments)


LAYERS = {
    "subnet": lambda: ek.FusedSubnetConv(3, 7, 3, padding=1, keep=0.3),
    "linear": lambda: ek.FusedSubnetLinear(17, 13, keep=0.3),
    "conv1d": lambda: ek.FusedSubnetConv1d(3, 7, 3, padding=1, keep=0.3),
    "conv3d": lambda: ek.FusedSubnetConv3d(3, 7, 3, padding=1, keep=0.3),
    "sparse": lambda: ek.FusedSparseConv(3, 7, 3, padding=1, keep=0.3),
    "supermask": lambda: ek.FusedSupermaskConv(3, 7, 3, padding=1),
    "rescaled": lambda: ek.FusedSupermaskConv(3, 7, 3, padding=1, rescale=True),
    "drawn": lambda: ek.FusedSupermaskLinear(17, 13, rule=ek.Bernoulli()),
}
INPUTS = {nn.Conv2d: (2, 3, 9, 9), nn.Conv1d: (2, 3, 9), nn.Conv3d: (2, 3, 4, 5, 6), nn.Linear: (5, 17)}


def by_masked_weight(layer, x):
    """The layer's forward, written by hand."""
    weight = layer.masked_weight()
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, layer.bias)
    convolve = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[weight.dim()]
    return convolve(x, weight, layer.bias, padding=1)


@pytest.mark.parametrize("state", ["as it is", "frozen", "trained weight", "packed", "channels_last"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_by_its_masked_weight_is_the_layer(backend, name, state):
    layer = LAYERS[name]()
    if state == "frozen":
        layer.freeze(keep_scores=True)
        layer.weight.requires_grad_()
    elif state == "trained weight":
        layer.weight.requires_grad_()
        layer._weight_stands = False
    elif state == "packed":
        if name == "sparse":
            pytest.skip("its weight scores itself")
        ek.init.signed_constant_(layer.weight)
        ek.pack_weights(layer)
    elif state == "channels_last" and layer.weight.dim() > 3:
        layer.to(memory_format=torch.channels_last if layer.weight.dim() == 4 else torch.channels_last_3d)
    x = torch.randn(next(shape for kind, shape in INPUTS.items() if isinstance(layer, kind)))
    twin = copy.deepcopy(layer)
    torch.manual_seed(1)
    expected = layer(x)
    torch.manual_seed(1)  # of a draw the same
    y = by_masked_weight(twin, x)
    assert_close("y", y, expected, torch.float32)
    dy = torch.randn_like(expected)
    expected.backward(dy)
    y.backward(dy)
    for (of, p), q in zip(layer.named_parameters(), twin.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), of
        if p.grad is not None:
            assert_close(of, q.grad, p.grad, torch.float32)
    assert {of for of, p in layer.named_parameters() if p.grad is not None} - {"bias"}


def test_the_mask_is_that_of_the_mode():
    layer = ek.FusedSupermaskLinear(64, 64, rule=ek.Bernoulli(at_eval="round"))
    one, other = layer.masked_weight(), layer.masked_weight()
    assert not torch.equal(one, other)
    layer.eval()
    assert torch.equal(layer.masked_weight(), layer.masked_weight())
    assert torch.equal(layer.masked_weight().detach(), layer.effective_weight())


def test_layers_that_are_ranked_together_have_masked_weights():
    model = ek.convert(nn.Sequential(nn.Linear(9, 7), nn.Linear(7, 5)), ek.GlobalTopK(0.3))
    with pytest.raises(ValueError, match=r"^rule: GlobalTopK ranks the layers of a network together"):
        model[0].masked_weight()
    ek.share_selection(model)
    effective = [layer.masked_weight() for layer in model]
    assert sum(int((w != 0).sum()) for w in effective) == ek.kept_count(9 * 7 + 7 * 5, 0.3)
    sum(w.sum() for w in effective).backward()
    assert all(torch.equal(m.scores.grad, m.weight * m.scores.sign()) for m in model)


class Sliced(nn.Module):
    """A forward that reads slices of one masked weight, as static neural graphs do."""

    def __init__(self):
        super().__init__()
        self.graph = ek.FusedSparseLinear(8, 12, bias=False, keep=0.5)

    def forward(self, x):
        weight = self.graph.masked_weight()
        hidden = F.linear(x, weight[:4]).relu()
        return F.linear(torch.cat([x[:, :4], hidden], 1), weight[4:])


def test_a_sliced_weight_trains_every_edge_compiled_or_not():
    model, x = Sliced(), torch.rand(5, 8)
    model(x).sum().backward()
    weight = model.graph.weight.detach().clone().requires_grad_()
    effective = weight + (weight * ek.mask(weight.detach(), ek.TopK(0.5)) - weight).detach()
    hidden = F.linear(x, effective[:4]).relu()
    F.linear(torch.cat([x[:, :4], hidden], 1), effective[4:]).sum().backward()
    torch.testing.assert_close(model.graph.weight.grad, weight.grad)
    expected = model.graph.weight.grad.clone()
    model.zero_grad()
    torch.compile(model, fullgraph=True, backend="aot_eager")(x).sum().backward()
    torch.testing.assert_close(model.graph.weight.grad, expected)


def test_a_layer_whose_masked_weight_is_read_counts_as_called(recwarn):
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(9, 7)

        def forward(self, x):
            return F.linear(x, self.layer.masked_weight(), self.layer.bias)

    model = ek.convert(Reads())
    model(torch.randn(2, 9)).sum().backward()
    assert model.layer.scores.grad is not None and not recwarn.list
    plain = ek.materialize(model)
    assert not [name for name in vars(plain.layer) if name.startswith("_weight")]


def test_an_optimizer_that_steps_in_backward_says_that_it_cannot():
    layer = ek.FusedSubnetLinear(9, 7)
    optimizer = ek.optim.ScoreSGD([layer.scores], lr=0.1, model=layer, fused_backward=True)
    layer(torch.randn(2, 9)).sum().backward()
    layer.masked_weight().sum().backward()
    with pytest.raises(RuntimeError, match=r"^fused_backward: "):
        optimizer.step()


def test_effective_weight_says_that_it_has_no_gradient():
    layer = ek.FusedSparseLinear(9, 7)
    assert not layer.effective_weight().requires_grad and layer.masked_weight().requires_grad
    assert "without gradient" in ek.nn.MaskedLayer.effective_weight.__doc__
    assert "masked_weight" in ek.nn.MaskedLayer.effective_weight.__doc__
