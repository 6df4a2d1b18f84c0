"""`cohort compare`: methods trained from the same start with the same number of sampled completions.

    output_dir/seed-0/start/result.json     the start, measured
    output_dir/seed-0/start/model/          where `sft:` makes it
    output_dir/seed-0/grpo/                 an ordinary run's folder with a result.json

A folder with a result.json is finished and never trained again; one without goes on from its checkpoint.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from cohort.compare.config import Plan, settings_of
from cohort.compare.folder import Prepared, begun, finish, finished
from cohort.compare.measure import component_of, curve, measure, training_bytes
from cohort.config import OnlineConfig, TrainingConfig
from cohort.data.chains import Teacher, build_model, build_tokenizer, make_chains
from cohort.data.configured import configured_rows
from cohort.data.order import picks
from cohort.data.rows import load_rows
from cohort.evaluation.loaded_model import LoadedModel
from cohort.policy.memory import peak_bytes, reset_peak
from cohort.report.comparison import RESULT, START, write_comparison
from cohort.report.metrics import read_metrics, series
from cohort.train.trainer import Trainer
from cohort.types import Row, UserError


def run_comparison(plan: Plan, jobs: int, say: Callable[[str], None]) -> list[Path]:
    """Run what is not finished yet, `jobs` runs side by side, and write tables and plots. Returns their paths."""
    plan.output_dir.mkdir(parents=True, exist_ok=True)
    with _Workers(jobs) as workers:
        for done in workers.each(make_start, [(plan, seed) for seed in plan.seeds]):
            say(done)
        for done in workers.each(run_method, [(plan, name, seed) for seed in plan.seeds for name in plan.configs]):
            say(done)
    return write_comparison(plan.output_dir, list(plan.configs), plan.seeds)


class _Workers:
    """Calls in this process, or in `jobs` processes that share its threads."""

    def __init__(self, jobs: int):
        threads = max(1, torch.get_num_threads() // jobs)
        self.pool = (
            ProcessPoolExecutor(jobs, get_context("spawn"), torch.set_num_threads, (threads,)) if jobs > 1 else None
        )

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def each(self, work: Callable[..., str], calls: Sequence[tuple[Any, ...]]) -> Any:
        """What each call returns, as they end."""
        if self.pool is None:
            yield from (work(*call) for call in calls)
            return
        futures = [self.pool.submit(work, *call) for call in calls]
        yield from (future.result() for future in as_completed(futures))


def make_start(plan: Plan, seed: int) -> str:
    """Train and measure what all methods of a seed start from. Returns a line about it."""
    folder = plan.output_dir / f"seed-{seed}" / START
    config = _evaluation_config(plan, seed)
    settings = _start_settings(plan, seed)
    if not finished(folder, settings):
        demonstrations, _, held_out = _data(plan, seed)
        seconds = 0.0
        if plan.sft is not None:
            sft = plan.sft[1].model_copy(update={"seed": seed, "output_dir": str(folder / "model")})
            model, tokenizer = plan.run.model, None
            if plan.chains is not None:
                tokenizer = build_tokenizer()
                model = build_model(tokenizer, seed)
            trainer = Trainer(model, None, sft, demonstrations, processing_class=tokenizer, method="sft")
            trainer.train(resume_from_checkpoint=begun(folder / "model"))
            seconds = sum(series(read_metrics(folder / "model"), "seconds/step")[1])
        found = measure(plan, _start_model(plan, seed), held_out, config)
        finish(folder, {"method": START, "seed": seed, "completions": 0, "seconds": seconds, **found})
    return _line(folder)


def run_method(plan: Plan, method: str, seed: int) -> str:
    """Train and measure one method from the start of its seed. Returns a line about it."""
    folder = plan.output_dir / f"seed-{seed}" / method
    config = plan.configs[method].model_copy(update={"seed": seed, "output_dir": str(folder)})
    rewards = plan.rewards[method]
    settings = settings_of(
        plan.run, config, reward_funcs=rewards, start=_start_settings(plan, seed), budget=plan.budget
    )
    if not finished(folder, settings):
        _, rows, held_out = _data(plan, seed)
        start = _start_model(plan, seed)
        if not isinstance(config, OnlineConfig):
            rows = _visited(plan, start, rows, config)
        prepared = Prepared(folder)
        trainer = Trainer(start, rewards, config, rows, held_out, callbacks=[prepared], method=method)
        component = component_of(plan.correct)
        assert trainer.rewards is not None
        if component not in trainer.rewards.names:
            raise UserError(
                f"{method}: its reward_funcs lack {plan.correct!r}, which `correct` names: add it (weight: 0 where it "
                "is not to count)"
            )
        reset_peak(trainer.policy.device)
        prepared.started = time.perf_counter()
        trainer.train(resume_from_checkpoint=begun(folder))
        found = {
            "method": method,
            "seed": seed,
            "peak_bytes": peak_bytes(trainer.policy.device),
            "training_bytes": training_bytes(trainer),
            "seconds": prepared.total() + sum(series(read_metrics(folder), "seconds/step")[1]),
            **curve(plan, folder, config, component),
        }
        del trainer
        measured = measure(plan, str(folder), held_out, _evaluation_config(plan, seed))
        finish(folder, {**measured, **found})
    return _line(folder)


def _data(plan: Plan, seed: int) -> tuple[list[Row], list[Row], list[Row]]:
    """(demonstrations, rows to train on, held-out rows)."""
    if plan.chains is not None:
        chains = plan.chains
        teacher = Teacher(seed, chains.mistaught, chains.rate)
        held_out = plan.run.eval_samples or 0
        found = make_chains(chains.operations, chains.problems, held_out, seed, teacher)
        demonstrations, rows, held = (load_rows(part) for part in found)
        return demonstrations, rows, held
    # One seed for all runs: what val_size holds out is the same.
    rows, held = configured_rows(plan.run, plan.shared.seed)
    assert held is not None
    if plan.sft is None or plan.sft[0] == plan.run:
        return rows, rows, held
    of_sft = plan.sft[0].model_copy(update={"eval_dataset": None, "val_size": 0.0})
    return configured_rows(of_sft, plan.shared.seed)[0], rows, held


def _visited(plan: Plan, start: str, rows: list[Row], config: Any) -> list[Row]:
    """The rows that an online method would visit, so that the starting model is sampled on the same prompts."""
    usable = [prompt.row for prompt in LoadedModel(start, config).encode(rows)]
    count = plan.budget // config.num_generations
    return [usable[i] for i in picks(len(usable), 0, count, config.seed, config.shuffle_dataset)]


def _start_model(plan: Plan, seed: int) -> str:
    return plan.run.model if plan.sft is None else str(plan.output_dir / f"seed-{seed}" / START / "model")


def _start_settings(plan: Plan, seed: int) -> dict[str, Any]:
    chains = None if plan.chains is None else plan.chains.model_dump()
    measure = {"correct": plan.correct, "final_generations": plan.final_generations, "chains": chains}
    evaluation = {f"evaluation.{key}": value for key, value in _evaluation_settings(plan).items()}
    if plan.sft is None:
        return {**settings_of(plan.run, TrainingConfig(seed=seed)), **measure, **evaluation}
    return {**settings_of(plan.sft[0], plan.sft[1].model_copy(update={"seed": seed})), **measure, **evaluation}


def _evaluation_settings(plan: Plan) -> dict[str, Any]:
    keys = {"temperature", "eval_temperature", "num_generations_eval", "max_completion_length", "top_p", "top_k"}
    return plan.shared.model_dump(include={*keys, "min_p", "stop"})


def _evaluation_config(plan: Plan, seed: int) -> OnlineConfig:
    return plan.shared.model_copy(update={"seed": seed})


def _line(folder: Path) -> str:
    result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    return (
        f"seed {result['seed']}, {result['method']}: {result['accuracy']:.1%} of {result['problems']} held-out "
        f"problems after {result['completions']} completions, {result['seconds']:.0f} s"
    )
