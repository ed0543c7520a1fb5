"""Weights of one magnitude, kept as a sign bit each and the number: what a masked layer holds in its weight's place."""

from collections.abc import Callable, MutableMapping
from typing import Any

import torch
from torch import nn

from .. import ops, reference, selecting
from .parts import Part

_SIGNS, _MAGNITUDE, _SEED = "weight_signs", "weight_magnitude", "weight_seed"


class Packed(Part):
    """The part of a masked layer that holds its weight as bits, where every element is +c or -c.

    There is no parameter ``weight`` then; ``layer.weight`` makes a float tensor for who asks, and writes to that reach
    nothing. A state_dict has, in its place,

    weight_magnitude  c, a scalar of the weight's dtype
    weight_signs      uint8, a 1 for a negative element, packed as ``pack_mask`` packs; or else
    weight_seed       int64 scalar, whence the signs follow by the counter generator of Bernoulli masks
    """

    def _weight_is_packed(self) -> bool:
        return _SIGNS in self._buffers

    def _bare_weight(self) -> torch.Tensor:
        """The weight; where it is packed the one number, expanded to the weight's shape, which takes no memory."""
        magnitude = self._buffers.get(_MAGNITUDE)
        return self.weight if magnitude is None else magnitude.expand(self._weight_shape())

    def _unpacked_weight(self) -> torch.Tensor:
        """The packed weight as a float tensor of its own."""
        return reference.signed(self._bare_weight(), self._buffers[_SIGNS])

    def _not_packable(self) -> str | None:
        """Why the weight cannot be packed; None where it can."""
        weight = self.weight
        if weight.requires_grad or (self.scores is None and not self.rule.fixed):
            return "its weight trains"
        if weight.is_meta or weight.numel() == 0:
            return "its weight has no values"
        if one_magnitude(weight) is None:
            return "its weight has more than one magnitude"
        return None

    def _pack_weight(self) -> None:
        magnitude, signs = magnitude_and_signs(self.weight.detach())
        self._hold(magnitude, signs)

    def _draw_packed_weight(self, magnitude: Callable[[torch.Tensor], float], seed: int) -> None:
        """Makes the weight +c or -c, c the ``magnitude`` of a weight of its shape, the signs from the counter generator
        of ``seed``. Raises ValueError for a weight that scores itself."""
        was = self._bare_weight()
        if self.scores is None and not self.rule.fixed:
            raise ValueError("layer: expected one whose weight stands still, got one whose weight scores itself")
        number = torch.tensor(magnitude(self._kind.outputs_first(was)), dtype=was.dtype, device=was.device)
        key = torch.tensor(seed, dtype=torch.int64, device=was.device)
        self._hold(number, drawn_signs(key, was.shape))
        self._keep_seed(key)

    def _hold(self, magnitude: torch.Tensor, signs: torch.Tensor) -> None:
        self._drop_packed()
        self._parameters.pop("weight", None)
        self.register_buffer(_MAGNITUDE, magnitude)
        self.register_buffer(_SIGNS, signs)

    def _unpack_weight(self) -> None:
        self.weight = nn.Parameter(self._unpacked_weight(), requires_grad=False)
        weight_first(self._parameters)

    def _drop_packed(self) -> None:
        for name in (_SIGNS, _MAGNITUDE, _SEED):
            self._buffers.pop(name, None)
            self._non_persistent_buffers_set.discard(name)

    def _keep_seed(self, seed: torch.Tensor | None) -> None:
        """seed: from which the signs follow, so that a state_dict has it in their place; None: they are saved."""
        if seed is None:
            self._buffers.pop(_SEED, None)
            self._non_persistent_buffers_set.discard(_SIGNS)
        else:
            self.register_buffer(_SEED, seed)
            self._non_persistent_buffers_set.add(_SIGNS)

    def _take_saved_form(self, state: MutableMapping[str, Any], prefix: str, fits: bool) -> torch.Tensor | None:
        """Gives the weight in ``state`` the form that it has here, packed or not, and returns its seed where it had one
        and is to be kept. fits: whether it is of this shape; else its bits are left out. Raises ValueError for a weight
        that does not have this form."""
        weight, signs, magnitude, seed = (prefix + name for name in ("weight", _SIGNS, _MAGNITUDE, _SEED))
        if not fits:
            for name in (signs, magnitude, seed):
                state.pop(name, None)
            return self._buffers.get(_SEED)
        shape = self._weight_shape()
        key = state.pop(seed, None) if magnitude in state else None
        if key is not None:
            state[signs] = drawn_signs(key, shape)
        if self._weight_is_packed():
            if magnitude not in state and isinstance(state.get(weight), torch.Tensor):
                given = state.pop(weight).detach()
                if one_magnitude(given) is None:
                    raise ValueError(
                        "expected a weight of one magnitude, as this layer's is packed; call unpack_weights(model) "
                        "before it takes another"
                    )
                state[magnitude], state[signs] = magnitude_and_signs(given)
            return key
        if magnitude in state and signs in state:
            state[weight] = reference.signed(state.pop(magnitude).expand(shape), state.pop(signs))
        return None


def weight_first(parameters: dict[str, nn.Parameter | None]) -> None:
    """Puts the others behind the weight, in torch's order: optimizers count parameters."""
    for name in [n for n in parameters if n != "weight"]:
        parameters[name] = parameters.pop(name)


def one_magnitude(weight: torch.Tensor) -> torch.Tensor | None:
    """The magnitude that all elements have, a scalar; None where there is more than one, or none that is finite."""
    largest = weight.abs().max()
    one = (weight.abs() == largest).all() & largest.isfinite()
    return largest if bool(one) else None


def magnitude_and_signs(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return weight.abs().max(), selecting.pack_mask(weight.signbit())


def drawn_signs(seed: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Signs of equal odds: a Bernoulli mask of scores of zero."""
    return ops.draw(torch.zeros((), device=seed.device).expand(shape), seed)
