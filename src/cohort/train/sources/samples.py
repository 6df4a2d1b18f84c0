"""The current policy's rewarded samples as a source."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from cohort.config import GRPOConfig, OnlineConfig
from cohort.data.order import derive, picks, prompt_seeds
from cohort.methods.method import Method
from cohort.policy.model import Policy
from cohort.rewards.compose import Rewards
from cohort.rollouts.collect import Round, collect, has_equal_rewards, statistics, training_sampling
from cohort.rollouts.encoding import Prompt
from cohort.rollouts.engine import Engine
from cohort.train.monitors.health import Health
from cohort.train.output.sampled import Sampled
from cohort.train.sources.source import Attachment, Batch, Observer, give_credit
from cohort.types import Group, TrainerState, UserError

log = logging.getLogger("cohort")


class Samples:
    """Samples completions of the next prompts with the current policy, rewards them, adds what the credit needs, and
    computes advantages."""

    def __init__(
        self,
        prompts: list[Prompt],
        policy: Policy,
        engine: Engine,
        attachments: Sequence[Attachment],
        rewards: Rewards | None,
        config: OnlineConfig,
        method: Method,
        health: Health,
        observer: Observer | None = None,
    ):
        self.prompts, self.policy, self.engine, self.attachments = prompts, policy, engine, attachments
        self.rewards, self.config, self.method, self.observer = rewards, config, method, observer
        self.health = health
        self.sampling = training_sampling(config, policy.eos_ids)
        self.size, self.per_batch = len(prompts), config.prompts_per_step * config.batch_uses[0]

    def prepare(self, folder: Path, reuse: bool) -> None:
        """Nothing to prepare."""

    def batch(self, index: int, state: TrainerState) -> Batch:
        return self.finished(self.sampled(index, state, self.engine), state)

    def chosen(self, index: int) -> list[int]:
        """The prompts of the `index`-th batch, by their numbers."""
        config = self.config
        return picks(self.size, index * self.per_batch, self.per_batch, config.seed, config.shuffle_dataset)

    def sampled(self, index: int, state: TrainerState, engine: Engine, first: Engine | None = None) -> Sampled:
        """The rewarded groups of the `index`-th batch. `first`: samples in the place of the engine but for what
        replaces groups whose rewards are all equal."""
        config, seed, chosen = self.config, derive(self.config.seed, index), self.chosen(index)
        rounds = [self._collect(chosen, seed, state, first or engine)]
        if config.replaces_equal_groups:
            return Sampled(rounds, self._refilled(rounds, chosen, seed, state, engine))
        return Sampled(rounds, rounds[0].groups)

    def finished(self, sampled: Sampled, state: TrainerState) -> Batch:
        """The batch of these groups: what the credit needs is added, and the advantages."""
        config, rounds, groups = self.config, sampled.rounds, sampled.groups
        metrics = statistics(rounds)
        for attach in self.attachments:
            metrics |= attach(groups)
        if self.observer is not None:
            metrics |= self.observer([group for each in rounds for group in each.groups], state.global_step + 1)
        give_credit(groups, self.method, config)
        if config.takes_one_advantage:
            self._require_one_advantage(groups)
        self.health.see(groups, state.global_step + 1)
        used = set(map(id, groups))
        dropped = [group for each in rounds for group in each.groups if id(group) not in used]
        return Batch(groups, metrics, rounds[0].activations, dropped)

    def _require_one_advantage(self, groups: list[Group]) -> None:
        """Raise UserError where tokens of a completion have advantages of their own, which the loss would average."""
        for advantages in (a for group in groups for a in group.advantages):
            if len(advantages) and bool((advantages != advantages[0]).any()):
                raise UserError(
                    f"method {self.method.name} gives the tokens of a completion advantages of their own, and with "
                    "these settings the loss takes one for each completion: use importance_sampling_level: "
                    "sequence_token, and another loss_type than gmpo"
                )

    def _collect(self, chosen: list[int], seed: int, state: TrainerState, engine: Engine) -> Round:
        prompts = [self.prompts[i] for i in chosen]
        keep = self.config.kept_tokens
        seeds = prompt_seeds(seed, len(prompts))
        return collect(prompts, engine, self.rewards, self.config, self.sampling, seeds, state, keep)

    def _refilled(
        self, rounds: list[Round], chosen: list[int], seed: int, state: TrainerState, engine: Engine
    ) -> list[Group]:
        """Replace groups whose rewards are all equal by groups of other prompts, as long as rounds and prompts are
        left; appends to `rounds`.

        The other prompts come from a random order with a seed of the batch's own, so a resumed run needs only the
        step's number.
        """
        kept = [group for group in rounds[0].groups if not has_equal_rewards(group)]
        dropped = [group for group in rounds[0].groups if has_equal_rewards(group)]
        used = set(chosen)
        others = [i for i in picks(self.size, 0, self.size, seed, True) if i not in used] if dropped else []
        while len(kept) < len(chosen) and others and len(rounds) < cast(GRPOConfig, self.config).max_sampling_rounds:
            missing = len(chosen) - len(kept)
            drawn, others = others[:missing], others[missing:]
            rounds.append(self._collect(drawn, derive(seed, len(rounds)), state, engine))
            kept += [group for group in rounds[-1].groups if not has_equal_rewards(group)]
        rounds[0].logged["sampling/rounds"] = float(len(rounds))
        rounds[0].logged["sampling/frac_kept_groups"] = len(kept) / len(chosen)
        return kept + dropped[: len(chosen) - len(kept)]
