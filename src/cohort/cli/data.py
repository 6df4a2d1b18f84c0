"""`cohort data show` and `cohort data check`: data as the trainer sees it, before training on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cohort.cli.arguments import Command
from cohort.cli.console import echo, log_console
from cohort.cli.options import Columns, Configuration, Overrides, parse_pairs, split_names
from cohort.types import UserError

app = typer.Typer(help="Inspect data: the tokens that are trained on, lengths, invalid rows.", no_args_is_help=True)


@app.command(cls=Command)
def show(
    config: Configuration,
    overrides: Overrides = None,
    limit: Annotated[int, typer.Option(min=0, help="Rows to print token by token: the first ones.")] = 2,
    ids: Annotated[bool, typer.Option("--ids", help="Print token ids too.")] = False,
) -> None:
    """Print rows as the model sees them, the tokens that are trained on, lengths, and which rows are cut or dropped."""
    from cohort.cli.inspection import print_fates, print_lengths, print_repeats, print_row
    from cohort.cli.runs import read_run
    from cohort.data.configured import check_names

    run, settings = read_run(config, overrides or [])
    check_names(run, settings)
    log_console()

    from cohort.report.console import SafeConsole
    from cohort.train.inspect import inspect_run

    inspected = inspect_run(run, settings)
    console = SafeConsole(highlight=False)
    training, held_out = inspected.training, inspected.held_out
    for i, row in enumerate(training.rows[:limit], 1):
        print_row(console, i, row, inspected.tokenizer, ids)
    print_lengths(console, training)
    console.print(f"method {run.method}", markup=False)
    print_fates(console, "training data", training)
    if held_out is None:
        console.print("no held-out data")
    else:
        print_fates(console, "held-out data", held_out)
        print_repeats(console, inspected.repeats)
    if inspected.problem is not None:
        raise inspected.problem


@app.command(cls=Command)
def check(
    file: Annotated[
        Path, typer.Argument(help="JSON, JSONL, CSV or Parquet; with --dataset-dir, the name of an entry.")
    ],
    columns: Columns = "",
    needs: Annotated[str, typer.Option(help="Columns that each row must have, such as completion or answer.")] = "",
    dataset_dir: Annotated[Path | None, typer.Option(help="Folder with a dataset_info.json.")] = None,
) -> None:
    """Validate a file row by row, and tell what it can be used for; exits with 2 if a row is invalid."""
    from cohort.cli.checking import check_lines, uses_with_rewards
    from cohort.data.check import check_file
    from cohort.data.dataset_info import find_entries

    entry = None
    if dataset_dir is not None:
        entry = find_entries(str(file), str(dataset_dir))[0]
        file = Path(entry.source)
    mapped = parse_pairs(columns, "--columns", "prompt=question")
    result = check_file(file, mapped, tuple(split_names(needs)), entry, uses_with_rewards())
    for line in check_lines(str(file), result):
        echo(line)
    if result.problems or not result.rows:
        raise UserError(f"{file}: {len(result.problems)} of {result.rows} rows cannot be used")
