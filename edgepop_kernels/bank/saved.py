"""The way of a bank into a state_dict and back, to another device, into a copy."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..nn import MaskedLayer
from . import state
from .state import State


class Saved(nn.Module):
    """The part of a bank that takes its tasks along.

    place    int64 [2] on the CPU: the task in use and the number of tasks, as a state_dict has them
    _held    what each task has, of the one in use nothing: the network has it
    _first   what a new task starts from
    _aside   statistics of norms, while masks are mixed
    """

    model: nn.Module
    place: torch.Tensor
    _layers: dict[str, MaskedLayer]
    _beside: list[str]
    _first: State
    _held: list[State]
    _aside: State
    _mixed: bool
    _packed: dict[int, Any]
    _coded: tuple[list[State], State]

    if TYPE_CHECKING:  # of MaskBank

        def unmix(self) -> None: ...

        def _replace_all(self, tasks: list[State], in_use: int) -> None: ...

    def _check_unmixed(self, what: str) -> None:
        if self._mixed:
            raise RuntimeError(f"{what}: the masks are mixed, and no task is in the network; call unmix() first")

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self._check_unmixed("state_dict")
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for task, held in enumerate(self._held):
            destination |= {f"{prefix}tasks.{task}.{name}": value for name, value in held.items()}

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        metadata: dict[str, Any],
        strict: bool,
        missing: list[str],
        unexpected: list[str],
        errors: list[str],
    ) -> None:
        begin, place = f"{prefix}tasks.", state_dict.get(f"{prefix}place")
        others = {name: value for name, value in state_dict.items() if not name.startswith(begin)}
        if isinstance(place, torch.Tensor) and place.shape == (2,):
            in_use, count = place.tolist()
            tasks: list[State] = [{} for _ in range(count)]
            problems: list[str] = []
            self.unmix()
            for name, value in state_dict.items():
                if name.startswith(begin):
                    number, _, inner = name.removeprefix(begin).partition(".")
                    if not number.isdecimal() or int(number) >= count:
                        problems.append(f"{name}: expected tasks below {count}")
                    else:
                        device = state.named(self.model, inner).device if inner in self._first else self._device(inner)
                        tasks[int(number)][inner] = value.detach().to(device, copy=True)
            for task, held in enumerate(tasks):
                if task != in_use:
                    found = state.problems(held, self.model, self._layers, self._beside)
                    problems += [f"{begin}{task}.{line}" for line in found]
            errors += problems
            if not problems:
                self._replace_all(tasks, in_use)
        super()._load_from_state_dict(others, prefix, metadata, strict, missing, unexpected, errors)

    def _device(self, name: str) -> torch.device:
        layer = self._layers.get(name.rpartition(".")[0])
        return torch.device("cpu") if layer is None else layer._bare_weight().device

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        def moved(name: str, value: torch.Tensor) -> torch.Tensor:
            now = fn(value)
            # Scores stay float32, as those of layers do.
            return value.to(now.device) if name.endswith("scores") and now.dtype != value.dtype else now

        for held in (*self._held, self._first, self._aside):
            held.update({name: moved(name, value) for name, value in held.items()})
        self._packed, self._coded = {}, ([], {})
        place = self.place
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # as torch has it
        self._buffers["place"] = place  # numbers that the CPU reads
        return self

    def __getstate__(self) -> dict[str, Any]:
        self._check_unmixed("copy")
        return self.__dict__ | {"_packed": {}, "_coded": ([], {})}
