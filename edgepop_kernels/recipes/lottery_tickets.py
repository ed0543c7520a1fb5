"""Iterative pruning from one initialisation, with the parts of the lottery ticket algorithm exchanged for others.

Zhou et al., "Deconstructing Lottery Tickets: Zeros, Signs, and the Supermask", NeurIPS 2019, arXiv 1905.01067: which
weights a round keeps (mask criterion), what it resets them to (mask-1 action), what becomes of the others (mask-0
action). A round's network before its training is a supermask: its accuracy tells what the mask alone is worth.
"""

import itertools
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import edgepop_kernels as ek

from ..methods.criteria import CRITERIA, MASK_0, MASK_1, SIGNS, prune, scores, treat_kept, treat_pruned
from . import models
from .checkpoint import seed_everything
from .config import Entry
from .data import Dataset
from .experiments import Experiment, Result, fit
from .layers import Layers
from .plots import Chart
from .resnets import RESNETS
from .session import Left, Outcome, Session
from .settings import When, but, choice, flag, positive, setting, whole
from .trainer import evaluate

# The nine that the paper compares.
COMPARED = "large_final,small_final,large_init,small_init,large_init_large_final,small_init_small_final"
COMPARED += ",magnitude_increase,movement,random"
WHOLE = "whole network"


def names(default: str, allowed: tuple[str, ...], text: str) -> Any:
    """A setting of one or more names, separated by commas."""
    words = f"one or more of {', '.join(allowed)}, separated by commas"
    return setting(default, text, words, lambda value: set(value.split(",")) <= set(allowed))


def share(default: float, text: str, **where: Any) -> Any:
    return setting(default, text, "a number in (0, 1]", lambda value: 0 < value <= 1, **where)


@dataclass(frozen=True, kw_only=True)
class LotteryTickets(Experiment):
    """Trains the whole network once; then each round prunes by what the last one trained, resets and trains again.

    One line for each combination of criterion, mask-1 and mask-0 action. Biases start at 0 and are never pruned.
    """

    method: ClassVar[str] = "lottery-tickets"

    epochs: int = whole(10, 1, "passes over the training set")
    batch_size: int = whole(60, 1, "images per step")
    lr: float = positive(0.0012, "learning rate at its highest")
    rounds: int = whole(24, 1, "pruning rounds")
    keep: float = share(
        0.8,
        "fraction of weights kept; of a hidden linear layer, by each pruning round",
        when=When("networks that have hidden linear layers", lambda recipe: recipe.model not in RESNETS),
    )
    keep_conv: float = share(0.9, "the same of a convolution", when=but("model", "mlp"))
    keep_output: float = share(0.9, "the same of the output layer")
    criteria: str = names(COMPARED, tuple(CRITERIA), "mask criteria compared")
    sign: str = choice("any", SIGNS, "weights whose sign training changed (same) or kept (different) go first")
    kept: str = names("rewind", MASK_1, "mask-1 actions compared: what kept weights are reset to")
    pruned: str = names("zero", MASK_0, "mask-0 actions compared: what becomes of pruned weights")
    rescale: bool = flag(False, "dynamic weight rescaling: weights times numel / kept")

    def __post_init__(self):
        super().__post_init__()
        if self.pruned != "zero" and (self.kept != "rewind" or self.rescale or self.weight_decay > 0):
            raise self.wrong("pruned", "zero, where kept weights are not just rewound or all weights decay")

    def density(self) -> str:
        return f"keep {self.keep} in each of {self.rounds} rounds"

    def trainings(self) -> int:
        return 1 + self.rounds * len(self._lines())

    def _lines(self) -> dict[str, tuple[str, ...]]:
        """Criterion, mask-1 and mask-0 action of each line, by its label: those of which there is a choice."""
        choices = [list(dict.fromkeys(part.split(","))) for part in (self.criteria, self.kept, self.pruned)]
        told = [number for number, options in enumerate(choices) if len(options) > 1] or [0]
        return {", ".join(line[number] for number in told): line for line in itertools.product(*choices)}

    def compare(self, data: Dataset, device: torch.device, session: Session) -> None:
        batches = self.batches(data, device)
        seed_everything(self.seed)
        drawn = {name: ek.init.xavier_normal_(weight) for name, weight in _weights(self._plain(data)).items()}
        initial = {name: weight.to(device) for name, weight in drawn.items()}
        gradient = self._gradient(batches, initial) if {"snip", "grad"} & set(self.criteria.split(",")) else None

        def train_everything():
            everything = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in initial.items()}
            return self._round(session, batches, initial, everything, fused=False)

        def train_round(line, done):
            masks, start = self._pruned(line, initial, done, gradient)
            return self._round(session, batches, start, masks, fused=line[-1] == "zero")

        first = session.training(WHOLE, train_everything, lasting=True)
        for label, line in self._lines().items():
            seed_everything(self.seed)
            done = first
            for number in range(1, self.rounds + 1):
                done = session.training(_name(label, number), partial(train_round, line, done))

    def result(self, finished: dict[str, Outcome]) -> Result:
        lines = {}
        for label in self._lines():
            names = [WHOLE, *(_name(label, number) for number in range(1, self.rounds + 1))]
            lines[label] = [finished[name] for name in names if name in finished]
        # Every line prunes as many weights in a round.
        kept = [done.kept for done in max(lines.values(), key=len)]
        axis = dict(x="weights kept, %", at=[100 * count / kept[0] for count in kept], log=True)
        tickets = {label: [done.test[-1] for done in line] for label, line in lines.items()}
        supermasks = {label: [done.before for done in line] for label, line in lines.items()}
        last = {label: line[-1] for label, line in lines.items() if len(line) > self.rounds}
        return Result(
            [
                Chart("tickets", "test accuracy after the round's training", lines=tickets, **axis),
                Chart("supermasks", "test accuracy before the round's training", lines=supermasks, **axis),
            ],
            {WHOLE: finished[WHOLE]} | last,
        )

    def _pruned(self, line, initial, done: Left, gradient) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Masks and first weights of a round of ``line`` after the training ``done``."""
        criterion, kept, pruned = line
        masks, start = {}, {}
        for name, origin in initial.items():
            alive, begun, final = done["masks"][name], done["start"][name], done["final"][name]
            score = torch.zeros_like(origin)  # survivors alone are ranked
            at_start = None if gradient is None else gradient[name][alive]
            score[alive] = scores(criterion, begun[alive], final[alive], gradient=at_start, sign=self.sign)
            masks[name] = mask = prune(score, self._keep(name, initial), alive)
            if pruned == "zero":
                start[name] = treat_kept(kept, origin, mask, self.rescale)
            else:
                start[name] = treat_pruned(pruned, begun, final, mask)
        return masks, start

    def _round(self, session, batches, start, masks, *, fused: bool) -> tuple[Outcome, Left]:
        """Trains from the weights ``start`` what the masks keep. fused: the pruned weights are 0, a masked layer leaves
        them out; otherwise they count, and stand still."""
        model = self._masked(batches.data) if fused else self._plain(batches.data)
        model = self.place(_filled(model, start), batches.mean.device)
        for name, layer in _layers(model):
            if fused:
                layer.train_weight(masks[name])
            else:
                layer.weight.register_hook(partial(torch.mul, masks[name]))
        before = evaluate(self, model, batches)[1]
        found = fit(self, model, batches, session).outcome
        layers = [(name, int(mask.sum()), mask.numel()) for name, mask in masks.items()]
        left = {"masks": masks, "start": start, "final": _weights(model)}
        return replace(found, layers=layers, before=before), left

    def _gradient(self, batches, initial: dict[str, Tensor]) -> dict[str, Tensor]:
        """The gradient of the mean loss over the training set at the initial weights."""
        model = self.place(_filled(self._plain(batches.data), initial), batches.mean.device)
        for images, labels in batches.train(0):
            (F.cross_entropy(model(images), labels, reduction="sum") / len(batches.data.train)).backward()
        return {name: layer.weight.grad for name, layer in _layers(model)}

    def _plain(self, data):
        return self._build(data, Layers())

    def _masked(self, data):
        return self._build(data, Layers(conv=ek.FusedSubnetConv, linear=ek.FusedSubnetLinear))

    def _build(self, data, layers):
        sizes = dict(widths=self.widths, width_multiplier=self.width_multiplier)
        return models.build(self.model, data.image, data.classes, layers, **sizes)

    def _keep(self, name, initial):
        if initial[name].dim() == 4:
            return self.keep_conv
        return self.keep_output if name == list(initial)[-1] else self.keep


def _name(label: str, number: int) -> str:
    return f"{label}, round {number}"


@torch.no_grad()
def _filled(model, weights):
    """The model with these weights, biases 0."""
    for name, layer in _layers(model):
        layer.weight.copy_(weights[name])
        if layer.bias is not None:
            layer.bias.zero_()
    return model


def _layers(model):
    return [(name, m) for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


def _weights(model):
    return {name: layer.weight.detach().clone() for name, layer in _layers(model)}


_SOURCE = "Zhou et al. 2019 (arXiv 1905.01067), abstract"
_CONV = {
    "conv2": dict(lr=2e-4, epochs=27),
    "conv4": dict(lr=3e-4, epochs=34),
    "conv6": dict(lr=3e-4, epochs=40, keep_conv=0.85),
}

RECIPES = {
    "lottery-tickets-digits": Entry(LotteryTickets(), "no published number", "this project"),
    "lottery-tickets-mnist": Entry(
        LotteryTickets(dataset="mnist", epochs=55), "86 % before any training, best mask", _SOURCE
    ),
} | {
    f"lottery-tickets-{model}": Entry(
        LotteryTickets(model=model, dataset="cifar10", **settings),
        "41 % before any training, best mask of all networks",
        _SOURCE,
    )
    for model, settings in _CONV.items()
}
