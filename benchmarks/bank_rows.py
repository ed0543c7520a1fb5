"""The task of unlabelled inputs: forward of the superposed masks, backward of the entropy to the shares."""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from columns import masked_layers
from measure import Contest
from rows import randn
from torch import nn

import edgepop_kernels as ek
from edgepop_kernels.bank.bank import entropy
from edgepop_kernels.testing.tolerances import assert_close


class Stacked(nn.Module):
    """A layer of W * sum(alpha_t * M_t) as its source writes it (Wortsman et al. 2020): masks of float32, stacked."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, masks: torch.Tensor):
        super().__init__()
        self.layer, self.masks = layer, masks

    def forward(self, x):
        layer = self.layer
        there = self.alphas > 0
        shares = self.alphas[there].view(-1, *[1] * layer.weight.dim())
        weight = layer.weight * (shares * self.masks[there]).sum(0)
        if isinstance(layer, nn.Linear):
            return F.linear(x, weight, layer.bias)
        return F.conv2d(x, weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)


class OneByOne(Stacked):
    """The same as a sum of masked products, one for each task."""

    def __init__(self, layer, masks):
        super().__init__(layer, masks)
        self.bits = [ek.pack_mask(mask != 0) for mask in masks]

    def forward(self, x):
        layer, total = self.layer, 0
        for alpha, bits in zip(self.alphas, self.bits, strict=True):
            if isinstance(layer, nn.Linear):
                y = ek.masked_linear(x, layer.weight, bits, ek.Frozen())
            else:
                geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
                y = ek.masked_conv2d(x, layer.weight, bits, ek.Frozen(), None, *geometry)
            total = total + alpha * y
        return total if layer.bias is None else total + layer.bias.view(-1, *[1] * (layer.weight.dim() - 2))


@dataclass(frozen=True)
class BankRow:
    """fused: a MaskBank; stacked: masks of float32, summed by their shares; one by one: a masked product a task."""

    label: str
    template: object
    x_shape: tuple[int, ...]
    tasks: int
    full = False
    columns = ("fused", "stacked", "one by one")
    compiled = False
    group = "bank"
    budget_s = 1.5
    launches = True

    def __str__(self):
        return f"{self.label}, {self.tasks} tasks batch {self.x_shape[0]} f32 fwd+bwd"

    def contest(self, columns, setup):
        torch.manual_seed(0)
        dense = self.template().to(setup.device).requires_grad_(False).train()
        bank = ek.MaskBank(ek.convert(copy.deepcopy(dense), keep=0.5, freeze_rest=True, left="ignore"))
        for _ in range(self.tasks):
            bank.add()
            bank.freeze()
        masks = [bank.masks(task) for task in range(self.tasks)]
        x, shares = randn(self.x_shape, 1, setup.device), torch.full((self.tasks,), 1 / self.tasks, device=setup.device)

        def slopes(network, superpose, dtype=torch.float32):
            def run():
                alphas = shares.to(dtype).requires_grad_()
                superpose(alphas)
                return torch.autograd.grad(entropy(network(x.to(dtype))), alphas)[0]

            return run

        def unfused(kind, dtype=torch.float32):
            network = copy.deepcopy(dense).to(dtype)
            layers = {
                name: kind(network.get_submodule(name), torch.stack([of[name] for of in masks]).to(dtype))
                for name, module in bank.model.named_modules()
                if module in masked_layers(bank.model)
            }
            for name, layer in layers.items():
                parent, _, leaf = name.rpartition(".")
                network.get_submodule(parent)._modules[leaf] = layer

            def superpose(alphas):
                for layer in layers.values():
                    layer.alphas = alphas

            return slopes(network, superpose, dtype)

        calls = {"fused": slopes(bank, bank.mix), "stacked": unfused(Stacked), "one by one": unfused(OneByOne)}
        calls = {name: setup.on_its_backend("dense" if name == "stacked" else "fused", calls[name]) for name in columns}

        def check():
            # In float64: a ReLU that flips in the rounding of float32 moves slopes by percents.
            wide = copy.deepcopy(bank).double()
            ours, expected = slopes(wide, wide.mix, torch.float64)(), unfused(Stacked, torch.float64)()
            assert (ours - expected).norm() <= 1e-9 * expected.norm()
            for column in columns:
                assert_close(column, calls[column](), expected, torch.float32, factor=1e3)

        return Contest(check, calls)
