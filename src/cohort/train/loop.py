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

from cohort.compat.metrics import named_as_in_transformers
from cohort.config import TrainingConfig
from cohort.evaluation.evaluate import Evaluation
from cohort.policy import ranks
from cohort.rewards.component import column_of
from cohort.train.callbacks import Callbacks, RunState, summary
from cohort.train.learners import Learners, StepUpdater
from cohort.train.measured import choose
from cohort.train.nonfinite import count_skipped, located
from cohort.train.output import checkpoint, folders, lines
from cohort.train.output.checkpoint import Companion, Progress
from cohort.train.output.environment import record_start
from cohort.train.output.group_record import About
from cohort.train.output.record import METRICS, RECORDS, Recorder, rounded
from cohort.train.saving import Best, SavingClock
from cohort.train.schedule import Due, learning_rate_factor
from cohort.train.signals import Asked, asked_to_end
from cohort.train.sources.source import Source
from cohort.train.weights import active_lengths
from cohort.types import Group

log = logging.getLogger("cohort")


class Loop:
    """Takes batches from a source and updates what is trained. Its whole state is `progress`: learning rate, order of
    the data and seeds are functions of the step's number."""

    def __init__(
        self,
        learners: Learners,
        source: Source,
        config: TrainingConfig,
        state: RunState,
        callbacks: Sequence[Any],
        evaluator: Callable[[], dict[str, Any]] | None = None,
        about: About | None = None,
        log_row: Callable[[dict[str, Any]], None] | None = None,
    ):
        self.learners, self.source, self.config, self.state = learners, source, config, state
        trained, optimizer = learners.trained, learners.updater.optimizer
        model = trained.model if trained.peft is None else trained.peft
        self.callbacks = Callbacks(callbacks, config, state, model, trained.tokenizer, optimizer)
        self.log = log_row or self.callbacks.log
        self.summary: dict[str, float] = {}
        """What transformers logs of a run that has ended."""
        self.evaluator = evaluator
        state.is_world_process_zero = ranks.is_main()
        self.parts_of_batch, passes = config.batch_uses
        """A sampled batch is used in so many parts, each for one optimiser step, `passes` times."""
        self.updates_per_batch = self.parts_of_batch * passes
        self.due = Due(config, source, self.updates_per_batch)
        learning_rate_factor(0, 1, config)  # raises UserError for bad schedule settings before anything is sampled
        self.progress = Progress(token_budget=config.token_budget, batch_size=config.batch_size)
        self.output_dir = Path(config.output_dir)
        self.recorder = Recorder(self.output_dir, ranks.is_main(), about)
        self.clock = SavingClock(None if config.save_strategy == "no" else config.save_minutes)
        self.best = Best(self.output_dir, config)
        self.asked = Asked()
        self.resumed_from: Path | None = None
        self.score_names = {} if about is None else {column_of(part.name): part.name for part in about.parts}
        """A reward's name in held-out metrics -> its own name."""
        self.losses: list[float] = []
        """Of the steps since the run was started or resumed."""
        self.evaluated: dict[str, float] = {}
        """The rows of metrics.jsonl of the last evaluation, as one."""
        self.running = False

    @property
    def updater(self) -> StepUpdater:
        return self.learners.updater

    @property
    def companions(self) -> Sequence[Companion]:
        return self.learners.companions

    @property
    def total(self) -> int:
        """Optimiser steps of the run; known once the source is prepared."""
        return self.due.total

    def resume(self, path: Path) -> None:
        """Continue from a checkpoint. Raises UserError for a folder that is no checkpoint of this run."""
        self.progress, self.resumed_from = self.learners.load(path, self.config), path
        before = (row for row in lines.rows(self.output_dir / METRICS) if row.get("step", 0) <= self.progress.step)
        self.state.log_history = [named_as_in_transformers(row, self.score_names) for row in before]
        log.info("resumed from %s at step %d", path, self.progress.step)

    def restart(self) -> None:
        """Begin again at step 0, with the weights and the optimiser's state as they are."""
        self.progress = Progress(token_budget=self.updater.token_budget, batch_size=self.config.batch_size)
        self.state.forget()
        self.resumed_from, self.best.record, self.callbacks.stopped_by = None, {}, ""

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
            self.running = True
            self._run()

    def _run(self) -> None:
        self.recorder.settings(self.config)
        started, first = time.monotonic(), self.progress.step
        self.losses = []
        self.state.begin(self.config, self.total)
        self._show_progress()
        self.learners.trained.model.train()
        self.callbacks.call("on_train_begin")
        if self.learners.health is not None:
            self.learners.health.start()
        if self.config.eval_on_start and self.progress.step == 0:
            self._evaluate()
        if self.progress.unfinished:
            self._finish_step()
        self.callbacks.call("on_epoch_begin")
        while self.progress.step < self.total and not self.callbacks.control.should_training_stop:
            self.callbacks.call("on_step_begin")
            with located(self.progress, self.output_dir):
                metrics = self._step()
            row = self._note(metrics)
            self.callbacks.call("on_step_end")
            self.callbacks.control.should_save |= ranks.is_main() and self.clock.is_due()
            if self._agree():
                self.progress.unfinished = True  # what asks the run to end may not wait for an evaluation
                self._save()
                self.callbacks.call("on_save")
                self.asked.stop()
            self._log_if_due(row)
            self._finish_step()
            if self.progress.step < self.total and self.due.ends_pass(self.progress.step):
                self.callbacks.call("on_epoch_end")
                self.callbacks.call("on_epoch_begin")
        self._end(time.monotonic() - started, self.progress.step - first)

    def _end(self, seconds: float, steps: int) -> None:
        """Take the best weights where they are asked for, and log what transformers logs of a run that has ended."""
        best = self.best.checkpoint if self.config.load_best_model_at_end else None
        if best is not None:
            checkpoint.load_weights(best, self.learners.trained)
            log.info("load_best_model_at_end: the model is that of %s", best)
        self.callbacks.call("on_epoch_end")
        self.summary = summary(seconds, steps, self.config.batch_size, self.losses, self.state.epoch)
        self.log({**self.summary})
        self.callbacks.call("on_train_end")

    def _finish_step(self) -> None:
        self.progress.unfinished = False
        self._evaluate_if_due()
        self._end_iteration_if_due()
        self._save_if_due()
        self._agree()

    def _agree(self) -> bool:
        """What a callback of one rank asks for, all do. Returns whether a signal asks the run to end."""
        control = self.callbacks.control
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
            by = self.callbacks.stopped_by if self.progress.step < self.total else "max_steps"
        except BaseException as error:
            by = type(error).__name__
            if isinstance(error, Exception):
                self.recorder.failed(self.progress.step + 1, error)
            raise
        finally:
            self.running = False
            self.recorder.ended(self.progress.step, self.total, by)

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
        return row

    def _note(self, metrics: dict[str, float]) -> dict[str, float]:
        """Record a step's metrics; log_history has every step, also those that on_log does not show."""
        row = named_as_in_transformers(self._record(metrics), self.score_names)
        self.state.log_history.append(row)
        if "loss" in row:
            self.losses.append(row["loss"])
        if self.learners.health is not None:
            self.learners.health.see_step(row)
        return row

    def _log_if_due(self, row: dict[str, float]) -> None:
        step, history = self.progress.step, self.state.log_history
        due = self.due.by("steps", self.config.logging_steps, step)
        if due or step == self.total or self.callbacks.control.should_log:
            if history and history[-1] is row:  # log adds it again
                history.pop()
            self.log(row)

    def _evaluate_if_due(self) -> None:
        due = self.due.by(self.config.eval_strategy, self.config.eval_steps, self.progress.step)
        last = self.config.eval_strategy != "no" and self.progress.step == self.total
        if due or last or self.callbacks.control.should_evaluate:
            self._evaluate()
            self.callbacks.control.should_evaluate = False

    def _evaluate(self) -> None:
        if self.evaluator is None:
            return
        self.evaluated = {}
        metrics = self.evaluator()
        # After on_evaluate, as in transformers: EarlyStoppingCallback compares with the best one before.
        if self.best.see(self.progress.step, self.evaluated | metrics):
            self.state.take_best(self.best.record, self.output_dir)
            self.callbacks.control.should_save |= self.progress.step > 0 and self.config.save_strategy != "no"

    def tell(
        self, metrics: dict[str, float], prefix: str, speed: dict[str, float], sampled: Evaluation | None = None
    ) -> dict[str, Any]:
        """Record an evaluation and what it sampled, where the run is going on, and tell the callbacks; returns its
        metrics, whose names begin with the prefix, under transformers' names, and its speed."""
        if sampled is not None and self.running:
            self.recorder.held_out(self.progress.step, sampled)
        row = self._record(metrics) if self.running else metrics
        self.evaluated |= row
        named = {"epoch": self.state.epoch, **named_as_in_transformers(row, self.score_names, prefix), **speed}
        self.log(named)
        self.callbacks.call("on_evaluate", metrics=named, row=row)
        return named

    def _end_iteration_if_due(self) -> None:
        """After the iteration's last evaluation and before its last checkpoint."""
        iterations = self.learners.iterations
        metrics = {} if iterations is None else iterations.end_of_step(self.progress.step)
        if metrics:
            self._record(metrics)

    def _save_if_due(self) -> None:
        due = self.due.by(self.config.save_strategy, self.config.save_steps, self.progress.step)
        if due or self.callbacks.control.should_save:
            self._save()
            self.callbacks.control.should_save = False
            self.callbacks.call("on_save")

    def _save(self) -> None:
        with self.clock.saving():
            self.learners.save(self.output_dir, self.progress, self.config)
        if ranks.is_main():
            self.best.saved()
            folders.prune(self.output_dir, self.config.save_total_limit, self.best.spared)
