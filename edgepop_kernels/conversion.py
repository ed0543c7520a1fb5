"""Conversion of whole networks into masked layers, and back."""

import warnings
from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast, overload

import torch
from torch import nn

from .bank import MaskBank
from .candidates import Wanted, chosen, listed, unknown_kinds
from .first_forward import unwatch, watch
from .init import Name, Scale, by_name, check_start
from .interop.origin import Method, Origin
from .interop.table import origin_of, subject_of
from .nn import CLASSES, KINDS, MaskedLayer, NonAffineBatchNorm
from .overview import LeftDense, described, left_dense
from .refusals import refuse, refuse_materializing
from .rules import Frozen, Rule, TopK, keeps_best
from .schedules import Keep, checked_by_name, keep_of_layers
from .sharing import Model, layer_masks, unshare_selection
from .swap import METHOD_RULES, Before, Start, Swap

if TYPE_CHECKING:
    from typing_extensions import Unpack


class _OfSupermasks(TypedDict, total=False):
    scores_init: float | None
    mask_bias: bool
    rescale: bool


def convert(
    model: Model,
    rule: Rule | None = None,
    *,
    method: Method | None = None,
    include: "Wanted | None" = None,
    exclude: "Wanted" = (),
    keep: "Keep | None" = None,
    init: Name | None = None,
    scale: Scale = "none",
    scores: "Start" = "random",
    left: Literal["warn", "raise", "ignore"] = "warn",
    freeze_rest: bool = False,
    norm: Literal["keep", "non-affine"] = "keep",
    **options: "Unpack[_OfSupermasks]",
) -> Model:
    """Turns linear layers and convolutions of ``model`` (1-d to 3-d; 1-d and 2-d transposed) into masked ones, in
    place, and returns it.

    rule              for every converted layer; default ``TopK(0.5)``, for supermasks ``Threshold(0.5)``
    method            which layers: "subnet" (FusedSubnet*: frozen weights, edge-popup; the default), "supermask"
                      (FusedSupermask*: frozen weights), "sparse" (FusedSparse*: trained weights that score themselves)
    include, exclude  fnmatch patterns on the layers' qualified names, e.g. ``"layer4.*"``, ``["fc", "conv1"]``, or
                      functions ``(name, layer) -> bool``; by default every layer, but beside masked layers of another
                      project no plain ones
    keep              fraction of weights kept, in (0, 1], in ``rule``'s place: ``TopK(keep)``; not for supermasks. Or
                      {pattern: fraction}, as ``set_keep`` takes it and ``density`` makes it, for every layer
    init, scale       draws the converted layers' weights anew: a name of ``edgepop_kernels.init.NAMES``; how their
                      deviation follows the fraction kept, of ``init.SCALES``. None: the weights stay, e.g. trained ones
    scores            "random", as edge-popup draws them; "magnitude" or "hydra", of the weights as they are then
                      (``init.scores_from_weight_``): for trained ones
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

    Weights, biases, hooks and identity stay; scores are new. Masked layers of other projects are taken too, by their
    names: hidden-networks' SubnetConv, SampleSubnetConv, FixedSubnetConv, SupermaskConv and SupermaskLinear, hydra's
    SubnetConv and SubnetLinear, dnw's SparseConv and DNW, torchao's SupermaskLinear, what torch.nn.utils.prune has
    pruned, and others by ``interop.register``. They keep scores, or a fixed mask, frozen; whether their weight trains;
    and where ``method``, ``rule`` and ``keep`` are not given, what they say themselves, a rate with its meaning there.
    What belongs to adapters (peft's lora_A, lora_B beside a layer, a prompt's encoder) is never converted.

    Raises TypeError or ValueError for a wrong argument, where there is no layer to convert, where a pattern in
    ``include`` or ``exclude`` matches none, where another project's layer does not say its rate and none is given, and
    for what would not be masked as it says: a weight that is computed (weight_norm, spectral_norm, parametrize, a bias
    under torch.nn.utils.prune), shared with another module (a tied embedding) or sharded, a layer whose forward was
    replaced on the instance or that carries an adapter, a model inside DistributedDataParallel, fully_shard or
    DataParallel. An exception leaves the model as it was. The first forward of ``model`` warns of converted layers that
    it does not call: where it reads their weight (torchvision's Swin), no mask reaches that.

    >>> model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    >>> ek.convert(model, keep=0.5, init="signed_constant", exclude="2", left="ignore")
    Sequential(
      (0): FusedSubnetLinear(in_features=64, out_features=32, bias=True, rule=TopK(keep=0.5, of='abs'))
      (1): ReLU()
      (2): Linear(in_features=32, out_features=10, bias=True)
    )
    """
    _refuse_bank(model, "convert the network before a bank is made of it")
    given = cast(dict[str, Any], options)
    if method is not None:
        _check_method(method)
    allowed = {"scores_init", "mask_bias", "rescale"} if method == "supermask" else set[str]()
    for option in given.keys() - allowed:
        raise TypeError(f"{option}: method {method!r} takes {', '.join(sorted(allowed)) or 'no options'}")
    if keep is not None:
        checked_by_name(keep)
        if method == "supermask":
            raise ValueError(
                f"keep: a supermask's rule is a threshold or a draw; expected rule=Threshold(...), got {keep=}"
            )
        if rule is not None:
            raise ValueError(f"keep: expected keep or rule, which says what is kept too, got keep={keep} and {rule=!s}")
    if isinstance(rule, Rule) and rule.fixed:
        raise ValueError("rule: a fixed mask comes from freeze() on the converted layers; expected another rule")
    if left not in ("warn", "raise", "ignore"):
        raise ValueError(f"left: expected 'warn', 'raise' or 'ignore', got {left!r}")
    if not isinstance(freeze_rest, bool):
        raise TypeError(f"freeze_rest: expected a bool, got {freeze_rest!r}")
    if scores != "random":
        check_start(scores, TopK())
    layers, meant = chosen(model, include, exclude)
    rules = dict.fromkeys(layers, rule) if keep is None else _top_k(keep, layers)
    refuse(model, layers)
    plan: list[Swap] = []
    module: Any
    for name, module in layers.items():
        origin = origin_of(module)
        kind = CLASSES[method or ("subnet" if origin is None else origin.method), _plain(module)]
        layer_rule = _rule(name, module, origin, kind, rules[name])
        fixed = origin is not None and origin.mask is not None
        kind._check(METHOD_RULES[kind._method] if fixed else layer_rule, **given)
        _check_shape(layer_rule, name, module)
        if scores != "random":
            _check_start(scores, name, module, origin, kind, layer_rule)
        plan.append(Swap(module, kind, layer_rule, origin, _drawing(init, layer_rule, scale), scores))
    norms = _batch_norms(model, norm)
    message = "" if freeze_rest or left == "ignore" else _left_message(model, layers, meant)
    differences = _differences(layers)
    if message and left == "raise":
        raise ValueError(f"left: {message}")
    changing: list[Any] = [*layers.values(), *norms]
    before = [Before.of(module, writes=init is not None and module not in norms) for module in changing]
    trained = [p for p in model.parameters() if p.requires_grad] if freeze_rest else []
    try:
        for planned in plan:
            planned.convert(given)
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
    for difference in differences:
        warnings.warn(difference, stacklevel=2)
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
    _refuse_bank(model, "materialize(bank.model, copy=True) makes torch's layers of the task in use")
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


def _refuse_bank(model: object, instead: str) -> None:
    """Raises TypeError for a bank, whose tasks would be of other layers than its network's."""
    if isinstance(model, MaskBank):
        raise TypeError(f"model: expected a network, got a MaskBank; {instead}")


def _check_method(method: str) -> None:
    if not isinstance(method, str) or method not in METHOD_RULES:
        raise ValueError(
            "method: expected 'subnet' (edge-popup), 'supermask' or 'sparse' (Discovering Neural Wirings, DNW), "
            f"got {method!r}"
        )


def _top_k(keep: Keep, layers: dict[str, nn.Module]) -> dict[str, Rule | None]:
    """The rule of each layer. Raises ValueError where ``keep`` does not have all of them."""
    found = keep_of_layers(keep, layers)
    without = [name for name in layers if name not in found]
    if without:
        raise ValueError(f"keep: no pattern has {listed(without)}; expected one, '*' for the rest, or exclude=...")
    return {name: TopK(fraction) for name, fraction in found.items()}


def _check_shape(rule: Rule, name: str, layer: Any) -> None:
    """Raises ValueError, which names the layer, where the rule does not take its weight."""
    try:
        rule.check(layer.weight.shape)
    except ValueError as error:
        raise ValueError(f"{error}, of {name or 'the model itself'}; exclude=... leaves that dense") from error


def _check_start(
    scores: Start, name: str, layer: Any, origin: Origin | None, kind: type[MaskedLayer], rule: Rule
) -> None:
    """Raises ValueError where a layer's scores do not start from its weight."""
    if kind._method == "sparse":
        raise ValueError(f"scores: with method 'sparse' the weight scores itself; expected 'random', got {scores!r}")
    if origin is not None:
        raise ValueError(f"scores: {subject_of(name, layer, origin)} brings its own; expected 'random', got {scores!r}")
    check_start(scores, rule)


def _rule(name: str, layer: Any, origin: Origin | None, kind: type[MaskedLayer], rule: Rule | None) -> Rule:
    """The rule of a layer to be converted, Frozen() where its mask is fixed. Raises ValueError."""
    default = METHOD_RULES[kind._method]
    if origin is None:
        return default if rule is None else rule
    subject = subject_of(name, layer, origin)
    if origin.mask is not None:
        if rule is not None:
            raise ValueError(f"rule: {subject} has a fixed mask, which follows from none; leave it out, got {rule}")
        return Frozen()
    # A rate says nothing about thresholds and draws.
    if rule is not None or (kind._method == "supermask" != origin.method):
        return default if rule is None else rule
    try:
        said = origin.rule(layer)
    except ValueError as error:
        raise ValueError(f"keep: {subject} {error}") from error
    if said is None:
        raise ValueError(f"keep: {subject} {origin.unsaid}; expected keep=... or rule=...")
    return said if kind._method == origin.method or kind._takes(said) else default


def _drawing(init: Name | None, rule: Rule, scale: Scale) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function that draws a layer's weight, or leaves it. Raises ValueError."""
    if init is None:
        if scale != "none":
            raise ValueError(f"scale: it is of init, which is None; expected 'none', got {scale!r}")
        return lambda weight: weight
    if scale != "none" and not keeps_best(rule):
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
    modules = [model.get_submodule(entry.name) for entry in left if not entry.minor]
    more = ""
    if any(type(m) in KINDS for m in modules):
        more += "; include='*' masks plain layers beside those of another project"
    if any(type(m) is nn.MultiheadAttention for m in modules):
        more += "; split_attention(model) before convert makes layers of what attention multiplies by"
    if unknown := unknown_kinds(modules):
        more += f"; where {' or '.join(unknown)} has masks, edgepop_kernels.interop.register makes it known"
    return (
        f"left dense, {weights:,} of {total:,} weights train without a mask: {described(left)}. freeze_rest=True stops "
        f"them, exclude=... says of single ones that this is meant, left='ignore' of all{more}"
    )


def _differences(layers: dict[str, nn.Module]) -> list[str]:
    """Warnings about layers of other projects that train otherwise than there."""
    said: dict[str, str] = {}
    for name, layer in layers.items():
        origin = origin_of(layer)
        if origin is not None and origin.differs:
            said.setdefault(origin.differs, subject_of(name, layer, origin))
    return [f"convert: {subject} trains on as edge-popup does: {differs}" for differs, subject in said.items()]


def _freeze_rest(model: nn.Module) -> None:
    """Stops everything that trains but what makes masks."""
    masks = {p for layer in _masked_layers(model) if not layer.rule.fixed for p in layer._trained(masks=True)}
    for p in model.parameters():
        if p not in masks:
            p.requires_grad_(False)


def _plain(module: Any) -> type[nn.Module]:
    """The layer of torch that a module to be converted is."""
    return next(plain for plain in KINDS if isinstance(module, plain))


def _masked_layers(model: nn.Module) -> list[MaskedLayer]:
    return [m for m in model.modules() if isinstance(m, MaskedLayer)]
