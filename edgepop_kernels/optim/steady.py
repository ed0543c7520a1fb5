"""A step of parameters that are as the last step left them: what that one found out, it need not find out again.

Of the parameters of a network most steps see the same: the same tensors, gradients of the same layout, the same state.
Then all that is asked is whether it is so; anything else is for ``ScoreOptimizer`` to look at from the beginning.
"""

from typing import Any, NamedTuple

import torch

from .. import torch_private
from .coefficients import Coefficients


class Update(NamedTuple):
    """One parameter's update as a backend's ``step`` takes it; the tensors float32 and of one layout without gaps.

    grad     None for a kernel that computes it
    moments  what the optimizer remembers: the momentum buffer, or Adam's averages
    """

    value: torch.Tensor
    grad: torch.Tensor | None
    moments: tuple[torch.Tensor, ...]
    coefficients: Coefficients


class _Member(NamedTuple):
    """A parameter that trains, and what the optimizer remembers of it."""

    p: torch.Tensor
    address: int
    stride: tuple[int, ...]
    state: dict[str, Any]
    names: tuple[str, ...]
    moments: tuple[torch.Tensor, ...]
    scores: Any  # whose scores they are, as the optimizer knows it; None for none


class _Group(NamedTuple):
    group: dict[str, Any]
    params: list[torch.Tensor]
    size: int
    members: list[_Member]
    states: list[dict[str, Any]]
    idle: list[torch.Tensor]  # without a gradient


class Steady:
    """The groups of an optimizer whose every gradient went to a kernel that reads parameter and state in place."""

    def __init__(self, groups: list[_Group]) -> None:
        self.groups = groups

    @classmethod
    def of(cls, optimizer: Any) -> "Steady | None":
        """After a step of ``optimizer``; None where the next has to look at everything again."""
        groups = []
        for group in optimizer.param_groups:
            names, members, idle = optimizer._remembers(group), [], []
            for p in group["params"]:
                if p.grad is None:
                    idle.append(p)
                    continue
                state = optimizer.state.get(p, {})
                moments = tuple(state.get(name) for name in names)
                if not optimizer._in_place(group, p, moments):
                    return None
                members.append(_Member(p, p.data_ptr(), p.stride(), state, names, moments, optimizer._scores.get(p)))
            states = [m.state for m in members]
            groups.append(_Group(group, group["params"], len(group["params"]), members, states, idle))
        return cls(groups) if any(g.members for g in groups) else None

    def updates(self, optimizer: Any) -> list[tuple[torch.Tensor, Any, Any]] | None:
        """The updates of this step: parameter, update (a plain tuple, which takes no call) and whose scores it is;
        None, with nothing changed, where something is not as it was."""
        if len(optimizer.param_groups) != len(self.groups):
            return None
        grads = []
        for (group, params, size, members, _, idle), now in zip(self.groups, optimizer.param_groups, strict=True):
            if group is not now or group["params"] is not params or len(params) != size:
                return None
            if members and optimizer._remembers(group) != members[0].names:
                return None
            for p in idle:
                if p.grad is not None:
                    return None
            for p, address, stride, state, names, moments, _ in members:
                g = p.grad
                if g is None or type(g) is not torch.Tensor or g.layout is not torch.strided or g.is_neg():
                    return None
                if g.dtype is not torch.float32 or g.stride() != stride or g._is_zerotensor():
                    return None
                if p.data_ptr() != address or p.stride() != stride or optimizer.state.get(p) is not state:
                    return None
                for name, moment in zip(names, moments, strict=True):
                    if state[name] is not moment:
                        return None
                grads.append(g)
        updates, taken = [], iter(grads)
        for group, _, _, members, states, _ in self.groups:
            for member, coefficients in zip(members, optimizer._coefficients(group, states), strict=True):
                updates.append((member.p, (member.p, next(taken), member.moments, coefficients), member.scores))
        return updates


def in_place(p: torch.Tensor, moments: tuple[torch.Tensor | None, ...]) -> bool:
    """Whether a kernel on the CPU reads and writes ``p``, its gradient and its state where they lie."""
    return (
        p.device.type == "cpu"
        and p.grad is not None
        and p.grad.stride() == p.stride()
        and all(torch_private.plain(t) and t.stride() == p.stride() for t in moments if t is not None)
        and None not in moments
    )
