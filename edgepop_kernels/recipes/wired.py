"""Networks whose wiring is learned: Wortsman et al. 2019, arXiv 1906.00586.

Their code ranks the whole matrix of a graph, entries that no edge can use included; here the edges compete among
themselves, and their number is exact.
"""

from torch import Tensor, nn

from ..methods.graphs import StaticGraph

# (input channels, output channels, stride, blocks): MobileNet v1 read as a chain of graphs.
_MOBILENET = ((32, 64, 1, 1), (64, 128, 2, 2), (128, 256, 2, 2), (256, 512, 2, 6), (512, 1024, 2, 2))


def mobilenet_edges(width: float) -> list[int]:
    """Edges of each graph: the pointwise weights of a MobileNet v1 of this width multiplier."""
    return [round(width**2 * (i * o + (blocks - 1) * o**2)) for i, o, _, blocks in _MOBILENET]


def mobilenet_graph(width: float = 0.225, classes: int = 1000, *, small_images: bool = False) -> nn.Sequential:
    """MobileNet v1 as a chain of five graphs, with the edges of width multiplier ``width``, for images (N, 3, H, W).

    small_images: no stride in the first convolution, for 64 pixels and fewer. Raises ValueError.
    """
    if not 0 < width <= 1:
        raise ValueError(f"width: expected a number in (0, 1], got {width}")
    stem = nn.Conv2d(3, 32, 3, stride=1 if small_images else 2, padding=1, bias=False)
    graphs = [
        StaticGraph((inputs, *[outputs] * blocks), edges, norm="batch", stride=stride)
        for (inputs, outputs, stride, blocks), edges in zip(_MOBILENET, mobilenet_edges(width), strict=True)
    ]
    head = [nn.BatchNorm2d(1024), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1024, classes)]
    return nn.Sequential(stem, *graphs, *head)


class TinyClassifier(nn.Module):
    """The static tiny classifier for CIFAR images (N, 3, 32, 32): 800 nodes, 32,000 edges, about 42 thousand weights.

    The last 100 nodes are the outputs; of their 8x8 pixels the classifier reads the mean of a 2x2 patch.
    """

    def __init__(self, edges: int = 32_000, classes: int = 10):
        super().__init__()
        self.down = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16, bias=False),
            nn.Conv2d(16, 32, 1, bias=False),
            nn.BatchNorm2d(32),
        )
        self.graph = StaticGraph((32, 192, 192, 192, 92, 100), edges)
        self.classifier = nn.Linear(100, classes)

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.graph(self.down(x))
        return self.classifier(outputs[:, :, 2:4, 2:4].mean((2, 3)))
