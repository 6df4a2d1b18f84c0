"""Reward functions by name, called as TRL calls them, checked, and added up."""

from __future__ import annotations

import asyncio
import difflib
import importlib
import importlib.util
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cohort.rewards.answers import REFERENCE_COLUMNS, text_of
from cohort.rewards.gym import reasoning_gym
from cohort.rewards.text import accuracy, format_reward, tag_presence
from cohort.types import Text, TrainerState, UserError

RewardFunction = Callable[..., Any]
BUILTIN: dict[str, RewardFunction] = {
    "accuracy": accuracy,
    "format": format_reward,
    "tag_presence": tag_presence,
    "reasoning_gym": reasoning_gym,
}


class RewardFunctionError(RuntimeError):
    """A reward function raised; carries the function's name and, where one row did it, that row."""


@dataclass(frozen=True)
class Scores:
    """Of B completions: totals [B], components {name: [B]}, and what functions logged."""

    totals: list[float]
    components: dict[str, list[float | None]]
    metrics: dict[str, float] = field(default_factory=dict)
    extra: dict[str, list[Any]] = field(default_factory=dict)


def resolve(spec: str | RewardFunction) -> tuple[str, RewardFunction]:
    """(name, function) of a built-in's name, `path/to/file.py:function`, `package.module:function` or a callable.

    Raises UserError, with the nearest name, for one that cannot be found.
    """
    if not isinstance(spec, str):
        if not callable(spec):
            raise UserError(f"a reward function must be callable or a name, not {type(spec).__name__} {spec!r}")
        name = getattr(spec, "__name__", type(spec).__name__)
        return next((known for known, function in BUILTIN.items() if function is spec), name), spec
    if spec in BUILTIN:
        return spec, BUILTIN[spec]
    where, colon, name = spec.rpartition(":")
    if not colon:
        near = difflib.get_close_matches(spec, BUILTIN, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"built-in ones are {', '.join(BUILTIN)}"
        raise UserError(f"unknown reward function {spec!r}: {hint} Your own: path/to/file.py:function")
    module = _module(where, spec)
    if not callable(getattr(module, name, None)):
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        near = difflib.get_close_matches(name, functions, n=1)
        raise UserError(f"reward {spec!r}: no function {name!r} there" + (f"; did you mean {near[0]!r}?" if near else ""))
    return name, getattr(module, name)


def _module(where: str, spec: str) -> Any:
    if not where.endswith(".py"):
        try:
            return importlib.import_module(where)
        except ModuleNotFoundError as error:
            raise UserError(f"reward {spec!r}: {error}") from None
    path = Path(where).expanduser()
    if not path.is_file():
        raise UserError(f"reward {spec!r}: no file {where!r}")
    found = importlib.util.spec_from_file_location(f"cohort_reward_{path.stem}", path)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


class Rewards:
    """Several reward functions and their weights: total = sum of weight * score over those that apply to the row."""

    def __init__(self, functions: Sequence[str | RewardFunction], weights: Sequence[float] | None = None):
        if not functions:
            raise UserError(f"no reward functions: give reward_funcs, such as accuracy (built in: {', '.join(BUILTIN)})")
        if weights is not None and len(weights) != len(functions):
            raise UserError(f"reward_weights has {len(weights)} values for {len(functions)} reward functions")
        self.functions: dict[str, RewardFunction] = {}
        for spec in functions:
            name, function = resolve(spec)
            copies = sum(known == name or known.rpartition("_")[0] == name for known in self.functions)
            self.functions[f"{name}_{copies + 1}" if name in self.functions else name] = function
        self.weights = list(weights or [1.0] * len(functions))

    @property
    def names(self) -> list[str]:
        return list(self.functions)

    def __call__(
        self,
        prompts: list[Text],
        completions: list[Text],
        completion_ids: list[list[int]],
        columns: dict[str, list[Any]],
        trainer_state: TrainerState | None = None,
    ) -> Scores:
        """Score B completions; prompts and columns are repeated, one value a completion.

        Raises UserError for what a function must not return, RewardFunctionError for what it raises.
        """
        metrics: dict[str, float] = {}
        extra: dict[str, list[Any]] = {}
        given = {
            **columns,
            "prompts": prompts,
            "completions": completions,
            "completion_ids": completion_ids,
            "trainer_state": trainer_state,
            "log_metric": metrics.__setitem__,
            "log_extra": extra.__setitem__,
        }
        components = {}
        for name, result in self._call_all(given).items():
            components[name] = _checked(name, result, prompts, completions)
        totals = []
        for i, prompt in enumerate(prompts):
            scores = [values[i] for values in components.values()]
            if all(score is None for score in scores):
                raise UserError(f"no reward function applies to the row of prompt {_start(prompt)}: all returned None")
            totals.append(sum(w * s for w, s in zip(self.weights, scores, strict=True) if s is not None))
        return Scores(totals, components, metrics, extra)

    def _call_all(self, given: dict[str, Any]) -> dict[str, Any]:
        """Plain functions one after another, coroutines together."""
        results: dict[str, Any] = {}
        for name, function in self.functions.items():
            arguments = _arguments(name, function, given)
            try:
                results[name] = function(**arguments)
            except UserError:
                raise
            except Exception as error:  # whatever the user's code raises goes on, with the row that did it
                raise RewardFunctionError(_blame(name, function, arguments, given["prompts"], error)) from error
        waiting = {name: result for name, result in results.items() if inspect.isawaitable(result)}
        if waiting:
            results |= dict(zip(waiting, asyncio.run(_together(list(waiting.values()))), strict=True))
        return results


async def _together(waiting: list[Any]) -> list[Any]:
    return list(await asyncio.gather(*waiting))


def _arguments(name: str, function: RewardFunction, given: dict[str, Any]) -> dict[str, Any]:
    """What the function asks for: everything where it takes **kwargs, else the arguments it names."""
    parameters = inspect.signature(function).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    values = dict(given) if any(p.kind == p.VAR_KEYWORD for p in parameters) else {}
    for parameter in named:
        if parameter.name in given:
            values[parameter.name] = given[parameter.name]
        elif parameter.name in REFERENCE_COLUMNS and (column := _reference_column(given)) is not None:
            values[parameter.name] = given[column]
        elif parameter.default is parameter.empty:
            columns = [key for key, value in given.items() if isinstance(value, list)]
            near = difflib.get_close_matches(parameter.name, columns, n=1)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            raise UserError(
                f"reward function {name} needs a column `{parameter.name}`, the data has {', '.join(columns)}{hint}"
            )
    return values


def _reference_column(given: dict[str, Any]) -> str | None:
    return next((name for name in REFERENCE_COLUMNS if name in given), None)


def _blame(
    name: str, function: RewardFunction, arguments: dict[str, Any], given_prompts: list[Text], error: Exception
) -> str:
    """The message of a function's failure: the first row that fails alone is the offending one."""
    told = f"reward function {name} raised {type(error).__name__}: {error}"
    count = len(given_prompts)
    for i in range(count):
        one = {k: [v[i]] if isinstance(v, list) and len(v) == count else v for k, v in arguments.items()}
        try:
            function(**one)
        except type(error):
            completion = text_of(one["completions"][0]) if "completions" in one else ""
            prompt = _start(given_prompts[i])
            return f"{told}\noffending row: prompt {prompt}, completion {completion[:500]!r}"
    return told


def _checked(name: str, result: Any, prompts: list[Text], completions: list[Text]) -> list[float | None]:
    """The function's return value as floats. Raises UserError for a wrong length, type, NaN or infinity."""
    if hasattr(result, "tolist"):
        result = result.tolist()
    if not isinstance(result, list | tuple):
        raise UserError(
            f"reward function {name} returned {type(result).__name__}: it must return a list of {len(completions)} "
            "numbers, one for each completion"
        )
    if len(result) != len(completions):
        raise UserError(f"reward function {name} returned {len(result)} scores for {len(completions)} completions")
    scores: list[float | None] = []
    for i, value in enumerate(result):
        value = value.item() if hasattr(value, "item") else value
        if value is not None and (not isinstance(value, int | float) or not math.isfinite(value)):
            raise UserError(
                f"reward function {name} returned {value!r} for prompt {_start(prompts[i])}, completion "
                f"{text_of(completions[i])[:200]!r}: scores are finite numbers, or None where it does not apply"
            )
        scores.append(None if value is None else float(value))
    return scores


def _start(prompt: Text) -> str:
    text = text_of(prompt)
    return repr(text if len(text) <= 200 else text[:200] + "...")
