"""Random numbers of a batch that is computed in parts, by one process or by several.

A mask that is drawn (``Bernoulli``) belongs to the step: all parts must see the same. Dropout belongs to the images: no
two parts may see the same. So masks come from the global generator, which is in the same state on every rank and goes
on once per batch; dropout comes from generators that follow from the position of the part.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from .data.batches import generator

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


class PartRandom:
    """Hooks on the dropouts of ``model``. Whatever else draws, draws alike in every part."""

    def __init__(self, model: nn.Module, device: torch.device):
        self.device, self.position, self.calls = device, None, 0
        for layer in model.modules():
            if isinstance(layer, DROPOUTS):
                layer.register_forward_pre_hook(self._enter)
                layer.register_forward_hook(self._leave, always_call=True)

    @contextlib.contextmanager
    def part(self, position: tuple[int, ...], again: bool) -> Iterator[None]:
        """While the part at ``position`` (seed, epoch, step, number) is computed; again: not the first of its batch."""
        if again:
            self._restore(self.batch_begun)
        else:
            self.batch_begun = self._states()
        self.position, self.calls = position, 0
        try:
            yield
        finally:
            self.position = None

    def _enter(self, layer, args) -> None:
        if self.position is not None:
            self.outside = self._states()
            torch.manual_seed(generator(*self.position, self.calls).initial_seed())
            self.calls += 1

    def _leave(self, layer, args, output) -> None:
        if self.position is not None:
            self._restore(self.outside)

    def _states(self) -> list[torch.Tensor]:
        states = [torch.get_rng_state()]
        return [*states, torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else states

    def _restore(self, states: list[torch.Tensor]) -> None:
        torch.set_rng_state(states[0])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(states[1], self.device)
