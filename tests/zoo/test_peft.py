"""peft's own adapters: refused around masked layers, whatever their kind, right on plain ones, never masked."""

import copy
import dataclasses
import re
import warnings

import pytest
import torch
from torch import nn

import edgepop_kernels as ek

peft = pytest.importorskip("peft")

TARGETS = ["0", "2"]
# What a kind needs to fit layers of 12 inputs and outputs.
SIZES = {
    "AdaLoraConfig": dict(init_r=4, target_r=2, total_step=10),
    "BOFTConfig": dict(boft_block_size=4),
    "C3AConfig": dict(block_size=4),
    "FourierFTConfig": dict(n_frequency=10),
    "IA3Config": dict(feedforward_modules=[]),
    "MissConfig": dict(r=4),
    "OFTConfig": dict(r=0, oft_block_size=4),
    "PsoftConfig": dict(r=4),
    "RoadConfig": dict(group_size=4),
    "ShiraConfig": dict(r=4),
    "VBLoRAConfig": dict(num_vectors=8, vector_length=4),
    "WaveFTConfig": dict(n_frequency=10),
}
# Their forward or what they start from reads the weight, or they start elsewhere than LoRA.
VARIANTS = {
    "lora": dict(init_lora_weights=False),
    "lora with bias": dict(init_lora_weights=False, lora_bias=True, use_rslora=True),
    "dora": dict(use_dora=True, init_lora_weights=False),
    "pissa": dict(init_lora_weights="pissa"),
    "olora": dict(init_lora_weights="olora"),
    "orthogonal": dict(init_lora_weights="orthogonal"),
}
MERGED = ["HRAConfig", "IA3Config", "LoHaConfig", "LoKrConfig", "OFTConfig", "RandLoraConfig", "VeraConfig"]


def kinds():
    """The names of all kinds of adapters that this peft has and that take layers by name."""
    found = {name: kind for name, kind in vars(peft).items() if isinstance(kind, type) and name.endswith("Config")}
    return [
        name
        for name, kind in found.items()
        if issubclass(kind, peft.PeftConfig) and "target_modules" in {f.name for f in dataclasses.fields(kind)}
    ]


def config(kind):
    if kind in VARIANTS:
        return peft.LoraConfig(r=4, target_modules=TARGETS, **VARIANTS[kind])
    return getattr(peft, kind)(target_modules=TARGETS, **SIZES.get(kind, {}))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12), nn.LayerNorm(12), nn.ReLU(), nn.Linear(12, 5))


def converted(frozen=False):
    model = ek.convert(network(), keep=0.3)
    if frozen:
        for layer in (model[0], model[2], model[5]):
            layer.freeze()
    return model


def adapted(model, kind):
    """With adapters away from where they start, so that there is something to merge."""
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peft, about its own defaults
        model = peft.get_peft_model(model, config(kind)).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p), alpha=0.1)
    return model


def off(out, ref):
    return ((out - ref).norm() / ref.norm()).item()


def masked(model):
    return [name for name, m in model.named_modules() if isinstance(m, ek.FusedSubnetLinear)]


@pytest.mark.filterwarnings("ignore:.*OSFLayer.__del__:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("frozen", [False, True], ids=["loose", "frozen"])
@pytest.mark.parametrize("kind", [*VARIANTS, *kinds()])
def test_no_adapter_gets_around_a_masked_layer(kind, frozen):
    try:
        adapted(network(), kind)
    except (AttributeError, NotImplementedError, TypeError, ValueError) as error:  # what a kind wants of a network
        pytest.skip(f"not for this network: {error}")
    model = converted(frozen).eval()
    x = torch.randn(4, 12)
    before, state = model(x), copy.deepcopy(model.state_dict())
    training = [p.requires_grad for p in model.parameters()]
    # A kind that takes torch's own layers alone says so itself.
    with pytest.raises(ValueError, match=r"^base_layer: .*materialize first|^Target module FusedSubnetLinear"):
        adapted(model, kind)
    assert masked(model) == ["0", "2", "5"]
    assert [p.requires_grad for p in model.parameters()] == training
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("kind", [*VARIANTS, *MERGED])
@pytest.mark.parametrize("safe", [False, True], ids=["", "safe_merge"])
def test_on_what_is_materialized_an_adapter_can_be_merged(kind, safe):
    model = converted()
    x = torch.randn(4, 12)
    of_masks = model(x)
    adapter = adapted(ek.materialize(model, copy=True), kind)
    unmerged = adapter(x)
    assert off(unmerged, of_masks) > 1e-3
    adapter.merge_adapter(safe_merge=safe)
    assert off(adapter(x), unmerged) < 1e-5
    adapter.unmerge_adapter()
    assert off(adapter(x), unmerged) < 1e-5
    assert off(adapter.merge_and_unload(safe_merge=safe)(x), unmerged) < 1e-5
    assert torch.equal(model(x), of_masks)


@pytest.mark.parametrize("kind", ["lora", "dora", "LoHaConfig"])
@pytest.mark.parametrize("dimensions", [1, 2])
def test_convolutions_too(kind, dimensions):
    layer = {1: nn.Conv1d, 2: nn.Conv2d}[dimensions]
    torch.manual_seed(0)
    plain = nn.Sequential(layer(3, 6, 3), nn.ReLU(), layer(6, 5, 3, padding=1))
    model = ek.convert(plain, keep=0.3).eval()
    x = torch.randn(2, 3, *[9] * dimensions)
    with pytest.raises(ValueError, match=r"^base_layer: .*materialize first"):
        adapted(model, kind)
    adapter = adapted(ek.materialize(model), kind)
    unmerged = adapter(x)
    assert off(adapter.merge_and_unload()(x), unmerged) < 1e-5


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_an_adapter_that_starts_from_the_weight_starts_from_the_masked_one(start):
    model = converted()
    x = torch.randn(4, 12)
    of_masks = model(x)
    torch.manual_seed(1)
    adapter = peft.get_peft_model(ek.materialize(model), config(start)).eval()
    assert off(adapter(x), of_masks) < 1e-5


@pytest.mark.parametrize("kind", [*VARIANTS, *MERGED, "LilyConfig", "PeanutConfig", "VBLoRAConfig"])
def test_parts_of_adapters_are_never_converted(kind):
    model = adapted(network(), kind)
    names = {name: type(m) for name, m in model.named_modules()}
    kept = re.escape(r"base_model.model.0.base_layer")
    with pytest.raises(ValueError, match=rf"^model: layer '{kept}' has an adapter \(peft\.tuners\..*merge_and_unload"):
        ek.convert(model, left="ignore")
    assert {name: type(m) for name, m in model.named_modules()} == names
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    ek.convert(model, exclude="*.base_layer", left="ignore")
    assert masked(model) == ["base_model.model.5"]
    x = torch.randn(4, 12)
    model(x).square().sum().backward()
    named = dict(model.named_parameters())
    assert {n for n, p in named.items() if p.requires_grad} == {*trained, "base_model.model.5.scores"}
    assert all(p.grad is not None for n, p in named.items() if p.requires_grad and "default" in n)


def test_adapters_and_masks_of_one_network_train_side_by_side():
    model = ek.convert(network(), keep=0.3, include="5", left="ignore")
    adapter = adapted(model, "lora")
    assert not model[5].scores.requires_grad  # peft stops all but its own
    ek.train_masks(model)
    optimizer = ek.optim.ScoreSGD(model, lr=0.1)
    x, before = torch.randn(8, 12), {n: p.detach().clone() for n, p in adapter.named_parameters()}
    twin = copy.deepcopy(adapter)
    twin.base_model.model[5] = twin.base_model.model[5].materialize()
    twin.base_model.model[5].weight.requires_grad_()
    y, expected = adapter(x), twin(x)
    assert off(y, expected) < 1e-6
    y.square().sum().backward()
    expected.square().sum().backward()
    of_twin = dict(twin.named_parameters())
    for name, p in adapter.named_parameters():
        if name.endswith("scores"):
            dw = of_twin["base_model.model.5.weight"].grad
            assert off(p.grad, dw * model[5].weight * p.detach().sign()) < 1e-5
        elif p.requires_grad:
            assert off(p.grad, of_twin[name].grad) < 1e-5
    optimizer.step()
    moved = {n for n, p in adapter.named_parameters() if not torch.equal(p, before[n])}
    assert {n for n in moved if "lora" in n} == {n for n in before if "lora" in n}
    assert "base_model.model.5.scores" in moved and "base_model.model.5.weight" not in moved
    adapter.eval()
    unmerged = adapter(x)
    merged = adapter.merge_and_unload()
    assert off(merged(x), unmerged) < 1e-5
    assert masked(merged) == ["5"]


@pytest.mark.filterwarnings("ignore:masked layers were not called")  # 5 itself, of which peft has made a copy
def test_a_masked_layer_among_the_modules_to_save_goes_on_training():
    model = ek.convert(network(), keep=0.3, include="5", left="ignore")
    adapter = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=TARGETS, modules_to_save=["5"]))
    saved = adapter.base_model.model[5].modules_to_save["default"]
    assert isinstance(saved, ek.FusedSubnetLinear) and saved.scores.requires_grad
    x = torch.randn(4, 12)
    with pytest.warns(UserWarning, match="the weight of a masked layer trains beside its scores.*train_masks"):
        adapter(x)  # peft makes all of it train
    ek.train_masks(saved)
    adapter(x).sum().backward()
    assert saved.scores.grad.abs().sum() > 0 and saved.weight.grad is None


def test_the_encoder_of_a_prompt_is_not_converted():
    transformers = pytest.importorskip("transformers")
    shape = transformers.BertConfig(
        vocab_size=20, hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    bert = transformers.BertForSequenceClassification(shape)
    prompt = peft.PromptEncoderConfig(task_type="SEQ_CLS", num_virtual_tokens=3, encoder_hidden_size=8)
    model = peft.get_peft_model(bert, prompt)
    ek.convert(model, keep=0.5, exclude="*classifier*", left="ignore")
    assert not [name for name in masked(model) if "prompt_encoder" in name] and len(masked(model)) == 7
    model(input_ids=torch.randint(20, (2, 6))).logits.sum().backward()
    assert all(p.grad is not None for n, p in model.prompt_encoder.named_parameters() if "mlp_head" in n)


def test_adapters_put_into_a_network_without_a_wrapper_are_refused_too():
    with pytest.raises(ValueError, match=r"^base_layer: .*materialize first"):
        peft.inject_adapter_in_model(config("lora"), converted())
