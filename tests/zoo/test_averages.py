"""Libraries that keep averages of parameters and write them into the model: masks follow from what was written."""

import pytest
import torch

import edgepop_kernels as ek


def torch_ema(model):
    average = pytest.importorskip("torch_ema").ExponentialMovingAverage(model.parameters(), decay=0.9)
    return average.update, lambda: average.store() or average.copy_to(), average.restore


def diffusers(model):
    average = pytest.importorskip("diffusers.training_utils").EMAModel(model.parameters(), decay=0.9)

    def stand_in():
        average.store(model.parameters())
        average.copy_to(model.parameters())

    return lambda: average.step(model.parameters()), stand_in, lambda: average.restore(model.parameters())


def timm(model):
    average = pytest.importorskip("timm.utils").ModelEmaV3(model, decay=0.9)
    kept = [p.detach().clone() for p in model.parameters()]

    def write(values):
        for p, value in zip(model.parameters(), values, strict=True):
            p.data.copy_(value)

    def stand_in():
        kept[:] = [p.detach().clone() for p in model.parameters()]
        write(list(average.module.parameters()))

    return lambda: average.update(model), stand_in, lambda: write(kept)


@pytest.mark.parametrize("evaluates", [True, False], ids=["in eval()", "in train()"])
@pytest.mark.parametrize(("optimizer", "lr"), [(ek.optim.ScoreSGD, 0.1), (ek.optim.ScoreAdamW, 0.1)])
@pytest.mark.parametrize("library", [torch_ema, diffusers, timm])
def test_an_average_that_stands_in_is_masked_by_its_own_scores(library, optimizer, lr, evaluates):
    torch.manual_seed(0)
    layer = ek.FusedSubnetLinear(40, 32, bias=False, keep=0.3)
    steps = optimizer(layer, lr=lr)
    update, stand_in, restore = library(layer)

    def check():
        used = layer(torch.eye(40)).t() != 0
        assert torch.equal(used, ek.mask(layer.scores.detach(), layer.rule))
        return used

    differed = 0
    for _ in range(4):
        steps.zero_grad()
        layer(torch.randn(4, 40)).square().sum().backward()
        steps.step()
        update()
        if evaluates:
            layer.eval()
        stand_in()
        averaged = check()
        restore()
        layer.train()
        differed += not torch.equal(check(), averaged)
    assert differed >= 2  # the first averages of some are the values themselves
