"""A setting of a recipe: a field of its dataclass, with its help, what is allowed, and where it has an effect."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import ConfigError

if TYPE_CHECKING:
    from .config import Recipe

# Of a rate: steps are computed in float32, which ends at 3.4e38, and Adam divides a rate by up to 0.001 before.
MOST = 1e30


@dataclass(frozen=True)
class When:
    """The condition under which a setting has an effect: with ``words``, if ``holds`` of the recipe."""

    words: str
    holds: Callable[["Recipe"], bool]


ALWAYS = When("every recipe", lambda recipe: True)
MASKED = When("methods that mask layers", lambda recipe: recipe.masks)
ONE_TRAINING = When("recipes of one training", lambda recipe: not recipe.compares)


def only(name: str, *values: Any) -> When:
    """The condition that the setting ``name`` has one of these values."""
    words = " or ".join(filter(None, (", ".join(map(str, values[:-1])), str(values[-1]))))
    return When(f"{name} {words}", lambda recipe: getattr(recipe, name) in values)


def but(name: str, value: Any) -> When:
    """The condition that the setting ``name`` has any other value."""
    return When(f"a {name} other than {value}", lambda recipe: getattr(recipe, name) != value)


def setting(
    default: Any,
    text: str,
    allowed: str,
    check: Callable[[Any], bool],
    *,
    kind: type | None = None,
    words: tuple[str, ...] = (),
    panel: str | None = None,
    when: When = ALWAYS,
) -> Any:
    """A field: its default, its help text, and what values are allowed, in words and as a test.

    kind: type of its values, where the default is a word for a value that is known later. words: allowed beside values
    of that type. panel: the group of the command line's help that it stands in; None: that of the field which it
    redefines, else the method's. when: where it has an effect; elsewhere it may not be asked for.
    """
    kind = kind or type(default)
    metadata = {"help": text, "allowed": allowed, "check": check, "kind": kind, "words": words, "panel": panel}
    metadata |= {"when": when}
    return dataclasses.field(default=default, metadata=metadata)


def choice(default: str, names: tuple[str, ...], text: str, **where: Any) -> Any:
    return setting(default, text, f"one of {', '.join(names)}", lambda value: value in names, **where)


def whole(default: int, least: int, text: str, **where: Any) -> Any:
    return setting(default, text, f"a whole number, at least {least}", lambda value: value >= least, **where)


def positive(default: float, text: str, **where: Any) -> Any:
    return setting(default, text, f"a number above 0, at most {MOST:g}", lambda value: 0 < value <= MOST, **where)


def decay(default: float, **where: Any) -> Any:
    text = "weight decay on what trains"
    return setting(default, text, f"a number in [0, {MOST:g}]", lambda value: 0 <= value <= MOST, **where)


def fraction(default: float, text: str, **where: Any) -> Any:
    return setting(default, text, "a number in [0, 1)", lambda value: 0 <= value < 1, **where)


def flag(default: bool, text: str, **where: Any) -> Any:
    return setting(default, text, "true or false", lambda value: True, **where)


def held_out(what: str) -> Any:
    return setting(
        "auto",
        f"training images held out to pick the best {what} by; 0: the test set picks it; auto: 5000 of 50000 or more",
        "auto or a whole number, at least 0",
        lambda value: value >= 0,
        kind=int,
        panel="Data",
    )


def checked(field: dataclasses.Field, value: Any) -> Any:
    """The value with the field's type. Its text form (command line) and its JSON form (checkpoint) are welcome."""
    kind = field.metadata["kind"]
    if (kind is not type(field.default) and value == field.default) or value in field.metadata["words"]:
        return value
    try:
        if kind is tuple:
            value = tuple(int(part) for part in value.split(",")) if isinstance(value, str) else tuple(value)
        elif (kind in (int, float) and isinstance(value, str)) or (kind is float and type(value) is int):
            value = kind(value)
        right = type(value) is kind and (kind is not tuple or all(type(part) is int for part in value))
        right = right and field.metadata["check"](value)
    except (ValueError, TypeError):
        right = False
    if not right:
        raise ConfigError(f"expected {field.metadata['allowed']}, got {value!r}", field.name)
    return value
