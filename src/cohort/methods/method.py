"""What a row of the table of methods holds, and which configuration it needs."""

from __future__ import annotations

import typing
from collections.abc import Callable
from dataclasses import dataclass
from types import UnionType
from typing import Any, Literal, NamedTuple

from torch import Tensor

from cohort.config import DPOConfig, OnlineConfig, PPOConfig, SampledConfig, TrainingConfig
from cohort.formulas.aggregation import Denominators
from cohort.methods.coefficients import Objective, Selection, TokenBatch, Unit, each_token, no_selection
from cohort.methods.credits import Advantages
from cohort.types import Group, UserError

SourceName = Literal["demonstrations", "start", "preferences", "policy"]


class Paper(NamedTuple):
    """Where a method is published. Paper("DeepSeekMath", "2402.03300")"""

    title: str
    arxiv: str


@dataclass(frozen=True)
class Method:
    """One row. Method("grpo", "policy", group_outcome, clip_with_kl, chosen_loss_type, config=GRPOConfig)

    `credit`, `coefficient`, `weight`, `sees` and `selects` get an instance of `config`. The annotation of their
    parameter `config` says which class they read: UserError where the row's `config` is not a subclass of it.
    """

    name: str
    source: SourceName
    """Where completions come from: the dataset; the starting model's samples, drawn once; pairs, of the dataset or of
    the starting model's samples; the current policy's samples."""
    credit: Callable[[list[Group], Any], Advantages]
    """Rewarded groups -> advantages, once per batch."""
    coefficient: Callable[[TokenBatch, Any], Objective]
    """Tokens with advantages -> objective and coefficient, at every gradient step."""
    weight: Callable[[Tensor, Denominators, Any], Tensor]
    """Completion lengths [B] -> weight [B] of each token of that completion."""
    config: type[TrainingConfig]
    """The class of the method's settings. The trainer refuses any other."""
    sees: Callable[[Any], Unit] = each_token
    """What one call of the coefficient must hold: "token", any run of tokens; or, with the log-probabilities of the
    micro-batch computed before the call, "completion" or "group", whole ones; or "step", all of a step, which takes one
    more forward pass."""
    selects: Callable[[Any], Selection | None] = no_selection
    """Chooses tokens among all of a step, under the current policy, for the coefficient: `TokenBatch.selected`."""
    reward: str = "outcome"
    """What is rewarded, in words, for `cohort methods`."""
    critic: bool = False
    """Whether a critic is trained beside the policy and gives `credit` its values."""
    paper: Paper | None = None
    """Where the method is published, for model cards."""

    def __post_init__(self) -> None:
        for part in ("credit", "coefficient", "weight", "sees", "selects"):
            function = getattr(self, part)
            self._require(_config_read_by(function), f"its {part} `{getattr(function, '__name__', function)}`")
        self._require(SOURCE_CONFIGS[self.source], f"its source {self.source!r}")
        if self.critic:
            self._require(PPOConfig, "its critic")

    def _require(self, needed: type | UnionType, reader: str) -> None:
        if not issubclass(self.config, needed):
            name = needed.__name__ if isinstance(needed, type) else " or ".join(c.__name__ for c in needed.__args__)
            raise UserError(
                f"method {self.name!r}: {reader} reads the keys of {name}, and config is {self.config.__name__}: give "
                f"the row config={name}, or a subclass of it"
            )


SOURCE_CONFIGS: dict[SourceName, type[TrainingConfig]] = {
    "demonstrations": TrainingConfig,
    "start": SampledConfig,
    "preferences": DPOConfig,
    "policy": OnlineConfig,
}
"""A row's `source` -> the configuration class that it reads."""


def _config_read_by(function: Callable[..., Any]) -> type | UnionType:
    """The class or union in the annotation of the parameter `config`; TrainingConfig without a usable annotation."""
    if "config" not in getattr(function, "__annotations__", {}):
        return TrainingConfig
    try:
        annotation = typing.get_type_hints(function)["config"]
    except NameError:  # a name imported for type checkers only
        return TrainingConfig
    return annotation if isinstance(annotation, type | UnionType) else TrainingConfig
