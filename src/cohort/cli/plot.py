"""`cohort plot`: the plots of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cohort.cli.console import echo
from cohort.types import UserError


def plot(run: Annotated[Path, typer.Argument(help="A run's output_dir.")]) -> None:
    """Draw the plots of a run again, during it or after it."""
    from cohort.report.plots import plot_training

    written = plot_training(run)
    if not written:
        raise UserError(f"{run}: its metrics.jsonl has nothing to plot yet")
    for path in written:
        echo(str(path))
