"""What the sources show as figures, drawn from our runs: each with what the source says and what ours show.

No sentence about ours is written out: its numbers and its words follow from the results alone.
"""

import math
from collections import defaultdict
from collections.abc import Callable
from itertools import combinations
from typing import NamedTuple

import evidence_results as results
import figures
from evidence_curves import COLOURS, drawn, logarithmic, panels, plot
from evidence_rows import KEEPS, WIDTHS, Row
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from edgepop_kernels.recipes.plots import whole_epochs

BEST_KEPT = (0.3, 0.7)  # Ramanujan et al. 2020
SIZES = 8  # of the dots in a wiring


class Shown(NamedTuple):
    """A figure as the page has it, and the cells of a table. said: what the source says; ours: what it shows."""

    file: str
    title: str
    said: str
    ours: str
    content: bytes
    table: tuple[list[str], ...] = ()


def shown(rows: tuple[Row, ...], found: dict[str, dict]) -> list[Shown]:
    """Those figures for which there are results."""
    made = (_keeps, _widths, _layers, _masked, _rounds, _wirings)
    return [one for make in made for one in make(rows, found)]


class Point(NamedTuple):
    """A row of a sweep: where it stands, the weights it keeps, and percent."""

    at: float
    kept: int
    accuracy: float


# How the weights of a sweep follow keep: the recipe's ``scale``, in words, and the colour of its line.
SCALES = {"none": ("weights as they are drawn", "fused"), "paper": ("weights times 1/sqrt(keep), warmed up", "dense")}


def _series(section, rows, found) -> dict[str, list[Point]]:
    """The points of a sweep by scale; of two at least."""
    series = defaultdict(list)
    for row in rows:
        runs = found[row.name]["runs"]
        if row.section == section and runs:
            kept = sum(kept for _, kept, _ in runs[0]["layers"])
            series[row.asked().scale].append(Point(row.at, kept, results.mean(row, found[row.name])))
    return {scale: sorted(points) for scale, points in series.items() if len(points) > 1}


def _told(series: dict[str, list[Point]], tell: Callable[[list[Point]], str]) -> str:
    return "; ".join(f"with {SCALES[scale][0]} {tell(points)}" for scale, points in series.items())


def _keeps(rows, found):
    series = _series(KEEPS, rows, found)
    if not series:
        return
    low, high = BEST_KEPT

    def tell(points: list[Point]) -> str:
        best = max(points, key=lambda point: point.accuracy)
        where = "in that range" if low <= best.at <= high else "outside that range"
        ends = " and ".join(f"{point.accuracy:.2f} % at {point.at:g}" for point in (points[0], points[-1]))
        return f"the best is {best.accuracy:.2f} % at keep {best.at:g}, {where}, and it is {ends}"

    yield Shown(
        "over-keep.svg",
        "Accuracy over keep",
        f"Ramanujan et al. 2020, on CIFAR-10: the best accuracy is where {100 * low:.0f} to {100 * high:.0f} % of the "
        "weights are kept, and it falls towards both ends.",
        f"Ours, MNIST: {_told(series, tell)}.",
        drawn(_sweep, series, "keep", BEST_KEPT),
        _cells("keep", series),
    )


def _widths(rows, found):
    series = _series(WIDTHS, rows, found)
    if not series:
        return
    kept = sorted(point.kept for points in series.values() for point in points)

    def tell(points: list[Point]) -> str:
        first, last = points[0], points[-1]
        how = _against(last.accuracy, first.accuracy)
        return f"{last.accuracy:.2f} % at {last.at:g}, {how} the {first.accuracy:.2f} % at {first.at:g}"

    yield Shown(
        "over-width.svg",
        "Accuracy over width",
        "Ramanujan et al. 2020, on CIFAR-10: with as many weights kept, a network is the better the wider it is; where "
        "few are kept, weights are scaled by 1/sqrt(keep), so that activations keep their size.",
        f"Ours, MNIST, multiples of the hidden layers' 300 and 100 with {kept[0]:,} to {kept[-1]:,} weights kept: "
        f"{_told(series, tell)}.",
        drawn(_sweep, series, "width multiplier, as many weights kept", ()),
        _cells("width", series),
    )


def _cells(name: str, series: dict[str, list[Point]]) -> tuple[list[str], ...]:
    points = sorted({point.at: point for of_scale in series.values() for point in of_scale}.values())
    accuracies = [
        [SCALES[scale][0] + ", %", *(f"{shown[p.at]:.2f}" if p.at in shown else "" for p in points)]
        for scale, shown in ((scale, {p.at: p.accuracy for p in of_scale}) for scale, of_scale in series.items())
    ]
    return (
        [name, *(f"{point.at:g}" for point in points)],
        ["weights kept", *(f"{point.kept:,}" for point in points)],
        *accuracies,
    )


def _sweep(series: dict[str, list[Point]], label: str, span: tuple[float, ...]) -> Figure:
    figure, (axes,) = panels(1, 7.2, 2.8)
    for end in span:
        axes.axvline(end, linestyle=":", linewidth=0.8, color=figures.TEXT)
    for scale, points in series.items():
        words, colour = SCALES[scale]
        ats, accuracies = [p.at for p in points], [p.accuracy for p in points]
        axes.plot(ats, accuracies, marker=".", color=figures.COLOURS[colour], label=words)
    ats = sorted({point.at for points in series.values() for point in points})
    axes.set_xticks(ats, [f"{at:g}" for at in ats])
    axes.set(xlabel=label, ylabel="test accuracy, %")
    axes.legend(frameon=False, labelcolor=figures.TEXT)
    return figure


def _layers(rows, found):
    chosen = [row for row in rows if row.asked().method in ("supermask", "supermask-init")]
    chosen = [row for row in chosen if getattr(row.asked(), "rule", "threshold") == "threshold"]
    layers = {row.title: _layers_of(found[row.name]["runs"]) for row in chosen if found[row.name]["runs"]}
    if not layers:
        return
    told = []
    for title, points in layers.items():
        pairs = [sorted(pair) for pair in combinations(points, 2) if pair[0][0] != pair[1][0]]
        more, most = sum(larger > smaller for (_, smaller), (_, larger) in pairs), max(share for _, share in points)
        told.append(
            f"in {more} of {len(pairs)} pairs of layers the larger one masks more, none above {most:.1f} % ({title})"
        )
    yield Shown(
        "over-size.svg",
        "Share of weights masked, over the size of the layer",
        "mshlis 2019, thresholded supermasks of a WRN-28: the fewer weights a layer has, the smaller the share of them "
        "that is masked, and no layer masks more than about 16 %.",
        f"Ours, seed 0: {'; '.join(told)}.",
        drawn(_by_size, layers),
    )


def _layers_of(runs):
    """(weights, percent masked) of each layer; of the first seed."""
    return [(weights, 100 - 100 * kept / weights) for _, kept, weights in runs[0]["layers"]]


def _by_size(layers: dict[str, list[tuple[int, float]]]) -> Figure:
    figure, (axes,) = panels(1, 7.2, 3.0 + 0.2 * len(layers))
    for (title, points), colour in zip(layers.items(), COLOURS[1:], strict=False):
        axes.scatter(*zip(*points, strict=True), s=16, color=colour, label=title)
    sizes = [size for points in layers.values() for size, _ in points]
    logarithmic(axes.xaxis, (min(sizes) / 2, max(sizes) * 2))
    axes.set_ylim(bottom=0)
    axes.set(xlabel="weights of the layer", ylabel="masked, %")
    figure.legend(loc="outside lower center", frameon=False, fontsize=8)
    return figure


def _masked(rows, found):
    lines = {}
    for row in rows:
        if row.training and row.asked().method == "bayesian-tickets":
            for run in found[row.name]["runs"][:1]:
                lines |= {name: done["test"] for name, done in run["trainings"].items() if name != "posterior"}
    if not lines:
        return
    ends = {name: 100 * line[-1] for name, line in lines.items()}
    whole = ends.pop("unmasked")
    told = [f"{name} {end:.2f} %, {_against(end, whole)} it" for name, end in ends.items()]
    yield Shown(
        "masked-unmasked.svg",
        "Masked and unmasked training",
        "scelesticsiva 2020, MNIST: without the weights whose variance in a trained posterior is high, a network that "
        "starts from the posterior's first means trains beside the whole one.",
        f"Ours after the last epoch, seed 0: unmasked {whole:.2f} %; {'; '.join(told)}.",
        drawn(_errors, lines),
    )


def _against(accuracy: float, other: float) -> str:
    """Where an accuracy in percent stands to another, in words that its name follows."""
    points = round(accuracy - other, 2)
    return f"{abs(points):.2f} points {'above' if points > 0 else 'below'}" if points else "the same as"


def _errors(lines: dict[str, list[float]]) -> Figure:
    figure, (axes,) = panels(1, 7.2, 3.6 + 0.1 * len(lines))
    _error_lines(axes, {name: (range(1, len(line) + 1), line) for name, line in lines.items()})
    whole_epochs(axes, max(map(len, lines.values())))
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def _error_lines(axes: Axes, lines: dict) -> None:
    """Lines (x, accuracy) as errors in percent, on a logarithmic axis: both the best and the worst can be read."""
    errors = {name: (x, [100 - 100 * value for value in line]) for name, (x, line) in lines.items()}
    plot(axes, errors)
    logarithmic(axes.yaxis, [value for _, line in errors.values() for value in line])
    axes.set(ylabel="test error, %, logarithmic")


def _rounds(rows, found):
    for row in rows:
        if row.best != "before" or not found[row.name]["runs"]:
            continue
        lines = results.rounds(found[row.name]["runs"][0])
        reached = {name: 100 * max(done["before"] for done in line[1:]) for name, line in lines.items()}
        best = max(reached, key=reached.get)
        ours = f"untrained, the best mask is of {best}: {reached[best]:.2f} %"
        if "random" in reached:
            above = sum(value > reached["random"] for value in reached.values())
            ours += f"; {above} of the other {len(reached) - 1} criteria are above random masks, which reach "
            ours += f"{reached['random']:.2f} % at best"
        yield Shown(
            "lottery-rounds.svg",
            "Masks of a trained network, before and after their own training",
            "Zhou et al. 2019, MNIST: weights masked by what training made of them give a network that is far better "
            "than chance before any training, which random masks do not.",
            f"Ours, seed 0: {ours}.",
            drawn(_two_rounds, lines),
        )


def _two_rounds(lines: dict[str, list[dict]]) -> Figure:
    figure, (before, after) = panels(2, 7.2, 4.2)
    kept = {name: [100 * done["kept"][0] / done["kept"][1] for done in line] for name, line in lines.items()}
    plot(before, {name: (kept[name], [100 * done["before"] for done in line]) for name, line in lines.items()})
    _error_lines(after, {name: (kept[name], [done["test"][-1] for done in line]) for name, line in lines.items()})
    for axes in (before, after):
        logarithmic(axes.xaxis, [share for shares in kept.values() for share in shares])
        axes.invert_xaxis()
        axes.set(xlabel="weights kept, %")
    before.set(title="before the round's training", ylabel="test accuracy, %")
    after.set(title="after it")
    figure.legend(*before.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def _wirings(rows, found):
    for row in rows:
        wiring = next((run["wiring"] for run in found[row.name]["runs"] if "wiring" in run), None)
        if wiring is None or wiring["stayed"] == wiring["edges"]:  # held
            continue
        others = wiring["edges"] - wiring["stayed"]
        told = f"{others:,} of the {wiring['edges']:,} edges ({100 * others / wiring['edges']:.0f} %) are others"
        told += " than at the start"
        random = next((one for one in rows if row.goal is not None and one.name == row.goal.above), None)
        if random is not None and found[random.name]["runs"]:
            ours, theirs = (results.mean(one, found[one.name]) for one in (row, random))
            told += f"; the network, {ours:.2f} %, is {_against(ours, theirs)} that of random edges"
        yield Shown(
            f"{row.name}-wiring.svg",
            f"Wiring before and after training: {row.title}",
            "Wortsman et al. 2019: which edges a graph has changes while it is trained, on MNIST within a few epochs.",
            f"Ours, seed 0: after {found[row.name]['runs'][0]['config']['epochs']} epochs {told}.",
            drawn(_two_wirings, wiring),
        )


def _two_wirings(wiring: dict) -> Figure:
    """A dot for each cell of nodes that send and nodes that receive, its area the number of edges there."""
    figure, both = panels(2, 7.2, 3.7)
    most = max(count for part in ("before", "after") for line in wiring[part] for count in line)
    for axes, part in zip(both, ("before", "after"), strict=True):
        size = wiring["nodes"] / len(wiring[part])
        alike = defaultdict(list)  # a size of dots is drawn at once: the file is a fifth as large
        for y, line in enumerate(wiring[part]):
            for x, count in enumerate(line):
                alike[math.ceil(SIZES * count / most)].append((size * (x + 0.5), size * (y + 0.5)))
        for area in sorted(alike.keys() - {0}):
            dots = zip(*alike[area], strict=True)
            axes.scatter(*dots, s=40 * area / SIZES, marker="s", color=figures.COLOURS["fused"], linewidth=0)
        axes.set(title=f"{part} training", xlabel="from node", aspect="equal")
        axes.set(xlim=(0, wiring["nodes"]), ylim=(wiring["nodes"], 0))
    both[0].set(ylabel="to node")
    return figure
