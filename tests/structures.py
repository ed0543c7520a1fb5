"""What masks of structured rules look like, and a network for them."""

import torch
from torch import nn

import edgepop_kernels as ek


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 9, 3, groups=3), nn.Flatten(), nn.Linear(36, 6)
    )


def groups_kept(mask, m, dim=1):
    """How many weights of every m in a row along ``dim`` the mask keeps."""
    return mask.movedim(dim, -1).reshape(-1, m).sum(1)


def whole(mask, rule):
    """The number of blocks that the mask keeps; asserts that it has each of them whole."""
    block = rule.block(mask.shape)
    for dim, size in enumerate(block):
        mask = mask.unflatten(2 * dim, (-1, size))
    counted = mask.movedim(list(range(1, mask.dim(), 2)), list(range(-len(block), 0))).flatten(-len(block)).sum(-1)
    full = torch.tensor(block).prod()
    assert ((counted == 0) | (counted == full)).all()
    return int((counted == full).sum())


def check_structure(mask, rule):
    """Asserts that the mask keeps what the rule says, in its structure."""
    if isinstance(rule, ek.NM):
        assert groups_kept(mask, rule.m, rule.dim).unique().tolist() == [rule.n]
        return
    size = torch.tensor(rule.block(mask.shape)).prod().item()
    assert whole(mask, rule) == ek.kept_count(mask.numel() // size, rule.keep)
