"""The rewards of a run, and a trial of them before it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cohort.config import GRPOConfig, GRPOProcessConfig, SampledConfig, TrainingConfig
from cohort.formulas.chance import like_chance
from cohort.rewards.check.preflight import preflight
from cohort.rewards.component import Component
from cohort.rewards.compose import Rewards
from cohort.rewards.resolve import with_run_defaults
from cohort.rewards.steps import make_split
from cohort.train.iterations.make import rules_of
from cohort.types import Row, TrainerState, UserError

log = logging.getLogger("cohort")

RewardSpec = str | Callable[..., Any] | Mapping[str, Any]


def make_rewards(functions: RewardSpec | Sequence[RewardSpec] | None, config: TrainingConfig) -> Rewards | None:
    specs = [] if functions is None else with_run_defaults(functions, config.max_completion_length, config.use_cpu)
    if not specs:
        if isinstance(config, SampledConfig) and config.reward_weights:
            raise UserError(f"reward_weights is {config.reward_weights}, and there are no reward_funcs to weigh")
        return None
    split = None
    if isinstance(config, GRPOProcessConfig):
        split = make_split(config.step_separator, config.step_pattern, config.step_splitter)
    weights, clip = None, None
    if isinstance(config, SampledConfig):
        weights, clip = config.reward_weights, config.reward_clip
    rewards = Rewards(specs, weights, clip, split, rules_of(config), config.seed)
    for part in rewards.parts:
        _tell_of_chance(part)
    return rewards


def _tell_of_chance(part: Component) -> None:
    """Warn of a reward model that its training found no better than chance on held-out data."""
    scorer = getattr(part.function, "scorer", None)
    noted = None if scorer is None else getattr(scorer.model.config, "held_out", None)
    if isinstance(noted, dict) and (complaint := like_chance(noted)):
        log.warning(
            "reward model %s was no better than chance on the held-out data of its training: %s. Its rewards are noise",
            part.name,
            complaint,
        )


def with_weights(config: TrainingConfig, rewards: Rewards | None) -> TrainingConfig:
    """The configuration with `reward_weights` set for each reward, where a credit reads them. Weights may be given
    beside a reward's name, and are 0 for rules that are only watched."""
    if rewards is None or not isinstance(config, GRPOConfig):
        return config
    if config.multi_objective_aggregation != "normalize_then_sum":
        return config
    return config.model_copy(update={"reward_weights": rewards.weights})


def check_rewards(rewards: Rewards, rows: list[Row], tokenizer: Any, state: TrainerState) -> None:
    """Try the rewards on a few made-up answers and log the scores. Raises UserError where they do not tell right from
    wrong."""
    log.info("trying the rewards on made-up answers (reward_preflight: false leaves this out)")
    trial = preflight(rewards, rows, lambda text: tokenizer(text, add_special_tokens=False)["input_ids"], state)
    for line in trial.lines():
        log.info("  %s", line)
    for warning in trial.warnings:
        log.warning("rewards: %s", warning)
    if trial.problem is not None:
        raise UserError(trial.problem)
