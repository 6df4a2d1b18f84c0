"""Says when a run does not learn: each fault once, with the step, the figure, the cause and the remedy.

Batches are counted, not steps, so that a batch that is used for several steps is one observation. Thresholds are from
the runs in docs/engineering/log.md: faulty ones are told within five batches, healthy ones of the same tasks never.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from cohort.config import OnlineConfig, TrainingConfig
from cohort.policy.model import Policy
from cohort.rewards.component import Component
from cohort.rewards.compose import Rewards
from cohort.rewards.functions.table import record_of
from cohort.train.monitors.flat import ALIKE, cause_of, example, is_flat, narrow, sampling, share_identical
from cohort.train.monitors.movement import movement
from cohort.train.monitors.overoptimization import SURE
from cohort.train.monitors.rewards import RewardMonitor
from cohort.train.monitors.telling import Told
from cohort.types import Group

PATIENCE = 3
"""Batches in a row in which a condition must hold before it is told."""
SMALL = 6
"""Groups that these batches must hold where no batch of the run taught anything; with fewer, FEW batches are waited
for, since the few completions of a healthy run are often equal by chance."""
FEW = 5
CHANCE = 1e-4
"""After a batch that taught something: the chance, by the share of such batches so far, below which as many batches in
a row that teach nothing are told."""
TRUNCATED = 0.5
"""Share of completions that end at the length limit."""
WINDOW = 8
"""Batches in a window of rewards: the run's first and its last are compared, by standard errors (SURE)."""
FAR = 1.0
"""KL to the reference, in nats a token: the mean factor between the probabilities of a token is then e."""
COLLAPSED, CERTAIN = 0.1, 0.1
"""Entropy below this share of its first value, and below so many nats. The demo falls from 0.063 to 0.017 nats while
its accuracy rises from 38% to 92%."""
SOLVED = 0.9
"""Share of completions with the run's highest reward from which certainty is what was to be learned."""
JUMP = 0.2
"""Mean square change, halved, of the log-probabilities of a batch by its own updates, in nats a token: a KL to second
order. The demo has 0.023 at its first step; with ten times its learning rate 0.37, and its accuracy falls."""
MEASURED = 5
"""Steps in which that is measured at the start; later only while the learning rate rises."""
DIVERGED = 2.0
"""A loss over this many times its first value, and over it by 1, is one of a run that diverges."""


class Health:
    """The monitor of one run. Its state is in checkpoints. It changes nothing that is learned."""

    def __init__(self, config: TrainingConfig, policy: Policy | None = None, rewards: Rewards | None = None):
        self.config, self.policy = config, policy
        weighted = [] if rewards is None else [p for p, w in zip(rewards.parts, rewards.weights, strict=True) if w]
        records = {part.name: record_of(part.function) for part in weighted}
        self.forms = {name: record.form for name, record in records.items() if record is not None and record.form}
        judges = [name for name, record in records.items() if record is not None and not record.form]
        self.judge: Component | None = next((part for part in weighted if part.name in judges), None)
        penalties = [name for name, form in self.forms.items() if form == "penalty"]
        names, weights = ([], []) if rewards is None else (rewards.names, rewards.weights)
        self.rewards = RewardMonitor(names, weights, judges, penalties)
        self.form_alone = bool(weighted) and len(self.forms) == len(weighted)
        self.told = Told()
        self.counts: dict[str, int] = {}
        """Condition -> batches or steps in a row in which it held."""
        self.batches = self.taught = self.flat_groups = 0
        """Batches; those that taught something; groups in the last ones in a row that did not."""
        self.points: list[tuple[float, float]] = []
        """The first WINDOW batches' mean rewards and their squared standard errors, and the last ones'."""
        self.squares = 0.0
        """The sum of the squared changes of the mean reward from batch to batch: half their mean is the variance of a
        batch, whatever the trend."""
        self.entropies: list[float] = []
        self.first_loss: float | None = None
        self.highest, self.at_highest = -math.inf, 0.0

    def start(self) -> None:
        """Before the first step: what the settings alone say."""
        if self.form_alone and self.config.learns_from_rewards:
            self.told.tell(
                "form alone",
                1,
                f"the rewards ({', '.join(self.forms)}) look at the form alone: nothing says whether an answer is "
                "right, so the model learns to write the form around anything. Add a reward of the answer, such as "
                "accuracy",
            )

    def see(self, groups: list[Group], step: int) -> None:
        """A sampled batch with rewards and advantages; `step`: the first that it is used for."""
        config = self.config
        assert isinstance(config, OnlineConfig)
        if not config.learns_from_rewards or not any(group.rewards for group in groups):
            return
        self.batches += 1
        tell = self._at(step)
        completions = [completion for group in groups for completion in group.completions]
        share = sum(completion.truncated for completion in completions) / max(1, len(completions))
        if self._held("truncated", share > TRUNCATED) >= PATIENCE:
            self._at(step, [group for group in groups if any(c.truncated for c in group.completions)])(
                "truncated",
                f"{share:.0%} of the completions end at max_completion_length: {config.max_completion_length}, for "
                f"{PATIENCE} batches: what they would have answered is not seen. Raise it; where completions never "
                f"end by themselves, the model does not know its chat template or end token (template, stop, or sft "
                f"first); {example(groups, self.judge)}",
                logging.WARNING,
            )
        self._see_rewards(groups, tell)
        alike = self._held("alike", bool(narrow(config)) and share_identical(groups) >= ALIKE)
        if is_flat(groups):
            self._see_flat(groups, self._at(step, groups))
        else:
            self.counts["flat"] = self.flat_groups = 0
            self.taught += 1
        if alike >= PATIENCE and "no gradient" not in self.told.names:  # steps of one completion may teach
            same = [group for group in groups if share_identical([group])]
            self._at(step, same)("sampling", f"for {PATIENCE} batches {sampling(groups, config)}", logging.WARNING)
        if not self.counts["flat"] or not {"no gradient", "solved"} & set(self.told.names):
            self.rewards.observe(groups, tell)

    def _see_flat(self, groups: list[Group], tell: Callable[[str, str, int], None]) -> None:
        """A batch that teaches nothing. One by chance is usual where a batch has few groups."""
        assert isinstance(self.config, OnlineConfig)
        count = self._held("flat", True)
        self.flat_groups += len(groups)
        if self.taught:
            usual = (self.batches - self.taught - count + 1) / (self.batches - count + 2)
            due = count >= PATIENCE and usual**count < CHANCE
        else:
            due = count >= (PATIENCE if self.flat_groups >= SMALL else FEW)
        if due:
            cause = cause_of(groups, self.judge, self.config)
            solved = cause.kind in ("right", "constant") and self.taught and self.at_highest == 1.0
            text = f"no gradient for {count} batches: in each group all rewards are equal, since {cause.text}"
            if "learning rate" in self.told.names:
                text += ". It began after updates that were too large: see the warning of the learning rate"
            tell("solved" if solved else "no gradient", text, logging.INFO if solved else logging.WARNING)

    def _see_rewards(self, groups: list[Group], tell: Callable[[str, str, int], None]) -> None:
        """The reward's trend, and how many completions have the highest reward so far."""
        rewards = [reward for group in groups for reward in group.rewards]
        self.highest = max(self.highest, *rewards)
        self.at_highest = sum(reward == self.highest for reward in rewards) / len(rewards)
        if getattr(self.config, "reward_model_refit", None) is not None:
            return  # scores of different reward models cannot be compared
        means = [statistics.fmean(group.rewards) for group in groups]
        error = statistics.variance(means) / len(means) if len(means) > 1 else 0.0
        if self.points:
            self.squares += (statistics.fmean(rewards) - self.points[-1][0]) ** 2
        self.points = [*self.points[:WINDOW], *self.points[WINDOW:][-WINDOW + 1 :], (statistics.fmean(rewards), error)]
        if len(self.points) < 2 * WINDOW:
            return
        noise = self.squares / (2 * (self.batches - 1))
        (first, first_error), (last, last_error) = (_window(self.points[a : a + WINDOW], noise) for a in (0, WINDOW))
        if first - last > SURE * math.sqrt(first_error + last_error) and first > last:
            tell(
                "reward fell",
                f"the mean reward of the last {WINDOW} batches, {last:.3g}, is below that of the first {WINDOW}, "
                f"{first:.3g}, by more than {SURE:g} standard errors: the run unlearns. Lower learning_rate, now "
                f"{self.config.learning_rate:g}, or clip gradients more (max_grad_norm); a KL term (beta) keeps the "
                "policy near its start",
                logging.WARNING,
            )

    def see_step(self, row: dict[str, Any]) -> None:
        """The metrics of a step."""
        tell, config = self._at(int(row["step"])), self.config
        clipped = row.get("rewards_clipped_ratio", 0.0)
        if clipped:
            tell(
                "clipped",
                f"reward_clip {list(getattr(config, 'reward_clip', None) or ())} changed {clipped:.0%} of this batch's "
                "rewards, which are then alike and teach nothing among themselves: reward_clip: null leaves rewards as "
                "they are",
                logging.WARNING,
            )
        if self._held("far", row.get("kl", 0.0) > FAR) >= PATIENCE - 1:
            tell(
                "far from the reference",
                f"the KL to the reference is {row['kl']:.3g} nats a token, over {FAR:g}: the policy has left the model "
                f"that it started from. Lower learning_rate, now {config.learning_rate:g}, or raise beta, now "
                f"{getattr(config, 'beta', 0.0):g}",
                logging.WARNING,
            )
        if row.get("kl/update", 0.0) > JUMP:
            self._too_fast(f"this step's update moved its own batch by {row['kl/update']:.3g} nats a token", tell)
        self._see_loss(row, tell)
        self._see_entropy(row, tell)

    def _too_fast(self, figure: str, tell: Callable[[str, str, int], None]) -> None:
        tell(
            "learning rate",
            f"{figure}: learning_rate {self.config.learning_rate:g} is too high for this model. Divide it by 10; "
            "1e-6 is usual for rewards and all weights of a large model, 1e-5 for LoRA and for imitation",
            logging.WARNING,
        )

    def _see_loss(self, row: dict[str, Any], tell: Callable[[str, str, int], None]) -> None:
        """A loss that is a likelihood: where completions are sampled, the loss says nothing of progress."""
        loss = row.get("loss")
        if loss is None or isinstance(self.config, OnlineConfig):
            return
        if self.first_loss is None:
            self.first_loss = loss
        high = loss > DIVERGED * self.first_loss and loss > self.first_loss + 1
        if self._held("diverged", high) >= PATIENCE - 1:
            self._too_fast(f"the loss is {loss:.3g}, and was {self.first_loss:.3g} at the first step", tell)

    def _see_entropy(self, row: dict[str, Any], tell: Callable[[str, str, int], None]) -> None:
        """The entropy of sampled tokens, against the highest of the first PATIENCE steps."""
        entropy = row.get("entropy")
        if entropy is None or not isinstance(self.config, OnlineConfig):
            return
        if len(self.entropies) < PATIENCE:
            self.entropies.append(entropy)
        first = max(self.entropies)
        low = entropy < min(CERTAIN, COLLAPSED * first) and self.at_highest < SOLVED
        if self._held("certain", low) >= PATIENCE:
            tell(
                "entropy",
                f"the entropy has collapsed to {entropy:.2g} nats a token, from {first:.2g} at the start, while "
                f"{self.at_highest:.0%} of the completions have the highest reward: all completions of a prompt become "
                f"the same. Lower learning_rate, now {self.config.learning_rate:g}, set entropy_coef, now "
                f"{self.config.entropy_coef:g}, or raise epsilon_high (0.28); go on from an earlier checkpoint",
                logging.WARNING,
            )

    def movement(self, groups: list[Any], step: int, rising: bool) -> dict[str, float]:
        """{"kl/update": ...}: how far the update after `step` steps moved its own batch, in the first steps and while
        the learning rate rises."""
        if self.policy is None or not isinstance(self.config, OnlineConfig) or not (step < MEASURED or rising):
            return {}
        moved = movement(self.policy, groups, self.config)
        return {} if moved is None else {"kl/update": moved}

    def _held(self, name: str, holds: bool) -> int:
        """For how many observations in a row the condition has held."""
        self.counts[name] = self.counts.get(name, 0) + 1 if holds else 0
        return self.counts[name]

    def _at(self, step: int, groups: Sequence[Group] = ()) -> Callable[[str, str, int], None]:
        """`groups`: those that cause what is told."""
        return lambda name, message, level: self.told.tell(name, step, message, level, groups)

    KEPT = ("counts", "batches", "taught", "flat_groups", "squares", "entropies", "first_loss", "at_highest")

    def state(self) -> dict[str, Any]:
        highest = None if self.highest == -math.inf else self.highest
        kept = {name: getattr(self, name) for name in self.KEPT}
        return {
            **kept,
            "told": self.told.names,
            "points": self.points,
            "highest": highest,
            "rewards": self.rewards.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """What `state` gave; of a checkpoint without it, nothing."""
        if not state:
            return
        for name in self.KEPT:
            setattr(self, name, state[name])
        self.told.names = state["told"]
        self.points = [(mean, error) for mean, error in state["points"]]
        self.highest = -math.inf if state["highest"] is None else state["highest"]
        self.rewards.restore(state["rewards"])


def _window(points: list[tuple[float, float]], noise: float) -> tuple[float, float]:
    """The mean of batches' means and its squared standard error: by the variance of a batch, or by the groups' within
    batches, whichever is larger."""
    means, errors = zip(*points, strict=True)
    return statistics.fmean(means), max(noise, statistics.fmean(errors)) / len(points)
