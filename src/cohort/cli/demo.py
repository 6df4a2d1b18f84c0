"""`cohort demo`: a real model learns to add by GRPO; or a small one by SFT and GRPO."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cohort.cli.console import log_console
from cohort.world import require_one_process

OUTPUT, SMALL_OUTPUT = Path("output/demo"), Path("output/grpo_metrics")


def demo(
    small: Annotated[bool, typer.Option("--small", help="Train the built-in model of half a million weights.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the problems, the samples and the small model.")] = 0,
    output: Annotated[
        Path | None, typer.Option(help=f"Folder for the results. Default: {OUTPUT}, with --small {SMALL_OUTPUT}.")
    ] = None,
) -> None:
    """Watch a model learn arithmetic from its own answers: SmolLM2-135M-Instruct, or a small one after SFT."""
    require_one_process()
    console = log_console()

    from cohort.demo.packaged_model import INSTALL, packaged_file

    file = None if small else packaged_file()
    if file is not None:
        from cohort.demo.real import run_demo as run_real_demo

        run_real_demo(seed=seed, output=output or OUTPUT, console=console, file=file)
        return
    if not small:
        console.print(
            f"The real model is not installed: the small built-in one is trained. For the real one:\n  {INSTALL}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )

    from cohort.demo.small import run_demo

    run_demo(seed=seed, output=output or SMALL_OUTPUT, console=console)
