"""`cohort data show` and `cohort data check`: data as the trainer sees it, before training on it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cohort.cli.console import echo
from cohort.cli.options import Columns, Configuration, Overrides, parse_pairs, split_names
from cohort.types import UserError, printable

if TYPE_CHECKING:
    from rich.console import Console

    from cohort.data.inspect import EncodedRow, Inspection

app = typer.Typer(help="Inspect data: the tokens that are trained on, lengths, invalid rows.", no_args_is_help=True)

MAX_PROBLEMS = 20
"""Problems that are printed; the others are counted."""


@app.command()
def show(
    config: Configuration,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(min=0, help="Rows to print token by token.")] = 2,
    ids: Annotated[bool, typer.Option("--ids", help="Print token ids too.")] = False,
) -> None:
    """Print prompts as the model sees them, the tokens that are trained on, lengths, and rows over the limit."""
    from cohort.cli.console import log_console
    from cohort.cli.runs import read_run
    from cohort.config import RewardModelConfig
    from cohort.data.configured import check_names, configured_rows

    run, settings = read_run(config, overrides or [])
    check_names(run, settings)
    log_console()
    if isinstance(settings, RewardModelConfig):
        raise UserError(f"{config}: method {run.method}: prompts are shown for methods that train a policy")
    loaded, held_out = configured_rows(run, settings.seed)

    from cohort.data.inspect import inspect_rows
    from cohort.data.templates import prepared
    from cohort.methods.named import find_method
    from cohort.policy.load import context_length, load_tokenizer
    from cohort.report.console import SafeConsole

    tokenizer = load_tokenizer(run.model, trust_remote_code=settings.trust_remote_code)
    loaded, _ = prepared(loaded, [], tokenizer, settings)
    context = context_length(run.model, trust_remote_code=settings.trust_remote_code)
    sampled = find_method(run.method).source != "demonstrations"
    inspection = inspect_rows(loaded, tokenizer, settings, context, sampled)
    console = SafeConsole(highlight=False)
    for i, row in enumerate(inspection.rows[:rows], 1):
        _print_row(console, i, row, tokenizer, ids, settings.max_completion_length)
    _print_lengths(console, inspection, sampled)
    _print_over_limit(console, inspection)
    console.print(f"{len(loaded)} rows to train on, {len(held_out or [])} held out; method {run.method}", markup=False)


def _print_row(console: Console, i: int, row: EncodedRow, tokenizer: Any, ids: bool, limit: int) -> None:
    console.rule(f"row {i}: {row.row.source}", align="left", characters="-")
    _print_tokens(console, f"prompt, {len(row.prompt)} tokens, no loss", row.prompt, tokenizer, ids, "dim")
    if row.completion is None:
        console.print(f"completion, sampled, up to {limit} tokens, trained on", style="bold")
    else:
        marked = zip(row.completion, row.trained or [True] * len(row.completion), strict=True)
        for trained, run in itertools.groupby(marked, lambda pair: pair[1]):
            part = [token for token, _ in run]
            title = f"completion, {len(part)} tokens, {'trained on' if trained else 'no loss'}"
            _print_tokens(console, title, part, tokenizer, ids, "green" if trained else "dim")
    columns = {name: value for name, value in row.row.columns.items() if value is not None}
    for name, value in columns.items():
        console.print(f"column {printable(name, lines=False)}: {str(value)[:200]!r}", markup=False)


def _print_tokens(console: Console, title: str, tokens: list[int], tokenizer: Any, ids: bool, style: str) -> None:
    from rich.text import Text

    console.print(title, style="bold")
    line = Text()
    for token in tokens:
        line.append(printable(tokenizer.decode([token]), lines=False), style)
        line.append(f"({token})|" if ids else "|", "yellow")
    console.print(line, soft_wrap=True)


def _print_lengths(console: Console, inspection: Inspection, sampled: bool) -> None:
    from rich.table import Table

    from cohort.data.inspect import histogram, quantiles

    parts = {"prompt": [len(row.prompt) for row in inspection.rows]}
    if not sampled:
        parts["completion"] = [len(row.completion or []) for row in inspection.rows]
        parts["together"] = [row.length for row in inspection.rows]
    table = Table(title="Lengths in tokens", title_justify="left")
    columns = {name: quantiles(lengths) for name, lengths in parts.items()}
    for header in ("", *next(iter(columns.values()))):
        table.add_column(header, justify="left" if not header else "right")
    for name, values in columns.items():
        table.add_row(name, *(f"{value:.1f}" if key == "mean" else f"{value:g}" for key, value in values.items()))
    console.print(table)
    name, lengths = list(parts.items())[-1]
    bins = histogram(lengths)
    most, width = max(count for _, _, count in bins), len(str(bins[-1][1]))
    for first, last, count in bins:
        bar = "#" * round(40 * count / most)
        console.print(f"{name} {first:>{width}}-{last:<{width}} {count:>7} {bar}", markup=False)


def _print_over_limit(console: Console, inspection: Inspection) -> None:
    limit = f"over {inspection.limit} tokens ({inspection.limited_by})"
    for fate in ("dropped", "cut"):
        chosen = [row for row in inspection.rows if row.fate == fate]
        count = f"{len(chosen)} of {len(inspection.rows)} rows {fate}: {limit}"
        places = ", ".join(f"{row.row.source} ({row.length})" for row in chosen[:5])
        more = ", ..." if len(chosen) > 5 else ""
        console.print(f"{count}: {places}{more}" if chosen else count, markup=False, soft_wrap=True)


@app.command()
def check(
    file: Annotated[
        Path, typer.Argument(help="JSON, JSONL, CSV or Parquet; with --dataset-dir, the name of an entry.")
    ],
    columns: Columns = "",
    needs: Annotated[str, typer.Option(help="Columns that each row must have, such as completion or answer.")] = "",
    dataset_dir: Annotated[Path | None, typer.Option(help="Folder with a dataset_info.json.")] = None,
) -> None:
    """Validate a file row by row; exits with 2 if a row is invalid."""
    from cohort.data.dataset_info import find_entries
    from cohort.data.inspect import check_file

    entry = None
    if dataset_dir is not None:
        entry = find_entries(str(file), str(dataset_dir))[0]
        file = Path(entry.source)
    mapped = parse_pairs(columns, "--columns", "prompt=question")
    result = check_file(file, mapped, tuple(split_names(needs)), entry)
    for problem in result.problems[:MAX_PROBLEMS]:
        echo(f"wrong: {problem}")
    if len(result.problems) > MAX_PROBLEMS:
        echo(f"and {len(result.problems) - MAX_PROBLEMS} more")
    good = result.rows - len(result.problems)
    echo(f"{file}: {result.rows} rows, {good} good, {len(result.problems)} wrong")
    echo("prompts: " + (", ".join(f"{count} {kind}" for kind, count in result.kinds.items()) or "none"))
    if result.repeated:
        echo(f"{result.repeated} rows repeat an earlier prompt")
    for name, count in result.columns.items():
        echo(f"column {printable(name, lines=False)}: in {count} of {good} rows")
    if result.problems or not result.rows:
        raise UserError(f"{file}: {len(result.problems)} of {result.rows} rows cannot be used")
