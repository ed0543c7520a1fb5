"""One-dimensional convolutions, through the kernels of two."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import edgepop_kernels as ek
from edgepop_kernels.testing.oracle import mask as oracle_mask
from edgepop_kernels.testing.tolerances import assert_close

CASES = [
    dict(x=(3, 4, 17), weight=(6, 4, 3)),
    dict(x=(4, 17), weight=(6, 4, 3), padding=1),
    dict(x=(2, 6, 100), weight=(9, 2, 5), stride=3, padding=2, dilation=2, groups=3),
    dict(x=(1, 7, 63), weight=(7, 1, 1), groups=7),
    dict(x=(2, 3, 13), weight=(5, 3, 4), padding="same"),
    dict(x=(2, 3, 13), weight=(5, 3, 3), padding="valid", stride=(2,)),
    dict(x=(2, 1, 63), weight=(1, 1, 1)),
]


def options(case):
    return {name: value for name, value in case.items() if name not in ("x", "weight")}


@pytest.mark.parametrize("backend", [n for n, reason in ek.backends().items() if reason is None])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_torchs_with_the_masked_weight(backend, case, dtype):
    x, weight, scores = torch.randn(case["x"]).to(dtype), torch.randn(case["weight"]), torch.randn(case["weight"])
    rule, bias = ek.TopK(0.4), torch.randn(len(weight))
    leaves = [t.clone().requires_grad_() for t in (x, weight, scores, bias)]
    with ek.use_backend(backend):
        y = ek.masked_conv1d(*leaves[:3], rule, leaves[3], **options(case))
        g = torch.randn(y.shape).to(dtype)
        dx, dw, ds, db = torch.autograd.grad(y, leaves, g)
    kept = oracle_mask(scores, rule)
    effective = (weight * kept).to(dtype).double().requires_grad_()
    exact = x.double().requires_grad_()
    want = F.conv1d(exact, effective, bias.double(), **options(case))
    want_dx, dense = torch.autograd.grad(want, (exact, effective), g.double())
    assert_close("y", y, want.detach(), dtype)
    assert_close("dx", dx, want_dx, dtype)
    assert_close("ds", ds, dense * weight.double() * scores.sign(), dtype)
    assert_close("dw", dw, dense * kept, dtype)
    assert_close("db", db, g.double().sum(tuple(d for d in range(g.dim()) if d != g.dim() - 2)), dtype)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (dict(x=torch.randn(1, 2, 3, 4)), ValueError, r"x: expected \(N, C, L\) or \(C, L\)"),
        (dict(weight=torch.randn(3, 2)), ValueError, r"weight: expected \(O, C / groups, k\)"),
        (dict(scores=torch.randn(3, 2, 4)), ValueError, "scores: expected the weight's shape"),
        (dict(stride=1.5), TypeError, "stride: expected an int"),
        (dict(padding=True), TypeError, "padding: expected an int"),
        (dict(groups=2), ValueError, "groups"),
        (dict(x=torch.randn(2, 5, 9)), ValueError, "x: expected 2 channels"),
        (dict(rule=0.5), TypeError, "rule: expected a rule"),
    ],
)
def test_bad_input_is_named(arguments, error, words):
    given = dict(x=torch.randn(2, 2, 9), weight=torch.randn(3, 2, 3), scores=torch.randn(3, 2, 3), rule=ek.TopK(0.5))
    with pytest.raises(error, match=words):
        ek.masked_conv1d(**given | arguments)


def test_a_fixed_mask_and_weights_that_score_themselves():
    x, weight = torch.randn(2, 2, 9), torch.randn(3, 2, 3)
    mask = torch.rand(3, 2, 3) > 0.5
    for scores in (mask, ek.pack_mask(mask)):
        y = ek.masked_conv1d(x, weight, scores, ek.Frozen())
        assert_close("y", y, F.conv1d(x.double(), weight.double() * mask), torch.float32)
    y = ek.masked_conv1d(x, weight, None, ek.TopK(0.5))
    assert_close("y", y, F.conv1d(x.double(), weight.double() * oracle_mask(weight, ek.TopK(0.5))), torch.float32)


METHODS = {
    "subnet": (ek.FusedSubnetConv1d, dict(keep=0.4)),
    "supermask": (ek.FusedSupermaskConv1d, dict(mask_bias=True)),
    "sparse": (ek.FusedSparseConv1d, dict(keep=0.4)),
}


@pytest.mark.parametrize("backend", [n for n, reason in ek.backends().items() if reason is None])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
def test_a_layer_is_torchs_with_its_effective_weight(backend, method, padding_mode):
    kind, options = METHODS[method]
    layer = kind(6, 9, 5, stride=2, padding=2, groups=3, padding_mode=padding_mode, **options)
    assert isinstance(layer, nn.Conv1d)
    plain = layer.materialize()
    assert type(plain) is nn.Conv1d and plain.padding_mode == padding_mode
    x = torch.randn(2, 6, 37)
    with ek.use_backend(backend):
        y = layer(x)
        y.square().sum().backward()
    assert_close("y", y, plain.double()(x.double()), torch.float32)
    for name, p in layer.named_parameters():
        assert (p.grad is not None) == p.requires_grad, name
    assert torch.equal(layer.materialize()(x), ek.materialize(layer)(x))
    assert type(layer) is nn.Conv1d and not hasattr(layer, "scores")


@pytest.mark.parametrize("method", METHODS)
def test_a_converted_network_trains_and_is_saved(method):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(3, 8, 5, padding=2), nn.ReLU(), nn.AdaptiveAvgPool1d(4), nn.Flatten(), nn.Linear(32, 5)
    )
    ek.share_selection(ek.convert(model, method=method))
    assert type(model[0]) is METHODS[method][0]
    optimizer = ek.optim.ScoreSGD(model, lr=0.1, momentum=0.9)
    x, labels = torch.randn(16, 3, 20), torch.arange(16) % 5
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    again = ek.convert(nn.Sequential(nn.Conv1d(3, 8, 5, padding=2), *model[1:4], nn.Linear(32, 5)), method=method)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(x), model.eval()(x))
    want = model(x)
    assert_close("y", ek.materialize(model)(x), want.double(), torch.float32)


def test_fused_backward_steps_conv1d_layers_as_ever():
    torch.manual_seed(0)
    models = [ek.convert(nn.Sequential(nn.Conv1d(3, 4, 3)), ek.TopK(0.5)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    x = torch.randn(2, 3, 9)
    for model, fused in zip(models, (False, True), strict=True):
        optimizer = ek.optim.ScoreSGD(model, lr=0.1, fused_backward=fused)
        for _ in range(3):
            model.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    assert torch.equal(models[0][0].scores, models[1][0].scores)
