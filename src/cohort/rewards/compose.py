"""Calling several reward functions on a batch: scores are checked, clipped, gated and summed by weight."""

from __future__ import annotations

import inspect
import math
import numbers
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from cohort.rewards import steps
from cohort.rewards.calls import (
    Arguments,
    accepted_by,
    arguments_of,
    await_all,
    failure,
    own_copies,
    start_of,
    user_code,
    warn_when_slow,
)
from cohort.rewards.component import Bounds, Component, checked_bounds, components, importable, weights_of
from cohort.rewards.functions.code import UnitTests
from cohort.rewards.functions.text import content
from cohort.rewards.logs import Logs
from cohort.rewards.pool import Pool
from cohort.types import Terminated, Text, TrainerState, UserError


@dataclass
class Scores:
    """Rewards of B completions.

    Scores([1.5, 0.0], {"accuracy": [1.0, 0.0], "format": [0.5, 0.5]}, {"judged": 2.0}, {"note": ["a", "b"]},
           counted={"accuracy": [1.0, 0.0], "format": [0.5, 0.0]}, seconds={"accuracy": 0.002, "format": 0.001})
    """

    totals: list[float]
    """[B], the weighted sum of `counted`, clipped."""
    components: dict[str, list[float | None]]
    """Function name -> [B], the scores that the function returned; None where it does not apply."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Values passed to log_metric, averaged for each name, and the ratios of clipped and gated scores."""
    extra: dict[str, list[Any]] = field(default_factory=dict)
    """Column -> [B] values passed to log_extra."""
    counted: dict[str, list[float | None]] = field(default_factory=dict)
    """Function name -> [B], the scores as they enter the sum, before weights: clipped, and 0 where a gate is closed."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Function name -> duration of its call in seconds."""
    step_rewards: list[list[float]] = field(default_factory=list)
    """[B] lists, the weighted sum of the step rewards of each step that has any; empty when steps are not scored."""
    step_ends: list[list[int]] = field(default_factory=list)
    """[B] lists, the end of each of these steps in the completion's text, in characters, exclusive."""


class Rewards:
    """Calls every function on a batch and sums the scores by weight (1 by default).

    `funcs`: functions, names, or mappings `{name: …, weight: …, gate: …, clip: …, timeout: …, processes: …}`.
    `weights`: TRL's `reward_weights`, instead of weights in the mappings. `clip`: bounds of the sum. `split`: cuts a
    completion into steps; functions that take `steps` then score each step, and the total is the sum of the other
    functions (of the means over steps if all functions score steps). `watched`: rewards to call and log with weight
    0, unless `funcs` has them. `seed`: of the random numbers that functions draw in worker processes.
    """

    def __init__(
        self,
        funcs: Sequence[Any],
        weights: Sequence[float] | None = None,
        clip: Bounds | None = None,
        split: steps.Split | None = None,
        watched: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        if not funcs:
            raise UserError("reward_funcs is empty: name at least one reward, for example accuracy")
        self.parts: list[Component] = components(funcs)
        self.weights = weights_of(self.parts, weights)
        for rule in dict.fromkeys(watched):
            added = components([rule])
            if added[0].name not in [part.name for part in self.parts]:
                self.parts += added
                self.weights.append(0.0)
        self.names = [part.name for part in self.parts]
        self.clip = checked_bounds(clip)
        self.split = split
        self.of_steps = [split is not None and steps.takes_steps(part.function) for part in self.parts]
        if split is not None and not any(self.of_steps):
            raise UserError(
                f"none of the rewards {', '.join(self.names)} scores steps: add one that takes `steps` and returns a "
                "list of scores for each completion, such as chain_steps"
            )
        for part in self.parts:
            if isinstance(part.function, UnitTests):
                part.function.start()
        self._pools = {
            part.name: Pool(part.name, importable(part), part.processes, part.settings.timeout, seed)
            for part in self.parts
            if part.processes
        }

    def __call__(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: Sequence[Any],
        columns: dict[str, list[Any]],
        trainer_state: TrainerState | None = None,
    ) -> Scores:
        """Score B completions; prompts and columns are repeated per completion, [B] each."""
        offered: Arguments = {
            **columns,
            "prompts": list(prompts),
            "completions": list(completions),
            "completion_ids": list(completion_ids),
            "trainer_state": trainer_state,
        }
        cuts = [] if self.split is None else steps.cut_all(list(map(content, completions)), self.split, columns)
        if cuts:
            offered["steps"] = [each.texts for each in cuts]
        logs, seconds = Logs(len(completions)), dict[str, float]()
        results = self._results(offered, logs, seconds)
        scored = {
            name: steps.checked(name, result, offered["steps"])
            for name, result, of_steps in zip(self.names, results, self.of_steps, strict=True)
            if of_steps
        }
        scores: dict[str, list[float | None]] = {
            name: [steps.mean(row) for row in scored[name]]
            if name in scored
            else _checked(name, result, offered["completions"])
            for name, result in zip(self.names, results, strict=True)
        }
        metrics = logs.metrics()
        counted = {part.name: _counted(part, scores, metrics) for part in self.parts}
        rows = zip(*counted.values(), strict=True)
        sums = [self._sum(row, prompt) for row, prompt in zip(rows, prompts, strict=True)]
        totals = [clipped(total, self.clip) for total in sums]
        if self.clip is not None:
            metrics["rewards_clipped_ratio"] = _ratio_changed(sums, totals)
        weights = [weight for weight, of_steps in zip(self.weights, self.of_steps, strict=True) if of_steps]
        summed = steps.summed(list(scored.values()), weights) if cuts else []
        step_rewards = [[reward for reward in row if reward is not None] for row in summed]
        ends = [
            [end for end, reward in zip(each.ends, row, strict=True) if reward is not None]
            for each, row in zip(cuts, summed, strict=True)
        ]
        return Scores(totals, scores, metrics, logs.extra, counted, seconds, step_rewards, ends)

    def _results(self, offered: Arguments, logs: Logs, seconds: dict[str, float]) -> list[Any]:
        """What each function returns. Pools and async functions run concurrently, the others one after another."""
        calls = [arguments_of(part.name, part.function, offered) for part in self.parts]
        started = time.perf_counter()

        def ended(name: str, start: float, _: Any = None) -> None:
            seconds[name] = time.perf_counter() - start

        results: list[Any] = []
        with ThreadPoolExecutor(max(1, len(self._pools))) as threads, self._stopping_pools():
            pooled: dict[str, Future[Any]] = {}
            for part, wanted in zip(self.parts, calls, strict=True):
                if part.name in self._pools:
                    future = threads.submit(self._pools[part.name].call, part.function, wanted, offered, logs)
                    future.add_done_callback(partial(ended, part.name, started))
                    pooled[part.name] = future
            for part, wanted in zip(self.parts, calls, strict=True):
                start = time.perf_counter()
                results.append(None if part.name in pooled else _call(part, wanted, offered, logs))
                if not inspect.isawaitable(results[-1]) and part.name not in pooled:
                    ended(part.name, start)
            _await(self.parts, calls, results, offered, ended)
            for i, part in enumerate(self.parts):
                if part.name in pooled:
                    results[i] = pooled[part.name].result()
        return results

    @contextmanager
    def _stopping_pools(self) -> Iterator[None]:
        """Where the block raises, calls in worker processes end too: the threads that wait for them are joined."""
        try:
            yield
        except BaseException:
            for pool in self._pools.values():
                pool.stop()
            raise

    def _sum(self, row: tuple[float | None, ...], prompt: Text) -> float:
        counted = [weight != 0 and not steps for weight, steps in zip(self.weights, self.of_steps, strict=True)]
        counted = counted if any(counted) else [True] * len(row)
        pairs = [(w, s) for w, s, counts in zip(self.weights, row, counted, strict=True) if counts and s is not None]
        if not pairs:
            raise UserError(
                f"no reward applies to the row whose prompt starts {start_of(prompt)}: {', '.join(self.names)} "
                "returned None for it. Add a reward that scores such rows, or leave them out of the dataset"
            )
        return math.fsum(weight * score for weight, score in pairs)


def clipped(value: float, bounds: Bounds | None) -> float:
    return value if bounds is None else min(max(value, bounds[0]), bounds[1])


def _call(part: Component, wanted: Arguments, offered: Arguments, logs: Logs) -> Any:
    """What the function returns; for an async function, its awaitable."""
    pressed: list[int] = []
    try:
        with warn_when_slow(part.name, len(offered["completions"])), user_code() as pressed:
            return part.function(**own_copies(wanted) | accepted_by(part.function, logs.for_function(part.name)))
    except (UserError, Terminated):
        raise
    except BaseException as error:
        if pressed and isinstance(error, KeyboardInterrupt):
            raise
        raise failure(part.name, part.function, wanted, offered, error) from error


def _await(parts: list[Component], calls: list[Arguments], results: list[Any], offered: Arguments, ended: Any) -> None:
    """Replace the awaitables in `results` by what they return."""

    async def timed(name: str, awaitable: Any) -> Any:
        start = time.perf_counter()
        try:
            return await awaitable
        finally:
            ended(name, start)

    waiting = [i for i, result in enumerate(results) if inspect.isawaitable(result)]
    outcomes = await_all([timed(parts[i].name, results[i]) for i in waiting])
    for i, outcome in zip(waiting, outcomes, strict=True):
        if isinstance(outcome, UserError):
            raise outcome
        if isinstance(outcome, BaseException):
            raise failure(parts[i].name, parts[i].function, calls[i], offered, outcome) from outcome
        results[i] = outcome


def _counted(
    part: Component, components: dict[str, list[float | None]], metrics: dict[str, float]
) -> list[float | None]:
    """[B], the component's scores as they enter the sum: clipped, and 0 where one of its gates is closed."""
    scores = components[part.name]
    bounded = [None if score is None else clipped(score, part.settings.clip) for score in scores]
    if part.settings.clip is not None:
        metrics[f"rewards/{part.name}/clipped_ratio"] = _ratio_changed(scores, bounded)
    if not part.settings.gate:
        return bounded
    gates = list(zip(*(components[gate] for gate in part.settings.gate), strict=True))
    opened = [all(score is not None and score > 0 for score in row) for row in gates]
    metrics[f"rewards/{part.name}/gated_ratio"] = 1 - sum(opened) / max(1, len(opened))
    return [score if score is None or is_open else 0.0 for score, is_open in zip(bounded, opened, strict=True)]


def _ratio_changed(before: Sequence[float | None], after: Sequence[float | None]) -> float:
    return sum(a != b for a, b in zip(before, after, strict=True)) / max(1, len(before))


def _checked(name: str, result: Any, completions: list[Text]) -> list[float | None]:
    """A function's return value as floats and None, one for each completion."""
    values = result.tolist() if hasattr(result, "tolist") else result
    if not isinstance(values, list | tuple):
        raise UserError(
            f"reward function {name!r} returned {start_of(repr(result))} ({type(result).__name__}): "
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
            f"reward function {name!r} returned {start_of(repr(value))} ({type(value).__name__}) for row {i}, whose "
            f"completion starts {start_of(completion)}: a score is a number or None"
        )
    try:
        score = float(value)
    except OverflowError:
        score = math.inf
    if not math.isfinite(score):
        raise UserError(
            f"reward function {name!r} returned {score} for row {i}, whose completion starts "
            f"{start_of(completion)}: a score is a finite number, or None where the function does not apply"
        )
    return score
