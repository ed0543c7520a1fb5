"""Kinds of layers that other libraries have: known once a network has one, so that nothing is imported before."""

import importlib

from torch import nn

from ..nn import KINDS

# By module and name of the class, the module here that makes a kind of it.
_OF_LIBRARIES = {("transformers.pytorch_utils", "Conv1D"): "transformers"}


def learn(model: nn.Module) -> None:
    """Makes ``nn.KINDS`` hold the kinds of other libraries' layers that ``model`` has."""
    for kind in {type(module) for module in model.modules()} - KINDS.keys():
        module = _OF_LIBRARIES.get((kind.__module__, kind.__name__))
        if module is not None:
            importlib.import_module(f".{module}", __package__)
