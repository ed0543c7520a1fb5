"""Configurations of hidden-networks (Ramanujan et al. 2020) as recipes: every key read exactly, or refused by name.

Its program sets its options to the values of a YAML file, and knows ``prune_rate`` as the fraction kept. What is read
here is what that program does with an option, which is not always what its help says.
"""

from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch

import edgepop_kernels as ek

from . import cli_settings, models, registry
from .config import Recipe
from .data import PHOTOGRAPHS
from .dense import plain_network
from .errors import ConfigError, UserError

# Its options' defaults, where something follows from them.
DEFAULTS: dict[str, Any] = {
    "set": "ImageNet",
    "arch": "ResNet18",
    "conv_type": None,
    "freeze_weights": False,
    "prune_rate": 0.0,
    "bn_type": None,
    "init": "kaiming_normal",
    "epochs": 90,
    "batch_size": 256,
    "optimizer": "sgd",
    "lr": 0.1,
    "lr_policy": "constant_lr",
    "warmup_length": 0,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "no_bn_decay": False,
    "score_init_constant": None,
}

_RESIDUAL = {
    "ResNet18": "resnet18",
    "ResNet50": "resnet50",
    "ResNet101": "resnet101",
    "WideResNet50_2": "wide-resnet50-2",
    "WideResNet101_2": "wide-resnet101-2",
}
_CIFAR = {"cResNet18": "cifar-resnet18", "cResNet50": "cifar-resnet50", "cResNet101": "cifar-resnet101"}
_CIFAR |= {f"Conv{depth}": f"conv{depth}" for depth in (2, 4, 6, 8)}
_WIDE = {"Conv4Wide": "conv4", "Conv6Wide": "conv6"}
ARCHITECTURES = {"FC": "mlp"} | _CIFAR | _WIDE | _RESIDUAL
# Its name -> ours, its folder below `data`, and how many classes there are.
SETS = {
    "MNIST": ("mnist", "mnist", 10),
    "CIFAR10": ("cifar10", "cifar10", 10),
    "ImageNet": ("imagenet", "imagenet", 1000),
    "TinyImageNet": ("tinyimagenet", "tinyimagenet", 200),
}
METHODS = {
    "SubnetConv": "edge-popup",
    "FixedSubnetConv": "edge-popup",
    "SampleSubnetConv": "supermask",
    "DenseConv": "dense",
}
# Their deviation follows a fan; the last has no scale_fan.
_FOLLOW_FAN = ("kaiming_normal", "signed_constant", "unsigned_constant", "kaiming_uniform")
_INITS = {name: name for name in (*_FOLLOW_FAN, "xavier_normal", "xavier_constant")} | {"standard": "default"}
_POLICIES = {"cosine_lr": "cosine", "constant_lr": "constant", None: "constant", "multistep_lr": "multistep"}
_NORMS = {"LearnedBatchNorm": "affine", "NonAffineBatchNorm": "non-affine"}


class Reading(NamedTuple):
    """A recipe, the folder of its data (None: not said), and a line on each key."""

    recipe: Recipe
    data: Path | None
    lines: list[str]


def read(values: dict[str, Any], asked: dict[str, Any], source: str) -> Reading:
    """The recipe of a configuration, with the settings ``asked`` for beside it in the place of its own. Raises
    UserError, naming ``source`` and the key, for what no recipe does as that program would."""
    return _Reader(values, asked, source).reading()


class _Reader:
    """``settings`` are ours; ``how`` says for a key which settings it gave, or why it is not needed.

    Of its network: residual, whether there are shortcuts; affine, whether its norms learn; last_dense.
    """

    method: str
    model: str
    residual: bool
    affine: bool
    last_dense: bool
    folder: Path | None

    def __init__(self, values: dict[str, Any], asked: dict[str, Any], source: str):
        self.values, self.asked, self.source = values, asked, source
        self.settings: dict[str, Any] = {"validation": 0}
        self.how: dict[str, tuple[tuple[str, ...], str]] = {}

    def value(self, key: str) -> Any:
        return self.values.get(key, DEFAULTS.get(key))

    def refuse(self, key: str, why: str) -> NoReturn:
        raise UserError(f"{self.source}: {key}: {why}, got {self.value(key)!r}")

    def set(self, key: str, note: str = "", **settings: Any) -> None:
        self.settings |= settings
        self.how[key] = tuple(settings), note

    def drop(self, why: str, *keys: str) -> None:
        for key in keys:
            self.how[key] = (), why

    def choose(self, key: str, table: dict[Any, Any], what: str) -> Any:
        if self.value(key) not in table:
            self.refuse(key, f"{what}; expected one of {', '.join(str(name) for name in table if name is not None)}")
        return table[self.value(key)]

    def reading(self) -> Reading:
        for key, value in self.values.items():
            if isinstance(value, list) and key != "multigpu":
                self.refuse(key, "expected one value")
        for part in (_network, _what_trains, _layers, _weights, _steps, _data, _rest):
            part(self)
        try:
            recipe = registry.METHODS[self.method]().override(**self.settings)
        except ConfigError as error:
            keys = [key for key, (names, _) in self.how.items() if error.setting in names]
            raise UserError(f"{self.source}: {', '.join(keys)}: {error.text}") from error
        if self.value("conv_type") == "FixedSubnetConv":
            self.check_counts(recipe)
        recipe = recipe.asked(**self.asked)
        return Reading(recipe, self.folder, self.lines(recipe))

    def check_counts(self, recipe: Recipe) -> None:
        """Counted from the weights that are kept, or from those removed as there, rounding may make one weight's
        difference."""
        rate, (_, _, classes) = self.value("prune_rate"), SETS[self.value("set")]
        image = (1, 28, 28) if recipe.dataset == "mnist" else (3, 32, 32)  # residual networks do not depend on it
        with torch.device("meta"):
            sizes = [p.numel() for p in plain_network(recipe, image, classes).parameters() if p.dim() > 1]
        if any(ek.kept_count(size, recipe.keep) != size - int(rate * size) for size in sizes):
            self.refuse("prune_rate", f"a layer would keep one weight more or less under --keep {recipe.keep}")

    def lines(self, recipe: Recipe) -> list[str]:
        rows = [(key, f"{key}: {_spelled(value)}") for key, value in self.values.items()]
        rows += [(key, f"{key}, left out") for key in self.how if key in DEFAULTS and key not in self.values]
        width = max(len(left) for _, left in rows)
        return [f"{left:<{width}}  {self.told(key, recipe)}" for key, left in rows]

    def told(self, key: str, recipe: Recipe) -> str:
        names, note = self.how.get(key, ((), "not read: no option of that program"))
        options = []
        for name in names:
            more = " from the command line" if name in self.asked else ""
            options.append(cli_settings.spelled(name, getattr(recipe, name)) + more)
        return "; ".join(filter(None, (" ".join(options), note)))


def _network(r: _Reader) -> None:
    arch, known = r.value("arch"), r.choose("set", SETS, "no such data set here")
    dataset, _, classes = known
    r.model = r.choose("arch", ARCHITECTURES, "no such network")
    r.residual = arch in _RESIDUAL or r.model.startswith("cifar-resnet")
    r.last_dense = bool(r.value("last_layer_dense")) and r.residual
    counted = r.values.get("num_classes", 10) if r.last_dense else 1000
    answers = counted if arch in _RESIDUAL else 10
    takes = {"FC": "MNIST"}.get(arch, "CIFAR10")
    if arch not in _RESIDUAL and r.value("set") != takes:
        r.refuse("set", f"{arch} takes the images of {takes} alone there")
    if answers != classes:
        key = "num_classes" if r.last_dense else "arch"
        r.refuse(key, f"{arch} has {answers} answers there, for the {classes} classes of {r.value('set')}")
    r.set("arch", model=r.model)
    size = {"image_size": 224} if dataset in PHOTOGRAPHS else {}
    r.set("set", "best epochs are picked by its test part", dataset=dataset, **size, validation=0)
    counts = r.last_dense and arch in _RESIDUAL
    r.drop("not needed: the data set has as many" if counts else "not read by this network", "num_classes")
    if arch in _WIDE:
        r.set("width_mult", width_multiplier=r.values.get("width_mult", 1.0))
    else:
        r.drop(f"not read by {arch}", "width_mult")


def _what_trains(r: _Reader) -> None:
    kind = r.value("conv_type")
    r.method = r.choose("conv_type", METHODS, "no layer of its utils/conv_type.py, as it is now")
    frozen, rate = bool(r.value("freeze_weights")), r.value("prune_rate")
    if not isinstance(rate, int | float):
        r.refuse("prune_rate", "expected a number")
    r.set("conv_type", f"the method {r.method}", **({"rule": "bernoulli"} if kind == "SampleSubnetConv" else {}))
    if kind in ("DenseConv", "FixedSubnetConv"):
        if frozen:
            r.refuse("freeze_weights", f"nothing would train in a network of {kind}")
        r.drop("all weights train", "freeze_weights")
    else:
        r.set("freeze_weights", trains="masks" if frozen else "both")
    if kind == "FixedSubnetConv":
        if not (r.values.get("pretrained") or "pretrained" in r.asked):
            r.refuse(
                "conv_type",
                "without pretrained it multiplies weights by raw scores there; a fixed random subnet is --trains "
                "weights of an edge-popup recipe",
            )
        r.settings["trains"] = "weights"
        if not 0 <= rate < 1:
            r.refuse("prune_rate", "expected the fraction removed, in [0, 1)")
        r.set("prune_rate", "the fraction removed, of this layer", keep=1 - rate)
    elif kind == "SubnetConv":
        if rate < 0 and "keep" not in r.asked:
            r.refuse("prune_rate", "it is to be given beside the file; add --keep, the fraction kept")
        if rate == 0 and "keep" not in r.asked:
            r.refuse("prune_rate", "SubnetConv keeps nothing then; add --keep, the fraction kept")
        r.set("prune_rate", "the fraction kept, of this layer", keep=rate if rate > 0 else r.asked["keep"])
    else:
        r.drop(f"not read by {kind}", "prune_rate")
    if kind == "SampleSubnetConv":
        constant = r.value("score_init_constant")
        r.set("score_init_constant", scores_init="kaiming" if constant is None else constant)
    elif "score_init_constant" in r.values:
        r.drop(f"not read by {kind}", "score_init_constant")
    trainer = r.values.get("trainer", "default")
    broken = {
        "lottery": "it keeps nothing in its first six epochs, by a prune rate of 0",
        "ss": "it ends there with a TypeError, before its first step",
    }
    if trainer != "default":
        r.refuse("trainer", broken.get(trainer, "no such trainer; expected default"))
    r.drop("not needed: the only one that trains", "trainer")


def _layers(r: _Reader) -> None:
    norm = r.choose("bn_type", _NORMS, "no such norm")
    r.affine = norm == "affine" and r.residual
    if r.model in models.WITHOUT_NORM:
        r.drop("not needed: no norms in this network", "bn_type")
    else:
        r.set("bn_type", norm=norm)
    kind, first = r.value("conv_type"), r.values.get("first_layer_type")
    dense = bool(r.values.get("first_layer_dense"))
    if dense and r.value("arch") in _RESIDUAL and r.value("init") != "standard":
        r.refuse(
            "first_layer_dense",
            "a first layer of this network starts as torch's then, whatever init says; expected first_layer_type: "
            "DenseConv, for one drawn as the others are",
        )
    first = "DenseConv" if dense else first
    if first not in (None, kind, "DenseConv"):
        r.refuse("first_layer_type", f"expected {kind} or DenseConv")
    key, other = ("first_layer_dense", "first_layer_type") if dense else ("first_layer_type", "first_layer_dense")
    if first == "DenseConv" and r.method != "dense":
        r.set(key, first_dense=True)
        r.drop("not needed beside the other", other)
    else:
        r.drop("not needed: as all layers", key, other)
    if r.last_dense:
        r.set("last_layer_dense", last_dense=True)
    else:
        r.drop("off" if not r.values.get("last_layer_dense") else "not read by this network", "last_layer_dense")


def _weights(r: _Reader) -> None:
    init, kind = r.value("init"), r.value("conv_type")
    r.set("init", init=r.choose("init", _INITS, "no such init"))
    scaled = bool(r.values.get("scale_fan")) and init in _FOLLOW_FAN[:3]
    mode, nonlinearity = r.values.get("mode", "fan_in"), r.values.get("nonlinearity", "relu")
    if nonlinearity != "relu" and r.value("arch") in _RESIDUAL:
        r.refuse("nonlinearity", "this network takes relu alone")
    if init in _FOLLOW_FAN:
        if mode not in ek.init.MODES:
            r.refuse("mode", f"expected one of {', '.join(ek.init.MODES)}")
        # torch's kaiming_* are asked for leaky_relu with a slope of 0, whose gain is that of relu.
        flat = nonlinearity == "leaky_relu" and init.startswith("kaiming") and not scaled
        r.set("mode", mode=mode)
        r.set("nonlinearity", "its slope is 0 there" if flat else "", nonlinearity="relu" if flat else nonlinearity)
    else:
        r.drop(f"not read for init {init}", "mode", "nonlinearity")
    if not scaled:
        r.drop(f"not read for init {init}" if r.values.get("scale_fan") else "off", "scale_fan")
        return
    rate = r.settings["keep"] if kind == "SubnetConv" else r.value("prune_rate")
    if kind == "FixedSubnetConv":
        r.set("scale_fan", "fan * (1 - prune_rate), the fraction kept", scale="paper")
    elif kind == "SubnetConv":
        r.set("scale_fan", "fan * (1 - prune_rate)", scale="hidden-networks")
    elif rate == 0:
        r.drop("not needed: fan * (1 - prune_rate) is the fan", "scale_fan")
    elif 0 < rate < 1:
        r.set("scale_fan", "fan * (1 - prune_rate)", scale="hidden-networks", scale_keep=rate)
    else:
        r.refuse("prune_rate", "scale_fan multiplies fans by 1 - prune_rate; expected a number in [0, 1)")


def _steps(r: _Reader) -> None:
    optimizer, policy = r.value("optimizer"), r.choose("lr_policy", _POLICIES, "no such policy")
    if optimizer not in ("sgd", "adam"):
        r.refuse("optimizer", "expected sgd or adam")
    r.set("optimizer", optimizer=optimizer)
    r.set("lr", lr=r.value("lr"))
    r.set("epochs", epochs=r.value("epochs"))
    r.set("batch_size", batch_size=r.value("batch_size"))
    smoothing = r.values.get("label_smoothing")
    r.set("label_smoothing", "in training; the test loss is without", label_smoothing=smoothing or 0.0)
    r.set("lr_policy", schedule=policy)
    if policy == "multistep":
        r.drop("not read by multistep_lr", "warmup_length")
        for key, name, usual in (("lr_adjust", "multistep_every", 30), ("lr_gamma", "multistep_factor", 0.1)):
            option = f"multistep_{key}"
            given = key if key in r.values else option
            note = "" if given == key else f"meant; there the policy reads {key}, which is no option"
            r.set(given, note, **{name: r.values.get(given, usual)})
            if given == key:
                r.drop("not read by multistep_lr", option)
    else:
        r.set("warmup_length", warmup=r.value("warmup_length"))
        r.drop(
            f"not read by {r.value('lr_policy')}", "lr_adjust", "lr_gamma", "multistep_lr_adjust", "multistep_lr_gamma"
        )
    if optimizer == "adam":
        r.drop("not read by its Adam", "momentum", "nesterov", "no_bn_decay")
        r.set("weight_decay", "its Adam reads none", weight_decay=0.0)
        return
    r.set("momentum", momentum=r.value("momentum"))
    r.set("nesterov", nesterov=bool(r.values.get("nesterov")))
    r.set("weight_decay", weight_decay=r.value("weight_decay"))
    trains = r.settings.get("trains") != "masks"
    if not (trains and (r.affine or r.last_dense) and r.value("weight_decay")):
        r.drop("not needed: no norm or bias trains and decays", "no_bn_decay")
    elif r.values.get("no_bn_decay"):
        r.refuse("no_bn_decay", "there the norms of shortcuts and the last bias decay still; no recipe does that")
    else:
        r.set("no_bn_decay", norm_decay=True)


def _data(r: _Reader) -> None:
    _, below, _ = SETS[r.value("set")]
    place = r.values.get("data")
    r.folder = None if place is None else Path(str(place)) / below
    r.drop("not needed: --data" if place is None else f"--data {r.folder}, unless it is given", "data")
    if r.settings["dataset"] in PHOTOGRAPHS and "workers" in r.values:
        r.set("workers", workers=r.values["workers"])
    else:
        r.drop("not needed: the images are in memory", "workers")


def _rest(r: _Reader) -> None:
    for key, unless, why in (
        ("resume", ("", None), "its optimizers are not read; pretrained starts from its weights and scores"),
        ("start_epoch", (None, 0), "a run begins with its first epoch"),
        ("evaluate", (False, None), "`edgepop import` reads a checkpoint of that program, `edgepop eval` evaluates it"),
    ):
        if r.values.get(key) not in unless:
            r.refuse(key, why)
        r.drop("off", key)
    if r.values.get("pretrained"):
        r.set("pretrained", pretrained=str(r.values["pretrained"]))
    else:
        r.drop("off", "pretrained")
    if r.values.get("seed") is None:
        r.drop("any there; --seed", "seed")
    else:
        r.set("seed", "the seed of other draws than there", seed=r.values["seed"])
    every = r.values.get("save_every", -1)
    if not isinstance(every, int):
        r.refuse("save_every", "expected a whole number")
    if every > 0:
        r.set("save_every", f"after epochs {every}, {2 * every}...; there after 1, {every + 1}...", save_every=every)
    else:
        r.drop("off", "save_every")
    r.drop("not needed: --name, --out and the terminal", "name", "log_dir", "print_freq", "config")
    r.drop("not needed: one device, or several by torchrun", "multigpu", "gpu")
    r.drop("not read: that program reads it nowhere", "low_data", "one_batch", "random_subnet")


def _spelled(value: Any) -> str:
    return "" if value is None else str(value)
