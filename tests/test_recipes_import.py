"""Starts from a checkpoint, and checkpoints of hidden-networks, read by position."""

import io
from pathlib import Path

import pytest
import torch
from recipe_runs import NAME, RECIPE, assert_same_run, quiet, resume, start, state
from rich.console import Console
from test_recipes_cli import assert_refused
from test_recipes_data import cifar10_files, write_files
from typer.testing import CliRunner

import edgepop_kernels as ek
from edgepop_kernels.recipes import checkpoint, cli, imported, pretrained, registry
from edgepop_kernels.recipes.errors import UserError
from edgepop_kernels.recipes.report import Report

SMALL = dict(dataset="cifar10", width_multiplier=0.05)


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    yield
    torch.set_num_threads(before)


def theirs(model, file="model_best.pth", prefix="module.", extra=()):
    """Writes the checkpoint that hidden-networks' program would write of this network; its state_dict."""
    names = iter(range(1000))
    entries = ek.interop.hidden_networks.state_dict(model)
    entries = {n: v.clone() for n, v in entries.items() if not n.endswith("_extra_state")}
    modules = {name.rpartition(".")[0]: None for name in entries}
    numbers = {name: next(names) for name in modules}
    renamed = {f"{prefix}net.{numbers[n.rpartition('.')[0]]}.{n.rpartition('.')[2]}": v for n, v in entries.items()}
    torch.save({"epoch": 90, "arch": "x", "state_dict": renamed | dict(extra), "optimizer": {"state": {}}}, file)
    return renamed


def trained(name, **settings):
    """The recipe, and a network of it with statistics other than those at the start."""
    recipe = registry.find(name).recipe.override(**settings)
    torch.manual_seed(5)
    model = recipe.network((3, 32, 32), 10)
    with torch.no_grad():
        model(torch.randn(8, 3, 32, 32))
    return recipe, model.eval()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("edge-popup-conv4", {"keep": 0.3}),
        ("edge-popup-cifar-resnet18", {}),
        ("edge-popup-cifar-resnet18", {"norm": "affine", "first_dense": True, "last_dense": True}),
        ("edge-popup-conv2", {"trains": "weights", "keep": 0.3}),
        ("edge-popup-resnet50", {}),
        ("supermask-bernoulli-conv2", {"scores_init": "kaiming"}),
        ("dense-cifar-resnet18", {}),
    ],
    ids=str,
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_checkpoint_of_hidden_networks_is_read_by_position(name, settings, prefix):
    recipe, model = trained(name, **SMALL, **settings)
    renamed = theirs(model, prefix=prefix)
    lines = imported.write(Path("model_best.pth"), recipe.override(seed=9), Path("ours.pt"))
    assert lines[0].startswith(f"model_best.pth, by position: read {len(renamed)}: ")
    saved = checkpoint.load(Path("ours.pt"))
    again = recipe.network((3, 32, 32), 10).eval()
    again.load_state_dict(saved["model"])
    x = torch.randn(3, 3, 32, 32)
    outputs = []
    for network in (again, model):
        torch.manual_seed(1)  # masks may be drawn
        outputs.append(network(x))
    assert torch.equal(*outputs)
    assert registry.from_dict(saved["config"]) == recipe.override(seed=9)


def edgepop(*arguments):
    return CliRunner().invoke(cli.app, list(map(str, arguments)))


def test_imported_it_is_evaluated_exported_and_trained_on(tmp_path):
    write_files(tmp_path / "data", cifar10_files(binary=True)[0])
    _, model = trained("edge-popup-conv2", **SMALL, keep=0.3)
    theirs(model)
    options = ["--width-multiplier", 0.05, "--keep", 0.3]
    result = edgepop("import", "model_best.pth", "--recipe", "edge-popup-conv2", *options)
    assert result.exit_code == 0, result.output
    assert result.stdout == "model_best.pt\n"
    result = edgepop("eval", "model_best.pt", "--data", "data")
    assert result.exit_code == 0, result.output
    assert "model_best.pt, imported from model_best.pth: conv2 on cifar10" in result.stdout
    assert "note: which cifar10 data it was trained on is not known" in result.stdout
    result = edgepop("export", "model_best.pt", "--output", "plain.pt")
    assert result.exit_code == 0, result.output
    plain = torch.load("plain.pt", weights_only=True)
    assert torch.equal(plain["conv1.weight"], model.conv1.effective_weight())
    result = edgepop("eval", "plain.pt", "--data", "data")
    assert result.exit_code == 0, result.output
    assert "plain.pt, from model_best.pt, imported from model_best.pth" in result.stdout
    quick = ["--epochs", 1, "--no-plots", "--no-step-times", "--backend", "reference", "--data", "data"]
    for file in ("model_best.pt", "model_best.pth"):
        result = edgepop(
            "train", "edge-popup-conv2", *options, *quick, "--pretrained", file, "--name", Path(file).suffix[1:]
        )
        assert result.exit_code == 0, result.output
        first = state(tmp_path / "runs" / Path(file).suffix[1:], "first")
        assert first["config"]["pretrained"] == str(tmp_path / file)
        for name in ("conv1.scores", "conv1.weight", "fc3.weight"):
            assert torch.equal(first["model"][name], model.state_dict()[name])
        how = "by name" if file.endswith(".pt") else "by position"
        assert f"{tmp_path / file}, {how}: read 10: " in result.stdout


def test_a_run_starts_from_another_and_resumes_without_its_file(tmp_path):
    start(tmp_path / "a")
    last = tmp_path / "a" / NAME / "last.pt"
    output = io.StringIO()
    settings = RECIPE.override(pretrained=str(last), keep=0.25)
    start(tmp_path / "b", settings, Report(Console(file=output, width=200)))
    assert f"{last}, by name: read 4: 2 weight, 2 scores" in output.getvalue()
    first, origin = state(tmp_path / "b" / NAME, "first")["model"], state(tmp_path / "a" / NAME)["model"]
    for name in ("fc1.weight", "fc1.scores"):
        assert torch.equal(first[name], origin[name])
    network = settings.network((1, 8, 8), 10)
    network.load_state_dict(first)
    assert network.fc1.keep == 0.25  # the recipe's, not that of the run it starts from
    start(tmp_path / "c", settings, quiet())
    last.unlink()
    resume(tmp_path / "c" / NAME / "first.pt")
    assert_same_run(tmp_path / "c" / NAME, tmp_path / "b" / NAME)


def test_fixed_subnets_follow_from_the_scores_that_are_read(tmp_path):
    start(tmp_path / "a")
    settings = dict(pretrained=str(tmp_path / "a" / NAME / "last.pt"), trains="weights", epochs=1)
    start(tmp_path / "b", RECIPE.override(**settings))
    scores = state(tmp_path / "a" / NAME)["model"]["fc1.scores"]
    for name in ("first", "last"):
        bits = state(tmp_path / "b" / NAME, name)["model"]["fc1.mask_bits"]
        assert torch.equal(ek.unpack_mask(bits, scores.shape), ek.mask(scores, ek.TopK(0.5)))
    # And their weights go on under scores.
    settings = dict(pretrained=str(tmp_path / "b" / NAME / "last.pt"), epochs=1)
    start(tmp_path / "c", RECIPE.override(**settings))
    assert torch.equal(state(tmp_path / "c" / NAME, "first")["model"]["fc1.scores"], scores)


def test_a_dense_checkpoint_gives_weights_and_leaves_the_scores(tmp_path):
    _, model = trained("dense-conv2", **SMALL)
    theirs(model)
    masked = registry.find("edge-popup-conv2").recipe.override(**SMALL)
    network = masked.network((3, 32, 32), 10)
    scores = network.conv1.scores.clone()
    entries = pretrained.read(tmp_path / "model_best.pth")
    assert not pretrained.load(masked, network, entries, "it").whole
    assert torch.equal(network.conv1.weight, model.conv1.weight) and torch.equal(network.conv1.scores, scores)
    with pytest.raises(UserError, match=r"model_best.pth does not fit: .*missing 5: conv1.scores"):
        imported.write(tmp_path / "model_best.pth", masked, tmp_path / "ours.pt")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"width_multiplier": 0.1}, r"its entry 1 is net.0.weight 3x3x3x3, where the network has conv1.weight 6x3x3x3"),
        ({"model": "conv4"}, r"its entry 5 is net.2.weight 12x768x1x1, where the network has conv3.weight 6x3x3x3"),
        ({"last_dense": True}, r"where the network has fc3.bias|its entry"),
        ({"trains": "weights"}, None),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(tmp_path, settings, words):
    _, model = trained("edge-popup-conv2", **SMALL)
    theirs(model)
    recipe = registry.find("edge-popup-conv2").recipe.override(**SMALL | settings)
    if words is None:
        imported.write(tmp_path / "model_best.pth", recipe, tmp_path / "ours.pt")
        return
    with pytest.raises(UserError, match=words):
        imported.write(tmp_path / "model_best.pth", recipe, tmp_path / "ours.pt")
    assert not (tmp_path / "ours.pt").exists()


def test_names_of_which_some_are_the_networks_are_read_by_position(tmp_path):
    """Its residual networks of CIFAR have torchvision's names, but for the shortcuts."""
    recipe, model = trained("dense-cifar-resnet18", **SMALL)
    entries = {n.replace("downsample", "shortcut"): v for n, v in model.state_dict().items()}
    torch.save({"state_dict": entries}, "x.pth")
    lines = imported.write(Path("x.pth"), recipe, Path("x.pt"))
    assert lines[0].startswith("x.pth, by position: read 121: ")
    found = checkpoint.load(Path("x.pt"))["model"]
    assert all(torch.equal(found[n], v) for n, v in model.state_dict().items())
    del entries["layer4.0.shortcut.0.weight"]
    torch.save({"state_dict": entries}, "x.pth")
    with pytest.raises(
        UserError, match=r"entry \d+ is layer4.0.shortcut.1.weight 24, where the .* layer4.0.downsample.0"
    ):
        pretrained.load(recipe, recipe.network((3, 32, 32), 10), pretrained.read(Path("x.pth")), "x.pth")


def test_what_cannot_be_read_or_written_is_refused(tmp_path):
    _, model = trained("edge-popup-conv2", **SMALL)
    theirs(model)
    options = ["--recipe", "edge-popup-conv2", "--width-multiplier", 0.05]
    run = ["import", "model_best.pth", *options, "--output"]
    assert "expected a name ending in .pt" in assert_refused(edgepop(*run, "x.pth"))
    (tmp_path / "x.pt").write_text("mine")
    assert "it is there and is no import" in assert_refused(edgepop(*run, "x.pt"))
    assert (tmp_path / "x.pt").read_text() == "mine"
    assert "cannot read none.pth: No such file" in assert_refused(edgepop("import", "none.pth", *options))
    torch.save({"model": torch.nn.Linear(2, 2)}, "code.pth")
    assert "could run code" in assert_refused(edgepop("import", "code.pth", *options))
    words = "--dataset: expected one of mnist, cifar10, imagenet, tinyimagenet, which hidden-networks trains on"
    assert words in assert_refused(edgepop("import", "model_best.pth", "--recipe", NAME))
    assert "there is no recipe 'x'" in assert_refused(edgepop("import", "model_best.pth", "--recipe", "x"))
    for _ in range(2):  # an import may be repeated
        assert edgepop(*run, "again.pt").exit_code == 0
    assert_refused(edgepop("train", NAME, "--pretrained", "none.pt"))
    words = "model_best.pth does not fit: its entry 1 is net.0.weight 3x3x3x3, where the network has fc1.weight 300x64"
    assert words in assert_refused(edgepop("train", NAME, "--pretrained", "model_best.pth"))
    assert not (tmp_path / "runs").exists()
    fixed = {n: (v > 0).float() if n.endswith("scores") else v for n, v in theirs(model).items()}
    torch.save({"state_dict": fixed}, "fixed.pth")
    assert "holds fixed masks" in assert_refused(edgepop("import", "fixed.pth", *options))


def test_entries_of_a_checkpoint_by_plain_names():
    entries = {"module.a.weight": torch.ones(2), "module._orig_mod.b": torch.zeros(1), "epoch": 3}
    found = ek.interop.read_state_dict({"state_dict": entries, "optimizer": {}})
    assert list(found) == ["a.weight", "b"]
    with pytest.raises(ValueError, match=r"^file: a is in it under two names"):
        ek.interop.read_state_dict({"module.a": torch.ones(1), "a": torch.ones(1)})
