"""Masked networks inside torch's own tools: what a training script does to a model around its forward."""

import copy
import io
import multiprocessing
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import edgepop_kernels as ek

RULES = [ek.TopK(0.5), ek.GlobalTopK(0.5), ek.Percentile(0.5), ek.Threshold(0.5), ek.Bernoulli()]


def network(rule, shared):
    torch.manual_seed(0)
    convs = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2)
    model = ek.convert(nn.Sequential(*convs, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10)), rule)
    return ek.share_selection(model) if shared else model


@pytest.fixture
def images():
    return torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def step(model, images):
    F.cross_entropy(model(images), torch.arange(len(images))).backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


def reloaded(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, reloaded], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("shared", [False, True], ids=["per layer", "shared selection"])
def test_a_copy_selects_from_its_own_scores(images, copied, shared):
    model = network(ek.TopK(0.5), shared)
    step(model, images)
    twin = copied(model)
    assert torch.equal(twin(images), model(images))
    with torch.no_grad():
        for layer in (m for m in twin.modules() if hasattr(m, "scores")):
            layer.scores.normal_()
    fresh = network(ek.TopK(0.5), shared=False)
    fresh.load_state_dict(twin.state_dict())
    assert torch.equal(twin(images), fresh(images))
    assert not torch.equal(twin(images), model(images))


class FirstHalfCheckpointed(nn.Sequential):
    reentrant = False

    def forward(self, x):
        layers = list(self)
        return nn.Sequential(*layers[4:])(checkpoint(nn.Sequential(*layers[:4]), x, use_reentrant=self.reentrant))


class FirstHalfReentered(FirstHalfCheckpointed):
    reentrant = True


@pytest.mark.parametrize("shared", [False, True], ids=["per layer", "shared selection"])
@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("checkpointed", [FirstHalfCheckpointed, FirstHalfReentered])
def test_activation_checkpointing_repeats_the_mask(images, checkpointed, rule, shared):
    if isinstance(rule, ek.GlobalTopK) and not shared:
        pytest.skip("GlobalTopK needs a shared selection")
    gradients = []
    images.requires_grad_()  # without which the reentrant one has no backward
    for kind in (nn.Sequential, checkpointed):
        model = kind(*network(rule, shared=False))
        if shared:
            ek.share_selection(model)
        torch.manual_seed(2)
        gradients.append(step(model, images))
    for plain, repeated in zip(*gradients, strict=True):
        assert torch.equal(plain, repeated)


@pytest.mark.parametrize("shared", [False, True], ids=["per layer", "shared selection"])
def test_a_network_trains_on_after_export_and_inference_mode(images, shared):
    model = network(ek.TopK(0.5), shared).eval()
    exported = torch.export.export(model, (images,))
    torch.testing.assert_close(exported.module()(images), model(images))
    model.train()
    with torch.inference_mode():
        model(images)
    assert all(torch.isfinite(g).all() for g in step(model, images))


def test_threads_share_a_network(images):
    model = network(ek.TopK(0.5), shared=False).eval()
    want, wrong = model(images), []

    def run():
        wrong.extend(i for i in range(10) if not torch.equal(model(images), want))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_forked_process_computes(images):
    # What a DataLoader's worker is: a child of a process whose OpenMP pool has already run.
    model = network(ek.TopK(0.5), shared=False).eval()
    want = model(images).sum().item()
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()

    def child():
        torch.set_num_threads(1)
        results.put(model(images).sum().item())

    process = context.Process(target=child)
    process.start()
    process.join(timeout=60)
    assert process.exitcode == 0
    assert results.get() == pytest.approx(want, rel=1e-5)


def test_a_profiler_is_told_which_products_ran_and_the_values_are_the_same(images):
    model = network(ek.TopK(0.5), shared=False)
    expected = [g.clone() for g in step(model, images)]
    model.zero_grad()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        gradients = step(model, images)
    assert all(map(torch.equal, gradients, expected))
    counts = {event.key: event.count for event in profile.key_averages() if event.key.startswith("edgepop::")}
    assert counts["edgepop::masked_conv2d"] == 2 and counts["edgepop::masked_linear"] == 1
    assert counts["edgepop::masked_conv2d_dw"] == 2 and counts["edgepop::masked_linear_dx"] == 1
    (linear,) = (e for e in profile.events() if e.name == "edgepop::masked_linear")
    assert linear.input_shapes[:3] == [[4, 32], [10, 32], [10, 32]]
