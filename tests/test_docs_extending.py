"""docs/extending/ names files, and names in them, that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs" / "extending").glob("*.md"))
PATH = re.compile(r"`((?:\.?[\w.]+/)+[\w.]*|[\w]+\.(?:py|toml|txt|h|inl|cpp|cuh|cu|md))`")
FOLDERS = ("", "edgepop_kernels", "csrc/cpu", "docs")  # what a page has named once may be called by its file alone


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_that_is_named_exists(page):
    named = PATH.findall(page.read_text())
    assert len(named) > 5
    missing = [path for path in named if not any((ROOT / folder / path).exists() for folder in FOLDERS)]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_page_has_its_files_and_its_steps(page):
    text = page.read_text()
    assert re.findall(r"^## (.*)$", text, re.M)[:2] == ["Files", "Steps"]
    assert len(re.findall(r"^\| `", text, re.M)) >= 4


NAMES = re.compile(r"`(_?[A-Za-z][\w]*(?:\.\w+)*)(?:\([^`]*\)|=\w*)?`")
SOURCES = "\n".join(
    path.read_text()
    for folder in ("edgepop_kernels", "csrc", "tests", "examples", "benchmarks")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in {".py", ".h", ".inl", ".cpp", ".cu", ".cuh"} and path != Path(__file__)
) + "\n".join((ROOT / name).read_text() for name in ("setup.py", "Makefile"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_name_in_code_is_somewhere_in_the_sources(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    named = {part for name in NAMES.findall(text) for part in name.split(".")}
    placeholders = {"masked_x", "x_product"}
    missing = {n for n in named - placeholders if not re.search(rf"\b{re.escape(n)}\b", SOURCES)}
    assert not missing
