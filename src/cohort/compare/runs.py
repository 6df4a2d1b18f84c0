"""`cohort compare`: methods trained from the same start with the same number of sampled completions.

    output_dir/seed-0/start/result.json     measurements of the start
    output_dir/seed-0/start/model/          the start, if `sft:` makes it
    output_dir/seed-0/grpo/                 an ordinary run's folder with a result.json

A folder with a result.json is finished and is not trained again; one without resumes from its checkpoint.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from cohort.compare.config import Comparison, settings_of
from cohort.compare.folder import PreparationTime, can_resume, finish, is_finished
from cohort.compare.measure import component_of, curve, measure, training_bytes
from cohort.config import OnlineConfig, TrainingConfig
from cohort.data.chains import Teacher, build_model, build_tokenizer, make_chains
from cohort.data.configured import configured_rows
from cohort.data.order import picks
from cohort.data.rows import load_rows
from cohort.evaluation.loaded_model import LoadedModel
from cohort.methods.named import find_method
from cohort.policy.memory import peak_bytes, reset_peak
from cohort.progress import Task
from cohort.report.comparison import RESULT, START, write_comparison
from cohort.report.live import silent_display
from cohort.report.metrics import read_metrics, series
from cohort.report.page.write import write_report
from cohort.train.trainer import Trainer
from cohort.types import Row, UserError


def run_comparison(comparison: Comparison, jobs: int, say: Callable[[str], None]) -> list[Path]:
    """Run what is not finished, `jobs` runs at a time, then write tables, plots and the page. Returns their paths.
    `say` gets a line for each run."""
    comparison.output_dir.mkdir(parents=True, exist_ok=True)
    starts = [(comparison, seed) for seed in comparison.seeds]
    runs = [(comparison, name, seed) for seed in comparison.seeds for name in comparison.configs]
    with (
        _Workers(jobs, list(comparison.methods.values())) as workers,
        Task("comparing", len(starts) + len(runs), "runs") as task,
    ):
        for work, calls in ((make_start, starts), (run_method, runs)):
            for line in workers.each(work, calls):
                say(line)
                task.add()
    written = write_comparison(comparison.output_dir, list(comparison.configs), comparison.seeds)
    return [*written, write_report([comparison.output_dir])]


class _Workers:
    """Runs calls in this process, or in `jobs` processes that divide its threads."""

    def __init__(self, jobs: int, methods: list[str]):
        threads = max(1, torch.get_num_threads() // jobs)
        self.pool = ProcessPoolExecutor(jobs, get_context("spawn"), _begin, (threads, methods)) if jobs > 1 else None

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def each(self, work: Callable[..., str], calls: Sequence[tuple[Any, ...]]) -> Iterator[str]:
        """The results of the calls, in the order in which they end."""
        if self.pool is None:
            yield from (work(*call) for call in calls)
            return
        futures = [self.pool.submit(work, *call) for call in calls]
        yield from (future.result() for future in as_completed(futures))


def _begin(threads: int, methods: list[str]) -> None:
    """Called in each new process: calls may hold objects of classes in the files of the user's own rows."""
    torch.set_num_threads(threads)
    for method in methods:
        find_method(method)


def make_start(comparison: Comparison, seed: int) -> str:
    """Train and measure the start of a seed. Returns a line about it."""
    folder = comparison.output_dir / f"seed-{seed}" / START
    config = _evaluation_config(comparison, seed)
    settings = _start_settings(comparison, seed)
    if not is_finished(folder, settings):
        demonstrations, _, held_out = _data(comparison, seed)
        seconds = 0.0
        if comparison.sft is not None:
            sft = comparison.sft[1].model_copy(update={"seed": seed, "output_dir": str(folder / "model")})
            model, tokenizer = comparison.run.model, None
            if comparison.chains is not None:
                tokenizer = build_tokenizer()
                model = build_model(tokenizer, seed)
            trainer = Trainer(
                model,
                None,
                sft,
                demonstrations,
                processing_class=tokenizer,
                callbacks=[silent_display()],
                method="sft",
            )
            trainer.train(resume_from_checkpoint=can_resume(folder / "model"))
            seconds = sum(series(read_metrics(folder / "model"), "seconds/step")[1])
        measured = measure(comparison, _start_model(comparison, seed), held_out, config)
        finish(folder, {"method": START, "seed": seed, "completions": 0, "seconds": seconds, **measured})
    return _line(folder)


def run_method(comparison: Comparison, method: str, seed: int) -> str:
    """Train and measure one method from the start of a seed. Returns a line about it."""
    folder = comparison.output_dir / f"seed-{seed}" / method
    config = comparison.configs[method].model_copy(update={"seed": seed, "output_dir": str(folder)})
    rewards = comparison.rewards[method]
    settings = settings_of(
        comparison.run, config, reward_funcs=rewards, start=_start_settings(comparison, seed), budget=comparison.budget
    )
    if not is_finished(folder, settings):
        _, rows, held_out = _data(comparison, seed)
        start = _start_model(comparison, seed)
        if not isinstance(config, OnlineConfig):
            rows = _visited(comparison, start, rows, config)
        preparation = PreparationTime(folder)
        callbacks = [preparation, silent_display()]
        trainer = Trainer(
            start, rewards, config, rows, held_out, callbacks=callbacks, method=comparison.methods[method]
        )
        component = component_of(comparison.correct)
        assert trainer.rewards is not None
        if component not in trainer.rewards.names:
            raise UserError(
                f"{method}: its reward_funcs lack {comparison.correct!r}, which `correct` names: add it (with "
                "weight: 0 if it is to be logged only)"
            )
        reset_peak(trainer.policy.device)
        preparation.started = time.perf_counter()
        trainer.train(resume_from_checkpoint=can_resume(folder))
        trained = {
            "method": method,
            "seed": seed,
            "peak_bytes": peak_bytes(trainer.policy.device),
            "training_bytes": training_bytes(trainer),
            "seconds": preparation.total() + sum(series(read_metrics(folder), "seconds/step")[1]),
            **curve(comparison, folder, config, component),
        }
        del trainer
        measured = measure(comparison, str(folder), held_out, _evaluation_config(comparison, seed))
        finish(folder, {**measured, **trained})
    return _line(folder)


def _data(comparison: Comparison, seed: int) -> tuple[list[Row], list[Row], list[Row]]:
    """(demonstrations, rows to train on, held-out rows)."""
    if comparison.chains is not None:
        chains = comparison.chains
        teacher = Teacher(seed, chains.mistaught, chains.rate)
        held_out = comparison.run.eval_samples or 0
        parts = make_chains(chains.operations, chains.problems, held_out, seed, teacher)
        demonstrations, rows, held = (load_rows(part) for part in parts)
        return demonstrations, rows, held
    # One seed for all runs, so that val_size holds out the same rows.
    rows, held_rows = configured_rows(comparison.run, comparison.shared.seed)
    assert held_rows is not None
    if comparison.sft is None or comparison.sft[0] == comparison.run:
        return rows, rows, held_rows
    of_sft = comparison.sft[0].model_copy(update={"eval_dataset": None, "val_size": 0.0})
    return configured_rows(of_sft, comparison.shared.seed)[0], rows, held_rows


def _visited(comparison: Comparison, start: str, rows: list[Row], config: Any) -> list[Row]:
    """The rows that an online method would visit. The start is sampled on them, so that all methods see the same
    prompts."""
    usable = [prompt.row for prompt in LoadedModel(start, config).encode(rows)]
    count = comparison.budget // config.num_generations
    return [usable[i] for i in picks(len(usable), 0, count, config.seed, config.shuffle_dataset)]


def _start_model(comparison: Comparison, seed: int) -> str:
    return (
        comparison.run.model
        if comparison.sft is None
        else str(comparison.output_dir / f"seed-{seed}" / START / "model")
    )


def _start_settings(comparison: Comparison, seed: int) -> dict[str, Any]:
    chains = None if comparison.chains is None else comparison.chains.model_dump()
    measures = {"correct": comparison.correct, "final_generations": comparison.final_generations, "chains": chains}
    evaluation = {f"evaluation.{key}": value for key, value in _evaluation_settings(comparison).items()}
    if comparison.sft is None:
        return {**settings_of(comparison.run, TrainingConfig(seed=seed)), **measures, **evaluation}
    return {
        **settings_of(comparison.sft[0], comparison.sft[1].model_copy(update={"seed": seed})),
        **measures,
        **evaluation,
    }


def _evaluation_settings(comparison: Comparison) -> dict[str, Any]:
    keys = {"temperature", "eval_temperature", "num_generations_eval", "max_completion_length", "top_p", "top_k"}
    return comparison.shared.model_dump(include={*keys, "min_p", "stop"})


def _evaluation_config(comparison: Comparison, seed: int) -> OnlineConfig:
    return comparison.shared.model_copy(update={"seed": seed})


def _line(folder: Path) -> str:
    result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    return (
        f"seed {result['seed']}, {result['method']}: {result['accuracy']:.1%} of {result['problems']} held-out "
        f"problems after {result['completions']} completions, {result['seconds']:.0f} s"
    )
