"""How the figures of the evidence are drawn: transparent, in the colours of ``figures``, the same bytes every time."""

import io
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import evidence_results as results
import figures
from evidence_rows import Row
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FormatStrFormatter, NullLocator

from edgepop_kernels.recipes.plots import whole_epochs

COLOURS = list(figures.COLOURS.values())


def drawn(draw: Callable[..., Figure], *arguments) -> bytes:
    """The SVG of the figure that ``draw`` makes."""
    with rc_context(figures.STYLE):
        content = io.StringIO()
        figures.svg(draw(*arguments), content)
    return content.getvalue().encode()


def panels(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of ``count`` panels side by side; its size in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = list(figure.subplots(1, count, squeeze=False)[0])
    for one in axes:
        one.patch.set_alpha(0)
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def plot(axes: Axes, lines: dict[str, tuple[Sequence[float], Sequence[float]]]) -> None:
    """Lines (x, y) by their labels, which colours and dashes tell apart."""
    for number, (label, (x, y)) in enumerate(lines.items()):
        style, colour = ("-", "--", ":", "-.")[number // len(COLOURS)], COLOURS[number % len(COLOURS)]
        axes.plot(x, y, style, marker=".", markersize=3, color=colour, label=label)


def logarithmic(axis: Axis, values: Sequence[float]) -> None:
    """Makes the axis logarithmic, with ticks at round numbers among ``values``."""
    low, high = min(values), max(values)
    fewer = (1, 2, 5) if high < 2000 * low else (1,)
    digits = fewer if high > 30 * low else (1, 1.5, 2, 3, 4, 5, 7)
    ticks = (digit * 10.0**power for power in range(-3, 8) for digit in digits)
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_locator(NullLocator())


def sections(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The rows of each section in their order."""
    found = defaultdict(list)
    for row in rows:
        found[row.section].append(row)
    return found


def file_of(section: str) -> str:
    """The name of its figure."""
    return "".join(c if c.isalnum() else "-" for c in section.lower()).strip("-").replace("--", "-") + ".svg"


def curves(rows: Iterable[Row], found: dict[str, dict]) -> dict[str, bytes]:
    """By its file's name, a figure of each section: the learning curves of the rows that are one training each."""
    made = {}
    for section, chosen in sections(row for row in rows if row.at is None).items():
        lines = {row.title: _curve(found[row.name]["runs"]) for row in chosen if not row.compares}
        lines = {title: line for title, line in lines.items() if line}
        if lines:
            made[file_of(section)] = drawn(_curves, lines)
    return made


def _curve(runs):
    """Percent after each epoch, the mean of the seeds."""
    lines = [run["trainings"][results.ALONE]["test"] for run in runs]
    return [100 * statistics.mean(values) for values in zip(*lines, strict=True)]


def _curves(lines: dict[str, list[float]]) -> Figure:
    figure, (axes,) = panels(1, 7.2, 3.4 + 0.2 * len(lines))
    epochs = {title: _shown(len(line)) for title, line in lines.items()}
    plot(axes, {title: (epochs[title], [line[epoch - 1] for epoch in epochs[title]]) for title, line in lines.items()})
    lengths = [len(line) for line in lines.values()]
    if max(lengths) > 4 * min(lengths):
        logarithmic(axes.xaxis, (1, max(lengths)))
    else:
        whole_epochs(axes, max(lengths))
    ends = [line[-1] for line in lines.values()]
    room = max(1.0, max(ends) - min(ends))
    axes.set_ylim(min(ends) - room, max(ends) + 0.3 * room)  # the first epochs would hide what differs at the end
    axes.set(xlabel="epoch", ylabel="test accuracy, %")
    figure.legend(loc="outside lower center", frameon=False, fontsize=8)
    return figure


def _shown(epochs: int) -> list[int]:
    """Those of 1 to ``epochs`` that a line has a point for: all of the first 75, and then each that is 2 % further."""
    shown = [1]
    while shown[-1] < epochs:
        shown.append(min(epochs, max(shown[-1] + 1, round(1.02 * shown[-1]))))
    return shown
