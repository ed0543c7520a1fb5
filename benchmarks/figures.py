"""The tables and figures of the committed results: ``make figures`` writes them, into docs/ and README.md.

What stands there between ``<!-- measured: NAME -->`` and ``<!-- end -->`` is made here and nowhere else, every number
of it from ``results/*.json``; ``tests/test_docs_measured.py`` holds that it is what those say.
"""

import json
import re
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
FIGURES = ROOT / "docs" / "figures"
PAGES = (ROOT / "docs" / "performance.md", ROOT / "README.md")

# The machine and the rows that README shows; its figure has those with a dense layer, under plainer names.
SHOWN = "xeon-amx"
SHOWN_ROWS = {
    "train Conv4 batch 16 bf16 fwd+bwd": "Conv4, a training step, bfloat16",
    "train MLP 784-300-100-10 batch 64 f32 fwd+bwd": "MLP, a training step, float32",
    "conv 16x128x16x16 128k3 f32 fwd+bwd": "convolution 3x3, float32",
    "conv 16x128x16x16 128k3 bf16 fwd+bwd": "convolution 3x3, bfloat16",
    "linear 512x2048x2048 f32 fwd+bwd": "linear 2048x2048, float32",
    "linear 512x2048x2048 bf16 fwd+bwd": "linear 2048x2048, bfloat16",
    "select 2359296 normal warm": "selection of 2.4M scores",
}
# Readable on white and on black pages: contrast with both is at least 3, the text's at least 4.
TEXT = "#767676"
COLOURS = {"dense": "#8a8a8a", "fused": "#1f7fd0", "GetSubnetFaster": "#d07a1f", "GetSubnet": "#c0504d"}
STYLE = {
    "svg.hashsalt": "edgepop_kernels",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "font.size": 9,
    "text.color": TEXT,
    "axes.edgecolor": TEXT,
    "axes.labelcolor": TEXT,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
}
MARKED = re.compile(r"(<!-- measured: (?P<name>[^>]+) -->\n).*?(<!-- end -->)", re.DOTALL)


class Row(NamedTuple):
    """A row of results: medians of its columns in seconds, and fused's share of the floor and of packing in percent."""

    group: str
    name: str
    seconds: dict[str, float]
    floor: float | None
    packing: float | None

    def of(self, column: str, base: str) -> float:
        """The time of ``column`` in multiples of ``base``'s."""
        return self.seconds[column] / self.seconds[base]


def rows_of(results: dict) -> list[Row]:
    return [
        Row(r["group"], f"{r['group']} {r['row']}", r["median_s"], r["floor_percent"], r["packing_percent"])
        for r in results["rows"]
    ]


def table(rows: list[Row], head: str = "", fused: str = "fused") -> str:
    """The rows as Markdown: the time of the fused column, under the name ``fused``, and the others' multiples of it."""
    hidden = {"fused", "one row", "one weight", "read"}
    columns = list(dict.fromkeys(c for row in rows for c in row.seconds if c not in hidden))
    reads, floor, packing = (any(has) for has in zip(*map(_extras, rows), strict=True))
    heads = [head, f"{fused}, ms", *columns]
    heads += ["reads"] * reads + ["floor, %"] * floor + ["packing, %"] * packing
    lines = [heads, ["---"] * len(heads)]
    for row in rows:
        cells = [row.name, _three_digits(row.seconds["fused"] * 1e3)]
        cells += [f"{row.of(c, 'fused'):.2f}" if c in row.seconds else "" for c in columns]
        cells += [f"{row.of('fused', 'read'):.1f}" if "read" in row.seconds else ""] * reads
        cells += [_percent(row.floor)] * floor + [_percent(row.packing)] * packing
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _extras(row):
    return "read" in row.seconds, row.floor is not None, row.packing is not None


def _three_digits(ms):
    return f"{float(f'{ms:.3g}'):g}"


def _percent(share):
    return "" if share is None else f"{max(share, 0):.0f}"


def bars(rows: list[Row], columns: list[str], base: str, title: str) -> Figure:
    """A group of bars for each row, on a logarithmic axis: the time of each column in multiples of ``base``'s."""
    figure = Figure(figsize=(7.2, 0.75 + 0.55 * len(rows)), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    height = 0.8 / len(columns)
    for i, column in enumerate(columns):
        times = [row.of(column, base) for row in rows]
        middles = [n - 0.4 + height * (i + 0.5) for n in range(len(rows))]
        label = "fused (this package)" if column == "fused" else column
        drawn = axes.barh(middles, times, height * 0.92, color=COLOURS[column], label=label)
        axes.bar_label(drawn, [f"{t:.2f}" if t < 9.995 else f"{t:.0f}" for t in times], padding=2, fontsize=7)
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(0.5, 1.6 * max(row.of(c, base) for row in rows for c in columns))
    axes.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    axes.axvline(1, color=TEXT, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(title)
    figure.legend(loc="outside upper center", ncols=len(columns), frameon=False, fontsize=8)
    return figure


def figures() -> dict[str, Figure]:
    """Every figure by its file's name."""
    drawn = {}
    for path in RESULTS:
        rows = rows_of(json.loads(path.read_text()))
        title = f"time in multiples of the dense layer's, logarithmic ({path.stem})"
        columns = ["dense", "fused", "GetSubnetFaster", "GetSubnet"]
        trained = [r for r in rows if r.group in ("conv", "linear") and r.name.endswith("fwd+bwd")]
        for dtype in ("f32", "bf16"):
            chosen = [r for r in trained if f" {dtype} " in r.name]
            if chosen:
                drawn[f"{path.stem}-{dtype}.svg"] = bars(chosen, columns, "dense", title)
        selected = [r for r in rows if r.group == "select"]
        title = f"time in multiples of fused's, logarithmic ({path.stem})"
        if selected:
            drawn[f"{path.stem}-select.svg"] = bars(selected, ["fused", "GetSubnetFaster", "GetSubnet"], "fused", title)
        if path.stem == SHOWN:
            chosen = [r._replace(name=SHOWN_ROWS[r.name]) for r in _shown(rows) if "dense" in r.seconds]
            title = "forward and backward, time in multiples of dense, logarithmic: left is faster"
            drawn["step_time.svg"] = bars(chosen, columns, "dense", title)
    return drawn


def _shown(rows):
    by_name = {row.name: row for row in rows}
    return [by_name[name] for name in SHOWN_ROWS]


def _in_short(row):
    """The row without the columns that README has no room for."""
    seconds = {
        c: s for c, s in row.seconds.items() if c in ("fused", "GetSubnet", "GetSubnetFaster", "dense", "staged")
    }
    return row._replace(seconds=seconds, packing=None)


def machine(results: dict) -> str:
    """Where and when these results were measured, in a sentence."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items() if version)
    changed = ", with changes that are not committed" if results["uncommitted_changes"] else ""
    commit = f"commit {results['commit'][:7]}{changed}" if results["commit"] else "commit unknown"
    return (
        f"{results['device'].replace('(R)', '')}, {results['threads']} threads, backend {results['fused_backend']}; "
        f"{versions}; {commit}."
    )


def losses(rows: list[Row]) -> str:
    """Where the fused layers are slower than the others are, in ranges over the rows with a backward pass."""
    lines = []
    for group, what in (("conv", "Convolutions"), ("linear", "Linear layers"), ("train", "Whole steps")):
        for dtype, spelled in (("f32", "float32"), ("bf16", "bfloat16")):
            chosen = [r for r in rows if r.group == group and f" {dtype} fwd+bwd" in r.name]
            if not chosen:
                continue
            dense = _range([r.of("fused", "dense") for r in chosen])
            behind = [r.name for r in chosen if r.of("fused", "GetSubnetFaster") > 1]
            faster = f"; GetSubnetFaster is faster in {len(behind)} of {len(chosen)}" if behind else ""
            lines.append(f"- {what}, {spelled}, forward and backward: {dense} times dense{faster}.")
    return "\n".join(lines)


def _range(values):
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"


def texts() -> dict[str, str]:
    """What stands between the markers of each name."""
    made = {}
    for path in RESULTS:
        results = json.loads(path.read_text())
        rows = rows_of(results)
        made[f"{path.stem} machine"] = machine(results)
        made[f"{path.stem} losses"] = losses(rows)
        for group in dict.fromkeys(row.group for row in rows):
            fused = "ScoreSGD" if group == "optim" else "fused"
            made[f"{path.stem} {group}"] = table([row for row in rows if row.group == group], fused=fused)
        if path.stem == SHOWN:
            made["shown"] = table([_in_short(row) for row in _shown(rows)], f"{path.stem}, medians")
    return made


def filled(page: str, made: dict[str, str]) -> str:
    """The page with what is between its markers made anew. Raises KeyError for a marker that nothing is made for."""
    return MARKED.sub(lambda found: f"{found[1]}{made[found['name']]}\n{found[3]}", page)


def svg(figure: Figure, file) -> None:
    """Writes the figure the same every time: no date, no version, no names drawn at random."""
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})


def main() -> None:
    FIGURES.mkdir(exist_ok=True)
    with matplotlib.rc_context(STYLE):
        drawn = figures()
        for name, figure in drawn.items():
            svg(figure, FIGURES / name)
    for left in {path.name for path in FIGURES.glob("*.svg")} - drawn.keys():
        (FIGURES / left).unlink()
    made = texts()
    for page in PAGES:
        page.write_text(filled(page.read_text(), made))


if __name__ == "__main__":
    main()
