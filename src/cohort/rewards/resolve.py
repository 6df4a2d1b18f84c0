"""From what a configuration names to a reward function."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from cohort.rewards import gym, text, working
from cohort.types import UserError

BUILTIN: dict[str, Callable[..., Any]] = {
    "accuracy": text.accuracy,
    "format": text.format_reward,
    "correctness": text.correctness,
    "tag_presence": text.tag_presence,
    "choice_accuracy": text.choice_accuracy,
    "strict_format": text.strict_format,
    "soft_format": text.soft_format,
    "xml_count": text.xml_count,
    "reasoning_length": text.reasoning_length,
    "reasoning_keywords": text.reasoning_keywords,
    "too_short": text.too_short,
    "repetition": text.repetition,
    "overlong": text.overlong,
    "reasoning_gym": gym.reasoning_gym,
    "chain_steps": working.chain_steps,
    "column_steps": working.column_steps,
}


def resolve(spec: Any) -> tuple[str, Callable[..., Any]]:
    """(name, function) of a callable, a built-in's name, `file.py:function` or `package.module:function`."""
    if callable(spec):
        return _name(spec), spec
    if not isinstance(spec, str):
        raise UserError(f"a reward is a function or a name, not {spec!r}")
    if spec in BUILTIN:
        return spec, BUILTIN[spec]
    place, colon, name = spec.rpartition(":")
    if not colon:
        raise UserError(
            f"unknown reward {spec!r}{did_you_mean(spec, BUILTIN)}. Built in are: {', '.join(BUILTIN)}. "
            "One's own are given as path/to/file.py:function or package.module:function"
        )
    module = _load_file(place, spec) if place.endswith(".py") else _import(place, spec)
    function = getattr(module, name, None)
    if not callable(function):
        offered = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        what = "is not a function" if hasattr(module, name) else "is not there"
        raise UserError(f"reward {spec!r}: {name!r} {what} in {place}{did_you_mean(name, offered)}")
    return name, function


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`: did you mean 'accuracy'?`, or nothing."""
    close = get_close_matches(name, list(known), n=1)
    return f": did you mean {close[0]!r}?" if close else ""


def _name(function: Callable[..., Any]) -> str:
    while isinstance(function, partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def _load_file(place: str, spec: str) -> ModuleType:
    path = Path(place).expanduser().resolve()
    if not path.is_file():
        raise UserError(f"reward {spec!r}: there is no file {path}")
    # Kept under its path: two functions of one file share its state, and no installed module is hidden.
    key = str(path)
    if key not in sys.modules:
        found = importlib.util.spec_from_file_location(key, path)
        assert found is not None and found.loader is not None, path
        module = sys.modules[key] = importlib.util.module_from_spec(found)
        try:
            found.loader.exec_module(module)
        except BaseException:
            del sys.modules[key]
            raise
    return sys.modules[key]


def _import(place: str, spec: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        # A module that is there, but imports something that is not, keeps its own error.
        if error.name is None or not (place == error.name or place.startswith(error.name + ".")):
            raise
        raise UserError(f"reward {spec!r}: there is no module {error.name!r}; is it installed?") from None
