"""The figures of the evidence: which there are, and that what is said of ours follows from the numbers."""

import importlib
import itertools
import re
import sys
from dataclasses import replace

import pytest
from source_tree import ROOT

if not (ROOT / "benchmarks").is_dir():
    pytest.skip("the benchmarks are part of the source checkout", allow_module_level=True)

MODULES = ("evidence_figures", "evidence_curves", "evidence_results", "evidence_rows", "figures")


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    yield importlib.import_module("evidence_figures")
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def shown(module):
    """The figures by file, for results (test accuracy and more of a run) by the names of their rows."""
    rows = importlib.import_module("evidence_rows").ROWS

    def make(**runs):
        runs = {name.replace("_", "-"): run for name, run in runs.items()}
        found = {row.name: {"runs": [runs[row.results]] if row.results in runs else []} for row in rows}
        return {one.file: one for one in module.shown(rows, found)}

    return make


def run(test, **more):
    layers = [["fc1", 70, 100], ["fc2", 40, 50]]
    return {"layers": layers, "trainings": {"network": {"test": [test]}}, "config": {"epochs": 5}} | more


def test_without_results_there_is_no_figure(shown):
    assert shown() == {}
    assert shown(mnist_keep_50=run(0.9)) == {}  # a sweep of one


@pytest.mark.parametrize(("best", "said"), [(0.97, "in that range"), (0.94, "outside that range")])
def test_the_best_keep_is_said_to_be_where_it_is(shown, best, said):
    one = shown(mnist_keep_05=run(0.9), mnist_keep_60=run(best), mnist_keep_90=run(0.95))["over-keep.svg"]
    start = "Ours, MNIST: with weights as they are drawn the best is"
    assert one.ours.startswith(f"{start} {max(100 * best, 95):.2f} % at keep ")
    assert said in one.ours and "90.00 % at 0.05 and 95.00 % at 0.9" in one.ours
    assert one.table[0] == ["keep", "0.05", "0.6", "0.9"]
    assert one.table[1][1:] == ["110"] * 3
    assert one.table[2:] == (["weights as they are drawn, %", "90.00", f"{100 * best:.2f}", "95.00"],)


@pytest.mark.parametrize(
    ("wide", "said"), [(0.97, "2.00 points above the"), (0.93, "2.00 points below the"), (0.95, "the same as the")]
)
def test_a_wider_network_is_said_to_be_what_it_is(shown, wide, said):
    one = shown(mnist_keep_50=run(0.95), mnist_width_400=run(wide))["over-width.svg"]
    assert f"with weights as they are drawn {100 * wide:.2f} % at 4, {said} 95.00 % at 1." in one.ours


def test_each_scale_of_the_weights_is_a_line_of_its_own(shown):
    runs = dict(mnist_keep_50=run(0.95), mnist_width_400=run(0.93))
    runs |= {f"{name}_scaled": run(test) for name, test in (("mnist_keep_50", 0.95), ("mnist_width_200", 0.97))}
    one = shown(**runs)["over-width.svg"]
    assert (
        "2.00 points below the 95.00 % at 1; with weights times 1/sqrt(keep), warmed up 97.00 % at 2, 2.00 points"
        in one.ours
    )
    assert one.table[0] == ["width", "1", "2", "4"]
    assert [line[1:] for line in one.table[2:]] == [["95.00", "", "93.00"], ["95.00", "97.00", ""]]


def test_every_width_keeps_as_many_weights(module):
    rows = importlib.import_module("evidence_rows")
    recipes = [row.asked() for row in rows.ROWS if row.section == rows.WIDTHS and not row.name.endswith("-scaled")]
    scaled = [row.asked() for row in rows.ROWS if row.section == rows.WIDTHS and row.name.endswith("-scaled")]
    assert [replace(recipe, scale="paper", warmup=2) for recipe in recipes] == scaled
    kept = []
    for recipe in recipes:
        sizes = (784, *recipe.widths, 10)
        layers = [narrow * wide for narrow, wide in itertools.pairwise(sizes)]
        kept.append(sum(size - int((1 - recipe.keep) * size) for size in layers))
    assert [recipe.widths[0] for recipe in recipes] == [300, 450, 600, 900, 1200]
    assert kept == pytest.approx([133_100] * 5, abs=5)


@pytest.mark.parametrize(("small", "said"), [(10, "in 1 of 1 pairs"), (35, "in 0 of 1 pairs")])
def test_masked_shares_are_compared_by_size(shown, small, said):
    layers = [["fc1", 70, 100], ["fc2", 50 - small // 2, 50]]
    one = shown(mnist_threshold=run(0.9, layers=layers))["over-size.svg"]
    most = max(30, 100 * (small // 2) / 50)
    assert f"{said} of layers the larger one masks more, none above {most:.1f} %" in one.ours


def test_masked_trainings_stand_beside_the_unmasked_one(shown):
    def trainings(**ends):
        return {name.replace("_by", " by"): {"test": [0.5, end]} for name, end in ends.items()}

    low = run(0, trainings=trainings(posterior=0.9, unmasked=0.96, low_by_variance=0.965))
    high = run(0, trainings=trainings(posterior=0.9, unmasked=0.96, high_by_variance=0.1))
    one = shown(mnist_tickets_low_variance=low, mnist_tickets_high_variance=high)["masked-unmasked.svg"]
    assert re.search(
        r"unmasked 96\.00 %; low by_variance 96\.50 %, 0\.50 points above it; high .*, 86\.00 points below", one.ours
    )


def test_rounds_of_lottery_tickets(shown):
    def rounds(name, *before):
        kept = [100, 80, 64]
        return {
            f"{name}, round {number}": {"before": value, "test": [0.9], "kept": [kept[number], 100]}
            for number, value in enumerate(before, 1)
        }

    whole = {"whole network": {"before": 0.1, "test": [0.95], "kept": [100, 100]}}
    trainings = whole | rounds("large_final", 0.3, 0.6) | rounds("movement", 0.2, 0.1) | rounds("random", 0.2, 0.1)
    one = shown(mnist_lottery_masks=run(0, trainings=trainings))["lottery-rounds.svg"]
    assert "the best mask is of large_final: 60.00 %; 1 of the other 2 criteria are above random masks" in one.ours
    assert "reach 20.00 % at best" in one.ours


def test_a_wiring_that_changed_is_drawn_and_one_that_is_held_is_not(shown):
    cells = [[0, 0], [3, 0]]
    wiring = {"before": cells, "after": cells, "nodes": 50, "edges": 4, "stayed": 3}
    held = wiring | {"stayed": 4}
    found = shown(mnist_static_learned=run(0.9, wiring=wiring), mnist_static_random=run(0.9, wiring=held))
    assert list(found) == ["mnist-static-learned-wiring.svg"]
    ours = found["mnist-static-learned-wiring.svg"].ours
    assert ours.endswith(
        "after 5 epochs 1 of the 4 edges (25 %) are others than at the start; the network, 90.00 %, is the same as "
        "that of random edges."
    )
    alone = shown(mnist_static_learned=run(0.9, wiring=wiring))["mnist-static-learned-wiring.svg"].ours
    assert alone.endswith("are others than at the start.")


def test_figures_are_drawn_in_the_colours_of_the_others_and_the_same_twice(shown):
    figures = importlib.import_module("figures")
    results = dict(
        mnist_keep_05=run(0.9),
        mnist_keep_50=run(0.95),
        mnist_width_200=run(0.95),
        mnist_threshold=run(0.9),
    )
    drawn = [{name: one.content for name, one in shown(**results).items()} for _ in range(2)]
    assert drawn[0] == drawn[1] and drawn[0].keys() == {"over-keep.svg", "over-width.svg", "over-size.svg"}
    for content in drawn[0].values():
        used = set(re.findall(rb"#[0-9a-f]{6}\b", content))
        assert used <= {colour.encode() for colour in (figures.TEXT, *figures.COLOURS.values())}
