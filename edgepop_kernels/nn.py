"""Masked layers: torch's own layers with scores beside the weight.

Each is a subclass of the layer it replaces and keeps its constructor, attributes and parameter names. The mask is a
consequence of the scores, found in every forward; it exists as a tensor only in ``mask()``.
"""

import dataclasses

import torch
import torch.nn.functional as F
from torch import nn

from . import checks, functional, init
from .cut import Cut
from .rules import Frozen, Rule, TopK


class MaskedLayer(nn.Module):
    """What masked layers share, over nn.Conv2d or nn.Linear. Not constructed by itself.

    weight   frozen (requires_grad False); train it with ``layer.weight.requires_grad_()``, it gets dW = dW_eff * M
    scores   float32 parameter of the weight's shape, whatever the layer's dtype; None when frozen
    bias     torch's own, trained, not masked
    rule     TopK, Threshold or Frozen; assign another to change it
    """

    rule: Rule
    shared_cut: Cut | None = None  # this forward's cut, set by share_selection
    _last_cut: Cut | None = None

    def mask_with(self, rule: Rule) -> None:
        """Adds scores to a layer built by torch's constructor, freezes the weight, and masks it by ``rule``."""
        checks.rule(rule)
        if isinstance(rule, Frozen):
            raise ValueError("rule: a layer is frozen by freeze(); expected TopK or Threshold")
        self.rule = rule
        self.weight.requires_grad_(False)
        self.scores = nn.Parameter(torch.empty_like(self.weight, dtype=torch.float32))
        self.register_buffer("mask_bits", None)
        init.scores_(self.scores)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if getattr(self, "scores", None) is not None:  # torch's constructor calls this before there are scores
            init.scores_(self.scores)

    @property
    def keep(self) -> float:
        """Fraction of weights kept; settable for TopK rules."""
        if isinstance(self.rule, TopK):
            return self.rule.keep
        return self.mask().float().mean().item()

    @keep.setter
    def keep(self, keep: float) -> None:
        if not isinstance(self.rule, TopK):
            raise ValueError(f"keep: only a TopK rule has one to set, this layer's rule is {self.rule}")
        self.rule = dataclasses.replace(self.rule, keep=keep)

    def set_prune_rate(self, prune_rate: float) -> None:
        """hidden-networks' name for setting ``keep``: there, too, the fraction KEPT."""
        self.keep = prune_rate

    def select(self) -> Cut | None:
        """The cut of the scores as they stand; None when frozen. Starts from the last one, exact either way."""
        if isinstance(self.rule, Frozen):
            return None
        self._last_cut = functional.select(self.scores, self.rule, self.hint())
        return self._last_cut

    def hint(self) -> Cut | None:
        """The last cut, where it can start the next selection."""
        return self._last_cut if self._last_cut is not None and self._last_cut.of == self.rule.of else None

    def mask(self) -> torch.Tensor:
        """The mask as it stands: bool, of the weight's shape."""
        if isinstance(self.rule, Frozen):
            return functional.unpack_mask(self.mask_bits, self.weight.shape)
        return functional.mask(self.scores, self.rule)

    def freeze(self) -> None:
        """Keeps the present mask for good, bit-packed in the buffer ``mask_bits``, and drops the scores.

        Afterwards ``weight`` may be trained: its gradient is zero where the mask is.
        """
        if isinstance(self.rule, Frozen):
            return
        self.mask_bits = functional.pack_mask(self.mask())
        self._become_frozen()

    def _become_frozen(self):
        self.rule, self.scores, self._last_cut = Frozen(), None, None

    @torch.no_grad()
    def effective_weight(self) -> torch.Tensor:
        """W * M, a copy."""
        return self.weight.masked_fill(~self.mask(), 0)

    def _masking(self):
        """(scores or packed bits, cut) for the functional call."""
        if isinstance(self.rule, Frozen):
            return self.mask_bits, None
        return self.scores, self.shared_cut or self.select()

    def _apply(self, fn, recurse=True):
        # Scores stay float32 under .half() and .bfloat16(): rounded to 8 bits, thousands of them would tie at the cut.
        scores = getattr(self, "scores", None)
        held = () if scores is None else (scores, scores.grad)
        self._last_cut = None  # it may be on the device left behind

        def keep_float32(t):
            moved = fn(t)
            if any(t is s for s in held) and moved.dtype != torch.float32:
                return t.to(moved.device)
            return moved

        return super()._apply(keep_float32, recurse)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        bits = state_dict.get(prefix + "mask_bits")
        if bits is not None and not isinstance(self.rule, Frozen):
            self.mask_bits = torch.empty_like(bits, device=self.weight.device)
            self._become_frozen()
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rule={self.rule}"


class FusedSubnetConv(MaskedLayer, nn.Conv2d):
    """nn.Conv2d that uses the subnetwork its scores select: edge-popup (Ramanujan et al. 2020).

    nn.Conv2d's arguments, then keep: fraction of weights kept, in (0, 1]; rule: in place of ``TopK(keep)``.
    The weight stays as initialised, the scores are trained. A hidden-networks SubnetConv state_dict (``weight``,
    ``scores``) loads as it is. Input (N, C, H, W) or (C, H, W), as ``masked_conv2d``.
    """

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        stride=1,
        padding=0,
        dilation=1,
        groups=1,
        bias=True,
        padding_mode="zeros",
        device=None,
        dtype=None,
        *,
        keep: float = 0.5,
        rule: Rule | None = None,
    ):
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        self.mask_with(TopK(keep) if rule is None else rule)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            x = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        scores, cut = self._masking()
        return functional.masked_conv2d(
            x, self.weight, scores, self.rule, self.bias, self.stride, padding, self.dilation, self.groups, cut=cut
        )

    def materialize(self) -> nn.Conv2d:
        """A plain nn.Conv2d whose weight is W * M; nothing of this package in it."""
        plain = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.bias is not None,
            self.padding_mode,
            device="meta",
        )
        return _filled(plain, self)


class FusedSubnetLinear(MaskedLayer, nn.Linear):
    """nn.Linear that uses the subnetwork its scores select: edge-popup (Ramanujan et al. 2020).

    nn.Linear's arguments, then keep: fraction of weights kept, in (0, 1]; rule: in place of ``TopK(keep)``.
    Input (..., in_features), as ``masked_linear``.
    """

    def __init__(
        self,
        in_features,
        out_features,
        bias=True,
        device=None,
        dtype=None,
        *,
        keep: float = 0.5,
        rule: Rule | None = None,
    ):
        super().__init__(in_features, out_features, bias, device, dtype)
        self.mask_with(TopK(keep) if rule is None else rule)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores, cut = self._masking()
        return functional.masked_linear(x, self.weight, scores, self.rule, self.bias, cut=cut)

    def materialize(self) -> nn.Linear:
        """A plain nn.Linear whose weight is W * M; nothing of this package in it."""
        plain = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        return _filled(plain, self)


def _filled(plain, layer):
    plain.weight = nn.Parameter(layer.effective_weight())
    if layer.bias is not None:
        plain.bias = nn.Parameter(layer.bias.detach().clone(), requires_grad=layer.bias.requires_grad)
    return plain.train(layer.training)
