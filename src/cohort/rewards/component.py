"""One reward of a set: the function and how it counts in the sum."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from cohort.config import build
from cohort.rewards.resolve import did_you_mean, resolve
from cohort.types import UserError

Bounds = tuple[float, float]


class Composition(BaseModel):
    """The keys that say how a reward counts: `{name: format, weight: 0.5, gate: accuracy, clip: [0, 1]}`."""

    model_config = ConfigDict(extra="forbid")

    weight: float | None = Field(None, allow_inf_nan=False, description="Factor in the sum; null: 1.")
    gate: list[str] = Field(default_factory=list, description="Rewards that must all be above 0 for it to count.")
    clip: Bounds | None = Field(None, description="[lowest, highest] score that counts.")
    timeout: float | None = Field(None, gt=0, description="Seconds of one call, in a process that can be killed.")
    processes: int = Field(0, ge=0, description="Worker processes; 0: none, or one where there is a timeout.")

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
    """In metrics, gates and messages."""
    function: Callable[..., Any]
    spec: Any
    """What the function was resolved from; a worker process resolves it again."""
    settings: Composition

    @property
    def processes(self) -> int:
        return self.settings.processes or int(self.settings.timeout is not None)


def checked_bounds(bounds: Bounds | None) -> Bounds | None:
    """The bounds; UserError where they are no interval."""
    if bounds is not None and not bounds[0] < bounds[1]:
        raise UserError(f"[{bounds[0]:g}, {bounds[1]:g}] is no interval: give [lowest, highest]")
    return bounds


def components(specs: Sequence[Any]) -> list[Component]:
    """The set that a configuration names. UserError for unknown names and keys, and for gates that are no rewards."""
    parts = [_split(spec) for spec in specs]
    resolved = [resolve(spec) for spec, _ in parts]
    names = _distinct([name for name, _ in resolved])
    found = [
        Component(name, function, spec, build(Composition, settings, f"reward {name!r}"))
        for name, (_, function), (spec, settings) in zip(names, resolved, parts, strict=True)
    ]
    for component in found:
        for gate in component.settings.gate:
            if gate == component.name:
                raise UserError(f"reward {gate!r} has itself for a gate: name another of {', '.join(names)}")
            if gate not in names:
                raise UserError(
                    f"reward {component.name!r}: the gate {gate!r} is no reward of this set"
                    f"{did_you_mean(gate, names)}. They are: {', '.join(names)}"
                )
    return found


def importable(component: Component) -> str | Mapping[str, Any]:
    """What a fresh process can resolve to the same function. UserError for a function that only lives here."""
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
    """(what to resolve, how it counts)."""
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


def weights_of(found: list[Component], weights: Sequence[float] | None) -> list[float]:
    """One weight for each, from TRL's `reward_weights` or from the components' own; 1 where neither says."""
    own = [component.name for component in found if component.settings.weight is not None]
    if weights is None:
        return [1.0 if c.settings.weight is None else c.settings.weight for c in found]
    if own:
        raise UserError(f"reward_weights and the weight of {', '.join(own)} say the same thing: give one of them")
    if len(weights) != len(found):
        raise UserError(
            f"reward_weights has {len(weights)} values, and there are {len(found)} rewards: "
            f"{', '.join(component.name for component in found)}"
        )
    if not all(map(math.isfinite, weights)):
        raise UserError(f"reward_weights must be finite numbers: {list(weights)}")
    return [float(weight) for weight in weights]
