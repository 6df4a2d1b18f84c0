"""The training loop: one for every method, and for reward models."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.profiler import record_function

from cohort.config import TrainingConfig
from cohort.policy import ranks
from cohort.train import sharded
from cohort.train.learners import Learners, StepUpdater
from cohort.train.measured import choose
from cohort.train.nonfinite import count_skipped, keep_batch
from cohort.train.output import checkpoint, folders
from cohort.train.output.checkpoint import Companion, Progress
from cohort.train.output.environment import record_start
from cohort.train.output.group_record import About
from cohort.train.output.record import RECORDS, Recorder, rounded
from cohort.train.ranks import require_same_batch
from cohort.train.saving import Best, SavingClock
from cohort.train.schedule import interval, learning_rate_factor
from cohort.train.signals import Asked, asked_to_end
from cohort.train.sources.source import Source, extremes
from cohort.train.weights import active_lengths
from cohort.types import Group, NotFinite, TrainerControl, TrainerState, UserError

log = logging.getLogger("cohort")


class Loop:
    """Takes batches from a source and updates what is trained. Its whole state is `progress`: learning rate, order of
    the data and seeds are functions of the step's number."""

    def __init__(
        self,
        learners: Learners,
        source: Source,
        config: TrainingConfig,
        state: TrainerState,
        callbacks: list[Any],
        evaluator: Callable[[TrainerState], dict[str, float]] | None = None,
        about: About | None = None,
    ):
        self.learners, self.source, self.config, self.state = learners, source, config, state
        self.callbacks, self.evaluator, self.control = callbacks, evaluator, TrainerControl()
        state.is_world_process_zero = ranks.is_main()
        self.parts_of_batch, passes = config.batch_uses
        """A sampled batch is used in so many parts, each for one optimiser step, `passes` times."""
        self.updates_per_batch = self.parts_of_batch * passes
        learning_rate_factor(0, 1, config)  # raises UserError for bad schedule settings before anything is sampled
        self.progress = Progress(token_budget=config.token_budget, batch_size=config.batch_size)
        self.output_dir = Path(config.output_dir)
        self.recorder = Recorder(self.output_dir, ranks.is_main(), about)
        self.clock = SavingClock(None if config.save_strategy == "no" else config.save_minutes)
        self.best = Best(self.output_dir, config.keep_best)
        self.asked = Asked()
        self.resumed_from: Path | None = None
        self.stopped_by = ""
        """The callback that stopped the run."""

    @property
    def updater(self) -> StepUpdater:
        return self.learners.updater

    @property
    def companions(self) -> Sequence[Companion]:
        return self.learners.companions

    @property
    def total(self) -> int:
        """Optimiser steps of the run; known once the source is prepared."""
        batches = math.ceil(self.config.num_train_epochs * self.source.size / self.source.per_batch)
        return self.config.max_steps if self.config.max_steps > 0 else batches * self.updates_per_batch

    def resume(self, path: Path) -> None:
        """Continue from a checkpoint. Raises UserError for a folder that is no checkpoint of this run."""
        learners, batch_size = self.learners, self.config.batch_size
        parts = sharded.has_parts(path)
        if not parts and self.config.distributed == "fsdp2":
            raise UserError(
                f"{path} holds whole weights, and distributed: fsdp2 resumes from parts: resume with distributed: "
                "replicated, or start a run from its model (model_name_or_path)"
            )
        load = sharded.load if parts else checkpoint.load
        self.progress = load(path, learners.trained, self.updater.optimizer, self.companions, learners.iterations)
        require_same_batch(self.progress.batch_size, self.config)
        self.progress.batch_size = batch_size
        self.updater.token_budget = self.progress.token_budget
        self.updater.state.update(self.progress.updater)
        if learners.health is not None:
            learners.health.restore(self.progress.health)
        self.resumed_from = path
        log.info("resumed from %s at step %d", path, self.progress.step)

    def run(self) -> None:
        """Train to the last step; evaluate, record and save on the way."""
        if ranks.is_main():
            folders.leave_behind(self.output_dir, self.progress.step, RECORDS)
        self.recorder.start(self.progress.step)
        if ranks.is_main():
            record_start(self.output_dir, self.resumed_from)
        self.best.start(self.progress.step)
        warnings = self.recorder.warnings(lambda: self.progress.step + 1)
        with warnings, self._ending(), ranks.collective_passes("training"), asked_to_end() as self.asked:
            self._run()

    def _run(self) -> None:
        self.recorder.settings(self.config)
        self.state.max_steps = self.total
        self._show_progress()
        self.learners.trained.model.train()
        self._call("on_train_begin")
        if self.learners.health is not None:
            self.learners.health.start()
        if self.config.eval_on_start and self.progress.step == 0:
            self._evaluate()
        if self.progress.unfinished:
            self._finish_step()
        while self.progress.step < self.total and not self.control.should_training_stop:
            with self._located():
                metrics = self._step()
            self._log(metrics)
            self._call("on_step_end")
            self.control.should_save |= ranks.is_main() and self.clock.is_due()
            if self._agree():
                self.progress.unfinished = True  # what asks the run to end may not wait for an evaluation
                self._save()
                self._call("on_save")
                self.asked.stop()
            self._finish_step()
        self._call("on_train_end")

    def _finish_step(self) -> None:
        self.progress.unfinished = False
        self._evaluate_if_due()
        self._end_iteration_if_due()
        self._save_if_due()
        self._agree()

    def _agree(self) -> bool:
        """What a callback of one rank asks for, all do. Returns whether a signal asks the run to end."""
        control = self.control
        asked = [control.should_training_stop, control.should_save, control.should_evaluate, self.asked.number > 0]
        *asked, ends = ranks.any_of(asked, "callbacks")
        control.should_training_stop, control.should_save, control.should_evaluate = asked
        return ends

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """Records by what the run ended, an error or Ctrl-C too."""
        by = "error"
        try:
            yield
            by = self.stopped_by if self.progress.step < self.total else "max_steps"
        except BaseException as error:
            by = type(error).__name__
            if isinstance(error, Exception):
                self.recorder.failed(self.progress.step + 1, error)
            raise
        finally:
            self.recorder.ended(self.progress.step, self.total, by)

    @contextmanager
    def _located(self) -> Iterator[None]:
        """Adds to a NotFinite where the run was, what its batch has, and what to do."""
        try:
            yield
        except NotFinite as error:
            batch = [group for group in self.progress.batch or [] if isinstance(group, Group)]
            facts = extremes(batch)
            kept = keep_batch(self.output_dir, self.progress.step + 1, batch) if ranks.is_main() else None
            raise NotFinite(
                f"step {self.progress.step + 1}: {error}."
                + (f" The batch has {facts}." if facts else "")
                + (f" It is in {kept}." if kept else "")
                + " Causes "
                "are a learning rate that is too high, rewards without a bound, clipping that is off (max_grad_norm: "
                "0) and half precision. on_nonfinite: skip leaves out updates with such a gradient. "
                + folders.where_to_resume(self.output_dir)
            ) from error

    def _step(self) -> dict[str, float]:
        """One optimiser step on the current batch, or on a new one if the last has been used up; returns its
        metrics."""
        started = time.perf_counter()
        progress = self.progress
        ranks.at_step(progress.step + 1)
        index, use = divmod(progress.step, self.updates_per_batch)
        activations = None
        if progress.batch is None:
            progress.batch, progress.batch_metrics, activations, dropped = self.source.batch(index, self.state)
            progress.num_tokens += sum(group.tokens for group in progress.batch)
            self._record_batch(progress.batch, dropped)
        groups = self._part(progress.batch, use % self.parts_of_batch)
        generation_tokens = float(active_lengths(progress.batch, self.config).sum()) / self.parts_of_batch
        factor = learning_rate_factor(progress.step, self.total, self.config)
        rate = factor * self.config.learning_rate
        before_update = time.perf_counter()
        with record_function("update"):
            update = self.updater.step(groups, generation_tokens, rate, activations)
            for companion in self.companions:
                update |= companion.step(groups, generation_tokens, factor)
        count_skipped(progress, bool(update.get("update_skipped")), self.config)
        ended = time.perf_counter()
        metrics = {**(progress.batch_metrics or {}), **update, "learning_rate": rate}
        metrics["seconds/update"] = ended - before_update
        metrics["seconds/step"] = ended - started
        metrics["num_tokens"] = progress.num_tokens
        if self.learners.health is not None:
            rising = factor > learning_rate_factor(max(0, progress.step - 1), self.total, self.config)
            metrics |= self.learners.health.movement(groups, progress.step, rising)
        metrics["tokens_per_second"] = sum(group.tokens for group in groups) / (ended - started)
        progress.step += 1
        self.recorder.groups(progress.step, [group for group in groups if isinstance(group, Group)], self.config)
        progress.token_budget, progress.updater = self.updater.token_budget, self.updater.state
        if progress.step % self.updates_per_batch == 0:
            progress.batch = progress.batch_metrics = None
        self._show_progress()
        return metrics

    def _show_progress(self) -> None:
        """Set the step, and the passes over the data, that callbacks see."""
        step = self.state.global_step = self.progress.step
        self.state.epoch = step / self.updates_per_batch * self.source.per_batch / self.source.size

    def _part(self, batch: list[Group], index: int) -> list[Group]:
        size = math.ceil(len(batch) / self.parts_of_batch)
        return batch[index * size : (index + 1) * size]

    def _record_batch(self, batch: list[Any], dropped: Sequence[Group]) -> None:
        """Record a new batch; what its first update says of some groups is recorded after it. A reward model's batches
        have no groups."""
        step, groups = self.progress.step + 1, [group for group in batch if isinstance(group, Group)]
        self.recorder.completions(step, groups, self.config.logged_completions)
        self.recorder.rows(step, groups, dropped)
        choose(self._part(groups, 0), self.config.logged_groups)

    def _record(self, metrics: dict[str, float]) -> dict[str, float]:
        """Write a row of metrics.jsonl and return it."""
        row = rounded({"step": self.progress.step, "epoch": self.state.epoch, **metrics})
        self.recorder.metrics(row)
        self.state.log_history.append(row)
        return row

    def _log(self, metrics: dict[str, float]) -> None:
        row = self._record(metrics)
        if self.learners.health is not None:
            self.learners.health.see_step(row)
        if self.progress.step % self._steps(self.config.logging_steps) == 0 or self.progress.step == self.total:
            self._call("on_log", logs=row)

    def _evaluate_if_due(self) -> None:
        due = self._is_due(self.config.eval_strategy, self.config.eval_steps)
        last = self.config.eval_strategy != "no" and self.progress.step == self.total
        if due or last or self.control.should_evaluate:
            self._evaluate()
            self.control.should_evaluate = False

    def _evaluate(self) -> None:
        if self.evaluator is not None:
            metrics = self._record(self.evaluator(self.state))
            self.control.should_save |= self.best.see(self.progress.step, metrics) and self.progress.step > 0
            self._call("on_evaluate", metrics=metrics)

    def _end_iteration_if_due(self) -> None:
        """After the iteration's last evaluation and before its last checkpoint."""
        iterations = self.learners.iterations
        metrics = {} if iterations is None else iterations.end_of_step(self.progress.step)
        if metrics:
            self._record(metrics)

    def _save_if_due(self) -> None:
        if self._is_due(self.config.save_strategy, self.config.save_steps) or self.control.should_save:
            self._save()
            self.control.should_save = False
            self._call("on_save")

    def _save(self) -> None:
        with self.clock.saving():
            self._write_checkpoint()
        if ranks.is_main():
            self.best.saved()
            folders.prune(self.output_dir, self.config.save_total_limit, self.best.spared)

    def _write_checkpoint(self) -> None:
        learners, folder, facts = self.learners, self.output_dir, self.learners.facts
        trained, optimizer, iterations = learners.trained, self.updater.optimizer, learners.iterations
        if learners.health is not None:
            self.progress.health = learners.health.state()
        if self.config.distributed == "fsdp2":
            sharded.save(folder, trained, optimizer, self.progress, iterations, facts, self.config.save_only_model)
        elif not ranks.is_main():
            return
        elif self.config.save_only_model:
            checkpoint.save_model_only(folder, trained, self.progress.step, facts)
        else:
            checkpoint.save(folder, trained, optimizer, self.progress, facts, self.companions, iterations)

    def _steps(self, every: float) -> int:
        """Steps between two events of the configuration; 0: never."""
        return interval(every, self.total)

    def _is_due(self, strategy: str, every: float) -> bool:
        """Whether something happens after this step: `steps`, each `every` steps; `epoch`, after each pass over the
        data."""
        step, steps = self.progress.step, self._steps(every)
        if strategy == "epoch":
            return self._passes(step) > self._passes(step - 1)
        return strategy == "steps" and steps > 0 and step % steps == 0

    def _passes(self, step: int) -> int:
        """Complete passes over the data after so many steps."""
        return step // self.updates_per_batch * self.source.per_batch // self.source.size

    def _call(self, event: str, **details: Any) -> None:
        for callback in self.callbacks:
            method = getattr(callback, event, None)
            if method is not None:
                method(self.config, self.state, self.control, model=self.learners.trained.model, **details)
            if self.control.should_training_stop and not self.stopped_by:
                self.stopped_by = getattr(callback, "stops_by", type(callback).__name__)
