"""Prompts on their way to several servers, until each is answered once."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from queue import SimpleQueue
from threading import Event, Thread

from cohort.rollouts.engine import EngineError
from cohort.rollouts.vllm.member import Member
from cohort.rollouts.vllm.server import Gone, Unanswered
from cohort.types import Completion

log = logging.getLogger("cohort")


class Dealing:
    """Deals the prompts of one call to servers. A server is prepared first, and again after a request without an
    answer; the event that `prepare` is given says that the call is over. `slots`: prompts that a server is asked at the
    same time."""

    def __init__(
        self,
        members: list[Member],
        prompts: int,
        slots: int,
        prepare: Callable[[Member, Event], None],
        ask: Callable[[Member, int], list[Completion]],
        max_failures: int,
    ):
        self.members, self.slots, self.prepare, self.ask = members, slots, prepare, ask
        self.max_failures = max_failures
        self.waiting, self.failures = deque(range(prompts)), [0] * prompts
        self.asked, self.unprepared = dict.fromkeys(members, 0), dict.fromkeys(members, 0)
        self.ready: set[Member] = set()
        self.gone = 0
        self.told: SimpleQueue[tuple[Member, int | None, object]] = SimpleQueue()
        """What became of a preparation, or of the request for a prompt."""
        self.over = Event()

    def answers(self) -> Iterator[tuple[int, list[Completion]]]:
        """(number of a prompt, its completions) as they come, each once. Raises EngineError where a prompt or the
        weights were sent `max_failures` times without an answer, where weights do not arrive, and where no server is
        left."""
        try:
            for member in self.members:
                self._prepare(member)
            left = len(self.failures)
            while left:
                while self.waiting and (free := self._freest()) is not None:
                    self.asked[free] += 1
                    place = self.waiting.popleft()
                    self._aside(free, place, partial(self.ask, free, place))
                member, answered, outcome = self.told.get()
                if answered is None:
                    self._prepared(member, outcome)
                    continue
                self.asked[member] -= 1
                if isinstance(outcome, list):
                    left -= 1
                    yield answered, outcome
                else:
                    self._unanswered(member, answered, outcome)
        finally:
            self.over.set()
            if any(self.asked.values()):  # an error, or Ctrl-C: nobody waits for what they sample
                for member in self.members:
                    member.server.abort()

    def _freest(self) -> Member | None:
        free = [member for member in self.ready if self.asked[member] < self.slots]
        return min(free, key=lambda member: self.asked[member], default=None)

    def _prepare(self, member: Member) -> None:
        self.ready.discard(member)
        self._aside(member, None, partial(self.prepare, member, self.over))

    def _prepared(self, member: Member, outcome: object) -> None:
        if isinstance(outcome, Gone) and self.gone + 1 < len(self.members):
            self.gone += 1
            log.warning("%s. The other servers go on without it", outcome)
        elif isinstance(outcome, Unanswered):
            self.unprepared[member] += 1
            self._require_hope("the weights were", member, self.unprepared[member], outcome)
            self._prepare(member)
        elif isinstance(outcome, BaseException):
            raise outcome
        else:
            self.ready.add(member)

    def _unanswered(self, member: Member, place: int, outcome: object) -> None:
        if not isinstance(outcome, Unanswered):
            assert isinstance(outcome, BaseException)
            raise outcome
        self.failures[place] += 1
        self._require_hope("a prompt was", member, self.failures[place], outcome)
        self.waiting.append(place)
        if member in self.ready:  # else another request has told
            log.warning("engine: vllm: %s: %s: its prompts are asked again", member.server.url, outcome)
            self._prepare(member)

    def _require_hope(self, what: str, member: Member, failures: int, why: Unanswered) -> None:
        if failures >= self.max_failures:
            raise EngineError(
                f"engine: vllm: {what} sent {failures} times without an answer (max_failures), the last time to "
                f"{member.server.url}: {why}"
            )

    def _aside(self, member: Member, place: int | None, work: Callable[[], object]) -> None:
        """Do the work in a thread, which does not hold up the end of the program, and tell what comes of it."""

        def run() -> None:
            try:
                outcome = work()
            except BaseException as error:  # noqa: BLE001, raised again where it is taken
                outcome = error
            self.told.put((member, place, outcome))

        Thread(target=run, name="vllm", daemon=True).start()
