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

from cohort.policy import ranks
from cohort.rollouts.engine import Engine
from cohort.rollouts.following import Following
from cohort.train.output.sampled import Sampled
from cohort.train.sources.samples import Samples
from cohort.train.sources.source import Batch
from cohort.types import TrainerState, UserError


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
    is a matter of its number, and not of who is faster; no batch is left out."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.pending: dict[int, Future[Sampled]] = {}
        self.next = 0

    def batch(self, index: int, state: TrainerState) -> Batch:
        if index != self.next:  # a run that begins again
            self.pending = {}
        self._ask(index, state)
        started = time.perf_counter()
        sampled = self.pending.pop(index).result()
        waited = time.perf_counter() - started
        self.next = index + 1
        ages = [self.policy.version - c.version for group in sampled.groups for c in group.completions]
        batch = self.finished(sampled, state)
        batch.metrics["sampling/staleness"] = sum(ages) / len(ages)
        batch.metrics["seconds/wait"] = waited
        return batch

    def _ask(self, index: int, state: TrainerState) -> None:
        """Ask for the batches up to `index` + staleness that the run has, where they are not asked for yet."""
        end = index + self.config.staleness + 1
        if state.max_steps > 0:  # else the run's length is not known
            end = min(end, math.ceil(state.max_steps / math.prod(self.config.batch_uses)))
        missing = [number for number in range(index, max(end, index + 1)) if number not in self.pending]
        if not missing:
            return
        engine = cast(Following, self.engine).present()
        for number in missing:
            # A copy: reward functions read the state of the moment at which the batch was asked for.
            work = partial(self.sampled, number, copy.copy(state), engine)
            # In their order: the next batch of the run is the first that is sampled.
            self.pending[number] = _started(work, list(self.pending.values()))

    def finished_ahead(self) -> dict[int, Sampled]:
        """The batches that wait for their turn, for a checkpoint. Waits for those that are being sampled."""
        return {number: future.result() for number, future in self.pending.items()}

    def restore(self, batches: dict[int, Sampled]) -> None:
        """Go on from a checkpoint that has these batches."""
        self.pending = {}
        for number, sampled in batches.items():
            self.pending[number] = Future()
            self.pending[number].set_result(sampled)
        self.next = min(batches, default=self.next)


def _started(work: Callable[[], Sampled], before: list[Future[Sampled]]) -> Future[Sampled]:
    """The result of work, in a thread, when that of others is there. The thread does not hold up the end of the
    program, as a ThreadPoolExecutor's does."""
    future: Future[Sampled] = Future()

    def run() -> None:
        try:
            wait(before)
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001, raised again where the batch is taken
            future.set_exception(error)

    Thread(target=run, name="sampling", daemon=True).start()
    return future
