"""What ``evidence.py`` trains: each row a recipe with its settings and seeds, and what is said of it elsewhere."""

import itertools
from dataclasses import dataclass, field

from edgepop_kernels.recipes import registry
from edgepop_kernels.recipes.config import Recipe, spelled


@dataclass(frozen=True)
class Goal:
    """What the mean of a row has to be, in percent: at least ``least``, or higher than that of the row ``above``."""

    least: float | None = None
    above: str | None = None

    def words(self, titles: dict[str, str]) -> str:
        return f"at least {self.least:.1f} %" if self.above is None else f"above: {titles[self.above]}"

    def met(self, means: dict[str, float], row: str) -> bool | None:
        """Whether ``row`` has reached it; None where a number that this takes is missing."""
        goal = self.least if self.above is None else means.get(self.above)
        if row not in means or goal is None:
            return None
        return means[row] >= goal if self.above is None else means[row] > goal


@dataclass(frozen=True)
class Row:
    """A recipe with ``settings`` other than its own, for the seeds 0 to ``seeds`` - 1.

    said: what is published or follows from the authors' code, and where. goal: None where no number is published. Of a
    recipe that compares several trainings, ``training`` names the one whose last epoch is the row's number, or ``best``
    says that it is the best which any mask of them reaches "before" or "after" its training. of: another row whose
    trainings these are; then it is not trained itself. program: what trains it, in this folder, in the place of
    ``edgepop``. at: where its number stands in a figure of its section, which is a sweep; None elsewhere.
    """

    name: str
    section: str
    title: str
    recipe: str
    said: str
    goal: Goal | None = None
    settings: dict = field(default_factory=dict)
    seeds: int = 3
    training: str = ""
    best: str = ""
    of: str = ""
    program: str = ""
    at: float | None = None

    @property
    def results(self) -> str:
        """The name of the row whose trainings these are."""
        return self.of or self.name

    @property
    def compares(self) -> bool:
        """Whether it is of several trainings."""
        return bool(self.training or self.best)

    def asked(self) -> Recipe:
        return registry.find(self.recipe).recipe.asked(**self.settings)

    def command(self) -> list[str]:
        """The arguments of ``edgepop`` that train it, but for seed and data."""
        options = ((f"--{name.replace('_', '-')}", spelled(value)) for name, value in self.settings.items())
        return ["train", self.recipe, *itertools.chain.from_iterable(options)]


FC, MASKS = "MNIST, 784-300-100-10", "MNIST, masks of trained networks"
CONV, GRAPHS, CIFAR = "MNIST, convolutions", "MNIST, tiny graphs", "CIFAR-10"
KEEPS, WIDTHS = "keep", "width"  # sweeps: what their rows differ in
_RAMANUJAN = "Ramanujan et al. 2020"
_ZHOU = "Zhou et al. 2019, learned masks"
_WORTSMAN = "Wortsman et al. 2019"
_BLOG = "scelesticsiva 2020"
_NONE = "no published number"
_CURVES = "published as curves"
_SGD = f"{_CURVES}, {_RAMANUJAN}; lr 0.01 is meant for 100 epochs, and far from its end after these"
_30 = {"epochs": 30}
_EXPECTED = "no published number; {} % is what we expect of the authors' configuration"
_KEEP = f"no published number; on CIFAR-10 the best lie between 0.3 and 0.7, {_RAMANUJAN}"


def _edge_popup(percent: int, said: str, goal: Goal | None = None) -> Row:
    settings = _30 | {"keep": percent / 100}
    title = f"edge-popup, signed constants, keep {percent / 100:g}"
    return Row(f"mnist-edge-popup-{percent}", FC, title, "edge-popup-mnist", said, goal, settings)


def _edge_popup_normal(percent: int) -> Row:
    name, title = f"mnist-edge-popup-{percent}-normal", f"edge-popup, Kaiming normal, keep {percent / 100:g}"
    settings = _30 | {"keep": percent / 100, "init": "kaiming_normal"}
    return Row(name, FC, title, "edge-popup-mnist", _NONE, settings=settings)


def _tickets(criterion: str, said: str, goal: Goal | None = None) -> Row:
    name, title = f"mnist-tickets-{criterion.replace('_', '-')}", f"Bayesian tickets, keep 0.2 by {criterion}"
    training, settings = f"keep 0.2 by {criterion}", {"epochs": 10, "criterion": criterion}
    return Row(name, MASKS, title, "bayesian-tickets-mnist", said, goal, settings, 3, training)


def _swept(name: str, section: str, at: float, settings: dict, of: str = "") -> list[Row]:
    """With the weights as the recipe draws them, and with those that follow keep as the paper's do, warmed up: without,
    keep 0.05 fell to one digit at this learning rate, and ended at 19 %."""
    rows = []
    for end, how in (("", {}), ("-scaled", {"scale": "paper", "warmup": 2})):
        how = settings | how
        title = f"edge-popup, signed constants, {section} {at:g}{end.replace('-', ', ')}"
        shared = of and of + end
        one = Row(name + end, section, title, "edge-popup-mnist", "", None, {"epochs": 10} | how, 1, of=shared, at=at)
        rows.append(one)
    return rows


def _keeps() -> list[Row]:
    keeps = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    return [row for keep in keeps for row in _swept(f"mnist-keep-{100 * keep:02.0f}", KEEPS, keep, {"keep": keep})]


def _widths() -> list[Row]:
    """Multiples of the hidden widths, of which the first keeps half of its weights and the others as many."""

    def weights(hidden: tuple[int, int]) -> int:
        return 784 * hidden[0] + hidden[0] * hidden[1] + hidden[1] * 10

    rows = _swept("mnist-width-100", WIDTHS, 1, {"keep": 0.5}, of="mnist-keep-50")
    for times in (1.5, 2, 3, 4):
        hidden = int(300 * times), int(100 * times)
        settings = {"widths": hidden, "keep": round(0.5 * weights((300, 100)) / weights(hidden), 6)}
        rows += _swept(f"mnist-width-{100 * times:.0f}", WIDTHS, times, settings)
    return rows


def _lottery(name: str, what: str, said: str, goal: Goal | None = None, best: str = "before", of: str = "") -> Row:
    settings = {"epochs": 2, "rounds": 10}
    title = f"lottery tickets, nine criteria, ten rounds: {what}"
    return Row(f"mnist-lottery-{name}", MASKS, title, "lottery-tickets-mnist", said, goal, settings, best=best, of=of)


def _graphs(edges: int, suffix: str = "") -> list[Row]:
    """Learned and random edges: on MNIST what they differ by depends on how few there are."""
    rows, random = [], f"mnist-static-random{suffix}"
    for name, wiring, goal in (
        (f"mnist-static-learned{suffix}", "learned", Goal(above=random)),
        (random, "random", None),
    ):
        settings = {"dataset": "mnist", "nodes": 200, "edges": edges, "wiring": wiring, "epochs": 5}
        title = f"tiny static graph of 200 nodes, {edges:,} {wiring} edges"
        said = f"{_NONE}; on CIFAR-10 learned edges are above random ones, {_WORTSMAN}"
        rows.append(Row(name, GRAPHS, title, "neural-graph-static", said, goal, settings, 1))
    return rows


def _graph_over_time(kind: str, epochs: int) -> Row:
    """A graph that is gone through more than once: for as few epochs as a core does in some minutes."""
    settings = {"dataset": "mnist", "nodes": 200, "edges": 2000, "epochs": epochs}
    title = f"tiny {kind} graph of 200 nodes, 2,000 learned edges"
    return Row(f"mnist-{kind}", GRAPHS, title, f"neural-graph-{kind}", _NONE, settings=settings, seeds=1)


def _cifar(name: str, title: str, recipe: str, said: str, goal: Goal | None = None, **settings) -> Row:
    """Convolutions for as many epochs as Conv4 does in 40 minutes of a core, in bfloat16: a CPU with AMX does twice as
    many in it."""
    settings = {"epochs": 12, "dtype": "bfloat16"} | settings
    return Row(f"cifar10-{name}", CIFAR, title, recipe, said, goal, settings, 1)


ROWS = (
    Row("mnist-dense", FC, "dense", "dense-mnist", _EXPECTED.format(98.0), Goal(98.0), _30),
    _edge_popup(50, _EXPECTED.format(97.0), Goal(97.0)),
    Row(
        "mnist-edge-popup-50-authors",
        FC,
        "edge-popup, signed constants, keep 0.5, by the authors' rule in plain PyTorch",
        "edge-popup-mnist",
        "what the row above is compared with: the same draws and batches",
        settings=_30 | {"keep": 0.5},
        program="evidence_unfused.py",
    ),
    _edge_popup(30, _KEEP),
    _edge_popup(70, _KEEP),
    *map(_edge_popup_normal, (30, 50, 70)),
    Row(
        "mnist-bernoulli-constant",
        FC,
        "Bernoulli supermask, signed constants, weights rescaled",
        "supermask-bernoulli-mnist-constant",
        "no published number for these epochs",
    ),
    Row(
        "mnist-bernoulli-constant-2000",
        FC,
        "Bernoulli supermask, signed constants, weights rescaled, the authors' 2,000 epochs",
        "supermask-bernoulli-mnist-constant",
        f"98.0 %, {_ZHOU}",
        Goal(97.3),
        {"epochs": 2000},
    ),
    Row(
        "mnist-bernoulli",
        FC,
        "Bernoulli supermask, Xavier normal",
        "supermask-bernoulli-mnist",
        f"95.3 % after 2,000 epochs, {_ZHOU}",
        Goal(94.6),
    ),
    Row(
        "mnist-threshold",
        FC,
        "threshold supermask, Xavier normal",
        "supermask-mnist",
        f"{_CURVES}, mshlis 2019",
        settings=_30,
    ),
    Row("mnist-wirings-10", FC, "Discovering Neural Wirings, keep 0.1", "wirings-mnist", _NONE, settings=_30),
    *_keeps(),
    *_widths(),
    _tickets(
        "low_variance", f"{_CURVES}: better than high variance, {_BLOG}", Goal(above="mnist-tickets-high-variance")
    ),
    _tickets("high_variance", f"{_CURVES}: the worst, {_BLOG}"),
    _tickets("signal_to_noise", f"{_CURVES}, {_BLOG}"),
    _tickets("magnitude", f"{_CURVES}, {_BLOG}"),
    _lottery("masks", "the best mask before any training", "86 %, Zhou et al. 2019, abstract", Goal(86.0)),
    _lottery(
        "tickets",
        "the best of the same masks, trained",
        f"{_CURVES}: the best are above the whole network, Zhou et al. 2019",
        best="after",
        of="mnist-lottery-masks",
    ),
    Row(
        "mnist-lenet",
        CONV,
        "edge-popup, the network of hidden-networks' MNIST example, Kaiming normal, keep 0.5",
        "edge-popup-lenet",
        "the authors' example prints it, no number is published",
        settings={"epochs": 3},
    ),
    Row(
        "mnist-supermask-init",
        CONV,
        "supermasks as an initialisation, WRN-28 of an eighth of the width: best mask, then weights",
        "supermask-init-mnist",
        f"{_CURVES}: mask, weights and both are alike, mshlis 2019",
        settings={"epochs": 3, "width_multiplier": 0.125},
        training="best mask, then weights",
    ),
    *_graphs(2000),
    *_graphs(400, "-400"),
    _graph_over_time("discrete", 2),
    _graph_over_time("continuous", 1),
    _cifar("conv2-dense", "Conv2, dense, by SGD", "dense-conv2", _SGD),
    _cifar(
        "conv2-dense-adam",
        "Conv2, dense, by Adam",
        "dense-conv2",
        f"{_CURVES}, {_RAMANUJAN}, whose dense networks are trained by either",
        optimizer="adam",
        lr=2e-4,
        batch_size=60,
        weight_decay=0.0,
    ),
    _cifar("conv2-edge-popup", "Conv2, edge-popup, keep 0.5", "edge-popup-conv2", f"{_CURVES}, {_RAMANUJAN}"),
    _cifar("conv4-dense", "Conv4, dense, by SGD", "dense-conv4", _SGD),
    _cifar("conv4-edge-popup", "Conv4, edge-popup, keep 0.5", "edge-popup-conv4", f"{_CURVES}, {_RAMANUJAN}"),
    _cifar("conv4-wirings", "Conv4, Discovering Neural Wirings, keep 0.1", "wirings-conv4", _NONE),
    _cifar("conv4-bernoulli", "Conv4, Bernoulli supermask", "supermask-bernoulli-conv4", f"{_CURVES}, {_RAMANUJAN}"),
    _cifar(
        "static",
        "tiny static graph, learned edges",
        "neural-graph-static",
        f"80.9 % after 160 epochs, {_WORTSMAN}: above random edges",
        Goal(above="cifar10-static-random"),
        epochs=10,
        dtype="float32",
    ),
    _cifar(
        "static-random",
        "tiny static graph, random edges",
        "neural-graph-static-random",
        f"76.1 % after 160 epochs, {_WORTSMAN}",
        epochs=10,
        dtype="float32",
    ),
)
