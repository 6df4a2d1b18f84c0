"""`cohort eval`: a model on a data set, a benchmark, or tasks of lm-eval."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cohort.cli.console import log_console
from cohort.cli.options import AllowPickle, TrustRemoteCode, check_output, names, pairs
from cohort.types import UserError


def evaluate(
    model: Annotated[str, typer.Argument(help="Name or path of a model or an adapter.")],
    data: Annotated[str | None, typer.Option(help="A file, a folder, a hub name or reasoning_gym:TASK.")] = None,
    benchmark: Annotated[
        str | None, typer.Option(help="Asks and scores as docs/evaluation.md says: gsm8k, math, mbpp, humaneval, ...")
    ] = None,
    lm_eval: Annotated[str | None, typer.Option(help="Tasks of lm-eval, with commas: cohort-rl[lm-eval].")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a hub data set. Default: test.")] = None,
    reward: Annotated[
        str | None, typer.Option(help="Reward functions; the first says what is correct. Default: accuracy.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Completions of each problem.")] = 1,
    k: Annotated[str, typer.Option(help="For pass@k and maj@k, such as 1,4,8; at most --samples.")] = "1",
    temperature: Annotated[float | None, typer.Option(min=0, help="Default: 0 for one sample, else 1.")] = None,
    max_completion_length: Annotated[int, typer.Option(min=1, help="Tokens.")] = 1024,
    limit: Annotated[int | None, typer.Option(min=1, help="Problems to take, of each task.")] = None,
    columns: Annotated[str, typer.Option(help="Ours=theirs, such as prompt=question,answer=solution.")] = "",
    dataset_kwargs: Annotated[str, typer.Option(help="For the data set's loader, such as name=main.")] = "",
    system_prompt: Annotated[str | None, typer.Option(help="Makes plain prompts conversational.")] = None,
    template: Annotated[str | None, typer.Option(help="Chat template, where the tokenizer has none.")] = None,
    num_fewshot: Annotated[int | None, typer.Option(min=0, help="For --lm-eval.")] = None,
    include_path: Annotated[Path | None, typer.Option(help="Folder of more tasks, for --lm-eval.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write the result with every completion as JSON.")] = None,
    seed: Annotated[int, typer.Option(help="For sampling.")] = 42,
    trust_remote_code: TrustRemoteCode = False,
    allow_pickle: AllowPickle = False,
) -> None:
    """Measure a model on a data set or a benchmark: accuracy with its 95% interval, pass@k, maj@k."""
    check_output(output)
    if lm_eval is not None:
        _alone({"--data": data, "--benchmark": benchmark, "--reward": reward})
        _lm_eval(model, lm_eval, limit, num_fewshot, include_path, output, trust_remote_code, seed)
        return
    _check_source(data, benchmark, columns)
    settings: dict[str, Any] = {
        "benchmark": benchmark,
        "split": split,
        "rewards": [] if reward is None else names(reward, "--reward", "accuracy"),
        "samples": samples,
        "ks": _numbers(k, samples),
        "temperature": temperature,
        "max_completion_length": max_completion_length,
        "limit": limit,
        "columns": pairs(columns, "--columns", "prompt=question"),
        "dataset_kwargs": pairs(dataset_kwargs, "--dataset-kwargs", "name=main"),
        "system_prompt": system_prompt,
        "template": template,
        "seed": seed,
        "trust_remote_code": trust_remote_code,
        "allow_pickle": allow_pickle,
    }
    _measured(model, data, settings, output)


def _measured(model: str, data: str | None, settings: dict[str, Any], output: Path | None) -> None:
    """Evaluate, print the table, write the result."""
    console = log_console()

    from cohort.evaluation.models import evaluate_model
    from cohort.report.intervals import wilson
    from cohort.report.tables import evaluation_table

    result = evaluate_model(model, data, **settings)
    # Samples of one problem are not independent of each other: the interval counts problems.
    result["interval"] = wilson(result["accuracy"] * result["problems"], result["problems"])
    on = " of ".join(filter(None, (settings["benchmark"], data)))
    console.print(evaluation_table(f"{model} on {on}", result))
    _write(output, result)


def _alone(others: dict[str, str | None]) -> None:
    given = [option for option, value in others.items() if value is not None]
    if given:
        raise UserError(f"--lm-eval names tasks with data and scores of their own: leave {given[0]} out")


def _check_source(data: str | None, benchmark: str | None, columns: str) -> None:
    from cohort.config import unknown_name
    from cohort.data.benchmarks import BENCHMARKS

    if benchmark is not None and benchmark not in BENCHMARKS:
        raise UserError(f"--benchmark {benchmark!r} is unknown: {unknown_name(benchmark, BENCHMARKS)}")
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
    wanted = names(tasks, "--lm-eval", "gsm8k,arc_easy")
    log_console()

    from cohort.evaluation.lm_eval import run_tasks
    from cohort.report.tables import harmless

    result, table = run_tasks(
        model,
        wanted,
        limit=limit,
        num_fewshot=num_fewshot,
        include_path=include_path,
        trust_remote_code=trust_remote_code,
        seed=seed,
    )
    typer.echo(harmless(table))
    _write(output, result)


def _write(output: Path | None, result: dict[str, Any]) -> None:
    if output is not None:
        output.write_text(json.dumps(result, ensure_ascii=False, indent=1, default=str), encoding="utf-8")
        typer.echo(f"written to {output}")


def _numbers(text: str, samples: int) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) >= 1 for part in parts):
        raise UserError(f"--k {text!r}: give whole numbers of at least 1, such as 1,4,8")
    ks = sorted({int(part) for part in parts})
    if ks[-1] > samples:
        raise UserError(f"--k {text} needs {ks[-1]} completions of each problem: add --samples {ks[-1]}")
    return ks
