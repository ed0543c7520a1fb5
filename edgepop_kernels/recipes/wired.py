"""Networks whose wiring is learned: Wortsman et al. 2019, arXiv 1906.00586.

Their code ranks the whole matrix of a graph, entries that no edge can use included; here the edges compete among
themselves, and their number is exact.
"""

import torch
from torch import Tensor, nn

import edgepop_kernels as ek

from ..methods.dynamic_graphs import ContinuousGraph, DiscreteGraph
from ..methods.graphs import StaticGraph

# (input channels, output channels, stride, blocks): MobileNet v1 read as a chain of graphs.
_MOBILENET = ((32, 64, 1, 1), (64, 128, 2, 2), (128, 256, 2, 2), (256, 512, 2, 6), (512, 1024, 2, 2))

FEWEST_NODES = 50  # of a tiny classifier: 2 of them take the image in


def mobilenet_edges(width: float) -> list[int]:
    """Edges of each graph: the pointwise weights of a MobileNet v1 of this width multiplier."""
    return [round(width**2 * (i * o + (blocks - 1) * o**2)) for i, o, _, blocks in _MOBILENET]


def mobilenet_graph(
    width: float = 0.225,
    classes: int = 1000,
    *,
    channels: int = 3,
    small_images: bool = False,
    small_classifier: bool = False,
) -> nn.Sequential:
    """MobileNet v1 as a chain of five graphs, with the edges of width multiplier ``width``, for images (N, channels, H,
    W).

    small_images: no stride in the first convolution, for 64 pixels and fewer. small_classifier: without bias, and with
    the fraction ``width`` of its weights. Raises ValueError.
    """
    if not 0 < width <= 1:
        raise ValueError(f"width: expected a number in (0, 1], got {width}")
    stem = nn.Conv2d(channels, 32, 3, stride=1 if small_images else 2, padding=1, bias=False)
    graphs = [
        StaticGraph((inputs, *[outputs] * blocks), edges, norm="batch", stride=stride)
        for (inputs, outputs, stride, blocks), edges in zip(_MOBILENET, mobilenet_edges(width), strict=True)
    ]
    small = ek.FusedSparseLinear(1024, classes, bias=False, keep=width) if small_classifier else None
    head = [nn.BatchNorm2d(1024), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), small or nn.Linear(1024, classes)]
    return nn.Sequential(stem, *graphs, *head)


class TinyClassifier(nn.Module):
    """A tiny classifier of images (N, C, H, W), made for CIFAR-10: about 41 thousand weights, 32,000 of them edges.

    time: "static", "discrete" or "continuous". Two convolutions bring the image to a quarter of its size (small images
    are left as they are) and to nodes / 25 channels, which flow into the first nodes of the graph. The last nodes / 8
    are the outputs, of which the classifier reads the mean of a 2x2 patch in the middle. Raises ValueError.
    """

    def __init__(
        self,
        time: str = "static",
        image: tuple[int, int, int] = (3, 32, 32),
        classes: int = 10,
        *,
        nodes: int = 800,
        edges: int = 32_000,
    ):
        super().__init__()
        if time not in GRAPHS:
            raise ValueError(f"time: expected one of {', '.join(map(repr, GRAPHS))}, got {time!r}")
        if nodes < FEWEST_NODES:
            raise ValueError(f"nodes: expected at least {FEWEST_NODES}, got {nodes}")
        channels, height, width = image
        inputs, outputs = nodes // 25, nodes // 8
        stride = 2 if min(height, width) >= 16 else 1  # 8x8 pixels are what the graph works on
        self.down = nn.Sequential(
            nn.Conv2d(channels, inputs // 2, 3, stride=stride, padding=1),
            nn.BatchNorm2d(inputs // 2),
            nn.ReLU(),
            nn.Conv2d(inputs // 2, inputs // 2, 3, stride=stride, padding=1, groups=inputs // 2),
            nn.Conv2d(inputs // 2, inputs, 1),
            nn.BatchNorm2d(inputs),
        )
        self.graph = GRAPHS[time](nodes, edges, inputs, outputs)
        self.classifier = nn.Linear(outputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        z = self.graph(self.down(x))
        row, column = ((side - 1) // 2 - 1 for side in z.shape[2:])
        return self.classifier(z[:, :, row : row + 2, column : column + 2].mean((2, 3)))


def _static(nodes, edges, inputs, outputs):
    hidden = 6 * nodes // 25
    return StaticGraph((inputs, *[hidden] * 3, nodes - inputs - 3 * hidden - outputs, outputs), edges)


GRAPHS = {
    "static": _static,
    "discrete": lambda nodes, edges, inputs, outputs: DiscreteGraph(nodes, edges, outputs),
    "continuous": lambda nodes, edges, inputs, outputs: ContinuousGraph(nodes, edges, outputs),
}


@torch.no_grad()
def hold_random_wiring(model: nn.Module) -> nn.Module:
    """Draws as many edges of every graph at random, holds them, and trains their weights only; in place.

    Draws are ranked in the weights' place: chosen by weight, the edges would be the largest of them.
    """
    weights = [layer.weight for layer in model.modules() if isinstance(layer, ek.FusedSparseConv)]
    started = [weight.clone() for weight in weights]
    for weight in weights:
        weight.uniform_()
    ek.train_weights(model)
    for weight, start in zip(weights, started, strict=True):
        weight.copy_(start)
    return model
