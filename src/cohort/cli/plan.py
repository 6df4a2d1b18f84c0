"""`cohort plan`: what a run will need, before it costs anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cohort.types import UserError


def plan(
    config: Annotated[Path, typer.Argument(help="YAML configuration.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Over the file's.")] = None,
    memory: Annotated[str, typer.Option(help="Of a GPU to plan for, such as 80GiB. Default: this machine's.")] = "",
    flops: Annotated[str, typer.Option(help="Its rate of large products, such as 400e12. Default: measured.")] = "",
    bandwidth: Annotated[str, typer.Option(help="Its bytes a second, such as 2e12. Default: measured.")] = "",
    prompt_length: Annotated[int, typer.Option(min=0, help="Tokens. 0: max_prompt_length, else 256.")] = 0,
    completion_length: Annotated[int, typer.Option(min=0, help="Tokens. 0: max_completion_length.")] = 0,
    output: Annotated[Path | None, typer.Option("--json", help="Write the plan as JSON.")] = None,
) -> None:
    """Estimate memory and time of a run without loading its model: docs/plan.md."""
    from cohort.cli.runs import read_run
    from cohort.config import RewardModelConfig
    from cohort.plan.machine import find_machine, rate, size

    run, settings = read_run(config, overrides or [])
    if isinstance(settings, RewardModelConfig):
        raise UserError(f"{config}: method {run.method}: plans are for methods that train a policy")
    if output is not None and not output.parent.is_dir():
        raise UserError(f"--json {output}: there is no folder {output.parent}")
    machine = find_machine(
        settings.use_cpu,
        settings.bf16,
        size(memory, "--memory") if memory else None,
        rate(flops, "--flops") if flops else None,
        rate(bandwidth, "--bandwidth") if bandwidth else None,
    )

    from rich.console import Console

    from cohort.plan.figures import Lengths
    from cohort.plan.make import make_plan
    from cohort.plan.table import plan_table
    from cohort.policy.load import quiet

    quiet()
    lengths = Lengths(
        prompt_length or settings.max_prompt_length or 256, completion_length or settings.max_completion_length
    )
    found = make_plan(run, settings, machine, lengths)
    Console(highlight=False).print(plan_table(found), soft_wrap=True)
    if output is not None:
        output.write_text(json.dumps(found.as_dict(), indent=1), encoding="utf-8")
        typer.echo(f"written to {output}")
