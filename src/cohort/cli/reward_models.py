"""`cohort reward label` and `cohort reward eval`: data to train a reward model on, and measures of its quality."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from cohort.cli.console import echo, log_console
from cohort.cli.options import (
    Columns,
    DatasetKwargs,
    Limit,
    MaxCompletionLength,
    Plain,
    Seed,
    SystemPrompt,
    check_folder_of,
    check_plain,
    parse_pairs,
    split_names,
)
from cohort.types import UserError


class Process(str, Enum):
    """How roll-outs label a step: 1 where any of them is right (hard), or the share that is (soft)."""

    hard = "hard"
    soft = "soft"


Data = Annotated[str, typer.Option(help="A file, a folder, a hub name or reasoning_gym:TASK.")]
Split = Annotated[str, typer.Option(help="Split of a hub data set.")]
Separator = Annotated[str, typer.Option(help="Text that ends a step; \\n is a line break.")]
Pattern = Annotated[str | None, typer.Option(help="Regular expression (RE2) of the text that ends a step.")]


def label(
    model: Annotated[str, typer.Argument(help="Name or path of the policy that is sampled.")],
    data: Data,
    output: Annotated[Path, typer.Option(help="JSONL file to write.")],
    reward: Annotated[
        str, typer.Option(help="Reward functions, with commas; the first says what is right.")
    ] = "accuracy",
    num_generations: Annotated[int, typer.Option(min=1, help="Completions of each prompt.")] = 8,
    pairs: Annotated[bool, typer.Option("--pairs", help="Write pairs of a right and a wrong completion.")] = False,
    process: Annotated[
        Process | None, typer.Option(help="Label each step by roll-outs from the prefix that ends with it.")
    ] = None,
    rollouts: Annotated[int, typer.Option(min=1, help="Roll-outs from each prefix, with --process.")] = 8,
    step_separator: Separator = "\\n",
    step_pattern: Pattern = None,
    split: Split = "train",
    columns: Columns = "",
    dataset_kwargs: DatasetKwargs = "",
    system_prompt: SystemPrompt = None,
    plain: Plain = False,
    limit: Limit = None,
    temperature: Annotated[float, typer.Option(min=0, help="Temperature of sampling.")] = 1.0,
    max_completion_length: MaxCompletionLength = 1024,
    seed: Seed = 42,
) -> None:
    """Sample a policy and label the completions by rules: data to train a reward model on."""
    if pairs and process is not None:
        raise UserError("--pairs and --process make different data: give one of them")
    if temperature == 0 and (num_generations > 1 or process is not None):
        raise UserError("greedy samples of a prompt are all the same: set --temperature above 0")
    if output.exists():
        raise UserError(f"--output {output}: the file exists; name another one, or remove it")
    check_folder_of(output)
    check_plain(plain, system_prompt)
    log_console(stderr=True)

    from cohort.data.rows import load_rows
    from cohort.rewards.steps import make_split

    rows = load_rows(data, max_samples=limit, **_loading(split, columns, dataset_kwargs, system_prompt))

    from cohort.evaluation.labelling import label_model

    records = label_model(
        model,
        rows,
        rewards=split_names(reward),
        samples=num_generations,
        kind="pairs" if pairs else "rows" if process is None else process.value,
        rollouts=rollouts,
        split=make_split(_separator(step_separator), step_pattern, None),
        temperature=temperature,
        max_completion_length=max_completion_length,
        plain=plain,
        seed=seed,
    )
    echo(_summary(_written(records, output), output))


def _written(records: Iterator[list[dict[str, Any]]], output: Path) -> list[dict[str, Any]]:
    """Write the records of each prompt as they come; returns their labels."""
    labels: list[dict[str, Any]] = []
    first = next(records, [])  # bad input raises here, before the file is created
    with open(output, "w", encoding="utf-8", errors="backslashreplace") as file:
        for of_prompt in itertools.chain([first], records):
            file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in of_prompt)
            file.flush()
            labels += [{key: row[key] for key in ("label", "labels") if key in row} for row in of_prompt]
    return labels


def _summary(rows: list[dict[str, Any]], output: Path) -> str:
    """ "12 rows, 50.0% right: rows.jsonl", from the written rows' labels."""
    labels = [row["label"] for row in rows if "label" in row]
    steps = [value for row in rows for value in row.get("labels", ())]
    parts = [f"{len(rows)} {'rows' if labels else 'pairs'}"]
    parts += [f"{sum(labels) / len(labels):.1%} right"] if labels else []
    parts += [f"{len(steps)} steps, mean label {sum(steps) / len(steps):.3f}"] if steps else []
    return f"{', '.join(parts)}: {output}"


def evaluate(
    model: Annotated[str, typer.Argument(help="Name or path of a reward model.")],
    data: Data,
    reward: Annotated[
        str, typer.Option(help="Reward function that labels texts or steps in place of the rows' labels.")
    ] = "",
    output: Annotated[Path, typer.Option(help="Folder for judgement.json and plots.")] = Path("output/reward_eval"),
    step_separator: Separator = "\\n",
    step_pattern: Pattern = None,
    split: Split = "test",
    columns: Columns = "",
    dataset_kwargs: DatasetKwargs = "",
    system_prompt: SystemPrompt = None,
    plain: Plain = False,
    limit: Limit = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts scored in one batch.")] = 16,
    max_length: Annotated[
        int | None, typer.Option(min=2, help="Most tokens of a text. Default: the model's positions.")
    ] = None,
) -> None:
    """Measure a reward model: ranking accuracy, AUC, calibration, best of n, bias by length and position."""
    check_plain(plain, system_prompt)
    log_console(stderr=True)

    from cohort.data.rows import load_rows
    from cohort.report.console import SafeConsole
    from cohort.report.judgement import chance, judgement, judgement_table
    from cohort.report.judgement_plots import plot_judgement
    from cohort.rewards.steps import make_split

    rows = load_rows(data, max_samples=limit, **_loading(split, columns, dataset_kwargs, system_prompt))

    from cohort.evaluation.judging import score_rows

    separator = _separator(step_separator)
    scores = score_rows(
        model,
        rows,
        split_names(reward),
        make_split(separator, step_pattern, None),
        separator,
        batch_size=batch_size,
        max_length=max_length,
        plain=plain,
    )
    result = judgement(scores)
    output.mkdir(parents=True, exist_ok=True)
    (output / "judgement.json").write_text(json.dumps({"model": model, "data": data, **result}, indent=1))
    plots = plot_judgement(scores, result, output)
    console = SafeConsole()
    console.print(judgement_table(f"{model} on {data}", result))
    names = ", ".join(["judgement.json", *(path.name for path in plots)])
    if complaint := chance(result):
        console.print(f"No better than chance: {complaint}.", markup=False, highlight=False, soft_wrap=True)
    console.print(f"In {output}: {names}", markup=False, highlight=False, soft_wrap=True)


def _separator(text: str) -> str:
    """Read \\n and \\t as a line break and a tab: a shell passes them as two characters."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


def _loading(split: str, columns: str, dataset_kwargs: str, system_prompt: str | None) -> dict[str, Any]:
    return {
        "split": split,
        "columns": parse_pairs(columns, "--columns", "prompt=question"),
        "dataset_kwargs": parse_pairs(dataset_kwargs, "--dataset-kwargs", "name=main"),
        "system_prompt": system_prompt,
    }
