"""`cohort compare`: methods on equal terms."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from cohort.types import UserError


def compare(
    config: Annotated[Path, typer.Argument(help="YAML configuration, such as examples/compare_chains.yaml.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Over the file's; sft.max_steps=400 reaches in.")
    ] = None,
    methods: Annotated[
        str, typer.Option(help="Rows of the table, or of your own as path/to/file.py:row.")
    ] = "rft,online_rft,grpo,grpo_process",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each method, from the configuration's seed on.")] = 5,
    jobs: Annotated[int, typer.Option(min=1, help="Runs side by side; they share the processor's threads.")] = 1,
) -> None:
    """Train methods from the same start with the same number of sampled completions, and compare them.

    Run it again after an interruption: finished runs are reused, one that was cut off goes on from its checkpoint.
    """
    from cohort.cli.runs import config_of
    from cohort.compare.config import read_plan

    names = [name.strip() for name in methods.split(",") if name.strip()]
    if not names:
        raise UserError(f"--methods {methods!r}: give at least one method, such as grpo")
    plan = read_plan(config, overrides or [], names, seeds, config_of)
    typer.echo(
        f"{len(names)} methods x {seeds} seeds, {plan.budget} completions each, from the same start for a seed. In "
        f"{plan.output_dir}; run the same command again to go on after an interruption."
    )
    logging.getLogger("cohort").setLevel(logging.WARNING)

    from cohort.compare.runs import run_comparison

    written = run_comparison(plan, jobs, typer.echo)
    typer.echo((plan.output_dir / "comparison.md").read_text(encoding="utf-8"))
    for path in written:
        typer.echo(str(path))
