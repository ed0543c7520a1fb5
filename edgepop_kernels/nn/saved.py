"""The way of a masked layer into a state_dict and back: its tensors, its settings, frozen or not.

The settings are JSON in a tensor of bytes. torch's ``get_extra_state`` may return anything, but safetensors,
torch.distributed.checkpoint and ``weights_only=True`` take tensors alone. The second loads into a tensor of the size
that the network has already, so spaces fill the bytes up to one size.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from typing import Any, cast

import torch

from .. import checks
from ..rules import RULES, Rule, defined
from .parts import Part

_KEY = "_extra_state"  # torch's name
_SIZE = 256  # the longest today, of a frozen supermask, takes 131 bytes


class Saved(Part):
    """The part of a masked layer that writes its rule into a state_dict, and reads it.

    Loading sets the rule, and the ``keep`` in it, to those of the layer that was saved, and freezes or thaws the layer
    as that one was, without a word. A state_dict without a rule, of hidden-networks' layer or a dense one, leaves the
    layer its own. What the layer cannot take is an error in load_state_dict's RuntimeError, which names its key, and
    nothing of that layer is loaded.
    """

    def get_extra_state(self) -> torch.Tensor:
        """The rule as bytes of JSON: what a state_dict holds under "_extra_state", beside parameters and buffers."""
        return _packed(**self._settings())

    def set_extra_state(self, state: torch.Tensor) -> None:
        """Sets the rule to that of the layer that was saved. Raises ValueError for one that this layer cannot take."""
        self._take_settings(self._read_settings(state))

    def _settings(self) -> dict[str, Rule | bool | None]:
        return {"rule": self._rule, "loose_rule": self._loose_rule if self._rule.fixed else None}

    def _read_settings(self, state: torch.Tensor, **absent: bool | None) -> dict[str, Any]:
        read = _unpacked(state, loose_rule=None, **absent)
        if not read["rule"].fixed:
            self._check_fits(read["rule"])
        if read["loose_rule"] is not None:
            self._check_fits(read["loose_rule"])
        return read

    def _check_frozen_as(self, read: dict[str, Any]) -> None:
        frozen = self._rule.fixed
        if frozen != read["rule"].fixed:
            raise ValueError(f"rule: this layer is {'' if frozen else 'not '}frozen and cannot become {read['rule']}")

    def _take_settings(self, read: dict[str, Any]) -> None:
        self._check_frozen_as(read)
        if read["rule"] != self._rule:  # an equal one of layers that share theirs would be another to torch.compile
            self._rule = read["rule"]
        self._loose_rule = read["loose_rule"] if self._has_scores() else None
        self.forget()

    def _has_scores(self) -> bool:
        return self.scores is not None

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        metadata: dict[str, Any],
        strict: bool,
        missing: list[str],
        unexpected: list[str],
        errors: list[str],
    ) -> None:
        state_dict, key = dict(state_dict), prefix + _KEY
        own = state_dict.pop(key, None)

        def saved(name: str) -> torch.Tensor | None:
            return state_dict.get(prefix + (self._scores_name if name == "scores" else name))

        fits = self._fits(saved)  # another shape is for torch to refuse, and changes nothing
        try:
            seed = self._take_saved_form(state_dict, prefix, fits)
        except (TypeError, ValueError) as error:
            errors.append(f"{prefix}weight: {error}")
            return
        try:
            read = None if own is None else self._read_settings(own)
            if fits:
                self._become_frozen_as(saved, read)
        except ValueError as error:
            errors.append(f"{key}: {error}")
            return
        for name, p in self.named_parameters(recurse=False):
            # assign=True takes tensors as they are, and a file in half precision has such scores.
            t = saved(name)
            if any(p is s for s in self._float32_parameters()) and isinstance(t, torch.Tensor):
                state_dict[prefix + name] = t if t.dtype == torch.float32 else t.detach().to(torch.float32)
        before, own_seed = len(errors), self._buffers.get("weight_seed")
        if self._weight_is_packed():
            self._keep_seed(None)  # the signs are loaded, whence they come
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)
        if self._weight_is_packed():
            self._keep_seed(own_seed if len(errors) > before else seed)
        if key in missing:
            missing.remove(key)
        if read is None or len(errors) > before:
            return
        if fits:
            self._take_settings(read)
        else:
            errors.append(f"{key}: expected the masks of a layer of this layer's shape")

    def _become_frozen_as(self, saved: Callable[[str], torch.Tensor | None], read: dict[str, Any] | None) -> None:
        """Freezes or thaws as the layer that was saved. Raises ValueError where its rule cannot become this one's."""
        was_frozen = saved("mask_bits") is not None
        if read is not None and read["rule"].fixed != was_frozen:
            raise ValueError(f"rule: expected mask_bits beside Frozen() and nowhere else, got {read['rule']}")
        if was_frozen != self._rule.fixed:
            if was_frozen:
                self._load_frozen(saved)
            elif self._thaws_to(saved, read):
                self._loose_rule = self._loose_rule if read is None else read["rule"]
                self.thaw()
        if read is not None:
            self._check_frozen_as(read)

    def _fits(self, saved: Callable[[str], torch.Tensor | None]) -> bool:
        """Whether what was saved, a function of its names, has this layer's shapes, as far as it is there."""
        bits = saved("mask_bits")
        shape = self._weight_shape()
        packed = checks.packed_shape(shape)
        shaped = all(t is None or t.shape == shape for t in (saved("weight"), saved("scores")))
        return shaped and all(t is None or t.shape == packed for t in (bits, saved("weight_signs")))

    def _thaws_to(self, saved: Callable[[str], torch.Tensor | None], read: dict[str, Any] | None) -> bool:
        same_scores = (saved("scores") is None) == (self.scores is None)
        return (
            same_scores
            and any(saved(n) is not None for n in ("weight", "weight_signs"))
            and (read is not None or self._loose_rule is not None)
        )

    def _load_frozen(self, saved: Callable[[str], torch.Tensor | None]) -> None:
        """Makes room for what was saved frozen."""
        bits = saved("mask_bits")
        assert bits is not None  # as a frozen layer saves them
        self.mask_bits = torch.empty_like(bits, device=self._bare_weight().device)
        self._be_frozen()
        if self.scores is None:
            return
        if saved("scores") is None:
            self.scores = self._loose_rule = None
        else:
            self.scores.requires_grad_(False)


def _packed(**settings: Rule | bool | None) -> torch.Tensor:
    """uint8, on the CPU whatever torch's default device; what is None or False is left out."""
    plain = {name: value if isinstance(value, bool) else as_dict(value) for name, value in settings.items() if value}
    content = json.dumps(plain).encode()
    return torch.tensor(list(content.ljust(-(-len(content) // _SIZE) * _SIZE)), dtype=torch.uint8, device="cpu")


def _unpacked(state: torch.Tensor, **absent: bool | None) -> dict[str, Any]:
    """The settings that ``_packed`` was given. absent: the settings that there may be beside ``rule``, as they are
    where left out. Raises ValueError for what no layer has written."""
    if not isinstance(state, torch.Tensor) or state.dtype != torch.uint8 or state.dim() != 1:
        raise ValueError(f"expected a tensor of bytes, as a masked layer's state_dict has it, got {_shown(state)}")
    content = bytes(state.tolist())
    try:
        plain = json.loads(content)
    except ValueError as error:
        raise ValueError(f"expected JSON, got {_shown(content)}: {error}") from error
    if not isinstance(plain, dict) or "rule" not in plain or plain.keys() - absent.keys() - {"rule"}:
        raise ValueError(f"expected settings among {', '.join(['rule', *absent])}, rule at least, got {_shown(plain)}")
    for name, value in plain.items():
        if isinstance(value, bool) != isinstance(absent.get(name), bool):
            raise ValueError(f"expected {name} to be {'a rule' if isinstance(value, bool) else 'true or false'}")
    return absent | {name: value if isinstance(value, bool) else _from_dict(value) for name, value in plain.items()}


def _shown(value: object) -> str:
    text = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value).strip()
    return text if len(text) <= 80 else f"{text[:77]}..."


def as_dict(rule: Rule) -> dict[str, Any]:
    """The rule's fields, and its class under "kind"; without what is by name alone and None or False, as it is where
    nothing is said."""
    values = asdict(cast(Any, rule))
    unsaid = {f.name for f in fields(cast(Any, rule)) if f.kw_only and f.default is values[f.name] in (None, False)}
    return {"kind": type(rule).__name__} | {name: v for name, v in values.items() if name not in unsaid}


def _from_dict(plain: dict[str, Any]) -> Rule:
    """The rule that ``as_dict`` was given. Raises ValueError for what is none."""
    kinds: dict[str, Callable[..., Rule]] = {kind.__name__: kind for kind in RULES}
    name = plain.get("kind") if isinstance(plain, dict) else None
    kind = (kinds.get(name) or defined(name)) if isinstance(name, str) else None
    if kind is None:
        raise ValueError(
            f"rule: expected one of {', '.join(kinds)}, or a rule of your own whose class is imported, got "
            f"{_shown(plain)}"
        )
    # JSON has lists alone; a rule's values are tuples, so that rules can be compared and hashed.
    values = {field: tuple(value) if isinstance(value, list) else value for field, value in plain.items()}
    del values["kind"]
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"rule: {name} cannot be made of {_shown(plain)}: {error}") from error
