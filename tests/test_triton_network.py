"""A training step of a whole network on the Triton kernels: the step the reference takes."""

import copy

import pytest
import torch
from torch import nn

import edgepop_kernels as ek
from edgepop_kernels.testing.tolerances import assert_close

pytest.importorskip("triton", reason="triton is not installed")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []


def conv4(width):
    """Conv4 of Ramanujan et al. 2020 for 8x8 images, ``width`` channels in the first layers instead of 64."""
    torch.manual_seed(0)
    sizes = [(3, width), (width, width), (width, 2 * width), (2 * width, 2 * width)]
    layers = []
    for i, (channels, out) in enumerate(sizes):
        layers += [ek.FusedSubnetConv(channels, out, 3, padding=1, bias=False), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if i % 2 else []
    layers += [nn.Flatten(), ek.FusedSubnetLinear(8 * width, 16, bias=False), nn.ReLU()]
    return ek.share_selection(nn.Sequential(*layers, ek.FusedSubnetLinear(16, 10, bias=False))).to(DEVICE)


def train(model, backend, x, target, steps):
    scores = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(scores, lr=0.1, momentum=0.9)
    with ek.use_backend(backend):
        for _ in range(steps):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), target)
            loss.backward()
            optimizer.step()
    return loss.detach(), scores


def test_two_steps_of_conv4():
    x, target = torch.randn(2, 3, 8, 8, device=DEVICE), torch.tensor([3, 7], device=DEVICE)
    ours = conv4(4)
    theirs = copy.deepcopy(ours)
    loss, scores = train(ours, "triton", x, target, steps=2)
    expected_loss, expected = train(theirs, "reference", x, target, steps=2)
    assert_close("loss", loss, expected_loss, torch.float32)
    for i, (s, e) in enumerate(zip(scores, expected, strict=True)):
        assert_close(f"scores {i}", s, e, torch.float32)
        assert s.grad.abs().sum() > 0
