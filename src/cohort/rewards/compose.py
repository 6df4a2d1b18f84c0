"""Several reward functions as one: called as TRL calls them, checked, and summed."""

from __future__ import annotations

import inspect
import math
import numbers
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from cohort.rewards import steps
from cohort.rewards.answers import REFERENCE_COLUMNS, reference_from
from cohort.rewards.resolve import BUILTIN, did_you_mean, resolve
from cohort.rewards.text import content
from cohort.types import Text, TrainerState, UserError

__all__ = ["BUILTIN", "RewardFunctionError", "Rewards", "Scores", "resolve"]

Arguments = dict[str, Any]


class RewardFunctionError(RuntimeError):
    """A reward function raised. Names the function and, where one row alone raises too, that row."""


@dataclass
class Scores:
    """Rewards of B completions.

    Scores([1.5, 0.0], {"accuracy": [1.0, 0.0], "format": [0.5, None]}, {"judged": 2.0}, {"note": ["a", "b"]})
    """

    totals: list[float]
    """[B], the weighted sum of the components that apply."""
    components: dict[str, list[float | None]]
    """Function name -> [B], unweighted; None where the function does not apply."""
    metrics: dict[str, float] = field(default_factory=dict)
    """What functions gave to log_metric, the mean where a name came more than once."""
    extra: dict[str, list[Any]] = field(default_factory=dict)
    """Column -> [B] values that functions gave to log_extra."""
    step_rewards: list[list[float]] = field(default_factory=list)
    """[B] lists, the weighted sum of the step rewards of each step; empty where steps are not scored."""
    step_ends: list[list[int]] = field(default_factory=list)
    """[B] lists, where each step ends in the completion's text, in characters, exclusive."""


class Rewards:
    """Calls every function on a batch and sums the scores by weight (1 each by default).

    With `split`, functions that take `steps` score the steps of each completion; the others' sum is the total as ever
    (the mean over steps where there are no others).
    """

    def __init__(
        self, funcs: Sequence[Any], weights: Sequence[float] | None = None, split: steps.Split | None = None
    ) -> None:
        if not funcs:
            raise UserError("reward_funcs is empty: name at least one reward, for example accuracy")
        named = [resolve(spec) for spec in funcs]
        self.names = _distinct([name for name, _ in named])
        self._functions = [function for _, function in named]
        self.weights = [1.0] * len(named) if weights is None else [float(weight) for weight in weights]
        if len(self.weights) != len(named):
            raise UserError(
                f"reward_weights has {len(self.weights)} values, and there are {len(named)} rewards: "
                f"{', '.join(self.names)}"
            )
        if not all(map(math.isfinite, self.weights)):
            raise UserError(f"reward_weights must be finite numbers: {self.weights}")
        self.split = split
        self.of_steps = [split is not None and steps.takes_steps(function) for function in self._functions]
        if split is not None and not any(self.of_steps):
            raise UserError(
                f"none of the rewards {', '.join(self.names)} scores steps: add one that takes `steps` and returns a "
                "list of scores for each completion, such as chain_steps"
            )

    def __call__(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: Sequence[Any],
        columns: dict[str, list[Any]],
        trainer_state: TrainerState | None = None,
    ) -> Scores:
        """Score B completions; prompts and columns are repeated per completion, [B] each."""
        logs = _Logs(len(completions))
        offered: Arguments = {
            **columns,
            "prompts": list(prompts),
            "completions": list(completions),
            "completion_ids": list(completion_ids),
            "trainer_state": trainer_state,
        }
        cuts = [] if self.split is None else steps.cut_all(list(map(content, completions)), self.split, columns)
        if cuts:
            offered["steps"] = [found.texts for found in cuts]
        results = self._results(offered, logs)
        scored = {
            name: steps.checked(name, result, offered["steps"])
            for name, result, of_steps in zip(self.names, results, self.of_steps, strict=True)
            if of_steps
        }
        components = {
            name: [math.fsum(row) / len(row) for row in scored[name]]
            if name in scored
            else _checked(name, result, offered["completions"])
            for name, result in zip(self.names, results, strict=True)
        }
        rows = zip(*components.values(), strict=True)
        totals = [self._total(row, prompt) for row, prompt in zip(rows, prompts, strict=True)]
        weights = [weight for weight, of_steps in zip(self.weights, self.of_steps, strict=True) if of_steps]
        step_rewards = steps.summed(list(scored.values()), weights) if cuts else []
        return Scores(totals, components, logs.metrics(), logs.extra, step_rewards, [found.ends for found in cuts])

    def _results(self, offered: Arguments, logs: _Logs) -> list[Any]:
        """What each function returns, async ones awaited together."""
        results: list[Any] = []
        calls = [_arguments(n, f, offered) for n, f in zip(self.names, self._functions, strict=True)]
        for name, function, wanted in zip(self.names, self._functions, calls, strict=True):
            try:
                results.append(function(**logs.added_to(name, function, wanted)))
            except UserError:
                raise
            except Exception as error:
                raise _failure(name, function, wanted, offered, error) from error
        waiting = [i for i, result in enumerate(results) if inspect.isawaitable(result)]
        for i, outcome in zip(waiting, _await_all([results[i] for i in waiting]), strict=True):
            if isinstance(outcome, UserError):
                raise outcome
            if isinstance(outcome, BaseException):
                failure = _failure(self.names[i], self._functions[i], calls[i], offered, outcome)
                raise failure from outcome
            results[i] = outcome
        return results

    def _total(self, row: tuple[float | None, ...], prompt: Text) -> float:
        counted = [not of_steps for of_steps in self.of_steps] if not all(self.of_steps) else [True] * len(row)
        pairs = [(w, s) for w, s, counts in zip(self.weights, row, counted, strict=True) if counts and s is not None]
        if not pairs:
            raise UserError(
                f"no reward applies to the row whose prompt starts {_start(prompt)}: {', '.join(self.names)} "
                "returned None for it. Add a reward that scores such rows, or leave them out of the dataset"
            )
        return math.fsum(weight * score for weight, score in pairs)


class _Logs:
    """What reward functions hand to log_metric and log_extra during one call."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._values: dict[str, list[float]] = {}
        self.extra: dict[str, list[Any]] = {}

    def added_to(self, name: str, function: Callable[..., Any], arguments: Arguments) -> Arguments:
        def log_extra(column: str, values: Sequence[Any]) -> None:
            if len(values) != self._rows:
                raise UserError(
                    f"reward function {name!r} gave log_extra {len(values)} values of {column!r} for "
                    f"{self._rows} completions: give one for each"
                )
            self.extra[column] = list(values)

        def log_metric(metric: str, value: float) -> None:
            self._values.setdefault(metric, []).append(float(value))

        return arguments | _taken(function, {"log_extra": log_extra, "log_metric": log_metric})

    def metrics(self) -> dict[str, float]:
        return {name: sum(values) / len(values) for name, values in self._values.items()}


def _ignore(*_: Any) -> None:
    """log_extra and log_metric of a call that only looks for the failing row."""


def _distinct(names: list[str]) -> list[str]:
    """Names in order, the second of a kind with `_2`."""
    distinct: list[str] = []
    for name in names:
        count, unused = 1, name
        while unused in distinct:
            count += 1
            unused = f"{name}_{count}"
        distinct.append(unused)
    return distinct


def _taken(function: Callable[..., Any], offered: Arguments) -> Arguments:
    """The offered arguments that the function takes: all with `**kwargs`, else those it names."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return offered
    return {name: value for name, value in offered.items() if name in parameters}


def _arguments(name: str, function: Callable[..., Any], offered: Arguments) -> Arguments:
    """What the function is called with, but for logging; any name of the reference finds the reference."""
    arguments = dict(_taken(function, offered))
    for parameter in inspect.signature(function).parameters.values():
        named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        needed = named and parameter.default is parameter.empty and parameter.name not in offered
        if not needed or parameter.name in ("log_extra", "log_metric"):
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


def _await_all(awaitables: list[Awaitable[Any]]) -> list[Any]:
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


def _failure(
    name: str, function: Callable[..., Any], arguments: Arguments, offered: Arguments, error: BaseException
) -> RewardFunctionError:
    """The error to raise, with the first row that raises the same alone."""
    message = f"reward function {name!r} raised {type(error).__name__}: {error}"
    rows = len(offered["completions"])
    for i in range(rows):
        if not _raises_alone(function, arguments, i, rows, type(error)):
            continue
        prompt, completion = _start(offered["prompts"][i]), _start(offered["completions"][i])
        message += f"\n  at row {i} of {rows}\n  prompt: {prompt}\n  completion: {completion}"
        break
    return RewardFunctionError(message)


def _raises_alone(
    function: Callable[..., Any], arguments: Arguments, i: int, rows: int, kind: type[BaseException]
) -> bool:
    alone = {k: [v[i]] if isinstance(v, list) and len(v) == rows else v for k, v in arguments.items()}
    alone |= _taken(function, {"log_extra": _ignore, "log_metric": _ignore})
    # Another exception is no evidence: the function may need more than one row.
    with suppress(Exception):
        try:
            result = function(**alone)
            if inspect.isawaitable(result):
                return isinstance(_await_all([result])[0], kind)
        except kind:
            return True
    return False


def _checked(name: str, result: Any, completions: list[Text]) -> list[float | None]:
    """A function's return value as floats and None, one for each completion."""
    values = result.tolist() if hasattr(result, "tolist") else result
    if not isinstance(values, list | tuple):
        raise UserError(
            f"reward function {name!r} returned {_start(repr(result))} ({type(result).__name__}): "
            "return a list with one number for each completion"
        )
    if len(values) != len(completions):
        raise UserError(
            f"reward function {name!r} returned {len(values)} scores for {len(completions)} completions: "
            "return one for each, and None where it does not apply"
        )
    return [_score(name, i, value, completions[i]) for i, value in enumerate(values)]


def _score(name: str, i: int, value: Any, completion: Text) -> float | None:
    value = value.tolist() if hasattr(value, "tolist") else value
    if value is None:
        return None
    if not isinstance(value, numbers.Real):
        raise UserError(
            f"reward function {name!r} returned {_start(repr(value))} ({type(value).__name__}) for row {i}: "
            "a score is a number or None"
        )
    try:
        score = float(value)
    except OverflowError:
        score = math.inf
    if not math.isfinite(score):
        raise UserError(
            f"reward function {name!r} returned {score} for row {i}, whose completion starts "
            f"{_start(completion)}: a score is a finite number, or None where the function does not apply"
        )
    return score


def _start(text: Text) -> str:
    """The first 200 characters; of chat messages, the last message's."""
    return repr((text if isinstance(text, str) else content(text[-1:]))[:200])
