"""What the command line says of itself: help in groups, a recipe's own values, the list of recipes, near misses."""

import dataclasses
import json
import re

import pytest
from typer.testing import CliRunner

import edgepop_kernels as ek
from edgepop_kernels.recipes import cli, registry

# One of each method, and others that have other settings.
SOME = [*{entry.recipe.method: name for name, entry in registry.RECIPES.items()}.values()]
SOME += ["edge-popup-digits", "edge-popup-conv4", "supermask-digits", "neural-graph-static", "lottery-tickets-mnist"]


@pytest.fixture
def edgepop(monkeypatch):
    """Runs `edgepop ARGUMENTS` on a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    return lambda *arguments: CliRunner().invoke(cli.app, arguments)


def panels(text):
    """Title -> {option: its text in one line}."""
    found, title, option = {}, None, None
    for line in text.splitlines():
        assert len(line) <= 80
        if line.startswith("╭"):
            title = line.strip("╭─╮ ")
            found[title] = {}
        elif line.startswith("│"):
            left, words = re.match(r"│ (\S+(?: \S+)?)?  +(.*?) *│$", line).groups()
            option = left or option
            found[title][option] = f"{found[title].get(option, '')} {words}".strip()
    return found


def flags(rows):
    """The long names of the options in the rows of a panel."""
    return {row.partition(" ")[0].replace("[no-]", "").removeprefix("--").replace("-", "_") for row in rows}


def test_help_shows_every_setting_of_every_method_in_groups(edgepop):
    shown = panels(edgepop("train", "--help").stdout)
    methods = [f"Method {name}" for name in registry.METHODS]
    assert list(shown) == ["Run", "Data", "Network", "Training", "Machine", *methods]
    for name, method in registry.METHODS.items():
        everywhere = set().union(*(flags(shown[title]) for title in ("Data", "Network", "Training", "Machine")))
        own = flags(shown.get(f"Method {name}", ()))
        assert {field.name for field in dataclasses.fields(method)} <= everywhere | own
        assert not everywhere & own
    assert shown["Run"]["--out FOLDER"].endswith("[runs]")
    assert shown["Run"]["--[no-]plots"].endswith("[on]")
    assert shown["Training"]["--momentum FLOAT"] == (
        "momentum of sgd: a number in [0, 1); only with optimizer sgd or score-sgd [0.9]"
    )
    assert "neural-graph: one of tiny-static, " in shown["Network"]["--model NAME"]
    assert [shown[f"Method {name}"]["--keep FLOAT"][-5:] for name in ("edge-popup", "wirings")] == ["[0.5]", "[0.1]"]


@pytest.mark.parametrize("name", SOME)
def test_help_of_a_recipe_has_its_values_and_only_its_settings(edgepop, name):
    recipe = registry.RECIPES[name].recipe
    shown = panels(edgepop("train", name, "--help").stdout)
    idle = shown.pop("Without effect here")
    run = shown.pop("Run")
    assert "--resume RUN" in run and "--[no-]plots" in run
    assert shown["Data"].pop("--data FOLDER")
    rows = {option: text for panel in shown.values() for option, text in panel.items()}
    assert flags(rows) == {field.name for field in recipe.in_effect()}
    assert flags(rows) | flags(idle) == {field.name for field in dataclasses.fields(recipe)}
    values = {option: text.rpartition("[")[2].removesuffix("]") for option, text in rows.items()}
    assert values["--epochs INT"] == str(recipe.epochs)
    assert values["--lr FLOAT"] == str(recipe.lr)
    assert values["--dataset NAME"] == recipe.dataset
    assert values.get("--widths INT,...", "300,100") == ",".join(map(str, recipe.widths))
    assert idle.get("--momentum", "only with optimizer sgd or score-sgd") == "only with optimizer sgd or score-sgd"


def test_help_of_an_unknown_recipe_is_one_sentence(edgepop):
    result = edgepop("train", "edge-popup-digit", "--help")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("edgepop: there is no recipe 'edge-popup-digit'; did you mean edge-popup-digits")


@pytest.mark.parametrize("name", SOME)
def test_a_recipe_is_shown_with_goal_source_command_and_all_settings(edgepop, name):
    recipe, goal, source = registry.RECIPES[name]
    text = edgepop("recipes", name).stdout
    words = " ".join(text.split())
    assert words.startswith(f"{name}: {recipe.model} on {recipe.dataset}")
    assert f"aims at {goal}" in words and f"source {source}" in words
    assert f"train it edgepop train {name}" + ("" if recipe.dataset == "digits" else " --data FOLDER") in words
    # Its settings are options that ask for this recipe.
    asked = {}
    for option in re.split(r" --", text[text.index("\nData ") :])[1:]:
        setting, _, value = " ".join(option.split()).partition(" ")
        setting = setting.replace("-", "_")
        # The titles of the groups stand at the start of lines.
        value = re.sub(r" ?\b(Network|Training|Machine|Method)$", "", f" {value}").strip()
        asked[setting.removeprefix("no_")] = value or not setting.startswith("no_")
    assert asked.keys() == {field.name for field in recipe.in_effect()}
    assert type(recipe)().asked(**asked).to_dict() == recipe.to_dict()


def test_recipes_are_listed_by_method_and_data_set(edgepop):
    def names(*arguments):
        lines = edgepop("recipes", *arguments).stdout.splitlines()
        assert all(len(line) <= 80 for line in lines)
        return [line.split()[0] for line in lines if not line.startswith(" ")]

    assert names() == list(registry.RECIPES)
    chosen = names("--method", "supermask", "--dataset", "mnist")
    assert chosen == ["supermask-mnist", "supermask-bernoulli-mnist", "supermask-bernoulli-mnist-constant"]
    assert set(names("--method", "dense")) == {name for name in registry.RECIPES if name.startswith("dense-")}
    assert {registry.RECIPES[name].recipe.dataset for name in names("--dataset", "imagenet")} == {"imagenet"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--method", "supermaks"], "--method: expected one of edge-popup, dense, supermask, "),
        (["--dataset", "svhn"], "--dataset: expected one of digits, mnist, fashion-mnist, cifar10, cifar100, imagenet"),
        (["--method", "dense", "--dataset", "fashion-mnist"], "no recipe of the method dense is for fashion-mnist"),
        (["--dataset", "tinyimagenet"], "no recipe is for tinyimagenet, but any trains on it with --dataset tiny"),
        (["edge-popup-mnits"], "there is no recipe 'edge-popup-mnits'; did you mean edge-popup-mnist"),
        (["edge-popup-mnist", "--method", "dense"], "RECIPE: expected either a recipe or what to list"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_question_about_recipes_is_one_sentence(edgepop, arguments, sentence):
    result = edgepop("recipes", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"edgepop: {sentence}") and result.stderr.count("\n") == 1


def test_a_recipe_of_many_trainings_says_how_many(edgepop):
    """And what is kept of them: a fraction in each round is not the network's at the end."""
    listed = " ".join(edgepop("recipes", "--method", "lottery-tickets").stdout.split())
    assert "mlp on digits, keep 0.8 in each of 24 rounds, 217 trainings of 10 epochs" in listed
    assert "217 trainings of 10 epochs" in " ".join(edgepop("recipes", "lottery-tickets-digits").stdout.split())
    assert "trainings" not in edgepop("recipes", "edge-popup-digits").stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--epoch", "3"], "there is no option --epoch; did you mean --epochs?"),
        (["--batchsize=3"], "there is no option --batchsize; did you mean --batch-size?"),
        (["--no-plot"], "there is no option --no-plot; did you mean --no-plots or --plots?"),
        (["--frobnicate"], "there is no option --frobnicate; `edgepop train --help` lists them"),
        (["--lr", "fast"], "--lr: expected a number above 0, at most 1e+30, got 'fast'"),
        (["--batch-size", "0"], "--batch-size: expected a whole number, at least 1, got 0"),
        (["--warmup", "40"], "--warmup: expected fewer than the 30 epochs, got 40"),
        (["--channels-last"], "--channels-last: has an effect with a model other than mlp only, got True"),
        (["--at-eval", "round"], "--at-eval: the method edge-popup has no such setting, got 'round'"),
        (["--batch-size", "479", "--accumulate", "500"], "--batch-size: 479 leaves 479 of 1437 images"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_option_is_named_as_it_is_typed(edgepop, tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli.app, ["train", *arguments], prog_name="edgepop")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"edgepop: {sentence}") and result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"method": "edge-popup", "keep": 3}, "keep: expected a number in (0, 1], got 3"),
        ({"method": "edge-popup", "batch_sice": 3}, "batch_sice: the method edge-popup has no such setting, got 3"),
        ({"method": "edge-pop"}, "method: expected one of edge-popup, dense, "),
    ],
    ids=str,
)
@pytest.mark.parametrize("command", [["train", "--resume"], ["export"]], ids=lambda command: command[0])
def test_a_wrong_setting_of_a_file_is_named_with_the_file(edgepop, tmp_path, monkeypatch, command, config, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    record = {"recipe": "edge-popup-digits", "started": "", "data": None, "config": config, "environment": {}}
    (tmp_path / "run" / "config.json").write_text(json.dumps(record))
    result = edgepop(*command, "run")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"edgepop: run/config.json: {words}") and result.stderr.count("\n") == 1


def test_the_version_is_shown(edgepop):
    result = edgepop("--version")
    assert (result.exit_code, result.stdout) == (0, f"edgepop_kernels {ek.__version__}\n")
