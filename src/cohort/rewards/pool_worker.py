"""The worker process of a pool: reads calls as JSON lines from stdin, writes replies as JSON lines to stdout.

It is started by its path. The first line holds the module search path, the function's spec and the time limit.
"""

from __future__ import annotations

import faulthandler
import inspect
import json
import numbers
import os
import random
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any


def main() -> None:
    process = os.getpid()
    # The pipes move to other descriptors than 0 and 1: what the function prints goes to stderr, not into a reply.
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)

    def reply(line: str) -> None:
        # A process that the function forked ends here: it must not answer too.
        if os.getpid() != process:
            os._exit(0)
        replies.write(line.encode() + b"\n")
        replies.flush()

    setup = json.loads(requests.readline())
    sys.path[:] = setup["path"]
    from cohort.rewards.resolve import resolve
    from cohort.types import TrainerState, UserError

    mistakes = (UserError,)
    try:
        _, function = resolve(setup["spec"])
    except BaseException as error:  # noqa: BLE001 - the other process raises it
        reply(json.dumps(_error_reply(error, mistakes)))
        return
    reply(json.dumps({"ready": True}))
    for line in requests:
        call = json.loads(line)
        state = call["arguments"].get("trainer_state")
        if state is not None:
            call["arguments"]["trainer_state"] = TrainerState(**state)
        if setup["timeout"] is not None:
            # Its watchdog thread does not need the interpreter lock: it also stops a long regular expression.
            faulthandler.dump_traceback_later(setup["timeout"], exit=True, file=setup["where"])
        try:
            answer = json.dumps(_call(function, setup["name"], call), default=_plain)
        except BaseException as error:  # noqa: BLE001 - the other process raises it; SystemExit too
            answer = json.dumps(_error_reply(error, mistakes))
        faulthandler.cancel_dump_traceback_later()
        reply(answer)


def _call(function: Callable[..., Any], name: str, call: dict[str, Any]) -> dict[str, Any]:
    from cohort.rewards.logs import Logs

    _seed(call["seed"])
    logs = Logs(call["rows"])
    offered = logs.for_function(name)
    result = function(**call["arguments"], **{wanted: offered[wanted] for wanted in call["logs"]})
    if inspect.isawaitable(result):
        result = _awaited(result)
    values = result.tolist() if hasattr(result, "tolist") else result
    return {
        "result": list(values) if isinstance(values, tuple) else values,
        "metrics": logs.values,
        "extra": logs.extra,
    }


def _seed(seed: int) -> None:
    """Seed the global generators of what is imported: which process answers a call must not change its result."""
    random.seed(seed)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(seed)
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(seed)


def _awaited(awaitable: Awaitable[Any]) -> Any:
    async def outcome() -> tuple[Any, BaseException | None]:
        try:
            return await awaitable, None
        except BaseException as error:  # noqa: BLE001 - it is raised below
            return None, error

    task = _loop().create_task(outcome())
    while not task.done():
        # asyncio hands these two to the task that waits for the one that raised them, and stops the loop too.
        with suppress(SystemExit, KeyboardInterrupt):
            _loop().run_until_complete(task)
    result, error = task.result()
    if error is not None:
        raise error
    return result


@lru_cache
def _loop() -> Any:
    """One event loop for the process: HTTP clients are bound to one loop."""
    import asyncio

    return asyncio.new_event_loop()


def _error_reply(error: BaseException, mistakes: tuple[type[Exception], ...]) -> dict[str, Any]:
    from cohort.config.user_code import users_frames

    if isinstance(error, mistakes):
        return {"mistake": str(error)}
    kind = type(error).__name__
    return {"error": f"{kind}: {error}", "kind": kind, "frames": users_frames(error)}


def _plain(value: Any) -> Any:
    """Numbers of other libraries as JSON numbers; other values as their repr, which is later refused as a score."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return float(value) if isinstance(value, numbers.Real) else repr(value)


if __name__ == "__main__":
    main()
