"""Supermasks (Zhou et al. 2019): the mask is the sigmoid of the scores, thresholded or drawn."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .. import init, selecting, torch_private
from ..autograd import Spends, StraightThrough, apply
from ..cut import Selection
from ..masks import popcount
from ..rules import Rule, Threshold, keeps_best
from .masked import MaskedLayer
from .parts import Device, PaddingMode, Size1, Size2, Size3


class Supermask(MaskedLayer):
    """Scores under Threshold or Bernoulli, with a mask on the bias and dynamic rescaling as options.

    scores       start as edge-popup's (``init.scores_``), half of them on either side of 0, or at the constant
                 ``scores_init``. The thresholded supermask's source starts them at 1, and none is dropped before its
                 score has crossed 0: SGD of 0.1 dropped under 0.1 % in 30 epochs of the digits and reached 79 %, where
                 drawn scores reached 90; Adam of 0.01 reached 92.5 and 93.1 %
    bias_scores  with ``mask_bias``: scores of the bias under the same rule, and the bias is frozen like the weight
    rescale      the weight is multiplied by numel / sum(M): dynamic weight rescaling, whose gradient reaches the
                 scores through sum(M) too
    """

    _method = "supermask"
    _added = (*MaskedLayer._added, "scores_init", "rescale", "bias_scores", "bias_mask")
    _example = "Threshold(0.5) or Bernoulli()"

    scores_init: float | None
    rescale: bool
    bias_scores: nn.Parameter | None
    bias_mask: torch.Tensor | None

    def __init__(
        self,
        *args: Any,
        rule: Rule | None = None,
        scores_init: float | None = None,
        mask_bias: bool = False,
        rescale: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        rule = Threshold() if rule is None else rule
        self._mask_with(rule, scores_init=scores_init, mask_bias=mask_bias, rescale=rescale)

    @staticmethod
    def _takes(rule: Rule | type[Rule]) -> bool:
        return not (keeps_best(rule) or rule.fixed)

    @classmethod
    def _check(
        cls, rule: Rule, *, scores_init: float | None = None, mask_bias: bool = False, rescale: bool = False
    ) -> None:
        super()._check(rule)
        number = isinstance(scores_init, int | float) and not isinstance(scores_init, bool)
        if scores_init is not None and not (number and math.isfinite(scores_init)):
            raise ValueError(f"scores_init: expected a finite number, or None to draw them, got {scores_init!r}")

    def _mask_with(
        self, rule: Rule, *, scores_init: float | None = None, mask_bias: bool = False, rescale: bool = False
    ) -> None:
        """Adds scores to a layer built by torch's constructor, freezes the weight, and masks it by ``rule``."""
        self._check(rule, scores_init=scores_init)
        bias = self.bias
        if mask_bias and bias is None:
            raise ValueError("mask_bias: expected False for a layer without bias, got True")
        self.scores_init = None if scores_init is None else float(scores_init)
        self.rescale = bool(rescale)
        self.register_parameter("bias_scores", None)
        self.register_buffer("bias_mask", None)
        if mask_bias and bias is not None:
            bias.requires_grad_(False)
            self.bias_scores = nn.Parameter(torch.empty_like(bias, dtype=torch.float32))
        super()._mask_with(rule)

    def reset_scores(self) -> None:
        """Sets all scores to ``scores_init``; where that is None, draws them by ``init.scores_``."""
        for scores in (self.scores, self.bias_scores):
            if scores is None:
                continue
            if self.scores_init is None:
                init.scores_(scores, fan_in=self._fan_in())
            else:
                nn.init.constant_(scores, self.scores_init)

    def _output(self, x: torch.Tensor, *how: Any) -> torch.Tensor:
        if self._mixture is not None:
            return self._superposed(x, *how)
        rule = self._forward_rule()
        held, watched = self._operands(), torch_private.watched()
        selection = self._cuts.shared or self._selection(rule, held, watched)
        bias = self._masked_bias(rule)
        if not self.rescale:
            return self._masked(x, bias, selection, rule, held, watched, *how)
        y = self._masked(x, None, selection, rule, held, watched, *how)
        y = y * self._scale(selection).to(y.dtype)
        return y if bias is None else y + bias.to(y.dtype).view(-1, *[1] * (len(self._weight_shape()) - 2))

    def _scale(self, selection: Selection | None) -> torch.Tensor:
        """numel / sum(M), a float32 scalar; sum(M) is differentiable straight-through, and counts as 1 where it is 0.

        selection: what ``select`` returned for this forward.
        """
        if self.mask_bits is not None:
            return self._weight_shape().numel() / popcount(self.mask_bits).clamp(min=1).to(torch.float32)
        assert self.scores is not None and selection is not None  # as of a layer that is not frozen
        count = popcount(selecting.selected_bits(self.scores, selection))
        return self._weight_shape().numel() / apply(StraightThrough, self.scores, count, selection.of).clamp(min=1)

    def _update(self) -> Spends | None:
        return None if self.rescale else super()._update()  # sum(M) has a gradient to the scores of its own

    def effective_bias(self) -> torch.Tensor | None:
        """The bias, times its mask where that is masked, as evaluation uses it."""
        return self._masked_bias(self._settled_rule())

    def _masked_bias(self, rule: Rule) -> torch.Tensor | None:
        if self.bias is None:
            return None
        if self.bias_mask is not None:
            return self.bias * self.bias_mask
        if self.bias_scores is None:
            return self.bias
        mask = selecting.mask(self.bias_scores.detach(), rule)
        return self.bias * apply(StraightThrough, self.bias_scores, mask, rule.of).to(self.bias.dtype)

    def _weight_under(self, selection: Selection | None, *args: Any) -> torch.Tensor:
        weight = super()._weight_under(selection, *args)
        return weight * self._scale(selection).to(weight.dtype) if self.rescale else weight

    @torch.no_grad()
    def effective_weight(self, mask: torch.Tensor | None = None) -> torch.Tensor:
        """The weight times its mask, and times numel / sum(M) where rescaled: a copy without gradient, which
        ``masked_weight`` has."""
        mask = self.mask() if mask is None else mask
        weight = super().effective_weight(mask)
        return weight * (mask.numel() / mask.sum().clamp(min=1)) if self.rescale else weight

    def _freeze(self, mask: torch.Tensor | None = None, *, keep_scores: bool) -> None:
        bias_mask = self.bias_mask
        if self.bias_scores is not None and bias_mask is None:
            bias_mask = selecting.mask(self.bias_scores.detach(), self._settled_rule())
        super()._freeze(mask, keep_scores=keep_scores)
        self.bias_mask = bias_mask
        if self.bias_scores is not None:
            self.bias_scores.requires_grad_(False)
            if not keep_scores:
                self.bias_scores = None

    def _thaw(self) -> None:
        super()._thaw()
        self.bias_mask = None
        if self.bias_scores is not None:
            self.bias_scores.requires_grad_()

    def _trained(self, masks: bool) -> list[nn.Parameter]:
        trained = super()._trained(masks)
        return [*trained, self.bias_scores] if masks and self.bias_scores is not None else trained

    def _train_mask(self) -> None:
        super()._train_mask()
        if self.bias_scores is not None and self.bias is not None:
            self.bias.requires_grad_(False)

    def _settings(self) -> dict[str, Rule | bool | None]:
        return super()._settings() | {"rescale": self.rescale}

    def _read_settings(self, state: torch.Tensor, **absent: bool | None) -> dict[str, Any]:
        return super()._read_settings(state, rescale=False, **absent)

    def _take_settings(self, read: dict[str, Any]) -> None:
        super()._take_settings(read)
        self.rescale = read["rescale"]

    def _float32_parameters(self) -> list[nn.Parameter | None]:
        return [self.scores, self.bias_scores]

    def _standing(self) -> list[nn.Parameter | None]:
        if self.bias_scores is None:
            return super()._standing()
        return [*super()._standing(), self.bias_scores if self.rule.fixed else self.bias]

    def _before_folding(self, name: str) -> None:
        if self.bias_scores is not None or self.bias_mask is not None:
            raise ValueError(
                "conv: its bias is masked, and batch norm's shift would be as well; call "
                "edgepop_kernels.materialize(model) first"
            )

    def _fits(self, saved: Callable[[str], torch.Tensor | None]) -> bool:
        of_bias = [t for t in map(saved, ("bias_mask", "bias_scores")) if t is not None]
        return super()._fits(saved) and all(self.bias is not None and t.shape == self.bias.shape for t in of_bias)

    def _load_frozen(self, saved: Callable[[str], torch.Tensor | None]) -> None:
        super()._load_frozen(saved)
        bias_mask = saved("bias_mask")
        if bias_mask is None:
            return
        self.bias_mask = torch.empty_like(bias_mask, device=self._bare_weight().device)
        if saved("bias_scores") is None:
            self.bias_scores = None
        elif self.bias_scores is not None:
            self.bias_scores.requires_grad_(False)

    def extra_repr(self) -> str:
        """The text of ``print(layer)`` between the parentheses: torch's, the rule and the options."""
        masks = ", mask_bias=True" if self.bias_scores is not None or self.bias_mask is not None else ""
        return super().extra_repr() + masks + (", rescale=True" if self.rescale else "")


class FusedSupermaskConv(Supermask, nn.Conv2d):
    """A layer of ``nn.Conv2d`` under a supermask (Zhou et al. 2019; thresholded: 1[sigmoid(s) > 0.5]).

    nn.Conv2d's arguments, then rule: Threshold (the default) or Bernoulli; scores_init: constant the scores start at,
    1.0 keeps every weight at first, None: drawn around 0 by ``init.scores_``; mask_bias: the bias is masked too, by
    scores of its own, and frozen; rescale: dynamic weight rescaling, numel / sum(M). Signed constants
    (``init.signed_constant_``) and Adam of 0.01 work, under Bernoulli Adam of 0.1. A state_dict carries rule and
    rescale and sets them when it is loaded. Input (N, C, H, W) or (C, H, W), as ``masked_conv2d``.
    """

    if TYPE_CHECKING:
        weight: nn.Parameter
        bias: nn.Parameter | None

        def __init__(
            self,
            in_channels: int,
            out_channels: int,
            kernel_size: Size2,
            stride: Size2 = 1,
            padding: Size2 | str = 0,
            dilation: Size2 = 1,
            groups: int = 1,
            bias: bool = True,
            padding_mode: PaddingMode = "zeros",
            device: Device = None,
            dtype: torch.dtype | None = None,
            *,
            rule: Rule | None = None,
            scores_init: float | None = None,
            mask_bias: bool = False,
            rescale: bool = False,
        ) -> None: ...

        def materialize(self) -> nn.Conv2d: ...


class FusedSupermaskConv1d(Supermask, nn.Conv1d):
    """A layer of ``nn.Conv1d`` under a supermask (Zhou et al. 2019; thresholded: 1[sigmoid(s) > 0.5]).

    nn.Conv1d's arguments, then rule, scores_init, mask_bias and rescale as in ``FusedSupermaskConv``. Input (N, C, L)
    or (C, L), as ``masked_conv1d``.
    """

    if TYPE_CHECKING:
        weight: nn.Parameter
        bias: nn.Parameter | None

        def __init__(
            self,
            in_channels: int,
            out_channels: int,
            kernel_size: Size1,
            stride: Size1 = 1,
            padding: Size1 | str = 0,
            dilation: Size1 = 1,
            groups: int = 1,
            bias: bool = True,
            padding_mode: PaddingMode = "zeros",
            device: Device = None,
            dtype: torch.dtype | None = None,
            *,
            rule: Rule | None = None,
            scores_init: float | None = None,
            mask_bias: bool = False,
            rescale: bool = False,
        ) -> None: ...

        def materialize(self) -> nn.Conv1d: ...


class FusedSupermaskConv3d(Supermask, nn.Conv3d):
    """A layer of ``nn.Conv3d`` under a supermask (Zhou et al. 2019; thresholded: 1[sigmoid(s) > 0.5]).

    nn.Conv3d's arguments, then rule, scores_init, mask_bias and rescale as in ``FusedSupermaskConv``. Input (N, C,
    D, H, W) or (C, D, H, W), as ``masked_conv3d``.
    """

    if TYPE_CHECKING:
        weight: nn.Parameter
        bias: nn.Parameter | None

        def __init__(
            self,
            in_channels: int,
            out_channels: int,
            kernel_size: Size3,
            stride: Size3 = 1,
            padding: Size3 | str = 0,
            dilation: Size3 = 1,
            groups: int = 1,
            bias: bool = True,
            padding_mode: PaddingMode = "zeros",
            device: Device = None,
            dtype: torch.dtype | None = None,
            *,
            rule: Rule | None = None,
            scores_init: float | None = None,
            mask_bias: bool = False,
            rescale: bool = False,
        ) -> None: ...

        def materialize(self) -> nn.Conv3d: ...


class FusedSupermaskConvTranspose2d(Supermask, nn.ConvTranspose2d):
    """A layer of ``nn.ConvTranspose2d`` under a supermask (Zhou et al. 2019; thresholded: 1[sigmoid(s) > 0.5]).

    nn.ConvTranspose2d's arguments, then rule, scores_init, mask_bias and rescale as in ``FusedSupermaskConv``.
    Input (N, C, H, W) or (C, H, W), as ``masked_conv_transpose2d``.
    """

    if TYPE_CHECKING:
        weight: nn.Parameter
        bias: nn.Parameter | None

        def __init__(
            self,
            in_channels: int,
            out_channels: int,
            kernel_size: Size2,
            stride: Size2 = 1,
            padding: Size2 = 0,
            output_padding: Size2 = 0,
            groups: int = 1,
            bias: bool = True,
            dilation: Size2 = 1,
            padding_mode: PaddingMode = "zeros",
            device: Device = None,
            dtype: torch.dtype | None = None,
            *,
            rule: Rule | None = None,
            scores_init: float | None = None,
            mask_bias: bool = False,
            rescale: bool = False,
        ) -> None: ...

        def materialize(self) -> nn.ConvTranspose2d: ...


class FusedSupermaskConvTranspose1d(Supermask, nn.ConvTranspose1d):
    """A layer of ``nn.ConvTranspose1d`` under a supermask (Zhou et al. 2019; thresholded: 1[sigmoid(s) > 0.5]).

    nn.ConvTranspose1d's arguments, then rule, scores_init, mask_bias and rescale as in ``FusedSupermaskConv``.
    Input (N, C, L) or (C, L), as ``masked_conv_transpose1d``.
    """

    if TYPE_CHECKING:
        weight: nn.Parameter
        bias: nn.Parameter | None

        def __init__(
            self,
            in_channels: int,
            out_channels: int,
            kernel_size: Size1,
            stride: Size1 = 1,
            padding: Size1 = 0,
            output_padding: Size1 = 0,
            groups: int = 1,
            bias: bool = True,
            dilation: Size1 = 1,
            padding_mode: PaddingMode = "zeros",
            device: Device = None,
            dtype: torch.dtype | None = None,
            *,
            rule: Rule | None = None,
            scores_init: float | None = None,
            mask_bias: bool = False,
            rescale: bool = False,
        ) -> None: ...

        def materialize(self) -> nn.ConvTranspose1d: ...


class FusedSupermaskLinear(Supermask, nn.Linear):
    """A layer of ``nn.Linear`` under a supermask (Zhou et al. 2019; thresholded: 1[sigmoid(s) > 0.5]).

    nn.Linear's arguments, then rule, scores_init, mask_bias and rescale as in ``FusedSupermaskConv``.
    Input (..., in_features), as ``masked_linear``.

    >>> layer = ek.FusedSupermaskLinear(64, 10, rule=ek.Threshold(0.5), scores_init=1.0)
    >>> layer.keep
    1.0
    """

    if TYPE_CHECKING:
        weight: nn.Parameter
        bias: nn.Parameter

        def __init__(
            self,
            in_features: int,
            out_features: int,
            bias: bool = True,
            device: Device = None,
            dtype: torch.dtype | None = None,
            *,
            rule: Rule | None = None,
            scores_init: float | None = None,
            mask_bias: bool = False,
            rescale: bool = False,
        ) -> None: ...

        def materialize(self) -> nn.Linear: ...
