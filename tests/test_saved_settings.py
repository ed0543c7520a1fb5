"""The rule of a masked layer travels in its state_dict, and nothing about it is lost or guessed."""

import copy
import io
import json
import math
import pickle
import re

import pytest
import torch
from torch import nn

import edgepop_kernels as ek

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
RULES = [
    ek.TopK(0.3),
    ek.TopK(0.1 + 0.2, of="raw"),
    ek.Percentile(0.7, of="raw"),
    ek.GlobalTopK(0.4),
    ek.Threshold(0.3),
    ek.Threshold(math.inf, of="abs"),
    ek.Threshold(0.0, of="raw", inclusive=True),
    ek.Bernoulli(at_eval="round"),
]


def linear(rule=None, **options):
    kind = ek.FusedSupermaskLinear if options else ek.FusedSubnetLinear
    return kind(8, 5, rule=rule, **options)


def as_bytes(plain):
    content = plain if isinstance(plain, bytes) else json.dumps(plain).encode()
    return torch.tensor(list(content), dtype=torch.uint8)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(t, b[name]) for name, t in a.items())


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_network_takes_the_rule_of_the_one_that_was_saved(rule, assign):
    saved = ek.share_selection(nn.Sequential(linear(rule), nn.ReLU(), ek.FusedSubnetLinear(5, 4, rule=rule)))
    model = ek.share_selection(nn.Sequential(linear(ek.TopK(0.7)), nn.ReLU(), ek.FusedSubnetLinear(5, 4, keep=0.7)))
    model(X)
    assert model.load_state_dict(saved.state_dict(), assign=assign) == ([], [])
    assert model[0].rule == model[2].rule == rule
    if not isinstance(rule, ek.Bernoulli):
        assert torch.equal(model(X), saved(X)) and model[0].keep == saved[0].keep
    model[2].rule = ek.TopK(0.2)
    again = copy.deepcopy(model)
    again.load_state_dict(model.state_dict())
    assert [again[0].rule, again[2].rule] == [rule, ek.TopK(0.2)]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_rule_survives_files_and_copies(rule):
    layer = linear(rule)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    for state in (torch.load(file, weights_only=True), copy.deepcopy(layer.state_dict())):
        other = linear()
        other.load_state_dict(state)
        assert other.rule == rule
    assert copy.deepcopy(layer).rule == pickle.loads(pickle.dumps(layer)).rule == rule


def test_safetensors_take_it(tmp_path):
    layer = linear(ek.TopK(0.3))
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(layer.state_dict(), tmp_path / "layer.safetensors")
    other = linear()
    other.load_state_dict(safetensors.load_file(tmp_path / "layer.safetensors"))
    assert other.rule == ek.TopK(0.3)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_distributed_checkpoint_is_read_into_a_network_of_any_rule(tmp_path):
    """It is read into tensors of the network's own sizes."""
    dcp = pytest.importorskip("torch.distributed.checkpoint")
    layer = linear(ek.TopK(0.3))
    dcp.save(layer.state_dict(), checkpoint_id=tmp_path, no_dist=True)
    other = linear(ek.Threshold(0.123456789, of="raw"))
    state = other.state_dict()
    dcp.load(state, checkpoint_id=tmp_path, no_dist=True)
    other.load_state_dict(state)
    assert other.rule == ek.TopK(0.3) and torch.equal(other(X), layer(X))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("kind", [ek.FusedSubnetLinear, ek.FusedSparseLinear, ek.FusedSupermaskLinear])
def test_a_state_without_a_rule_leaves_the_layer_its_own(kind, strict):
    """hidden-networks' layers and dense ones have none."""
    rule = ek.Threshold(0.3) if kind is ek.FusedSupermaskLinear else ek.TopK(0.3)
    layer, other = kind(8, 5, rule=rule), kind(8, 5)
    state = other.state_dict()
    del state["_extra_state"]
    assert layer.load_state_dict(state, strict=strict) == ([], [])
    assert layer.rule == rule and torch.equal(layer.weight, other.weight)


def test_it_is_neither_parameter_nor_buffer_and_gone_from_plain_layers():
    model = ek.convert(nn.Sequential(nn.Linear(8, 5), nn.ReLU()))
    assert list(model.state_dict()) == ["0.weight", "0.bias", "0.scores", "0._extra_state"]
    assert "_extra_state" not in {*dict(model[0].named_parameters()), *dict(model[0].named_buffers())}
    with torch.device("meta"):
        assert linear().state_dict()["_extra_state"].device.type == "cpu"
    assert list(ek.materialize(model).state_dict()) == ["0.weight", "0.bias"]
    assert list(linear().materialize().state_dict()) == ["weight", "bias"]


@pytest.mark.parametrize(
    ("layer", "saved"),
    [
        (lambda: linear(scores_init=0.1), lambda: linear(ek.TopK(0.3))),
        (lambda: ek.FusedSparseLinear(8, 5), lambda: linear(ek.Threshold(0.3))),
    ],
    ids=["supermask", "sparse"],
)
def test_a_rule_that_the_layer_does_not_take_is_an_error_that_names_it(layer, saved):
    layer, saved = layer(), saved()
    before = copy.deepcopy(layer.state_dict())
    message = rf"0\._extra_state: rule: {type(layer).__name__} takes one of .*, got {re.escape(str(saved.rule))}"
    with pytest.raises(RuntimeError, match=message):
        nn.Sequential(layer).load_state_dict(nn.Sequential(saved).state_dict(), strict=False)
    assert same(layer.state_dict(), before)


TOP = {"kind": "TopK", "keep": 0.3, "of": "abs"}
DAMAGED = {
    "no tensor": TOP,
    "floats": torch.zeros(8),
    "a matrix": torch.zeros(2, 2, dtype=torch.uint8),
    "nothing": as_bytes(b""),
    "cut short": as_bytes(json.dumps({"rule": TOP}).encode()[:-4]),
    "no text": as_bytes(b"\xff\xfe\x00\xd8"),
    "a list": as_bytes([TOP]),
    "no rule": as_bytes({}),
    "a rule alone": as_bytes(TOP),
    "unknown setting": as_bytes({"rule": TOP, "colour": TOP}),
    "unknown kind": as_bytes({"rule": TOP | {"kind": "NM"}}),
    "a kind that is none": as_bytes({"rule": TOP | {"kind": ["TopK"]}}),
    "unknown field": as_bytes({"rule": TOP | {"shape": 4}}),
    "keep of 7": as_bytes({"rule": TOP | {"keep": 7}}),
    "keep of text": as_bytes({"rule": TOP | {"keep": "half"}}),
    "a flag": as_bytes({"rule": True}),
    "frozen without a mask": as_bytes({"rule": {"kind": "Frozen"}}),
    "thaws to frozen": as_bytes({"rule": TOP, "loose_rule": {"kind": "Frozen"}}),
    "another method's": as_bytes({"rule": TOP, "rescale": True}),
}


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("state", DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_settings_are_named_and_nothing_of_the_layer_is_loaded(state, strict):
    layer = linear(ek.TopK(0.7))
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(RuntimeError, match=r"_extra_state: \S.{9,}") as error:
        layer.load_state_dict(linear().state_dict() | {"_extra_state": state}, strict=strict)
    assert len(str(error.value)) < 500
    assert same(layer.state_dict(), before) and layer.rule == ek.TopK(0.7)


def test_a_mask_beside_a_rule_that_selects_is_refused():
    frozen, layer = linear(), linear(ek.TopK(0.7))
    frozen.freeze()
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(RuntimeError, match=r"_extra_state: rule: expected mask_bits beside Frozen\(\)"):
        layer.load_state_dict(frozen.state_dict() | {"_extra_state": as_bytes({"rule": TOP})})
    assert same(layer.state_dict(), before)


@pytest.mark.parametrize("kind", ["subnet", "sparse", "supermask"])
def test_frozen_layers_thaw_to_the_rule_that_was_saved(kind):
    build = {"subnet": ek.FusedSubnetLinear, "sparse": ek.FusedSparseLinear, "supermask": ek.FusedSupermaskLinear}[kind]
    theirs, own = (ek.Threshold(0.6), ek.Threshold(0.4)) if kind == "supermask" else (ek.TopK(0.3), ek.TopK(0.7))
    saved, layer = build(8, 5, rule=theirs), build(8, 5, rule=own)
    loose = copy.deepcopy(saved.state_dict())
    saved.freeze(torch.rand(5, 8) < 0.5, keep_scores=True)
    layer.load_state_dict(saved.state_dict())
    assert layer.rule == ek.Frozen() and torch.equal(layer.mask(), saved.mask())
    layer.thaw()
    assert layer.rule == theirs
    for frozen in (True, False):
        layer.rule = own
        if frozen:
            layer.freeze(keep_scores=True)
        layer.load_state_dict(loose)
        assert layer.rule == theirs


def test_frozen_for_good_stays_so_unless_the_scores_come_back():
    saved, layer = linear(ek.TopK(0.3)), linear(ek.TopK(0.7))
    loose = copy.deepcopy(saved.state_dict())
    saved.freeze()
    layer.load_state_dict(saved.state_dict())
    with pytest.raises(ValueError, match=r"^thaw: "):
        layer.thaw()
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(RuntimeError, match=r"_extra_state: rule: this layer is frozen and cannot become TopK\("):
        layer.load_state_dict(loose, strict=False)
    assert same(layer.state_dict(), before)
    sparse, whole = ek.FusedSparseLinear(8, 5, keep=0.7), ek.FusedSparseLinear(8, 5, keep=0.3)
    sparse.freeze()
    sparse.load_state_dict(whole.state_dict())  # its weight scores itself: nothing is missing
    assert sparse.rule == ek.TopK(0.3) and torch.equal(sparse(X), whole(X))


def test_rescaling_travels_with_the_rule():
    saved, layer = linear(rescale=True), linear(rescale=False)
    layer.load_state_dict(saved.state_dict())
    assert layer.rescale and torch.equal(layer(X), saved(X))
    saved.load_state_dict(linear(rescale=False).state_dict())
    assert not saved.rescale


@pytest.mark.parametrize("shared", [False, True])
def test_a_cut_found_under_the_rule_before_is_forgotten(shared):
    """Scores that are loaded as they are, under another rule, between two steps of an optimizer that finds cuts."""
    model = nn.Sequential(linear(ek.TopK(0.7)), nn.ReLU(), ek.FusedSubnetLinear(5, 4, keep=0.7))
    if shared:
        ek.share_selection(model)
    optimizer = ek.optim.ScoreSGD(model, lr=0.1)

    def step():
        optimizer.zero_grad()
        model(X).square().sum().backward()
        optimizer.step()

    step()
    rule = ek.TopK(0.3)
    for extra in (None, linear(rule).state_dict()["_extra_state"]):
        if extra is not None:
            model[0].set_extra_state(extra)
        plain = ek.materialize(model, copy=True)
        torch.testing.assert_close(model(X), plain(X))
    assert model[0].rule == rule and model[0].mask().sum() == ek.kept_count(40, 0.3)
    step()
    torch.testing.assert_close(model(X), ek.materialize(model, copy=True)(X))
    assert torch.equal(model[0].mask(), ek.mask(model[0].scores.detach(), rule))


def test_keep_under_one_threshold_for_all_layers_is_the_layers_own_share():
    rule = ek.GlobalTopK(0.3)
    model = ek.share_selection(nn.Sequential(linear(rule), ek.FusedSubnetLinear(5, 6, rule=rule)))
    with torch.no_grad():
        model[0].scores.mul_(10)
    shares = [layer.mask().sum().item() / layer.mask().numel() for layer in model]
    assert [layer.keep for layer in model] == pytest.approx(shares) and shares[0] > 0.35 > 0.25 > shares[1]
    model[0].keep = 0.6
    assert model[0].rule == ek.GlobalTopK(0.6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("assign", [False, True], ids=["copied", "assigned"])
@pytest.mark.parametrize("layer", [ek.FusedSubnetLinear, ek.FusedSupermaskLinear, ek.FusedSparseLinear])
def test_what_is_ranked_is_float32_whatever_the_file_has(layer, assign, dtype):
    one, other = layer(7, 5), layer(7, 5)
    state = {key: t.to(dtype) if t.is_floating_point() else t for key, t in one.state_dict().items()}
    trains = [p.requires_grad for p in other.parameters()]
    other.load_state_dict(state, assign=assign)
    ranked = "weight" if other.scores is None else "scores"
    for name, p in other.named_parameters():
        assert p.dtype == (dtype if assign and name != ranked else torch.float32)
        assert torch.equal(p.to(dtype), state[name])
    assert [p.requires_grad for p in other.parameters()] == trains
    assert other.mask().sum() > 0
