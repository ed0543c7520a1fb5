"""The docstrings as Markdown: what is laid out by columns or indented keeps its layout, examples are code."""

import re

import griffe

_EXAMPLE = re.compile(r">>> ")
_LAID_OUT = re.compile(r" {2,}\S|\S {2,}\S")  # indented, or with a column apart
_TAG = re.compile(r"``.*?``|<", re.DOTALL)


class Markdown(griffe.Extension):
    """Turns each docstring of the package, which is written for ``help()``, into Markdown."""

    def on_instance(self, *, obj: griffe.Object, **kwargs) -> None:
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(docstring: str) -> str:
    """``docstring`` with every paragraph that is no plain text in a fence; `<` starts no tag in the others."""
    return "\n\n".join(_fenced(paragraph) for paragraph in re.split(r"\n\s*\n", docstring))


def _fenced(paragraph):
    if _EXAMPLE.match(paragraph):
        return f"```pycon\n{paragraph}\n```"
    if any(_LAID_OUT.search(line) for line in paragraph.splitlines()):
        return f"```text\n{paragraph}\n```"
    return _TAG.sub(lambda found: "&lt;" if found[0] == "<" else found[0], paragraph)
