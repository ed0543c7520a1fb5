"""Files of ``key: value`` lines, the part of YAML that configurations of training programs are written in.

Comments, quotes, whole and other numbers (1e-4 too, which YAML 1.1 takes for text), True, null, lists of such values in
brackets on one line. Nothing else of YAML: a file with more is refused, never half read.
"""

import re
from typing import Any

from .errors import UserError

_LINE = re.compile(r"(?P<key>[A-Za-z_][\w-]*)\s*:(?:\s+(?P<value>.*))?$")
_WHOLE = re.compile(r"[-+]?[0-9]+")
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_WORDS = {"true": True, "false": False, "yes": True, "no": False, "on": True, "off": False}
_NULL = {"", "~", "null", "none"}  # "None" is what writers of Python mean by it
# What begins other things than plain text in YAML, and would be read otherwise than it is meant.
_SPECIAL = "{}[],&*!|>%@`\"'#"


def parse(text: str, source: str) -> dict[str, Any]:
    """The values by their keys, in the order of the lines. Raises UserError, naming ``source`` and the line."""
    found: dict[str, Any] = {}
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
        where = f"{source}, line {number}"
        bare = _without_comment(line, where)
        if not bare.strip() or (bare == "---" and not found):
            continue
        match = _LINE.fullmatch(bare.rstrip())
        if match is None:
            raise UserError(f"{where}: expected `key: value` from the first column on, got {line.strip()!r}")
        if match["key"] in found:
            raise UserError(f"{where}: {match['key']} is there twice, expected one of both")
        found[match["key"]] = _value((match["value"] or "").strip(), where)
    return found


def _without_comment(line: str, where: str) -> str:
    """The line up to a # that stands outside of quotes, at the beginning or after a space."""
    quote = ""
    for place, letter in enumerate(line):
        begins = not line[:place].strip() or line[:place].rstrip()[-1] in ":[,"  # elsewhere it is an apostrophe
        if quote == '"' and letter == "\\":
            raise UserError(f"{where}: expected text in quotes without \\, got {line.strip()!r}")
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'" and begins:
            quote = letter
        elif letter == "#" and (place == 0 or line[place - 1].isspace()):
            return line[:place]
    return line


def _value(text: str, where: str) -> Any:
    if text.startswith("[") and text.endswith("]"):
        parts = [part.strip() for part in text[1:-1].split(",")] if text[1:-1].strip() else []
        if any(part.startswith("[") for part in parts):
            raise UserError(f"{where}: expected a number, a word or text in quotes, got {text!r}")
        return [_value(part, where) for part in parts]
    if len(text) > 1 and text[0] in "\"'" and text[-1] == text[0] and text[0] not in text[1:-1]:
        return text[1:-1]
    if text.lower() in _NULL:
        return None
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if _WHOLE.fullmatch(text):
        return int(text)
    if _NUMBER.fullmatch(text):
        return float(text)
    if text[0] in _SPECIAL or ": " in text or text.endswith(":") or text.startswith(("- ", "? ")):
        raise UserError(f"{where}: expected a number, a word or text in quotes, got {text!r}")
    return text
