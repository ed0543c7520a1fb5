"""Layers whose weight is read instead of called: no mask reaches it there, and the first forward tells."""

import warnings

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from .nn import MaskedLayer

_WATCHED = "_edgepop_first_forward"


class _FirstForward:
    """Hooks on a network's root, and during its first forward on its masked layers; none afterwards."""

    def __init__(self, model: nn.Module, layers: dict[str, nn.Module]) -> None:
        self.root, self.layers = model, layers
        self.called: set[nn.Module] = set()
        self.inside: list[RemovableHandle] = []
        self.handles = [
            model.register_forward_pre_hook(self.begin),
            # always_call: a forward that raises must not leave hooks on the layers.
            model.register_forward_hook(self.end, always_call=True),
        ]

    def begin(self, model: nn.Module, args: object) -> None:
        # A compiled graph would keep the hooks; a replica of nn.DataParallel has layers of its own.
        if torch.compiler.is_compiling() or model is not self.root or self.inside:
            return
        self.called = set()
        self.inside = [m.register_forward_pre_hook(self.note) for m in self.layers.values() if m is not model]

    def note(self, layer: nn.Module, args: object) -> None:
        self.called.add(layer)

    def end(self, model: nn.Module, args: object, output: object) -> None:
        if torch.compiler.is_compiling() or model is not self.root or not self.inside:
            return
        self._leave_layers()
        if output is None:  # also of a forward that raised: the next one will tell
            return
        self.dissolve()
        present = {m for m in model.modules() if isinstance(m, MaskedLayer)}  # not replaced since, nor materialized
        taken = {m for m in present if m._weight_is_taken}
        missed = [name for name, m in self.layers.items() if m in present - self.called - taken]
        if missed:
            names = ", ".join(missed[:8]) + (f" and {len(missed) - 8} more" if len(missed) > 8 else "")
            warnings.warn(
                f"masked layers were not called in the first forward after convert: {names}. Where it reads their "
                "weight instead (F.linear(x, layer.weight)), no mask reaches it and their scores do not train: convert "
                "with these names in exclude. Where they are for other forwards, all is well",
                stacklevel=3,
            )

    def _leave_layers(self) -> None:
        for handle in self.inside:
            handle.remove()
        self.inside = []

    def dissolve(self) -> None:
        self._leave_layers()
        for handle in self.handles:
            handle.remove()
        self.root.__dict__.pop(_WATCHED, None)


def watch(model: nn.Module, layers: dict[str, nn.Module]) -> None:
    """Makes the first forward of ``model`` warn of those of the masked ``layers`` that it does not call."""
    before = model.__dict__.get(_WATCHED)
    if before is not None:
        layers = before.layers | layers
        before.dissolve()
    layers = {name: m for name, m in layers.items() if m is not model}  # what is called is the model itself
    if layers:
        setattr(model, _WATCHED, _FirstForward(model, layers))


def unwatch(model: nn.Module) -> None:
    """Takes back ``watch``; does nothing where nobody watches."""
    watching = model.__dict__.get(_WATCHED)
    if watching is not None:
        watching.dissolve()
