"""Is a supermask a good initialisation? The comparison of the blog post "Super-Masks: Are They Good Initializations?".

mshlis 2019: thresholded masks, on biases too, against trained weights, and weights trained on under the best mask.
"""

import copy
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import nn

import edgepop_kernels as ek

from . import models
from .checkpoint import seed_everything
from .config import Entry
from .data import PHOTOGRAPHS, Dataset
from .experiments import Experiment, Result, epochs_chart, fit
from .jitter import jitter
from .layers import Layers
from .masks import kept_per_layer
from .session import Outcome, Session
from .settings import flag, held_out, positive, whole


@dataclass(frozen=True, kw_only=True)
class SupermaskInit(Experiment):
    """Mask only; weights only from the same start; then the best mask is frozen and the weights are trained on with a
    small lr. The norms train throughout. Every training lowers its lr on a plateau."""

    method: ClassVar[str] = "supermask-init"

    validation: int | str = held_out("mask")
    lr: float = positive(0.01, "learning rate at its highest")
    fine_tune_lr: float = positive(1e-5, "learning rate of the weights under the best mask")
    augment: bool = flag(False, "flips, rotations up to 20 degrees and shifts up to a fifth of the training images")
    patience: int = whole(2, 1, "epochs without a better training accuracy, after which lr is divided by 10")

    def __post_init__(self):
        super().__post_init__()
        if self.augment and self.dataset in PHOTOGRAPHS:
            raise self.wrong("augment", f"false for {self.dataset}, whose crops are an augmentation")

    def trainings(self) -> int:
        return 3

    def compare(self, data: Dataset, device: torch.device, session: Session) -> None:
        seed_everything(self.seed)
        layers = Layers(conv=_biases_masked(ek.FusedSupermaskConv), linear=_biases_masked(ek.FusedSupermaskLinear))
        sizes = dict(widths=self.widths, width_multiplier=self.width_multiplier)
        masked = self.place(models.build(self.model, data.image, data.classes, layers, **sizes), device)
        for layer in masked.modules():
            if isinstance(layer, (ek.FusedSupermaskConv, ek.FusedSupermaskLinear)):
                ek.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        weights = ek.train_weights(copy.deepcopy(masked))  # scores start at 1: every weight is kept
        ek.share_selection(masked)
        if self.augment:
            data = replace(data, augment=False)  # its crops and flips give way to these
        batches = self.batches(data, device)
        options: dict[str, Any] = dict(patience=self.patience)
        if self.augment:
            options["augment"] = jitter

        def train_masks():
            found, best = fit(self, masked, batches, session, **options, pick=True)
            return replace(found, layers=kept_per_layer(masked)), best

        def train_all_weights():
            found, _ = fit(self, weights, batches, session, **options)
            return found, {}

        def train_kept_weights():
            masked.load_state_dict(best)
            ek.train_weights(masked)
            found, _ = fit(self, masked, batches, session, **options, lr=self.fine_tune_lr)
            return replace(found, layers=kept_per_layer(masked)), {}

        best = session.training("mask only", train_masks, lasting=True)
        session.training("weights only", train_all_weights)
        session.training("best mask, then weights", train_kept_weights)

    def result(self, finished: dict[str, Outcome]) -> Result:
        test, training, validation = (
            {name: getattr(done, part) for name, done in finished.items()} for part in ("test", "train", "validation")
        )
        charts = [epochs_chart(test), epochs_chart(training, "training", "training accuracy")]
        masks, part = test["mask only"], "test part, on which what is trained on under it was thus picked"
        if masks_held := validation["mask only"]:
            charts.append(epochs_chart(validation, "validation", "validation accuracy"))
            masks, part = masks_held, "images held out"
        epoch = masks.index(max(masks)) + 1
        note = f"best mask: that of epoch {epoch}, by its accuracy of {max(masks):.2%} on the {part}"
        return Result(charts, finished, [note])


def _biases_masked(layer):
    """The layer with a mask on its bias, where the network asks for one."""
    return lambda *sizes, bias=True, **options: layer(*sizes, bias=bias, mask_bias=bias, scores_init=1.0, **options)


_SOURCE = "mshlis 2019, Super-Masks: Are They Good Initializations?"
_WIDE = dict(model="wide-resnet28-8", batch_size=128, augment=True)

RECIPES = {
    # The scores start at 1, which takes four epochs of 23 steps to cross: nothing to be gained before.
    "supermask-init-digits": Entry(SupermaskInit(patience=10), "no published number", "this project"),
    "supermask-init-mnist": Entry(SupermaskInit(dataset="mnist", **_WIDE), "published as curves: all alike", _SOURCE),
    "supermask-init-cifar10": Entry(
        SupermaskInit(dataset="cifar10", **_WIDE),
        "published as curves: masks match weights, fine-tuned masks beat both; no layer masks over 16 %",
        _SOURCE,
    ),
}
