"""The base of the layers of other projects: a rate that somebody has to set, and a state_dict of tensors alone."""

import inspect
import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..nn import MaskedLayer
from ..rules import Ranked, Rule, TopK


@dataclass(frozen=True, repr=False)
class NeverSet(TopK):
    """The rule of a layer whose rate was never set, which is asked for nothing: AttributeError, as in the projects that
    name it ``rate``."""

    rate: str = "prune_rate"

    def kept(self, numel: int) -> int:
        raise AttributeError(
            f"{self.rate}: it was never set; call set_prune_rate on this layer, or on all layers of the network"
        )

    def share(self, scores: object) -> float:
        return self.kept(0)

    def with_keep(self, keep: float) -> Ranked:
        return TopK().with_keep(keep)

    def with_drop(self, drop: float) -> Ranked:
        return TopK().with_drop(drop)

    def __repr__(self) -> str:
        return f"TopK({self.rate} never set)"


class Theirs(MaskedLayer):
    """A masked layer as another project has it: nobody is told that its weight trains, and its state_dict has
    parameters and buffers, no rule."""

    _weight_stands = False
    get_extra_state = nn.Module.get_extra_state  # torch asks whether a class has its own
    set_extra_state = nn.Module.set_extra_state

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        plain = getattr(cls, "_plain", None)
        if plain is None:  # of what several layers share
            return
        own = list(inspect.signature(cls.__init__).parameters.values())[1:]
        if not any(p.kind is p.VAR_POSITIONAL for p in own):  # arguments of its own, not those of torch's layer
            cls.__signature__ = inspect.Signature(own)
            return
        first = [p for p in own if p.kind is p.POSITIONAL_OR_KEYWORD]
        last = [p for p in own if p.kind is p.KEYWORD_ONLY]
        cls.__signature__ = inspect.Signature([*first, *inspect.signature(plain).parameters.values(), *last])

    def reset_scores(self) -> None:
        """Draws the scores as edge-popup's code does, from the generator of its device."""
        assert self.scores is not None  # as in a constructor, and where a user asks
        nn.init.kaiming_uniform_(self.scores, a=math.sqrt(5))

    def _standing(self) -> list[nn.Parameter | None]:
        return [self.scores] if self.rule.fixed else []

    def _set_rule(self) -> Rule:
        """The rule of the scores, of a frozen layer the one it had. Raises AttributeError where no rate was set."""
        rule = self._loose_rule if self._rule.fixed and self._loose_rule is not None else self._rule
        if isinstance(rule, NeverSet):
            raise AttributeError(rule.rate)
        return rule
