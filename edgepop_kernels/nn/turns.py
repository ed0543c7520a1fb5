"""The turns of a masked layer: its mask trains, or stays while its weight trains."""

import torch
from torch import nn

from .. import checks, selecting
from ..rules import Frozen
from .cuts import Cuts
from .parts import Part


class Turns(Part):
    """The part of a masked layer that says what trains: the scores, or under a fixed mask the weight."""

    def freeze(self, mask: torch.Tensor | None = None, *, keep_scores: bool = False) -> None:
        """Keeps the present mask, or the one given, bit-packed in the buffer ``mask_bits``; nothing is selected any
        more. Layers under GlobalTopK hang together and are frozen by ``train_weights(model)``.

        The scores are dropped, or with ``keep_scores`` set aside, untrained, until ``thaw``. A weight that trains
        gets its gradient only where it is kept. mask: bool, of the weight's shape; also for a layer that is frozen
        already. Raises TypeError, ValueError; RuntimeError inside DistributedDataParallel or fully_shard, as does all
        else that changes what trains.
        """
        self._check_unwrapped("freeze")
        self._freeze(mask, keep_scores=keep_scores)

    def _freeze(self, mask: torch.Tensor | None = None, *, keep_scores: bool) -> None:
        frozen = self.rule.fixed
        if mask is not None:
            checks.mask_tensor("mask", mask, self._weight_shape())
            self.mask_bits = selecting.pack_mask(mask.to(self._bare_weight().device))
        elif not frozen:
            if self.rule.together:
                raise ValueError("rule: layers under GlobalTopK are frozen together; call train_weights(model)")
            self.mask_bits = self.packed_mask()
        if not frozen:
            self._be_frozen()
        self._put_scores_aside(keep_scores)

    def _freeze_as(self, bits: torch.Tensor) -> None:
        """Keeps the mask that is packed in ``bits``; the scores are set aside."""
        self.mask_bits = bits
        if not self.rule.fixed:
            self._be_frozen()
        self._put_scores_aside(True)

    def _put_scores_aside(self, keep_scores: bool) -> None:
        if not keep_scores:
            self.scores = self._loose_rule = None
        elif self.scores is not None:
            self.scores.requires_grad_(False)

    def _be_frozen(self) -> None:
        self._loose_rule, self._rule = self._rule, Frozen()
        self._cuts = Cuts()

    def thaw(self) -> None:
        """Takes back ``freeze(keep_scores=True)``: the mask follows from the scores again, and they train."""
        self._check_unwrapped("thaw")
        self._thaw()

    def _thaw(self) -> None:
        self._check_thaws()
        if not self.rule.fixed or self._loose_rule is None:
            return
        self._rule, self._loose_rule, self.mask_bits = self._loose_rule, None, None
        if self.scores is not None:
            self.scores.requires_grad_()

    def _check_thaws(self) -> None:
        """Raises ValueError where ``thaw`` would."""
        if self.rule.fixed and self._loose_rule is None:
            raise ValueError("thaw: this layer's scores were dropped by freeze(); freeze it with keep_scores=True")

    def _trained(self, masks: bool) -> list[nn.Parameter]:
        """The parameters that train after ``train_mask``, with ``masks``, or after ``train_weight``. Raises ValueError
        where these would be bits."""
        if masks:
            return [self._ranked]
        if self._weight_is_packed():
            raise ValueError(
                "train_weights: a weight is packed as signs of one magnitude, which cannot train; call "
                "unpack_weights(model) first, and build the optimizer after it"
            )
        return [self.weight] if self.bias is None else [self.weight, self.bias]

    def train_mask(self) -> None:
        """Trains the scores, while the weight stands still; see ``train_masks``."""
        self._check_unwrapped("train_mask")
        self._train_mask()

    def _train_mask(self) -> None:
        self._thaw()
        if not self._weight_is_packed():
            self.weight.requires_grad_(False)
        self._ranked.requires_grad_()

    def train_weight(self, mask: torch.Tensor) -> None:
        """Trains weight and bias under ``mask``, while the scores stand still; see ``train_weights``."""
        self._check_unwrapped("train_weight")
        self._train_weight(mask)

    def _train_weight(self, mask: torch.Tensor) -> None:
        trained = self._trained(masks=False)
        self._freeze(mask, keep_scores=True)
        for p in trained:
            p.requires_grad_()
