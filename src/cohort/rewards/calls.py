"""Calling reward functions with TRL's arguments by name, running async ones together, and reporting failures."""

from __future__ import annotations

import copy
import inspect
import logging
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import FrameType
from typing import Any

from cohort.config.user_code import users_frames
from cohort.rewards.answers.extract import REFERENCE_COLUMNS, reference_from
from cohort.rewards.functions.text import content
from cohort.types import Text, TrainerState, UserError, did_you_mean

log = logging.getLogger("cohort")

Arguments = dict[str, Any]
LOGS = ("log_extra", "log_metric")

_UNCHANGEABLE = frozenset({str, int, float, bool, complex, bytes, type(None)})

SLOW_SECONDS = 60.0
"""A call without a time limit that runs longer than this is reported in a warning."""


class RewardFunctionError(UserError, RuntimeError):
    """A reward function raised, exceeded its time limit, or lost its worker process.

    The message names the function, the first row that fails in the same way when it is scored alone, and where in the
    user's files the exception was raised.
    """

    place: int | None = None
    """That row's place in the call; None where no row fails alone."""
    row: int | None = None
    """Its number in the training data, where that is known."""


def accepted_by(function: Callable[..., Any], offered: Arguments) -> Arguments:
    """The offered arguments that the function accepts: all if it has `**kwargs`, else those it names."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return offered
    return {name: value for name, value in offered.items() if name in parameters}


def arguments_of(name: str, function: Callable[..., Any], offered: Arguments) -> Arguments:
    """The arguments of the function, without log_metric and log_extra.

    A parameter that is named like any reference column gets the row's reference, whatever its column is called.
    Raises UserError for a required parameter that is neither offered nor such a name.
    """
    arguments = dict(accepted_by(function, offered))
    for parameter in inspect.signature(function).parameters.values():
        named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        needed = named and parameter.default is parameter.empty and parameter.name not in offered
        if not needed or parameter.name in LOGS:
            continue
        if parameter.name in REFERENCE_COLUMNS and any(column in offered for column in REFERENCE_COLUMNS):
            rows = range(len(offered["completions"]))
            arguments[parameter.name] = [reference_from(offered, i) for i in rows]
            continue
        columns = [column for column in offered if column != "trainer_state"]
        process = ". Step rewards are for method: grpo_process" if parameter.name == "steps" else ""
        raise UserError(
            f"reward function {name!r} asks for {parameter.name!r}, and the rows have no such column"
            f"{did_you_mean(parameter.name, columns)}. They have: {', '.join(columns)}{process}"
        )
    return arguments


def rows_of(arguments: Arguments, start: int, stop: int, rows: int) -> Arguments:
    """The arguments for rows start to stop: lists with one value for each row are sliced, others stay whole."""
    return {k: v[start:stop] if isinstance(v, list) and len(v) == rows else v for k, v in arguments.items()}


def own_copies(arguments: Arguments) -> Arguments:
    """The arguments for one call: what the function changes in them is seen by no one else."""
    return {name: (_copied_ids if name == "completion_ids" else _own_copy)(value) for name, value in arguments.items()}


def _copied_ids(value: Any) -> Any:
    # Token ids are the bulk of a batch, so lists of them are not looked through.
    return [ids[:] if type(ids) is list else _own_copy(ids) for ids in value]


def _own_copy(value: Any) -> Any:
    """The value if it cannot be changed or copied, else a copy. An object that occurs twice is copied twice."""
    kind = type(value)
    if kind in _UNCHANGEABLE:
        return value
    if kind is list or kind is tuple:
        return kind(value) if _UNCHANGEABLE.issuperset(map(type, value)) else kind(map(_own_copy, value))
    if kind is dict:
        return {key: _own_copy(item) for key, item in value.items()}
    if kind is TrainerState:
        return replace(value, log_history=list(map(dict, value.log_history)))
    with suppress(AttributeError, RuntimeError, TypeError, ValueError, copy.Error):
        return copy.deepcopy(value)
    return value


def await_all(awaitables: list[Awaitable[Any]]) -> list[Any]:
    """Run awaitables concurrently; the result or the exception of each."""
    if not awaitables:
        return []
    import asyncio

    async def outcome(awaitable: Awaitable[Any]) -> Any:
        try:
            return await awaitable
        except BaseException as error:  # noqa: BLE001 - SystemExit in a task would end the loop's thread
            return error

    async def together() -> list[Any]:
        return await asyncio.gather(*map(outcome, awaitables))

    return asyncio.run_coroutine_threadsafe(together(), _event_loop()).result()


_loop: Any = None
_loop_lock = threading.Lock()


def _event_loop() -> Any:
    """The event loop of all async rewards, which lives as long as the process: HTTP clients are bound to one loop.

    It runs in its own thread, so that rewards can be called where another loop runs already (a notebook).
    """
    import asyncio

    global _loop
    with _loop_lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_run_forever, args=(_loop,), name="async rewards", daemon=True).start()
    return _loop


def _run_forever(loop: Any) -> None:
    while True:
        # asyncio hands these two to the task that waits for the one that raised them, and ends the loop too.
        with suppress(SystemExit, KeyboardInterrupt):
            loop.run_forever()


@contextmanager
def user_code() -> Iterator[list[int]]:
    """Around a call of a reward function; yields the list of Ctrl-C signals that arrive during the call.

    With it, an interrupt by the user is told from a KeyboardInterrupt that the function raises. A process that the
    function forked ends at the end of the block: it must not go on as a second trainer.
    """
    process, pressed = os.getpid(), list[int]()
    handler = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> Any:
        pressed.append(number)
        assert callable(handler)
        return handler(number, frame)

    noted = callable(handler) and threading.current_thread() is threading.main_thread()
    if noted:
        signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        if os.getpid() != process:
            os._exit(0)
        if noted and signal.getsignal(signal.SIGINT) is note:
            signal.signal(signal.SIGINT, handler)


@contextmanager
def warn_when_slow(name: str, rows: int) -> Iterator[None]:
    """Warn once when the block runs longer than SLOW_SECONDS: a call in this process cannot be stopped."""
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
    """The error to raise. It names the first row that raises the same exception type when it is scored alone."""
    rows = len(offered["completions"])
    alone = (i for i in range(rows) if _raises_alone(function, rows_of(arguments, i, i + 1, rows), type(error)))
    message = f"reward function {name!r} raised {type(error).__name__}: {error}"
    hint = about_messages(str(error), offered)
    place = next(alone, None)
    raised = RewardFunctionError(message + hint + at_row(place, offered) + users_frames(error))
    raised.place = place
    return raised


def about_messages(error: str, offered: Arguments) -> str:
    """A line of a message, where a function seems to take chat messages for text or the other way round."""
    texts = [isinstance(completion, str) for completion in offered["completions"]]
    if not any(texts) and "list" in error:
        return "\n  completions are chat messages here: the text of one is completion[0]['content']"
    if all(texts) and error.startswith("string ind"):
        return "\n  completions are plain text here, since the prompts are: use the completion as it is"
    return ""


def at_row(i: int | None, offered: Arguments) -> str:
    """Row i with the start of its prompt and completion, as lines of a message; empty for None."""
    if i is None:
        return ""
    prompt, completion = start_of(offered["prompts"][i]), start_of(offered["completions"][i])
    return f"\n  at row {i} of {len(offered['completions'])}\n  prompt: {prompt}\n  completion: {completion}"


def _ignore(*_: Any) -> None:
    """Stands for log_extra and log_metric in a call that only searches for the failing row."""


def _raises_alone(function: Callable[..., Any], arguments: Arguments, kind: type[BaseException]) -> bool:
    arguments = own_copies(arguments) | accepted_by(function, dict.fromkeys(LOGS, _ignore))
    pressed: list[int] = []
    try:
        with user_code() as pressed:
            result = function(**arguments)
            return inspect.isawaitable(result) and isinstance(await_all([result])[0], kind)
    except BaseException as error:
        if pressed:
            raise
        # A different exception proves nothing: the function may need more than one row.
        return isinstance(error, kind)


def start_of(text: Text) -> str:
    """repr of the first 200 characters of a text, or of the last chat message."""
    return repr((text if isinstance(text, str) else content(text[-1:]))[:200])
