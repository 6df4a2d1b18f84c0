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

Ask = Callable[[Member, int], list[Completion]]


def deal(
    members: list[Member],
    prompts: int,
    slots: int,
    prepare: Callable[[Member, Event], None],
    ask: Ask,
    max_failures: int,
) -> Iterator[tuple[int, list[Completion]]]:
    """(number of a prompt, its completions) as they come, each once. A server is prepared first, and again after a
    request without an answer; the event says that this call is over. `slots`: prompts that one is asked at the same
    time. Raises EngineError where a prompt or the weights were sent `max_failures` times without an answer, where
    weights do not arrive, and where no server is left."""
    waiting, failures = deque(range(prompts)), [0] * prompts
    asked, unprepared = dict.fromkeys(members, 0), dict.fromkeys(members, 0)
    ready: set[Member] = set()
    gone = 0
    told: SimpleQueue[tuple[Member, int | None, object]] = SimpleQueue()
    over = Event()

    def prepare_aside(member: Member) -> None:
        ready.discard(member)
        _aside(told, member, None, lambda: prepare(member, over))

    try:
        for member in members:
            prepare_aside(member)
        left = prompts
        while left:
            while waiting and (free := _freest(ready, asked, slots)) is not None:
                asked[free] += 1
                place = waiting.popleft()
                _aside(told, free, place, partial(ask, free, place))
            member, answered, outcome = told.get()
            if answered is None:
                if isinstance(outcome, Gone) and gone + 1 < len(members):
                    gone += 1
                    log.warning("%s. The other servers go on without it", outcome)
                elif isinstance(outcome, Unanswered):
                    unprepared[member] += 1
                    _require_hope("the weights were", member, unprepared[member], max_failures, outcome)
                    prepare_aside(member)
                elif isinstance(outcome, BaseException):
                    raise outcome
                else:
                    ready.add(member)
                continue
            asked[member] -= 1
            if isinstance(outcome, Unanswered):
                failures[answered] += 1
                _require_hope("a prompt was", member, failures[answered], max_failures, outcome)
                waiting.append(answered)
                if member in ready:  # else another request has told
                    log.warning("engine: vllm: %s: %s: its prompts are asked again", member.server.url, outcome)
                    prepare_aside(member)
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                left -= 1
                yield answered, outcome  # type: ignore[misc]
    finally:
        over.set()
        if any(asked.values()):  # an error, or Ctrl-C: nobody waits for what they sample
            for member in members:
                member.server.abort()


def _freest(ready: set[Member], asked: dict[Member, int], slots: int) -> Member | None:
    free = [member for member in ready if asked[member] < slots]
    return min(free, key=lambda member: asked[member], default=None)


def _aside(
    told: SimpleQueue[tuple[Member, int | None, object]],
    member: Member,
    place: int | None,
    work: Callable[[], object],
) -> None:
    """Do the work in a thread, which does not hold up the end of the program, and tell what comes of it."""

    def run() -> None:
        try:
            outcome = work()
        except BaseException as error:  # noqa: BLE001, raised again where it is taken
            outcome = error
        told.put((member, place, outcome))

    Thread(target=run, name="vllm", daemon=True).start()


def _require_hope(what: str, member: Member, failures: int, max_failures: int, why: Unanswered) -> None:
    if failures >= max_failures:
        raise EngineError(
            f"engine: vllm: {what} sent {failures} times without an answer (max_failures), the last time to "
            f"{member.server.url}: {why}"
        )
