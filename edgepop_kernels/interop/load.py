"""Checkpoints of other programs into masked networks: read, translated, tried, and only then written."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from .. import checks
from ..nn import MaskedLayer
from ..nn.cuts import Cuts
from ..nn.tools import check_unwrapped
from .containers import Content, File, plain_name, read
from .entries import for_masked, for_plain, problem

_EXTRA = "_extra_state"  # torch's name
# What a mask is made of: a dense checkpoint has none of it, and the layer's own stays.
_OF_MASKS = {"scores", "popup_scores", "bias_scores", "mask_bits", "bias_mask"}


@dataclass(frozen=True)
class Loaded:
    """An account of what ``load_checkpoint`` did; as a string a few lines.

    read_as  for each entry of the checkpoint that was read, the model's entry that it went into
    missing  entries of the model that stayed as they were
    left     entries of the checkpoint that were not read
    beside   what the checkpoint holds beside the state_dict, which is not read: epoch, optimizer
    """

    read_as: dict[str, str]
    missing: tuple[str, ...]
    left: tuple[str, ...]
    beside: tuple[str, ...]

    def __str__(self) -> str:
        kinds = Counter((_leaf(theirs), _leaf(ours)) for theirs, ours in self.read_as.items())
        said = [f"{n} {theirs}{'' if theirs == ours else f' as {ours}'}" for (theirs, ours), n in kinds.items()]
        lines = [f"read {len(self.read_as)}: {', '.join(said)}"]
        for what, names in (("missing", self.missing), ("left", self.left), ("beside", self.beside)):
            lines += [f"{what} {len(names)}: {_some(names)}"] if names else []
        return "\n".join(lines)


class _Part(NamedTuple):
    """What a module takes of a checkpoint: values by its own names, and the checkpoint's names of each."""

    values: dict[str, Any]
    names: dict[str, tuple[str, ...]]
    missing: list[str]


@torch.no_grad()
def load_checkpoint(model: nn.Module, file: File) -> Loaded:
    """Loads a checkpoint of another program into ``model``, in place, and says what was read as what.

    file     a path, of torch.save (read with weights_only=True) or of safetensors, or a dict
    returns  ``Loaded``: read_as, missing, left, beside. A warning names what was left, and what is missing but for
             scores and masks

    The state_dict is found in its container (state_dict, model, ...), with or without the prefixes of DataParallel and
    torch.compile, in the checkpoint or in the model. Masked layers take, beside their own entries,

      weight alone                        a dense network's: scores and rule stay
      scores, popup_scores, mask_real     hidden-networks', hydra's, piggyback's: the rule stays, of which no such
                                          checkpoint tells
      weight_orig with weight_mask, mask  torch.nn.utils.prune's, dnw's fixed masks: the layer is frozen with it
      scores of 0 and 1 alone             hidden-networks' FixedSubnetConv: frozen too

    and plain layers the product of weight_orig and weight_mask. A weight of (O, I, 1, 1) is one of (O, I).
    A ``MaskBank`` takes supsup's: ``scores.N`` and ``bns.N`` are of its task N, and its tasks those of the checkpoint.

    All is checked before the first value is written. Raises ValueError, which names what does not fit, for other shapes
    and dtypes, for a file without a state_dict or of which the model has nothing, for one that is damaged or holds more
    than data; TypeError; OSError; ImportError where safetensors is asked for and not installed; RuntimeError inside
    DistributedDataParallel or fully_shard where a layer would become frozen.

    >>> model = ek.convert(nn.Sequential(nn.Linear(64, 10)), keep=0.3)
    >>> theirs = {"module.0.weight": torch.randn(10, 64), "module.0.popup_scores": torch.randn(10, 64)}
    >>> print(ek.load_checkpoint(model, {"epoch": 90, "state_dict": theirs | {"module.0.bias": torch.zeros(10)}}))
    read 3: 1 weight, 1 popup_scores as scores, 1 bias
    beside 1: epoch
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    content = read(file)
    own_way: Callable[[Content], Loaded] | None = getattr(model, "_load_checkpoint", None)  # a bank of masks has it
    loaded = load_into(model, content) if own_way is None else own_way(content)
    _tell(loaded)
    return loaded


def load_into(model: nn.Module, content: Content) -> Loaded:
    """``load_checkpoint`` of a checkpoint that was read, without its warning."""
    by_module = _by_module(content.entries)
    state: dict[str, Any] = {}
    versions = {plain_name(name): version for name, version in content.versions.items()}
    read_as: dict[str, str] = {}
    missing: dict[str, torch.Tensor | None] = {}
    written: set[int] = set()
    problems: list[str] = []
    metadata, frozen = {}, []
    for name, module in model.named_modules(remove_duplicate=False):
        prefix = f"{name}." if name else ""
        path = plain_name(f"{prefix}weight").rpartition(".")[0]
        own = _own(module)
        saved = {leaf: content.entries[theirs] for leaf, theirs in by_module.get(path, {}).items()}
        try:
            if isinstance(module, MaskedLayer):
                part, freezes = _masked(module, own, saved)
                frozen += [module] if freezes else []
            else:
                part = _plain(module, own, saved)
        except ValueError as error:
            problems += [f"{prefix}{line}" for line in str(error).splitlines()]
            continue
        metadata[name] = versions.get(path, {})
        for leaf, value in part.values.items():
            state[f"{prefix}{leaf}"] = value
            read_as |= {by_module[path][theirs]: f"{prefix}{leaf}" for theirs in part.names[leaf]}
            written |= {id(own[leaf])} if leaf in own else set()
        missing |= {f"{prefix}{leaf}": own.get(leaf) for leaf in part.missing}
    if problems:
        more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise ValueError(f"model: the checkpoint does not fit; {'; '.join(problems[:4])}{more}")
    if not read_as:
        raise ValueError(
            f"file: none of its entries is one of the model's; it has {_some(content.entries, 3)}, the model "
            f"{_some(model.state_dict(), 3)}"
        )
    if frozen:
        check_unwrapped("load_checkpoint", frozen)
    state_dict = _WithVersions(state)
    state_dict._metadata = metadata
    model.load_state_dict(state_dict, strict=False)
    return Loaded(
        {theirs: read_as[theirs] for theirs in content.entries if theirs in read_as},
        tuple(name for name, own_tensor in missing.items() if id(own_tensor) not in written),  # tied ones are written
        tuple(theirs for theirs in content.entries if theirs not in read_as),
        content.beside,
    )


class _WithVersions(dict[str, Any]):
    """A state_dict with torch's _metadata: the versions of the modules' formats."""

    _metadata: dict[str, Any]


def _by_module(entries: Iterable[str]) -> dict[str, dict[str, str]]:
    """The checkpoint's names by the module's plain name and the entry's own. Raises ValueError."""
    found: dict[str, dict[str, str]] = {}
    for theirs in entries:
        path, _, leaf = plain_name(theirs).rpartition(".")
        other = found.setdefault(path, {}).setdefault(leaf, theirs)
        if other != theirs:
            raise ValueError(f"file: {other} and {theirs} are one entry under two names; expected one of them")
    return found


def _own(module: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a module's own that a state_dict has, by their names in it."""
    held: dict[str, torch.Tensor] = {n: p for n, p in module._parameters.items() if p is not None}
    passing = module._non_persistent_buffers_set
    return held | {n: b for n, b in module._buffers.items() if b is not None and n not in passing}


def _masked(layer: MaskedLayer, own: dict[str, torch.Tensor], saved: dict[str, Any]) -> tuple[_Part, bool]:
    """What a masked layer takes, and whether it becomes frozen or thawed by that: tried on a copy. Raises
    ValueError."""
    if not saved:
        return _Part({}, {}, list(own)), False
    entries = for_masked(layer, saved)
    shape = layer._weight_shape()
    bits = torch.Size(checks.packed_shape(shape))
    shapes = {"weight": shape, layer._scores_name: shape, "mask_bits": bits, "weight_signs": bits, "bias": None}
    wrong = [
        problem(name, own.get(name), entries[name].value, expected)
        for name, expected in shapes.items()
        if name in entries and (name in own or expected is not None)
    ]
    if any(wrong):
        raise ValueError("\n".join(filter(None, wrong)))
    trial = _copy(layer)
    try:
        # assign: nothing is copied. detach: of parameters it would set what trains.
        values = {n: e.value.detach() if torch.is_tensor(e.value) else e.value for n, e in entries.items()}
        result = trial.load_state_dict(values, strict=False, assign=True)
    except RuntimeError as error:
        raise ValueError("\n".join(line.strip() for line in str(error).splitlines()[1:])) from error
    taken = {name: entry for name, entry in entries.items() if name not in result.unexpected_keys}
    part = _Part(
        {name: entry.value for name, entry in taken.items()},
        {name: entry.names for name, entry in taken.items()},
        result.missing_keys,
    )
    return part, trial.rule.fixed != layer.rule.fixed


def _plain(module: nn.Module, own: dict[str, torch.Tensor], saved: dict[str, Any]) -> _Part:
    """What a module of torch's takes. Raises ValueError."""
    extra = {_EXTRA} if type(module).get_extra_state is not nn.Module.get_extra_state else set[str]()
    entries = for_plain(module, {**own, **dict.fromkeys(extra)}, saved)
    wrong = [
        problem(name, own[name], entry.value)
        for name, entry in entries.items()
        if name in own and not is_lazy(own[name])
    ]
    if any(wrong):
        raise ValueError("\n".join(filter(None, wrong)))
    # Batch norms fill that in themselves, as torch's older checkpoints lack it.
    missing = [name for name in (*own, *extra) if name not in entries and name != "num_batches_tracked"]
    return _Part(
        {name: entry.value for name, entry in entries.items()},
        {name: entry.names for name, entry in entries.items()},
        missing,
    )


def _copy(layer: MaskedLayer) -> MaskedLayer:
    """A layer like ``layer``, over the same values, that nobody else knows of: for what replaces them, and writes
    none."""
    twin = layer.__class__.__new__(layer.__class__)
    vars(twin).update(
        {key: value.copy() if isinstance(value, dict | set) else value for key, value in vars(layer).items()}
    )
    for key, value in vars(twin).items():
        if key.endswith("_hooks") and isinstance(value, dict):
            value.clear()
    vars(twin).update(_cuts=Cuts(), _group=None, _updater=None)
    for name, p in layer._parameters.items():
        twin._parameters[name] = None if p is None else nn.Parameter(p.detach(), p.requires_grad)
    return twin


def _tell(loaded: Loaded) -> None:
    missing = [name for name in loaded.missing if _leaf(name) not in _OF_MASKS]
    parts = [f"not read: {_some(loaded.left)}"] if loaded.left else []
    parts += [f"not in the checkpoint, and as it was: {_some(missing)}"] if missing else []
    if parts:
        warnings.warn(f"load_checkpoint: {'; '.join(parts)}", stacklevel=4)


def _leaf(name: str) -> str:
    """The entry's own name, of a list's with its number."""
    parts = name.split(".")
    return ".".join(parts[-2:]) if parts[-1].isdecimal() else parts[-1]


def _some(names: Iterable[str], most: int = 8) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
