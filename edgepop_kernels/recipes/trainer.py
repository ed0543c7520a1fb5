"""The training loop: model, optimizer and position of one run, and the state that continues it bit for bit."""

import contextlib
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import nn

import edgepop_kernels as ek

from . import checkpoint, finite, pretrained
from .config import Recipe
from .data import Batches, Dataset, ImageFolder, Part, hold_out
from .errors import ConfigError, NotFinite, UserError
from .interrupt import Stop
from .masks import changed, packed_masks
from .parallel import World
from .randomness import PartRandom

# Looking at the loss makes the host wait for the GPU, so its finiteness is looked at once in this many steps (and
# before every save); the step that was first at fault is recorded on the device and named exactly.
CHECK_EVERY = 20
ALONE = World()


class Trainer:
    """One run of ``recipe`` on ``data``: ``epoch`` epochs and ``step`` steps of the next one are done.

    Its ``data`` have images held out as the recipe says, its ``recipe`` has their number. Every process of
    the ``world`` makes one and calls the same methods in the same order. Seeds the global generators, alike in each,
    so making one starts a reproducible run. entries: of the checkpoint that the recipe starts from; ``began_from`` says
    what was read of them. Raises UserError.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: Dataset | ImageFolder,
        device: torch.device,
        world: World = ALONE,
        entries: dict[str, torch.Tensor] | None = None,
    ):
        checkpoint.seed_everything(recipe.seed)
        recipe = recipe.resolved(len(data.train))
        self.data_digest = data.digest()  # of all: which are held out follows from it
        data = hold_out(data, recipe.validation)
        self.recipe, self.device, self.world = recipe, device, world
        self.data, self.share = data.to(device), world.share(recipe.accumulate)
        self.batches = Batches(
            self.data, recipe.batch_size, recipe.seed, channels_last=recipe.channels_last, workers=recipe.workers
        )
        if self.batches.smallest() < self.share.parts:
            raise ConfigError(
                f"{recipe.batch_size} leaves {self.batches.smallest()} of {len(data.train)} images for an "
                f"epoch's last batch, which is computed in {self.share.parts} parts (processes times accumulate): "
                "expected at least 1 image each",
                "batch_size",
            )
        self.model = make_network(recipe, data, device)
        self.began_from: list[str] = []
        if entries is not None:
            self.began_from = pretrained.load(recipe, self.model, entries, recipe.pretrained).lines
        finite.check_drawn(self.model)
        if self.batches.smallest() < 2 * self.share.parts:
            _check_norms(self.model, recipe, data.image, device)
        self.keeping = recipe.keep_schedule(self.model, self.batches.steps())
        self.optimizer = make_optimizer(recipe, self.model)
        self.parallel = world.wrap(self.model)
        self.random = PartRandom(self.model, device) if self.share.parts > 1 else None
        self.epoch = self.step = 0
        self.history: list[dict] = []
        self.ran_on: list[dict] = []  # as ``machine.described``, one after the other
        self.evaluated_from: dict | None = None  # of the generators, before the last evaluation: masks may be drawn
        self.picked_on = next(iter(self.data.evaluated))
        self.masks = packed_masks(self.model)
        self.frozen_digest = frozen_digest(self.model)
        self._start_sums()

    def _start_sums(self) -> None:
        """Sums over the epoch, on the device: loss and right answers; and the first step without a finite loss."""
        self.sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        self.first_bad = torch.full((), -1, dtype=torch.int64, device=self.device)

    @property
    def best(self) -> dict | None:
        """The row of the epoch, the first of equals, whose accuracy on ``picked_on`` is highest, once the network keeps
        what the recipe says; None before any."""
        full = self.recipe.full_epochs()
        accuracy = f"{self.picked_on}_accuracy"
        return max(self.history, key=lambda row: (row["epoch"] >= full, row[accuracy]), default=None)

    @property
    def images(self) -> int:
        """Training images before some were held out."""
        return len(self.data.train) + len(self.data.validation or ())

    @property
    def ended(self) -> str:
        """The place where ``max_steps`` ends the run before its last epoch does, in words; else empty."""
        steps = self.batches.steps()
        if self.steps == self.recipe.epochs * steps:
            return ""
        epoch, step = divmod(self.steps - 1, steps)
        return f"by max_steps, after step {step + 1} of {steps} of epoch {epoch + 1} of {self.recipe.epochs}"

    @property
    def steps(self) -> int:
        """The number of steps of the whole run."""
        steps = self.recipe.epochs * self.batches.steps()
        return min(steps, self.recipe.max_steps or steps)

    @property
    def steps_done(self) -> int:
        return self.epoch * self.batches.steps() + self.step

    @property
    def finished(self) -> bool:
        """Whether the last epoch, whole or cut short by ``max_steps``, is trained and evaluated."""
        return self.step == 0 and self.steps_done >= self.steps

    def train_epoch(self, stop: Stop, on_step: Callable[[], None]) -> bool:
        """Train to the end of the epoch and evaluate; False where a requested stop ended it after some step."""
        self.model.train()
        lr = self.recipe.lr_at(self.epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        batches = itertools.islice(self.batches.parts(self.epoch, self.step, self.share), self.steps - self.steps_done)
        while parts := self._next(batches, stop):
            sums = train_step(self.recipe, self.parallel, self.optimizer, parts, self._part)
            if self.keeping is not None:
                self.keeping.step()
            self.sums += sums
            self.first_bad = torch.where((self.first_bad < 0) & ~sums[0].isfinite(), self.step, self.first_bad)
            self.step += 1
            if self.step % CHECK_EVERY == 0:
                self._check_loss()
            on_step()
        if parts is None:
            return False
        self.check_finite()
        self._end_epoch(lr)
        return True

    def _next(self, batches: Iterator[list[Part]], stop: Stop) -> list[Part] | None:
        """The next batch's parts, none after the last batch; None where a stop is requested. All ranks get the same."""
        parts, error = [], None
        try:
            parts = next(batches, [])
        except UserError as failure:
            error = failure
        return None if self.world.agree(error, stop.requested is not None) else parts

    @contextlib.contextmanager
    def _part(self, number: int) -> Iterator[None]:
        """While part ``number`` of this process's parts of a batch is computed."""
        if self.random is None:
            yield
            return
        last = number + 1 == self.share.count
        position = (self.recipe.seed, self.epoch, self.step, self.share.first + number)
        with self.random.part(position, number > 0), self.world.held(self.parallel, not last):
            yield

    def _end_epoch(self, lr: float) -> None:
        self.world.spread_buffers(self.model)
        self.evaluated_from = checkpoint.torch_random_state()
        row = {"epoch": self.epoch + 1, "lr": lr}
        seen = min(self.step * self.recipe.batch_size, len(self.data.train))
        row["train_loss"], row["train_accuracy"] = (sum(self.world.gather(self.sums)) / seen).tolist()
        for name, split in self.data.evaluated.items():
            sums = self.world.each(lambda split=split: self._sums_over(split))
            means = sum(self.world.gather(sums)) / len(split)
            row[f"{name}_loss"], row[f"{name}_accuracy"] = means.tolist()
            finite.check_loss(name, row[f"{name}_loss"], self.recipe.lr)
        if self.masks:
            before, self.masks = self.masks, packed_masks(self.model)
            row["churn"] = changed(self.model, before, self.masks)
        self.epoch, self.step = self.epoch + 1, 0
        self.history.append(row)
        self._start_sums()

    def _sums_over(self, split) -> torch.Tensor:
        return sums_over(self.recipe, self.model, self.batches.in_order(split, self.world.share(1)), self.device)

    def check_finite(self) -> None:
        """NotFinite, naming what and where, for a loss of this epoch, a parameter, a buffer or a state of the optimizer
        that is NaN or infinite: to be called before anything is saved."""
        self._check_loss()
        self.world.each(lambda: finite.check(self.model, self.optimizer, self.epoch, self.recipe.lr))

    def _check_loss(self) -> None:
        bad = [step for step in map(int, self.world.gather(self.first_bad)) if step >= 0]
        if bad:
            raise NotFinite(
                f"the loss is not a finite number in epoch {self.epoch + 1}, step {min(bad) + 1} of "
                f"{self.batches.steps()}: try a lower lr than {self.recipe.lr:g}"
            )

    def state(self) -> dict:
        """Everything ``load_state`` needs, as plain data; "sums" has a row for each rank."""
        return {
            "config": self.recipe.to_dict(),
            "data_digest": self.data_digest,
            "image": list(self.data.image),
            "classes": self.data.classes,
            "class_names": self.data.class_names and list(self.data.class_names),
            "preprocessing": self.batches.preprocessing(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "sums": [sums.tolist() for sums in self.world.gather(self.sums)],
            "history": self.history,
            "evaluated_from": self.evaluated_from,
            "masks": self.masks,
            "frozen_digest": self.frozen_digest,
            "ran_on": self.ran_on,
            "random": checkpoint.random_state(),
        }

    def load_state(self, state: dict) -> None:
        """Continue where ``state`` was taken; UserError where the data are not those it was trained on."""
        if state["data_digest"] != self.data_digest:
            raise UserError(f"the {self.data.name} data are not those this run was started with: their hashes differ")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.step = state["epoch"], state["step"]
        if self.keeping is not None:
            self.keeping.load_state_dict(self.keeping.state_dict() | {"step": self.steps_done})
        self.history, self.evaluated_from = list(state["history"]), state["evaluated_from"]
        self.masks = {name: bits.to(self.device) for name, bits in state["masks"].items()}
        self.frozen_digest = state["frozen_digest"]
        self.ran_on = state["ran_on"]
        self._start_sums()
        # Ranks go on from their own sums; among another number of processes the rows are dealt out anew.
        for sums in itertools.islice(state["sums"], self.world.rank, None, self.world.size):
            self.sums += torch.tensor(sums, dtype=torch.float64, device=self.device)
        checkpoint.set_random_state(state["random"])


def make_network(recipe: Recipe, data: Dataset, device: torch.device) -> nn.Module:
    """Drawn on the CPU whatever the device, so that one seed means one network."""
    model = recipe.network(data.image, data.classes)
    return model.to(device, memory_format=torch.channels_last if recipe.channels_last else torch.preserve_format)


@torch.no_grad()
def _check_norms(model: nn.Module, recipe: Recipe, image: tuple[int, int, int], device: torch.device) -> None:
    """ConfigError where a part of a batch that is one image would leave a batch norm one value per channel."""
    single = []

    def look(norm: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if inputs[0].numel() == inputs[0].shape[1]:
            single.append(norm)

    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    hooks = [norm.register_forward_pre_hook(look) for norm in norms]
    with torch.random.fork_rng():  # for rules that draw
        model.eval()(torch.zeros(1, *image, device=device))
    model.train()
    for hook in hooks:
        hook.remove()
    if single:
        raise ConfigError(
            f"{recipe.batch_size} leaves a single image for the last step of an epoch, or a part of it: too few for a "
            "batch norm of this network, which sees one value per channel",
            "batch_size",
        )


def make_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """Over what trains; weight decay reaches matrices and kernels, norms and biases with ``norm_decay`` only."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": recipe.weight_decay},
        {
            "params": [p for p in trained if p.dim() <= 1],
            "weight_decay": recipe.weight_decay if recipe.norm_decay else 0.0,
        },
    ]
    groups = [group for group in groups if group["params"]]
    sgd = dict(lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov)
    match recipe.optimizer:
        case "sgd":
            return torch.optim.SGD(groups, **sgd)
        case "score-sgd":
            return ek.optim.ScoreSGD(groups, **sgd, model=model)
        case "adam":
            return torch.optim.Adam(groups, lr=recipe.lr)
        case "score-adam":
            return ek.optim.ScoreAdam(groups, lr=recipe.lr, model=model)


def train_step(
    recipe: Recipe,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    parts: list[Part],
    part: Callable[[int], contextlib.AbstractContextManager] = contextlib.nullcontext,
) -> torch.Tensor:
    """One step on the batch of ``parts``, one after the other, each in the context ``part(its number)``.

    The sums over the images of loss and of right answers, float64 [2], still on the device.
    """
    optimizer.zero_grad(set_to_none=True)
    sums = 0
    for number, (images, labels, weight) in enumerate(parts):
        with part(number):
            with autocast(recipe, images.device):
                logits = model(images)
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=recipe.label_smoothing)
            loss.backward(torch.full_like(loss, weight))  # they add up to the gradients of the batch's mean loss
        right = (logits.argmax(1) == labels).sum()
        sums = sums + torch.stack([loss.detach().double() * len(labels), right.double()])
    optimizer.step()
    return sums


def evaluate(recipe: Recipe, model: nn.Module, batches: Batches, part: str = "test") -> tuple[float, float]:
    """Mean cross-entropy and accuracy (a fraction) on a part of the data; leaves the model in evaluation mode.
    Raises NotFinite."""
    split = batches.data.evaluated[part]
    sums = sums_over(recipe, model, batches.in_order(split), batches.mean.device)
    loss, right = (sums / len(split)).tolist()
    finite.check_loss(part, loss, recipe.lr)
    return loss, right


@torch.no_grad()
def sums_over(
    recipe: Recipe, model: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], device: torch.device
) -> torch.Tensor:
    """Sums of cross-entropy and of right answers over the images of ``batches``, float64 [2], on the device."""
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    for images, labels in batches:
        with autocast(recipe, images.device):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels, reduction="sum")
        sums += torch.stack([loss.double(), (logits.argmax(1) == labels).sum().double()])
    return sums


def autocast(recipe: Recipe, device: torch.device) -> contextlib.AbstractContextManager:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=recipe.dtype == "bfloat16")


def frozen_digest(model: nn.Module) -> str | None:
    """SHA-256 of every weight, bias and norm that does not train: equal before and after, or masked training changed
    one. None where all train. Scores that are set aside are none of them."""
    standing = [(name, p) for name, p in model.named_parameters() if not p.requires_grad]
    frozen = [(name, p) for name, p in standing if not name.endswith("scores")]
    frozen += [(name, b) for name, b in model.named_buffers() if name.endswith(("weight_signs", "weight_magnitude"))]
    if not frozen:
        return None
    sha = hashlib.sha256()
    for name, parameter in frozen:
        sha.update(name.encode())
        # flatten: a 1x1 kernel in channels_last counts as contiguous, and has no last stride of 1.
        sha.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return sha.hexdigest()
