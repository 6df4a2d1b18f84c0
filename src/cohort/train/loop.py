"""The training loop: one for every method."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch.profiler import record_function

from cohort.config import TrainingConfig
from cohort.policy.model import Policy
from cohort.train.iterations.iterations import Iterations
from cohort.train.output import checkpoint
from cohort.train.output.checkpoint import Companion, Progress
from cohort.train.output.record import Recorder, rounded
from cohort.train.schedule import interval, share
from cohort.train.sources.source import Source
from cohort.train.step import Updater, active_lengths
from cohort.types import Group, TrainerControl, TrainerState

log = logging.getLogger("cohort")


class Loop:
    """Draws batches from a source and updates the policy: the step's number says everything about where it is."""

    def __init__(
        self,
        policy: Policy,
        updater: Updater,
        source: Source,
        evaluator: Callable[[TrainerState], dict[str, float]] | None,
        config: TrainingConfig,
        callbacks: list[Any],
        state: TrainerState,
        companions: Sequence[Companion] = (),
        iterations: Iterations | None = None,
    ):
        self.policy, self.updater, self.source, self.evaluator = policy, updater, source, evaluator
        self.config, self.callbacks, self.state, self.control = config, callbacks, state, TrainerControl()
        self.companions, self.iterations = companions, iterations
        self.chunks, passes = config.batch_uses
        self.updates_per_batch = self.chunks * passes
        self.log_completions = config.logged_completions
        share(0, 1, config)  # settings that the schedule refuses are told before anything is sampled
        self.progress = Progress(token_budget=config.token_budget)
        self.output_dir = Path(config.output_dir)

    @property
    def total(self) -> int:
        """Optimiser steps of the run; known once the source is prepared."""
        batches = math.ceil(self.config.num_train_epochs * self.source.size / self.source.per_batch)
        return self.config.max_steps if self.config.max_steps > 0 else batches * self.updates_per_batch

    def resume(self, path: Path) -> None:
        self.progress = checkpoint.load(path, self.policy, self.updater.optimizer, self.companions, self.iterations)
        self.updater.token_budget = self.progress.token_budget
        log.info("resumed from %s at step %d", path, self.progress.step)

    def run(self) -> None:
        """Train to the last step, evaluating, recording and saving on the way."""
        self.recorder = Recorder(self.output_dir, self.progress.step)
        config, total = self.config, self.total
        self.log_every, self.save_every, self.eval_every = (
            interval(every, total) for every in (config.logging_steps, config.save_steps, config.eval_steps)
        )
        self.state.max_steps, self.state.global_step = total, self.progress.step
        self.policy.model.train()
        self._call("on_train_begin")
        if self.config.eval_on_start and self.progress.step == 0:
            self._evaluate()
        while self.progress.step < self.total and not self.control.should_training_stop:
            metrics = self._step()
            self._log(metrics)
            self._call("on_step_end")
            self._evaluate_if_due()
            self._turn()
            self._save_if_due()
        self._call("on_train_end")

    def _step(self) -> dict[str, float]:
        """One optimiser step on the current batch, a new one drawn where the last is used up."""
        started = time.perf_counter()
        progress = self.progress
        index, use = divmod(progress.step, self.updates_per_batch)
        activations = None
        if progress.batch is None:
            progress.batch, progress.batch_metrics, activations = self.source.batch(index, self.state)
            progress.num_tokens += sum(group.tokens for group in progress.batch)
            self.recorder.completions(progress.step + 1, progress.batch, self.log_completions)
        groups = self._chunk(progress.batch, use % self.chunks)
        generation_tokens = float(active_lengths(progress.batch, self.config).sum()) / self.chunks
        of_highest = share(progress.step, self.total, self.config)
        rate = of_highest * self.config.learning_rate
        before_update = time.perf_counter()
        with record_function("update"):
            update = self.updater.step(groups, generation_tokens, rate, activations)
            for companion in self.companions:
                update |= companion.step(groups, generation_tokens, of_highest)
        ended = time.perf_counter()
        metrics = {**(progress.batch_metrics or {}), **update, "learning_rate": rate}
        metrics["seconds/update"] = ended - before_update
        metrics["seconds/step"] = ended - started
        metrics["num_tokens"] = progress.num_tokens
        metrics["tokens_per_second"] = sum(group.tokens for group in groups) / (ended - started)
        progress.step += 1
        progress.token_budget = self.updater.token_budget
        if progress.step % self.updates_per_batch == 0:
            progress.batch = progress.batch_metrics = None
        self.state.global_step = progress.step
        self.state.epoch = progress.step / self.updates_per_batch * self.source.per_batch / self.source.size
        return metrics

    def _chunk(self, batch: list[Group], index: int) -> list[Group]:
        size = math.ceil(len(batch) / self.chunks)
        return batch[index * size : (index + 1) * size]

    def _log(self, metrics: dict[str, float]) -> None:
        row = rounded({"step": self.progress.step, "epoch": self.state.epoch, **metrics})
        self.recorder.metrics(row)
        self.state.log_history.append(row)
        if self.progress.step % self.log_every == 0 or self.progress.step == self.total:
            self._call("on_log", logs=row)

    def _evaluate_if_due(self) -> None:
        due = self._due(self.config.eval_strategy, self.eval_every)
        last = self.config.eval_strategy != "no" and self.progress.step == self.total
        if due or last or self.control.should_evaluate:
            self._evaluate()
            self.control.should_evaluate = False

    def _evaluate(self) -> None:
        if self.evaluator is None:
            return
        row = rounded({"step": self.progress.step, "epoch": self.state.epoch, **self.evaluator(self.state)})
        self.recorder.metrics(row)
        self.state.log_history.append(row)
        self._call("on_evaluate", metrics=row)

    def _turn(self) -> None:
        """End an iteration where it is due: after its last evaluation, before its last checkpoint."""
        found = {} if self.iterations is None else self.iterations.turn(self.progress.step)
        if found:
            row = rounded({"step": self.progress.step, "epoch": self.state.epoch, **found})
            self.recorder.metrics(row)
            self.state.log_history.append(row)

    def _save_if_due(self) -> None:
        if self._due(self.config.save_strategy, self.save_every) or self.control.should_save:
            self._save()
            self.control.should_save = False
            self._call("on_save")

    def _save(self) -> None:
        if self.config.save_only_model:
            checkpoint.save_policy(self.policy, self.output_dir / f"checkpoint-{self.progress.step}")
            checkpoint.prune(self.output_dir, self.config.save_total_limit)
            return
        checkpoint.save(
            self.output_dir,
            self.policy,
            self.updater.optimizer,
            self.progress,
            self.config.save_total_limit,
            self.companions,
            self.iterations,
        )

    def _due(self, strategy: str, every: int) -> bool:
        """Whether this step is one of every so many, or the last of a pass over the data."""
        step = self.progress.step
        if strategy == "epoch":
            return self._passes(step) > self._passes(step - 1)
        return strategy == "steps" and every > 0 and step % every == 0

    def _passes(self, step: int) -> int:
        return step // self.updates_per_batch * self.source.per_batch // self.source.size

    def _call(self, event: str, **details: Any) -> None:
        for callback in self.callbacks:
            method = getattr(callback, event, None)
            if method is not None:
                method(self.config, self.state, self.control, model=self.policy.model, **details)
