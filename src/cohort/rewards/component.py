"""One reward of a set: its function, and its weight, gate, clip and time limit."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from cohort.config import build
from cohort.rewards.resolve import is_model, resolve
from cohort.types import UserError, did_you_mean, printable

Bounds = tuple[float, float]

TAKEN = frozenset(
    {
        *("step", "why", "prompt", "completion", "tokens", "truncated", "reward", "advantage", "columns"),
        *("step_rewards", "extra", "samples", "loss", "teacher_kl", "problem", "sample", "row", "group", "index"),
    }
)
"""What completions.jsonl, held_out.jsonl and held-out metrics (`eval/...`) have beside the scores of rewards."""


class Composition(BaseModel):
    """The keys of a reward's mapping that are not options of its function: `{weight: 0.5, gate: accuracy}`."""

    model_config = ConfigDict(extra="forbid")

    weight: float | None = Field(None, allow_inf_nan=False, description="Factor in the sum; null: 1.")
    gate: list[str] = Field(
        default_factory=list, description="Rewards that must all be above 0; otherwise this one counts 0."
    )
    clip: Bounds | None = Field(None, description="[lowest, highest]: scores outside are set to the nearer bound.")
    timeout: float | None = Field(
        None, gt=0, description="Time limit of one call in seconds; the call runs in a worker process."
    )
    processes: int = Field(0, ge=0, description="Worker processes; 0: one if there is a timeout, else none.")

    @field_validator("gate", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("clip")
    @classmethod
    def _ordered(cls, value: Bounds | None) -> Bounds | None:
        return checked_bounds(value)


@dataclass(frozen=True)
class Component:
    """Component("format", format_reward, "format", Composition(weight=0.5, gate=["accuracy"]))"""

    name: str
    """The name in metrics, gates and messages; unique in the set."""
    function: Callable[..., Any]
    spec: Any
    """What `resolve` got for this function; a worker process resolves it again."""
    settings: Composition

    @property
    def processes(self) -> int:
        return self.settings.processes or int(self.settings.timeout is not None)


def checked_bounds(bounds: Bounds | None) -> Bounds | None:
    """The bounds, unchanged. Raises UserError unless the first is below the second."""
    if bounds is not None and not bounds[0] < bounds[1]:
        raise UserError(f"[{bounds[0]:g}, {bounds[1]:g}] is no interval: give [lowest, highest]")
    return bounds


def components(specs: Sequence[Any]) -> list[Component]:
    """The rewards of a configuration. Raises UserError for unknown names and keys, and for a gate outside the set."""
    parts = [_split(spec) for spec in specs]
    resolved = [resolve(spec) for spec, _ in parts]
    names = _distinct([_in_one_line(name) for name, _ in resolved])
    result = [
        Component(name, function, spec, build(Composition, settings, f"reward {name!r}"))
        for name, (_, function), (spec, settings) in zip(names, resolved, parts, strict=True)
    ]
    for component in result:
        for gate in component.settings.gate:
            if gate == component.name:
                raise UserError(f"reward {gate!r} is its own gate: name another of {', '.join(names)}")
            if gate not in names:
                raise UserError(
                    f"reward {component.name!r}: the gate {gate!r} is not a reward of this set"
                    f"{did_you_mean(gate, names)}. They are: {', '.join(names)}"
                )
    return result


def without_model(spec: Any) -> Any:
    """A reward as a configuration names it; in place of a reward model, which takes long to load, a function of its
    name that cannot score."""
    rest, settings = _split(spec)
    named = isinstance(rest, Mapping) and "model" in rest and "name" not in rest
    if not (named or is_model(rest)):
        return spec
    model = rest["model"] if named else rest

    def unloaded(**_: Any) -> list[float]:
        raise NotImplementedError("this reward model is not loaded")

    unloaded.__name__ = Path(model).resolve().name if isinstance(model, str) else type(model).__name__
    return {"name": unloaded, **settings}


def importable(component: Component) -> str | Mapping[str, Any]:
    """A spec that a new process resolves to the same function. Raises UserError for a function it cannot import."""
    if isinstance(component.spec, str | Mapping):
        return component.spec
    function = component.function
    if inspect.isfunction(function) and function.__module__ != "__main__" and "<" not in function.__qualname__:
        return f"{function.__module__}:{function.__qualname__}"
    kind = "a partial" if isinstance(function, partial) else "a local function, a lambda or an object"
    raise UserError(
        f"reward {component.name!r} has a timeout or processes, and a worker process cannot import it ({kind}): "
        "put it at the top of a file and name it path/to/file.py:function"
    )


def _split(spec: Any) -> tuple[Any, dict[str, Any]]:
    """(the spec for `resolve`, the keys of Composition)."""
    if not isinstance(spec, Mapping):
        return spec, {}
    settings = {key: value for key, value in spec.items() if key in Composition.model_fields}
    rest = {key: value for key, value in spec.items() if key not in settings}
    for key in rest:
        near = did_you_mean(str(key), Composition.model_fields)
        if near and key not in ("name", "model", "judge"):
            raise UserError(f"reward {spec.get('name', dict(spec))!r}: unknown key {key!r}{near}")
    if not rest:
        raise UserError(f"a reward without a name: {dict(spec)}; write {{name: accuracy, weight: 0.5}}")
    return (rest["name"] if list(rest) == ["name"] else rest), settings


def column_of(name: str) -> str:
    """The name of a reward's score in completions.jsonl and after `eval/`: `rewards/NAME` where NAME is taken."""
    return f"rewards/{name}" if name in TAKEN else name


def _in_one_line(name: str) -> str:
    """A function's name as a part of metrics' names, which have `/` between their parts."""
    return printable(name, lines=False).replace("/", "_").strip() or "unnamed"


def _distinct(names: list[str]) -> list[str]:
    """The names in order; the second `format` becomes `format_2`."""
    distinct: list[str] = []
    for name in names:
        count, unused = 1, name
        while unused in distinct:
            count += 1
            unused = f"{name}_{count}"
        distinct.append(unused)
    return distinct


def weights_of(parts: list[Component], weights: Sequence[float] | None) -> list[float]:
    """One weight for each component: from TRL's `reward_weights`, or each component's own weight, 1 by default.

    Raises UserError where both are given, for a wrong number of weights, and for weights that are not finite.
    """
    weighted = [component.name for component in parts if component.settings.weight is not None]
    if weights is None:
        return [1.0 if c.settings.weight is None else c.settings.weight for c in parts]
    if weighted:
        raise UserError(f"reward_weights and the weight of {', '.join(weighted)} set the same value: give one of them")
    if len(weights) != len(parts):
        raise UserError(
            f"reward_weights has {len(weights)} values, and there are {len(parts)} rewards: "
            f"{', '.join(component.name for component in parts)}"
        )
    if not all(map(math.isfinite, weights)):
        raise UserError(f"reward_weights must be finite numbers: {list(weights)}")
    return [float(weight) for weight in weights]
