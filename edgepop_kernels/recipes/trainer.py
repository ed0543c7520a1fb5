"""The training loop: model, optimizer and position of one run, and the state that continues it bit for bit."""

import contextlib
import hashlib
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from . import checkpoint
from .config import Recipe
from .data import Batches, Dataset
from .errors import NotFinite, UserError
from .interrupt import Stop

# Looking at the loss makes the host wait for the GPU, so its finiteness is looked at once in this many steps (and
# before every save); the step that was first at fault is recorded on the device and named exactly.
CHECK_EVERY = 20


class Trainer:
    """One run of ``recipe`` on ``data``: ``epoch`` whole epochs and ``step`` steps of the next one are done.

    Seeds the global generators, so making one starts a reproducible run.
    """

    def __init__(self, recipe: Recipe, data: Dataset, device: torch.device):
        checkpoint.seed_everything(recipe.seed)
        self.recipe, self.device = recipe, device
        self.data = data.to(device)
        self.batches = Batches(self.data, recipe.batch_size, recipe.seed, channels_last=recipe.channels_last)
        self.data_digest = data.digest()
        self.model = make_network(recipe, data, device)
        self.optimizer = make_optimizer(recipe, self.model)
        self.epoch = self.step = 0
        self.history: list[dict] = []
        self.best_accuracy, self.best_epoch = -1.0, 0
        self.frozen_digest = frozen_digest(self.model)
        self._start_sums()

    def _start_sums(self) -> None:
        """Sums over the epoch, on the device: loss and right answers; and the first step without a finite loss."""
        self.sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        self.first_bad = torch.full((), -1, dtype=torch.int64, device=self.device)

    def train_epoch(self, stop: Stop, on_step: Callable[[], None]) -> bool:
        """Train to the end of the epoch and evaluate; False where a requested stop ended it after some step."""
        self.model.train()
        lr = self.recipe.lr_at(self.epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        for images, labels in self.batches.train(self.epoch, self.step):
            loss, logits = train_step(self.recipe, self.model, self.optimizer, images, labels)
            right = (logits.argmax(1) == labels).sum()
            self.sums += torch.stack([loss.double() * len(labels), right.double()])
            self.first_bad = torch.where((self.first_bad < 0) & ~loss.isfinite(), self.step, self.first_bad)
            self.step += 1
            if self.step % CHECK_EVERY == 0:
                self.check_finite()
            on_step()
            if stop.requested:
                return False
        self.check_finite()
        self._end_epoch(lr)
        return True

    def _end_epoch(self, lr: float) -> None:
        train_loss, train_accuracy = (self.sums / len(self.data.train)).tolist()
        test_loss, test_accuracy = evaluate(self.recipe, self.model, self.batches)
        self.epoch, self.step = self.epoch + 1, 0
        self.history.append(
            {
                "epoch": self.epoch,
                "lr": lr,
                "train_loss": train_loss,
                "train_accuracy": train_accuracy,
                "test_loss": test_loss,
                "test_accuracy": test_accuracy,
            }
        )
        if test_accuracy > self.best_accuracy:
            self.best_accuracy, self.best_epoch = test_accuracy, self.epoch
        self._start_sums()

    def check_finite(self) -> None:
        """NotFinite, naming epoch and step, where the loss of some step of this epoch was NaN or infinite."""
        step = int(self.first_bad)
        if step >= 0:
            raise NotFinite(
                f"the loss is not a finite number in epoch {self.epoch + 1}, step {step + 1} of "
                f"{self.batches.steps()}: try a lower lr than {self.recipe.lr:g}"
            )

    def state(self) -> dict:
        """Everything ``load_state`` needs, as plain data."""
        return {
            "config": self.recipe.to_dict(),
            "data_digest": self.data_digest,
            "image": list(self.data.image),
            "classes": self.data.classes,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "sums": self.sums.tolist(),
            "history": self.history,
            "best": [self.best_accuracy, self.best_epoch],
            "frozen_digest": self.frozen_digest,
            "random": checkpoint.random_state(),
        }

    def load_state(self, state: dict) -> None:
        """Continue where ``state`` was taken; UserError where the data are not those it was trained on."""
        if state["data_digest"] != self.data_digest:
            raise UserError(f"the {self.data.name} data are not those this run was started with: their hashes differ")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.step = state["epoch"], state["step"]
        self.history = list(state["history"])
        self.best_accuracy, self.best_epoch = state["best"]
        self.frozen_digest = state["frozen_digest"]
        self._start_sums()
        self.sums += torch.tensor(state["sums"], dtype=torch.float64, device=self.device)
        checkpoint.set_random_state(state["random"])


def make_network(recipe: Recipe, data: Dataset, device: torch.device) -> nn.Module:
    """Drawn on the CPU whatever the device, so that one seed means one network."""
    model = recipe.network(data.image, data.classes)
    return model.to(device, memory_format=torch.channels_last if recipe.channels_last else torch.preserve_format)


def make_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """Over what trains; weight decay reaches matrices and kernels only, not biases or norms."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "adam":
        return torch.optim.Adam(groups, lr=recipe.lr)
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum)


def train_step(
    recipe: Recipe, model: nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """One step; the detached loss () float32 and logits [B, classes], still on the device."""
    optimizer.zero_grad(set_to_none=True)
    with autocast(recipe, images.device):
        logits = model(images)
    loss = F.cross_entropy(logits.float(), labels, label_smoothing=recipe.label_smoothing)
    loss.backward()
    optimizer.step()
    return loss.detach(), logits.detach()


@torch.no_grad()
def evaluate(recipe: Recipe, model: nn.Module, batches: Batches) -> tuple[float, float]:
    """Mean cross-entropy and accuracy (a fraction) on the test part; leaves the model in evaluation mode."""
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=batches.mean.device)
    for images, labels in batches.test():
        with autocast(recipe, images.device):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels, reduction="sum")
        sums += torch.stack([loss.double(), (logits.argmax(1) == labels).sum().double()])
    loss, right = (sums / len(batches.data.test)).tolist()
    return loss, right


def autocast(recipe: Recipe, device: torch.device) -> contextlib.AbstractContextManager:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=recipe.dtype == "bfloat16")


def frozen_digest(model: nn.Module) -> str:
    """SHA-256 of every parameter that does not train: equal before and after, or masked training changed a weight."""
    sha = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            sha.update(name.encode())
            sha.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy())
    return sha.hexdigest()


def masked_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, layer) for name, layer in model.named_modules() if hasattr(layer, "mask")]


def kept_per_layer(model: nn.Module) -> list[tuple[str, int, int]]:
    """(name, weights kept, weights) of each masked layer."""
    return [(name, int(layer.mask().sum()), layer.weight.numel()) for name, layer in masked_layers(model)]
