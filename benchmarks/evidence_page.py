"""docs/evidence.md and its figures, from the files of results in docs/evidence and the list of rows alone."""

import re
import statistics
from pathlib import Path
from textwrap import fill

import evidence_results as results
from evidence_curves import curves, file_of, sections
from evidence_figures import Shown, shown
from evidence_rows import Row

from edgepop_kernels.recipes.files import write_atomic

HEAD = """# Evidence

Recipes of every method on the data that they are named after, beside what is published or follows from the authors'
code. This page and its figures are made by

<!-- not run: it takes hours, and the data -->
```sh
make evidence DATA=folder
```

where the folder holds `mnist` (the four IDX files) and `cifar10` (its binary or Python version); a sentence in a file
`note.txt` beside these is said here of all that was found with them. On every core a process of one thread takes the
next training, and a call goes on where the last one was stopped; `ONLY=REGEX` chooses among the rows, `BUDGET_S=600`
ends it in time. The numbers are percent of the test part after the last epoch: nothing is picked by the test part.
Behind ± stands the deviation of the seeds. Epochs are those of the run, which may be fewer than the source trained for:
then a number below the published one is no contradiction.

In the last column: **met** and **not met** where a number is published or follows from the claim, with what is asked;
"no published number" where a row stands for itself; "not yet run".
"""
# What README has: the first of these figures that there is, and rows under plainer names.
IN_SHORT_FIGURES = ("over-keep.svg", "mnist-784-300-100-10.svg")
IN_SHORT = {
    "mnist-dense": "dense",
    "mnist-edge-popup-50": "edge-popup, keep 0.5",
    "mnist-edge-popup-50-authors": "the same in plain PyTorch",
    "mnist-bernoulli-constant-2000": "Bernoulli supermask",
    "mnist-wirings-10": "Neural Wirings, keep 0.1",
}
IN_README = re.compile(r"(<!-- evidence -->\n).*?(<!-- end -->)", re.DOTALL)
CLAIMS = """
## Figures of the sources, from our runs

Above each stands what its source says, and what these runs show; the sentences about ours follow from the results as
the tables do.
"""
RESULTS = """
## What was run

Each row was trained by the command beside it, with `--seed` 0 and on, `--data`, `--device cpu` and `--threads 1`; its
settings in full, and the accuracies of every epoch, are in the file of its name in `docs/evidence/`. Seconds are of one
core's time, the mean of the seeds.
"""


def write(rows: tuple[Row, ...], docs: Path, readme: Path | None = None) -> None:
    """Writes the page and its figures into ``docs``, and what ``readme`` has of them. UserError for a file that is
    damaged."""
    found = {row.name: results.read(row, docs / "evidence") for row in rows}
    text, drawn = page(rows, found)
    write_atomic(docs / "evidence.md", text.encode())
    for name, content in drawn.items():
        write_atomic(docs / "evidence" / name, content)
    for left in {path.name for path in (docs / "evidence").glob("*.svg")} - drawn.keys():
        (docs / "evidence" / left).unlink()
    if readme is not None:
        write_atomic(readme, in_readme(readme.read_text(), rows, found, drawn).encode())


def page(rows: tuple[Row, ...], found: dict[str, dict]) -> tuple[str, dict[str, bytes]]:
    """The page, and its figures by their files' names."""
    drawn, claims = curves(rows, found), shown(rows, found)
    means = _means(rows, found)
    titles = {row.name: row.title for row in rows}
    parts = [HEAD]
    for section, chosen in sections(row for row in rows if row.at is None).items():
        lines = [["", "said", "ours, %", "epochs", "seeds", ""]]
        for row in chosen:
            runs = found[row.name]["runs"]
            epochs = str(runs[0]["config"]["epochs"]) if runs else ""
            lines.append(
                [row.title, row.said, _ours(row, runs), epochs, _seeds(row, runs), verdict(row, means, titles)]
            )
        parts.append(f"\n## {section}\n\n{_table(lines)}")
        if file_of(section) in drawn:
            parts.append(f"\n![{section}: test accuracy after each epoch](evidence/{file_of(section)})\n")
        for row in chosen:
            if row.compares and not row.of and found[row.name]["runs"]:
                parts.append("\n" + (_rounds if row.best else _compared)(row, found[row.name]["runs"][0]))
        parts += [f"\n{note}\n" for note in _notes(found[row.name] for row in chosen)]
    parts += [CLAIMS, *map(_claim, claims)] if claims else []
    lines = [["row", "command", "s", "processor", "torch", "commit"]]
    lines += [_ran(row, found[row.name]["runs"]) for row in rows if found[row.name]["runs"] and not row.of]
    return "".join([*parts, RESULTS, "\n", _table(lines)]), drawn | {claim.file: claim.content for claim in claims}


def in_readme(readme: str, rows: tuple[Row, ...], found: dict[str, dict], drawn: dict[str, bytes]) -> str:
    """README with a figure, and the numbers in short, between the markers of the evidence."""
    means = _means(rows, found)
    lines = ["| MNIST, test accuracy | ours, % | at least, % |", "|---|---|---|"]
    for row in rows:
        if row.name in IN_SHORT and row.name in means:
            met = {True: ", met", False: ", **not met**"}
            asked = "" if row.goal is None else f"{row.goal.least:.1f}{met[row.goal.met(means, row.name)]}"
            lines.append(f"| {IN_SHORT[row.name]} | {_ours(row, found[row.name]['runs'])} | {asked} |")
    file = next(name for name in IN_SHORT_FIGURES if name in drawn)
    shown = "\n".join([f"![Accuracy on MNIST](docs/evidence/{file})", "", *lines])
    return IN_README.sub(lambda marked: f"{marked[1]}{shown}\n{marked[2]}", readme)


def _means(rows, found):
    return {row.name: value for row in rows if (value := results.mean(row, found[row.name])) is not None}


def verdict(row: Row, means: dict[str, float], titles: dict[str, str]) -> str:
    if row.name not in means:
        return "not yet run"
    if row.goal is None:
        return "no published number"
    words, met = row.goal.words(titles), row.goal.met(means, row.name)
    return f"{words}: not yet run" if met is None else f"**{'met' if met else 'not met'}**: {words}"


def _ours(row, runs):
    numbers = [results.number(row, run) for run in runs]
    if not numbers:
        return ""
    deviation = f" ± {statistics.stdev(numbers):.2f}" if len(numbers) > 1 else ""
    return f"{statistics.mean(numbers):.2f}{deviation}"


def _seeds(row, runs):
    return str(len(runs)) if len(runs) in (0, row.seeds) else f"{len(runs)} of {row.seeds}"


def _compared(row, run):
    """Beside the row's number, what the trainings that it is compared with reached; of the first seed."""
    told = "; ".join(f"{name} {100 * found['test'][-1]:.2f} %" for name, found in run["trainings"].items())
    return f"{row.title}, seed {run['seed']}: {told}.\n"


def _rounds(row, run):
    """What each line of rounds of pruning reached at its best, before a round's training and after one; of the first
    seed."""
    cells = [["criterion", "untrained at best, %", "kept, %", "trained at best, %", "kept, %"]]
    for name, line in results.rounds(run).items():
        cells.append([name])
        for reached in (lambda done: done["before"], lambda done: done["test"][-1]):
            best = max(line[1:], key=reached)
            cells[-1] += [f"{100 * reached(best):.2f}", f"{100 * best['kept'][0] / best['kept'][1]:.1f}"]
    (whole, first), *_ = run["trainings"].items()
    about = f"Seed {run['seed']}: the {whole} reaches {100 * first['test'][-1]:.2f} %, its masks"
    return f"{about}\n\n{_table(cells)}"


def _claim(claim: Shown) -> str:
    table = f"\n{_table(list(claim.table))}" if claim.table else ""
    text = f"{claim.said} {claim.ours}".replace(" %", "\N{NO-BREAK SPACE}%")
    said = fill(text, 120, break_on_hyphens=False).replace("\N{NO-BREAK SPACE}", " ")
    return f"\n### {claim.title}\n\n{said}\n{table}\n![{claim.title}](evidence/{claim.file})\n"


def _notes(records):
    """What is said of the data of these results."""
    notes = (run.get("data_note") for record in records for run in record["runs"])
    return list(dict.fromkeys(note for note in notes if note))


def _ran(row, runs):
    def every(value):
        return ", ".join(dict.fromkeys(map(value, runs)))

    seconds = f"{statistics.mean(run['processor_s'] for run in runs):.0f}"
    commits = every(lambda run: _short(run["commit"]))
    processors = every(lambda run: run["processor"].replace("(R)", ""))
    program = f"python benchmarks/{row.program}" if row.program else "edgepop"
    return [row.name, f"`{program} {' '.join(row.command())}`", seconds, processors, every(_torch), commits]


def _torch(run):
    return run["environment"]["torch"]


def _short(commit):
    return "unknown" if commit is None else commit[:7] + "-dirty" * commit.endswith("-dirty")


def _table(lines):
    lines = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
