"""Pictures of a run: accuracy per epoch and share kept per layer, as PNG; scalars for TensorBoard where asked."""

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


def draw(run: Path, history: list[dict], layers: list[tuple[str, int, int]]) -> list[Path]:
    """accuracy.png and, for a masked network, kept.png."""
    pictures = [_save(_accuracy(history), run / "accuracy.png")]
    if layers:
        pictures.append(_save(_kept(layers), run / "kept.png"))
    return pictures


def _axes(title: str, x: str, y: str):
    # Figure without pyplot: no display, no global state, nothing to close.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    return figure, axes


def _accuracy(history: list[dict]):
    figure, axes = _axes("accuracy", "epoch", "%")
    epochs = [int(row["epoch"]) for row in history]
    for column, label in (("train_accuracy", "training"), ("test_accuracy", "test")):
        axes.plot(epochs, [100 * float(row[column]) for row in history], label=label)
    axes.legend()
    return figure


def _kept(layers: list[dict]):
    figure, axes = _axes("weights kept per layer", "layer (weights)", "%")
    names = [f"{name}\n({weights:,})" for name, _, weights in layers]
    axes.bar(names, [100 * kept / weights for _, kept, weights in layers])
    axes.set_ylim(0, 100)
    if len(layers) > 6:
        figure.set_figwidth(2 + 0.3 * len(layers))
        axes.tick_params(axis="x", labelrotation=90, labelsize="x-small")
    return figure


def lines(chart: Chart, path: Path) -> Path:
    """A logarithmic axis runs from large to small, as shares of weights are pruned."""
    figure, axes = _axes(chart.title, chart.x, "%")
    for label, values in chart.lines.items():
        axes.plot(chart.at, [100 * value for value in values], label=label, marker="." if chart.log else None)
    if chart.log:
        axes.set_xscale("log")
        axes.invert_xaxis()
        ticks = chart.at[:: -(-len(chart.at) // 8)]
        axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
        axes.minorticks_off()
    axes.legend(fontsize="small")
    return _save(figure, path)


def masked_by_size(layers: list[tuple[str, int, int]], path: Path) -> Path:
    """Share masked out of each layer (name, kept, weights) against its number of weights."""
    figure, axes = _axes("weights masked out, by the size of the layer", "weights in layer", "%")
    shares = [100 * (1 - kept / weights) for _, kept, weights in layers]
    axes.set(xscale="log", ylim=(0, max(5, *shares) * 1.1))
    axes.scatter([weights for _, _, weights in layers], shares)
    for (name, _, weights), share in zip(layers, shares, strict=True):
        axes.annotate(name, (weights, share), fontsize="x-small")
    return _save(figure, path)


def _save(figure, path: Path) -> Path:
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
