"""`cohort eval`: measures a model on a data set, a benchmark, or tasks of lm-eval."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cohort.cli.console import echo, log_console
from cohort.cli.options import (
    AllowPickle,
    ChatTemplate,
    Columns,
    DatasetKwargs,
    MaxCompletionLength,
    Plain,
    Seed,
    SystemPrompt,
    TrustRemoteCode,
    check_folder_of,
    check_plain,
    parse_names,
    parse_pairs,
)
from cohort.types import UserError


def evaluate(
    model: Annotated[str, typer.Argument(help="Name or path of a model or an adapter.")],
    data: Annotated[str | None, typer.Option(help="A file, a folder, a hub name or reasoning_gym:TASK.")] = None,
    benchmark: Annotated[
        str | None, typer.Option(help="gsm8k, math, mbpp, humaneval, ...: docs/evaluation.md lists them.")
    ] = None,
    lm_eval: Annotated[str | None, typer.Option(help="Tasks of lm-eval, with commas: cohort-rl[lm-eval].")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a hub data set. Default: test.")] = None,
    reward: Annotated[
        str | None, typer.Option(help="Reward functions; the first says what is correct. Default: accuracy.")
    ] = None,
    num_generations: Annotated[int, typer.Option(min=1, help="Completions of each problem.")] = 1,
    k: Annotated[str, typer.Option(help="For pass@k and maj@k, such as 1,4,8; at most --num-generations.")] = "1",
    temperature: Annotated[float | None, typer.Option(min=0, help="Default: 0 for one completion, else 1.")] = None,
    max_completion_length: MaxCompletionLength = 1024,
    limit: Annotated[int | None, typer.Option(min=1, help="Use the first problems only, of each task.")] = None,
    columns: Columns = "",
    dataset_kwargs: DatasetKwargs = "",
    system_prompt: SystemPrompt = None,
    template: ChatTemplate = None,
    plain: Plain = False,
    num_fewshot: Annotated[
        int | None, typer.Option(min=0, help="Solved examples in each prompt, for --lm-eval.")
    ] = None,
    include_path: Annotated[Path | None, typer.Option(help="Folder of further tasks, for --lm-eval.")] = None,
    output: Annotated[Path | None, typer.Option(help="JSON file for the result with every completion.")] = None,
    seed: Seed = 42,
    trust_remote_code: TrustRemoteCode = False,
    allow_pickle: AllowPickle = False,
) -> None:
    """Measure a model on a data set or a benchmark: accuracy with its 95% interval, pass@k, maj@k."""
    check_folder_of(output)
    if lm_eval is not None:
        _refuse_with_lm_eval({"--data": data, "--benchmark": benchmark, "--reward": reward})
        _lm_eval(model, lm_eval, limit, num_fewshot, include_path, output, trust_remote_code, seed)
        return
    _check_source(data, benchmark, columns)
    check_plain(plain, system_prompt)
    settings: dict[str, Any] = {
        "benchmark": benchmark,
        "split": split,
        "rewards": [] if reward is None else parse_names(reward, "--reward", "accuracy"),
        "samples": num_generations,
        "ks": _parse_ks(k, num_generations),
        "temperature": temperature,
        "max_completion_length": max_completion_length,
        "limit": limit,
        "columns": parse_pairs(columns, "--columns", "prompt=question"),
        "dataset_kwargs": parse_pairs(dataset_kwargs, "--dataset-kwargs", "name=main"),
        "system_prompt": system_prompt,
        "template": template,
        "plain": plain,
        "seed": seed,
        "trust_remote_code": trust_remote_code,
        "allow_pickle": allow_pickle,
    }
    _evaluate(model, data, settings, output)


def _evaluate(model: str, data: str | None, settings: dict[str, Any], output: Path | None) -> None:
    """Evaluate, print the table, write the result."""
    console = log_console()

    from cohort.evaluation.models import evaluate_model
    from cohort.formulas.chance import wilson
    from cohort.report.tables import evaluation_table

    result = evaluate_model(model, data, **settings)
    # The interval counts problems, because samples of one problem are not independent.
    result["interval"] = wilson(result["accuracy"] * result["problems"], result["problems"])
    source = " of ".join(filter(None, (settings["benchmark"], data)))
    console.print(evaluation_table(f"{model} on {source}", result))
    _write(output, result)


def _refuse_with_lm_eval(options: dict[str, str | None]) -> None:
    refused = [option for option, value in options.items() if value is not None]
    if refused:
        raise UserError(f"--lm-eval names tasks that have their own data and scores: leave {refused[0]} out")


def _check_source(data: str | None, benchmark: str | None, columns: str) -> None:
    from cohort.config import unknown_name
    from cohort.data.benchmarks import BENCHMARKS

    if benchmark is not None and benchmark not in BENCHMARKS:
        raise UserError(f"--benchmark {benchmark!r} is unknown{unknown_name(benchmark, BENCHMARKS)}")
    if benchmark is not None and columns:
        raise UserError("--benchmark reads its own columns: leave --columns out, or --benchmark")
    if data is None and benchmark is None:
        raise UserError("name what to measure on: --data FILE, --benchmark gsm8k or --lm-eval TASKS")


def _lm_eval(
    model: str,
    tasks: str,
    limit: int | None,
    num_fewshot: int | None,
    include_path: Path | None,
    output: Path | None,
    trust_remote_code: bool,
    seed: int,
) -> None:
    task_names = parse_names(tasks, "--lm-eval", "gsm8k,arc_easy")
    log_console()

    from cohort.evaluation.lm_eval import run_tasks

    result, table = run_tasks(
        model,
        task_names,
        limit=limit,
        num_fewshot=num_fewshot,
        include_path=include_path,
        trust_remote_code=trust_remote_code,
        seed=seed,
    )
    echo(table)
    _write(output, result)


def _write(output: Path | None, result: dict[str, Any]) -> None:
    if output is not None:
        text = json.dumps(result, ensure_ascii=False, indent=1, default=str)
        output.write_text(text, encoding="utf-8", errors="backslashreplace")  # JSON's escapes of lone surrogates
        echo(f"written to {output}")


def _parse_ks(text: str, samples: int) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) >= 1 for part in parts):
        raise UserError(f"--k {text!r}: give whole numbers of at least 1, such as 1,4,8")
    ks = sorted({int(part) for part in parts})
    if ks[-1] > samples:
        raise UserError(f"--k {text} needs {ks[-1]} completions of each problem: add --num-generations {ks[-1]}")
    return ks
