"""The command line: ``python -m edgepop_kernels``, also installed as ``edgepop``.

``doctor`` runs with torch alone, so that it can report a broken environment. The other commands belong to the
recipes, which need the extra ``train``.
"""

import os
import sys
from pathlib import Path

from . import doctor, tune


def main() -> None:
    if sys.argv[1:] == ["doctor"]:
        try:
            print(doctor.report(), flush=True)
        except OSError as error:
            print(f"edgepop: cannot write to standard output: {error.strerror}", file=sys.stderr)
            os._exit(2)  # the interpreter would write what is left in the buffer, and fail again
        return
    try:
        from .recipes.cli import app
        from .recipes.errors import UserError
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == __package__:
            raise
        print(
            f"edgepop: every command but `doctor` needs {error.name}, which is not installed: "
            f"pip install {error.name}; or pip install '.[train]' in the source checkout, for all that they need",
            file=sys.stderr,
        )
        sys.exit(2)

    @app.command("doctor")
    def _doctor() -> None:
        """Report versions, CPU, GPUs, threads, and which backends run here."""
        print(doctor.report())

    @app.command("tune")
    def _tune(output: Path | None = None, only: str = "", minutes: float = 30.0) -> None:
        """Find this GPU's tiles and write its table: --only what a layer's text holds, --minutes at most."""
        reason = tune.unavailable()
        if reason is not None:
            raise UserError(f"tune: {reason}")
        try:
            tune.tune(output, only, minutes)
        except OSError as error:
            raise UserError(f"tune: {error}") from error

    app(prog_name="edgepop")


if __name__ == "__main__":
    main()
