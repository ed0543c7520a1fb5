"""docs/api/ has every public name, once; its pages are made of the docstrings alone."""

import importlib
import importlib.util
import re
import sys
import types
from collections import Counter
from pathlib import Path

import pytest

import edgepop_kernels as ek
from edgepop_kernels import compat, methods

DOCS = Path(__file__).resolve().parent.parent / "docs"
SHOWN = re.findall(r"^::: (\S+)$", "\n".join(page.read_text() for page in DOCS.rglob("*.md")), re.M)


def test_every_public_name_has_its_place_and_one_alone():
    public = [f"edgepop_kernels.{name}" for name in ek.__all__]
    public += [f"edgepop_kernels.methods.{name}" for name in methods.__all__]
    for name in compat.__all__:
        classes = importlib.import_module(f"edgepop_kernels.compat.{name}").__all__
        public += [f"edgepop_kernels.compat.{name}.{of}" for of in classes]
    public += ["edgepop_kernels.nn.MaskedLayer", "edgepop_kernels.interop.hidden_networks.state_dict"]
    public += ["edgepop_kernels.interop.read_state_dict"]
    assert Counter(SHOWN) == Counter(public)


@pytest.mark.parametrize("name", SHOWN)
def test_what_is_shown_has_a_docstring(name):
    module, _, attribute = name.rpartition(".")
    assert getattr(importlib.import_module(module), attribute).__doc__


@pytest.fixture
def markdown(monkeypatch):
    """The function of docs/hooks/docstrings.py; the tests do without griffe, whose base class alone it needs."""
    monkeypatch.setitem(sys.modules, "griffe", types.SimpleNamespace(Extension=object, Object=object))
    spec = importlib.util.spec_from_file_location("docstrings", DOCS / "hooks" / "docstrings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.markdown


def test_columns_and_examples_of_a_docstring_keep_their_layout_and_prose_stays_prose(markdown):
    docstring = "Masks ``a < b`` where c < d.\n\nkeep   fraction kept\nof     what is ranked\n\n>>> 1 + 1\n2"
    assert markdown(docstring) == (
        "Masks ``a < b`` where c &lt; d.\n\n```text\nkeep   fraction kept\nof     what is ranked\n```\n\n"
        "```pycon\n>>> 1 + 1\n2\n```"
    )
