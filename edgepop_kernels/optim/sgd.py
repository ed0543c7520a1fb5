"""Stochastic gradient descent on scores."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.sgd import sgd

from .coefficients import Coefficients
from .settings import MOST, check_rate
from .steady import Update
from .step import Params, ScoreOptimizer, rate_on_device


class ScoreSGD(ScoreOptimizer, torch.optim.SGD):
    """An optimizer: torch.optim.SGD in one pass over memory, which also finds the cuts of masked layers for their next
    forward.

    params  as torch.optim takes them, groups too; or the network itself, for all its parameters
    model   the network, where ``params`` is not it: its masked layers under TopK or Percentile whose scores are among
            the parameters select nothing in their next forward. Without it only the update is done

    fused_backward  the step on the scores of masked layers is made inside backward, by the kernel that computes their
            gradient, and that is never stored: ``scores.grad`` stays None, the values are the same bits. ``step`` does
            the rest. For training in which one step follows every backward: what looks at gradients in between finds
            none (where clipping has changed other parameters', ``step`` warns), what waits for them (GradScaler,
            several processes) is refused, and a backward that is given up has changed scores. Where the native backend
            does not compute the layer, or cannot step through its scores, one layer's gradient at a time is stored,
            until a step of its own. Layers whose weights score themselves, and rescaled supermasks, have gradients as
            ever. It needs the model

    The other arguments are torch.optim.SGD's, as are state, param groups and schedulers: a state_dict of either loads
    into the other. Values equal torch's to the rounding of float32, the cuts are exact. A cut serves as long as the
    scores and the rule stand as the step left them, and until training gives way to evaluation. torch counts most
    writes; those that it does not (through ``scores.data``, by other processes) show in 32 of the scores, unless they
    reach a few others alone: after such a write call ``layer.forget()``. On a GPU a cut is the next selection's warm
    start.

    float32 parameters on the CPU are updated by the native kernel, on a GPU by the CUDA kernel where the module was
    compiled with it; others by torch's, and their layers select in forward. A learning rate that is a tensor on the GPU
    is read there: the host does not wait for it, and replays of a CUDA graph follow it. Raises ValueError and TypeError
    for arguments, as torch does, and for the settings of any param group that are NaN, infinite or out of range, which
    torch lets by, and for a model none of whose scores are among the parameters; in ``step`` ValueError for a sparse
    gradient and for a rate that has become NaN or infinite. With
    ``fused_backward``, backward raises RuntimeError before anything is changed for what it cannot be part of: scores
    used twice, a second backward before ``step``, a hook on the scores or a ``.grad`` of theirs, several processes;
    under torch.compile(fullgraph=True) forward does, and GradScaler's step afterwards.

    >>> model = ek.convert(nn.Sequential(nn.Linear(64, 10)), keep=0.5)
    >>> optimizer = ek.optim.ScoreSGD(model, lr=0.1, momentum=0.9)
    >>> model(torch.randn(4, 64)).sum().backward()
    >>> optimizer.step()
    """

    _moments = ("momentum_buffer",)

    def __init__(
        self,
        params: Params | nn.Module,
        lr: float | torch.Tensor = 0.001,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        model: nn.Module | None = None,
        fused_backward: bool = False,
    ) -> None:
        params = self._find_scores(params, model, fused_backward)
        super().__init__(params, lr, momentum, dampening, weight_decay, nesterov, maximize=maximize)
        self._take_scores(fused_backward)

    def _remembers(self, group: dict[str, Any]) -> tuple[str, ...]:
        return () if group["momentum"] == 0 else self._moments

    def _coefficients(self, group: dict[str, Any], states: list[dict[str, Any]]) -> Iterable[Coefficients]:
        lr = group["lr"]
        if type(lr) is not float or not abs(lr) <= MOST:
            check_rate(lr)
        return [Coefficients("sgd", (float(group["lr"]), *_settings(group), 0.0))] * len(states)

    def _updates(
        self,
        group: dict[str, Any],
        params: list[torch.Tensor],
        values: list[torch.Tensor],
        grads: Sequence[torch.Tensor | None],
    ) -> Iterator[Update]:
        momentum = float(group["momentum"])
        lr = rate_on_device(group["lr"], params[0])
        settings = float(group["lr"]) if lr is None else 0.0, *_settings(group)
        first, later = (Coefficients("sgd", (*settings, begins), lr=lr) for begins in (1.0, 0.0))
        for p, value, grad in zip(params, values, grads, strict=True):
            if momentum == 0:
                yield Update(value, grad, (), later)
            elif self.state[p].get("momentum_buffer") is None:
                # Zeros, which the kernel does not read: what an interrupted step leaves is a buffer like any other.
                self.state[p]["momentum_buffer"] = buffer = torch.zeros_like(value)
                yield Update(value, grad, (buffer,), first)
            else:
                yield Update(value, grad, (self._moment(p, "momentum_buffer", value),), later)

    def _torch_step(self, group: dict[str, Any], params: list[torch.Tensor]) -> None:
        remembers = group["momentum"] != 0
        buffers = [self.state[p].get("momentum_buffer") if remembers else None for p in params]
        options = ("weight_decay", "momentum", "lr", "dampening", "nesterov", "maximize", "foreach", "fused")
        grads = [p.grad for p in params if p.grad is not None]
        sgd(params, grads, buffers if remembers else [], **{name: group[name] for name in options})
        if remembers:
            for p, buffer in zip(params, buffers, strict=True):
                self.state[p]["momentum_buffer"] = buffer


def _settings(group: dict[str, Any]) -> tuple[float, ...]:
    """Sgd's fields of csrc/common/update.h between the learning rate and whether the buffer is empty."""
    return (
        float(group["momentum"]),
        1.0 - group["dampening"],
        float(group["weight_decay"]),
        -1.0 if group["maximize"] else 1.0,
        float(group["nesterov"]),
    )
