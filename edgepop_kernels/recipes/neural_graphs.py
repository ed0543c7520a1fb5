"""Neural graphs: channels are nodes, and training finds the edges between them.

Wortsman et al., "Discovering Neural Wirings", NeurIPS 2019, arXiv 1906.00586: tiny classifiers whose graph is static or
changes in discrete or continuous time, and MobileNet v1 as a chain of graphs.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import nn

from ..methods.dynamic_graphs import DynamicGraph
from ..methods.graphs import StaticGraph
from . import wired
from .config import SCHEDULES, Entry, Recipe
from .settings import choice, flag, only, positive, whole

TINY = tuple(f"tiny-{time}" for time in wired.GRAPHS)
NETWORKS = (*TINY, "mobilenet")
SMALL_IMAGE = 64  # pixels a side, up to which MobileNet's first convolution has no stride


@dataclass(frozen=True, kw_only=True)
class NeuralGraph(Recipe):
    """The largest weights are the edges; every weight trains, edge or not."""

    method: ClassVar[str] = "neural-graph"

    model: str = choice("tiny-static", NETWORKS, "network")
    wiring: str = choice("learned", ("learned", "random"), "edges found by training, or drawn once and held")
    width_multiplier: float = positive(
        1.0, "that of the MobileNet whose number of edges the graphs have", when=only("model", "mobilenet")
    )
    nodes: int = whole(800, wired.FEWEST_NODES, "nodes of a tiny graph", when=only("model", *TINY))
    edges: int = whole(32_000, 1, "edges of a tiny graph", when=only("model", *TINY))
    small_classifier: bool = flag(
        False, "keep only width_multiplier of the classifier's weights", when=only("model", "mobilenet")
    )
    schedule: str = choice(
        "steps",
        ("steps", *SCHEDULES),
        "how lr goes on after the warm-up; steps: times 0.1 after half and three quarters",
    )

    def __post_init__(self):
        super().__post_init__()
        if self.model == "mobilenet" and self.width_multiplier > 1:
            raise self.wrong("width_multiplier", "at most 1 for mobilenet")
        if self.model in TINY and self.edges > self.nodes**2 // 4:
            raise self.wrong("edges", f"at most a quarter of nodes^2, {self.nodes**2 // 4}")

    def lr_at(self, epoch: int) -> float:
        """After the warm-up the published steps (160 epochs, after 80 and 120), whatever the number of epochs."""
        if self.schedule != "steps" or epoch < self.warmup:
            return super().lr_at(epoch)
        return self.lr * 0.1 ** ((2 * epoch >= self.epochs) + (4 * epoch >= 3 * self.epochs))

    def network(self, image: tuple[int, int, int], classes: int) -> nn.Module:
        if self.model == "mobilenet":
            model = wired.mobilenet_graph(
                self.width_multiplier,
                classes,
                channels=image[0],
                small_images=min(image[1:]) <= SMALL_IMAGE,
                small_classifier=self.small_classifier,
            )
        else:
            time = self.model.removeprefix("tiny-")
            model = wired.TinyClassifier(time, image, classes, nodes=self.nodes, edges=self.edges)
        return wired.hold_random_wiring(model) if self.wiring == "random" else model

    def pictures(self, model: nn.Module, run: Path) -> list[Path]:
        """wiring.png, or wiring-1.png and so on of a chain."""
        graphs = [module for module in model.modules() if isinstance(module, (StaticGraph, DynamicGraph))]
        names = ["wiring"] if len(graphs) == 1 else [f"wiring-{number}" for number in range(1, len(graphs) + 1)]
        return [graph.picture(run / f"{name}.png") for name, graph in zip(names, graphs, strict=True)]


_SOURCE = "Wortsman et al. 2019 (arXiv 1906.00586)"
_UNPUBLISHED = ("no published number", "this project")
_CIFAR10 = dict(dataset="cifar10", epochs=160, validation=0)
_MOBILENET = dict(model="mobilenet", schedule="cosine")
_IMAGENET = dict(dataset="imagenet", epochs=250, batch_size=512, weight_decay=5e-5, validation=0)
# Test accuracy on CIFAR-10 by the authors' code: random wiring, learned wiring.
_TINY = {
    "static": ("76.1 % ± 0.5", "80.9 % ± 0.6"),
    "discrete": ("77.3 % ± 0.7", "82.3 % ± 0.6"),
    "continuous": ("78.5 % ± 1.2", "83.1 % ± 0.3"),
}

RECIPES = (
    {
        "neural-graph-static-digits": Entry(NeuralGraph(nodes=200, edges=2000, epochs=10), *_UNPUBLISHED),
        "neural-graph-discrete-digits": Entry(
            NeuralGraph(model="tiny-discrete", nodes=200, edges=2000, epochs=10), *_UNPUBLISHED
        ),
        # An equation of 100 nodes costs about 30 evaluations of its right-hand side, and their gradients, each step.
        "neural-graph-continuous-digits": Entry(
            NeuralGraph(model="tiny-continuous", nodes=100, edges=1000, epochs=8), *_UNPUBLISHED
        ),
    }
    | {
        f"neural-graph-{time}": Entry(NeuralGraph(model=f"tiny-{time}", batch_size=512, **_CIFAR10), goal, _SOURCE)
        for time, (_, goal) in _TINY.items()
    }
    | {
        f"neural-graph-{time}-random": Entry(
            NeuralGraph(model=f"tiny-{time}", wiring="random", batch_size=512, **_CIFAR10), goal, _SOURCE
        )
        for time, (goal, _) in _TINY.items()
    }
    | {
        "neural-graph-mobilenet-cifar10": Entry(
            NeuralGraph(width_multiplier=0.225, batch_size=128, **_CIFAR10, **_MOBILENET),
            "published as a figure only",
            _SOURCE,
        )
    }
    | {
        f"neural-graph-mobilenet{suffix}": Entry(
            NeuralGraph(width_multiplier=width, **settings, **_MOBILENET, **_IMAGENET), goal, _SOURCE
        )
        for suffix, width, settings, goal in (
            ("", 0.225, {}, "60.9 %"),
            ("-random", 0.225, {"wiring": "random"}, "53.3 %"),
            ("-small", 0.225, {"small_classifier": True}, "59.9 %"),
            ("-30", 0.3, {}, "65.0 %"),
            ("-49", 0.49, {}, "70.4 %"),
        )
    }
)
