"""nn.MultiheadAttention taken apart into layers that masks reach."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import edgepop_kernels as ek

KINDS = {
    "as torch has it": {},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False},
    "further keys": {"add_bias_kv": True, "add_zero_attn": True},
    "other widths": {"kdim": 9, "vdim": 15},
}
WIDTH, HEADS, LENGTH, KEYS, BATCH = 12, 3, 5, 7, 2


@pytest.fixture(params=KINDS)
def attention(request):
    """torch's, in float64, and the same split."""
    torchs = nn.MultiheadAttention(WIDTH, HEADS, **KINDS[request.param]).double()
    for p in torchs.parameters():
        nn.init.normal_(p)
    split = copy.deepcopy(torchs)
    assert ek.split_attention(split) == [""]
    return torchs, split


def inputs(attention, one=False):
    sizes = ((LENGTH, attention.embed_dim), (KEYS, attention.kdim), (KEYS, attention.vdim))
    if one:
        return [torch.randn(size, dtype=torch.float64) for size in sizes]
    first = attention.batch_first
    return [torch.randn((BATCH, n, e) if first else (n, BATCH, e), dtype=torch.float64) for n, e in sizes]


def masks(one):
    """Pairs of attn_mask and key_padding_mask, of bools and floats; no query is left without a key."""
    batch = 1 if one else BATCH
    causal = torch.ones(LENGTH, KEYS, dtype=torch.bool).triu(1)
    per_head = torch.rand(batch * HEADS, LENGTH, KEYS) > 0.7
    padding = torch.zeros((KEYS,) if one else (BATCH, KEYS), dtype=torch.bool)
    per_head[..., 0] = False
    padding[..., -2:] = True
    added = torch.randn(LENGTH, KEYS, dtype=torch.float64), torch.randn(padding.shape, dtype=torch.float64)
    return [
        (None, None),
        (causal, None),
        (per_head, None),
        (None, padding),
        (causal, padding),
        (per_head, padding),
        added,
    ]


@pytest.mark.parametrize("one", [False, True])
def test_results_are_torchs(attention, one):
    torchs, split = attention
    x = inputs(torchs, one)
    for attn_mask, padding in masks(one):
        for need_weights, average in ((False, True), (True, True), (True, False)):
            how = dict(key_padding_mask=padding, need_weights=need_weights, attn_mask=attn_mask)
            expected, weights = torchs(*x, **how, average_attn_weights=average)
            found, theirs = split(*x, **how, average_attn_weights=average)
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
            assert (weights is None) == (theirs is None)
            if weights is not None:
                torch.testing.assert_close(theirs, weights, rtol=1e-12, atol=1e-12)


def test_a_causal_mask_may_be_named(attention):
    torchs, split = attention
    x, causal = inputs(torchs), torch.ones(LENGTH, KEYS, dtype=torch.bool).triu(1)
    for need_weights in (False, True):
        how = dict(attn_mask=causal, is_causal=True, need_weights=need_weights)
        torch.testing.assert_close(split(*x, **how)[0], torchs(*x, **how)[0], rtol=1e-12, atol=1e-12)


def test_gradients_are_torchs(attention):
    torchs, split = attention
    x = inputs(torchs)
    torchs(*x)[0].square().sum().backward()
    split(*x)[0].square().sum().backward()
    if torchs.in_proj_weight is not None:
        found = torch.cat([layer.weight.grad for layer in (split.q_proj, split.k_proj, split.v_proj)])
        torch.testing.assert_close(found, torchs.in_proj_weight.grad)
    else:
        torch.testing.assert_close(split.v_proj.weight.grad, torchs.v_proj_weight.grad)
    torch.testing.assert_close(split.out_proj.weight.grad, torchs.out_proj.weight.grad)
    if torchs.bias_k is not None:
        torch.testing.assert_close(split.bias_k.grad, torchs.bias_k.grad)


def test_dropout_is_of_the_weights_and_of_training_alone():
    split = ek.SplitAttention(WIDTH, HEADS, dropout=0.5)
    x = torch.randn(LENGTH, BATCH, WIDTH)
    assert (split(x, x, x, average_attn_weights=False)[1] == 0).float().mean().item() == pytest.approx(0.5, abs=0.2)
    assert not torch.equal(split(x, x, x, need_weights=False)[0], split(x, x, x, need_weights=False)[0])
    split.eval()
    assert (split(x, x, x)[1] > 0).all()
    assert torch.equal(split(x, x, x, need_weights=False)[0], split(x, x, x, need_weights=False)[0])


def test_the_way_there_and_back_changes_nothing(attention):
    torchs, split = attention
    assert ek.join_attention(split) == [""] and type(split) is nn.MultiheadAttention
    expected, found = torchs.state_dict(), split.state_dict()
    assert list(expected) == list(found) and all(torch.equal(expected[name], found[name]) for name in expected)
    assert vars(split).keys() == vars(torchs).keys() and split._modules.keys() == torchs._modules.keys()
    assert type(split.out_proj) is type(torchs.out_proj)


def test_states_of_both_kinds_load(attention):
    torchs, split = attention
    made = nn.ModuleDict({"a": ek.SplitAttention(WIDTH, HEADS, **_how(torchs)).double()})
    for state in (torchs.state_dict(), split.state_dict()):
        for p in made.parameters():
            nn.init.zeros_(p)
        made.load_state_dict({f"a.{name}": value for name, value in state.items()})
        assert all(torch.equal(p, q) for p, q in zip(made.parameters(), split.parameters(), strict=True))


def _how(torchs):
    how = dict(bias=torchs.in_proj_bias is not None, add_bias_kv=torchs.bias_k is not None)
    return how | dict(add_zero_attn=torchs.add_zero_attn, kdim=torchs.kdim, vdim=torchs.vdim)


@pytest.mark.parametrize("grad", [False, True])
def test_what_trains_stays_so(grad):
    with torch.set_grad_enabled(grad):
        check_what_trains()


def check_what_trains():
    model = nn.MultiheadAttention(WIDTH, HEADS)
    model.in_proj_weight.requires_grad_(False)
    weight = model.out_proj.weight
    ek.split_attention(model)
    assert not model.q_proj.weight.requires_grad and model.q_proj.bias.requires_grad
    assert model.out_proj.weight is weight
    ek.join_attention(model)
    assert not model.in_proj_weight.requires_grad and model.in_proj_bias.requires_grad


@pytest.mark.parametrize("method", ["subnet", "supermask", "sparse"])
def test_every_projection_is_masked_and_trains(method):
    model = nn.TransformerEncoderLayer(WIDTH, HEADS, 17, dropout=0.0, batch_first=True)
    ek.split_attention(model)
    ek.convert(model, method=method, left="raise")
    x = torch.randn(BATCH, LENGTH, WIDTH)
    model(x).square().sum().backward()
    for layer in (model.self_attn.q_proj, model.self_attn.k_proj, model.self_attn.v_proj, model.self_attn.out_proj):
        assert layer._ranked.grad.abs().sum() > 0
    expected = model.eval()(x)
    ek.materialize(model)
    ek.join_attention(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_an_encoder_of_padded_batches_evaluates_as_before(masked, grad):
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).eval()
    x, padding = torch.randn(3, 6, 8), torch.arange(6) >= torch.tensor([[6], [4], [2]])
    with torch.no_grad():
        expected = encoder(x, src_key_padding_mask=padding)
    assert encoder.use_nested_tensor
    assert len(ek.split_attention(encoder)) == 2
    if masked:
        ek.convert(encoder, keep=1.0)
    with torch.set_grad_enabled(grad):
        found = encoder(x, src_key_padding_mask=padding)
    torch.testing.assert_close(found[~padding], expected[~padding], rtol=1e-5, atol=1e-5)
    if masked:
        ek.materialize(encoder)
    ek.join_attention(encoder)
    assert encoder.use_nested_tensor and not any(name.startswith("_nests") for name in vars(encoder))
    with torch.no_grad():
        found = encoder(x, src_key_padding_mask=padding)
    torch.testing.assert_close(found[~padding], expected[~padding], rtol=1e-5, atol=1e-5)


def test_an_encoder_is_as_before_whose_attention_was_split_in_two_calls():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    ek.split_attention(encoder)
    encoder.layers[1].self_attn = nn.MultiheadAttention(8, 2, batch_first=True)
    assert ek.split_attention(encoder) == ["layers.1.self_attn"] and not encoder.use_nested_tensor
    ek.join_attention(encoder)
    assert encoder.use_nested_tensor


def test_copies_and_pickles():
    split = ek.convert(ek.SplitAttention(WIDTH, HEADS))
    x = torch.randn(LENGTH, BATCH, WIDTH)
    expected = split(x, x, x)[0]
    for other in (copy.deepcopy(split), pickle.loads(pickle.dumps(split))):
        assert torch.equal(other(x, x, x)[0], expected)


def test_it_compiles_whole(compiled):
    compile_whole, _ = compiled
    split = ek.convert(ek.SplitAttention(WIDTH, HEADS, batch_first=True))
    x = torch.randn(BATCH, LENGTH, WIDTH)
    expected = split(x, x, x, need_weights=False)[0]
    found = compile_whole(split)(x, x, x, need_weights=False)[0]
    torch.testing.assert_close(found, expected)


def test_a_graph_of_torch_fx_keeps_it_whole():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = ek.SplitAttention(WIDTH, HEADS)

        def forward(self, x):
            return self.attention(x, x, x, need_weights=False)[0].relu()

    net, x = Net(), torch.randn(LENGTH, BATCH, WIDTH)
    traced = torch.fx.symbolic_trace(net)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["attention"]
    assert torch.equal(traced(x), net(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_half_precision(dtype):
    torchs = nn.MultiheadAttention(16, 2, batch_first=True)
    split, x = copy.deepcopy(torchs), torch.randn(3, 6, 16)
    ek.split_attention(split)
    expected = torchs(x, x, x)[0]
    padding = torch.zeros(3, 6, dtype=torch.bool)
    for need_weights in (False, True):
        with torch.autocast("cpu", dtype):
            found = split(x, x, x, padding, need_weights)[0]
        assert found.dtype is dtype
        torch.testing.assert_close(found.float(), expected, rtol=0.03, atol=0.03)
    half, x = split.to(dtype), x.to(dtype)
    torch.testing.assert_close(half(x, x, x, padding)[0].float(), expected, rtol=0.03, atol=0.03)


def test_what_does_not_fit_is_refused_by_name():
    split = ek.SplitAttention(WIDTH, HEADS)
    x, y = torch.randn(LENGTH, BATCH, WIDTH), torch.randn(KEYS, BATCH, WIDTH)
    wrong = [
        ((torch.randn(4), x, x), {}, "query: expected"),
        ((x[..., :-1], x, x), {}, "query: expected"),
        ((x, x[0], x[0]), {}, "key: expected .* as many dimensions as query"),
        ((x, x, y), {}, "value: expected key's"),
        ((x, y[:, :1], y[:, :1]), {}, "key: expected query's batch of 2, got 1"),
        (
            (x, y, y),
            {"attn_mask": torch.zeros(KEYS, LENGTH)},
            r"attn_mask: expected \(5, 7\) or \(6, 5, 7\), got \(7, 5",
        ),
        ((x, y, y), {"key_padding_mask": torch.zeros(KEYS)}, r"key_padding_mask: expected \(2, 7\)"),
        ((x[:, 0], y[:, 0], y[:, 0]), {"key_padding_mask": torch.zeros(1, KEYS)}, r"key_padding_mask: expected \(7,\)"),
        ((x, y, y), {"is_causal": True}, "is_causal: .* attn_mask"),
    ]
    for operands, how, message in wrong:
        with pytest.raises(ValueError, match=message):
            split(*operands, **how)
    with pytest.raises(TypeError, match="attn_mask: expected bool or floats"):
        split(x, y, y, attn_mask=torch.zeros(LENGTH, KEYS, dtype=torch.int64))
    nested = torch.nested.nested_tensor([torch.randn(3, WIDTH), torch.randn(2, WIDTH)])
    with pytest.raises(TypeError, match="query: expected a padded batch"):
        split(nested, nested, nested)


def test_networks_that_cannot_be_split_are_left_as_they_were():
    class Own(nn.MultiheadAttention):
        pass

    with pytest.raises(TypeError, match="model: expected a torch"):
        ek.split_attention("model")
    for model in (nn.Linear(3, 4), Own(WIDTH, HEADS)):
        with pytest.raises(ValueError, match=r"no nn\.MultiheadAttention"):
            ek.split_attention(model)
    pruned = nn.MultiheadAttention(WIDTH, HEADS)
    prune.l1_unstructured(pruned, "in_proj_weight", 0.5)
    orthogonal = nn.MultiheadAttention(WIDTH, HEADS)
    parametrizations.orthogonal(orthogonal.out_proj)
    tied = nn.ModuleList([nn.MultiheadAttention(WIDTH, HEADS), nn.MultiheadAttention(WIDTH, HEADS)])
    tied[1].in_proj_weight = tied[0].in_proj_weight
    own = nn.MultiheadAttention(WIDTH, HEADS)
    own.forward = lambda *x: x
    for model, message in ((pruned, "computed"), (orthogonal, "computed"), (tied, "shares its in_proj"), (own, "own")):
        before = [type(m) for m in model.modules()]
        with pytest.raises(ValueError, match=message):
            ek.split_attention(model)
        assert [type(m) for m in model.modules()] == before


def test_masked_attention_is_not_joined():
    with pytest.raises(ValueError, match="no SplitAttention"):
        ek.join_attention(nn.MultiheadAttention(WIDTH, HEADS))
    model = nn.ModuleDict({"a": ek.SplitAttention(WIDTH, HEADS)})
    ek.convert(model)
    with pytest.raises(ValueError, match=r"a\.q_proj is a FusedSubnetLinear; .*materialize"):
        ek.join_attention(model)
    ek.materialize(model)
    model["a"].q_proj.bias = None
    with pytest.raises(ValueError, match="a bias in some"):
        ek.join_attention(model)


def test_convert_says_how_attention_is_masked():
    with pytest.warns(ek.LeftDense, match="split_attention"):
        ek.convert(nn.TransformerEncoderLayer(WIDTH, HEADS, 16))
