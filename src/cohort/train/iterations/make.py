"""Builds Iterations from a run's configuration and rewards."""

from __future__ import annotations

import logging
from typing import Any

from cohort.config import DPOConfig, OnlineConfig, TrainingConfig
from cohort.policy.model import Policy
from cohort.policy.reference import Reference, reference_of
from cohort.rewards.compose import Rewards
from cohort.rewards.models.scorer import Scorer
from cohort.rewards.resolve import resolve
from cohort.train.iterations.iterations import Iterations
from cohort.train.iterations.refit import Refit
from cohort.train.monitors.overoptimization import GoldGuard
from cohort.train.monitors.reward_models import RewardModelGuard, Validation
from cohort.train.sources.attachments import logprobs_under
from cohort.types import Group, UserError, did_you_mean

log = logging.getLogger("cohort")


def iterations_of(
    config: TrainingConfig, policy: Policy, rewards: Rewards | None, reference: Reference | None
) -> Iterations | None:
    """The Iterations that the configuration asks for; None where it asks for none. Raises UserError where iterations
    would change nothing, or there is no reward model to refit."""
    if isinstance(config, DPOConfig) and config.sync_ref_model:
        _check_mixture(config, policy)
        return Iterations(config, reference)
    if not isinstance(config, OnlineConfig) or rewards is None:
        return None
    if config.iterations > 1 and reference is None and config.reward_model_refit is None:
        raise UserError(
            f"iterations is {config.iterations} and would do nothing: there is no KL term, so no reference, and no "
            "reward_model_refit. Leave it out"
        )
    if config.sync_ref_model:
        _check_mixture(config, policy)
    functions = reward_models(rewards)
    scorers = {name: function.scorer for name, function in functions.items()}
    known = {name: _validation(function) for name, function in functions.items()}
    guard = RewardModelGuard(known) if known else None
    refit, gold = None, None
    if config.reward_model_refit is not None:
        name = _chosen(config.reward_model_refit.reward, scorers)
        assert guard is not None
        rule = component_of(config.reward_model_refit.rule)
        refit = Refit(name, scorers[name], rule, config.reward_model_refit, config.seed, guard)
    if config.gold_reward is not None:
        weights = dict(zip(rewards.names, rewards.weights, strict=True))
        kl = StartingKL(policy, config, reference)
        gold = GoldGuard(weights, component_of(config.gold_reward), kl, config.stop_on_overoptimization)
    needed = refit or guard or gold or config.iterations > 1 or config.sync_ref_model
    return Iterations(config, reference, refit, guard, gold) if needed else None


def _check_mixture(config: OnlineConfig | DPOConfig, policy: Policy) -> None:
    """Log how the reference moves. Raises UserError where policy and reference cannot be mixed."""
    alpha, steps = config.ref_model_mixup_alpha, config.ref_model_sync_steps
    if policy.peft is not None and alpha < 1:
        raise UserError(
            f"ref_model_mixup_alpha is {alpha:g}, and an adapter is trained: mixing the matrices A and B of two "
            "adapters is not mixing what they add to the model. Set ref_model_mixup_alpha: 1, so that the reference "
            "becomes the policy, or train all weights"
        )
    log.info("every %d steps the reference becomes %g * policy + %g * reference", steps, alpha, 1 - alpha)


def rules_of(config: TrainingConfig) -> list[str]:
    """Reward functions that are called even with weight 0: the gold reward, and the rule of a refit."""
    if not isinstance(config, OnlineConfig):
        return []
    refit, gold = config.reward_model_refit, config.gold_reward
    return [rule for rule in (gold, None if refit is None else refit.rule) if rule is not None]


def component_of(rule: str) -> str:
    """The name of a reward function in metrics."""
    return resolve(rule)[0]


def reward_models(rewards: Rewards) -> dict[str, Any]:
    """The rewards that are models in this process, by name in metrics."""
    return {
        part.name: part.function for part in rewards.parts if hasattr(part.function, "scorer") and not part.processes
    }


def _validation(function: Any) -> Validation | None:
    """The scores on held-out data that the model's training wrote into its configuration; None where it wrote none, or
    where the reward is a probability instead of the score."""
    noted: Any = getattr(function.scorer.model.config, "held_out", None)
    if function.probability or not (isinstance(noted, dict) and {"mean", "std"} <= set(noted)):
        return None
    return Validation(noted["mean"], noted["std"])


def _chosen(name: str | None, scorers: dict[str, Scorer]) -> str:
    """The name of the reward model to refit."""
    able = {key: scorer for key, scorer in scorers.items() if not scorer.of_steps}
    if name is None and len(able) == 1:
        return next(iter(able))
    if name in able:
        return name
    there = ", ".join(able) or "none"
    if name is None:
        what = f"say which with `reward`: {there}" if able else "there is none to refit"
        raise UserError(
            f"reward_model_refit: {what}. It takes a reward model that scores completions, named in reward_funcs as "
            "{model: PATH} and called in this process (no `timeout`, no `processes`)"
        )
    raise UserError(
        f"reward_model_refit: `reward` is {name!r}, and the reward models that score completions are: {there}"
        f"{did_you_mean(name, able)}"
    )


class StartingKL:
    """KL(policy || the run's starting model) of sampled completions, in nats of a completion: the mean over them of
    log-probability under the policy minus that under the start (k1, summed over tokens)."""

    def __init__(self, policy: Policy, config: OnlineConfig, reference: Reference | None):
        self.config = config
        # While the reference stays where it is, it is the start.
        self.is_reference = reference is not None and config.iterations == 1 and not config.sync_ref_model
        self.start = reference if reference is not None and self.is_reference else reference_of(policy)

    def __call__(self, groups: list[Group]) -> float:
        missing = [group for group in groups if not self.is_reference or group.reference_logprobs is None]
        fresh = iter(logprobs_under(self.start, missing, self.config)) if missing else iter(())
        gaps = [
            float((completion.logprobs - start).sum())
            for group in groups
            for completion, start in zip(
                group.completions,
                group.reference_logprobs if self.is_reference and group.reference_logprobs is not None else next(fresh),
                strict=True,
            )
        ]
        return sum(gaps) / len(gaps)
