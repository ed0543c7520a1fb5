"""The attributes of a whole masked layer, as its parts know them."""

from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import nn

from ..autograd import Spends
from ..cut import Selection
from ..rules import Rule
from .cuts import Cuts
from .kinds import Kind

# Of the constructors of torch's layers, as a type checker is told of them.
Size1 = int | tuple[int]
Size2 = int | tuple[int, int]
Size3 = int | tuple[int, int, int]
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
Device = torch.device | str | int | None


class Updater(Protocol):
    """A link from a layer to an optimizer with fused_backward: ``optim.backward``."""

    def use(self, scores: nn.Parameter | None, /) -> Spends | None: ...


class Group(Protocol):
    """The layers of a network that share a selection: ``sharing``."""

    layers: list[Any]

    def selection_of(self, layer: Any, /) -> Selection: ...

    def dissolve(self) -> None: ...


class Part(nn.Module):
    """The base of a masked layer's parts (``Turns``, ``Plain``, ``Packed``, ``Saved``, ``AmongTools``): the attributes
    that torch's layer, ``MaskedLayer`` and the other parts give.

    weight     frozen (requires_grad False) but where the weight scores itself; no parameter where it is packed
    scores     float32 parameter of the weight's shape; None where the weight scores itself, and when frozen for good
    bias       torch's own; None for a layer without
    mask_bits  uint8, the packed mask of a frozen layer; None of any other
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    scores: nn.Parameter | None
    mask_bits: torch.Tensor | None
    _kind: Kind  # of the class
    _rule: Rule
    _loose_rule: Rule | None = None  # what a layer frozen with its scores goes back to
    _cuts: Cuts  # what is remembered of selections
    _scores_name = "scores"  # of the parameter, which has another name in the layers of some projects
    _group: Group | None = None  # what share_selection put this layer in
    _mixture: tuple[torch.Tensor, torch.Tensor] | None = None  # masks as codes (``mixing``), and their shares: ``bank``
    _updater: Updater | None = None  # of an optimizer with fused_backward

    if TYPE_CHECKING:  # of MaskedLayer and the other parts

        @property
        def rule(self) -> Rule: ...

        @property
        def _ranked(self) -> nn.Parameter: ...

        def mask(self) -> torch.Tensor: ...

        def packed_mask(self) -> torch.Tensor: ...

        def _check_unwrapped(self, what: str) -> None: ...

        def reset_parameters(self) -> None: ...  # torch's

        @classmethod
        def _check(cls, rule: Rule) -> None: ...

        def _check_fits(self, rule: Rule) -> None: ...

        def forget(self) -> None: ...

        def thaw(self) -> None: ...

        def _be_frozen(self) -> None: ...

        def _freeze(self, mask: torch.Tensor | None = None, *, keep_scores: bool) -> None: ...

        def _float32_parameters(self) -> list[nn.Parameter | None]: ...

        def _weight_shape(self) -> torch.Size: ...

        def _bare_weight(self) -> torch.Tensor: ...

        def _weight_is_packed(self) -> bool: ...

        def _unpacked_weight(self) -> torch.Tensor: ...

        def _drop_packed(self) -> None: ...

        def _keep_seed(self, seed: torch.Tensor | None) -> None: ...

        def _take_saved_form(self, state: MutableMapping[str, Any], prefix: str, fits: bool) -> torch.Tensor | None: ...
