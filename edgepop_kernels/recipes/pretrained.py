"""Weights and scores to start from: of a run of this program, or of another program's checkpoint.

hidden-networks' networks have the parameters of the recipes' in the same order and shapes, a 1x1 convolution for a
linear layer, under other names: what no name finds is read by its position.
"""

import warnings
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

import edgepop_kernels as ek

from .config import Recipe
from .errors import UserError, reason
from .masks import masked_layers

NONE = "none"  # the setting's word
_COUNTED = "num_batches_tracked"  # checkpoints of older versions of torch have none
# Of a masked layer, beside what a dense checkpoint has of it too.
_OF_MASKS = ("scores", "mask_bits")
_RULE = "_extra_state"  # a masked layer's


def read(file: Path) -> dict[str, Tensor]:
    """The entries of a checkpoint by their names, as data alone. Raises UserError."""
    try:
        entries = ek.interop.read_state_dict(file)
    except OSError as error:
        raise UserError(f"cannot read {file}: {reason(error)}") from error
    except (ValueError, ImportError) as error:
        raise UserError(str(error).removeprefix("file: ")) from error
    # Scores say more than the mask that was made of them; the rule is the recipe's to say.
    bits = [
        name for name in entries if _leaf(name) == "mask_bits" and f"{name.removesuffix('mask_bits')}scores" in entries
    ]
    return {name: entry for name, entry in entries.items() if _leaf(name) != _RULE and name not in bits}


class Read(NamedTuple):
    """Lines on what was read, what was not in the checkpoint and what was left there; whether both are nothing."""

    lines: list[str]
    whole: bool


def load(recipe: Recipe, model: nn.Module, entries: dict[str, Tensor], source: str) -> Read:
    """Writes ``entries`` into the network of ``recipe``, in place.

    By name where all are there but those of masks, else by position: some of the names of hidden-networks' residual
    networks are the recipes', and others are not. All is checked before the first is written. source: in words, for
    errors. Raises UserError, which names what does not fit.
    """
    holds = getattr(recipe, "trains", None) == "weights"
    free = [layer for _, layer in masked_layers(model) if not layer.rule.fixed]
    packed = ek.unpack_weights(model) if masked_layers(model) else []
    if holds:
        ek.train_masks(model)  # masks follow from the scores that are read
    needed = [name for name in model.state_dict() if _leaf(name) not in (*_OF_MASKS, _COUNTED, _RULE)]
    lacking = [name for name in needed if name not in entries and f"{name}_signs" not in entries]
    named = entries if not lacking else by_position(model, entries, source)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "load_checkpoint: ")  # the lines say it
            loaded = ek.load_checkpoint(model, named)
    except ValueError as error:
        raise UserError(f"{source}: {error}") from error
    if holds:
        for _, layer in masked_layers(model):
            if layer.scores is None:  # its checkpoint has the mask in their place; a run's network has scores
                layer.scores = nn.Parameter(layer.mask().float(), requires_grad=False)
        ek.train_weights(model)
    elif any(layer.rule.fixed for layer in free):
        raise UserError(f"{source} holds fixed masks, scores of 0 and 1: expected --trains weights, for its weights")
    if packed and not _packs(model, packed):
        raise UserError(f"{source} has weights that are no constants: expected --no-pack")
    how = "by position" if lacking else "by name"
    return Read([f"{source}, {how}: {line}" for line in str(loaded).splitlines()], not (loaded.missing or loaded.left))


def _packs(model: nn.Module, layers: list[str]) -> bool:
    """Packs the weights of these layers, if all are +c or -c."""
    try:
        return ek.pack_weights(model) == layers
    except ValueError:
        return False


def by_position(model: nn.Module, entries: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """The entries by the names that ``model`` has at their places. Raises UserError, naming the first that does not fit
    there, or what is too many or too few."""
    ours = {name: value for name, value in model.state_dict().items() if _leaf(name) != _RULE}
    if not any(_leaf(name) in _OF_MASKS for name in entries):
        ours = {name: value for name, value in ours.items() if _leaf(name) not in _OF_MASKS}
    counted, theirs = ({n: v for n, v in entries.items() if (_leaf(n) == _COUNTED) is c} for c in (True, False))
    counts, places = ({n: v for n, v in ours.items() if (_leaf(n) == _COUNTED) is c} for c in (True, False))
    for number, ((name, value), (place, wanted)) in enumerate(zip(theirs.items(), places.items(), strict=False), 1):
        if _leaf(name) != _leaf(place) or not _fits(value, wanted):
            raise UserError(
                f"{source} does not fit: its entry {number} is {name} {_shape(value)}, where the network has {place} "
                f"{_shape(wanted)}"
            )
    if len(theirs) != len(places):
        more = list(theirs)[len(places) :] or list(places)[len(theirs) :]
        whose = "it has" if len(theirs) > len(places) else "the network has"
        raise UserError(f"{source} does not fit: {whose} {len(more)} entries more, the first {more[0]}")
    found = dict(zip(places, theirs.values(), strict=True))
    if len(counted) == len(counts):
        found |= dict(zip(counts, counted.values(), strict=True))
    return found


def _fits(value: Tensor, wanted: Tensor) -> bool:
    shape = tuple(value.shape)
    return shape == tuple(wanted.shape) or (shape == (*wanted.shape, 1, 1) and wanted.dim() == 2)


def _shape(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "one number"


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]
