"""Conversion of whole networks into masked layers, and back."""

import warnings
from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict, cast, overload

import torch
from torch import nn

from .candidates import Wanted, chosen
from .first_forward import unwatch, watch
from .init import Name, Scale, by_name
from .nn import CLASSES, KINDS, MaskedLayer, NonAffineBatchNorm
from .overview import LeftDense, described, left_dense
from .refusals import refuse, refuse_materializing
from .rules import Rule, Threshold, TopK, checked_keep, ranked_rule
from .sharing import Model, layer_masks, unshare_selection

if TYPE_CHECKING:
    from typing_extensions import Unpack

Method = Literal["subnet", "supermask", "sparse"]
# The rule of each method where none is given.
_RULES: dict[str, Rule] = {"subnet": TopK(), "supermask": Threshold(), "sparse": TopK()}


class _OfSupermasks(TypedDict, total=False):
    scores_init: float | None
    mask_bias: bool
    rescale: bool


def convert(
    model: Model,
    rule: Rule | None = None,
    *,
    method: Method = "subnet",
    include: "Wanted" = "*",
    exclude: "Wanted" = (),
    keep: float | None = None,
    init: Name | None = None,
    scale: Scale = "none",
    left: Literal["warn", "raise", "ignore"] = "warn",
    freeze_rest: bool = False,
    norm: Literal["keep", "non-affine"] = "keep",
    **options: "Unpack[_OfSupermasks]",
) -> Model:
    """Turns nn.Conv2d, nn.Conv1d and nn.Linear layers of ``model`` into masked ones, in place, and returns it.

    rule              for every converted layer; default ``TopK(0.5)``, for supermasks ``Threshold(0.5)``
    method            which layers: "subnet" (FusedSubnet*: frozen weights, edge-popup), "supermask" (FusedSupermask*:
                      frozen weights), "sparse" (FusedSparse*: trained weights that score themselves)
    include, exclude  fnmatch patterns on the layers' qualified names, e.g. ``"layer4.*"``, ``["fc", "conv1"]``, or
                      functions ``(name, layer) -> bool``
    keep              fraction of weights kept, in (0, 1], in ``rule``'s place: ``TopK(keep)``; not for supermasks
    init, scale       draws the converted layers' weights anew: a name of ``edgepop_kernels.init.NAMES``; how their
                      deviation follows the fraction kept, of ``init.SCALES``. None: the weights stay, e.g. trained ones
    left              "warn" (one ``LeftDense`` warning that names them), "raise" or "ignore", about weights that go on
                      training without a mask: those of subclasses, of other layers, of parameters read by name. Norms,
                      biases and other vectors alone are not worth a word, nor are layers not included or excluded;
                      ``exclude`` takes the names of other modules than layers too, to say that they are meant
    freeze_rest       nothing but the masks trains: biases, norms, excluded layers and all else stand still
    norm              "non-affine" takes scale and shift out of the batch norms, as edge-popup's networks have none
    options           scores_init, mask_bias, rescale of supermasks; layers without bias have none to mask

    Random weights want an init, and each method its rate; these learn the digits (docs/accuracy.md says how well):

      "subnet"                   init="signed_constant"; keep far from 0.5: scale="paper"   SGD 0.1, momentum 0.9
      "supermask"                init="signed_constant", scores_init=None, the default      Adam 0.01
      "supermask", Bernoulli()   init="signed_constant", scores_init=None                   Adam 0.1
      "sparse"                   init="kaiming_normal"                                      SGD 0.1, momentum 0.9

    Weights, biases, hooks and identity stay; scores are new. hidden-networks' SubnetConv layers are taken
    too, with their scores and, where neither ``rule`` nor ``keep`` is given, their prune_rate (there the fraction
    kept). What belongs to adapters (peft's lora_A, lora_B beside a layer, a prompt's encoder) is never converted.

    Raises TypeError or ValueError for a wrong argument, where there is no layer to convert, where a pattern in
    ``include`` or ``exclude`` matches none, and for what would not be masked as it says: a weight that is computed
    (torch.nn.utils.prune, weight_norm, spectral_norm, parametrize), shared with another module (a tied embedding) or
    sharded, a layer whose forward was replaced on the instance or that carries an adapter, a model inside
    DistributedDataParallel, fully_shard or DataParallel. An exception leaves the model as it was. The first forward of
    ``model`` warns of converted layers that it does not call: where it reads their weight (torchvision's Swin), no mask
    reaches that.

    >>> model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    >>> ek.convert(model, keep=0.5, init="signed_constant", exclude="2", left="ignore")
    Sequential(
      (0): FusedSubnetLinear(in_features=64, out_features=32, bias=True, rule=TopK(keep=0.5, of='abs'))
      (1): ReLU()
      (2): Linear(in_features=32, out_features=10, bias=True)
    )
    """
    default, given = _default_rule(method), cast(dict[str, Any], options)
    allowed = {"scores_init", "mask_bias", "rescale"} if method == "supermask" else set[str]()
    for option in given.keys() - allowed:
        raise TypeError(f"{option}: method {method!r} takes {', '.join(sorted(allowed)) or 'no options'}")
    if keep is not None:
        checked_keep(keep)
        if method == "supermask":
            raise ValueError(
                f"keep: a supermask's rule is a threshold or a draw; expected rule=Threshold(...), got {keep=}"
            )
        rule = ranked_rule(keep, rule)
    if isinstance(rule, Rule) and rule.fixed:
        raise ValueError("rule: a fixed mask comes from freeze() on the converted layers; expected another rule")
    if left not in ("warn", "raise", "ignore"):
        raise ValueError(f"left: expected 'warn', 'raise' or 'ignore', got {left!r}")
    if not isinstance(freeze_rest, bool):
        raise TypeError(f"freeze_rest: expected a bool, got {freeze_rest!r}")
    layers, meant = chosen(model, include, exclude)
    plan: list[tuple[Any, type[MaskedLayer], Rule, Callable[[torch.Tensor], torch.Tensor]]] = []
    module: Any
    for module in layers.values():
        kind = CLASSES[method, _plain(module)]
        layer_rule = _rule(module, rule, default, method)
        kind._check(layer_rule, **given)
        plan.append((module, kind, layer_rule, _drawing(init, layer_rule, scale)))
    refuse(model, layers)
    for module, _, layer_rule, _ in plan:  # after that: to read a computed weight may change it, as spectral norm's
        layer_rule.check(module.weight.shape)
    norms = _batch_norms(model, norm)
    message = "" if freeze_rest or left == "ignore" else _left_message(model, layers, meant)
    if message and left == "raise":
        raise ValueError(f"left: {message}")
    changing: list[Any] = [*layers.values(), *norms]
    before = [_Before.of(module, writes=init is not None and module not in norms) for module in changing]
    trained = [p for p in model.parameters() if p.requires_grad] if freeze_rest else []
    try:
        for module, kind, layer_rule, draw in plan:
            _convert_layer(module, kind, layer_rule, given)
            draw(module.weight)
        for module in norms:
            module.affine, module.weight, module.bias = False, None, None
        if freeze_rest:
            _freeze_rest(model)
    except BaseException:  # out of memory, or interrupted: what is half done goes back
        for p in trained:
            p.requires_grad_()
        for module, state in zip(changing, before, strict=True):
            state.restore(module)
        raise
    watch(model, layers)
    if message:
        warnings.warn(message, LeftDense, stacklevel=2)
    return model


@overload
def materialize(model: MaskedLayer, copy: bool = False) -> nn.Module: ...
@overload
def materialize(model: Model, copy: bool = False) -> Model: ...
def materialize(model: nn.Module, copy: bool = False) -> nn.Module:
    """Turns every masked layer of ``model`` back into torch's own with weight W * M, in place, and returns it.

    copy  True: ``model`` stays as it is, scores and all, and a copy is turned and returned

    Nothing of this package is left: no scores, no buffers, no hooks. In place the weights not kept are gone. They are
    0, and train from there like the others: to train on with them at 0, train the masked network after
    ``train_weights(model)``, and materialize it at the end. Raises ValueError, before anything changes, for a layer
    whose forward was replaced on the instance.

    >>> model = ek.convert(nn.Sequential(nn.Linear(64, 10)), keep=0.5)
    >>> ek.materialize(model)
    Sequential(
      (0): Linear(in_features=64, out_features=10, bias=True)
    )
    >>> (model[0].weight == 0).sum().item()
    320
    """
    refuse_materializing({name: m for name, m in model.named_modules() if isinstance(m, MaskedLayer)})
    layers = _masked_layers(model)
    masks = layer_masks(layers)  # all before any weight changes: one threshold may hang on all of them
    if copy:
        model = deepcopy(model)
        layers = _masked_layers(model)
    for module in model.modules():
        unshare_selection(module)
        unwatch(module)
    for layer, mask in zip(layers, masks, strict=True):
        layer._become_plain(mask)
    for module in model.modules():
        if type(module) is NonAffineBatchNorm:
            module.__class__ = nn.BatchNorm2d  # type: ignore[assignment]  # which it is but for the constructor
    return model


def _default_rule(method: str) -> Rule:
    if not isinstance(method, str) or method not in _RULES:
        raise ValueError(
            "method: expected 'subnet' (edge-popup), 'supermask' or 'sparse' (Discovering Neural Wirings, DNW), "
            f"got {method!r}"
        )
    return _RULES[method]


def _rule(module: Any, rule: Rule | None, default: Rule, method: str) -> Rule:
    if rule is not None:
        return rule
    kept = getattr(module, "prune_rate", None)
    return default if kept is None or method == "supermask" else TopK(kept)


def _drawing(init: Name | None, rule: Rule, scale: Scale) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function that draws a layer's weight, or leaves it. Raises ValueError."""
    if init is None:
        if scale != "none":
            raise ValueError(f"scale: it is of init, which is None; expected 'none', got {scale!r}")
        return lambda weight: weight
    if scale != "none" and not rule.ranks:
        raise ValueError(
            f"scale: it follows the fraction kept, which {rule} does not name; expected 'none', got {scale!r}"
        )
    return by_name(init, getattr(rule, "keep", None), scale)


def _batch_norms(model: nn.Module, norm: str) -> list[nn.modules.batchnorm._BatchNorm]:
    """The batch norms to be left without scale and shift. Raises ValueError."""
    if norm not in ("keep", "non-affine"):
        raise ValueError(f"norm: expected 'keep' or 'non-affine', got {norm!r}")
    if norm == "keep":
        return []
    found = {name: m for name, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    if not found:
        raise ValueError("norm: the model has no batch norm; expected 'keep', got 'non-affine'")
    for name, module in found.items():
        if not {"weight", "bias"} <= module._parameters.keys():
            raise ValueError(f"norm: {name} has a computed weight or bias; expected 'keep', got 'non-affine'")
    return [m for m in found.values() if m.affine]


def _left_message(model: nn.Module, layers: dict[str, nn.Module], meant: Iterable[str]) -> str:
    """The warning about weights that train without a mask; empty where there are none but those meant."""
    left = left_dense(model, layers.values(), meant)
    weights = sum(entry.numel for entry in left if not entry.minor)
    if all(entry.minor for entry in left):
        return ""
    total = sum(p.numel() for p in model.parameters() if not nn.parameter.is_lazy(p))
    return (
        f"left dense, {weights:,} of {total:,} weights train without a mask: {described(left)}. freeze_rest=True stops "
        "them, exclude=... says of single ones that this is meant, left='ignore' of all"
    )


def _freeze_rest(model: nn.Module) -> None:
    """Stops everything that trains but what makes masks."""
    masks = {p for layer in _masked_layers(model) for p in layer._trained(masks=True)}
    for p in model.parameters():
        if p not in masks:
            p.requires_grad_(False)


class _Before(NamedTuple):
    """A layer as it was, apart from values that nothing here writes."""

    kind: type
    attributes: dict[str, Any]
    trains: list[tuple[nn.Parameter, bool]]
    weight: torch.Tensor | None

    @classmethod
    def of(cls, layer: Any, writes: bool) -> "_Before":
        """writes: whether the weight's values are about to be drawn anew."""
        # Tables of hooks and parameters stay the same objects: handles of hooks point to them.
        attributes = {key: (v, dict(v) if isinstance(v, dict) else None) for key, v in vars(layer).items()}
        weight = layer.weight.detach().clone() if writes else None
        return cls(type(layer), attributes, [(p, p.requires_grad) for p in layer.parameters()], weight)

    def restore(self, layer: Any) -> None:
        layer.__class__ = self.kind
        vars(layer).clear()
        for key, (value, entries) in self.attributes.items():
            vars(layer)[key] = value
            if entries is not None:
                value.clear()
                value.update(entries)
        for p, trained in self.trains:
            p.requires_grad_(trained)
        if self.weight is not None:
            with torch.no_grad():
                layer.weight.copy_(self.weight)


def _convert_layer(module: Any, kind: type[MaskedLayer], rule: Rule, options: dict[str, Any]) -> None:
    # The class is exchanged rather than the module: hooks, references from elsewhere and the root itself stay valid.
    scores = getattr(module, "scores", None)
    if scores is not None:
        module.__dict__.pop("prune_rate", None)
        del module.scores
    module.__dict__.pop("forward", None)  # of its class, which accelerate leaves behind
    module.__class__ = kind
    if options.get("mask_bias") and module.bias is None:
        options = options | {"mask_bias": False}
    module._mask_with(rule, **options)
    if scores is not None and module.scores is not None:
        module.scores = nn.Parameter(scores.detach().to(torch.float32), requires_grad=scores.requires_grad)


def _plain(module: Any) -> type[nn.Module]:
    """The layer of torch that a module to be converted is."""
    return next(plain for plain in KINDS if isinstance(module, plain))


def _masked_layers(model: nn.Module) -> list[MaskedLayer]:
    return [m for m in model.modules() if isinstance(m, MaskedLayer)]
