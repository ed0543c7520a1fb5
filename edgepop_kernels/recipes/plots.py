"""Charts of several trainings as PNG, what all pictures share, and scalars for TensorBoard where asked."""

import contextlib
import importlib.util
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .errors import UserError
from .files import write_atomic


@dataclass(frozen=True)
class Chart:
    """Accuracies (fractions) of several trainings, each at the places ``at`` of the axis ``x``: one table and picture.

    name: of the files; title: of the picture; log: whether its axis is logarithmic.
    """

    name: str
    title: str
    x: str
    at: list[float]
    lines: dict[str, list[float]]
    log: bool = False


def check(pictures: bool, tensorboard: bool) -> None:
    """UserError before training, not after it, where what is wanted cannot be written."""
    if pictures and importlib.util.find_spec("matplotlib") is None:
        raise UserError("plots need matplotlib, which is not installed: pip install matplotlib, or add --no-plots")
    if tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UserError("--tensorboard needs tensorboard, which is not installed: pip install tensorboard")


def _axes(title: str, x: str, y: str):
    # Figure without pyplot: no display, no global state, nothing to close.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    return figure, axes


def whole_epochs(axes, last: int) -> None:
    """An x-axis of the epochs 1 to ``last``, at whole numbers; one epoch alone stands in the middle."""
    from matplotlib.ticker import MaxNLocator

    axes.set(xlabel="epoch", xlim=(0.5, last + 0.5))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def lines(chart: Chart, path: Path) -> Path:
    """A logarithmic axis runs from large to small, as shares of weights are pruned."""
    figure, axes = _axes(chart.title, chart.x, "%")
    for label, values in chart.lines.items():
        marker = "." if chart.log or len(chart.at) == 1 else None  # a line through one point shows nothing
        axes.plot(chart.at, [100 * value for value in values], label=label, marker=marker)
    if chart.x == "epoch":
        whole_epochs(axes, chart.at[-1])
    if chart.log:
        axes.set_xscale("log")
        axes.invert_xaxis()
        ticks = chart.at[:: -(-len(chart.at) // 8)]
        axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
        axes.minorticks_off()
    axes.legend(fontsize="small")
    return save(figure, path)


def masked_by_size(layers: list[tuple[str, int, int]], path: Path) -> Path:
    """Share masked out of each layer (name, kept, weights) against its number of weights."""
    figure, axes = _axes("weights masked out, by the size of the layer", "weights in layer", "%")
    shares = [100 * (1 - kept / weights) for _, kept, weights in layers]
    axes.set(xscale="log", ylim=(0, max(5, *shares) * 1.1))
    axes.scatter([weights for _, _, weights in layers], shares)
    for (name, _, weights), share in zip(layers, shares, strict=True):
        axes.annotate(name, (weights, share), fontsize="x-small")
    return save(figure, path)


def save(figure, path: Path) -> Path:
    """Writes the figure as a PNG; its path."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    write_atomic(path, content.getvalue())
    return path


@contextlib.contextmanager
def scalars(run: Path, wanted: bool, first: int) -> Iterator[Callable[[dict], None]]:
    """Yields what to call with each epoch's row: it goes to TensorBoard files in the run folder, or nowhere.

    first: the epoch that comes next; what an earlier process wrote from there on is not shown any more.
    """
    if not wanted:
        yield lambda row: None
        return
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(run, purge_step=first) as writer:

        def write(row: dict) -> None:
            for name, value in row.items():
                if name != "epoch":
                    writer.add_scalar(name, value, row["epoch"])

        yield write
