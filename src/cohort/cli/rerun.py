"""`cohort rerun`: repeats a run from its own folder and compares."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cohort.cli.console import echo, log_console


def rerun(
    run: Annotated[Path, typer.Argument(help="The output_dir of a run that `cohort train` made.")],
    output: Annotated[Path | None, typer.Option(help="Folder of the new run. Default: RUN-rerun.")] = None,
) -> None:
    """Repeat a run from its own folder, and compare metrics and weights."""
    console = log_console(bars=True)

    from cohort.report.live import LiveDisplay
    from cohort.train.rerun import rerun as again

    target = output or run.resolve().with_name(f"{run.resolve().name}-rerun")
    with LiveDisplay(f"rerun of {run}", console) as display:
        different = again(run, target, [display])
    if not different:
        echo(f"{target}: the same metrics and weights as {run}, to the bit")
        return
    for line in different:
        echo(line)
    echo(f"{target} differs from {run}. environment.json in both says what they ran on")
    raise typer.Exit(1)
