"""Lottery tickets by uncertainty: a mean-field posterior over every weight says which of them matter.

Train a network of variational layers by the evidence lower bound, rank its weights by ``scores``, and train a
deterministic network from the posterior's *initial* means with only the best-ranked weights (``ticket``).

>>> import torch
>>> from torch import nn
>>> from edgepop_kernels.methods import bayesian
>>> conv, head = bayesian.VariationalConv2d(1, 4, 3, padding="same"), bayesian.VariationalLinear(4 * 8 * 8, 10)
>>> posterior = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), head)
>>> means = bayesian.initial_means(posterior)  # before its training
>>> optimizer = torch.optim.Adam(posterior.parameters(), lr=1e-3)
>>> images, labels = torch.randn(6, 1, 8, 8), torch.randint(10, (6,))
>>> bayesian.negative_elbo(posterior, posterior(images), labels, examples=6).backward()  # each step
>>> optimizer.step()
>>> network = bayesian.ticket(posterior, means, "low_variance", keep=0.25)  # after it; train this one next
>>> sum(int(layer.mask().sum()) for layer in (network[0], network[3]))  # a quarter of 4 * 9 + 2560 weights
649
"""

import copy
import warnings
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import edgepop_kernels as ek

from . import arguments
from .variational import VariationalConv2d, VariationalLayer, VariationalLinear

__all__ = [
    "CRITERIA",
    "VariationalConv2d",
    "VariationalLayer",
    "VariationalLinear",
    "initial_means",
    "kl",
    "negative_elbo",
    "scores",
    "ticket",
]

CRITERIA = ("low_variance", "high_variance", "magnitude", "signal_to_noise", "random")
# What of a module runs with its forward and backward.
_HOOKS = ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks", "_forward_hooks_with_kwargs")
_HOOKS += ("_forward_hooks_always_called", "_backward_pre_hooks", "_backward_hooks")


def kl(model: nn.Module) -> Tensor:
    """The KL of all variational layers of ``model``, a scalar. Raises ValueError where there is none."""
    return sum(layer.kl() for layer in _variational("model", model).values())


def negative_elbo(model: nn.Module, logits: Tensor, labels: Tensor, examples: int) -> Tensor:
    """The mean cross-entropy plus the KL of all variational layers over ``examples``, the size of the training set:
    what training minimises, a scalar.

    logits: (N, classes), of ``model``; labels: (N,) int64. Raises ValueError and TypeError.

    >>> model, x, labels = VariationalLinear(64, 10), torch.randn(5, 64), torch.randint(10, (5,))
    >>> negative_elbo(model, model(x), labels, examples=5).backward()
    """
    arguments.whole("examples", examples, 1)
    return F.cross_entropy(logits, labels) + kl(model) / examples


@torch.no_grad()
def scores(layer: VariationalLayer, criterion: str) -> Tensor:
    """Scores of the weights by the criterion, float32 of their shape, the best highest.

    "low_variance" -sigma^2, "high_variance" sigma^2, "magnitude" |mu|, "signal_to_noise" |mu| / sigma, "random" a draw.
    Raises ValueError, also where these are no numbers, and TypeError.

    >>> scores(VariationalLinear(64, 10), "signal_to_noise").shape
    torch.Size([10, 64])
    """
    if not isinstance(layer, VariationalLayer):
        raise TypeError(f"layer: expected a variational layer, got {type(layer).__name__}")
    arguments.one_of("criterion", criterion, CRITERIA)
    sigma, magnitude = layer.sigma, layer.mu.abs()
    found = {
        "low_variance": lambda: -sigma.square(),
        "high_variance": sigma.square,
        "magnitude": lambda: magnitude,
        "signal_to_noise": lambda: magnitude / sigma,
        "random": lambda: torch.rand_like(magnitude),
    }[criterion]()
    if found.isnan().any():
        raise ValueError("layer: its mu or rho holds NaN, as a training that diverged leaves it; nothing ranks that")
    return found.to(torch.float32)


def initial_means(model: nn.Module) -> dict[str, Tensor]:
    """Copies of mu and bias of every variational layer of ``model``, by the names that ``weight`` and ``bias`` have in
    the state_dict of its ticket; take them before training. Raises ValueError where there is no such layer.

    >>> list(initial_means(nn.Sequential(nn.Flatten(), VariationalLinear(64, 10))))
    ['1.weight', '1.bias']
    """
    return {name: t.detach().clone() for name, t in _means(_variational("model", model)).items()}


def ticket(
    posterior: nn.Module, means: Mapping[str, Tensor], criterion: str, keep: float, *, layerwise: bool = False
) -> nn.Module:
    """The deterministic network to train: ``means`` in masked layers of which the best ``keep`` is left.

    posterior: a trained network with variational layers, at any depth, or one such layer. means: what
    ``initial_means`` gave of it. The result is a deep copy of it in which a FusedSubnetLinear or FusedSubnetConv, with
    the calls' hooks, takes the place of each variational layer; all else, other layers and their present weights
    included, is as it stands. One threshold holds for all layers, or with ``layerwise`` one for each. Masked weights
    get no gradient. keep 1 gives the unmasked network of the comparison. Warns of layers left without a weight. Raises
    ValueError and TypeError.

    >>> posterior = nn.Sequential(VariationalLinear(64, 32), nn.ReLU(), VariationalLinear(32, 10))
    >>> network = ticket(posterior, initial_means(posterior), "signal_to_noise", keep=0.1, layerwise=True)
    >>> [int(network[i].mask().sum()) for i in (0, 2)]
    [205, 32]
    """
    arguments.one_of("criterion", criterion, CRITERIA)
    rule = ek.TopK(keep, of="raw") if layerwise else ek.GlobalTopK(keep, of="raw")
    layers = _variational("posterior", posterior)
    _check_untied(posterior)
    _check_means(means, _means(layers))
    masked = {name: _masked(layer, rule, criterion, means, _prefix(name)) for name, layer in layers.items()}
    ek.train_weights(nn.ModuleList(masked.values()))
    empty = [f"{name or 'the layer'} (0 of {m.weight.numel():,})" for name, m in masked.items() if not m.mask().any()]
    if empty:
        warnings.warn(
            f"keep {keep} by {criterion} keeps nothing of {', '.join(empty)}, past which no input reaches; "
            "layerwise=True keeps a fraction of every layer",
            stacklevel=2,
        )
    copied = {id(layer): masked[name] for name, layer in layers.items()}
    network = copy.deepcopy(posterior, copied)  # which takes what it finds here for copied already
    for name, layer in layers.items():
        _take_hooks(masked[name], layer, copied)
    return network


@torch.no_grad()
def _masked(layer, rule, criterion, means, prefix):
    found = layer.masked(rule)
    found.weight.copy_(means[f"{prefix}weight"])
    found.scores.copy_(scores(layer, criterion))
    if layer.bias is not None:
        found.bias.copy_(means[f"{prefix}bias"])
    return found.train(layer.training)


def _take_hooks(layer, other, copied):
    """Gives ``layer`` the hooks on forwards and backwards of ``other``."""
    for name in _HOOKS:
        getattr(layer, name).update(copy.deepcopy(getattr(other, name), copied))
    layer._is_full_backward_hook = other._is_full_backward_hook


def _variational(argument, model):
    """The variational layers by their qualified names."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{argument}: expected a network, got {type(model).__name__}")
    layers = {name: m for name, m in model.named_modules() if isinstance(m, VariationalLayer)}
    if not layers:
        raise ValueError(f"{argument}: expected a network with variational layers, {type(model).__name__} has none")
    return layers


def _prefix(name):
    return f"{name}." if name else ""


def _means(layers):
    found = {}
    for name, layer in layers.items():
        found[f"{_prefix(name)}weight"] = layer.mu
        if layer.bias is not None:
            found[f"{_prefix(name)}bias"] = layer.bias
    return found


def _check_means(means, expected):
    if not isinstance(means, Mapping):
        raise TypeError(f"means: expected what initial_means gives, got {type(means).__name__}")
    for what, names in (("lacks", expected.keys() - means.keys()), ("has", means.keys() - expected.keys())):
        if names:
            listed = ", ".join(map(repr, sorted(names, key=str)))
            raise ValueError(f"means: expected what initial_means gives of the posterior, it {what} {listed}")
    for name, mean in means.items():
        arguments.finite(f"means[{name!r}]", mean)
        if mean.shape != expected[name].shape:
            shapes = f"shape {tuple(expected[name].shape)}, got {tuple(mean.shape)}"
            raise ValueError(f"means[{name!r}]: expected the posterior's {shapes}")


def _check_untied(posterior):
    """A layer's own weights take its place in a ticket: who shared its parameters would be left with the old ones."""
    owners = {}
    for name, module in posterior.named_modules():
        for own, p in module.named_parameters(recurse=False):
            owners.setdefault(p, []).append((module, f"{_prefix(name)}{own}"))
    for shared in owners.values():
        if len(shared) > 1 and any(isinstance(module, VariationalLayer) for module, _ in shared):
            names = " and ".join(name for _, name in shared)
            raise ValueError(f"posterior: expected modules shared whole, the parameters {names} are one")
