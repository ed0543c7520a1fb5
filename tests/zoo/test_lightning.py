"""Lightning's Trainer: steps of converted networks are torch's own, runs resume bit for bit, averages are validated
under their own masks."""

import copy
import logging
import warnings

import pytest
import torch
from torch import nn

import edgepop_kernels as ek

L = pytest.importorskip("lightning")
WeightAveraging = pytest.importorskip("lightning.pytorch.callbacks").WeightAveraging
EMAWeightAveraging = pytest.importorskip("lightning.pytorch.callbacks").EMAWeightAveraging

KEEP = 0.3
OPTIMIZERS = {
    "ScoreSGD": lambda m: ek.optim.ScoreSGD(m, lr=0.1, momentum=0.9),
    "ScoreAdamW": lambda m: ek.optim.ScoreAdamW(m, lr=0.05),
    "torch's SGD": lambda m: torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=0.1, momentum=0.9),
}
AS_TORCH = {
    "ScoreSGD": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9),
    "ScoreAdamW": lambda ps: torch.optim.AdamW(ps, lr=0.05),
    "torch's SGD": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9),
}


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(num_workers|log_every_n_steps|checkpoint directory).*")
        warnings.filterwarnings("ignore", message=".*(LeafSpec|isinstance.treespec).*")
        yield


class Images(L.LightningModule):
    def __init__(self, optimizer, **options):
        super().__init__()
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 11), nn.ReLU(), nn.Linear(11, 3)
        )
        self.net = ek.convert(net, keep=KEEP, left="ignore", **options)
        self.optimizer, self.validated = optimizer, []

    def training_step(self, batch, i):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, i):
        self.validated.append((self.net(batch[0]).float(), by_definition(self.net)(batch[0]).float()))

    def configure_optimizers(self):
        return OPTIMIZERS[self.optimizer](self.net)


def by_definition(net):
    """Torch's own layers, the mask by a stable sort of the scores as they are."""
    plain = ek.materialize(net, copy=True)
    for own, layer in zip(plain, net, strict=True):
        if isinstance(layer, ek.FusedSubnetConv | ek.FusedSubnetLinear):
            size = layer.scores.detach().abs().flatten()
            best = torch.sort(size, descending=True, stable=True).indices[: ek.kept_count(len(size), KEEP)]
            mask = torch.zeros(len(size), dtype=torch.bool).index_fill_(0, best, True).view_as(layer.weight)
            own.weight.data = layer.weight.detach() * mask
    return plain


def batches(count=4, size=16):
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(count * size, 1, 6, 6, generator=generator), torch.arange(count * size) % 3
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=size)


def trainer(tmp_path, **options):
    options = dict(max_epochs=2, enable_checkpointing=False, num_sanity_val_steps=0) | options
    return L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **options,
    )


def off(out, ref):
    return ((out - ref).abs().max() / ref.abs().max()).item()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_fit_takes_the_steps_of_plain_torch(optimizer, tmp_path):
    model = Images(optimizer)
    weights = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    # By the definition: dense gradients of W * M, straight through to the scores.
    net = copy.deepcopy(model.net)
    step = AS_TORCH[optimizer]([p for p in net.parameters() if p.requires_grad])
    for _ in range(2):
        for x, y in batches():
            plain = by_definition(net)
            for p in plain.parameters():
                p.requires_grad_()
            nn.functional.cross_entropy(plain(x), y).backward()
            for own, layer in zip(plain, net, strict=True):
                if hasattr(layer, "scores"):
                    layer.scores.grad = own.weight.grad * layer.weight * layer.scores.detach().sign()
                    layer.bias.grad = own.bias.grad
            step.step()
    trainer(tmp_path).fit(model, batches(), batches(1))
    for (name, p), (_, expected) in zip(model.net.named_parameters(), net.named_parameters(), strict=True):
        assert off(p, expected) < 1e-4, name
    assert len(weights) == 3
    for name, p in model.named_parameters():
        assert name not in weights or torch.equal(p, weights[name])
    assert model.validated and all(off(y, ref) < 1e-5 for y, ref in model.validated)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_that_is_resumed_ends_bit_for_bit_where_the_whole_one_does(optimizer, tmp_path):
    whole = Images(optimizer)
    trainer(tmp_path, max_epochs=3).fit(whole, batches())
    part = trainer(tmp_path, max_epochs=1)
    part.fit(Images(optimizer), batches())
    part.save_checkpoint(tmp_path / "part.ckpt", weights_only=False)
    resumed = Images(optimizer)
    trainer(tmp_path, max_epochs=3).fit(resumed, batches(), ckpt_path=tmp_path / "part.ckpt", weights_only=False)
    state, expected = resumed.state_dict(), whole.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], value) for key, value in expected.items())


@pytest.mark.parametrize("shared", [False, True], ids=["per layer", "shared selection"])
@pytest.mark.parametrize("averaging", ["weights", "ema"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_averages_are_validated_under_the_masks_of_the_averaged_scores(optimizer, averaging, shared, tmp_path):
    model = Images(optimizer)
    if shared:
        ek.share_selection(model.net)
    callback = WeightAveraging() if averaging == "weights" else EMAWeightAveraging(decay=0.7)
    trainer(tmp_path, max_epochs=3, val_check_interval=2, callbacks=[callback]).fit(model, batches(), batches(2))
    assert len(model.validated) == 3 * 2 * 2
    assert all(off(y, ref) < 1e-5 for y, ref in model.validated)
    x = next(iter(batches()))[0]
    assert off(model.net(x), by_definition(model.net)(x)) < 1e-5


@pytest.mark.parametrize("optimizer", ["ScoreSGD", "ScoreAdamW"])
def test_averages_of_scores_few_of_which_change_too(optimizer, tmp_path):
    """Most inputs are never there, and their scores never move: of those that a known cut looks at, all may be such."""

    class Sparse(Images):
        def __init__(self, optimizer):
            super().__init__(optimizer)
            self.net = ek.convert(nn.Sequential(nn.Linear(400, 11), nn.ReLU(), nn.Linear(11, 3)), keep=KEEP)

    generator = torch.Generator().manual_seed(1)
    x = torch.zeros(64, 400)
    x[:, 200:208] = torch.randn(64, 8, generator=generator).mul(9)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, torch.arange(64) % 3), batch_size=16)
    model = Sparse(optimizer)
    trainer(tmp_path, max_epochs=3, callbacks=[EMAWeightAveraging(decay=0.9)]).fit(model, data, data)
    assert model.validated and all(off(y, ref) < 1e-5 for y, ref in model.validated)


@pytest.mark.parametrize("clip", ["norm", "value"])
def test_clipping_reaches_the_scores(clip, tmp_path):
    model = Images("torch's SGD")
    model.optimizer = "ScoreSGD"
    before = {n: p.detach().clone() for n, p in model.net.named_parameters()}
    options = dict(gradient_clip_val=1e-3, gradient_clip_algorithm=clip, max_epochs=1, limit_train_batches=1)
    trainer(tmp_path, **options).fit(model, batches())
    change = [(p - before[n]).detach() for n, p in model.net.named_parameters()]
    if clip == "norm":
        assert torch.cat([c.flatten() for c in change]).norm().item() == pytest.approx(0.1 * 1e-3, rel=1e-2)
    else:
        assert max(c.abs().max().item() for c in change) == pytest.approx(0.1 * 1e-3, rel=1e-2)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_other_precisions(precision, tmp_path):
    model = Images("ScoreSGD")
    before = [m.scores.detach().clone() for m in model.net if hasattr(m, "scores")]
    trainer(tmp_path, precision=precision, max_epochs=3).fit(model, batches(1), batches(1))
    scores = [m.scores for m in model.net if hasattr(m, "scores")]
    assert all(s.dtype == torch.float32 for s in scores)
    assert not any(torch.equal(s, b) for s, b in zip(scores, before, strict=True))
    assert all(off(y, ref) < (3e-2 if "bf16" in precision else 1e-5) for y, ref in model.validated)
