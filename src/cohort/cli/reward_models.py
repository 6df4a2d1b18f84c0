"""`cohort reward label` and `cohort reward eval`: data for reward models, and what a reward model is worth."""

from __future__ import annotations

import itertools
import json
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from cohort.cli import options as cli_options
from cohort.types import UserError


class Process(str, Enum):
    """How a step's roll-outs make its label."""

    hard = "hard"
    soft = "soft"


Data = Annotated[str, typer.Option(help="A file, a folder, a hub name or reasoning_gym:TASK.")]
Split = Annotated[str, typer.Option(help="Split of a hub data set.")]
Columns = Annotated[str, typer.Option(help="Ours=theirs, such as prompt=question,answer=solution.")]
Options = Annotated[str, typer.Option(help="For the data set's loader, such as name=main.")]
System = Annotated[str | None, typer.Option(help="Makes plain prompts conversational.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Rows to take.")]
Separator = Annotated[str, typer.Option(help="What ends a step; \\n is a line's end.")]
Pattern = Annotated[str | None, typer.Option(help="Regular expression (RE2) of what ends a step.")]


def label(
    model: Annotated[str, typer.Argument(help="Name or path of the policy that is sampled.")],
    data: Data,
    output: Annotated[Path, typer.Option(help="JSONL file to write.")],
    reward: Annotated[str, typer.Option(help="Rules, commas between; the first says what is right.")] = "accuracy",
    samples: Annotated[int, typer.Option(min=1, help="Completions of each prompt.")] = 8,
    pairs: Annotated[bool, typer.Option("--pairs", help="Write pairs, chosen right and rejected wrong.")] = False,
    process: Annotated[Process | None, typer.Option(help="Label steps by roll-outs from their prefixes.")] = None,
    rollouts: Annotated[int, typer.Option(min=1, help="Of each step's prefix, with --process.")] = 8,
    step_separator: Separator = "\\n",
    step_pattern: Pattern = None,
    split: Split = "train",
    columns: Columns = "",
    dataset_kwargs: Options = "",
    system_prompt: System = None,
    limit: Limit = None,
    temperature: Annotated[float, typer.Option(min=0, help="Of sampling.")] = 1.0,
    max_completion_length: Annotated[int, typer.Option(min=1, help="Tokens.")] = 1024,
    seed: Annotated[int, typer.Option(help="For sampling.")] = 42,
) -> None:
    """Sample a policy and label what it says by rules: data to train a reward model on."""
    if pairs and process is not None:
        raise UserError("--pairs and --process make different data: give one of them")
    if temperature == 0 and (samples > 1 or process is not None):
        raise UserError("greedy samples of a prompt are all the same: set --temperature above 0")
    if output.exists():
        raise UserError(f"--output {output}: it is there already; name another file, or remove it")
    if not output.parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {output.parent}")

    from cohort.data.rows import load_rows
    from cohort.rewards.steps import make_split

    rows = load_rows(data, max_samples=limit, **_loading(split, columns, dataset_kwargs, system_prompt))

    from cohort.evaluation.labelling import label_model

    records = label_model(
        model,
        rows,
        rewards=_names(reward),
        samples=samples,
        kind="pairs" if pairs else "rows" if process is None else process.value,
        rollouts=rollouts,
        split=make_split(_separator(step_separator), step_pattern, None),
        temperature=temperature,
        max_completion_length=max_completion_length,
        seed=seed,
    )
    written: list[dict[str, Any]] = []
    first = next(records, [])  # what cannot be done shows before there is a file
    with open(output, "w", encoding="utf-8") as file:
        for of_prompt in itertools.chain([first], records):
            file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in of_prompt)
            file.flush()
            written += [{key: row[key] for key in ("label", "labels") if key in row} for row in of_prompt]
    typer.echo(_summary(written, output))


def _summary(written: list[dict[str, Any]], output: Path) -> str:
    labels = [row["label"] for row in written if "label" in row]
    steps = [value for row in written for value in row.get("labels", ())]
    told = [f"{len(written)} {'rows' if labels else 'pairs'}"]
    told += [f"{sum(labels) / len(labels):.1%} right"] if labels else []
    told += [f"{len(steps)} steps, mean label {sum(steps) / len(steps):.3f}"] if steps else []
    return f"{', '.join(told)}: {output}"


def evaluate(
    model: Annotated[str, typer.Argument(help="Name or path of a reward model.")],
    data: Data,
    reward: Annotated[
        str, typer.Option(help="A rule that labels texts or steps, in the place of the rows' labels.")
    ] = "",
    output: Annotated[Path, typer.Option(help="Folder for judgement.json and plots.")] = Path("output/reward_eval"),
    step_separator: Separator = "\\n",
    step_pattern: Pattern = None,
    split: Split = "test",
    columns: Columns = "",
    dataset_kwargs: Options = "",
    system_prompt: System = None,
    limit: Limit = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts scored at a time.")] = 16,
    max_length: Annotated[int | None, typer.Option(min=2, help="Tokens; default: the model's positions.")] = None,
) -> None:
    """Judge a reward model: ranking accuracy, AUC, calibration, best of n, bias by length and position."""
    from rich.console import Console

    from cohort.data.rows import load_rows
    from cohort.report.judgement import judgement, judgement_table, plot_judgement
    from cohort.rewards.steps import make_split

    rows = load_rows(data, max_samples=limit, **_loading(split, columns, dataset_kwargs, system_prompt))

    from cohort.evaluation.judging import score_rows

    separator = _separator(step_separator)
    scores = score_rows(
        model,
        rows,
        _names(reward),
        make_split(separator, step_pattern, None),
        separator,
        batch_size=batch_size,
        max_length=max_length,
    )
    found = judgement(scores)
    output.mkdir(parents=True, exist_ok=True)
    (output / "judgement.json").write_text(json.dumps({"model": model, "data": data, **found}, indent=1))
    plots = plot_judgement(scores, found, output)
    console = Console()
    console.print(judgement_table(f"{model} on {data}", found))
    names = ", ".join(["judgement.json", *(path.name for path in plots)])
    console.print(f"In {output}: {names}", markup=False, highlight=False, soft_wrap=True)


def _separator(text: str) -> str:
    """A shell writes a line's end as two characters."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _loading(split: str, columns: str, dataset_kwargs: str, system_prompt: str | None) -> dict[str, Any]:
    return {
        "split": split,
        "columns": cli_options.pairs(columns, "--columns", "prompt=question"),
        "dataset_kwargs": cli_options.pairs(dataset_kwargs, "--dataset-kwargs", "name=main"),
        "system_prompt": system_prompt,
    }
