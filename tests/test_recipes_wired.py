"""Networks with learned wiring: edges and parameters as published, shapes, and that all of it trains."""

import pytest
import torch
from torch import nn

import edgepop_kernels as ek
from edgepop_kernels.methods.dynamic_graphs import Dynamics
from edgepop_kernels.methods.graphs import StaticGraph
from edgepop_kernels.recipes import wired


def used(model):
    """Parameters, of the graphs' weights only the edges."""
    graphs = [m for m in model.modules() if isinstance(m, (StaticGraph, Dynamics))]
    wires = [m for m in model.modules() if isinstance(m, ek.FusedSparseConv)]
    return (
        sum(p.numel() for p in model.parameters()) - sum(m.weight.numel() for m in wires) + sum(g.edges for g in graphs)
    )


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


DOWN = (432 + 16) + (144 + 16) + (512 + 32)  # weights and biases of the three convolutions before the graph
NORMS = 2 * 16 + 2 * 32


@pytest.mark.parametrize(("time", "nodes"), [("static", 700), ("discrete", 800), ("continuous", 800)])
def test_tiny_classifiers_have_the_published_number_of_parameters(time, nodes):
    """The authors' "less than 42k": edges, a 3x3 convolution for each node that sends, downsampling, classifier; norms,
    which have a scale and a shift for each of these nodes, are on top (43,058 in all where every node sends)."""
    with torch.device("meta"):
        model = wired.TinyClassifier(time)
    weights = 32_000 + 9 * nodes + DOWN + 1010
    assert 40_000 < weights < 42_000
    assert used(model) == weights + NORMS + 2 * nodes == (41_958 if time == "static" else 43_058)


@pytest.mark.parametrize("image", [(3, 32, 32), (1, 28, 28), (1, 8, 8)], ids=str)
@pytest.mark.parametrize("time", wired.GRAPHS)
def test_tiny_classifiers_take_every_image_and_train(time, image):
    model = wired.TinyClassifier(time, image, 7, nodes=60, edges=400)
    y = model(torch.randn(2, *image))
    assert y.shape == (2, 7)
    nn.functional.cross_entropy(y, torch.tensor([1, 6])).backward()
    wires = [m for m in model.modules() if isinstance(m, ek.FusedSparseConv)]
    assert sum(int(m.mask().sum()) for m in wires) == 400
    assert all(m.weight.grad[~m.mask()].any() for m in wires[:1])  # what is no edge learns
    assert model.graph.adjacency().sum() == 400


@pytest.mark.parametrize(("side", "first"), [(8, 2), (7, 2), (4, 0), (3, 0)])
def test_the_classifier_reads_four_pixels_in_the_middle(side, first):
    """Of an odd side as of MNIST's, 28 / 4, the middle one is among them."""
    model = wired.TinyClassifier(image=(1, 8, 8), nodes=60, edges=400)
    model.graph.forward = lambda x: graph
    graph = torch.zeros(1, 7, side, side, requires_grad=True)
    model(torch.zeros(1, 1, 8, 8)).sum().backward()
    read = torch.zeros(side, side, dtype=torch.bool)
    read[first : first + 2, first : first + 2] = True
    assert torch.equal(graph.grad[0, 0] != 0, read)


@pytest.mark.parametrize("time", wired.GRAPHS)
def test_a_random_wiring_is_drawn_once_and_held(time):
    torch.manual_seed(1)
    model = wired.TinyClassifier(time, (1, 8, 8), nodes=60, edges=400)
    weights = [p.clone() for p in model.parameters()]
    wired.hold_random_wiring(model)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), weights, strict=True))
    held = model.graph.adjacency()
    largest = wired.TinyClassifier(time, (1, 8, 8), nodes=60, edges=400)
    # Of weights alone, as a file without rules has them, the largest are the edges.
    weights_alone = {n: p for n, p in model.state_dict().items() if not n.endswith(("mask_bits", "_extra_state"))}
    largest.load_state_dict(weights_alone)
    assert held.sum() == 400 and not torch.equal(held, largest.graph.adjacency())
    with torch.no_grad():
        for p in model.parameters():
            p.normal_()
    assert torch.equal(model.graph.adjacency(), held)


def test_bad_sizes_are_named():
    for arguments, name in ((dict(time="later"), "time"), (dict(nodes=49), "nodes"), (dict(edges=10**6), "edges")):
        with pytest.raises(ValueError, match=rf"^{name}: ."):
            wired.TinyClassifier(**arguments)
