"""Experiments of several trainings: what is compared, that the stages follow from each other, and their files."""

import csv

import pytest
import torch
from typer.testing import CliRunner

import edgepop_kernels as ek
from edgepop_kernels.recipes import cli, data, experiments
from edgepop_kernels.recipes.errors import ConfigError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", None)


def test_bayesian_tickets_compare_whole_and_masked(digits):
    recipe = experiments.BayesianTickets(widths=(32,), epochs=4, keep=0.3)
    result = recipe.run(digits, CPU)
    assert list(result.curves) == ["posterior", "unmasked", "keep 0.3 by low_variance"]
    assert all(len(curve) == 4 and curve[-1] > 0.4 for curve in result.curves.values())
    assert sum(kept for _, kept, _ in result.layers) == ek.kept_count(64 * 32 + 32 * 10, 0.3)
    assert recipe.run(digits, CPU) == result


def test_supermask_init_fine_tunes_the_best_mask(digits):
    recipe = experiments.SupermaskInit(widths=(32,), epochs=5, fine_tune_lr=1e-6)
    result = recipe.run(digits, CPU)
    masks, weights, tuned = result.curves.values()
    assert weights[-1] > 0.85
    # At so small a rate the network is still the best mask's.
    assert tuned[0] == pytest.approx(max(masks), abs=0.01)
    assert [w for _, _, w in result.layers] == [64 * 32, 320]


def test_the_command_writes_tables_and_pictures(tmp_path):
    arguments = ["experiment", "bayesian-tickets", "--out", str(tmp_path), "--set", "epochs=1", "--set", "widths=8"]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0, done.output
    folder = tmp_path / "bayesian-tickets"
    with open(folder / "curves.csv", newline="") as text:
        header, row = csv.reader(text)
    assert header == ["epoch", "posterior", "unmasked", "keep 0.2 by low_variance"] and row[0] == "1"
    assert {path.name for path in folder.iterdir()} == {"curves.csv", "curves.png", "kept.csv", "kept.png"}
    assert (folder / "curves.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("arguments", [["experiment", "magic"], ["experiment", "supermask-init", "--set", "keep=0.5"]])
def test_wrong_arguments_are_one_sentence(arguments):
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 2 and len(done.output.strip().splitlines()) == 1


def test_a_wrong_setting_is_named():
    with pytest.raises(ConfigError, match="fine_tune_lr"):
        experiments.SupermaskInit(fine_tune_lr=-1.0)
