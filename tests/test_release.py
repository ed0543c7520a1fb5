"""What a release says of itself: the version in every file that names it, the Pythons that are promised, the papers."""

import re

from lowest import lowest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from source_tree import ROOT

import edgepop_kernels as ek

PYPROJECT = (ROOT / "pyproject.toml").read_text()
CLASSIFIERS = re.findall(r'^  "([A-Z][\w /-]+(?: :: [\w. /-]+)+)",$', PYPROJECT, re.MULTILINE)


def test_the_newest_section_of_the_changelog_is_this_version():
    sections = re.findall(r"^## \[(.+?)\] - (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    version, date = sections[0]
    assert version == ek.__version__
    assert re.fullmatch(r"unreleased|\d{4}-\d\d-\d\d", date)


def test_the_changelog_has_the_groups_of_keep_a_changelog_and_no_other():
    groups = re.findall(r"^### (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert groups
    assert set(groups) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_what_is_cited_is_this_version_under_the_license_of_the_package():
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.findall(r"^version: (.+)$", citation, re.MULTILINE) == [ek.__version__]
    (license,) = re.findall(r"^license: (.+)$", citation, re.MULTILINE)
    assert f'license = "{license}"' in PYPROJECT
    (authors,) = re.findall(r"^authors:\n  - name: (.+)$", citation, re.MULTILINE)
    assert f'authors = [{{ name = "{authors}" }}]' in PYPROJECT


def test_every_method_that_names_a_paper_finds_it_cited():
    """By its number in arXiv: those that the package's own sources name, and not one that they do not."""
    number = re.compile(r"\b(\d{4}\.\d{5})\b")
    named = {found for file in (ROOT / "edgepop_kernels").rglob("*.py") for found in number.findall(file.read_text())}
    assert set(number.findall((ROOT / "CITATION.cff").read_text())) == named


def promised():
    return [name.removeprefix("Programming Language :: Python :: ") for name in CLASSIFIERS if "Python :: 3." in name]


def test_the_promised_pythons_begin_where_the_package_installs_and_leave_none_out():
    (required,) = re.findall(r'^requires-python = "(.+)"$', PYPROJECT, re.MULTILINE)
    minors = [int(version.partition(".")[2]) for version in promised()]
    assert minors == list(range(minors[0], minors[-1] + 1))
    allowed = SpecifierSet(required)
    assert [minor for minor in range(minors[-1] + 1) if f"3.{minor}" in allowed] == minors


def test_the_lowest_versions_that_are_tested_are_those_that_are_required_one_of_each():
    """tests/lowest.py, for `make oldest`."""
    tested = [Requirement(line) for line in lowest()]
    assert {"torch", "triton", "setuptools", "pybind11", "ninja", "typer", "numpy"} <= {r.name for r in tested}
    assert len({r.name for r in tested}) == len(tested)
    for r in tested:
        bound = str(r.specifier).removeprefix("==").removesuffix(".*")
        assert f'"{r.name}>={bound}' in PYPROJECT
