"""The way of a masked layer back to torch's own."""

from typing import Any

import torch
from torch import nn

from .. import torch_private
from .packed import weight_first
from .parts import Part


class Plain(Part):
    """The part of a masked layer that makes torch's layer of it, whose weight is the masked one."""

    _plain: type[nn.Module]  # of the class: the layer of torch that it is
    _added: tuple[str, ...]  # what the class adds to an instance of that

    @torch.no_grad()
    def effective_weight(self, mask: torch.Tensor | None = None) -> torch.Tensor:
        """The weight times its mask, a copy without gradient: what is computed with it trains nothing, and
        ``masked_weight`` is what does. mask: the one as it stands, where none is given."""
        return self.weight.masked_fill(~(self.mask() if mask is None else mask), 0)

    def effective_bias(self) -> torch.Tensor | None:
        """The bias as evaluation uses it."""
        return self.bias

    def materialize(self) -> nn.Module:
        """A plain layer of torch whose weight is the effective weight; nothing of this package in it."""
        weight, bias = self.effective_weight(), self.effective_bias()
        plain: Any = self._plain.__new__(self._plain)
        plain.__dict__ = {name: v.copy() if isinstance(v, dict) else v for name, v in self.__dict__.items()}
        if bias is not None and self.bias is not None:
            bias = nn.Parameter(bias.detach().clone(), requires_grad=self.bias.requires_grad)
        for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            plain.__dict__[name].clear()
        self._strip(plain)
        plain.weight, plain.bias = nn.Parameter(weight), bias
        weight_first(plain._parameters)
        made: nn.Module = plain
        return made

    def _become_plain(self, mask: torch.Tensor) -> None:
        """Turns this very layer into torch's, with the weight that ``mask`` keeps; the user's hooks stay."""
        weight, bias = self.effective_weight(mask), self.effective_bias()
        self._strip(self)
        self.__class__ = self._plain  # type: ignore[assignment]  # no layer of ours any more
        self.weight = nn.Parameter(weight)
        weight_first(self._parameters)
        if bias is not None and bias is not self.bias:
            self.bias = nn.Parameter(bias.detach())

    def _strip(self, layer: nn.Module) -> None:
        """Takes what is ours out of ``layer``, this one or a copy of it."""
        layer.__dict__.pop("forward", None)  # of this class, where accelerate has left it behind
        for name in self._added:
            for held in (layer.__dict__, layer._parameters, layer._buffers):
                held.pop(name, None)
            layer._non_persistent_buffers_set.discard(name)
        for hook in self._kind.hooks:
            torch_private.remove_forward_pre_hook(layer, hook)
