"""The base of the score optimizers: which parameters a kernel updates, and which layers get a cut from it."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import nn

from .. import capture, selecting, torch_private
from ..backend import optimizer_step
from ..cut import Cut
from ..nn import MaskedLayer
from ..rules import Rule, checked_kept
from .backward import StepsInBackward
from .coefficients import Coefficients
from .settings import check_group, check_rate
from .steady import Steady, Update, in_place

# What a backend's ``step`` is told of a parameter that is scores: how many are kept, ranked by what, an earlier cut,
# and whether the cut's planes are wanted: a weight that scores itself is read in any case.
Ranking = tuple[int, str, Cut | None, bool]
# As torch.optim takes parameters: themselves, groups of them, or with their names.
Params = Iterable[torch.Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, torch.Tensor]]
if TYPE_CHECKING:
    _Base = torch.optim.Optimizer  # what stands behind the mixin
else:
    _Base = object


class _Scores:
    """The scores of one masked layer, which keep their parameter as long as the optimizer does."""

    def __init__(self, layer: MaskedLayer) -> None:
        self.layer, self.kept = layer, 0
        self.rule: Rule | None = None

    def ranking(self, p: torch.Tensor) -> Ranking | None:
        """None where the cut does not follow from ``p`` alone: under other rules, in a plain layer, or where the layer
        has other scores by now; and where no kernel ranks them as they lie."""
        layer = self.layer
        if not isinstance(layer, MaskedLayer):
            return None
        ranked = layer._parameters.get(layer._scores_name)
        if (layer._parameters.get("weight") if ranked is None else ranked) is not p:
            return None
        rule = layer._rule
        if rule is not self.rule:
            self.kept = checked_kept(rule, p.numel()) if rule.ranks and not rule.together else 0
            self.rule = rule
        if self.kept == 0 or (p.dim() > 4 and not _lies_in_volumes(p)):
            return None
        last = layer._cuts.last  # the hint of a rule that ranks, asked in place
        return self.kept, rule.of, last if last is not None and last.of == rule.of else None, ranked is not None


def _lies_in_volumes(p: torch.Tensor) -> bool:
    """Whether the dimensions of a kernel of three or more are one where they lie, as backends rank them."""
    return p.is_contiguous() or (p.dim() == 5 and p.is_contiguous(memory_format=torch.channels_last_3d))


class ScoreOptimizer(_Base):
    """Mixin over an optimizer of torch: everything is torch's but ``step``.

    A subclass says how parameters are updated: ``_updates`` by the kernel, ``_torch_step`` by torch's own function.
    """

    _moments: tuple[str, ...]  # the names of what the kernel reads and writes beside a parameter

    _scores: dict[torch.Tensor, _Scores]
    _in_backward: StepsInBackward | None = None  # with fused_backward
    _steady: Steady | None = None  # what the last step found, while nothing else has happened

    if TYPE_CHECKING:  # of ScoreSGD, and of what ScoreAdam and ScoreAdamW share

        def _remembers(self, group: dict[str, Any]) -> tuple[str, ...]: ...

        def _coefficients(self, group: dict[str, Any], states: list[dict[str, Any]]) -> Iterable[Coefficients]: ...

        def _updates(
            self,
            group: dict[str, Any],
            params: list[torch.Tensor],
            values: list[torch.Tensor],
            grads: Sequence[torch.Tensor | None],
        ) -> Iterator[Update]: ...

        def _torch_step(self, group: dict[str, Any], params: list[torch.Tensor]) -> None: ...

    def _find_scores(self, params: Params | nn.Module, model: nn.Module | None, fused_backward: bool) -> Params:
        """The parameters to optimize; keeps whose scores are among them."""
        if not isinstance(fused_backward, bool):
            raise TypeError(f"fused_backward: expected a bool, got {type(fused_backward).__name__}")
        if isinstance(params, nn.Module):
            if model is not None and model is not params:
                raise ValueError("model: params is a module already; expected None")
            model, params = params, params.parameters()
        elif model is not None and not isinstance(model, nn.Module):
            raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
        layers = [] if model is None else [m for m in model.modules() if isinstance(m, MaskedLayer)]
        self._scores = {layer._ranked: _Scores(layer) for layer in layers}
        if fused_backward and not layers:
            raise ValueError(
                "fused_backward: it needs the masked layers whose scores are updated in backward; expected a model "
                f"that has some, as params or as model, got {'none' if model is None else 'one without'}"
            )
        self._layers = layers if fused_backward else []  # two may share their scores
        return params

    def _take_scores(self, fused_backward: bool) -> None:
        """Called when all arguments are checked, so that an optimizer which is refused takes no layers over. Raises
        ValueError where the model has masks to train and none of their scores is among the parameters."""
        held = {p for group in self.param_groups for p in group["params"]}
        scores = [p for p, scored in self._scores.items() if not scored.layer.rule.fixed]
        if scores and not any(p in held for p in scores):
            raise ValueError(
                "model: none of its scores are among params; expected parameters taken after convert, such as "
                "model.parameters(), or the model itself as params"
            )
        if fused_backward:
            self._in_backward = StepsInBackward(self, self._layers)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group as torch does. Raises TypeError and ValueError for settings that are no numbers in range, NaN
        among them."""
        if isinstance(param_group, dict):
            check_group(self.defaults | param_group)
        super().add_param_group(param_group)

    if not TYPE_CHECKING:  # torch has an attribute there

        @property
        def _step_supports_amp_scaling(self) -> bool:
            """False, which torch.amp.GradScaler looks for before it steps. Raises RuntimeError with ``fused_backward``,
            however late: the scores have been updated with gradients that it meant to divide, or to pass over."""
            if self._in_backward is None:
                return False
            raise RuntimeError(
                "fused_backward: GradScaler scales gradients that backward has spent on the scores already, which are "
                "wrong now; build the optimizer without it, or GradScaler with enabled=False, and load or draw the "
                "scores anew"
            )

    def __getstate__(self) -> dict[str, Any]:
        own = {"_scores": self._scores, "_fused": self._in_backward is not None}
        return super().__getstate__() | own

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Also of load_state_dict, which says nothing of ours.
        fused = state.pop("_fused", False)
        self._steady = None
        super().__setstate__(state)
        if fused:
            self._in_backward = StepsInBackward(self, [s.layer for s in self._scores.values()])

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes one step; returns the loss that ``closure`` returns, where one is given. Parameters without gradient
        stand still.

        Raises, before anything is changed, ValueError for a sparse gradient and for a learning rate that has become NaN
        or infinite (a tensor is not looked at), and RuntimeError where a CUDA graph is captured and the count of steps
        is kept on the host, and for scores with a gradient beside the one that ``fused_backward`` has spent.
        """
        if torch.compiler.is_dynamo_compiling():
            return _step_untraced(self, closure)
        if closure is None and self._steady is not None:
            updates = self._steady.updates(self)
            if updates is not None:
                self._step(updates)
                return None
        with torch.no_grad():
            return self._step_from_the_beginning(closure)

    def _step_from_the_beginning(self, closure: Callable[[], Any] | None) -> Any:
        loss, self._steady = None, None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and p.grad.layout != torch.strided:
                    raise ValueError(
                        f"params: a gradient is {p.grad.layout}; {type(self).__name__} takes dense ones, "
                        "torch.optim.SGD and SparseAdam take sparse ones"
                    )
            self._check_group(group)
        done = [] if self._in_backward is None else self._in_backward.end()
        # Of each device: a kernel updates the parameters of one.
        ours: dict[torch.device, list[tuple[torch.Tensor, Update, _Scores | None]]] = defaultdict(list)
        for group in self.param_groups:
            for device, params in _by_device(group["params"]).items():
                ours[device] += self._advance(group, [p for p in params if p.grad is not None])
        for updates in ours.values():
            if updates:
                self._step(updates)
        for params in _by_device(done).values():
            self._find_cuts(params)
        if self._in_backward is None:
            self._steady = Steady.of(self)
        return loss

    def _check_group(self, group: dict[str, Any]) -> None:
        check_rate(group["lr"])
        if not group.get("capturable", True) and any(map(capture.capturing, group["params"])):
            raise RuntimeError(f"capturable: a CUDA graph of {type(self).__name__}.step needs capturable=True")

    def _advance(
        self, group: dict[str, Any], params: list[torch.Tensor]
    ) -> list[tuple[torch.Tensor, Update, _Scores | None]]:
        """Takes torch's step where that is to be taken; the others' updates, and whose scores they are. ``params``: of
        one device."""
        native = [p for p in params if self._is_native(group, p)]
        if len(native) < len(params):
            taken = set(native)
            self._torch_step(group, [p for p in params if p not in taken])
        if not native:
            return []
        values = [_without_gaps(p) for p in native]
        grads = [_gradient(p, value) for p, value in zip(native, values, strict=True)]
        scores = [self._scores.get(p) for p in native]
        return list(zip(native, self._updates(group, native, values, grads), scores, strict=True))

    def _update_in_kernel(self, group: dict[str, Any], p: torch.Tensor) -> Update | None:
        """The update of ``p`` for a kernel that makes its gradient; None where it takes a step with that gradient."""
        if not self._is_native(group, p) or _has_gaps(p):
            return None
        check_rate(group["lr"])
        return next(self._updates(group, [p], [p], [None]))

    def _step_alone(self, group: dict[str, Any], p: torch.Tensor, grad: torch.Tensor) -> None:
        """One step of one parameter, which has no gradient before or after."""
        self._check_group(group)
        p.grad = grad
        try:
            ours = self._advance(group, [p])
            if ours:
                self._step(ours)
        finally:
            p.grad = None

    def _find_cuts(self, params: list[torch.Tensor]) -> None:
        """The next cuts of scores on one device that kernels have updated, as ``_step`` finds those of others."""
        scored, rules, hints = [], [], []
        for p in params:
            scores = self._scores[p]
            ranking = scores.ranking(p)
            if ranking is not None and scores.rule is not None:
                scored.append((p, scores))
                rules.append(scores.rule)
                hints.append(ranking[2])
        if not scored:
            return
        cuts = selecting.select_all([p for p, _ in scored], rules, hints)
        for (p, scores), rule, cut in zip(scored, rules, cuts, strict=True):
            if isinstance(cut, Cut):
                scores.layer._cuts.learn(cut, p, rule)

    def _step(self, ours: list[tuple[torch.Tensor, Update, _Scores | None]]) -> None:
        scored: list[Any] = []  # parameters and their _Scores
        first, others, rankings, copied, written = [], [], [], [], []
        for p, update, scores in ours:
            written.append(p)
            if update[0] is not p:
                copied.append((p, update[0]))
            ranking = None if scores is None else scores.ranking(p)
            if ranking is None:
                others.append(update)
            else:
                scored.append((p, scores))
                first.append(update)
                rankings.append(ranking)
        run = optimizer_step(ours[0][0])
        assert run is not None  # as of every parameter that _is_native
        cuts, planes = run(first + others, rankings)
        for p, value in copied:
            p.copy_(value)
        torch.autograd.graph.increment_version(written)
        for (p, scores), row, bits in zip(scored, cuts.unbind(), planes, strict=True):
            cut = scores.rule.cut(row, p.numel())
            if cut.data is row:  # none that keeps other ties
                object.__setattr__(cut, "planes", bits)
            scores.layer._cuts.learn(cut, p, scores.rule)

    def _is_native(self, group: dict[str, Any], p: torch.Tensor) -> bool:
        """Whether the kernel takes the step; else torch does, or says what is wrong."""
        state = self.state.get(p, {})
        return (
            p.dtype == torch.float32
            and torch_private.plain(p)
            and (p.grad is None or (p.grad.dtype == torch.float32 and torch_private.plain(p.grad)))
            and optimizer_step(p) is not None
            and (not group.get("capturable", False) or _counts_on_device(group, p))
            and all(_is_like(state.get(name), p) for name in self._moments)
        )

    def _in_place(self, group: dict[str, Any], p: torch.Tensor, moments: tuple[torch.Tensor | None, ...]) -> bool:
        """Whether the next step of ``p`` is a kernel's that reads and writes it, its gradient and moments in place."""
        return self._is_native(group, p) and not group.get("capturable", False) and in_place(p, moments)

    def _moment(self, p: torch.Tensor, name: str, value: torch.Tensor) -> torch.Tensor:
        """The state ``name`` of ``p`` in the layout of ``value``; a state loaded in another is laid out anew."""
        state = self.state[p]
        moment = _laid_out(state[name], value)
        if moment is not state[name]:
            state[name] = moment
        return moment


@torch.compiler.disable  # type: ignore[untyped-decorator]  # as torch has it
def _step_untraced(optimizer: Any, closure: Callable[[], Any] | None) -> Any:
    """The step of a compiled training step: one break, no attempt to trace what goes by address."""
    return optimizer.step(closure)


def _is_like(moment: torch.Tensor | None, p: torch.Tensor) -> bool:
    """Whether a kernel that steps through ``p`` can step through ``moment``: a state_dict or a change of the model's
    dtype may have left another."""
    if moment is None:
        return True
    alike = moment.shape == p.shape and moment.dtype == p.dtype and moment.device == p.device
    return alike and torch_private.plain(moment)


def _by_device(params: list[torch.Tensor]) -> dict[torch.device, list[torch.Tensor]]:
    found = defaultdict(list)
    for p in params:
        found[p.device].append(p)
    return found


def _counts_on_device(group: dict[str, Any], p: torch.Tensor) -> bool:
    """Whether the kernel takes what ``capturable`` leaves on the device: the count of steps and the learning rate."""
    return on_gpu(p) and not any(isinstance(beta, torch.Tensor) for beta in group["betas"])


def on_gpu(value: torch.Tensor | float) -> TypeGuard[torch.Tensor]:
    """Whether this is a tensor whose value the host would have to wait for."""
    return isinstance(value, torch.Tensor) and value.is_cuda


def rate_on_device(lr: torch.Tensor | float, p: torch.Tensor) -> torch.Tensor | None:
    """The learning rate as a float32 scalar beside ``p``; None where the host knows it, or has to."""
    return lr.to(p.device, torch.float32) if on_gpu(lr) and on_gpu(p) else None


def _without_gaps(p: torch.Tensor) -> torch.Tensor:
    """``p`` itself where its elements fill one range of memory, in whatever order; else a copy that does."""
    return p.clone(memory_format=torch.contiguous_format) if _has_gaps(p) else p


def _has_gaps(p: torch.Tensor) -> bool:
    return not p.is_contiguous() and torch.empty_like(p, device="meta").stride() != p.stride()


def _gradient(p: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    assert p.grad is not None  # of the parameters that have one
    return _laid_out(p.grad, like)


def _laid_out(t: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """``t``, or a copy, with the strides of ``like``."""
    if (t.is_contiguous() and like.is_contiguous()) or t.stride() == like.stride():
        return t
    return torch.empty_like(like).copy_(t)
