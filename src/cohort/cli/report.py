"""`cohort report`: the page of one run, or of several side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cohort.cli.console import echo


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Runs' output_dirs, or that of a comparison.")],
    output: Annotated[Path | None, typer.Option(help="The file. Default: report.html in the first folder.")] = None,
) -> None:
    """Write one HTML page of a run: curves, completions, groups, prompts; of several, what they differ in.

    The file holds everything it shows and asks nothing of a network.
    """
    from cohort.report.page.write import write_report

    echo(str(write_report(runs, output)))
