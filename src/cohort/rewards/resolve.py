"""Turning what a configuration names as a reward (a name, a path, a mapping with options) into a function."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pydantic

from cohort.config.user_code import load_module
from cohort.rewards.functions.table import BUILTIN, TABLE
from cohort.types import UserError, did_you_mean


def reward(name: str, /, **options: Any) -> Callable[..., Any]:
    """A built-in reward with options: `reward("choice", labels="ABCDE", strict=True)`.

    Raises UserError for an unknown name, an unknown option, or a value of the wrong type.
    """
    make = TABLE[name].make if name in TABLE else None
    if make is None:
        with_options = [record.name for record in TABLE.values() if record.make is not None]
        problem = "takes no options" if name in TABLE else f"is unknown{did_you_mean(name, with_options)}"
        raise UserError(f"reward {name!r} {problem}. With options there are: {', '.join(with_options)}")
    try:
        return pydantic.validate_call(make)(**options)
    except pydantic.ValidationError as error:
        allowed = list(inspect.signature(make).parameters)
        problems = "; ".join(_problem(problem, allowed) for problem in error.errors())
        raise UserError(f"reward {name!r}: {problems}") from None


def with_run_defaults(reward_funcs: Any, max_completion_length: int, use_cpu: bool = False) -> list[Any]:
    """The rewards as a list, with the run's settings as defaults.

    `overlong` gets `max_completion_length` as its `max_length`; with `use_cpu`, reward models get the device "cpu".
    Neither replaces an option that the configuration gives.
    """
    single = isinstance(reward_funcs, str | Mapping) or callable(reward_funcs)
    specs = [
        {"name": spec} if spec == "overlong" else spec for spec in ([reward_funcs] if single else reward_funcs or [])
    ]
    if use_cpu:
        specs = [{"device": "cpu", **spec} if isinstance(spec, Mapping) and "model" in spec else spec for spec in specs]
        specs = [{"model": spec, "device": "cpu"} if is_model(spec) else spec for spec in specs]
    return [
        {"max_length": max_completion_length, **spec}
        if isinstance(spec, Mapping) and spec.get("name") == "overlong"
        else spec
        for spec in specs
    ]


def with_tokenizers(reward_funcs: Any, tokenizers: Any, use_cpu: bool = False) -> Any:
    """The rewards, with each reward model paired with its tokenizer from TRL's `reward_processing_classes`.

    Tokenizers of other rewards are ignored. Raises UserError unless there is one entry for each reward.
    """
    if tokenizers is None:
        return reward_funcs
    specs = list(reward_funcs) if isinstance(reward_funcs, list | tuple) else [reward_funcs]
    per_spec = list(tokenizers) if isinstance(tokenizers, list | tuple) else [tokenizers]
    if len(per_spec) != len(specs):
        raise UserError(
            f"{len(per_spec)} reward_processing_classes for {len(specs)} reward_funcs, and their numbers must match: "
            "give one for each, None for a "
            "function or for the tokenizer that is saved beside the model"
        )
    device = "cpu" if use_cpu else None
    return [
        reward("model", model=spec, processing_class=tokenizer, device=device)
        if tokenizer is not None and is_model(spec)
        else spec
        for spec, tokenizer in zip(specs, per_spec, strict=True)
    ]


def resolve(spec: Any) -> tuple[str, Callable[..., Any]]:
    """(name, function) of a reward that a configuration or a caller gives.

    `spec` is a callable; the name of a built-in reward; `file.py:function` or `package.module:function`; a sequence
    classifier, its directory or its hub name (`owner/model`); or a mapping with options: `{name: …, OPTION: …}`,
    `{model: …, OPTION: …}` or `{judge: {OPTION: …}}`. Raises UserError for anything else.
    """
    if isinstance(spec, Mapping):
        return _of_mapping({str(key): value for key, value in spec.items()})
    if is_model(spec):
        function = reward("model", model=spec)
        return function.__name__, function
    if callable(spec):
        return _name(spec), spec
    if not isinstance(spec, str):
        raise UserError(f"a reward is a function, a name or a mapping, not {spec!r}")
    if spec in BUILTIN:
        return spec, BUILTIN[spec]
    place, colon, name = spec.rpartition(":")
    if not colon:
        needs = ". It needs options, as in {judge: {url: …, model: …, rubric: …}}" if spec == "judge" else ""
        raise UserError(
            f"unknown reward {spec!r}{needs or did_you_mean(spec, BUILTIN)}. Built in are: {', '.join(BUILTIN)}. "
            "Name a function of your own as path/to/file.py:function or package.module:function, and a sequence "
            "classifier by its directory or as owner/model"
        )
    module = load_module(place, f"reward {spec!r}")
    attribute = getattr(module, name, None)
    if not callable(attribute):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        problem = "is not a function" if hasattr(module, name) else "is not there"
        has = f" It has: {', '.join(public)}" if public else " It has no functions"
        raise UserError(f"reward {spec!r}: {name!r} {problem} in {place}{did_you_mean(name, public, '.')}{has}")
    return name, attribute


def is_model(spec: Any) -> bool:
    """Whether `spec` is a transformers model, the directory of one, or a hub name (it has a slash)."""
    if not isinstance(spec, str):
        return hasattr(spec, "config") and hasattr(spec, "get_input_embeddings")
    if ":" in spec or spec.endswith(".py"):
        return False
    return "/" in spec or (Path(spec) / "config.json").is_file()


def _of_mapping(spec: dict[str, Any]) -> tuple[str, Callable[..., Any]]:
    """(name, function) of a mapping with options."""
    if "name" in spec:
        named = spec.pop("name")
        if named in TABLE:
            return str(named), reward(named, **spec) if spec else resolve(named)[1]
        name, function = resolve(named)
        return name, _bound(name, function, spec)
    if "model" in spec:
        function = reward("model", **spec)
    elif list(spec) == ["judge"] and isinstance(spec["judge"], Mapping):
        function = reward("judge", **{str(key): value for key, value in spec["judge"].items()})
    else:
        raise UserError(
            f"a reward with options is {{name: …, OPTION: …}}, {{model: …, OPTION: …}} or {{judge: {{OPTION: …}}}}, "
            f"not one with the keys {', '.join(spec)}"
        )
    return function.__name__, function


def _bound(name: str, function: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    """The function with its options set. An option takes precedence over a column of the same name."""
    signature = inspect.signature(function)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    for option in options:
        if not takes_any and option not in signature.parameters:
            raise UserError(f"reward {name!r} has no parameter {option!r}{did_you_mean(option, signature.parameters)}")

    def call(**arguments: Any) -> Any:
        return function(**{**arguments, **options})

    call.__name__ = name
    call.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[p for p in signature.parameters.values() if p.name not in options]
    )
    return call


def _problem(problem: Any, allowed: Iterable[str]) -> str:
    """One of pydantic's errors in words: the option, its value and what is wrong with it."""
    option = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "unexpected_keyword_argument":
        return f"it has no option {option!r}{did_you_mean(option, allowed)}. It has: {', '.join(allowed)}"
    if problem["type"] == "missing_argument":
        return f"the option {option!r} is missing"
    return f"{option} is {problem['input']!r}: {problem['msg']}"


def _name(function: Callable[..., Any]) -> str:
    while isinstance(function, partial):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))
