"""The base of all masked layers: scores, rule, selection, products."""

import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from .. import checks, init, selecting, torch_private
from ..autograd import Spends
from ..cut import Cut, Selection
from ..effective import ScoreGrad, WeightGrad, weight_under
from ..rules import RULES, Rule, checked_keep
from .cuts import Cuts
from .kinds import KINDS, Kind, superposed_product
from .packed import Packed
from .plain import Plain
from .saved import Saved
from .tools import AmongTools
from .turns import Turns

_OPERANDS = frozenset(("weight", "scores", "bias"))
# Every masked layer by its method and the layer of torch that it is.
CLASSES: dict[tuple[str, type[nn.Module]], type["MaskedLayer"]] = {}


class MaskedLayer(Turns, Plain, Packed, Saved, AmongTools):
    """The base of all masked layers, over the layers of torch in ``kinds.KINDS``. Not constructed by itself.

    Names with an underscore are for this package alone: its optimizers, shared selections and phases.

    weight   frozen (requires_grad False); train it with ``layer.weight.requires_grad_()``, it gets dW = dW_eff * M,
             and the first such forward warns: ``model.requires_grad_(True)`` does the same unmeant; after
             ``pack_weights`` no parameter, but a float copy made for who asks
    scores   float32 parameter of the weight's shape, whatever the layer's dtype; None when frozen for good
    bias     torch's own, trained, not masked
    rule     assign another to change it
    """

    # What this class adds to an instance of torch's layer.
    _added: tuple[str, ...] = (
        *("scores", "mask_bits", "_rule", "_loose_rule"),
        *("_cuts", "_group", "_mixture", "_updater", "_weight_stands", "_weight_is_taken"),
        *("weight_signs", "weight_magnitude", "weight_seed"),
    )
    _example = "TopK(0.5), or keep=0.5"  # for who hands in something else
    _method: str = ""  # what trains and how: a subclass that says it is the base of layers, one for each kind
    __signature__: ClassVar[inspect.Signature]
    _plain: type[nn.Module]  # the layer of torch that a layer is
    _kind: Kind
    _weight_stands = True  # as far as it was told: a weight that trains beside its scores is worth a word, once
    _weight_is_taken = False  # through masked_weight, in the place of a call

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        plain = next((base for base in cls.__bases__ if base in KINDS), None)
        if plain is None:  # of a layer, which is a user's (or FSDP's), with what it changes
            return
        cls._plain, cls._kind = plain, KINDS[plain]
        cls.forward = cls._kind.forward
        given = [p for p in inspect.signature(cls.__init__).parameters.values() if p.kind is p.KEYWORD_ONLY]
        cls.__signature__ = inspect.Signature([*inspect.signature(plain).parameters.values(), *given])
        CLASSES.setdefault((cls._method, plain), cls)

    @staticmethod
    def _takes(rule: Rule | type[Rule]) -> bool:
        """Whether a layer of this kind can be masked by the rule, or by rules of the class."""
        return not rule.fixed

    @classmethod
    def _check(cls, rule: Rule) -> None:
        """Raises TypeError or ValueError for arguments that ``_mask_with`` does not take."""
        kinds = ", ".join(kind.__name__ for kind in RULES if cls._takes(kind))
        checks.rule(rule, cls._example, kinds)
        if not cls._takes(rule):
            raise ValueError(f"rule: {cls.__name__} takes one of {kinds}, got {rule}")

    def _mask_with(self, rule: Rule) -> None:
        """Adds scores to a layer built by torch's constructor, freezes the weight, and masks it by ``rule``."""
        self._take_rule(rule)
        self.weight.requires_grad_(False)
        self.scores = nn.Parameter(torch.empty_like(self.weight, dtype=torch.float32))
        self.reset_scores()

    def _check_fits(self, rule: Rule) -> None:
        self._check(rule)
        rule.check(self._weight_shape())

    def _take_rule(self, rule: Rule) -> None:
        self._check_fits(rule)
        self._rule, self._cuts = rule, Cuts()
        self.register_buffer("mask_bits", None)
        for hook in self._kind.hooks:
            self.register_forward_pre_hook(hook)

    @property
    def rule(self) -> Rule:
        """The rule that decides the mask; ``Frozen()`` after ``freeze``. Raises ValueError for a rule that a layer of
        this kind does not take, and for any while it is frozen."""
        return self._rule

    @rule.setter
    def rule(self, rule: Rule) -> None:
        self._check_fits(rule)
        if self._rule.fixed:
            raise ValueError(f"rule: this layer is frozen; call thaw() before it takes {rule}")
        self._rule = rule

    def reset_parameters(self) -> None:
        """Draws weight and bias as torch does, and the scores as ``reset_scores``."""
        if self._weight_is_packed():  # torch draws values of many magnitudes
            self._unpack_weight()
        super().reset_parameters()
        if getattr(self, "scores", None) is not None:  # torch's constructor calls this before there are scores
            self.reset_scores()

    def reset_scores(self) -> None:
        """Draws the scores as edge-popup starts them (``init.scores_``). Raises ValueError for a layer without any."""
        if self.scores is None:
            raise ValueError("reset_scores: expected a layer with scores; this one has none")
        init.scores_(self.scores, fan_in=self._fan_in())

    def _fan_in(self) -> int:
        return math.prod(self._kind.outputs_first(self._bare_weight()).shape[1:])

    def _weight_shape(self) -> torch.Size:
        held = self._parameters.get("weight")
        return self._kind.shape(self) if held is None else held.shape

    @property
    def _ranked(self) -> nn.Parameter:
        """The tensor that the rule ranks: the scores; the weight where it scores itself."""
        scores = self._parameters.get("scores")  # without torch's __getattr__, where they are a plain parameter
        if scores is not None:
            return scores
        return self.weight if self.scores is None else self.scores

    @property
    def keep(self) -> float:
        """The fraction of weights kept, under Bernoulli the expected one, under GlobalTopK this layer's own share;
        settable for rules that have one: there it is the rule's."""
        share = None if self.rule.fixed else self.rule.share(self._ranked.detach())
        return self.mask().float().mean().item() if share is None else share

    @keep.setter
    def keep(self, keep: float) -> None:
        self.rule = self.rule.with_keep(keep)

    def set_prune_rate(self, prune_rate: float) -> None:
        """Sets ``keep``: hidden-networks' name, there, too, the fraction KEPT."""
        self.keep = checked_keep(prune_rate, "prune_rate")

    def select(self) -> Selection | None:
        """The cut of the scores as they stand, or a draw; None when frozen. Starts from the last cut, exact either
        way."""
        return self._selection(self._forward_rule(), self._operands(), torch_private.watched())

    def _operands(self) -> Mapping[str, Any]:
        """Weight, scores and bias by name. torch's own way to a parameter is a call of Python each."""
        held = self._parameters
        if held.keys() >= _OPERANDS:
            return held
        signs = self._buffers.get("weight_signs")
        if signs is not None:
            return {"weight": self._bare_weight(), "scores": self.scores, "bias": self.bias, "weight_signs": signs}
        return {name: getattr(self, name) for name in _OPERANDS}  # parametrized, or of a replica: they are elsewhere

    def _selection(self, rule: Rule, held: Mapping[str, Any], watched: bool) -> Selection | None:
        if rule.fixed:
            return None
        if rule.together:
            if self._group is None:
                raise ValueError("rule: GlobalTopK ranks the layers of a network together; call share_selection(model)")
            return self._group.selection_of(self)
        ranked = held["weight"] if held["scores"] is None else held["scores"]
        if watched:  # traced, or of tensors that stand for others: nothing of it may stay
            return selecting.selection(ranked, rule, None, False)
        known = self._cuts.of(ranked, rule)
        if known is not None:
            return known
        if ranked.dtype is not torch.float32 or type(ranked) not in torch_private.PLAIN:
            checks.score_tensor("scores", ranked)
        selection = selecting.selection(ranked, rule, self._cuts.hint(rule), held["scores"] is not None)
        self._cuts.start_from(selection, ranked, rule, stays=not self.training)
        return selection

    def _known_cut(self) -> Cut | None:
        """The cut of the scores as they stand, where it is known."""
        return self._cuts.of(self._ranked, self._forward_rule())

    def forget(self) -> None:
        """Drops what earlier cuts say. To be called after writes to single scores through ``scores.data``: torch's
        version counter does not see those, and may one of the few scores that are looked at instead be among them."""
        self._cuts.forget()

    def _hint(self) -> Cut | None:
        """The last cut, where it can start the next selection."""
        return self._cuts.hint(self._rule)

    def _forward_rule(self) -> Rule:
        """The rule of a forward in the present mode."""
        return self.rule if self.training else self._settled_rule()

    def _settled_rule(self) -> Rule:
        """The rule of evaluation, of ``mask()`` and of what is kept for good."""
        return self.rule.settled()

    def mask(self) -> torch.Tensor:
        """The mask as it stands: bool, of the weight's shape. Under Bernoulli a fresh draw, or its rounding."""
        return selecting.unpack_mask(self.packed_mask(), self._weight_shape())

    def packed_mask(self) -> torch.Tensor:
        """The mask as ``pack_mask`` packs it, 1 bit per weight; no mask of a byte per weight is made on the way."""
        if self.mask_bits is not None:
            return self.mask_bits.clone()
        together, ranked = self.rule.together, torch_private.whole(self._ranked)
        selection = self.select() if together else selecting.select(ranked, self._settled_rule())
        assert selection is not None  # as of a layer that is not frozen
        return selecting.selected_bits(ranked, selection)

    def masked_weight(
        self, *, weight_grad: WeightGrad | None = None, score_grad: ScoreGrad = "weighted"
    ) -> torch.Tensor:
        """The weight times its mask, with the gradients of a forward: for code that slices a masked weight, bounds it
        or multiplies in its own way, in the place of a call of the layer.

        The mask is that of a forward in this mode; under Bernoulli every call draws. Written to memory, in the weight's
        dtype. weight_grad, score_grad: as ``edgepop_kernels.masked_weight`` takes them.
        """
        rule, held, watched = self._forward_rule(), self._operands(), torch_private.watched()
        if not watched:
            self._weight_is_taken = True
        selection = self._cuts.shared or self._selection(rule, held, watched)
        return self._weight_under(selection, rule, held, weight_grad, score_grad)

    def _weight_under(
        self,
        selection: Selection | None,
        rule: Rule,
        held: Mapping[str, Any],
        weight_grad: WeightGrad | None,
        score_grad: ScoreGrad,
    ) -> torch.Tensor:
        weight, signs = held["weight"], held.get("weight_signs")
        scores = self.mask_bits if rule.fixed else held["scores"]
        checks.masked_weight(weight, scores, rule, signs, weight_grad, score_grad)
        if weight.requires_grad and self._weight_stands:
            self._tell_that_weight_trains()
        return weight_under(weight, scores, rule, selection, signs, weight_grad, score_grad)

    def _output(self, x: torch.Tensor, *how: Any) -> torch.Tensor:
        """The output of a forward of a dense ``x``. how: what else the layer's forward takes."""
        if self._mixture is not None:
            return self._superposed(x, *how)
        rule = self._rule if self.training else self._rule.settled()
        held, watched = self._operands(), torch_private.watched()
        cut = self._cuts.shared or self._selection(rule, held, watched)
        return self._masked(x, held["bias"], cut, rule, held, watched, *how)

    def _superposed(self, x: torch.Tensor, *how: Any) -> torch.Tensor:
        """The product of ``x`` and the weight under several masks at once."""
        assert self._mixture is not None  # as who calls this has seen
        return superposed_product(self._kind, self, x, *self._mixture, *how)

    def _masked(
        self,
        x: torch.Tensor,
        bias: torch.Tensor | None,
        cut: Selection | None,
        rule: Rule,
        held: Mapping[str, Any],
        watched: bool,
        *how: Any,
    ) -> torch.Tensor:
        """The product of ``x`` and the masked weight, told of the optimizer that updates scores in backward."""
        kind, weight = self._kind, held["weight"]
        x, geometry = kind.operands(self, x, *how)
        scores = self.mask_bits if rule.fixed else held["scores"]
        if weight.requires_grad and self._weight_stands:
            self._tell_that_weight_trains()
        signs = held.get("weight_signs")
        if self._updater is None or not kind.updates:
            return kind.product(x, weight, scores, rule, bias, geometry, cut, watched, None, signs)
        if torch.compiler.is_compiling():
            raise RuntimeError(
                "fused_backward: the step of an optimizer inside backward cannot be traced; compile the model without "
                "fullgraph, or build the optimizer without fused_backward"
            )
        return kind.product(x, weight, scores, rule, bias, geometry, cut, watched, self._update(), signs)

    def _tell_that_weight_trains(self) -> None:
        if self.rule.fixed or not (self.training and torch.is_grad_enabled()) or torch.compiler.is_compiling():
            return
        self._weight_stands = False
        warnings.warn(
            "the weight of a masked layer trains beside its scores, as layer.weight.requires_grad_() asks for; where "
            "model.requires_grad_(True) did that, edgepop_kernels.train_masks(model) makes the weights stand still",
            stacklevel=1,
        )

    def _update(self) -> Spends | None:
        """The step that an optimizer with fused_backward takes in this forward's backward; None where the scores get a
        gradient."""
        return None if self._updater is None else self._updater.use(self.scores)

    def __getstate__(self) -> dict[str, Any]:
        # A copy's scores belong to no optimizer, and it is masked by one mask; its network, where that is copied too,
        # shares its selection with it again (sharing.py).
        state = self.__dict__ | {"_updater": None}
        for name in ("_group", "_mixture"):
            state.pop(name, None)
        return state

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        # Scores stay float32 under .half() and .bfloat16(): rounded to 8 bits, thousands of them would tie at the cut.
        held = [t for p in self._float32_parameters() if p is not None for t in (p, p.grad)]
        self.forget()  # its cuts may be on the device left behind

        def keep_float32(t: torch.Tensor) -> torch.Tensor:
            moved = fn(t)
            if any(t is s for s in held) and moved.dtype != torch.float32:
                return t.to(moved.device, memory_format=_format_of(moved))
            return moved

        return super()._apply(keep_float32, recurse)  # type: ignore[no-untyped-call]  # as torch has it

    def _float32_parameters(self) -> list[nn.Parameter | None]:
        return [self.scores]

    def extra_repr(self) -> str:
        """The text of ``print(layer)`` between the parentheses: torch's, and the rule."""
        packed = ", packed weight" if self._weight_is_packed() else ""
        return f"{super().extra_repr()}, rule={self.rule}{packed}"


def _format_of(t: torch.Tensor) -> torch.memory_format:
    for dims, memory_format in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if t.dim() == dims and t.is_contiguous(memory_format=memory_format):
            return memory_format
    return torch.preserve_format
