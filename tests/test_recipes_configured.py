"""Settings from files: hidden-networks' YAML, key by key, and a run's own."""

import json
import math

import pytest
import torch
from recipe_runs import NAME, RECIPE, assert_same, start, state
from test_recipes_cli import assert_refused
from torch import nn
from typer.testing import CliRunner

from edgepop_kernels.recipes import cli, configured, flat_yaml, hidden_networks
from edgepop_kernels.recipes.errors import ConfigError, UserError
from edgepop_kernels.recipes.trainer import make_optimizer

CONV = dict(
    arch="Conv4", data="/data", set="CIFAR10", name="x", optimizer="sgd", lr=0.1, lr_policy="cosine_lr", epochs=100,
    weight_decay=0.0001, momentum=0.9, batch_size=128, conv_type="SubnetConv", bn_type="NonAffineBatchNorm",
    freeze_weights=True, prune_rate=0.3, init="signed_constant", workers=4,
)  # fmt: skip
SAMPLE = CONV | dict(conv_type="SampleSubnetConv", prune_rate=-1, lr=200, weight_decay=0, init="xavier_normal")
DENSE = {k: v for k, v in CONV.items() if k not in ("freeze_weights", "prune_rate", "init", "lr_policy")}
DENSE |= dict(conv_type="DenseConv", optimizer="adam", lr=0.0003)
IMAGENET = CONV | dict(
    arch="ResNet50", set="ImageNet", lr=0.256, warmup_length=5, momentum=0.875, label_smoothing=0.1, mode="fan_in",
    nonlinearity="relu", weight_decay=0.000030517578125, batch_size=256, workers=20, init="kaiming_normal",
)  # fmt: skip
CIFAR18 = CONV | dict(arch="cResNet18", conv_type="DenseConv", bn_type="LearnedBatchNorm", freeze_weights=False)


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    yield
    torch.set_num_threads(before)


def text(values):
    """A file of the form of theirs: comments, blank lines, capitals in True."""
    lines = [f"{key}: {'' if value is None else value}" for key, value in values.items()]
    return "# a comment\n" + "\n\n".join(lines[:3]) + "\n# ===== Steps ==== #\n" + " # 0.5\n".join(lines[3:])


def written(folder, values, name="conv4_x.yml"):
    (folder / name).write_text(text(values))
    return folder / name


def read(folder, values, **asked):
    return configured.read(written(folder, values), asked)


def settings(**expected):
    return pytest.param(expected.pop("values"), expected.pop("asked", {}), expected, id=str(expected)[:60])


@pytest.mark.parametrize(
    ("values", "asked", "expected"),
    [
        settings(
            values=CONV,
            method="edge-popup",
            model="conv4",
            dataset="cifar10",
            keep=0.3,
            init="signed_constant",
            scale="none",
            trains="masks",
            schedule="cosine",
            lr=0.1,
            weight_decay=1e-4,
            momentum=0.9,
            epochs=100,
            batch_size=128,
            validation=0,
            warmup=0,
            optimizer="sgd",
            nesterov=False,
            norm_decay=False,
            pretrained="none",
        ),
        settings(values=CONV | dict(prune_rate=-1), asked={"keep": "0.7"}, keep=0.7),
        settings(values=CONV, asked={"keep": "0.7", "lr": "0.2"}, keep=0.7, lr=0.2),
        settings(values=CONV | dict(scale_fan=True), scale="hidden-networks", keep=0.3),
        settings(values=CONV | dict(scale_fan=True, init="xavier_normal"), scale="none", init="xavier_normal"),
        settings(values=CONV | dict(scale_fan=True, init="kaiming_uniform"), scale="none", init="kaiming_uniform"),
        settings(values=CONV | dict(init="standard"), init="default"),
        settings(values=CONV | dict(mode="fan_out", nonlinearity="tanh"), mode="fan_out", nonlinearity="tanh"),
        settings(values=CONV | dict(init="kaiming_normal", nonlinearity="leaky_relu"), nonlinearity="relu"),
        settings(values=CONV | dict(freeze_weights=False), trains="both"),
        settings(values=CONV | dict(first_layer_dense=True, last_layer_dense=True), first_dense=True, last_dense=False),
        settings(values=CONV | dict(first_layer_type="DenseConv"), first_dense=True),
        settings(values=CONV | dict(first_layer_type="SubnetConv"), first_dense=False),
        settings(values=CONV | dict(lr_policy="constant_lr"), schedule="constant"),
        settings(values=CONV | dict(lr_policy=None), schedule="constant"),
        settings(
            values=CONV | dict(lr_policy="multistep_lr", lr_adjust=20, lr_gamma=0.5, warmup_length=5),
            schedule="multistep",
            multistep_every=20,
            multistep_factor=0.5,
            warmup=0,
        ),
        settings(values=CONV | dict(lr_policy="multistep_lr", multistep_lr_adjust=20), multistep_every=20),
        settings(values=CONV | dict(nesterov=True, seed=4, save_every=5), nesterov=True, seed=4, save_every=5),
        settings(values=CONV | dict(arch="Conv4Wide", width_mult=0.3), model="conv4", width_multiplier=0.3),
        settings(values=CONV | dict(width_mult=0.3), width_multiplier=1.0),
        settings(values=CONV | dict(arch="FC", set="MNIST"), model="mlp", dataset="mnist", widths=(300, 100)),
        settings(
            values=SAMPLE,
            method="supermask",
            rule="bernoulli",
            at_eval="sample",
            scores_init="kaiming",
            lr=200.0,
            init="xavier_normal",
            trains="masks",
            weight_decay=0.0,
        ),
        settings(values=SAMPLE | dict(score_init_constant=0.5), scores_init=0.5),
        settings(
            values=SAMPLE | dict(init="kaiming_normal", scale_fan=True, prune_rate=0.2),
            scale="hidden-networks",
            scale_keep=0.2,
        ),
        settings(values=SAMPLE | dict(init="kaiming_normal", scale_fan=True, prune_rate=0), scale="none"),
        settings(
            values=DENSE,
            method="dense",
            init="kaiming_normal",
            schedule="constant",
            lr=3e-4,
            weight_decay=0.0,
            optimizer="adam",
        ),
        settings(
            values=CIFAR18, method="dense", model="cifar-resnet18", norm="affine", norm_decay=True, weight_decay=1e-4
        ),
        settings(values=CIFAR18 | dict(weight_decay=0), norm_decay=False),
        settings(values=CIFAR18 | dict(last_layer_dense=True), last_dense=True),
        settings(
            values=IMAGENET,
            model="resnet50",
            dataset="imagenet",
            image_size=224,
            warmup=5,
            label_smoothing=0.1,
            momentum=0.875,
            weight_decay=1 / 32768,
            workers=20,
            norm="non-affine",
        ),
        settings(values=IMAGENET | dict(arch="WideResNet101_2"), model="wide-resnet101-2"),
        settings(values=IMAGENET | dict(bn_type="LearnedBatchNorm", no_bn_decay=True), norm="affine", norm_decay=False),
        settings(values=IMAGENET | dict(last_layer_dense=True, num_classes=1000), last_dense=True),
        settings(
            values=IMAGENET | dict(set="TinyImageNet", last_layer_dense=True, num_classes=200),
            dataset="tinyimagenet",
            image_size=224,
            last_dense=True,
        ),
        settings(
            values=CONV | dict(conv_type="FixedSubnetConv", freeze_weights=False, prune_rate=0.75, scale_fan=True),
            asked={"pretrained": "x.pth"},
            trains="weights",
            keep=0.25,
            scale="paper",
            pretrained="x.pth",
        ),
        settings(values=CONV | dict(pretrained="a/model_best.pth"), pretrained="a/model_best.pth"),
    ],
)
def test_what_a_configuration_means(tmp_path, values, asked, expected):
    found = read(tmp_path, values, **asked)
    recorded = {name: getattr(found.recipe, name) for name in expected}
    assert recorded == expected
    assert found.name == "conv4_x"
    below = {"CIFAR10": "cifar10", "MNIST": "mnist", "ImageNet": "imagenet", "TinyImageNet": "tinyimagenet"}[
        values["set"]
    ]
    assert str(found.data) == f"/data/{below}"
    told = {line.split(":")[0].split(",")[0].strip() for line in found.lines[1:]}
    assert set(values) <= told  # each has its line


@pytest.mark.parametrize(
    ("values", "key", "words"),
    [
        (CONV | dict(conv_type="RGConv"), "conv_type", "no layer of its utils/conv_type.py, as it is now; .*'RGConv'"),
        ({k: v for k, v in CONV.items() if k != "conv_type"}, "conv_type", "expected one of SubnetConv, .*got None"),
        ({k: v for k, v in CONV.items() if k != "bn_type"}, "bn_type", "no such norm"),
        (CONV | dict(prune_rate=-1), "prune_rate", "add --keep, the fraction kept, got -1"),
        (CONV | dict(prune_rate=0.0), "prune_rate", "SubnetConv keeps nothing then"),
        (CONV | dict(prune_rate=1.5), "prune_rate", r"expected a number in \(0, 1\], got 1.5"),
        (CONV | dict(prune_rate="half"), "prune_rate", "expected a number"),
        (CONV | dict(conv_type="DenseConv"), "freeze_weights", "nothing would train"),
        (CONV | dict(conv_type="FixedSubnetConv", freeze_weights=False), "conv_type", "without pretrained"),
        (
            CONV | dict(conv_type="FixedSubnetConv", freeze_weights=False, prune_rate=0.1, pretrained="x.pth"),
            "prune_rate",
            "a layer would keep one weight more or less under --keep 0.9, got 0.1",
        ),
        (CONV | dict(trainer="lottery"), "trainer", "keeps nothing in its first six epochs"),
        (CONV | dict(trainer="ss"), "trainer", "ends there with a TypeError"),
        (CONV | dict(trainer="cs"), "trainer", "no such trainer"),
        (CONV | dict(arch="VGG"), "arch", "no such network"),
        (CONV | dict(set="BigCIFAR10"), "set", "no such data set here"),
        (CONV | dict(set="ImageNet"), "set", "Conv4 takes the images of CIFAR10 alone"),
        (IMAGENET | dict(set="CIFAR10"), "arch", "ResNet50 has 1000 answers there, for the 10 classes of CIFAR10"),
        (IMAGENET | dict(set="TinyImageNet"), "arch", "ResNet50 has 1000 answers there, for the 200 classes of Tiny"),
        (IMAGENET | dict(last_layer_dense=True), "num_classes", "ResNet50 has 10 answers there, for the 1000"),
        (IMAGENET | dict(first_layer_dense=True), "first_layer_dense", "starts as torch's then"),
        (IMAGENET | dict(nonlinearity="tanh"), "nonlinearity", "relu alone"),
        (CONV | dict(first_layer_type="SampleSubnetConv"), "first_layer_type", "expected SubnetConv or DenseConv"),
        (CONV | dict(init="ones"), "init", "no such init"),
        (CONV | dict(mode="fan"), "mode", "expected one of fan_in, fan_out"),
        (CONV | dict(nonlinearity="gelu"), "nonlinearity", "expected one of linear, "),
        (CONV | dict(optimizer="rmsprop"), "optimizer", "expected sgd or adam"),
        (CONV | dict(lr_policy="step_lr"), "lr_policy", "no such policy"),
        (CONV | dict(lr="fast"), "lr", "expected a number above 0"),
        (CONV | dict(arch="[Conv4]"), "arch", "expected one value, got"),
        (CONV | dict(save_every="often"), "save_every", "expected a whole number, got 'often'"),
        (CONV | dict(arch="Conv4Wide", width_mult="wide"), "width_mult", "expected a number above 0"),
        (
            SAMPLE | dict(score_init_constant="x"),
            "score_init_constant",
            r"expected a number in \[-20, 20\], or kaiming",
        ),
        (CONV | dict(momentum=True), "momentum", r"expected a number in \[0, 1\), got True"),
        (CONV | dict(epochs=0), "epochs", "expected a whole number, at least 1"),
        (CONV | dict(nesterov=True, momentum=0), "nesterov", "expected false with momentum 0"),
        (SAMPLE | dict(init="kaiming_normal", scale_fan=True), "prune_rate", "scale_fan multiplies fans"),
        (CIFAR18 | dict(no_bn_decay=True), "no_bn_decay", "the norms of shortcuts"),
        (CONV | dict(resume="x.pth"), "resume", "pretrained starts from its weights"),
        (CONV | dict(start_epoch=3), "start_epoch", "a run begins with its first epoch"),
        (CONV | dict(evaluate=True), "evaluate", "edgepop import"),
    ],
)
def test_what_no_recipe_does_is_refused_with_its_key_and_the_reason(tmp_path, values, key, words):
    with pytest.raises(UserError, match=rf"conv4_x\.yml: {key}: .*{words}"):
        read(tmp_path, values)


def test_every_key_is_told_with_what_it_became(tmp_path):
    values = CONV | dict(baseline="cs", low_data=1, multigpu=[0, 1], seed=None, lr="1e-1")
    lines = read(tmp_path, values, lr="0.2").lines
    told = {line.partition("  ")[0].strip() or line.strip(): line for line in lines}
    rows = [" ".join(line.split()) for line in lines[1:]]
    assert lines[0] == f"{tmp_path / 'conv4_x.yml'}, a configuration of hidden-networks:"
    for row in (
        "arch: Conv4 --model conv4",
        "lr: 0.1 --lr 0.2 from the command line",
        "prune_rate: 0.3 --keep 0.3; the fraction kept, of this layer",
        "bn_type: NonAffineBatchNorm not needed: no norms in this network",
        "data: /data --data /data/cifar10, unless it is given",
        "workers: 4 not needed: the images are in memory",
        "multigpu: [0, 1] not needed: one device, or several by torchrun",
        "baseline: cs not read: no option of that program",
        "low_data: 1 not read: that program reads it nowhere",
        "seed: any there; --seed",
        "warmup_length, left out --warmup 0",
    ):
        assert row in rows, told
    column = max(len(line.split("  ")[1]) for line in lines[1:]) + 2  # of what they became
    assert all(line[column : column + 2] == "  " and line[column + 2] != " " for line in lines[1:])


def test_the_optimizer_and_the_rates_are_that_programs(tmp_path):
    """Its groups decay norms and biases with all else; its multistep has no warm-up."""
    recipe = read(tmp_path, CIFAR18 | dict(last_layer_dense=True, nesterov=True)).recipe.override(width_multiplier=0.1)
    model = recipe.network((3, 32, 32), 10)
    groups = make_optimizer(recipe, model).param_groups
    assert all((g["weight_decay"], g["momentum"], g["nesterov"]) == (1e-4, 0.9, True) for g in groups)
    assert sum(len(g["params"]) for g in groups) == len([p for p in model.parameters() if p.requires_grad])
    assert any(isinstance(m, nn.BatchNorm2d) and m.affine for m in model.modules())
    steps = read(tmp_path, CONV | dict(lr_policy="multistep_lr", lr_adjust=30, lr_gamma=0.1, warmup_length=5)).recipe
    assert [steps.lr_at(e) for e in (0, 29, 30, 60, 99)] == [0.1 * 0.1 ** (e // 30) for e in (0, 29, 30, 60, 99)]
    cosine = read(tmp_path, IMAGENET).recipe
    assert cosine.lr_at(2) == 0.256 * 3 / 5
    assert cosine.lr_at(50) == pytest.approx(0.128 * (1 + math.cos(math.pi * 45 / 95)))


QUICK = ["--epochs", "1", "--no-plots", "--no-step-times", "--backend", "reference", "--threads", "1"]
QUICK += ["--limit-images", "64"]


def edgepop(*arguments):
    return CliRunner().invoke(cli.app, list(map(str, arguments)))


def test_a_configuration_is_trained_and_so_is_what_that_run_recorded(tmp_path):
    file = written(tmp_path, CONV | dict(arch="FC", set="MNIST", freeze_weights=False, save_every=1), "fc.yml")
    result = edgepop("train", "--config", file, "--dataset", "digits", "--widths", "16", *QUICK)
    assert result.exit_code == 0, result.output
    assert "fc.yml, a configuration of hidden-networks:" in result.stdout
    assert "freeze_weights: False" in result.stdout and "--trains both" in result.stdout
    run = tmp_path / "runs" / "fc"
    record = json.loads((run / "config.json").read_text())
    assert record["recipe"] == "fc" and record["config"]["trains"] == "both" and record["config"]["widths"] == [16]
    for number, place in enumerate((run, run / "config.json"), 1):
        result = edgepop("train", "--config", place, "--no-plots", "--no-step-times")
        assert result.exit_code == 0, result.output
        again = tmp_path / "runs" / f"fc-{number}"
        for name in ("first", "last", "epoch-1"):
            assert_same(state(again, name), state(run, name), name)
    result = edgepop("train", "--config", run, "--seeds", "2", "--lr", "0.2", "--no-plots", "--no-step-times")
    assert result.exit_code == 0, result.output
    assert state(tmp_path / "runs" / "fc-seed1", "first")["config"]["seed"] == 1


def test_a_comparison_is_repeated_from_its_own_settings(tmp_path):
    few = ["--epochs", "1", "--widths", "8", "--limit-images", "64", "--no-plots", "--threads", "1"]
    result = edgepop("train", "supermask-init-digits", *few)
    assert result.exit_code == 0, result.output
    result = edgepop("train", "--config", "runs/supermask-init-digits", "--no-plots")
    assert result.exit_code == 0, result.output
    tables = [
        (tmp_path / "runs" / name / "curves.csv").read_text()
        for name in ("supermask-init-digits", "supermask-init-digits-1")
    ]
    assert tables[0] == tables[1]


def test_what_cannot_be_configured_is_refused(tmp_path):
    file = written(tmp_path, CONV)
    assert_refused(edgepop("train", NAME, "--config", file), "RECIPE: --config has its own, leave it out beside that")
    start(tmp_path / "runs", RECIPE.override(epochs=1))
    run = tmp_path / "runs" / NAME
    assert_refused(edgepop("train", "--resume", run, "--config", file), "--config: a resumed run has its own")
    assert_refused(edgepop("train", "--config", "none.yml"), "cannot read none.yml: No such file")
    assert_refused(
        edgepop("train", "--config", "x.toml"), "--config: expected a .yml file, a run folder or its config.json"
    )
    assert_refused(edgepop("train", "--config", tmp_path), "is not a run folder")
    (tmp_path / "b.yml").write_bytes(b"lr: \xff")
    assert_refused(edgepop("train", "--config", "b.yml"), "b.yml is no text")
    assert_refused(edgepop("train", "--config", file), "the data folder /data/cifar10 does not exist")
    assert_refused(edgepop("train", "--config", file, "--keep", "0"), "keep: expected a number in (0, 1], got 0.0")
    assert_refused(edgepop("train", "--config", run, "--at-eval", "round"), "--at-eval: the method edge-popup has no")
    with pytest.raises(ConfigError):
        configured.chosen("x", file, None, {})


def test_flat_yaml():
    found = flat_yaml.parse(
        "---\n# first\na: 1\nb: -1 # Override\nc:   1e-4\nd: 0.000030517578125\ne: True\nf: false\n"
        "g:\nh: null\ni: None\nj: ~\n"
        "k: 'a # b'\nl: \"x: y\"   # z\nm: it's a#b\nn: [0, 1]\no: []\np: /mnt/disk1 # ?\n"
        "q: 1.\nr: .5\ns-t: +3\n\n  \n",
        "x",
    )  # fmt: skip
    assert found == dict(
        a=1, b=-1, c=1e-4, d=1 / 32768, e=True, f=False, g=None, h=None, i=None, j=None, k="a # b", l="x: y",
        m="it's a#b", n=[0, 1], o=[], p="/mnt/disk1", q=1.0, r=0.5,
    ) | {"s-t": 3}  # fmt: skip
    assert [type(found[k]) for k in "abcde"] == [int, int, float, float, bool]
    assert flat_yaml.parse("", "x") == flat_yaml.parse("# nothing\n", "x") == {}


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        ("a: 1\na: 2", 2, "a is there twice"),
        ("a: 1\n  b: 2", 2, "expected `key: value` from the first column on, got 'b: 2'"),
        ("- a", 1, "expected `key: value`"),
        ("a:1", 1, "expected `key: value`"),
        ("a: {b: 1}", 1, "expected a number, a word or text in quotes, got '{b: 1}'"),
        ("a: |", 1, "expected a number, a word or text in quotes"),
        ("a: &x 1", 1, "expected a number, a word or text in quotes"),
        ("a: *x", 1, "expected a number, a word or text in quotes"),
        ("a: !!int 1", 1, "expected a number, a word or text in quotes"),
        ("a: 'b", 1, "expected a number, a word or text in quotes"),
        ('a: "b\\n"', 1, "expected text in quotes without"),
        ("a: b: c", 1, "expected a number, a word or text in quotes"),
        ("a: [1", 1, "expected a number, a word or text in quotes"),
        ("a: [[1], 2]", 1, "expected a number, a word or text in quotes"),
        ("a: 1\n---\nb: 2", 2, "expected `key: value`"),
    ],
)
def test_more_of_yaml_is_refused_with_its_line(content, line, words):
    with pytest.raises(UserError) as error:
        flat_yaml.parse(content, "x.yml")
    assert str(error.value).startswith(f"x.yml, line {line}: ") and words in str(error.value)


def test_every_default_is_a_key_that_is_told(tmp_path):
    found = read(tmp_path, {"conv_type": "DenseConv", "bn_type": "LearnedBatchNorm", "data": "/data"})
    assert found.recipe.model == "resnet18" and found.recipe.schedule == "constant" and found.recipe.epochs == 90
    told = [line.split(",")[0].strip() for line in found.lines if ", left out" in line]
    assert set(told) == set(hidden_networks.DEFAULTS) - {"conv_type", "bn_type", "score_init_constant"}
