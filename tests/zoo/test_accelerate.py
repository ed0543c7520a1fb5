"""accelerate, and transformers' Trainer above it: a step is torch's, states come back, offloaded weights are masked."""

import copy

import judge
import pytest
import torch
from torch import nn

import edgepop_kernels as ek

accelerate = pytest.importorskip("accelerate")

SCORED = {
    "SGD": (ek.optim.ScoreSGD, torch.optim.SGD, dict(lr=0.1, momentum=0.9)),
    "AdamW": (ek.optim.ScoreAdamW, torch.optim.AdamW, dict(lr=0.05)),
}


@pytest.fixture(autouse=True)
def a_state_of_its_own():
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 7), nn.ReLU(), nn.Linear(7, 3))


def converted(**options):
    return ek.convert(network(), keep=0.3, **options)


def batch():
    return torch.randn(8, 9, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 3


def by_definition(model, optimizer):
    """The step of torch's own layers with W * M in them, straight through to the scores."""
    plain = ek.materialize(model, copy=True)
    for p in plain.parameters():
        p.requires_grad_()
    x, y = batch()
    nn.functional.cross_entropy(plain(x), y).backward()
    of_plain = dict(plain.named_parameters())
    for name, p in model.named_parameters():
        if name.endswith("scores"):
            layer = model.get_submodule(name.removesuffix(".scores"))
            p.grad = of_plain[f"{name.removesuffix('.scores')}.weight"].grad * layer.weight * p.detach().sign()
        elif p.requires_grad:
            p.grad = of_plain[name].grad
    optimizer.step()
    optimizer.zero_grad()


def accelerated_step(accelerator, model, optimizer):
    x, y = batch()
    with accelerator.accumulate(model):
        accelerator.backward(nn.functional.cross_entropy(model(x), y))
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("ours", [True, False], ids=["scores'", "torch's"])
@pytest.mark.parametrize("name", SCORED)
def test_a_step_is_that_of_plain_torch(name, ours):
    scored, plain, options = SCORED[name]
    model = converted()
    expected = copy.deepcopy(model)
    trained = [p for p in expected.parameters() if p.requires_grad]
    reference = plain(trained, **options)
    optimizer = (
        scored(model, **options) if ours else plain([p for p in model.parameters() if p.requires_grad], **options)
    )
    accelerator = accelerate.Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(model, optimizer)
    for _ in range(2):
        accelerated_step(accelerator, model, optimizer)
        by_definition(expected, reference)
    assert accelerator.unwrap_model(model) is model
    for (name, p), (_, e) in zip(model.named_parameters(), expected.named_parameters(), strict=True):
        torch.testing.assert_close(p, e, msg=lambda m, name=name: f"{name}: {m}")


def test_mixed_precision_leaves_scores_in_float32():
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    model = converted()
    before = [p.detach().clone() for n, p in model.named_parameters() if n.endswith("scores")]
    model, optimizer = accelerator.prepare(model, ek.optim.ScoreSGD(model, lr=0.1))
    accelerated_step(accelerator, model, optimizer)
    scores = [p for n, p in model.named_parameters() if n.endswith("scores")]
    assert len(scores) == 3
    assert all(s.dtype == torch.float32 and not torch.equal(s, b) for s, b in zip(scores, before, strict=True))


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("name", SCORED)
def test_a_saved_state_goes_on_bit_for_bit(name, safe, tmp_path):
    scored, _, options = SCORED[name]

    def prepared():
        model = converted()
        accelerator = accelerate.Accelerator(cpu=True)
        return accelerator, *accelerator.prepare(model, scored(model, **options))

    accelerator, model, optimizer = prepared()
    accelerated_step(accelerator, model, optimizer)
    accelerator.save_state(tmp_path, safe_serialization=safe)
    accelerated_step(accelerator, model, optimizer)
    again, resumed, steps = prepared()
    resumed[0].keep = 0.9  # the state has its own
    again.load_state(tmp_path)
    assert resumed[0].keep == 0.3
    accelerated_step(again, resumed, steps)
    assert all(torch.equal(p, resumed.state_dict()[key]) for key, p in model.state_dict().items())


OFFLOADED = {
    "cpu": lambda m, folder: accelerate.cpu_offload(m, execution_device="cpu"),
    "disk": lambda m, folder: accelerate.disk_offload(m, folder, execution_device="cpu"),
}


@pytest.mark.parametrize("frozen", [False, True], ids=["loose", "frozen"])
@pytest.mark.parametrize("where", OFFLOADED)
def test_what_is_offloaded_after_convert_is_masked(where, frozen, tmp_path):
    model = converted().eval()
    if frozen:
        for layer in (model[0], model[2], model[4]):
            layer.freeze()
    x = batch()[0]
    with torch.no_grad():
        expected = model(x)
        offloaded = OFFLOADED[where](model, tmp_path)
        assert offloaded[0].weight.device.type == "meta"
        for _ in range(2):
            assert torch.equal(offloaded(x), expected)


@pytest.mark.parametrize("where", OFFLOADED)
def test_convert_and_materialize_refuse_what_is_offloaded_until_the_hooks_are_off(where, tmp_path):
    model, x = OFFLOADED[where](network(), tmp_path).eval(), batch()[0]
    kinds = [type(m) for m in model]
    with pytest.raises(ValueError, match=r"^model: layer '0' has a forward of its own.*remove_hook_from_module"):
        ek.convert(model)
    assert [type(m) for m in model] == kinds
    accelerate.hooks.remove_hook_from_module(model, recurse=True)
    ek.convert(model, keep=0.3)
    torch.testing.assert_close(model(x), judge.plain(model)(x))
    before = model(x)

    OFFLOADED[where](model, tmp_path / "masked")
    for copied in (False, True):
        with pytest.raises(ValueError, match=r"^model: layer '0' has a forward of its own.*remove_hook_from_module"):
            ek.materialize(model, copy=copied)
    assert torch.equal(model(x), before)
    accelerate.hooks.remove_hook_from_module(model, recurse=True)
    torch.testing.assert_close(ek.materialize(model, copy=True)(x), before)
    torch.testing.assert_close(model[0].materialize()(x), model[0](x))
    torch.testing.assert_close(ek.materialize(model)(x), before)
    assert [type(m) for m in model] == kinds


def test_a_checkpoint_fills_a_network_that_was_built_empty(tmp_path):
    with accelerate.init_empty_weights():
        model = converted(left="ignore")
    assert all(p.device.type == "meta" for p in model.parameters())
    saved = converted()
    accelerate.Accelerator(cpu=True).save_model(saved, tmp_path)
    model.to_empty(device="cpu")
    accelerate.load_checkpoint_in_model(model, tmp_path, strict=True)
    x = batch()[0]
    assert torch.equal(model.eval()(x), saved.eval()(x))


@pytest.mark.parametrize("name", SCORED)
def test_transformers_trainer_takes_the_step_of_plain_torch(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    scored, plain, options = SCORED[name]

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = converted()

        def forward(self, x, labels):
            logits = self.net(x)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    x, y = batch()
    model = Classifier()
    expected = copy.deepcopy(model.net)
    reference = plain([p for p in expected.parameters() if p.requires_grad], **options)
    by_definition(expected, reference)
    trainer = transformers.Trainer(
        model,
        transformers.TrainingArguments(
            tmp_path,
            per_device_train_batch_size=8,
            max_steps=1,
            max_grad_norm=0,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=[{"x": a, "labels": b} for a, b in zip(x, y, strict=True)],
        optimizers=(scored(model, **options), None),
    )
    trainer.create_scheduler = lambda *_, **__: None
    trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(trainer.optimizer, lambda _: 1)
    trainer.train()
    for (key, p), (_, e) in zip(model.net.named_parameters(), expected.named_parameters(), strict=True):
        torch.testing.assert_close(p, e, msg=lambda m, key=key: f"{key}: {m}")
