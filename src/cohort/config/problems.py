"""Messages about mistakes in a configuration: the key, the value seen, the remedy."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from cohort.compat import trl_keys
from cohort.types import UserError, did_you_mean


class InvalidConfig(UserError):
    """A configuration with mistakes; `problems` are pydantic's."""

    def __init__(self, message: str, problems: list[Any]):
        super().__init__(message)
        self.problems = problems


Config = TypeVar("Config", bound=BaseModel)

PATHS = ("output_dir", "model", "dataset", "eval_dataset", "dataset_dir")
"""Keys that may name a path."""
MOST_SHOWN = 200
"""Characters of a wrong value that a message shows."""


def build(kind: type[Config], values: dict[str, Any], where: str, keys: list[str] | None = None) -> Config:
    """`kind(**values)`. Raises one UserError with every problem: the key, the value seen, the remedy.

    `keys` are those that the nearest-key hint may name, default: of `kind`.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        problems: list[Any] = list(error.errors())
    except InvalidConfig as error:
        problems = error.problems
    accepted = [*(keys or kind.model_fields), *nested_keys(kind), *trl_keys.KEYS]
    raise UserError(f"{where}: " + "\n".join(explain(problem, accepted) for problem in problems))


def as_meant(kind: type[BaseModel], values: Any) -> Any:
    """The values with `~` of PATHS as the home folder. Raises ValueError for true or false where a number belongs,
    which pydantic would read as 1 or 0."""
    if not isinstance(values, dict):
        return values
    for name, value in values.items():
        field = kind.model_fields.get(name)
        kinds = _kinds(field.annotation) if field is not None and isinstance(value, bool) else set()
        if kinds & {int, float} and bool not in kinds:
            raise ValueError(f"`{name}` is {str(value).lower()}: it must be a number")
    homes = [name for name in PATHS if isinstance(values.get(name), str) and values[name].startswith("~")]
    return {**values, **{name: os.path.expanduser(values[name]) for name in homes}}


def _kinds(annotation: Any) -> set[Any]:
    """The types of an annotation's alternatives: {int, NoneType} of int | None."""
    parts = get_args(annotation)
    if not parts or get_origin(annotation) is Literal:
        return {type(part) for part in parts} or {annotation}
    return {kind for part in parts for kind in _kinds(part)}


def nested_keys(kind: type[BaseModel]) -> list[str]:
    """The keys inside fields that are configurations themselves: ["reward_model_refit.rule", …]."""
    return [
        f"{name}.{key}"
        for name, field in kind.model_fields.items()
        for part in (field.annotation, *get_args(field.annotation))
        if isinstance(part, type) and issubclass(part, BaseModel)
        for key in part.model_fields
    ]


def explain(problem: Any, keys: list[str]) -> str:
    """One of pydantic's problems as a message; `keys` are the accepted ones."""
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return unknown_key(key, keys)
    if problem["type"] == "missing":
        return f"`{key}` is missing: add it"
    message = problem["msg"].removeprefix("Value error, ")
    return f"`{key}` is {shortened(problem['input'])}: {message}" if key else message


def shortened(value: Any) -> str:
    """The value as Python writes it, without its middle where it is long."""
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN // 2]} ... {text[-MOST_SHOWN // 4 :]}"


def unknown_name(name: str, names: Iterable[str]) -> str:
    """The end of a message about a name that is not one of `names`: the nearest of them, else all."""
    return did_you_mean(name, names, f": use one of {', '.join(names)}")


def unknown_key(key: str, keys: list[str]) -> str:
    """The message about a key that is not one of `keys`, with the nearest of them."""
    outer, dot, inner = key.partition(".")
    if dot and key in keys:  # a pair of the command line
        return f"`{inner}` is a key inside of `{outer}`: write {outer}={{{inner}: ...}}"
    near = difflib.get_close_matches(key, keys, n=1, cutoff=0.6)
    return f"unknown key `{key}`" + (f": did you mean `{near[0]}`?" if near else "; see docs/configuration.md")
