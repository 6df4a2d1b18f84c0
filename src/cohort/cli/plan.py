"""`cohort plan`: memory and time of a run, estimated without loading its model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cohort.cli.console import echo, log_console
from cohort.cli.options import Configuration, Overrides, check_folder_of
from cohort.progress import Task
from cohort.types import UserError


def plan(
    config: Configuration,
    overrides: Overrides = None,
    memory: Annotated[str, typer.Option(help="Memory of a GPU, such as 80GiB. Default: this machine's.")] = "",
    flops: Annotated[
        str, typer.Option(help="FLOP/s of a large matrix product, such as 400e12. Default: measured here.")
    ] = "",
    bandwidth: Annotated[str, typer.Option(help="Memory bytes a second, such as 2e12. Default: measured here.")] = "",
    prompt_length: Annotated[
        int, typer.Option(min=0, help="Tokens of a prompt. 0: max_prompt_length, or 256 where that is not set.")
    ] = 0,
    completion_length: Annotated[
        int, typer.Option(min=0, help="Tokens of a completion. 0: max_completion_length.")
    ] = 0,
    output: Annotated[Path | None, typer.Option("--json", help="Write the plan as JSON.")] = None,
) -> None:
    """Estimate memory and time of a run without loading its model (docs/plan.md)."""
    from cohort.cli.runs import read_run
    from cohort.config import RewardModelConfig
    from cohort.plan.machine import find_machine, parse_rate, parse_size

    run, settings = read_run(config, overrides or [])
    if isinstance(settings, RewardModelConfig):
        raise UserError(f"{config}: method {run.method}: plans are for methods that train a policy")
    check_folder_of(output, "--json")
    log_console(stderr=True)
    asked = (
        parse_size(memory, "--memory") if memory else None,
        parse_rate(flops, "--flops") if flops else None,
        parse_rate(bandwidth, "--bandwidth") if bandwidth else None,
    )
    with Task("measuring this machine"):
        machine = find_machine(settings.use_cpu, settings.bf16, *asked)

    from cohort.compat.libraries import quiet
    from cohort.plan.costs import Lengths
    from cohort.plan.make import make_plan
    from cohort.plan.table import plan_table
    from cohort.report.console import SafeConsole

    quiet()
    lengths = Lengths(
        prompt_length or settings.max_prompt_length or 256, completion_length or settings.max_completion_length
    )
    with Task("estimating"):
        estimate = make_plan(run, settings, machine, lengths)
    SafeConsole(highlight=False).print(plan_table(estimate), soft_wrap=True)
    if output is not None:
        output.write_text(json.dumps(estimate.as_dict(), indent=1), encoding="utf-8")
        echo(f"written to {output}")
