"""supsup's layers, which hold a list of scores: taken apart into masked layers and the tasks of a bank."""

import torch
from torch import nn

from ..interop import supsup
from ..interop.table import subject_of
from ..nn import CLASSES, KINDS
from ..refusals import refuse
from ..swap import Swap
from .state import State, join


def taken(model: nn.Module) -> list[State]:
    """Turns supsup's layers of several tasks into masked ones, in place, and its norms of several tasks into one; what
    they held of each task. Nothing where the model has none. Raises ValueError before anything changes."""
    layers = {name: m for name, m in model.named_modules() if supsup.SEVERAL.is_one(m)}
    if not layers:
        return []
    counts = {}
    for name, layer in layers.items():
        problem = supsup.unknown(layer)
        if problem:
            raise ValueError(f"model: {subject_of(name, layer, supsup.SEVERAL)} {problem}")
        counts[name] = len(layer.scores)
    norms = {name: m for name, m in model.named_modules() if supsup.is_norm_of_tasks(m)}
    counts |= {name: len(module.bns) for name, module in norms.items()}
    tasks = next(iter(counts.values()))
    if differing := next((name for name, count in counts.items() if count != tasks), None):
        raise ValueError(
            f"model: {next(iter(counts))!r} is of {tasks} tasks, and {differing!r} of {counts[differing]}; expected as "
            "many in each"
        )
    refuse(model, layers, several_tasks=True)
    states: list[State] = [{} for _ in range(tasks)]
    for name, layer in layers.items():
        for state, scores in zip(states, layer.scores, strict=True):
            state[join(name, "scores")] = scores.detach().to(torch.float32, copy=True)
        plain = next(kind for kind in KINDS if isinstance(layer, kind))
        rule = supsup.rule_of(layer)
        Swap(layer, CLASSES["subnet", plain], rule, supsup.SEVERAL, lambda weight: weight).convert({})
    for name, module in norms.items():
        for state, norm in zip(states, module.bns, strict=True):
            state.update({join(name, leaf): t.detach().clone() for leaf, t in norm.named_buffers()})
        parent, _, leaf = name.rpartition(".")
        model.get_submodule(parent)._modules[leaf] = module.bns[0]
    return states
