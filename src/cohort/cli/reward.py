"""`cohort reward`: try and audit reward functions; the commands for reward models join it from `reward_models.py`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cohort.cli.arguments import Command
from cohort.cli.console import echo, log_console, write_data
from cohort.cli.options import Configuration, Limit, Overrides, split_names
from cohort.cli.reward_models import evaluate, label
from cohort.types import UserError

if TYPE_CHECKING:
    from cohort.config import RunConfig, TrainingConfig
    from cohort.rewards.compose import Rewards
    from cohort.types import Row


class Output(str, Enum):
    """Formats of the result."""

    table = "table"
    json = "json"
    csv = "csv"


app = typer.Typer(
    help="Try and audit reward functions; label data for reward models and judge them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Format = Annotated[Output, typer.Option("--output-format", help="How to print the result.")]
BATCH_SIZE = 16
"""Rows scored together."""


@app.command(name="try", cls=Command)
def try_(
    rewards: Annotated[str, typer.Argument(help="Names with commas, or a YAML configuration.")],
    data: Annotated[
        Path, typer.Option(help="Rows with prompt, completion and reference, such as a run's completions.jsonl.")
    ],
    limit: Limit = None,
    output_format: Format = Output.table,
) -> None:
    """Score completions, and show what each reward function matched."""
    from cohort.data.rows import load_rows
    from cohort.report.rewards import as_csv, as_json, trial_table
    from cohort.rewards.check.explain import try_rewards
    from cohort.rewards.compose import Rewards

    functions = _configured_rewards(*_read(Path(rewards), [])) if _is_config(rewards) else Rewards(split_names(rewards))
    rows = load_rows(str(data), max_samples=limit)
    batches = [rows[i : i + BATCH_SIZE] for i in range(0, len(rows), BATCH_SIZE)]
    trials = [
        trial
        for batch in _with_progress(batches, "scoring", "batches of rows")
        for trial in try_rewards(functions, batch)
    ]
    records = [record for number, trial in enumerate(trials, 1) for record in trial.records(number)]
    if output_format is Output.table:
        _print(trial_table(f"{rewards} on {data}", records))
        means = {name: [t.scores[name] for t in trials if t.scores[name] is not None] for name in functions.names}
        for name, values in means.items():
            mean = f"mean {sum(v or 0 for v in values) / len(values):.3f} of {len(values)} rows" if values else "no row"
            echo(f"{name}: {mean}")
    else:
        write_data(as_json(records) + "\n" if output_format is Output.json else as_csv(records))


@app.command(cls=Command)
def audit(
    config: Configuration,
    overrides: Overrides = None,
    limit: Annotated[int, typer.Option(min=1, help="Use the first rows of the data set only.")] = 8,
    output_format: Format = Output.table,
) -> None:
    """Look for completions that get more reward than an honest wrong answer; exits with 1 if there are any."""
    run, settings = _read(config, overrides or [])

    from cohort.report.rewards import as_csv, as_json, audit_table
    from cohort.rewards.check.audit import audit as audit_rewards
    from cohort.rewards.check.references import require_references

    functions = _configured_rewards(run, settings)
    tried = _rows(run, limit)
    require_references(functions, tried)
    result = audit_rewards(functions, tried, progress=lambda kinds: _with_progress(kinds, "trying", "kinds of attack"))
    if output_format is Output.csv:
        write_data(as_csv(result.records()))
    elif output_format is Output.json:
        summary = {"style": result.style, "right": result.right, "wrong": result.wrong, "warnings": result.warnings}
        write_data(as_json({**summary, "findings": result.records()}) + "\n")
    else:
        _print(audit_table(f"{', '.join(functions.names)} on {run.dataset}", result.records()))
        right = "unknown" if result.right is None else f"{result.right:.3g}"
        echo(f"honest answers ({result.style}): right {right}, wrong {result.wrong:.3g}")
        for warning in result.warnings:
            echo(f"warning: {warning}")
        echo(f"{len(result.holes)} of {len(result.findings)} attacks get more than an honest wrong answer")
    if result.holes:
        raise typer.Exit(1)


app.command(cls=Command)(label)
app.command(name="eval", cls=Command)(evaluate)


def _is_config(text: str) -> bool:
    return text.endswith((".yaml", ".yml"))


def _read(path: Path, overrides: list[str]) -> tuple[RunConfig, TrainingConfig]:
    from cohort.cli.runs import read_run

    run, settings = read_run(path, overrides)
    if not run.reward_funcs and run.dataset.startswith("reasoning_gym:"):
        run.reward_funcs = ["reasoning_gym"]
    if not run.reward_funcs:
        raise UserError(f"{path}: it has no reward_funcs")
    return run, settings


def _configured_rewards(run: RunConfig, settings: TrainingConfig) -> Rewards:
    from cohort.config import SampledConfig
    from cohort.rewards.compose import Rewards

    if isinstance(settings, SampledConfig):
        return Rewards(run.reward_funcs, settings.reward_weights, settings.reward_clip)
    return Rewards(run.reward_funcs)


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


def _with_progress(items: Sequence[Any], what: str, unit: str) -> Iterator[Any]:
    """The items, with their progress on standard error."""
    from cohort.progress import track

    log_console(stderr=True)
    yield from track(items, what, unit)


def _print(table: Any) -> None:
    from cohort.report.console import SafeConsole

    SafeConsole().print(table)
