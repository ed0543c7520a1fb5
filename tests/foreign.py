"""Masked layers of other projects as their papers and documents define them, in plain PyTorch: names of classes and
attributes, which fraction is which, forward and gradients. Written anew here; ``convert`` knows them by these names."""

import math
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn


def through(mask, scores):
    """The mask, whose gradient goes to the scores as it is."""
    return mask + (scores - scores.detach())  # a zero is added: the values stay 0 and 1


def best(ranked, dropped):
    """1 but for the ``dropped`` smallest."""
    mask = torch.ones(ranked.numel())
    mask[ranked.detach().flatten().sort(stable=True).indices[:dropped]] = 0
    return mask.view_as(ranked)


def subnet(scores, kept):
    """Edge-popup's mask of |s|: what is KEPT is the argument."""
    return through(best(scores.abs(), int((1 - kept) * scores.numel())), scores.abs())


def new_scores(layer):
    return nn.init.kaiming_uniform_(nn.Parameter(torch.empty(layer.weight.shape)), a=math.sqrt(5))


class Masked:
    """The forward of a layer by the weight that its ``masked`` returns."""

    def forward(self, x):
        if isinstance(self, nn.Linear):
            return F.linear(x, self.masked(), self.bias)
        return F.conv2d(x, self.masked(), self.bias, self.stride, self.padding, self.dilation, self.groups)


class Scored(Masked):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.scores = new_scores(self)


class _Rated:
    def set_prune_rate(self, prune_rate):
        self.prune_rate = prune_rate


class SubnetConv(_Rated, Scored, nn.Conv2d):
    @property
    def clamped_scores(self):
        return self.scores.abs()

    def masked(self):
        return self.weight * subnet(self.scores, self.prune_rate)


class SampleSubnetConv(_Rated, Scored, nn.Conv2d):
    drawn = None  # of the last forward

    def masked(self):
        p = self.scores.sigmoid()
        self.drawn = torch.bernoulli(p.detach())
        return self.weight * through(self.drawn, p)


class FixedSubnetConv(_Rated, Scored, nn.Conv2d):
    def set_subnet(self):  # here prune_rate is the fraction REMOVED
        mask = best(self.scores.abs(), int(self.prune_rate * self.scores.numel()))
        self.scores = nn.Parameter(mask, requires_grad=False)

    def masked(self):
        return self.weight * self.scores


SPARSITY = 0.3  # of the MNIST example's arguments, the fraction KEPT


class SupermaskConv(Scored, nn.Conv2d):
    def masked(self):
        return self.weight * subnet(self.scores, SPARSITY)


class SupermaskLinear(Scored, nn.Linear):
    def masked(self):
        return self.weight * subnet(self.scores, SPARSITY)


hidden_networks = SimpleNamespace(
    SubnetConv=SubnetConv,
    SampleSubnetConv=SampleSubnetConv,
    FixedSubnetConv=FixedSubnetConv,
    SupermaskConv=SupermaskConv,
    SupermaskLinear=SupermaskLinear,
)


class _Popup(Masked):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.popup_scores = new_scores(self)
        self.weight.requires_grad = False
        if self.bias is not None:
            self.bias.requires_grad = False
        self.w = 0

    def set_prune_rate(self, k):
        self.k = k

    def masked(self):
        self.w = self.weight * subnet(self.popup_scores, self.k)
        return self.w


hydra = SimpleNamespace(
    SubnetConv=type("SubnetConv", (_Popup, nn.Conv2d), {}), SubnetLinear=type("SubnetLinear", (_Popup, nn.Linear), {})
)


class _Largest(_Rated, Masked):
    def masked(self):  # prune_rate is the fraction REMOVED, and the gradient reaches every weight
        kept = best(self.weight.abs(), int(self.prune_rate * self.weight.numel()))
        return self.weight - (self.weight * (1 - kept)).detach()


dnw = SimpleNamespace(
    SparseConv=type("SparseConv", (_Largest, nn.Conv2d), {}), DNW=type("DNW", (_Largest, nn.Conv2d), {})
)


class _SuperBlock(Masked, nn.Linear):
    def __init__(self, sparsity_level, blocksize, *sizes):
        super().__init__(*sizes)
        self.sparsity_level, self.blocksize = sparsity_level, blocksize
        shape = [max(1, math.ceil(size / blocksize)) for size in self.weight.shape]
        self.scores = nn.Parameter(torch.randn(shape))

    def mask(self):  # raw scores, at or above a percentile; sparsity_level is the fraction REMOVED
        numel = self.scores.numel()
        rank = 1 + round(0.01 * (100 * self.sparsity_level) * (numel - 1))
        return self.scores >= self.scores.detach().flatten().kthvalue(rank).values

    def masked(self):
        mask = self.mask()
        for i, size in enumerate(self.weight.shape):
            mask = mask.repeat_interleave(self.blocksize, dim=i).narrow(i, 0, size)
        return self.weight * mask


torchao = SimpleNamespace(SupermaskLinear=type("SupermaskLinear", (_SuperBlock,), {}))


class _Tasks(Masked):
    """Scores of several tasks; a ``task`` below 0 superposes the masks of those learned."""

    def __init__(self, *args, num_tasks=3, **kwargs):
        super().__init__(*args, **kwargs)
        self.scores = nn.ParameterList(new_scores(self) for _ in range(num_tasks))
        self.weight.requires_grad_(False)

    def mask(self, scores):
        return through((scores >= 0).float(), scores)

    def masked(self):
        return self.weight * (self.mixed() if self.task < 0 else self.mask(self.scores[self.task]))

    def mixed(self):
        masks = torch.stack([self.mask(s).detach() for s in self.scores[: self.num_tasks_learned]])
        return (self.alphas[: self.num_tasks_learned] * masks).sum(0)


class _Cached(_Tasks):
    def cache_masks(self):
        self.register_buffer("stacked", torch.stack([self.mask(s).detach() for s in self.scores]))

    def clear_masks(self):
        self.register_buffer("stacked", None)

    def mixed(self):  # of those that have a share
        alphas = self.alphas[: self.num_tasks_learned]
        there = (alphas > 0).view(-1)
        return (alphas[there] * self.stacked[: self.num_tasks_learned][there]).sum(0)


class _Rate(_Cached):  # sparsity is the fraction KEPT
    sparsity = SPARSITY

    def mask(self, scores):
        return subnet(scores, self.sparsity)


class _OfNotebook(_Cached):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.weight.copy_(self.weight.sign() * math.sqrt(2 / self.weight.shape[1]))


class _OneTask(Scored):
    sparsity = SPARSITY

    def masked(self):
        return self.weight * subnet(self.scores, self.sparsity)


class _ByTask(nn.Module):
    def __init__(self, channels, num_tasks=3):
        super().__init__()
        self.bns = nn.ModuleList(nn.BatchNorm2d(channels, affine=False) for _ in range(num_tasks))
        self.task = 0

    def forward(self, x):
        return self.bns[self.task](x)


supsup = SimpleNamespace(
    MultitaskMaskConv=type("MultitaskMaskConv", (_Rate, nn.Conv2d), {}),
    FastMultitaskMaskConv=type("FastMultitaskMaskConv", (_Cached, nn.Conv2d), {}),
    StackedFastMultitaskMaskConv=type("StackedFastMultitaskMaskConv", (_Tasks, nn.Conv2d), {}),
    FastMultitaskMaskLinear=type("FastMultitaskMaskLinear", (_Cached, nn.Linear), {}),
    MultitaskMaskLinear=type("MultitaskMaskLinear", (_OfNotebook, nn.Linear), {}),
    MultitaskNonAffineBN=type("MultitaskNonAffineBN", (_ByTask,), {}),
    IndividualHeads=type("IndividualHeads", (_Tasks, nn.Conv2d), {}),
    MaskConv=type("MaskConv", (_OneTask, nn.Conv2d), {}),
)
