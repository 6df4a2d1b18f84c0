"""`cohort compare`: methods trained on equal terms, and their results side by side."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from cohort.cli.console import echo, log_console
from cohort.cli.options import parse_names
from cohort.world import require_one_process


def compare(
    config: Annotated[Path, typer.Argument(help="YAML configuration, such as examples/compare_chains.yaml.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Keys that replace the file's; sft.max_steps=400 sets a nested one."),
    ] = None,
    methods: Annotated[
        str, typer.Option(help="Names of methods, with commas; path/to/file.py:row for your own.")
    ] = "rft,online_rft,grpo,grpo_process",
    seeds: Annotated[
        int, typer.Option(min=1, help="Runs of each method; their seeds count up from the configuration's.")
    ] = 5,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at the same time; they share the processor's threads.")] = 1,
) -> None:
    """Train methods from the same start with the same number of sampled completions, and compare them.

    After an interruption, run the same command again: it reuses finished runs and resumes the others.
    """
    require_one_process()
    from cohort.cli.runs import config_of
    from cohort.compare.config import read_comparison

    names = parse_names(methods, "--methods", "grpo")
    comparison = read_comparison(config, overrides or [], names, seeds, config_of)
    echo(
        f"{len(names)} methods x {seeds} seeds, {comparison.budget} completions each; the methods of a seed share a "
        f"start. Results go to {comparison.output_dir}; after an interruption, run the same command again."
    )
    log_console()
    logging.getLogger("cohort").setLevel(logging.WARNING)

    from cohort.compare.runs import run_comparison

    written = run_comparison(comparison, jobs, echo)
    echo((comparison.output_dir / "comparison.md").read_text(encoding="utf-8"))
    for path in written:
        echo(str(path))
