"""Layers of supsup (Wortsman et al. 2020, "Supermasks in Superposition"): ``sparsity`` is the fraction KEPT.

MaskConv has scores of one task, and is converted. Others hold a list of scores, one for each task, which
``edgepop_kernels.MaskBank`` takes. The fast ones, and those that hold no rate, keep scores of at least 0.
"""

from typing import Any

from torch import nn

from ..rules import Rule, Threshold
from .origin import Origin, kept_rule, named

FAST = Threshold(0.0, of="raw", inclusive=True)
_KNOWN = (
    *("MultitaskMaskConv", "FastMultitaskMaskConv", "StackedFastMultitaskMaskConv"),
    *("MultitaskMaskLinear", "FastMultitaskMaskLinear"),
)
# What its programs set on every module, and what its layers hold.
_STATE = ("sparsity", "num_tasks", "task", "num_tasks_learned", "alphas", "stacked")
_sparsity = kept_rule("sparsity")


def rule_of(layer: Any) -> Rule:
    """The rule of each task's scores. Raises ValueError for a rate that is none."""
    said = None if "Fast" in type(layer).__name__ else _sparsity(layer)
    return FAST if said is None else said


def unknown(layer: Any) -> str:
    """Why a layer of several tasks cannot be taken apart, a phrase that follows its name; empty where it can."""
    if not named(layer, *_KNOWN):
        return "holds lists of another kind than scores of masks"
    wrong = [tuple(s.shape) for s in layer.scores if s.shape != layer.weight.shape]
    if wrong or not len(layer.scores):
        return f"has scores of shape {wrong[0]} beside a weight of {tuple(layer.weight.shape)}" if wrong else "has none"
    try:
        rule_of(layer)
    except ValueError as error:
        return str(error)
    return ""


def is_norm_of_tasks(module: nn.Module) -> bool:
    """Whether this is a batch norm that keeps statistics for each task, one of ``bns``."""
    return named(module, "MultitaskNonAffineBN") and isinstance(module._modules.get("bns"), nn.ModuleList)


def _is_of_one(layer: Any) -> bool:
    scores = layer._parameters.get("scores")
    return named(layer, "MaskConv") and scores is not None and bool(scores.shape == layer.weight.shape)


def _release(layer: Any) -> None:
    layer._modules.pop("scores", None)
    for name in [name for name in vars(layer) if name.startswith("_of_tasks")]:  # of compat.supsup
        del vars(layer)[name]


SEVERAL = Origin(
    "supsup",
    lambda layer: isinstance(layer._modules.get("scores"), nn.ParameterList),
    scores=None,
    gone=_STATE,
    release=_release,
    refused=lambda layer: (
        "holds the scores of several tasks, where a masked layer holds one mask; expected "
        "edgepop_kernels.MaskBank(model), which takes them all"
    ),
)
LAYERS = (
    Origin("supsup", _is_of_one, rule=_sparsity, unsaid="has no sparsity", gone=_STATE),
    SEVERAL,
)
