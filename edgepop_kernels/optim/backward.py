"""Steps inside backward: scores are updated by the kernel that computes their gradient, which is never stored.

Autograd has no place for this, so a layer's forward hands a ``Use`` of its scores to the Function beneath it, whose
backward consumes the gradient there and returns none. What would make that wrong (a second use of the scores, a second
backward, somebody who waits for the gradient) is looked for before a backward changes anything.
"""

import gc
import warnings
import weakref
from typing import Any

import torch

from .. import ops, torch_private


class StepsInBackward:
    """The steps of one optimizer inside backward. Layers whose scores are among its parameters ask it in their
    forwards, as long as the optimizer lives: it alone holds this."""

    def __init__(self, optimizer: Any, layers: list[Any]) -> None:
        self._optimizer = weakref.ref(optimizer)
        scored = [layer for layer in layers if getattr(layer, "scores", None) is not None]
        self._updaters = {layer.scores: _Updater(weakref.ref(self), layer.scores) for layer in scored}
        self._layers = scored
        for layer in scored:
            layer._updater = self._updaters[layer.scores]
        # Of scores: (group, index) in the optimizer's groups, where they were last found.
        self._places: dict[torch.Tensor, tuple[int, int]] = {}
        self._checked = -1  # the backward that was checked last
        # Of that backward the gradients that there were at its end, of whom, and their versions.
        self._seen: list[tuple[torch.Tensor, torch.Tensor, int]] = []
        self._warned = False
        self.updated: dict[torch.Tensor, bool] = {}  # since the last step; whether a cut is to be found yet

    @property
    def optimizer(self) -> Any:
        return self._optimizer()

    def group_of(self, scores: torch.Tensor) -> dict[str, Any] | None:
        """The param group of ``scores`` as the groups stand; None where they are in none."""
        groups: list[dict[str, Any]] = self.optimizer.param_groups
        i, j = self._places.get(scores, (0, 0))
        if i < len(groups) and j < len(groups[i]["params"]) and groups[i]["params"][j] is scores:
            return groups[i]
        for i, group in enumerate(groups):
            for j, p in enumerate(group["params"]):
                if p is scores:
                    self._places[scores] = i, j
                    return group
        return None

    def check(self, task: int) -> None:
        """Raises RuntimeError where this backward, of forwards in ``task``, would go wrong in any layer; asked by the
        first layer of it."""
        backward = torch_private.current_backward()
        if backward == self._checked:
            return
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if distributed and torch.distributed.get_world_size() > 1:
            raise RuntimeError(
                "fused_backward: several processes average gradients before the step, here there are none left; "
                "build the optimizer without it"
            )
        for updater in self._updaters.values():
            updater.check(task)
        self._checked = backward
        if not self._warned:
            torch_private.after_backward(self._look_at_gradients)

    def _look_at_gradients(self) -> None:
        groups = () if self.optimizer is None else self.optimizer.param_groups
        held = [p for group in groups for p in group["params"] if p.grad is not None]
        self._seen = [(p, p.grad, torch_private.version(p.grad)) for p in held]

    def _warn_of_changed_gradients(self) -> None:
        changed = any(p.grad is grad and torch_private.version(grad) != version for p, grad, version in self._seen)
        self._seen = []
        if changed and not self._warned:
            self._warned = True
            warnings.warn(
                "fused_backward: gradients of other parameters have been changed since backward, as clipping does "
                "(gradient_clip_val, max_grad_norm): the scores had taken their step by then, with theirs as they "
                "were; build the optimizer without it where the scores are meant too",
                stacklevel=2,
            )

    def end(self) -> list[torch.Tensor]:
        """The step's part: the scores whose cuts are to be found. Raises RuntimeError."""
        ours = set(self._updaters.values())
        for layer in self._layers:
            if hasattr(layer, "_updater") and layer._updater not in ours:
                raise RuntimeError(
                    "fused_backward: a later optimizer with fused_backward has taken over these layers; step that one"
                )
        for scores in self.updated:
            _check_no_gradient(scores)
        self._warn_of_changed_gradients()
        done = [scores for scores, without_cut in self.updated.items() if without_cut]
        self.updated.clear()
        return done


class _Updater:
    """The link from one scores parameter, whichever layers share it, to the optimizer that steps on it."""

    def __init__(self, steps: weakref.ref[StepsInBackward], scores: torch.Tensor) -> None:
        self._steps, self.scores = steps, scores
        self.uses: weakref.WeakSet[Use] = weakref.WeakSet()  # not yet spent, their graphs alive

    @property
    def steps(self) -> StepsInBackward:
        steps = self._steps()
        if steps is None:
            raise RuntimeError("fused_backward: the optimizer of this forward's scores is gone; keep it until backward")
        return steps

    def use(self, scores: torch.Tensor | None) -> "Use | None":
        """The ``Use`` that a forward of the layer gives to its backward; None where the scores are to get a gradient as
        ever."""
        trains = scores is self.scores and self.scores.requires_grad and torch.is_grad_enabled()
        if not trains or self._steps() is None or self.steps.group_of(self.scores) is None:
            return None
        use = Use(self)
        self.uses.add(use)
        return use

    def check(self, task: int) -> None:
        waiting = self._waiting(task)
        if waiting > 1:
            gc.collect()  # a graph in a cycle, as an exception's traceback leaves it, awaits nothing
            waiting = self._waiting(task)
        if waiting > 1:
            raise RuntimeError(
                f"fused_backward: scores are used by {waiting} forwards that await their backward, whose gradients "
                "would have to be added up; build the optimizer without it, or run what needs no gradient under "
                "torch.no_grad()"
            )
        if waiting == 0:
            return
        self.check_not_updated()
        if torch_private.waits_for_gradient(self.scores):
            raise RuntimeError("fused_backward: a hook on these scores waits for a gradient, which they do not get")
        _check_no_gradient(self.scores)

    def check_not_updated(self) -> None:
        if self.scores in self.steps.updated:
            raise RuntimeError(
                "fused_backward: a backward has updated these scores since the last step(); gradients cannot be "
                "accumulated: call step() after every backward, or build the optimizer without it"
            )

    def _waiting(self, task: int) -> int:
        # A use of scores that have changed since can no more run backward.
        return sum(use.task == task and use.version == torch_private.version(self.scores) for use in self.uses)


class Use:
    """A use of scores by one forward, whose backward is to take the optimizer's step on them.

    task  the backward in which this forward runs, -1 for none: what activation checkpointing repeats there does not
          count beside the forward that it repeats
    """

    def __init__(self, updater: _Updater) -> None:
        self.updater = updater
        self.scores = updater.scores
        self.version, self.address = torch_private.version(self.scores), self.scores.data_ptr()
        self.task = torch_private.current_backward()

    def begin(self, node: Any) -> bool:
        """Whether this backward of ``node`` wants the scores' gradient. Raises RuntimeError where it cannot be spent,
        before anything is changed."""
        if not self._wanted(node):
            return False
        self.updater.check_not_updated()
        if (torch_private.version(self.scores), self.scores.data_ptr()) != (self.version, self.address):
            raise RuntimeError(
                "fused_backward: the scores have been modified by an inplace operation since this forward"
            )
        self.updater.steps.check(self.task)
        return True

    def _wanted(self, node: Any) -> bool:
        leaf = next(n for n, _ in node.next_functions if getattr(n, "variable", None) is self.scores)
        try:
            return torch_private.backward_reaches(leaf)
        except RuntimeError as error:
            raise RuntimeError(
                "fused_backward: torch.autograd.grad asks for the gradient of scores, which is spent as it is computed"
            ) from error

    def spend(
        self,
        op: str,
        dy: torch.Tensor,
        x: torch.Tensor,
        weight: torch.Tensor,
        cut: torch.Tensor | None,
        of: str,
        weight_grad: str,
        signs: torch.Tensor | None,
        *geometry: Any,
    ) -> torch.Tensor | None:
        """The optimizer's step on the scores with the dS of ``op``; dW as ``weight_grad`` has it."""
        steps, scores = self.updater.steps, self.scores
        optimizer, group = steps.optimizer, steps.group_of(scores)
        run = ops.update_of(op, dy, x, weight)
        update = None if run is None else optimizer._update_in_kernel(group, scores)
        dw: torch.Tensor | None
        if run is None or update is None:
            operands = (dy, x, weight, scores, cut, of)
            ds, dw = getattr(ops, f"{op}_dw")(*operands, True, weight_grad, *geometry, signs)
            optimizer._step_alone(group, scores, ds)
        else:
            dw = run(dy, x, weight, scores, cut, of, update, weight_grad, *geometry, signs)
            torch.autograd.graph.increment_version(scores)
        steps.updated[scores] = update is not None
        self.updater.uses.discard(self)
        return dw


def _check_no_gradient(scores: torch.Tensor) -> None:
    if scores.grad is not None:
        raise RuntimeError(
            "fused_backward: scores have a .grad, from a part of the loss that uses them outside their layer or from "
            "an earlier backward; their whole gradient must come from one use in the layer"
        )
