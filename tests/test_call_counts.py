"""What a layer's call costs in Python: frames, which no machine and no load changes."""

import gc
import sys

import pytest
import torch

import edgepop_kernels as ek
from edgepop_kernels.backend import native

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))


def calls(function):
    """Calls of Python functions, generators' steps among them, beneath ``function``; torch's own as well."""
    found = 0

    def count(frame, event, argument):
        nonlocal found
        found += event == "call"

    gc.collect()  # what earlier tests have left behind is not to be finalized meanwhile
    gc.disable()
    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(None)
        gc.enable()
    return found


@pytest.fixture
def trained():
    """A layer in the middle of its training, and what a step of it needs."""
    torch.manual_seed(0)
    layer, x = ek.FusedSubnetLinear(64, 32), torch.randn(8, 64, requires_grad=True)
    optimizer = ek.optim.ScoreSGD(layer, lr=0.1, momentum=0.9)
    for _ in range(3):
        layer(x).sum().backward()
        optimizer.step()
    return layer, x, optimizer


def test_a_forward_that_selects_takes_40_calls_at_most(trained):
    layer, x, _ = trained
    with torch.no_grad():
        layer.scores.mul_(0.5)
    assert calls(lambda: layer(x)) - 1 <= 40


def test_a_forward_whose_cut_is_known_takes_32_calls_at_most(trained):
    layer, x, _ = trained
    assert calls(lambda: layer(x)) - 1 <= 32


@torch.no_grad()
def test_an_evaluation_takes_26_calls_at_most(trained):
    layer, x, _ = trained
    layer.eval()
    layer(x)
    assert calls(lambda: layer(x)) - 1 <= 26
    layer.freeze()
    layer(x)
    assert calls(lambda: layer(x)) - 1 <= 25


def test_a_backward_takes_25_calls_at_most(trained):
    layer, x, _ = trained
    y = layer(x).sum()
    assert calls(y.backward) <= 25


def test_a_step_takes_40_calls_at_most(trained):
    layer, x, optimizer = trained
    layer(x).sum().backward()
    assert calls(lambda: optimizer.step()) - 1 <= 40


def test_a_convolution_costs_little_more(trained):
    layer = ek.FusedSubnetConv(3, 4, 3, padding=1)
    x = torch.randn(2, 3, 5, 5, requires_grad=True)
    layer(x)
    with torch.no_grad():
        layer.scores.mul_(0.5)
    assert calls(lambda: layer(x)) - 1 <= 40
    y = layer(x).sum()
    assert calls(y.backward) <= 25
