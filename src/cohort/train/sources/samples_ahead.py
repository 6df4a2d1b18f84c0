"""The rewarded samples of older weights as a source: sampling goes on while others are learned."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from threading import Thread
from typing import Any, cast

from cohort.data.order import derive, prompt_seeds
from cohort.policy import ranks
from cohort.rollouts.collect import Round
from cohort.rollouts.engine import Engine
from cohort.rollouts.following import Following
from cohort.rollouts.segments import Segments, begun
from cohort.train.output.sampled import Sampled
from cohort.train.sources.samples import Samples
from cohort.train.sources.source import Batch
from cohort.types import Completion, TrainerState, UserError


def require_ahead(staleness: int, engine: Engine) -> None:
    """Raise UserError where the engine cannot sample while the policy is trained."""
    if ranks.count() > 1:
        raise UserError(
            f"staleness is {staleness}, and {ranks.count()} ranks train: they would sample and sum gradients at the "
            "same time. Use staleness: 0, or one process"
        )
    if not (isinstance(engine, Following) and hasattr(engine.engine, "present")):
        raise UserError(
            f"staleness is {staleness}, and this engine samples the weights that are trained, in turn with training: "
            "use staleness: 0, or an engine outside this process, such as engine: {ray: {workers: 2}}"
        )


class SamplesAhead(Samples):
    """Asks for batch i + staleness when batch i is taken, with the weights of that moment. Which weights sample a batch
    is a matter of its number, and not of who is faster; no batch is left out.

    With `partial_rollouts` that batch gets its first segment then, and each later one when the next batch is taken, in
    one call with the segments of other batches. Those that a run begins with are sampled at once."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.pending: dict[int, Future[dict[int, Sampled]]] = {}
        """The number of a batch -> what is sampled together with it."""
        self.begun: list[int] = []
        """Of them, those whose last segment has not been asked for."""
        self.next = 0

    def batch(self, index: int, state: TrainerState) -> Batch:
        if index != self.next:  # a run that begins again
            self.pending, self.begun = {}, []
        self._ask(index, state)
        started = time.perf_counter()
        sampled = self.pending.pop(index).result()[index]
        waited = time.perf_counter() - started
        self.next = index + 1
        batch = self.finished(sampled, state)
        batch.metrics.update(self._ages([c for group in sampled.groups for c in group.completions]))
        batch.metrics["seconds/wait"] = waited
        return batch

    def _ages(self, completions: list[Completion]) -> dict[str, float]:
        segments = [pair for c in completions for pair in c.segments or [(c.version, len(c.ids))]]
        age = sum((self.policy.version - version) * tokens for version, tokens in segments)
        metrics = {"sampling/staleness": age / max(1, sum(tokens for _, tokens in segments))}
        if self.config.partial_rollouts is not None:
            metrics["sampling/continued"] = sum(len(c.segments) > 1 for c in completions) / len(completions)
        return metrics

    def _ask(self, index: int, state: TrainerState) -> None:
        """Ask for the batches up to `index` + staleness that the run has, where they are not asked for yet, and for the
        next segment of those that are begun."""
        end = index + self.config.staleness + 1
        if state.max_steps > 0:  # else the run's length is not known
            end = min(end, math.ceil(state.max_steps / math.prod(self.config.batch_uses)))
        missing = [number for number in range(index, max(end, index + 1)) if number not in self.pending]
        if self.config.partial_rollouts is not None and index + self.config.staleness in missing:
            self.begun.append(missing.pop())
        if not (missing or self.begun):
            return
        engine = cast(Following, self.engine).present()
        for number in missing:
            # A copy: reward functions read the state of the moment at which the batch was asked for.
            self._start([number], partial(self._whole, number, copy.copy(state), engine))
        if self.begun:
            before = {number: self.pending.get(number) for number in self.begun}
            self._start(self.begun, partial(self._segments, index, copy.copy(state), engine, before))
            self.begun = [number for number in self.begun if number > index + 1]

    def _start(self, numbers: list[int], work: Callable[[], dict[int, Sampled]]) -> None:
        # In their order: the next batch of the run is the first that is sampled.
        future = _started(work, list(self.pending.values()))
        self.pending |= dict.fromkeys(numbers, future)

    def _whole(self, number: int, state: TrainerState, engine: Engine) -> dict[int, Sampled]:
        return {number: self.sampled(number, state, engine)}

    def _segments(
        self, index: int, state: TrainerState, engine: Engine, before: dict[int, Future[dict[int, Sampled]] | None]
    ) -> dict[int, Sampled]:
        """One more segment of these batches, and the rewards of the one that is taken next, whose last one it is."""
        batches = {n: self._begun(n) if future is None else future.result()[n] for n, future in before.items()}
        seeds = [seed for n in batches for seed in prompt_seeds(derive(self.config.seed, n), self.per_batch)]
        groups = [group for batch in batches.values() for group in batch.groups]
        assert self.config.partial_rollouts is not None
        segments = Segments(engine, self.policy, self.sampling, self.config.partial_rollouts, groups, seeds)
        if index + 1 in batches:
            return {**batches, index + 1: self.sampled(index + 1, state, engine, first=segments)}
        segments.sample()
        return batches

    def _begun(self, number: int) -> Sampled:
        groups = begun([self.prompts[i] for i in self.chosen(number)], self.config.num_generations)
        return Sampled([Round(groups, {}, {})], groups, whole=False)

    def finished_ahead(self) -> dict[int, Sampled]:
        """The batches that wait for their turn, for a checkpoint. Waits for those that are being sampled."""
        return {number: future.result()[number] for number, future in self.pending.items()}

    def restore(self, batches: dict[int, Sampled]) -> None:
        """Go on from a checkpoint that has these batches."""
        self.next = min(batches, default=self.next)
        future = Future[dict[int, Sampled]]()
        future.set_result(batches)
        if self.config.partial_rollouts is None:
            batches = {n: batch for n, batch in batches.items() if batch.whole}
        self.begun = [n for n, batch in batches.items() if not batch.whole]
        self.pending = dict.fromkeys(batches, future)


def _started(
    work: Callable[[], dict[int, Sampled]], before: list[Future[dict[int, Sampled]]]
) -> Future[dict[int, Sampled]]:
    """The result of work, in a thread, when that of others is there. The thread does not hold up the end of the
    program, as a ThreadPoolExecutor's does."""
    future = Future[dict[int, Sampled]]()

    def run() -> None:
        try:
            wait(before)
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001, raised again where the batch is taken
            future.set_exception(error)

    Thread(target=run, name="sampling", daemon=True).start()
    return future
