"""Checkpoints of other programs into masked networks: what is read as what, what is refused, and nothing half read."""

import argparse
import os
import warnings
from functools import partial
from unittest import mock

import numpy
import pytest
import torch
from foreign import SPARSITY, best, hidden_networks, hydra
from torch import nn
from torch.nn.utils import prune

import edgepop_kernels as ek
from edgepop_kernels import torch_private
from edgepop_kernels.interop.entries import Entry, for_masked
from edgepop_kernels.testing.tolerances import assert_close


@pytest.fixture(autouse=True)
def _loud():
    """A warning that a test does not expect fails it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="the weight of a masked layer trains beside its scores")
        yield


class Net(nn.Module):
    """A network of the shape of hidden-networks': masked convolutions, the last of 1x1, a batch norm without scale."""

    def __init__(self, conv=nn.Conv2d, last=None, affine=False):
        super().__init__()
        self.conv1 = conv(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8, affine=affine)
        self.layer1 = nn.Sequential(conv(8, 8, 3, stride=2, groups=2, bias=False), nn.ReLU())
        self.fc = last or conv(8, 5, 1, bias=False)

    def forward(self, x):
        x = self.layer1(self.bn1(self.conv1(x)).relu()).mean((2, 3), keepdim=True)
        return (self.fc(x.flatten(1)) if isinstance(self.fc, nn.Linear) else self.fc(x)).flatten(1)


def ours(keep=0.3, linear=True, **options):
    model = Net(last=nn.Linear(8, 5, bias=False) if linear else None)
    return ek.convert(model, keep=keep, **options)


def theirs(rate=0.3, kind=hidden_networks.SubnetConv):
    model = Net(kind)
    for module in model.modules():
        if hasattr(module, "set_prune_rate"):
            module.set_prune_rate(rate)
            module.weight.requires_grad_(False)
    model(torch.randn(8, 3, 7, 9))  # statistics of the norms
    return model


def everything(model):
    return {name: t.clone() for name, t in model.state_dict().items()}


def unchanged(model, before):
    now = model.state_dict()
    return list(now) == list(before) and all(torch.equal(now[name], t) for name, t in before.items())


X = torch.linspace(-1, 1, 2 * 3 * 7 * 9).view(2, 3, 7, 9).sin()


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("linear", [True, False])
def test_a_checkpoint_of_hidden_networks_is_read_whole(prefix, linear, tmp_path):
    source = theirs().eval()
    state = {f"{prefix}{name}": t for name, t in source.state_dict().items()}
    optimizer = {"state": {}, "param_groups": [{"lr": numpy.float64(0.1), "params": [0]}]}
    content = {"epoch": 90, "arch": "cResNet18", "state_dict": state, "best_acc1": torch.tensor(70.1)}
    torch.save(content | {"optimizer": optimizer, "curr_acc1": numpy.float32(68.5)}, tmp_path / "model_best.pth")
    model = ours(linear=linear).eval()
    loaded = ek.load_checkpoint(model, tmp_path / "model_best.pth")
    assert loaded.read_as == {name: name.removeprefix(prefix) for name in state}
    assert loaded.missing == loaded.left == ()
    assert loaded.beside == ("epoch", "arch", "best_acc1", "optimizer", "curr_acc1")
    assert_close("y", model(X), source(X), torch.float32)
    assert model.conv1.rule == ek.TopK(0.3)  # which no checkpoint of theirs tells
    assert str(loaded).splitlines()[0] == (
        "read 9: 3 weight, 3 scores, 1 running_mean, 1 running_var, 1 num_batches_tracked"
    )


def test_the_model_may_be_wrapped_too():
    source = theirs().eval()
    compiled = partial(torch.compile, backend="eager")
    for wrap in (nn.DataParallel, compiled, lambda m: nn.DataParallel(compiled(m))):
        for prefix in ("", "module."):
            model = ours().eval()
            loaded = ek.load_checkpoint(wrap(model), {f"{prefix}{n}": t for n, t in source.state_dict().items()})
            assert len(loaded.read_as) == 9 and loaded.missing == loaded.left == ()
            assert_close("y", model(X), source(X), torch.float32)


CONTAINERS = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model": lambda state: {"model": state, "model_ema": state, "args": 1},
    "model_state_dict": lambda state: {"epoch": 1, "model_state_dict": state, "optimizer_state_dict": {"state": {}}},
    "nested": lambda state: {"net": {"state_dict": state, "acc": 0.9}, "epoch": 4},
    "a name of their own": lambda state: {"student": state, "epoch": 4},
    "with numbers among tensors": lambda state: {**state, "epoch": 4},
}


@pytest.mark.parametrize("what", CONTAINERS)
def test_the_state_dict_is_found_in_its_container(what):
    source = theirs().eval()
    content = CONTAINERS[what](source.state_dict())
    model = ours().eval()
    loaded = ek.load_checkpoint(model, content)
    assert len(loaded.read_as) == 9 and loaded.left == ()
    assert ("epoch" in loaded.beside) == ("epoch" in content)
    assert_close("y", model(X), source(X), torch.float32)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "holds no state_dict; expected names of tensors, got nothing"),
        ({"epoch": 3, "optimizer": {"state": {}}}, "holds no state_dict; .* got epoch, optimizer"),
        (
            {"student": {"a": X}, "teacher": {"a": X}},
            r"several state_dicts, student, teacher; .*checkpoint\['student'\]",
        ),
        ({3: X}, "has entries whose names are no strings, such as 3"),
        ({"a.b": X}, r"none of its entries is one of the model's; it has a\.b, the model conv1\.weight, "),
        ({"module.conv1.weight": X, "conv1.weight": X}, r"module\.conv1\.weight and conv1\.weight are one entry"),
    ],
)
def test_a_dict_without_one_state_dict_of_the_model_is_refused(content, words):
    model = ours()
    before = everything(model)
    with pytest.raises(ValueError, match=rf"^file: .*{words}"):
        ek.load_checkpoint(model, content)
    assert unchanged(model, before)


def test_hydra_s_scores_are_read_by_their_name():
    source = nn.Sequential(hydra.SubnetConv(3, 5, 3), nn.ReLU(), nn.Flatten(), hydra.SubnetLinear(5 * 35, 4))
    for layer in (source[0], source[3]):
        layer.set_prune_rate(0.2)
    model = ek.convert(nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 35, 4)), keep=0.2)
    loaded = ek.load_checkpoint(model, {"state_dict": source.state_dict()})
    assert loaded.read_as["0.popup_scores"] == "0.scores" and len(loaded.read_as) == 6
    assert "2 popup_scores as scores" in str(loaded)
    assert_close("y", model(X), source(X), torch.float32)
    model[0].freeze()  # a frozen one thaws not by scores alone: it has no rule to go back to
    with pytest.warns(UserWarning, match=r"^load_checkpoint: not read: 0\.popup_scores$") as told:
        loaded = ek.load_checkpoint(model, source.state_dict())
    assert loaded.left == ("0.popup_scores",) and loaded.missing == ("0.mask_bits",)
    assert told[0].filename == __file__


def test_a_dense_state_dict_leaves_scores_and_rules():
    dense = Net(last=nn.Linear(8, 5, bias=False)).eval()
    for method, rule in (("subnet", ek.TopK(0.4)), ("supermask", ek.Threshold(0.6)), ("sparse", ek.Percentile(0.2))):
        model = ek.convert(Net(last=nn.Linear(8, 5, bias=False)), rule, method=method)
        scores = {n: p.detach().clone() for n, p in model.named_parameters() if n.endswith("scores")}
        loaded = ek.load_checkpoint(model, dense.state_dict())
        assert set(loaded.missing) == scores.keys() and loaded.left == () and model.fc.rule == rule
        assert all(torch.equal(p, scores[n]) for n, p in model.named_parameters() if n in scores)
        assert torch.equal(model.layer1[0].weight, dense.layer1[0].weight)


def pruned():
    model = Net(last=nn.Linear(8, 5))
    for layer, name in ((model.conv1, "weight"), (model.layer1[0], "weight"), (model.fc, "weight"), (model.fc, "bias")):
        prune.random_unstructured(layer, name, 0.6)
    model(torch.randn(8, 3, 7, 9))
    return model.eval()


@pytest.mark.parametrize("method", ["subnet", "supermask", "sparse"])
def test_a_pruned_state_dict_freezes_masked_layers(method):
    source, model = pruned(), ek.convert(Net(last=nn.Linear(8, 5)), method=method).eval()
    loaded = ek.load_checkpoint(model, {"module." + n: t for n, t in source.state_dict().items()})
    assert loaded.missing == loaded.left == ()
    assert loaded.read_as["module.conv1.weight_orig"] == "conv1.weight"
    assert loaded.read_as["module.conv1.weight_mask"] == "conv1.mask_bits"
    assert loaded.read_as["module.fc.bias_orig"] == loaded.read_as["module.fc.bias_mask"] == "fc.bias"
    assert model.conv1.rule == ek.Frozen() and torch.equal(model.fc.mask(), source.fc.weight_mask.bool())
    assert torch.equal(model.conv1.weight, source.conv1.weight_orig)  # the weights that are masked out, too
    assert_close("y", model(X), source(X), torch.float32)
    again = ek.convert(Net(last=nn.Linear(8, 5)), method=method).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(X), model(X))


def test_a_pruned_state_dict_into_plain_layers_is_the_product():
    source, model = pruned(), Net(last=nn.Linear(8, 5)).eval()
    loaded = ek.load_checkpoint(model, source.state_dict())
    assert loaded.missing == loaded.left == () and loaded.read_as["fc.weight_mask"] == "fc.weight"
    assert torch.equal(model(X), source(X))
    twin = pruned()  # pruned itself: its own entries, by their own names
    assert ek.load_checkpoint(twin, source.state_dict()).read_as == {name: name for name in source.state_dict()}
    assert torch.equal(twin(X), source(X))


def test_fixed_masks_freeze_by_every_name_that_they_have():
    source = theirs(0.8, hidden_networks.FixedSubnetConv)
    for module in source.modules():
        if hasattr(module, "set_subnet"):
            module.set_subnet()
    source.eval()
    model = ours().eval()
    loaded = ek.load_checkpoint(model, source.state_dict())
    assert loaded.read_as["conv1.scores"] == "conv1.mask_bits" and loaded.missing == loaded.left == ()
    assert model.fc.rule == ek.Frozen() and model.fc.scores is None
    assert_close("y", model(X), source(X), torch.float32)
    layer, mask = ek.FusedSubnetLinear(5, 7), torch.rand(7, 5) < 0.5
    for value in (mask, mask.float(), mask[:, :, None, None].to(torch.int64)):
        for name in ("mask", "weight_mask"):
            ek.load_checkpoint(layer, {"weight": layer.weight.detach(), name: value, "bias": torch.zeros(7)})
            assert torch.equal(layer.mask(), mask)
    for scores in (torch.ones(7, 5), torch.zeros(7, 5)):  # all alike: how some supermasks start
        layer = ek.FusedSupermaskLinear(5, 7)
        ek.load_checkpoint(
            layer, {"scores": scores, **{n: p.detach() for n, p in layer.named_parameters() if n != "scores"}}
        )
        assert layer.rule == ek.Threshold() and torch.equal(layer.scores, scores)


def test_piggyback_s_real_mask_is_scores():
    layer = ek.FusedSupermaskLinear(5, 7, bias=False, rule=ek.Threshold(5e-3, of="raw"))
    real = torch.randn(7, 5) * 1e-2
    ek.load_checkpoint(layer, {"weight": torch.randn(7, 5), "mask_real": real})
    assert torch.equal(layer.mask(), real > 5e-3)


def test_entries_keep_the_names_that_they_had():
    layer = ek.FusedSubnetLinear(5, 7)
    entries = for_masked(layer, {"popup_scores": torch.randn(7, 5, 1, 1), "tag": 3})
    assert entries["tag"] == Entry(3, ("tag",)) and entries["scores"].names == ("popup_scores",)
    assert entries["scores"].value.shape == (7, 5)


def wrong(name, value):
    return lambda: {**Net(last=nn.Linear(8, 5, bias=False)).state_dict(), name: value}


REFUSED = {
    "a shape": (wrong("fc.weight", torch.ones(9, 8)), r"fc\.weight: expected shape \(5, 8\), got \(9, 8\)"),
    "a shape of a norm": (
        wrong("bn1.running_var", torch.ones(9)),
        r"bn1\.running_var: expected shape \(8,\), got \(9,\)",
    ),
    "a shape of scores": (wrong("fc.scores", torch.ones(5, 4)), r"fc\.scores: expected shape \(5, 8\), got \(5, 4\)"),
    "integers": (
        wrong("fc.weight", torch.ones(5, 8).to(torch.int8)),
        r"fc\.weight: expected floating values, got torch\.int8",
    ),
    "a mask's shape": (wrong("fc.weight_mask", torch.ones(8)), r"fc\.weight_mask: expected shape \(5, 8\), got \(8,\)"),
    "a mask's values": (wrong("fc.mask", torch.full((5, 8), 0.5)), r"fc\.mask: expected a mask of 0 and 1"),
    "bits": (wrong("fc.mask_bits", torch.zeros(9, dtype=torch.uint8)), r"fc\.\S*mask_bits"),
    "settings": (wrong("fc._extra_state", torch.zeros(3, dtype=torch.uint8)), r"fc\._extra_state: expected JSON"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_is_named_before_anything_is_written(what):
    (build, words), model = REFUSED[what], ours()
    content = build()
    before, random = everything(model), torch.get_rng_state()
    with pytest.raises(ValueError, match=rf"^model: the checkpoint does not fit; .*{words}"):
        ek.load_checkpoint(model, content)
    assert unchanged(model, before) and torch.equal(torch.get_rng_state(), random)
    assert all(m.rule == ek.TopK(0.3) and m.scores.requires_grad for m in (model.conv1, model.layer1[0], model.fc))


def test_several_that_do_not_fit_are_counted():
    state = {name: torch.ones(2, 2) for name in ours().state_dict() if not name.endswith("_extra_state")}
    with pytest.raises(ValueError, match=r"^model: the checkpoint does not fit; (conv1|bn1)\..*; and \d+ more$"):
        ek.load_checkpoint(ours(), state)


def test_a_packed_weight_takes_signs_and_refuses_numbers():
    source = ours(init="signed_constant")
    model = ours(init="signed_constant")
    ek.pack_weights(model)
    before = everything(model)
    with pytest.raises(ValueError, match=r"conv1\.weight: .*of one magnitude.* unpack_weights"):
        ek.load_checkpoint(model, ours().state_dict())
    assert unchanged(model, before)
    loaded = ek.load_checkpoint(model, source.state_dict())
    assert loaded.missing == loaded.left == () and torch.equal(model.eval()(X), source.eval()(X))
    plain = ours()
    assert ek.load_checkpoint(plain, model.state_dict()).left == () and torch.equal(plain.eval()(X), source(X))


@pytest.mark.parametrize(
    "options",
    [
        dict(rule=ek.TopK(0.2)),
        dict(method="sparse", rule=ek.TopK(0.2)),
        dict(method="supermask", rule=ek.Threshold(0.4), rescale=True, mask_bias=True),
    ],
    ids=str,
)
@pytest.mark.parametrize("frozen", [False, True])
def test_our_own_checkpoints_load_as_load_state_dict_loads_them(options, frozen):
    source, model, twin = (ek.convert(Net(last=nn.Linear(8, 5)), **options).eval() for _ in range(3))
    if frozen:
        for layer in (source.conv1, source.layer1[0], source.fc):
            layer.freeze(keep_scores=layer is source.fc)
    loaded = ek.load_checkpoint(model, {"state_dict": source.state_dict()})
    twin.load_state_dict(source.state_dict())
    assert loaded.missing == loaded.left == () and torch.equal(model(X), source(X))
    assert unchanged(model, twin.state_dict()) and [m.rule for m in (model.conv1, model.fc)] == [
        m.rule for m in (twin.conv1, twin.fc)
    ]


def test_what_is_left_and_what_is_missing_is_told():
    model = ek.convert(Net(last=nn.Linear(8, 5), affine=True), keep=0.3)
    source = theirs()
    state = source.state_dict() | {"fc.popup": torch.ones(1), "head.weight": torch.ones(2, 2)}
    with pytest.warns(UserWarning, match="^load_checkpoint: ") as told:
        loaded = ek.load_checkpoint(model, state)
    assert loaded.left == ("fc.popup", "head.weight") and loaded.missing == ("bn1.weight", "bn1.bias", "fc.bias")
    assert str(told[0].message) == (
        "load_checkpoint: not read: fc.popup, head.weight; not in the checkpoint, and as it was: bn1.weight, bn1.bias, "
        "fc.bias"
    )
    assert str(loaded).splitlines()[1:] == ["missing 3: bn1.weight, bn1.bias, fc.bias", "left 2: fc.popup, head.weight"]


def test_tied_weights_and_old_batch_norms_miss_nothing():
    model = nn.ModuleDict({"embedding": nn.Embedding(9, 4), "norm": nn.BatchNorm1d(4), "head": nn.Linear(4, 9)})
    model["head"].weight = model["embedding"].weight
    state = {n: t for n, t in model.state_dict().items() if n not in ("head.weight", "norm.num_batches_tracked")}
    assert ek.load_checkpoint(model, state).missing == ()


def test_a_checkpoint_is_left_as_it_is():
    source = theirs()
    state = dict(source.named_parameters())  # parameters, of which some train
    trained = {name: p.requires_grad for name, p in state.items()}
    content = {"state_dict": dict(state)}
    model = ours()
    with pytest.warns(UserWarning, match=r"not in the checkpoint, and as it was: bn1\.running_mean"):
        ek.load_checkpoint(model, content)
    assert content["state_dict"].keys() == state.keys() and {n: p.requires_grad for n, p in state.items()} == trained
    assert all(p.data_ptr() != state["fc.scores"].data_ptr() for p in model.parameters())
    with torch.no_grad():
        model.conv1.scores.zero_()
    assert source.conv1.scores.any()


def test_nothing_of_the_model_is_called_or_drawn_on_the_way():
    model, calls = ours(), []
    model.conv1.register_load_state_dict_post_hook(lambda *_: calls.append("loaded"))
    model.conv1.register_forward_hook(lambda *_: calls.append("called"))
    parameters = dict(model.named_parameters())
    optimizer = ek.optim.ScoreSGD(model, lr=0.1)
    random = torch.get_rng_state()
    ek.load_checkpoint(model, theirs().state_dict())
    del optimizer
    assert calls == ["loaded"] and all(p is parameters[n] for n, p in model.named_parameters())
    assert model.conv1.scores.requires_grad and not model.conv1.weight.requires_grad
    assert random.numel() == torch.get_rng_state().numel()


def test_a_layer_inside_distributed_is_not_frozen_by_a_checkpoint():
    model = ours()
    before = everything(model)
    holder = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    with mock.patch.object(torch_private, "holder_of", return_value=holder):
        with pytest.raises(RuntimeError, match=r"^load_checkpoint: the model is inside DistributedDataParallel"):
            ek.load_checkpoint(
                model, {"conv1.weight_mask": torch.ones(8, 3, 3, 3), "conv1.weight_orig": model.conv1.weight}
            )
        assert unchanged(model, before)
        assert ek.load_checkpoint(model, theirs().state_dict()).left == ()


def test_a_model_without_values_is_refused():
    with torch.device("meta"):
        model = Net()
    with pytest.raises(ValueError, match=r"conv1\.weight: it is on the meta device; call model\.to_empty"):
        ek.load_checkpoint(model, Net().state_dict())
    with pytest.raises(TypeError, match=r"^model: expected a torch\.nn\.Module, got dict"):
        ek.load_checkpoint({}, Net().state_dict())
    with pytest.raises(TypeError, match=r"^file: expected a path, or a dict of a checkpoint, got list"):
        ek.load_checkpoint(Net(), [])


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_file_is_data_or_it_is_refused(tmp_path):
    model, file = ours(), tmp_path / "net.pth"
    before = everything(model)
    torch.save({"state_dict": theirs().state_dict(), "payload": Payload(str(tmp_path / "ran"))}, file)
    with pytest.raises(ValueError, match=r"^file: \S+net\.pth holds more than tensors and plain values, .*mkdir"):
        ek.load_checkpoint(model, file)
    assert not (tmp_path / "ran").exists() and unchanged(model, before)
    torch.save(theirs(), file)  # a whole module
    with pytest.raises(ValueError, match=r"holds more than tensors and plain values"):
        ek.load_checkpoint(model, file)
    torch.save([X], file)
    with pytest.raises(ValueError, match=r"^file: \S+ holds a list; expected a dict"):
        ek.load_checkpoint(model, file)
    torch.save(theirs().state_dict(), file)
    content = file.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"no checkpoint at all"):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"^file: \S+net\.pth (is damaged or no checkpoint|holds more than)"):
            ek.load_checkpoint(model, file)
    with pytest.raises(FileNotFoundError):
        ek.load_checkpoint(model, tmp_path / "none.pth")
    assert unchanged(model, before)


@pytest.mark.parametrize("zipped", [True, False])
def test_numbers_of_numpy_and_arguments_are_data(zipped, tmp_path):
    content = {
        "model": theirs().state_dict(),
        "args": argparse.Namespace(lr=0.1, arch="vgg"),
        "acc": numpy.float32(0.5),
    }
    content |= {"epoch": numpy.int64(3), "scheduler": {"last": numpy.float64(1.5)}}
    torch.save(content, str(tmp_path / "net.pt"), _use_new_zipfile_serialization=zipped)
    assert ek.load_checkpoint(ours(), str(tmp_path / "net.pt")).beside == ("args", "acc", "epoch", "scheduler")


def test_safetensors_are_read_and_packed_files_sent_on(tmp_path):
    torch_of = pytest.importorskip("safetensors.torch")
    source, model = theirs().eval(), ours().eval()
    torch_of.save_file(source.state_dict(), tmp_path / "net.safetensors")
    assert ek.load_checkpoint(model, tmp_path / "net.safetensors").left == ()
    assert_close("y", model(X), source(X), torch.float32)
    ek.save_packed(model, tmp_path / "packed.safetensors")
    with pytest.raises(ValueError, match=r"^file: \S+ is a packed file; edgepop_kernels\.load_packed"):
        ek.load_checkpoint(model, tmp_path / "packed.safetensors")
    (tmp_path / "net.safetensors").write_bytes(b"no safetensors")
    with pytest.raises(ValueError, match=r"^file: \S+ is damaged or no safetensors file"):
        ek.load_checkpoint(model, tmp_path / "net.safetensors")


@pytest.mark.parametrize("packed", [False, True])
def test_out_to_hidden_networks_and_back(packed):
    model = ours(init="signed_constant").eval()
    model(X)
    assert not packed or ek.pack_weights(model)
    state = ek.interop.hidden_networks.state_dict(model)
    source = theirs().eval()
    assert list(state) == list(source.state_dict())
    source.load_state_dict(state)
    assert_close("y", source(X), model(X), torch.float32)
    again = ours(linear=False).eval()
    ek.load_checkpoint(again, {"state_dict": {f"module.{name}": t for name, t in state.items()}})
    assert_close("y", again(X), model(X), torch.float32)


def test_frozen_layers_and_drawing_ones_have_their_counterparts():
    model = ours().eval()
    for layer in (model.conv1, model.layer1[0], model.fc):
        layer.freeze()
    source = theirs(0.7, hidden_networks.FixedSubnetConv).eval()
    source.load_state_dict(ek.interop.hidden_networks.state_dict(model))
    assert_close("y", source(X), model(X), torch.float32)
    drawn = ek.convert(Net(), ek.Bernoulli(), method="supermask")
    source = theirs(0.7, hidden_networks.SampleSubnetConv)
    source.load_state_dict(ek.interop.hidden_networks.state_dict(drawn))
    assert torch.equal(source.conv1.scores, drawn.conv1.scores)
    example = ek.convert(nn.Sequential(nn.Linear(6, 5)), keep=SPARSITY)
    layer = nn.Sequential(hidden_networks.SupermaskLinear(6, 5))
    layer.load_state_dict(ek.interop.hidden_networks.state_dict(example, linear_as_conv=False))
    x = torch.randn(3, 6)
    assert_close("y", layer(x), example(x), torch.float32)
    assert torch.equal(example[0].mask(), best(layer[0].scores.abs(), int((1 - SPARSITY) * 30)).bool())


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (ek.FusedSubnetLinear(3, 4, rule=ek.Percentile(0.3)), r"the rule Percentile\(keep=0\.3"),
        (ek.FusedSubnetLinear(3, 4, rule=ek.TopK(0.3, of="raw")), r"the rule TopK\(keep=0\.3, of='raw'\)"),
        (ek.FusedSupermaskLinear(3, 4), r"the rule Threshold"),
        (ek.FusedSupermaskLinear(3, 4, rule=ek.Bernoulli(at_eval="round")), r"the rule Bernoulli\(at_eval='round'\)"),
        (ek.FusedSupermaskLinear(3, 4, rule=ek.Bernoulli(), rescale=True), "rescaled weights"),
        (ek.FusedSupermaskLinear(3, 4, rule=ek.Bernoulli(), mask_bias=True), "a masked bias"),
        (ek.FusedSparseLinear(3, 4), "a weight that scores itself"),
    ],
)
def test_what_hidden_networks_has_no_layer_for_is_refused_by_name(layer, words):
    with pytest.raises(ValueError, match=rf"^model: layer '1' has {words}.*, which no layer of hidden-networks has"):
        ek.interop.hidden_networks.state_dict(nn.Sequential(nn.ReLU(), layer))
    with pytest.raises(ValueError, match=r"^model: it has "):
        ek.interop.hidden_networks.state_dict(layer)
