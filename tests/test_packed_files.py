"""Packed files: what was saved comes back bit for bit, masked and plain; what does not fit or is damaged is named."""

import io
import json
import os
import sys

import pytest
import torch
from safetensors import safe_open
from torch import nn

import edgepop_kernels as ek
from edgepop_kernels.recipes import registry
from edgepop_kernels.testing import inputs

RULES = [
    ("subnet", ek.TopK(0.3), {}),
    ("subnet", ek.TopK(0.6, of="raw"), {}),
    ("subnet", ek.GlobalTopK(0.4), {}),
    ("subnet", ek.Percentile(0.4), {}),
    ("supermask", ek.Threshold(0.5), {"mask_bias": True, "rescale": True}),
    ("supermask", ek.Bernoulli(), {"mask_bias": True}),
    ("supermask", ek.Bernoulli("round"), {"rescale": True}),
    ("sparse", ek.TopK(0.2), {}),
]
FORMS = ["seed", "signs", "kept"]


def plain_network(seed=3):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.Conv2d(12, 12, 3, groups=12, stride=2, padding_mode="reflect", padding=1),
        nn.Conv2d(12, 18, 3, groups=3, dilation=2, padding="same"),
        nn.Flatten(2),
        nn.Conv1d(18, 7, 5, padding=2),
        nn.Flatten(),
        nn.Linear(7 * 36, 17),
        nn.LayerNorm(17),
        nn.Linear(17, 1, bias=False),
    )


def masked(model):
    return {name: m for name, m in model.named_modules() if hasattr(m, "packed_mask")}


def network(method="subnet", rule=RULES[0][1], options=None, form="kept", seed=3):
    model = ek.convert(plain_network(seed), rule, method=method, left="ignore", **(options or {}))
    for number, layer in enumerate(masked(model).values()):
        if form == "seed":
            ek.init.packed_signed_constant_(layer, seed=seed + number)
        elif form == "signs":
            ek.init.signed_constant_(layer.weight)
    with torch.no_grad():  # what has been trained
        model[1].running_mean.normal_()
        model[1].num_batches_tracked.fill_(17)
        model[8].weight.normal_()
        for layer in masked(model).values():
            if layer.bias is not None:
                layer.bias.normal_()
    return ek.share_selection(model.eval()) if rule.together else model.eval()


def batch(count=3):
    return torch.randn(count, 3, 11, 11, generator=inputs.generator(count))


def same(ours, theirs):
    return list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


def snapshot(model):
    return {name: t.clone() for name, t in model.state_dict().items()}


@pytest.fixture
def file(tmp_path):
    return tmp_path / "net.safetensors"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("method", "rule", "options"), RULES, ids=lambda value: str(value))
def test_what_was_saved_comes_back_bit_for_bit(method, rule, options, form, file):
    if method == "sparse" and form == "seed":
        pytest.skip("a weight that scores itself is drawn from no seed")
    model = network(method, rule, options, form)
    if rule.fresh:
        ek.train_weights(model) if form == "kept" else [m.freeze() for m in masked(model).values()]
    ek.save_packed(model, file)
    plain = ek.materialize(model, copy=True)
    assert same(ek.load_packed(file), plain.state_dict())
    other = network(method, ek.TopK(0.9) if method != "supermask" else rule, options, "kept", seed=8)
    assert ek.load_packed(file, other) is other
    assert torch.equal(other(batch()), model(batch()))
    assert all(m.rule == ek.Frozen() and m.scores is None for m in masked(other).values())
    assert same(ek.materialize(other, copy=True).state_dict(), plain.state_dict())
    into_plain = ek.load_packed(file, plain_network(9).eval())
    assert same(into_plain.state_dict(), plain.state_dict())
    assert torch.equal(into_plain(batch()), plain(batch()))
    again = file.with_name("again")
    ek.save_packed(other, again)  # of a network that was loaded
    assert same(ek.load_packed(again), plain.state_dict())


@pytest.mark.parametrize("form", FORMS)
def test_a_file_has_of_a_weight_what_cannot_be_drawn_again(form, file):
    model = network(form=form)
    ek.save_packed(model, file)
    state = ek.load_packed(file)
    with safe_open(file, "pt") as opened:
        names = list(opened.keys())
        tensors = {name: opened.get_tensor(name) for name in names}
    layers = masked(model)
    assert state.layers.keys() == layers.keys()
    for name, layer in layers.items():
        found = {n.removeprefix(f"{name}.") for n in tensors if n.startswith(f"{name}.")} - {"bias"}
        assert found == {"mask_bits"} | {"seed": set(), "signs": {"weight_signs"}, "kept": {"weight_kept"}}[form]
        assert torch.equal(tensors[f"{name}.mask_bits"], layer.packed_mask())
        described, mask = state.layers[name], layer.mask()
        assert described.weight == form and described.kept == mask.sum()
        assert tuple(described.shape) == mask.shape and described.dtype == "float32"
        assert described.kind == layer._plain.__name__ and described.method == "subnet"
        assert described.rule.items() >= {"kind": "TopK", "keep": 0.3, "of": "abs"}.items()
        if form == "kept":
            assert torch.equal(tensors[f"{name}.weight_kept"], layer.weight[mask])
    assert state.layers["3"].geometry == {
        "stride": [1, 1],
        "padding": "same",
        "dilation": [2, 2],
        "groups": 3,
        "padding_mode": "zeros",
    }
    assert state.layers["7"].geometry == {}


@pytest.mark.parametrize("saved", FORMS)
@pytest.mark.parametrize("into", ["packed", "floats", "frozen", "frozen with scores"])
def test_weights_keep_the_form_of_the_layer_they_are_loaded_into(saved, into, file):
    model = network(form=saved)
    ek.save_packed(model, file)
    other = network(form="signs", seed=5)
    if into == "packed":
        ek.pack_weights(other)
    for layer in masked(other).values() if into.startswith("frozen") else ():
        layer.freeze(keep_scores=into == "frozen with scores")
    before = snapshot(other)
    if into == "packed" and saved == "kept":
        with pytest.raises(ValueError, match=r"0: its weight is packed.*call unpack_weights\(model\)"):
            ek.load_packed(file, other)
        assert same(snapshot(other), before)
        return
    ek.load_packed(file, other)
    assert torch.equal(other(batch()), model(batch()))
    packed = [name for name, _ in other.named_buffers() if name.endswith("weight_signs")]
    assert len(packed) == (6 if into == "packed" else 0)
    assert ("0.weight_seed" in other.state_dict()) == (into == "packed" and saved == "seed")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", FORMS)
def test_half_precision_and_channels_last_come_back(dtype, form, file):
    def made(seed):
        return network(form=form, seed=seed).to(dtype).to(memory_format=torch.channels_last)

    model, other = made(3), made(4)
    ek.save_packed(model, file)
    assert same(ek.load_packed(file), ek.materialize(model, copy=True).state_dict())
    assert ek.load_packed(file)["0.weight"].dtype == dtype
    x = batch().to(dtype)
    assert torch.equal(ek.load_packed(file, other)(x), model(x))


def test_a_seeded_resnet50_is_its_masks(file):
    model = registry.find("edge-popup-resnet50").recipe.network((3, 224, 224), 1000)
    layers = masked(model)
    for seed, layer in enumerate(layers.values()):
        ek.init.packed_signed_constant_(layer, 0.3, seed=seed)
    ek.save_packed(model, file)
    with safe_open(file, "pt") as opened:
        names = list(opened.keys())
        sizes = {name: opened.get_tensor(name).nbytes for name in names}
    masks = sum(size for name, size in sizes.items() if name.endswith(".mask_bits"))
    weights = sum(layer.weight.numel() for layer in layers.values())
    assert weights == 25_502_912 and weights / 8 < masks < 3.2e6
    norms = sum(t.nbytes for name, t in model.named_buffers() if "running" in name or "tracked" in name)
    assert sum(sizes.values()) == masks + norms  # nothing for weights
    assert file.stat().st_size < 3.46e6
    state = ek.load_packed(file)
    assert all(described.weight == "seed" for described in state.layers.values())
    name = "layer4.2.conv2"
    assert torch.equal(state[f"{name}.weight"], layers[name].effective_weight())


def test_tensors_and_layers_with_two_names_are_saved_once(file):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(50, 8)
            self.first = ek.FusedSubnetLinear(8, 8)
            self.second = self.first
            self.head = nn.Linear(8, 50, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, x):
            return self.head(self.second(self.first(self.embedding(x))))

    model, other, x = Tied(), Tied(), torch.arange(50)
    ek.save_packed(model, file)
    with safe_open(file, "pt") as opened:
        assert sorted(opened.keys()) == ["embedding.weight", "first.bias", "first.mask_bits", "first.weight_kept"]
    assert torch.equal(ek.load_packed(file, other)(x), model(x))
    assert same(ek.load_packed(file), ek.materialize(model, copy=True).state_dict())


def test_a_layer_by_itself_and_a_wrapped_network_are_saved_by_plain_names(file):
    layer = ek.FusedSubnetLinear(9, 5, keep=0.3)
    for wrapped in (layer, nn.DataParallel(layer), torch.compile(layer)):
        ek.save_packed(wrapped, file)
        assert list(ek.load_packed(file)) == ["weight", "bias"]
    other = ek.FusedSubnetLinear(9, 5)
    x = torch.randn(3, 9)
    wrapped = torch.compile(other)
    assert ek.load_packed(file, wrapped) is wrapped
    assert torch.equal(other(x), layer(x))


def test_what_is_said_beside_the_model_comes_back(file):
    meta = {"accuracy": 0.914, "seed": 2**63, "names": ["é", "\n"], "nested": {"a": None, "b": [True, 1.5, {}]}}
    ek.save_packed(network(), file, **meta)
    assert ek.load_packed(file).meta == meta
    before = file.read_bytes()
    for wrong in (float("nan"), torch.ones(1), {1: 2}, [object()], {"a": float("inf")}):
        with pytest.raises(TypeError, match=r"score: expected finite numbers, strings, None, lists and dicts"):
            ek.save_packed(network(), file, score=wrong)
    assert file.read_bytes() == before


def flipped(content, at):
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def test_a_damaged_file_is_refused_wherever_it_is_damaged_and_the_model_stays(file):
    model, other = network(form="signs"), network(seed=4)
    ek.save_packed(model, file, seed=3)
    good, before = file.read_bytes(), snapshot(other)
    begin = 8 + int.from_bytes(good[:8], "little")
    header = json.loads(good[8:begin])
    places = [*range(0, begin, 37), *range(begin, len(good), 501), len(good) - 1]
    damaged = [flipped(good, at) for at in places]
    damaged += [b"", good[:7], good[: begin - 1], good[:begin], good[:-1], good + b"\0", b"{}" * 99]
    for content in damaged:
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"^[^\n]*net\.safetensors (is|does)[^\n]*$"):
            ek.load_packed(file, other)
    assert same(snapshot(other), before)
    for name in ("3.mask_bits", "3.weight_signs", "1.running_mean", "7.bias"):
        file.write_bytes(flipped(good, begin + header[name]["data_offsets"][0]))
        with pytest.raises(ValueError, match=rf"net\.safetensors is damaged: {name} is not what was saved"):
            ek.load_packed(file)
    file.write_bytes(good)
    ek.load_packed(file, other)


def test_files_of_others_are_refused(file, tmp_path):
    from safetensors.torch import save_file

    save_file({"0.weight": torch.ones(3)}, file)
    with pytest.raises(ValueError, match=r"net\.safetensors is no packed file: expected the format"):
        ek.load_packed(file)
    torch.save({"a": torch.ones(3)}, tmp_path / "net.pt")
    with pytest.raises(ValueError, match=r"net\.pt is damaged, or no safetensors file"):
        ek.load_packed(tmp_path / "net.pt")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ek.load_packed(tmp_path / "nowhere")
    with pytest.raises(TypeError, match="file: expected a path, got int"):
        ek.load_packed(3)


@pytest.mark.parametrize(
    "change",
    [
        lambda about: about.pop("layers"),
        lambda about: about["layers"]["0"].pop("kind"),
        lambda about: about["layers"]["0"].update(shape=[12, 3, 3, 30]),
        lambda about: about["layers"]["0"].update(kept=7),
        lambda about: about["layers"]["0"].update(weight="drawn"),
        lambda about: about["layers"]["0"].update(dtype="nn"),
        lambda about: about["layers"].update(nowhere=about["layers"]["0"]),
        lambda about: about["order"].append("nowhere.weight"),
        lambda about: about.update(order=3),
        lambda about: about.update(layers=[]),
    ],
)
def test_a_file_that_does_not_describe_its_tensors_is_refused(change, file):
    from edgepop_kernels.export import container

    ek.save_packed(network(form="signs"), file)
    tensors, about = container.read(file)
    change(about)
    container.write(file, tensors, about)
    with pytest.raises(ValueError, match=r"net\.safetensors does not describe a network"):
        ek.load_packed(file)


def different():
    """Networks that are almost the one saved, and what is said of each."""

    def changed(at, module):
        model = plain_network()
        model[at] = module
        return ek.convert(model, keep=0.5, left="ignore")

    yield changed(0, nn.Conv2d(3, 13, 3, padding=1, bias=False)), r"0: .*shape \(12, 3, 3, 3\), got \(13, 3, 3, 3\)"
    yield changed(0, nn.Conv2d(3, 12, 3, bias=False)), r"0: expected padding=\[1, 1\], got \[0, 0\]"
    yield changed(0, nn.Conv2d(3, 12, 3, padding=1)), r"the file has no 0\.bias"
    yield (
        changed(2, nn.Conv2d(12, 12, 3, groups=12, padding=1)),
        r"2: expected stride=\[2, 2\], got.*; 2: .*mode",
    )
    yield changed(7, nn.Linear(7 * 36, 17, bias=False)), r"the model has no 7\.bias"
    yield changed(7, nn.Identity()), r"7: expected Linear, got Identity"
    yield changed(8, nn.Linear(17, 17)), r"8: it is masked in the model and dense in the file"
    yield changed(8, nn.LayerNorm(17, elementwise_affine=False)), r"the model has no 8\.weight, 8\.bias"
    yield changed(1, nn.BatchNorm2d(12, affine=False)), r"the model has no 1\.weight, 1\.bias"
    yield plain_network()[:9], r"9: expected Linear, got nothing; the model has no 9\.weight"
    yield nn.Sequential(*plain_network(), nn.Linear(1, 1)), r"the file has no 10\.weight, 10\.bias"
    yield plain_network().to("meta"), r"1\.weight: it is on the meta device"
    other = plain_network()
    other[8] = nn.LayerNorm((1, 17))
    yield other, r"8\.weight: expected shape \(17,\), got \(1, 17\)"


def test_a_network_that_the_file_does_not_fit_is_told_why_and_stays(file):
    ek.save_packed(network(), file)
    cases = list(different())
    assert len(cases) == 13
    for model, words in cases:
        before = snapshot(model)
        with pytest.raises(ValueError, match=rf"model: .*net\.safetensors is of another network; .*{words}"):
            ek.load_packed(file, model)
        after = snapshot(model)
        assert before.keys() == after.keys()
        assert all(t.is_meta or torch.equal(t, before[name]) for name, t in after.items())
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got str"):
        ek.load_packed(file, "net")


def test_rescaled_weights_go_into_supermasks_and_plain_layers_alone(file):
    model = network("supermask", ek.Threshold(0.5), {"rescale": True})
    ek.save_packed(model, file)
    with pytest.raises(ValueError, match=r"0: its weights are rescaled; expected a supermask or a plain layer, got"):
        ek.load_packed(file, network())
    other = network("supermask", ek.Threshold(0.5), seed=7)
    assert torch.equal(ek.load_packed(file, other)(batch()), model(batch())) and other[0].rescale
    ek.save_packed(network("supermask", ek.Threshold(0.5)), file)
    assert not ek.load_packed(file, other)[0].rescale


def test_a_network_that_cannot_be_saved_is_told_why(file):
    with pytest.raises(ValueError, match="model: it has no masked layer"):
        ek.save_packed(plain_network(), file)
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got dict"):
        ek.save_packed({}, file)
    with pytest.raises(TypeError, match="file: expected a path, got BytesIO"):
        ek.save_packed(network(), io.BytesIO())
    with pytest.raises(ValueError, match=r"0\.weight: expected a tensor with all its values, got on the meta device"):
        ek.save_packed(network().to("meta"), file)
    model = network()
    model.register_buffer("phase", torch.ones(3, dtype=torch.complex64))
    with pytest.raises(TypeError, match=r"phase: expected dense real numbers, got torch\.complex64"):
        ek.save_packed(model, file)
    assert not os.path.exists(file)


def test_a_write_that_fails_leaves_the_file_that_was_there_and_nothing_else(file, monkeypatch):
    ek.save_packed(network(), file)
    before = file.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        ek.save_packed(network(seed=5), file)
    assert file.read_bytes() == before and os.listdir(file.parent) == [file.name]


@pytest.mark.parametrize("missing", ["safetensors.torch", "numpy"])
def test_where_safetensors_is_missing_it_is_asked_for(missing, file, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match="pip install safetensors numpy"):
        ek.save_packed(network(), file)
    with pytest.raises(ImportError, match="needs safetensors and numpy"):
        ek.load_packed(file)


def test_saving_changes_nothing(file):
    model = network("supermask", ek.Bernoulli(), {"mask_bias": True})
    before = snapshot(model)
    ek.save_packed(model, file)
    assert same(snapshot(model), before) and not masked(model)["0"].rule.fixed


def test_a_drawn_mask_is_one_draw_and_global_ranks_are_those_of_the_network(file):
    model = network("supermask", ek.Bernoulli(), {"mask_bias": True})
    torch.manual_seed(4)
    ek.save_packed(model, file)
    torch.manual_seed(4)
    again = file.with_name("again")
    ek.save_packed(model, again)
    assert same(ek.load_packed(file), ek.load_packed(again))
    ek.save_packed(model, again)
    assert not same(ek.load_packed(file), ek.load_packed(again))
    ranked = network(rule=ek.GlobalTopK(0.4))
    ek.save_packed(ranked, file)
    kept = {row.name: row.kept for row in ek.summary(ranked).rows}
    assert {name: layer.kept for name, layer in ek.load_packed(file).layers.items()} == kept
    assert len({round(kept[name] / layer.weight.numel(), 2) for name, layer in masked(ranked).items()}) > 2
