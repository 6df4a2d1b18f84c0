"""Calling reward functions as TRL calls them: arguments by name, async ones together, failures with their row."""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from cohort.rewards.answers.extract import REFERENCE_COLUMNS, reference_from
from cohort.rewards.functions.text import content
from cohort.rewards.resolve import did_you_mean
from cohort.types import Text, UserError

log = logging.getLogger("cohort")

Arguments = dict[str, Any]
LOGS = ("log_extra", "log_metric")

SLOW_SECONDS = 60.0
"""After which a call that has no time limit is named in a warning."""


class RewardFunctionError(RuntimeError):
    """A reward function raised, hung or died. Names the function and, where one row alone does so too, that row."""


class Logs:
    """What reward functions hand to log_metric and log_extra during one call."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._values: dict[str, list[float]] = {}
        self.extra: dict[str, list[Any]] = {}

    def for_function(self, name: str) -> Arguments:
        def log_extra(column: str, values: Sequence[Any]) -> None:
            if len(values) != self._rows:
                raise UserError(
                    f"reward function {name!r} gave log_extra {len(values)} values of {column!r} for "
                    f"{self._rows} completions: give one for each"
                )
            self.extra[column] = list(values)

        def log_metric(metric: str, value: float) -> None:
            self._values.setdefault(metric, []).append(float(value))

        return {"log_extra": log_extra, "log_metric": log_metric}

    def metrics(self) -> dict[str, float]:
        return {name: sum(values) / len(values) for name, values in self._values.items()}


def taken(function: Callable[..., Any], offered: Arguments) -> Arguments:
    """The offered arguments that the function takes: all with `**kwargs`, else those it names."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return offered
    return {name: value for name, value in offered.items() if name in parameters}


def arguments_of(name: str, function: Callable[..., Any], offered: Arguments) -> Arguments:
    """What the function is called with, but for logging; any name of the reference finds the reference."""
    arguments = dict(taken(function, offered))
    for parameter in inspect.signature(function).parameters.values():
        named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        needed = named and parameter.default is parameter.empty and parameter.name not in offered
        if not needed or parameter.name in LOGS:
            continue
        if parameter.name in REFERENCE_COLUMNS and any(column in offered for column in REFERENCE_COLUMNS):
            rows = range(len(offered["completions"]))
            arguments[parameter.name] = [reference_from(offered, i) for i in rows]
            continue
        given = [column for column in offered if column != "trainer_state"]
        process = ". Step rewards are for method: grpo_process" if parameter.name == "steps" else ""
        raise UserError(
            f"reward function {name!r} asks for {parameter.name!r}, and the rows have no such column"
            f"{did_you_mean(parameter.name, given)}. They have: {', '.join(given)}{process}"
        )
    return arguments


def rows_of(arguments: Arguments, start: int, stop: int, rows: int) -> Arguments:
    """The arguments of rows start to stop: lists of one value for each row are cut, the rest stays."""
    return {k: v[start:stop] if isinstance(v, list) and len(v) == rows else v for k, v in arguments.items()}


def await_all(awaitables: list[Awaitable[Any]]) -> list[Any]:
    """Results, or the exceptions raised, of awaitables run together."""
    if not awaitables:
        return []
    import asyncio

    async def together() -> list[Any]:
        return await asyncio.gather(*awaitables, return_exceptions=True)

    return asyncio.run_coroutine_threadsafe(together(), _event_loop()).result()


_loop: Any = None
_loop_lock = threading.Lock()


def _event_loop() -> Any:
    """The one loop of all async rewards: it outlives a call, as clients that are tied to a loop need.

    It has its own thread, so that rewards can be called where another loop runs already (a notebook).
    """
    import asyncio

    global _loop
    with _loop_lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="async rewards", daemon=True).start()
    return _loop


@contextmanager
def told_when_slow(name: str, rows: int) -> Iterator[None]:
    """Warn, once, of a call that does not end: nothing can stop it in this process."""
    timer = threading.Timer(
        SLOW_SECONDS,
        log.warning,
        (
            "reward function %r has been running for %g s on %d completions; give it a `timeout` to stop such calls: "
            "{name: …, timeout: 30}",
            name,
            SLOW_SECONDS,
            rows,
        ),
    )
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def failure(
    name: str, function: Callable[..., Any], arguments: Arguments, offered: Arguments, error: BaseException
) -> RewardFunctionError:
    """The error to raise, with the first row that raises the same alone."""
    rows = len(offered["completions"])
    alone = (i for i in range(rows) if _raises_alone(function, rows_of(arguments, i, i + 1, rows), type(error)))
    message = f"reward function {name!r} raised {type(error).__name__}: {error}"
    return RewardFunctionError(message + at_row(next(alone, None), offered))


def at_row(i: int | None, offered: Arguments) -> str:
    """Which row it was, with the start of its prompt and completion; nothing where it is not known."""
    if i is None:
        return ""
    prompt, completion = start_of(offered["prompts"][i]), start_of(offered["completions"][i])
    return f"\n  at row {i} of {len(offered['completions'])}\n  prompt: {prompt}\n  completion: {completion}"


def _ignore(*_: Any) -> None:
    """log_extra and log_metric of a call that only looks for the failing row."""


def _raises_alone(function: Callable[..., Any], arguments: Arguments, kind: type[BaseException]) -> bool:
    arguments = arguments | taken(function, dict.fromkeys(LOGS, _ignore))
    # Another exception is no evidence: the function may need more than one row.
    with suppress(Exception):
        try:
            result = function(**arguments)
            if inspect.isawaitable(result):
                return isinstance(await_all([result])[0], kind)
        except kind:
            return True
    return False


def start_of(text: Text) -> str:
    """The first 200 characters; of chat messages, the last message's."""
    return repr((text if isinstance(text, str) else content(text[-1:]))[:200])
