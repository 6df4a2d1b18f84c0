"""`cohort demo`: SFT and GRPO of a small model on arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cohort.cli.console import log_console


def demo(
    seed: Annotated[int, typer.Option(help="Seed of the task, the teacher and the model.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("output/grpo_metrics"),
) -> None:
    """Watch a small model learn arithmetic: SFT on a flawed teacher, then GRPO on its own answers."""
    console = log_console()

    from cohort.demo import run_demo

    run_demo(seed=seed, output=output, console=console)
