"""Mask rules: how the mask M of a layer follows from its scores S.

A rule is a frozen value that carries its own behaviour: what it ranks, which weights it takes, how it selects, and how
the straight-through gradient slopes (``dS = dL/d(W*M) * W * map'(S)``, with ``map`` the function named by ``of``).
"""

from .drawn import Bernoulli
from .frozen import Frozen
from .ranked import (
    GlobalTopK,
    Percentile,
    Ranked,
    TopK,
    checked_drop,
    checked_keep,
    checked_kept,
    kept_count,
    ranked_rule,
)
from .rule import Rule, defined, keeps_best, sets_keep
from .structured import NM, Block, Channels
from .threshold import Threshold

# What a user may hand in, in the order that messages name them.
RULES = (TopK, GlobalTopK, Percentile, NM, Block, Channels, Threshold, Bernoulli, Frozen)

__all__ = [
    "NM",
    "RULES",
    "Bernoulli",
    "Block",
    "Channels",
    "Frozen",
    "GlobalTopK",
    "Percentile",
    "Ranked",
    "Rule",
    "Threshold",
    "TopK",
    "checked_drop",
    "checked_keep",
    "checked_kept",
    "defined",
    "keeps_best",
    "kept_count",
    "ranked_rule",
    "sets_keep",
]
