"""Adam and AdamW on scores."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.adam import adam

from .coefficients import Coefficients
from .settings import check_rate
from .steady import Update
from .step import Params, ScoreOptimizer, rate_on_device

_AVERAGES = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")  # torch's names; the last with amsgrad only


class _ScoreAdam(ScoreOptimizer):
    """The base of ScoreAdam and ScoreAdamW, over torch's."""

    _moments = _AVERAGES

    def _start(self, group: dict[str, Any], p: torch.Tensor, value: torch.Tensor) -> dict[str, Any]:
        """The state of a parameter's first step, as torch makes it."""
        state: dict[str, Any] = self.state[p]
        on_device = group["capturable"] or group["fused"]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=p.device if on_device else "cpu")
            for name in _AVERAGES[: 3 if group["amsgrad"] else 2]:
                state[name] = torch.zeros_like(value)
        elif on_device:  # also where it became so after some steps
            state["step"] = state["step"].to(p.device, torch.float32)
        return state

    def _remembers(self, group: dict[str, Any]) -> tuple[str, ...]:
        return _AVERAGES[: 3 if group["amsgrad"] else 2]

    def _coefficients(self, group: dict[str, Any], states: list[dict[str, Any]]) -> Iterable[Coefficients]:
        check_rate(group["lr"])
        return _counted(group, [state["step"] for state in states], None)

    def _updates(
        self,
        group: dict[str, Any],
        params: list[torch.Tensor],
        values: list[torch.Tensor],
        grads: Sequence[torch.Tensor | None],
    ) -> Iterator[Update]:
        names = self._remembers(group)
        coefficients = _counted_on_device if group["capturable"] else _counted
        counts = [self._start(group, p, value)["step"] for p, value in zip(params, values, strict=True)]
        for p, value, grad, own in zip(params, values, grads, coefficients(group, counts, params), strict=True):
            yield Update(value, grad, tuple(self._moment(p, name, value) for name in names), own)

    def _torch_step(self, group: dict[str, Any], params: list[torch.Tensor]) -> None:
        states = [self._start(group, p, p) for p in params]
        grads = [p.grad for p in params if p.grad is not None]
        averages, squares = ([state[name] for state in states] for name in _AVERAGES[:2])
        largest = [state["max_exp_avg_sq"] for state in states] if group["amsgrad"] else []
        options = ("amsgrad", "lr", "weight_decay", "eps", "maximize", "foreach", "fused", "capturable")
        adam(
            params,
            grads,
            averages,
            squares,
            largest,
            [state["step"] for state in states],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            decoupled_weight_decay=group["decoupled_weight_decay"],
            **{name: group[name] for name in options},
        )


def _counted(
    group: dict[str, Any], counts: list[torch.Tensor], params: list[torch.Tensor] | None
) -> Iterator[Coefficients]:
    """The coefficients of each parameter's next step, which is counted."""
    coefficients = {}  # of each count: all parameters have one, unless some had no gradient at times
    for count in counts:
        count += 1
        t = count.item()
        if t not in coefficients:
            coefficients[t] = Coefficients("adam", _values(group, float(group["lr"]), t))
        yield coefficients[t]


def _counted_on_device(
    group: dict[str, Any], counts: list[torch.Tensor], params: list[torch.Tensor]
) -> list[Coefficients]:
    """The numbers from which the device makes the coefficients of each parameter's next step, which is counted."""
    lr = rate_on_device(group["lr"], params[0])
    rate = float(group["lr"]) if lr is None else 0.0
    decay = float(group["weight_decay"]) if group["decoupled_weight_decay"] else 0.0
    beta1, beta2 = map(float, group["betas"])
    known, rates = _values(group, rate, 1), (rate, beta1, beta2, decay)
    return [Coefficients("adam", known, rates, count, lr) for count in counts]


def _values(group: dict[str, Any], lr: float, t: float) -> tuple[float, ...]:
    decay = float(group["weight_decay"])
    beta1, beta2 = map(float, group["betas"])
    decoupled = group["decoupled_weight_decay"]
    return (
        lr / (1 - beta1**t),
        (1 - beta2**t) ** -0.5,
        1 - beta1,
        -beta1,
        beta2,
        1 - beta2,
        float(group["eps"]),
        0.0 if decoupled else decay,
        1 - lr * decay if decoupled else 1.0,
        -1.0 if group["maximize"] else 1.0,
    )


class ScoreAdam(_ScoreAdam, torch.optim.Adam):
    """An optimizer: torch.optim.Adam in one pass over memory, which also finds the cuts of masked layers for their next
    forward.

    params, model, fused_backward: as ``ScoreSGD`` takes them, which also says what holds of cuts, states and learning
    rates. The other arguments are torch.optim.Adam's; capturable concerns parameters on a GPU: their steps are counted
    there, so that a CUDA graph can hold them. With it, betas that are tensors take torch's own step, which finds no
    cuts.
    """

    def __init__(
        self,
        params: Params | nn.Module,
        lr: float | torch.Tensor = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-08,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        capturable: bool = False,
        model: nn.Module | None = None,
        fused_backward: bool = False,
    ) -> None:
        params = self._find_scores(params, model, fused_backward)
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize, capturable=capturable)
        self._take_scores(fused_backward)


class ScoreAdamW(_ScoreAdam, torch.optim.AdamW):
    """An optimizer: torch.optim.AdamW, weight decay apart from the averages, as ``ScoreAdam`` is torch.optim.Adam."""

    def __init__(
        self,
        params: Params | nn.Module,
        lr: float | torch.Tensor = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-08,
        weight_decay: float = 0.01,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        capturable: bool = False,
        model: nn.Module | None = None,
        fused_backward: bool = False,
    ) -> None:
        params = self._find_scores(params, model, fused_backward)
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize, capturable=capturable)
        self._take_scores(fused_backward)
