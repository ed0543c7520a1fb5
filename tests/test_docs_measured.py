"""What docs/ and README.md show as measured is what the committed results say, and the figures are drawn from them."""

import importlib.util
import io
import json
import re
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SPEC = importlib.util.spec_from_file_location("figures", ROOT / "benchmarks" / "figures.py")
figures = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(figures)
MATPLOTLIB = re.search(r"^matplotlib==([\d.]+)", (ROOT / "constraints.txt").read_text(), re.M)[1]
PAGE_COLOURS = ("#ffffff", "#0d1117")


@pytest.mark.parametrize("page", figures.PAGES, ids=lambda page: page.name)
def test_a_page_shows_what_was_measured(page):
    text = page.read_text()
    assert figures.MARKED.search(text)
    assert figures.filled(text, figures.texts()) == text, "make figures"


def test_every_result_has_its_tables_in_docs():
    shown = {found["name"] for page in figures.PAGES for found in figures.MARKED.finditer(page.read_text())}
    assert shown == figures.texts().keys()


def test_a_marker_that_nothing_is_made_for_is_an_error():
    with pytest.raises(KeyError, match="another machine"):
        figures.filled("<!-- measured: another machine -->\n<!-- end -->", figures.texts())


def result(group, name):
    rows = json.loads((ROOT / "benchmarks/results/xeon-amx.json").read_text())["rows"]
    (row,) = [r for r in rows if r["group"] == group and r["row"] == name]
    return row


def test_the_readme_begins_with_numbers_of_the_results():
    ratio = result("train", "Conv4 batch 16 bf16 fwd+bwd")["ratio"]
    begin = " ".join((ROOT / "README.md").read_text().split("## Install")[0].split())
    assert f"takes 1/{ratio['GetSubnet']:.0f} of the time of the published `GetSubnet`, in bfloat16" in begin
    assert f"and {1 / ratio['dense']:.2f} times that of the same network without masks" in begin


def test_the_numbers_of_a_row_are_those_of_the_results():
    """One row by hand, so that the script is not held by itself alone."""
    row = result("conv", "16x128x16x16 128k3 bf16 fwd+bwd")
    (line,) = re.findall(r"^\| conv 16x128x16x16 128k3 bf16 fwd\+bwd \|.*$", (ROOT / "README.md").read_text(), re.M)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    ratios = [f"{row['ratio'][c]:.2f}" for c in ("GetSubnet", "GetSubnetFaster", "dense", "staged")]
    assert float(cells[1]) == pytest.approx(row["median_s"]["fused"] * 1e3, rel=5e-3)
    assert cells[2:6] == ratios


@pytest.mark.skipif(version("matplotlib") != MATPLOTLIB, reason=f"they are drawn by matplotlib {MATPLOTLIB}")
def test_the_figures_are_those_of_the_results():
    with figures.matplotlib.rc_context(figures.STYLE):
        drawn = figures.figures()
        assert {path.name for path in figures.FIGURES.iterdir()} == drawn.keys()
        for name, figure in drawn.items():
            file = io.StringIO()
            figures.svg(figure, file)
            assert (figures.FIGURES / name).read_text() == file.getvalue(), f"{name}: make figures"


def test_every_figure_is_shown():
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    shown = {Path(target).name for page in pages for target in re.findall(r"\]\(([^)]+\.svg)\)", page.read_text())}
    assert shown == {path.name for path in (ROOT / "docs").rglob("*.svg")}


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("page", PAGE_COLOURS)
def test_figures_can_be_read_on_white_and_on_dark_pages(page):
    """Contrast as WCAG defines it: 4 for text, 3 for what is drawn; and nothing is painted behind."""

    def contrast(colour):
        low, high = sorted([luminance(colour), luminance(page)])
        return (high + 0.05) / (low + 0.05)

    assert contrast(figures.TEXT) >= 4
    assert min(map(contrast, figures.COLOURS.values())) >= 3
    for path in (ROOT / "docs").rglob("*.svg"):
        used = set(re.findall(r"#[0-9a-f]{6}\b", path.read_text()))
        assert used <= {figures.TEXT, *figures.COLOURS.values()}, path.name
