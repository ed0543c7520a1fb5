"""training.png: what a run did, in one picture. A panel for each question that the run has an answer to."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

import edgepop_kernels as ek

from .masks import masked_layers
from .plots import save, whole_epochs

Layer = tuple[str, int, int]  # name, weights kept, weights
PARTS = {"train": "training, while it trains", "validation": "validation", "test": "test"}
BINS = 64
MOST_LINES = 6  # layers that are drawn apart; more would hide each other
FAR = 4.0  # multiples of the cut, beyond which scores are counted as one


class Scores(NamedTuple):
    """The scores that decide the masks, at the end. cut: from where on a weight is ``kept``, on the scale that ``axis``
    names, which goes from 0 to ``most``; values: of each layer, flat."""

    axis: str
    cut: float
    kept: str
    most: float
    values: dict[str, torch.Tensor]


def draw(run: Path, history: list[dict], picked: dict, model: nn.Module, layers: list[Layer]) -> list[Path]:
    """Writes training.png into the folder ``run``. history: rows of the log; picked: that of the best epoch; layers:
    what each masked layer of the trained ``model`` keeps."""
    from matplotlib.figure import Figure  # without pyplot: no display, no global state, nothing to close

    scores = scaled_scores(model)
    masked: dict[str, Callable] = {}
    if any(row.get("churn") for row in history):  # a wiring that is held has none
        masked["churn"] = lambda axes: _churn(axes, history)
    if scores is not None:
        masked["scores"] = lambda axes: _histogram(axes, scores)
    panels = {"accuracy": lambda axes: _accuracy(axes, history, picked), "loss": lambda axes: _loss(axes, history)}
    panels |= masked
    rows = [["accuracy", "loss"]] + [(list(masked) * 2)[:2]] * bool(masked)
    if differ(layers):
        panels["kept"] = lambda axes: _kept(axes, layers)
        rows.append(["kept", "kept"])
    figure = Figure(figsize=(max(10, 2 + 0.22 * len(layers)), 3.4 * len(rows)), layout="constrained")
    for name, axes in figure.subplot_mosaic(rows).items():
        axes.grid(alpha=0.3)
        panels[name](axes)
    return [save(figure, run / "training.png")]


def differ(layers: list[Layer]) -> bool:
    """Whether some layer keeps another share than all together, by more than a weight and a percentage point."""
    weights = sum(size for _, _, size in layers)
    share = sum(kept for _, kept, _ in layers) / max(1, weights)
    return any(abs(kept - share * size) > max(1, 0.01 * size) for _, kept, size in layers)


@torch.no_grad()
def scaled_scores(model: nn.Module) -> Scores | None:
    """The scores of every masked layer on a scale where one cut holds for all: as multiples of the smallest that their
    layer keeps, where they are ranked; through the sigmoid, where that is the rule. None where nothing is cut."""
    layers = [(name, layer) for name, layer in masked_layers(model) if not isinstance(layer.rule, ek.Frozen)]
    rule = layers[0][1].rule if layers else None
    if isinstance(rule, ek.Threshold | ek.Bernoulli) and rule.of == "sigmoid":
        values = {name: layer.scores.sigmoid().flatten() for name, layer in layers}
        if isinstance(rule, ek.Bernoulli):
            return Scores("probability of a weight to be kept, sigmoid(score)", 0.5, "kept mostly", 1.0, values)
        return Scores("sigmoid(score)", rule.cutoff, "kept", 1.0, values)
    multiples = {}
    for name, layer in layers:
        found = layer.weight if layer.scores is None else layer.scores
        ranked, kept = found.float().abs().flatten(), layer.mask().flatten()
        if getattr(layer.rule, "of", None) == "abs" and 0 < kept.sum() < kept.numel() and ranked[kept].min() > 0:
            multiples[name] = ranked / ranked[kept].min()
    if not multiples:
        return None
    what = "|weight|" if layers[0][1].scores is None else "|score|"
    most = min(FAR, max(float(values.max()) for values in multiples.values()))
    far = f"; last bar: {FAR:g} and more" if most == FAR else ""
    return Scores(f"{what} / smallest kept of the layer{far}", 1.0, "kept", most, multiples)


def _epochs(axes, history: list[dict], column: str, label: str | None = None, scale: float = 1.0) -> None:
    # A line through one point shows nothing; markers of many would hide the line.
    marker = "o" if len(history) == 1 else "." if len(history) <= 30 else None
    axes.plot([row["epoch"] for row in history], [scale * row[column] for row in history], marker=marker, label=label)
    whole_epochs(axes, history[-1]["epoch"])


def _accuracy(axes, history, picked) -> None:
    axes.set(title="accuracy", ylabel="%")
    for part, label in PARTS.items():
        if f"{part}_accuracy" in picked:
            _epochs(axes, history, f"{part}_accuracy", label, 100)
    by = "validation" if "validation_accuracy" in picked else "the test set"
    axes.axvline(picked["epoch"], linestyle=":", color="gray", label=f"epoch {picked['epoch']}, picked by {by}")
    axes.legend(fontsize="small")


def _loss(axes, history) -> None:
    axes.set(title="loss", ylabel="cross-entropy")
    for part, label in PARTS.items():
        if f"{part}_loss" in history[0]:
            _epochs(axes, history, f"{part}_loss", label)
    axes.legend(fontsize="small")


def _churn(axes, history) -> None:
    axes.set(title="mask bits that changed in the epoch", ylabel="% of the weights")
    _epochs(axes, history, "churn", scale=100)
    axes.set_ylim(bottom=0)


def _histogram(axes, scores: Scores) -> None:
    values = scores.values
    if len(values) > MOST_LINES:
        values = {f"all {len(values)} layers": torch.cat(list(values.values()))}
    axes.set(title="scores at the end", xlabel=scores.axis, ylabel=f"% of the weights, in {BINS} bars")
    for name, found in values.items():
        counts = torch.histc(found.cpu().clamp(max=scores.most), BINS, 0, scores.most)
        edges = torch.linspace(0, scores.most, BINS + 1)
        axes.stairs((100 * counts / found.numel()).tolist(), edges.tolist(), label=name)
    axes.axvline(scores.cut, color="black", linestyle="--", label=f"from {scores.cut:g} on: {scores.kept}")
    axes.legend(fontsize="small")


def _kept(axes, layers: list[Layer]) -> None:
    axes.set(title="weights kept in each layer", ylabel="%", ylim=(0, 100))
    bars = axes.bar([name for name, _, _ in layers], [100 * kept / weights for _, kept, weights in layers])
    axes.grid(visible=False, axis="x")
    if len(layers) <= MOST_LINES:
        axes.bar_label(bars, fmt="%.1f", label_type="center")
    else:
        axes.tick_params(axis="x", labelrotation=90, labelsize="x-small")
