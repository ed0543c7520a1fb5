"""Prints what `make oldest` constrains pip to: of each requirement of pyproject.toml its lowest version."""

import re
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def lowest() -> list[str]:
    """``torch==2.11.*`` for ``torch>=2.11``; one that is required in two places is there once for each version."""
    bounds = re.findall(r'"([\w-]+)>=([\d.]+)[";]', PYPROJECT.read_text())
    return sorted({f"{name}=={version}.*" for name, version in bounds})


if __name__ == "__main__":
    print(*lowest(), sep="\n")
