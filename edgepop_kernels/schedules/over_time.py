"""How much each layer keeps as training goes on."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import nn

from .by_name import Keep, keep_of_layers, layers_with_keep, plan, set_all

Shape = Literal["cubic", "linear", "cosine"]
# The part of the way that is still to go, by the part of the time that is over.
SHAPES: dict[str, Callable[[float], float]] = {
    "cubic": lambda over: (1 - over) ** 3,
    "linear": lambda over: 1 - over,
    "cosine": lambda over: (1 + math.cos(math.pi * over)) / 2,
}


class KeepSchedule:
    """The fraction of weights that masked layers keep, from ``initial`` to ``final`` as steps go by: gradual pruning
    (Zhu and Gupta 2017, "To prune, or not to prune", equation 1, in fractions kept; there ``shape`` is "cubic").

        keep(t) = final + (initial - final) * (1 - (t - begin) / (end - begin)) ** 3

    model     a network with masked layers whose rule has a keep to set; what a later ``convert`` makes is not scheduled
    final     a number in (0, 1] or {pattern: number}, as ``set_keep`` takes it: ``density.erk(model, 0.1)``, for one.
              Layers that no pattern has are left alone
    initial   the same of the start, for the same layers
    begin     steps, 0 at least: until then, ``initial`` holds
    end       steps, above ``begin``: from then on, ``final`` holds
    every     steps, 1 at least, between changes. Each change costs the next forward a selection that starts cold, and
              a CUDA graph (``graphed_step``) is captured anew for it
    shape     "cubic", "linear" or "cosine"

    Sets ``initial`` at once. ``step()`` is called after each ``optimizer.step()``, like a learning rate's scheduler.
    Masks follow at the next forward; a weight that was dropped comes back where its score says so. Raises TypeError,
    ValueError, before any layer changes.

    >>> model = ek.convert(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)))
    >>> schedule = ek.KeepSchedule(model, final=0.2, end=4)
    >>> for _ in range(4):
    ...     schedule.step()
    ...     print(round(model[0].keep, 4))
    0.5375
    0.3
    0.2125
    0.2
    """

    def __init__(
        self,
        model: nn.Module,
        final: Keep,
        initial: Keep = 1.0,
        begin: int = 0,
        *,
        end: int,
        every: int = 1,
        shape: Shape = "cubic",
    ) -> None:
        begin, end, every = _checked("begin", begin, 0), _checked("end", end, 1), _checked("every", every, 1)
        if end <= begin:
            raise ValueError(f"end: expected more steps than begin={begin}, got {end}")
        if not isinstance(shape, str) or shape not in SHAPES:
            raise ValueError(f"shape: expected one of {', '.join(map(repr, SHAPES))}, got {shape!r}")
        names = layers_with_keep(model)
        finals = keep_of_layers(final, names, "final")
        initials = keep_of_layers(initial, finals if not isinstance(initial, Mapping) else names, "initial")
        if initials.keys() != finals.keys():
            odd = next(name for name in names if (name in initials) != (name in finals))
            raise ValueError(f"initial: expected the layers of final, got {odd!r} in one of the two alone")
        plan(model, finals, "final")  # what the rules do not take is to be heard of now, not at the end
        start = plan(model, initials, "initial")
        self._model, self._step = model, 0
        self._settings: dict[str, Any] = {
            "final": finals,
            "initial": initials,
            "begin": begin,
            "end": end,
            "every": every,
            "shape": shape,
        }
        self._set = initials
        set_all(start)

    @property
    def keep(self) -> dict[str, float]:
        """The fraction kept of each scheduled layer by its name, as of the last step."""
        return dict(self._set)

    def step(self) -> None:
        """Counts one training step, and sets what each layer keeps from now on. Raises ValueError, and counts nothing,
        where a layer's rule has no ``keep`` any more, as while it is frozen."""
        self._go_to(self._step + 1)

    def state_dict(self) -> dict[str, Any]:
        """The steps counted, and the settings, in Python's own types."""
        settings = {key: dict(v) if isinstance(v, dict) else v for key, v in self._settings.items()}
        return {"step": self._step, **settings}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where ``state_dict`` was taken, and sets what each layer keeps there. Raises ValueError, and changes
        nothing, for the state of a schedule with other settings."""
        if not isinstance(state, Mapping) or state.keys() != {"step", *self._settings}:
            raise ValueError(f"state: expected what KeepSchedule.state_dict() returns, got {state!r:.200}")
        for key, own in self._settings.items():
            if state[key] != own:
                raise ValueError(f"state: it is of a schedule with {key}={state[key]!r:.80}, this one has {own!r:.80}")
        self._go_to(_checked("state: step", state["step"], 0), loaded=True)

    def _go_to(self, step: int, loaded: bool = False) -> None:
        keep = self._keep_at(step)
        if loaded or keep != self._set:
            set_all(plan(self._model, keep))
        self._step, self._set = step, keep

    def _keep_at(self, step: int) -> dict[str, float]:
        final, initial, begin, end, every, shape = self._settings.values()
        if step >= end:
            return dict(final)
        since = max(step - begin, 0) // every * every
        if not since:
            return dict(initial)
        to_go = SHAPES[shape](since / (end - begin))
        return {name: to + (initial[name] - to) * to_go for name, to in final.items()}


def _checked(argument: str, steps: object, least: int) -> int:
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise TypeError(f"{argument}: expected a number of steps, an int, got {type(steps).__name__}")
    if steps < least:
        raise ValueError(f"{argument}: expected at least {least}, got {steps}")
    return steps
