"""README.md and docs/ are true: every block of Python and of shell runs, and shows what it says; links lead somewhere.

Blocks of one page run in order and share a namespace and a folder. A block ```text right after one is what it prints
(`...` stands for anything); warnings are part of it, and a warning that is not shown is a failure. A comment
`<!-- not run: why -->` on the line before a block leaves it out. A block that shows a file (`--8<-- "examples/x.py"`)
is run by the tests of examples.
"""

import contextlib
import doctest
import io
import itertools
import os
import re
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import edgepop_kernels as ek

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
RUN = {"python", "pycon", "sh"}
SHOWN = {"text", "toml", "json", "diff", "yaml"}
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[^\n]*)\n(?P<body>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r"<!-- not run: \S[^\n]* -->\n *$")
INCLUDED = re.compile(r'^--8<-- "(?P<path>[^"]+)"\n$')
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


class Block(NamedTuple):
    language: str
    source: str
    line: int  # of its first line, from 1
    output: str | None

    def where(self, page):
        return f"{page.relative_to(ROOT)}, line {self.line}"


def name_of(page):
    return str(page.relative_to(ROOT))


def blocks(page):
    return parsed(page.read_text())


def parsed(text):
    """The blocks of a page's text that run."""
    found, kept = [*FENCE.finditer(text)], []
    for fence, after in itertools.zip_longest(found, found[1:]):
        if fence["language"] not in RUN or NOT_RUN.search(text[: fence.start()]):
            continue
        body = textwrap.dedent(fence["body"])
        if INCLUDED.match(body):
            continue
        shown = after is not None and after["language"] == "text" and not text[fence.end() : after.start()].strip()
        output = textwrap.dedent(after["body"]) if shown else None
        kept.append(Block(fence["language"], body, text.count("\n", 0, fence.start("body")) + 1, output))
    return kept


def run_python(block, page, names):
    # Behind as many empty lines as stand before it, so that a traceback names the page's own.
    code = compile("\n" * (block.line - 1) + block.source, str(page), "exec")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, names)
    return printed.getvalue()


def run_pycon(block, page, names):
    test = doctest.DocTestParser().get_doctest(block.source, names, name_of(page), str(page), block.line - 1)
    assert test.examples, f"{block.where(page)}: no example in it"
    failures = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    assert runner.run(test, out=failures.write, clear_globs=False).failed == 0, failures.getvalue()
    names.update(test.globs)
    return ""


def run_sh(block, page, names):
    users = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    for name, first in (("PATH", Path(sys.executable).parent), ("PYTHONPATH", Path(ek.__file__).parent.parent)):
        users[name] = os.pathsep.join([str(first), *filter(None, [users.get(name)])])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.source],
        env=users,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,  # for what hangs: on two free cores every block takes seconds
        check=False,
    )
    assert done.returncode == 0, f"{block.where(page)}:\n{done.stdout}"
    return done.stdout


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """A folder with the examples in it, and torch and the package as a user's first line finds them."""
    monkeypatch.chdir(tmp_path)
    if (ROOT / "examples").exists():
        (tmp_path / "examples").symlink_to(ROOT / "examples")
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    with ek.use_backend("auto"):
        yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)


def check(page, text=None):
    """Runs the blocks of a page, or of ``text`` in its place.

    Raises AssertionError where one prints something else than is shown.
    """
    names = {"__name__": "__main__"}
    for block in blocks(page) if text is None else parsed(text):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            printed = {"python": run_python, "pycon": run_pycon, "sh": run_sh}[block.language](block, page, names)
        said = [f"{w.category.__name__}: {w.message}" for w in told if issubclass(w.category, UserWarning)]
        if block.output is None:
            assert not said, f"{block.where(page)}: {said}"
            continue
        got = "\n".join([*said, printed])
        assert doctest.OutputChecker().check_output(block.output.strip(), got.strip(), OPTIONS), (
            f"{block.where(page)} shows\n{block.output}and prints\n{got}"
        )


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=name_of)
def test_every_block_runs_and_prints_what_is_shown(page, fresh):
    check(page)


TRUE = """\
```python
x = 2
print("two", x)
```
```text
two ...
```
=== "In a tab"

    ```pycon
    >>> x + 1
    3
    ```

<!-- not run: it would fail -->
```python
raise SystemExit
```
```sh
echo $((1 + 1)) > two
cat two
```
```text
2
```
```python
print(open("two").read().strip())  # it may print what is not shown
```
"""
WARNS = "```python\nimport warnings\nwarnings.warn('so many')\n```\n"


def test_a_true_page_passes(fresh):
    page = ROOT / "page.md"  # as its blocks are named; never written
    assert [block.language for block in parsed(TRUE)] == ["python", "pycon", "sh", "python"]
    assert [block.line for block in parsed(TRUE)][:2] == [2, 11]
    check(page, TRUE)
    check(page, WARNS + "```text\nUserWarning: so many\n```\n")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (TRUE.replace("two ...", "three ..."), r"page.md, line 2 shows\s+three"),
        (TRUE.replace("    3\n", "    4\n"), r"page.md\", line 11.*Expected:\s+4\s"),
        (TRUE.replace("cat two", "cat three"), "page.md, line 20"),
        (TRUE.replace("```text\n2\n", "```text\n3\n"), r"page.md, line 20 shows\s+3\s"),
        (WARNS, "page.md, line 2: .*so many"),
        ("```pycon\nno example\n```\n", "page.md, line 2: no example"),
    ],
)
def test_a_false_page_fails_and_says_where(text, words, fresh):
    with pytest.raises(AssertionError, match=f"(?s){words}"):
        check(ROOT / "page.md", text)


def test_a_failing_block_is_traced_to_its_line(fresh):
    with pytest.raises(ZeroDivisionError) as failed:
        check(ROOT / "page.md", "# A page\n\n```python\nx = 1\nx / 0\n```\n")
    assert failed.traceback[-1].lineno + 1 == 5 and str(failed.traceback[-1].path).endswith("page.md")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_names_a_language_that_says_whether_it_runs(page):
    assert {fence["language"] for fence in FENCE.finditer(page.read_text())} <= RUN | SHOWN


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_are_shown_exist(page):
    shown = [INCLUDED.match(textwrap.dedent(fence["body"])) for fence in FENCE.finditer(page.read_text())]
    assert all((ROOT / found["path"]).is_file() for found in shown if found)


def test_the_links_of_the_readme_lead_to_files_and_headings_that_exist():
    """Those of docs/ are held by ``make docs``."""
    text = FENCE.sub("", (ROOT / "README.md").read_text())
    headings = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.*)$", text, re.M)}
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"\b(?:src|srcset|href)=\"([^\"]+)\"", text)
    for target in targets:
        if target.startswith("#"):
            assert target[1:] in headings, target
        elif not re.match(r"https?://", target):
            assert (ROOT / target.partition("#")[0]).exists(), target
