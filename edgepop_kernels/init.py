"""Initialisations of frozen random weights, and of scores.

Each function fills ``weight`` in place and returns it; ``std = gain / sqrt(fan)`` as in torch.nn.init. ``scale``
says how the fan follows the fraction kept, because a masked unit hears only that fraction of its inputs:

  "none"             fan unchanged
  "paper"            fan * keep: std grows by 1 / sqrt(keep) (Ramanujan et al. 2020, section 3.2, "scaled")
  "hidden-networks"  fan * (1 - keep), as that repository computes it; equal to the paper's only at keep = 0.5

The last two need ``keep``: left out they would scale nothing, or divide by 0. Raises ValueError, and TypeError for what
is no tensor. A tensor without elements is returned as it is.

``NAMES`` are what ``by_name``, ``convert(init=...)`` and the recipes call the functions on weights; those in ``SCALED``
take ``keep`` and a ``scale`` of ``SCALES``.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeVar, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import init as _torch_init

from . import checks
from .rules import Rule, checked_keep, keeps_best

Scale = Literal["none", "paper", "hidden-networks"]
Fan = Literal["fan_in", "fan_out"]
# As torch.nn.init.calculate_gain takes it.
_Dense = Literal["linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"]
Nonlinearity = _Dense | Literal["sigmoid", "tanh", "relu", "leaky_relu", "selu"]
Name = Literal[
    "signed_constant",
    "unsigned_constant",
    "kaiming_normal",
    "kaiming_uniform",
    "xavier_normal",
    "xavier_uniform",
    "xavier_constant",
]
Layer = TypeVar("Layer", bound=nn.Module)
SCALES: tuple[str, ...] = get_args(Scale)
MODES: tuple[str, ...] = get_args(Fan)
NONLINEARITIES: tuple[str, ...] = ("linear", "sigmoid", "tanh", "relu", "leaky_relu", "selu")


def _std(weight: Tensor, keep: float | None, scale: Scale, mode: Fan, nonlinearity: Nonlinearity) -> float:
    fan_in, fan_out = _fans("weight", weight)
    gain = _gain(mode, nonlinearity)
    fan = (fan_in if mode == "fan_in" else fan_out) * _fan_factor(keep, scale)
    return gain / math.sqrt(fan)


def _gain(mode: Fan, nonlinearity: Nonlinearity) -> float:
    if mode not in MODES:
        raise ValueError(f"mode: expected 'fan_in' or 'fan_out', got {mode!r}")
    return _torch_init.calculate_gain(nonlinearity)


def _fan_factor(keep: float | None, scale: Scale) -> float:
    if not isinstance(scale, str) or scale not in SCALES:
        raise ValueError(f"scale: expected one of {', '.join(map(repr, SCALES))}, got {scale!r}")
    if keep is None and scale != "none":
        raise ValueError(f"keep: scale={scale!r} follows the fraction of weights kept, expected it in (0, 1], got None")
    keep = 1.0 if keep is None else checked_keep(keep)
    if scale == "none":
        return 1
    if scale == "paper":
        return keep
    if keep == 1:
        raise ValueError("keep: scale='hidden-networks' divides by 1 - keep, expected keep below 1, got 1")
    return 1 - keep


def _fans(name: str, weight: Tensor) -> tuple[int, int]:
    checks.tensor(name, weight)
    if weight.dim() < 2:
        raise ValueError(f"{name}: expected at least 2 dimensions, got shape {tuple(weight.shape)}")
    receptive = math.prod(weight.shape[2:])
    # A fan is 0 only where there is nothing to draw, and then any deviation will do.
    return max(weight.shape[1] * receptive, 1), max(weight.shape[0] * receptive, 1)


@torch.no_grad()
def kaiming_normal_(
    weight: Tensor,
    keep: float | None = None,
    *,
    scale: Scale = "none",
    mode: Fan = "fan_in",
    nonlinearity: Nonlinearity = "relu",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draws from N(0, std^2) (He et al. 2015)."""
    std = _std(weight, keep, scale, mode, nonlinearity)
    return weight.normal_(0, std, generator=generator)


@torch.no_grad()
def kaiming_uniform_(
    weight: Tensor,
    keep: float | None = None,
    *,
    scale: Scale = "none",
    mode: Fan = "fan_in",
    nonlinearity: Nonlinearity = "relu",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draws from U(-sqrt(3) std, sqrt(3) std) (He et al. 2015)."""
    bound = math.sqrt(3) * _std(weight, keep, scale, mode, nonlinearity)
    return weight.uniform_(-bound, bound, generator=generator)


@torch.no_grad()
def signed_constant_(
    weight: Tensor,
    keep: float | None = None,
    *,
    scale: Scale = "none",
    mode: Fan = "fan_in",
    nonlinearity: Nonlinearity = "relu",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draws +std or -std with equal odds (Ramanujan et al. 2020, "signed Kaiming constant").

    >>> weight = ek.init.signed_constant_(torch.empty(5, 8))
    >>> weight.abs().unique()
    tensor([0.5000])
    """
    std = _std(weight, keep, scale, mode, nonlinearity)
    return weight.bernoulli_(0.5, generator=generator).mul_(2 * std).sub_(std)


def packed_signed_constant_(
    layer: Layer,
    keep: float | None = None,
    *,
    scale: Scale = "none",
    mode: Fan = "fan_in",
    nonlinearity: Nonlinearity = "relu",
    seed: int | None = None,
    generator: torch.Generator | None = None,
) -> Layer:
    """Makes the weight of a masked ``layer`` +std or -std with equal odds, packed as ``pack_weights`` packs: one bit an
    element, and no float tensor on the way. Returns the layer.

    The signs follow from ``seed``, an int of 64 bits, by the counter generator of Bernoulli masks; a state_dict has the
    seed in their place. None: one is drawn from ``generator``. Other signs than ``signed_constant_`` draws, of the same
    distribution.

    >>> layer = ek.init.packed_signed_constant_(ek.FusedSubnetLinear(8, 5), seed=1)
    >>> layer.weight.abs().unique()
    tensor([0.5000])
    >>> sorted(layer.state_dict())
    ['_extra_state', 'bias', 'scores', 'weight_magnitude', 'weight_seed']
    """
    draw = getattr(layer, "_draw_packed_weight", None)
    if draw is None:
        raise TypeError(f"layer: expected a masked layer, got {type(layer).__name__}")
    if seed is None:
        device = "cpu" if generator is None else generator.device
        seed = int(torch.randint(2**63 - 1, (), generator=generator, device=device))
    if isinstance(seed, bool) or not isinstance(seed, int) or not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed: expected an int of 64 bits, got {seed!r}")
    draw(lambda weight: _std(weight, keep, scale, mode, nonlinearity), seed)
    return layer


@torch.no_grad()
def unsigned_constant_(
    weight: Tensor,
    keep: float | None = None,
    *,
    scale: Scale = "none",
    mode: Fan = "fan_in",
    nonlinearity: Nonlinearity = "relu",
) -> Tensor:
    """Sets every weight to +std."""
    std = _std(weight, keep, scale, mode, nonlinearity)
    return weight.fill_(std)


@torch.no_grad()
def xavier_normal_(weight: Tensor, gain: float = 1.0, *, generator: torch.Generator | None = None) -> Tensor:
    """Draws from N(0, gain^2 * 2 / (fan_in + fan_out)) (Glorot and Bengio 2010)."""
    std = gain * math.sqrt(2 / sum(_fans("weight", weight)))
    return weight.normal_(0, std, generator=generator)


@torch.no_grad()
def xavier_uniform_(weight: Tensor, gain: float = 1.0, *, generator: torch.Generator | None = None) -> Tensor:
    """Draws from U(-a, a) with a = gain * sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010)."""
    bound = gain * math.sqrt(6 / sum(_fans("weight", weight)))
    return weight.uniform_(-bound, bound, generator=generator)


@torch.no_grad()
def xavier_constant_(weight: Tensor, gain: float = 1.0, *, generator: torch.Generator | None = None) -> Tensor:
    """Draws +c or -c with equal odds, c = gain * sqrt(2 / (fan_in + fan_out)): the constants of Zhou et al. 2019."""
    constant = gain * math.sqrt(2 / sum(_fans("weight", weight)))
    return weight.bernoulli_(0.5, generator=generator).mul_(2 * constant).sub_(constant)


@torch.no_grad()
def scores_(scores: Tensor, *, fan_in: int | None = None, generator: torch.Generator | None = None) -> Tensor:
    """Draws scores as edge-popup starts them: U(-1/sqrt(fan_in), 1/sqrt(fan_in)), Kaiming uniform with a = sqrt(5).

    fan_in: for scores of a bias, whose shape does not tell it.
    """
    bound = 1 / math.sqrt(_fans("scores", scores)[0] if fan_in is None else max(fan_in, 1))
    return scores.uniform_(-bound, bound, generator=generator)


@torch.no_grad()
def scores_from_weight_(layer: Layer, how: Literal["magnitude", "hydra"] = "magnitude") -> Layer:
    """Sets the scores of a masked ``layer`` by its weight, so that the mask starts at the largest weights: for a
    trained network that is pruned by learned scores. Returns the layer.

    how   "magnitude"  S = abs(W)
          "hydra"      S = sqrt(6 / fan_in) * W / max(abs(W)) (Sehwag et al. 2020, "HYDRA", with the constant
                       of its code): scores on the scale of random ones, whatever the weights' own is; for rules that
                       rank by "abs"

    Raises TypeError for what is no masked layer, ValueError for a layer without scores, one whose rule does not rank
    (frozen ones, thresholds, draws), and another ``how``.

    >>> layer = ek.init.scores_from_weight_(ek.FusedSubnetLinear(8, 5, keep=0.25))
    >>> torch.equal(layer.mask(), ek.mask(layer.weight.detach(), ek.TopK(0.25)))
    True
    """
    rule = getattr(layer, "rule", None)
    if not isinstance(rule, Rule):
        raise TypeError(f"layer: expected a masked layer, got {type(layer).__name__}")
    check_start(how, rule, "how")
    scores, weight = cast(Any, layer).scores, cast(Any, layer).weight
    if scores is None:
        raise ValueError(f"layer: expected one with scores, got {layer}, whose weight scores itself")
    start = weight.to(torch.float32)
    if how == "magnitude":
        start = start.abs()
    else:
        bound = math.sqrt(6 / max(cast(Any, layer)._fan_in(), 1))
        largest = start.abs().amax() if start.numel() else start.new_zeros(())
        start = bound * start / torch.where(largest > 0, largest, 1)
    scores.copy_(start)
    return layer


def check_start(how: str, rule: Rule, argument: str = "scores") -> None:
    """Raises ValueError where scores cannot start from weights in this way under this rule."""
    if how not in ("magnitude", "hydra"):
        raise ValueError(f"{argument}: expected 'magnitude' or 'hydra', got {how!r}")
    if not keeps_best(rule):
        raise ValueError(f"{argument}: {how!r} is of rules that rank, expected TopK, for one, got {rule}")
    if how == "hydra" and rule.of != "abs":
        raise ValueError(f"{argument}: 'hydra' has scores of either sign, expected a rule of 'abs', got {rule}")


_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "signed_constant": signed_constant_,
    "unsigned_constant": unsigned_constant_,
    "kaiming_normal": kaiming_normal_,
    "kaiming_uniform": kaiming_uniform_,
    "xavier_normal": xavier_normal_,
    "xavier_uniform": xavier_uniform_,
    "xavier_constant": xavier_constant_,
}
NAMES = tuple(_FUNCTIONS)
SCALED = NAMES[:4]


def by_name(
    name: Name,
    keep: float | None = None,
    scale: Scale = "none",
    mode: Fan = "fan_in",
    nonlinearity: Nonlinearity = "relu",
) -> Callable[[Tensor], Tensor]:
    """The function ``name``, one of ``NAMES``, as one of a weight alone, with all else filled in; ``mode`` and
    ``nonlinearity`` where it is one of ``SCALED``, the others have neither.

    Raises ValueError, and TypeError for a ``keep`` that is no number, before there is a weight.
    """
    if not isinstance(name, str) or name not in NAMES:
        raise ValueError(f"init: expected one of {', '.join(map(repr, NAMES))}, got {name!r}")
    _fan_factor(keep, scale)
    _gain(mode, nonlinearity)
    if name in SCALED:
        return partial(_FUNCTIONS[name], keep=keep, scale=scale, mode=mode, nonlinearity=nonlinearity)
    if scale != "none":
        raise ValueError(f"scale: init={name!r} has none that follows keep, expected 'none', got {scale!r}")
    return _FUNCTIONS[name]
