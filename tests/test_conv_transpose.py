"""Transposed convolutions: those of convolution, with the ways there and back exchanged."""

import io
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import edgepop_kernels as ek
from edgepop_kernels.testing import inputs, oracle
from edgepop_kernels.testing.inputs import TransposedCase
from edgepop_kernels.testing.tolerances import assert_close

BACKENDS = [n for n, reason in ek.backends().items() if reason is None]
TWO = [
    TransposedCase(in_channels=4, out_channels=6, size=(5, 7), batch=3),
    TransposedCase(in_channels=6, out_channels=9, size=(9, 4), kernel=(4, 4), stride=(2, 2), padding=(1, 1), groups=3),
    TransposedCase(in_channels=6, out_channels=10, stride=(2, 3), padding=(1, 0), output_padding=(1, 2), groups=2),
    TransposedCase(in_channels=17, out_channels=17, stride=(3, 3), dilation=(2, 2), output_padding=(1, 1), groups=17),
    TransposedCase(dilation=(2, 3), output_padding=(1, 2), padding=(2, 2)),
    TransposedCase(in_channels=63, out_channels=100, size=(2, 2), kernel=(2, 2), stride=(2, 2), batch=5),
]
ONE = [
    dict(x=(3, 4, 17), weight=(4, 6, 3)),
    dict(x=(4, 17), weight=(4, 6, 3), padding=1),
    dict(x=(2, 6, 31), weight=(6, 3, 5), stride=3, padding=2, dilation=2, output_padding=(1,), groups=3),
    dict(x=(1, 7, 63), weight=(7, 1, 1), groups=7),
    dict(x=(2, 3, 13), weight=(3, 5, 4), stride=(2,), output_padding=1),
]


def check(product, layer, dtype, x, weight, scores, bias, dy=None):
    """Output and gradients of ``product`` beside those of the oracle's ``layer``."""
    rule = ek.TopK(0.4)
    leaves = [t.requires_grad_() for t in (x, weight, scores, bias)]
    y = product(*leaves[:3], rule, bias)
    dy = torch.randn(y.shape).to(dtype) if dy is None else dy
    got = torch.autograd.grad(y, leaves, dy)
    assert y.dtype == got[0].dtype == dtype
    want = oracle.answer(layer, x, weight, scores, rule, bias, dy)
    assert_close("y", y, want.y, dtype)
    dweight = want.dweight * oracle.mask(scores, rule)
    for name, out, ref in zip(("dx", "dw", "ds", "db"), got, (want.dx, dweight, want.dscores, want.dbias), strict=True):
        assert_close(name, out, ref, dtype)
    return y


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)
@pytest.mark.parametrize("case", TWO, ids=str)
def test_two_dimensions_on_every_backend(backend, dtype, case):
    """More of them, by the backends that are no emulation, are among ``test_parity``'s."""
    case = replace(case, dtype=dtype)
    with ek.use_backend(backend):
        product = partial(ek.masked_conv_transpose2d, **case.options)
        check(product, oracle.conv_transpose2d(**case.options), dtype, *case.tensors())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ONE, ids=str)
def test_one_dimension_on_every_backend(backend, case):
    options = {name: value for name, value in case.items() if name not in ("x", "weight")}
    bias = torch.randn(case["weight"][1] * case.get("groups", 1))
    x, weight, scores = (torch.randn(case[name]) for name in ("x", "weight", "weight"))
    with ek.use_backend(backend):
        product = partial(ek.masked_conv_transpose1d, **options)
        check(product, oracle.conv_transpose1d(**options), torch.float32, x, weight, scores, bias)


@pytest.mark.parametrize("of", ["x_layout", "weight_layout", None])
def test_the_output_is_channels_last_where_an_operand_is(of):
    case = replace(TWO[2], **{} if of is None else {of: "channels_last"})
    x, weight, scores, bias, _ = case.tensors()
    y = ek.masked_conv_transpose2d(x, weight, scores, case.rule, bias, **case.options)
    assert y.is_contiguous(memory_format=torch.contiguous_format if of is None else torch.channels_last)


@pytest.mark.parametrize("rule", [ek.Threshold(0.5), ek.Bernoulli()], ids=str)
def test_a_threshold_and_a_draw(rule):
    x, weight, scores = torch.randn(2, 3, 5, 5), torch.randn(3, 4, 3, 3), torch.randn(3, 4, 3, 3, requires_grad=True)
    cut = ek.select(scores, rule)
    y = ek.masked_conv_transpose2d(x, weight, scores, rule, cut=cut)
    y.backward(torch.ones_like(y))
    mask = oracle.mask(scores, rule) if isinstance(rule, ek.Threshold) else ek.unpack_mask(cut.bits, weight.shape)
    effective = (weight * mask).double().requires_grad_()
    want = F.conv_transpose2d(x.double(), effective)
    want.backward(torch.ones_like(want))
    assert_close("y", y, want, torch.float32)
    slope = scores.detach().double().sigmoid()
    assert_close("ds", scores.grad, effective.grad * weight.double() * slope * (1 - slope), torch.float32)


def test_a_fixed_mask_a_weight_that_scores_itself_and_one_of_signs():
    x, weight = torch.randn(2, 2, 5, 5), torch.randn(2, 3, 3, 3)
    mask = torch.rand(weight.shape) > 0.5
    for scores in (mask, ek.pack_mask(mask)):
        y = ek.masked_conv_transpose2d(x, weight, scores, ek.Frozen())
        assert_close("y", y, F.conv_transpose2d(x.double(), weight.double() * mask), torch.float32)
    y = ek.masked_conv_transpose2d(x, weight.requires_grad_(), None, ek.TopK(0.5))
    kept = oracle.mask(weight, ek.TopK(0.5))
    effective = (weight.detach().double() * kept).requires_grad_()
    want = F.conv_transpose2d(x.double(), effective)
    assert_close("y", y, want, torch.float32)
    dy = torch.randn_like(y)
    assert_close("dw", *torch.autograd.grad(y, weight, dy), *torch.autograd.grad(want, effective, dy.double()), y.dtype)
    scores, constant = torch.randn(weight.shape), torch.tensor(0.3).expand(weight.shape)
    signs = ek.pack_mask(weight.detach() < 0)
    signed = torch.where(weight.detach() < 0, -constant, constant)
    of_bits = ek.masked_conv_transpose2d(x, constant, scores, ek.TopK(0.5), signs=signs)
    assert torch.equal(of_bits, ek.masked_conv_transpose2d(x, signed, scores, ek.TopK(0.5)))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (dict(x=torch.randn(1, 2)), ValueError, r"x: expected \(N, C, H, W\) or \(C, H, W\)"),
        (dict(weight=torch.randn(2, 3)), ValueError, r"weight: expected \(C, O / groups, kh, kw\)"),
        (dict(scores=torch.randn(2, 3, 4, 4)), ValueError, "scores: expected the weight's shape"),
        (dict(stride=1.5), TypeError, "stride: expected an int"),
        (dict(padding="same"), TypeError, "padding: expected an int or a pair"),
        (dict(output_padding=1), ValueError, "output_padding: expected less than stride 1 or dilation 1, got 1"),
        (dict(output_padding=-1), ValueError, "output_padding: expected at least 0"),
        (dict(groups=3), ValueError, "groups: expected a positive divisor of 2 input channels, got 3"),
        (dict(x=torch.randn(2, 5, 9, 9)), ValueError, "x: expected 2 channels"),
        (dict(bias=torch.randn(2)), ValueError, r"bias: expected shape \(3,\)"),
        (dict(padding=6), ValueError, "x: H is 5, and the output's would be -5"),
        (dict(x=torch.randn(2, 2, 0, 5)), ValueError, "x: H is 0"),
        (dict(rule=0.5), TypeError, "rule: expected a rule"),
    ],
)
def test_bad_input_is_named(arguments, error, words):
    given = dict(x=torch.randn(2, 2, 5, 5), weight=torch.randn(2, 3, 3, 3), scores=torch.randn(2, 3, 3, 3))
    with pytest.raises(error, match=words):
        ek.masked_conv_transpose2d(**dict(rule=ek.TopK(0.5)) | given | arguments)


def test_bad_input_of_one_dimension_is_named():
    x, weight = torch.randn(2, 2, 5), torch.randn(2, 3, 3)
    for arguments, error, words in (
        (dict(x=torch.randn(2, 2, 5, 5)), ValueError, r"x: expected \(N, C, L\) or \(C, L\)"),
        (dict(stride=(1, 2)), TypeError, "stride: expected an int"),
        (dict(output_padding=2), ValueError, "output_padding: expected less than"),
    ):
        with pytest.raises(error, match=words):
            ek.masked_conv_transpose1d(**dict(x=x, weight=weight, scores=weight, rule=ek.TopK(0.5)) | arguments)


METHODS = {
    "subnet": (ek.FusedSubnetConvTranspose1d, ek.FusedSubnetConvTranspose2d, dict(keep=0.4)),
    "supermask": (ek.FusedSupermaskConvTranspose1d, ek.FusedSupermaskConvTranspose2d, dict(mask_bias=True)),
    "sparse": (ek.FusedSparseConvTranspose1d, ek.FusedSparseConvTranspose2d, dict(keep=0.4)),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_a_layer_is_torchs_with_its_effective_weight(backend, axes, method):
    kind, options = METHODS[method][axes - 1], METHODS[method][2]
    torchs = (nn.ConvTranspose1d, nn.ConvTranspose2d)[axes - 1]
    layer = kind(6, 9, 5, stride=2, padding=2, output_padding=1, groups=3, **options)
    assert isinstance(layer, torchs)
    plain = layer.materialize()
    assert type(plain) is torchs and plain.output_padding == layer.output_padding
    x = torch.randn(2, 6, *(9,) * axes)
    with ek.use_backend(backend):
        y = layer(x)
        y.square().sum().backward()
        smaller = layer(x, output_size=(17,) * axes)
    assert_close("y", y, plain.double()(x.double()), torch.float32)
    assert_close("y", smaller, plain(x.double(), output_size=(17,) * axes), torch.float32)
    for name, p in layer.named_parameters():
        assert (p.grad is not None) == p.requires_grad, name
    with pytest.raises(ValueError, match="output size"):
        layer(x, output_size=(99,) * axes)
    assert torch.equal(layer.materialize()(x), ek.materialize(layer)(x))
    assert type(layer) is torchs and not hasattr(layer, "scores")


def decoder():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 8, 3, stride=2, padding=1, output_padding=1, groups=2),
        nn.Flatten(2),
        nn.ConvTranspose1d(8, 2, 4, stride=2, padding=1),
    )


@pytest.mark.parametrize("shares", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_a_converted_network_trains_and_is_saved(method, shares):
    torch.manual_seed(0)
    model = ek.convert(decoder(), method=method)
    assert type(model[2]) is METHODS[method][1] and type(model[4]) is METHODS[method][0]
    if shares:
        ek.share_selection(model)
    optimizer = ek.optim.ScoreSGD(model, lr=0.1, momentum=0.9)
    x, target = torch.randn(4, 3, 8, 8), torch.randn(4, 2, 128)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    again = ek.convert(decoder(), method=method)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(x), model.eval()(x))
    want = model(x).double()
    assert_close("y", ek.materialize(model)(x), want, torch.float32)


@pytest.mark.parametrize("packs", [False, True])
def test_fused_backward_steps_as_ever(packs):
    models = []
    for fused in (False, True):
        torch.manual_seed(0)
        model = ek.convert(decoder(), ek.TopK(0.5), init="signed_constant")
        if packs:
            ek.pack_weights(model)
        optimizer = ek.optim.ScoreSGD(model, lr=0.1, momentum=0.9, fused_backward=fused)
        for x in torch.randn(3, 4, 3, 8, 8):
            model.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
        models.append(model)
    for one, other in zip(*(m.parameters() for m in models), strict=True):
        assert torch.equal(one, other)


def test_it_compiles_and_autocasts():
    torch.manual_seed(0)
    layer = ek.FusedSubnetConvTranspose2d(4, 6, 3, stride=2, output_padding=1)
    x = torch.randn(2, 4, 5, 5)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for size in (5, 6):  # the second with symbols for sizes
        x = torch.randn(2, 4, size, size)
        want, y = layer(x), compiled(x)
        assert torch.equal(y, want)
        grads = [torch.autograd.grad(t.square().sum(), layer.scores)[0] for t in (y, want)]
        assert torch.equal(*grads)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert_close("y", y, layer(x).double(), torch.bfloat16)


def test_it_goes_into_files_and_banks_and_counts_operations(tmp_path):
    torch.manual_seed(0)
    model, x = ek.convert(decoder(), keep=0.3, init="signed_constant").eval(), torch.randn(1, 3, 8, 8)
    ek.save_packed(model, tmp_path / "model.safetensors")
    plain = ek.load_packed(tmp_path / "model.safetensors", decoder()).eval()
    assert_close("y", plain(x), model(x).double(), torch.float32)
    other = decoder()
    other[2].output_padding = (0, 0)
    with pytest.raises(ValueError, match=r"2: expected output_padding=\[1, 1\], got \[0, 0\]"):
        ek.load_packed(tmp_path / "model.safetensors", other)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), model(x))
    counts = []
    for network in (model, ek.materialize(model, copy=True)):
        with FlopCounterMode(display=False) as counter:
            network(x)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0
    bank = ek.MaskBank(model)
    bank.add()
    bank.use(0)
    assert bank(x).shape == (1, 2, 128)


def test_a_traced_graph_has_it_as_one_node():
    class Upsampled(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = ek.FusedSubnetConvTranspose2d(2, 3, 3, stride=2)

        def forward(self, x):
            return self.up(x) + self.up(x, [10, 10]).mean()

    model, x = Upsampled(), torch.randn(1, 2, 4, 4)
    traced = torch.fx.symbolic_trace(model)
    assert [n.target for n in traced.graph.nodes if n.op == "call_module"] == ["up", "up"]
    assert torch.equal(traced(x), model(x))


def test_it_is_differentiated_once_in_each_way_that_torch_has():
    case = TWO[1]
    x, weight, scores, bias, dy = case.tensors()

    def loss(scores):
        return (ek.masked_conv_transpose2d(x, weight, scores, case.rule, bias, **case.options) * dy).sum()

    scores.requires_grad_()
    (ds,) = torch.autograd.grad(loss(scores), scores)
    assert torch.equal(torch.func.grad(loss)(scores.detach()), ds)
    with torch.autograd.graph.save_on_cpu():
        assert torch.equal(torch.autograd.grad(loss(scores), scores)[0], ds)
    with torch.profiler.profile() as profile:  # not by the plan: a profiler has ops to list
        assert torch.equal(torch.autograd.grad(loss(scores), scores)[0], ds)
    names = {event.name for event in profile.events()}
    assert {"edgepop::masked_conv2d_dx", "edgepop::masked_conv2d_dw"} <= names
    x.requires_grad_()
    (dx,) = torch.autograd.grad(loss(scores), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        dx.sum().backward()
