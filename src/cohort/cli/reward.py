"""`cohort reward`: try a reward set on completions, and look for what a policy would find in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cohort.types import UserError

if TYPE_CHECKING:
    from cohort.config import RunConfig, TrainingConfig
    from cohort.rewards.compose import Rewards
    from cohort.types import Row


class Output(str, Enum):
    """How results are printed."""

    table = "table"
    json = "json"
    csv = "csv"


app = typer.Typer(
    help="Try and audit reward functions; label data for reward models and judge them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Format = Annotated[Output, typer.Option("--output-format", help="How to print the result.")]
BATCH = 16
"""Completions scored at a time, so that progress is seen."""


@app.command(name="try")
def try_(
    rewards: Annotated[str, typer.Argument(help="Names with commas between them, or a YAML configuration.")],
    data: Annotated[Path, typer.Option(help="Completions: rows with prompt, completion and reference.")],
    limit: Annotated[int | None, typer.Option(min=1, help="Rows to take.")] = None,
    output_format: Format = Output.table,
) -> None:
    """Score completions, and show what each reward matched. A run's completions.jsonl works."""
    from cohort.data.rows import load_rows
    from cohort.report.rewards import as_csv, as_json, trial_table
    from cohort.rewards.check.explain import try_rewards

    functions = _from_config(*_read(Path(rewards), [])) if _is_config(rewards) else _named(rewards)
    rows = load_rows(str(data), max_samples=limit)
    batches = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
    trials = [trial for batch in _shown(batches, "scoring") for trial in try_rewards(functions, batch)]
    records = [record for number, trial in enumerate(trials, 1) for record in trial.records(number)]
    if output_format is Output.table:
        _print(trial_table(f"{rewards} on {data}", records))
        means = {name: [t.scores[name] for t in trials if t.scores[name] is not None] for name in functions.names}
        for name, values in means.items():
            told = f"mean {sum(v or 0 for v in values) / len(values):.3f} of {len(values)} rows" if values else "no row"
            typer.echo(f"{name}: {told}")
    else:
        typer.echo(
            as_json(records) if output_format is Output.json else as_csv(records), nl=output_format is Output.json
        )


@app.command()
def audit(
    config: Annotated[Path, typer.Argument(help="YAML configuration, such as examples/gsm8k.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Over the file's.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of the data set to try on.")] = 8,
    output_format: Format = Output.table,
) -> None:
    """Look for completions that are paid more than an honest wrong answer. Exits with 1 where there are any."""
    run, settings = _read(config, overrides or [])

    from cohort.report.rewards import as_csv, as_json, audit_table
    from cohort.rewards.check.audit import audit as audited

    functions = _from_config(run, settings)
    found = audited(functions, _rows(run, rows), progress=lambda kinds: _shown(kinds, "trying"))
    if output_format is Output.csv:
        typer.echo(as_csv(found.records()), nl=False)
    elif output_format is Output.json:
        summary = {"style": found.style, "right": found.right, "wrong": found.wrong, "warnings": found.warnings}
        typer.echo(as_json({**summary, "findings": found.records()}))
    else:
        _print(audit_table(f"{', '.join(functions.names)} on {run.dataset}", found.records()))
        right = "unknown" if found.right is None else f"{found.right:.3g}"
        typer.echo(f"honest answers ({found.style}): right {right}, wrong {found.wrong:.3g}")
        for warning in found.warnings:
            typer.echo(f"warning: {warning}")
        typer.echo(f"{len(found.holes)} of {len(found.findings)} attacks get more than an honest wrong answer")
    if found.holes:
        raise typer.Exit(1)


def _is_config(text: str) -> bool:
    return text.endswith((".yaml", ".yml"))


def _read(path: Path, overrides: list[str]) -> tuple[RunConfig, TrainingConfig]:
    from cohort.cli.runs import read_run

    run, settings = read_run(path, overrides)
    if not run.reward_funcs and run.dataset.startswith("reasoning_gym:"):
        run.reward_funcs = ["reasoning_gym"]
    if not run.reward_funcs:
        raise UserError(f"{path}: it names no reward_funcs")
    return run, settings


def _from_config(run: RunConfig, settings: TrainingConfig) -> Rewards:
    from cohort.config import SampledConfig
    from cohort.rewards.compose import Rewards

    if isinstance(settings, SampledConfig):
        return Rewards(run.reward_funcs, settings.reward_weights, settings.reward_clip)
    return Rewards(run.reward_funcs)


def _named(text: str) -> Rewards:
    from cohort.rewards.compose import Rewards

    return Rewards([name.strip() for name in text.split(",") if name.strip()])


def _rows(run: RunConfig, count: int) -> list[Row]:
    from cohort.data.rows import load_rows

    return load_rows(
        run.dataset,
        split=run.dataset_split,
        columns=run.columns,
        system_prompt=run.system_prompt,
        max_samples=count,
        dataset_kwargs=run.dataset_kwargs,
    )


def _shown(items: Sequence[Any], what: str) -> Iterator[Any]:
    """The items, with a progress bar on stderr where that is a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(items, what, console=console, transient=True, disable=not console.is_terminal)


def _print(table: Any) -> None:
    from rich.console import Console

    Console().print(table)
