"""Adam and AdamW on scores."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim.adam import adam

from .step import ScoreOptimizer, Update

_AVERAGES = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")  # torch's names; the last with amsgrad only


class _ScoreAdam(ScoreOptimizer):
    """What Adam and AdamW share over torch's."""

    def _start(self, group, p, value):
        """The state of a parameter's first step, as torch makes it."""
        state = self.state[p]
        if not state:
            on_device = group["capturable"] or group["fused"]
            state["step"] = torch.zeros((), dtype=torch.float32, device=p.device if on_device else "cpu")
            for name in _AVERAGES[: 3 if group["amsgrad"] else 2]:
                state[name] = torch.zeros_like(value)
        return state

    def _updates(self, group, params, values, grads):
        names = _AVERAGES[: 3 if group["amsgrad"] else 2]
        coefficients = {}  # of each count of steps: all parameters have one, unless some had no gradient at times
        for p, value, grad in zip(params, values, grads, strict=True):
            count = self._start(group, p, value)["step"]
            count += 1
            t = count.item()
            if t not in coefficients:
                coefficients[t] = _coefficients(group, t)
            yield Update(value, grad, tuple(self._moment(p, name, value) for name in names), coefficients[t])

    def _torch_step(self, group, params):
        states = [self._start(group, p, p) for p in params]
        averages = [[state[name] for state in states] for name in _AVERAGES[:2]]
        largest = [state["max_exp_avg_sq"] for state in states] if group["amsgrad"] else []
        options = ("amsgrad", "lr", "weight_decay", "eps", "maximize", "foreach", "fused", "capturable")
        adam(
            params,
            [p.grad for p in params],
            *averages,
            largest,
            [state["step"] for state in states],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            decoupled_weight_decay=group["decoupled_weight_decay"],
            **{name: group[name] for name in options},
        )


def _coefficients(group, t):
    lr, decay = float(group["lr"]), float(group["weight_decay"])
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
    """torch.optim.Adam in one pass over memory, which also finds the cuts of masked layers for their next forward.

    params, model: as ``ScoreSGD`` takes them, which also says what holds of cuts and states. The other arguments are
    torch.optim.Adam's; capturable concerns parameters on a GPU.
    """

    def __init__(
        self,
        params: Iterable | nn.Module,
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        capturable: bool = False,
        model: nn.Module | None = None,
    ):
        params = self._find_scores(params, model)
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize, capturable=capturable)


class ScoreAdamW(_ScoreAdam, torch.optim.AdamW):
    """torch.optim.AdamW, weight decay apart from the averages, as ``ScoreAdam`` is torch.optim.Adam."""

    def __init__(
        self,
        params: Iterable | nn.Module,
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        capturable: bool = False,
        model: nn.Module | None = None,
    ):
        params = self._find_scores(params, model)
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize, capturable=capturable)
