"""`cohort data`: looking at data before training on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cohort.types import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from cohort.data.inspect import Encoded, Inspection

app = typer.Typer(help="Look at data: what is trained on, lengths, rows that are wrong.", no_args_is_help=True)

SHOWN = 20
"""Problems printed; the others are counted."""


@app.command()
def show(
    config: Annotated[Path, typer.Argument(help="YAML configuration.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Over the file's.")] = None,
    rows: Annotated[int, typer.Option(min=0, help="Rows to print token by token.")] = 2,
    ids: Annotated[bool, typer.Option("--ids", help="Token ids too.")] = False,
) -> None:
    """Print prompts as the model gets them, what is trained on, lengths, and what is too long."""
    from rich.console import Console

    from cohort.cli.runs import read_run
    from cohort.config import RewardModelConfig
    from cohort.data.configured import check_names, configured_rows

    run, settings = read_run(config, overrides or [])
    check_names(run, settings)
    if isinstance(settings, RewardModelConfig):
        raise UserError(f"{config}: method {run.method}: prompts are shown for methods that train a policy")
    loaded, held_out = configured_rows(run, settings.seed)

    from cohort.data.chat_templates import use_template
    from cohort.data.inspect import inspect_rows
    from cohort.methods.named import find_method
    from cohort.policy.load import context_length, load_tokenizer

    tokenizer = load_tokenizer(run.model, trust_remote_code=settings.trust_remote_code)
    use_template(tokenizer, settings.template)
    context = context_length(run.model, trust_remote_code=settings.trust_remote_code)
    sampled = find_method(run.method).source != "demonstrations"
    found = inspect_rows(loaded, tokenizer, settings, context, sampled)
    console = Console(highlight=False)
    for i, row in enumerate(found.rows[:rows], 1):
        _print_row(console, i, row, tokenizer, ids, settings.max_completion_length)
    _print_lengths(console, found, sampled)
    _print_fates(console, found)
    console.print(f"{len(loaded)} rows to train on, {len(held_out or [])} held out; method {run.method}", markup=False)


def _print_row(console: Console, i: int, row: Encoded, tokenizer: Any, ids: bool, limit: int) -> None:
    console.rule(f"row {i}: {row.row.source}", align="left", characters="-")
    _print_tokens(console, f"prompt, {len(row.prompt)} tokens, no loss", row.prompt, tokenizer, ids, "dim")
    if row.completion is None:
        console.print(f"completion, sampled, up to {limit} tokens, trained on", style="bold")
    else:
        title = f"completion, {len(row.completion)} tokens, trained on"
        _print_tokens(console, title, row.completion, tokenizer, ids, "green")
    columns = {name: value for name, value in row.row.columns.items() if value is not None}
    for name, value in columns.items():
        console.print(f"column {name}: {str(value)[:200]!r}", markup=False)


def _print_tokens(console: Console, title: str, tokens: list[int], tokenizer: Any, ids: bool, style: str) -> None:
    from rich.text import Text

    console.print(title, style="bold")
    line = Text()
    for token in tokens:
        text = tokenizer.decode([token]).replace("\n", "\\n").replace("\t", "\\t")
        line.append(text, style)
        line.append(f"({token})|" if ids else "|", "yellow")
    console.print(line, soft_wrap=True)


def _print_lengths(console: Console, found: Inspection, sampled: bool) -> None:
    from rich.table import Table

    from cohort.data.inspect import histogram, quantiles

    parts = {"prompt": [len(row.prompt) for row in found.rows]}
    if not sampled:
        parts["completion"] = [len(row.completion or []) for row in found.rows]
        parts["together"] = [row.length for row in found.rows]
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


def _print_fates(console: Console, found: Inspection) -> None:
    limit = f"over {found.limit} tokens ({found.limited_by})"
    for fate in ("dropped", "cut"):
        chosen = [row for row in found.rows if row.fate == fate]
        share = f"{len(chosen)} of {len(found.rows)} rows {fate}: {limit}"
        places = ", ".join(f"{row.row.source} ({row.length})" for row in chosen[:5])
        more = ", ..." if len(chosen) > 5 else ""
        console.print(f"{share}: {places}{more}" if chosen else share, markup=False, soft_wrap=True)


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="JSON, JSONL, CSV or Parquet; with --dataset-dir, an entry's name.")],
    columns: Annotated[str, typer.Option(help="Ours=theirs, such as prompt=question.")] = "",
    needs: Annotated[str, typer.Option(help="What each row must have, such as completion or answer.")] = "",
    dataset_dir: Annotated[Path | None, typer.Option(help="Folder of a dataset_info.json.")] = None,
) -> None:
    """Validate a file row by row; exit code 2 where a row is wrong."""
    from cohort.data.dataset_info import find_entries
    from cohort.data.inspect import check_file

    entry = None
    if dataset_dir is not None:
        entry = find_entries(str(file), str(dataset_dir))[0]
        file = Path(entry.source)
    pairs = [part.partition("=") for part in columns.split(",") if part.strip()]
    if not all(ours.strip() and theirs.strip() for ours, _, theirs in pairs):
        raise UserError(f"--columns {columns!r}: write prompt=question, commas between several")
    mapped = {ours.strip(): theirs.strip() for ours, _, theirs in pairs}
    found = check_file(file, mapped, tuple(name.strip() for name in needs.split(",") if name.strip()), entry)
    for problem in found.problems[:SHOWN]:
        typer.echo(f"wrong: {problem}")
    if len(found.problems) > SHOWN:
        typer.echo(f"and {len(found.problems) - SHOWN} more")
    good = found.rows - len(found.problems)
    typer.echo(f"{file}: {found.rows} rows, {good} good, {len(found.problems)} wrong")
    typer.echo("prompts: " + (", ".join(f"{count} {kind}" for kind, count in found.kinds.items()) or "none"))
    if found.repeated:
        typer.echo(f"{found.repeated} rows have a prompt that came before")
    for name, count in found.columns.items():
        typer.echo(f"column {name}: in {count} of {good} rows")
    if found.problems or not found.rows:
        raise UserError(f"{file}: {len(found.problems)} of {found.rows} rows cannot be used")
