"""K masks over one set of weights: the task in use, tasks that are put away, and their superposition."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from .. import checks, mixing, selecting
from ..interop.containers import Content
from ..interop.load import Loaded
from ..nn.cuts import Standing
from ..nn.tools import check_unwrapped
from . import checkpoint, state, theirs
from .saved import Saved
from .state import State, join


def entropy(outputs: torch.Tensor) -> torch.Tensor:
    """The mean entropy of the softmax of ``outputs`` [N, classes, ...]: how unsure a network is of its answers."""
    log_p = outputs.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1).mean()


class MaskBank(Saved):
    """A network with a mask for each of several tasks over one set of weights (Wortsman et al. 2020, "Supermasks in
    Superposition"; Mallya et al. 2018, "Piggyback"; Mallya & Lazebnik 2018, "PackNet").

    model  a network of masked layers, which stays as it is and is called as ever, ``model(x)`` or ``bank(x)``: it holds
           one task, that in use. Or a network of supsup's MultitaskMask layers: they become masked layers in place, and
           what they hold of each task the bank's tasks, the first in use

    Of a task are its scores, or once frozen its masks, 1 bit a weight; the running statistics of norms; and parameters
    that train beside masks when the bank is made, such as biases: ``convert(..., freeze_rest=True)`` leaves none.
    Scores stay the same parameters from task to task, with other values: build an optimizer for each task.

    A state_dict has the task in use under the network's own names, the others as ``tasks.N....``; loaded, a bank has
    the tasks that were saved. ``edgepop_kernels.save_packed(bank, file)`` saves masks without scores, ``load_packed``
    loads them, and leaves in ``meta`` what was said beside them. Raises TypeError; ValueError for layers without
    scores, rescaled, or with a masked bias.

    >>> model = ek.convert(nn.Sequential(nn.Linear(64, 10)), keep=0.3, freeze_rest=True)
    >>> bank = ek.MaskBank(model)
    >>> for task in range(3):
    ...     bank.add()  # and train bank.model here
    ...     bank.freeze()
    0
    1
    2
    >>> bank.use(1)
    >>> bank(torch.randn(5, 64)).shape, bank.tasks
    (torch.Size([5, 10]), 3)
    >>> alphas = torch.full((3,), 1 / 3, requires_grad=True)
    >>> with bank.mix(alphas):
    ...     bank(torch.randn(5, 64)).sum().backward()
    >>> alphas.grad.shape
    torch.Size([3])
    """

    meta: dict[str, Any]

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
        if isinstance(model, MaskBank):
            raise TypeError("model: expected a network, got a MaskBank; its network is bank.model")
        tasks = theirs.taken(model)
        self.meta = {}
        self._layers = state.masked_layers(model)
        check_unwrapped("MaskBank", list(self._layers.values()))
        self.model = model
        self._trained = state.trained_beside(model, self._layers)
        self._beside = self._trained + state.statistics(model)
        self._first: State = {name: state.named(model, name).detach().clone() for name in self._beside}
        self._held: list[State] = []  # of the task in use an empty one: the network has it
        self._in_use = -1
        self._aside: State = {}  # statistics of norms, while masks are mixed
        self._mixed = False
        self._packed: dict[int, tuple[Standing | None, State]] = {}
        self._coded: tuple[list[State], State] = [], {}
        self.register_buffer("place", torch.tensor([-1, 0], device="cpu"))  # what a state_dict has of both
        if tasks:
            self._take_tasks([{**self._first, **task} for task in tasks])

    @property
    def tasks(self) -> int:
        """The number of tasks."""
        return len(self._held)

    @property
    def task(self) -> int | None:
        """The task in use; None before there is one."""
        return None if self._in_use < 0 else self._in_use

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The network's output, of the task in use, or of the superposition."""
        return self.model(*args, **kwargs)

    def add(self, masks: Mapping[str, torch.Tensor] | None = None, *, like: int | None = None) -> int:
        """Adds a task, takes it into use, and returns its number.

        It starts from scores that are drawn anew, and in all else as the network was when the bank was made. masks: of
        every masked layer by name, bool, of its weight's shape: the task is frozen with them. like: a task of which it
        is a copy. Raises TypeError, ValueError, before anything changes.
        """
        if masks is not None and like is not None:
            raise ValueError(f"like: expected masks or like, one of the two, got both, like={like}")
        start = None if like is None else self._state(self._checked(like, "like"))
        given = None if masks is None else self._given(masks)
        self._put_away()
        for layer in self._layers.values():
            if start is None and given is None:
                state.thaw(layer)
                layer.reset_scores()
        if start is not None or given is not None:
            state.put(self.model, self._layers, {**self._first, **(start or {}), **(given or {})})
        else:
            with torch.no_grad():
                for name, value in self._first.items():
                    state.named(self.model, name).copy_(value)
        self._held.append({})
        self._take(len(self._held) - 1)
        return self._in_use

    def use(self, task: int) -> None:
        """Takes a task into use: the network has its masks, and trains its scores where it is not frozen. Ends a
        mixture. Raises TypeError, ValueError."""
        task = self._checked(task)
        self.unmix()
        if task == self._in_use:
            return
        self._put_away()
        state.put(self.model, self._layers, self._held[task])
        self._held[task] = {}
        self._take(task)

    def freeze(self, task: int | None = None) -> None:
        """Keeps the masks of a task, that in use if none is given, packed to 1 bit a weight; its scores are gone."""
        if task is None and self._in_use < 0:
            raise ValueError("task: there is none in use; call add() first")
        task = self._in_use if task is None else self._checked(task)
        bits = self.packed_masks(task)
        if task == self._in_use:
            for name, layer in self._layers.items():
                layer._freeze_as(bits[name].clone())
        else:
            kept = {name: self._held[task][name] for name in self._beside}
            self._held[task] = {join(name, "mask_bits"): b for name, b in bits.items()} | kept
        self._packed.pop(task, None)

    def packed_masks(self, task: int) -> State:
        """The masks of a task by the names of the layers, as ``pack_mask`` packs them; not to be written to."""
        task = self._checked(task)
        standing, bits = self._packed.get(task, (None, {}))
        held = self._live() if task == self._in_use else self._held[task]
        scores = [held[key] for name in self._layers if (key := join(name, "scores")) in held]
        if bits and (standing.holds(scores) if standing is not None else not scores):
            return bits
        bits = state.packed(held, self._layers)
        self._packed[task] = Standing(scores) if scores else None, bits
        return bits

    def masks(self, task: int) -> dict[str, torch.Tensor]:
        """The masks of a task by the names of the layers: bool, of the weights' shapes."""
        bits = self.packed_masks(task)
        return {name: selecting.unpack_mask(bits[name], m._weight_shape()) for name, m in self._layers.items()}

    def mix(self, alphas: torch.Tensor) -> contextlib.ExitStack:
        """Superposes the masks of all tasks: until ``unmix`` or ``use``, or to the end of a ``with`` block, the weights
        are ``W * sum(alphas[t] * M_t)``, with gradients to the alphas. One product a layer, whatever the number of
        tasks; no mask is unpacked as a whole.

        alphas: [tasks], of a floating dtype, on the weights' device. Norms with running statistics are as in training
        meanwhile, in both modes, and gather none: no statistics are of a superposition. Raises TypeError; ValueError,
        also where tasks differ in parameters beside their masks, which do not superpose.
        """
        checks.mixture("alphas", alphas, self.tasks)
        if not self.tasks:
            raise ValueError("alphas: there is no task yet; call add() first")
        if self._trained:
            names = ", ".join(self._trained[:4]) + (", ..." if len(self._trained) > 4 else "")
            raise ValueError(
                f"alphas: tasks differ in {names} too, which train beside the masks; superposed masks want a network "
                "where nothing else does, as convert(..., freeze_rest=True) makes it"
            )
        device = next(iter(self._layers.values()))._bare_weight().device
        if alphas.device != device:
            raise ValueError(f"alphas: expected them on the weights' device {device}, got {alphas.device}")
        codes = self._codes()
        for name, layer in self._layers.items():
            layer._mixture = codes[name], alphas
        if not self._mixed:
            for name, norm in state.norms(self.model):
                for leaf, value in norm._buffers.items():
                    if value is not None:
                        self._aside[join(name, leaf)] = value
                        norm._buffers[leaf] = None
        self._mixed = True
        ends = contextlib.ExitStack()
        ends.callback(self.unmix)
        return ends

    def unmix(self) -> None:
        """Ends a mixture: the network has the masks of the task in use."""
        for layer in self._layers.values():
            layer._mixture = None
        for name, value in self._aside.items():
            owner, _, leaf = name.rpartition(".")
            self.model.get_submodule(owner)._buffers[leaf] = value
        self._aside, self._mixed = {}, False

    def infer(
        self, *args: Any, objective: Callable[[Any], torch.Tensor] = entropy, halving: bool = False, **kwargs: Any
    ) -> int:
        """The task of inputs whose task nobody tells: that whose share, raised, makes ``objective`` of the output fall
        fastest, in one forward and backward of the superposition (Wortsman et al. 2020, section 3.3, "One-Shot").

        objective: a function of the network's output to a scalar; the entropy if none is given, for outputs [N,
        classes]. halving: the half with the steeper slopes stays and is mixed anew, until one is left ("Binary": log2
        of the number of tasks such steps). Other arguments are the network's. A mixture that was there is ended; the
        task in use stays.
        """
        if not self.tasks:
            raise ValueError("task: there is none yet; call add() first")
        left = torch.ones(self.tasks, dtype=torch.bool)
        device = next(iter(self._layers.values()))._bare_weight().device
        while True:
            alphas = (left / left.sum()).to(device).requires_grad_()
            with torch.enable_grad(), self.mix(alphas):
                (slopes,) = torch.autograd.grad(objective(self.model(*args, **kwargs)), alphas)
            slopes = slopes.cpu().masked_fill(~left, torch.inf)
            if not slopes[left].isfinite().all():
                raise ValueError("objective: its slopes are not finite numbers; the outputs may not be")
            better = left & (slopes <= slopes[left].median())
            if not halving or int(better.sum()) in (1, int(left.sum())):  # as many: they tie
                return int(slopes.argmin())
            left = better

    def _codes(self) -> State:
        """Of each layer the masks of all tasks as ``mixing`` reads them, made anew where one has changed."""
        bits = [self.packed_masks(task) for task in range(self.tasks)]
        known, codes = self._coded
        if len(known) != len(bits) or any(a is not b for a, b in zip(known, bits, strict=True)):
            codes = {name: mixing.codes_of(torch.stack([masks[name] for masks in bits])) for name in self._layers}
            self._coded = bits, codes
        return codes

    def _live(self) -> State:
        """What the network has of the task in use, itself."""
        live: State = {}
        for name, layer in self._layers.items():
            fixed = layer.mask_bits if layer.rule.fixed else None
            if fixed is not None:
                live[join(name, "mask_bits")] = fixed
            elif layer.scores is not None:
                live[join(name, "scores")] = layer.scores
        return live | {
            name: self._aside[name] if name in self._aside else state.named(self.model, name).detach()
            for name in self._beside
        }

    def _state(self, task: int) -> State:
        return self._live() if task == self._in_use else self._held[task]

    def _put_away(self) -> None:
        self.unmix()
        if self._in_use >= 0:
            self._held[self._in_use] = state.taken(self.model, self._layers, self._beside)
        self._packed.pop(self._in_use, None)

    def _take(self, task: int) -> None:
        self._in_use = task
        self._packed.pop(task, None)
        self.place.copy_(torch.tensor([task, len(self._held)]))

    def _checked(self, task: int, name: str = "task") -> int:
        if isinstance(task, bool) or not isinstance(task, int):
            raise TypeError(f"{name}: expected the number of a task, got {type(task).__name__}")
        if not 0 <= task < len(self._held):
            tasks = f"in [0, {len(self._held)})" if self._held else "of a task, and there is none yet; call add() first"
            raise ValueError(f"{name}: expected a number {tasks}, got {task}")
        return task

    def _given(self, masks: Mapping[str, torch.Tensor]) -> State:
        """Masks that a user hands in, packed."""
        if not isinstance(masks, Mapping):
            raise TypeError(f"masks: expected a dict of masks by the names of layers, got {type(masks).__name__}")
        if differing := sorted(self._layers.keys() ^ masks.keys()):
            what = "a mask of" if differing[0] in self._layers else "no mask of"
            raise ValueError(f"masks: expected one for each masked layer, {what} {differing[0]!r} too")
        for name, mask in masks.items():
            checks.mask_tensor(f"masks[{name!r}]", mask, self._layers[name]._weight_shape())
        return {
            join(name, "mask_bits"): selecting.pack_mask(mask.to(self._layers[name]._bare_weight().device))
            for name, mask in masks.items()
        }

    def _replace_all(self, tasks: list[State], in_use: int) -> None:
        """Takes tasks that were checked in the place of all there are; the network is to have the one in use."""
        self.unmix()
        self._held, self._packed, self._coded = tasks, {}, ([], {})
        self._take(in_use)

    def _take_tasks(self, tasks: list[State]) -> None:
        """Takes tasks that were checked in the place of all there are, the first of them into use."""
        state.put(self.model, self._layers, tasks[0])
        self._replace_all([{}, *tasks[1:]], 0)

    def _load_checkpoint(self, content: Content) -> Loaded:
        return checkpoint.load(self, content)

    def extra_repr(self) -> str:
        """The text of ``print(bank)`` between the parentheses: how many tasks, and which is in use."""
        return f"tasks={self.tasks}, task={self.task}"
