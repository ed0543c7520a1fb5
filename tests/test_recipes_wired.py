"""Networks with learned wiring: edges and parameters as published, shapes, and that all of it trains."""

import pytest
import torch
from torch import nn

from edgepop_kernels.methods.graphs import StaticGraph
from edgepop_kernels.recipes import wired


def used(model):
    """Parameters, of the graphs' weights only the edges."""
    graphs = [m for m in model.modules() if isinstance(m, StaticGraph)]
    spare = sum(sum(w.numel() for w in g.weights) - g.edges for g in graphs)
    return sum(p.numel() for p in model.parameters()) - spare


def test_mobilenet_has_the_edges_of_its_width():
    """At x0.225: 104, 1244, 4977, 72991 and 79626, the pointwise weights of that MobileNet."""
    assert wired.mobilenet_edges(0.225) == [104, 1244, 4977, 72_991, 79_626]
    with torch.device("meta"):
        model = wired.mobilenet_graph()
    assert [g.edges for g in model if isinstance(g, StaticGraph)] == wired.mobilenet_edges(0.225)
    nodes = 32 + 64 + 128 + 128 + 256 + 256 + 5 * 512 + 512 + 1024
    expected = 3 * 32 * 9 + sum(wired.mobilenet_edges(0.225)) + nodes * (9 + 2) + 2 * 1024 + 1024 * 1000 + 1000
    assert used(model) == expected
    with pytest.raises(ValueError, match=r"^width: ."):
        wired.mobilenet_graph(0.0)


def test_mobilenet_trains():
    model = wired.mobilenet_graph(classes=10, small_images=True)
    y = model(torch.randn(2, 3, 32, 32))
    assert y.shape == (2, 10)
    y.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_tiny_classifier_is_tiny():
    """The paper's "41k": edges, node functions of all but the outputs, downsampling, classifier."""
    model = wired.TinyClassifier()
    assert used(model) == 32_000 + 700 * (9 + 2) + (432 + 32 + 144 + 512 + 64) + 1010
    assert 41_000 < used(model) < 42_000
    y = model(torch.randn(2, 3, 32, 32))
    assert y.shape == (2, 10)
    nn.functional.cross_entropy(y, torch.tensor([1, 7])).backward()
    assert model.graph.weights[0].grad.any() and model.graph.adjacency().sum() == 32_000
