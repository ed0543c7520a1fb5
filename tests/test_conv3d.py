"""Three-dimensional convolutions, through the kernels of two."""

import pytest
import torch
import torch.nn.functional as F
from convolutions import AVAILABLE, OPTIONS, check_fixed_and_self_scored, check_layer, check_network, check_product
from torch import nn

import edgepop_kernels as ek
from edgepop_kernels.testing.tolerances import assert_close

CASES = [
    dict(x=(2, 4, 5, 7, 9), weight=(6, 4, 3, 3, 3)),
    dict(x=(4, 5, 7, 9), weight=(6, 4, 3, 1, 3), padding=1),
    dict(
        x=(2, 6, 9, 10, 11), weight=(9, 2, 2, 3, 2), stride=(2, 1, 3), padding=(1, 2, 0), dilation=(3, 2, 1), groups=3
    ),
    dict(x=(1, 7, 3, 6, 5), weight=(7, 1, 1, 1, 1), groups=7, stride=2),
    dict(x=(2, 3, 6, 5, 7), weight=(5, 3, 4, 3, 2), padding="same", dilation=(1, 2, 1)),
    dict(x=(2, 3, 6, 5, 7), weight=(5, 3, 3, 3, 3), padding="valid", stride=(2,)),
    dict(x=(2, 1, 17, 1, 1), weight=(1, 1, 17, 1, 1)),
    dict(x=(2, 18, 4, 9, 8), weight=(17, 18, 3, 3, 3), padding=1, layout=torch.channels_last_3d),
    dict(x=(3, 8, 5, 6, 7), weight=(16, 4, 1, 3, 3), groups=2, stride=(2, 1, 2), layout=torch.channels_last_3d),
]


@pytest.mark.parametrize("backend", AVAILABLE)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_torchs_with_the_masked_weight(backend, case, dtype):
    check_product(ek.masked_conv3d, F.conv3d, case, dtype, backend)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (dict(x=torch.randn(2, 3, 4)), ValueError, r"x: expected \(N, C, D, H, W\) or \(C, D, H, W\)"),
        (dict(weight=torch.randn(3, 2, 3, 3)), ValueError, r"weight: expected \(O, C / groups, kd, kh, kw\)"),
        (dict(scores=torch.randn(3, 2, 3, 3, 4)), ValueError, "scores: expected the weight's shape"),
        (dict(stride=1.5), TypeError, "stride: expected an int or three ints"),
        (dict(stride=0), ValueError, "stride: expected at least 1"),
        (dict(dilation=(1, 2)), TypeError, "dilation: expected an int or three ints"),
        (dict(padding=True), TypeError, "padding: expected an int"),
        (dict(padding="full"), ValueError, "padding: expected 'same', 'valid' or numbers"),
        (dict(padding="same", stride=2), ValueError, "padding: 'same' needs stride 1"),
        (dict(groups=2), ValueError, "groups"),
        (dict(x=torch.randn(2, 5, 4, 4, 4)), ValueError, r"x: expected 2 channels for weight \(3, 2, 3, 3, 3\)"),
        (dict(x=torch.randn(2, 2, 2, 4, 4)), ValueError, "x: D is 2 and padding 0, smaller than the kernel's reach 3"),
        (dict(rule=0.5), TypeError, "rule: expected a rule"),
        (dict(bias=torch.randn(4)), ValueError, "bias: expected shape"),
    ],
)
def test_bad_input_is_named(arguments, error, words):
    given = dict(x=torch.randn(2, 2, 4, 4, 4), rule=ek.TopK(0.5))
    given |= {name: torch.randn(3, 2, 3, 3, 3) for name in ("weight", "scores")}
    with pytest.raises(error, match=words):
        ek.masked_conv3d(**given | arguments)


def test_a_fixed_mask_and_weights_that_score_themselves():
    check_fixed_and_self_scored(ek.masked_conv3d, F.conv3d, torch.randn(2, 2, 4, 5, 6), torch.randn(3, 2, 3, 3, 3))


KINDS = {"subnet": ek.FusedSubnetConv3d, "supermask": ek.FusedSupermaskConv3d, "sparse": ek.FusedSparseConv3d}


@pytest.mark.parametrize("backend", AVAILABLE)
@pytest.mark.parametrize("method", KINDS)
@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
def test_a_layer_is_torchs_with_its_effective_weight(backend, method, padding_mode):
    layer = KINDS[method](6, 9, 3, stride=2, padding=1, groups=3, padding_mode=padding_mode, **OPTIONS[method])
    check_layer(layer, nn.Conv3d, torch.randn(2, 6, 5, 6, 7), backend)


def network():
    return nn.Sequential(
        nn.Conv3d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d((1, 2, 2)), nn.Flatten(), nn.Linear(32, 5)
    )


@pytest.mark.parametrize("method", KINDS)
def test_a_converted_network_trains_and_is_saved(method):
    check_network(network, method, KINDS[method], torch.randn(16, 3, 3, 4, 5))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d], ids=str)
@pytest.mark.parametrize("fused", [False, True])
def test_score_optimizers_step_them_as_torchs_do(layout, fused):
    torch.manual_seed(0)
    models = [ek.convert(nn.Sequential(nn.Conv3d(3, 4, 3)), ek.TopK(0.5)).to(memory_format=layout) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    x, options = torch.randn(2, 3, 5, 4, 6), dict(lr=0.1, momentum=0.9)
    for model, ours in zip(models, (False, True), strict=True):
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = (
            ek.optim.ScoreSGD(model, fused_backward=fused, **options) if ours else torch.optim.SGD(trained, **options)
        )
        for _ in range(3):
            model.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    assert_close("scores", models[1][0].scores, models[0][0].scores.detach().double(), torch.float32)
    assert torch.equal(models[1][0].mask(), models[0][0].mask())
    assert models[1][0].scores.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("rule", [ek.NM(2, 4), ek.Block(0.5, (1, 1, 3)), ek.Channels(0.5), ek.Bernoulli()], ids=str)
def test_rules_go_by_the_shape_of_the_weight_itself(rule):
    x, weight, scores = torch.randn(2, 4, 5, 6, 7), torch.randn(6, 4, 3, 2, 3), torch.randn(6, 4, 3, 2, 3)
    torch.manual_seed(1)
    y = ek.masked_conv3d(x, weight, scores, rule)
    torch.manual_seed(1)
    assert_close("y", y, F.conv3d(x.double(), weight.double() * ek.mask(scores, rule)), torch.float32)


def test_packed_weights_compute_the_same_bits():
    layer, x = ek.FusedSubnetConv3d(4, 6, 3, keep=0.3), torch.randn(2, 4, 5, 6, 7)
    ek.init.signed_constant_(layer.weight)
    expected = layer(x)
    ek.pack_weights(layer)
    assert torch.equal(layer(x), expected)


def test_it_compiles_whole_and_runs_under_autocast(compiled):
    compile_whole, _ = compiled
    layer, x = ek.FusedSubnetConv3d(4, 6, 3, padding=1), torch.randn(2, 4, 5, 6, 7)
    torch.testing.assert_close(compile_whole(layer)(x), layer(x))
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype is torch.bfloat16
    assert_close("y", y, layer.materialize().bfloat16().double()(x.bfloat16().double()), torch.bfloat16)


def test_they_travel_in_a_packed_file_of_their_masks(tmp_path):
    def network():
        return nn.Sequential(nn.Conv3d(3, 5, 3), nn.ReLU(), nn.Conv3d(5, 4, (1, 2, 2), groups=1, bias=False))

    model, x = ek.convert(network(), keep=0.3, init="signed_constant"), torch.randn(2, 3, 4, 5, 6)
    ek.save_packed(model, tmp_path / "model.safetensors")
    plain = ek.load_packed(tmp_path / "model.safetensors", network())
    assert type(plain[0]) is nn.Conv3d
    assert_close("y", plain(x), model.eval()(x).double(), torch.float32)


def test_a_bank_superposes_their_masks():
    bank = ek.MaskBank(ek.convert(nn.Sequential(nn.Conv3d(3, 5, 3, padding=1, bias=False)), ek.TopK(0.4)))
    for _ in range(3):
        bank.add()
    x, alphas = torch.randn(2, 3, 4, 5, 6), torch.rand(3)
    (weight,) = (m.weight for m in bank._layers.values())
    mixed = sum(alpha * bank.masks(t)["0"] for t, alpha in enumerate(alphas)) * weight
    with bank.mix(alphas):
        assert_close("y", bank(x), F.conv3d(x.double(), mixed.double(), padding=1), torch.float32)


def test_a_graph_of_torch_fx_keeps_a_layer_whole():
    model, x = ek.convert(nn.Sequential(nn.Conv3d(3, 5, 3), nn.ReLU())), torch.randn(2, 3, 4, 5, 6)
    traced = torch.fx.symbolic_trace(model)
    assert torch.equal(traced(x), model(x))
