"""Preference pairs as a source: given in the dataset, or made from rewarded samples of the starting model."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from pathlib import Path

import torch

from cohort.config import DPOConfig
from cohort.data.configured import demonstration_limit, log_equal, log_fitted
from cohort.data.preferences import encode_pair, fit_pair
from cohort.data.templates import Demonstration
from cohort.formulas.spread import equal
from cohort.methods.coefficients import TokenBatch, prefer
from cohort.methods.method import Method
from cohort.policy.model import Policy
from cohort.policy.packed.pack import Part
from cohort.rollouts.collect import has_equal_rewards
from cohort.train.compute_metrics import ComputeMetrics, computed
from cohort.train.sources.pair_reference import PairReference
from cohort.train.sources.source import Batch, Source, give_credit
from cohort.train.sources.starting_samples import next_groups
from cohort.train.whole_step import scored_tokens
from cohort.types import Completion, Group, Row, TrainerState, UserError

log = logging.getLogger("cohort")


class Preferences:
    """Groups of two completions, the chosen one first, with the reference's log-probabilities, which are computed once
    unless the reference moves."""

    def __init__(
        self,
        pairs: Callable[[Path, bool], list[Group]],
        reference: PairReference,
        config: DPOConfig,
        method: Method,
        known: list[Group] | None = None,
    ):
        self.make, self.reference, self.config, self.method = pairs, reference, config, method
        self.per_batch = config.batch_size
        self.known = known
        """The pairs of the data; None: pairs are made of samples."""
        self.pairs: list[Group] = []

    @property
    def size(self) -> int:
        return len(self.pairs)

    def prepare(self, folder: Path, reuse: bool) -> None:
        self.pairs = self.make(folder, reuse)
        if not self.reference.moves:
            self.reference.attach(self.pairs)
        give_credit(self.pairs, self.method, self.config)

    def batch(self, index: int, state: TrainerState) -> Batch:
        groups = next_groups(self.pairs, self.per_batch, index, self.config)
        if self.reference.moves:
            self.reference.attach(groups)
        return Batch(groups, {})


def known_pairs(source: Source) -> list[Group] | None:
    """The pairs that a source has from the data; None of another source."""
    return source.known if isinstance(source, Preferences) else None


def encoded_pairs(rows: list[Row], policy: Policy, config: DPOConfig) -> list[Group]:
    """Preference rows as groups of two; pairs over the limit are dropped or cut, by `truncation`, and counted."""
    encoded = [encode_pair(policy.tokenizer, row, config) for row in rows]
    for row, both in zip(rows, encoded, strict=True):
        policy.require_known([token for each in both for token in (*each.prompt, *each.completion)], row.source)
    limit, key = demonstration_limit(policy.context_length, config)
    fitted = [fit_pair(both, limit, config.truncation) for both in encoded]
    lengths = [max(len(each.prompt) + len(each.completion) for each in both) for both in encoded]
    log_fitted(lengths, fitted, limit, key, "pairs", rows)
    pairs = [(row, both) for row, both in zip(rows, fitted, strict=True) if both is not None]
    alike = log_equal([(both[0], both[1]) for _, both in pairs], [row.source for row, _ in pairs])
    return [_pair_group(row, both) for (row, both), same in zip(pairs, alike, strict=True) if not same]


def _pair_group(row: Row, both: list[Demonstration]) -> Group:
    completions = [Completion(torch.tensor(each.completion), torch.zeros(len(each.completion))) for each in both]
    return Group(torch.tensor(both[0].prompt), completions, row)


def best_worst(group: Group, rng: random.Random) -> tuple[int, int]:
    """Indices of the completions with the highest and the lowest reward, the first where several are equal."""
    return group.rewards.index(max(group.rewards)), group.rewards.index(min(group.rewards))


def random_pair(group: Group, rng: random.Random) -> tuple[int, int]:
    """Indices of two random completions with different rewards, the better one first."""
    rewards = torch.tensor(group.rewards)
    better = (rewards[:, None] > rewards) & ~equal(rewards, rewards[:, None])
    i, j = rng.choice(better.nonzero().tolist())
    return i, j


PAIRS: dict[str, Callable[[Group, random.Random], tuple[int, int]]] = {
    "best-worst": best_worst,
    "random": random_pair,
}
"""`dpo_pairs` -> (chosen, rejected) of a group whose rewards are not all equal."""


def made_pairs(groups: list[Group], config: DPOConfig) -> list[Group]:
    """A pair from each group whose rewards differ. Raises UserError where none do."""
    assert config.dpo_pairs is not None
    rng = random.Random(config.seed)
    uneven = [group for group in groups if not has_equal_rewards(group)]
    if not uneven:
        raise UserError(
            f"dpo_pairs: in none of the {len(groups)} groups sampled from the starting model do rewards differ, so "
            "no completion is better than another: raise num_generations or temperature, or use another reward"
        )
    equal = len(groups) - len(uneven)
    log.info("dpo: a pair from each of %d prompts; all rewards are equal for the other %d", len(uneven), equal)
    pairs = []
    for group in uneven:
        chosen, rejected = PAIRS[config.dpo_pairs](group, rng)
        pairs.append(
            Group(
                group.prompt_ids,
                [group.completions[chosen], group.completions[rejected]],
                group.row,
                [group.rewards[chosen], group.rewards[rejected]],
            )
        )
    return pairs


class HeldOutPairs:
    """Held-out preference pairs: loss, and how often the policy prefers the chosen completion."""

    def __init__(
        self,
        rows: list[Row],
        policy: Policy,
        config: DPOConfig,
        reference: PairReference,
        compute: ComputeMetrics | None = None,
    ):
        self.compute = compute
        self.pairs, self.policy, self.config = encoded_pairs(rows, policy, config), policy, config
        self.reference = reference
        reference.attach(self.pairs)

    def metrics(self) -> dict[str, float]:
        """eval/loss and TRL's eval/rewards/* and eval/logps/*, means over pairs."""
        if self.reference.moves:
            self.reference.attach(self.pairs)
        parts = [
            Part(g, pair.prompt_ids, range(2), [c.ids for c in pair.completions]) for g, pair in enumerate(self.pairs)
        ]
        _, tokens = scored_tokens(parts, self.policy, self.config, self._tokens)
        terms = prefer(tokens, self.config)
        rewards_P2 = torch.stack([terms.logged["rewards/chosen"], terms.logged["rewards/rejected"]], 1)
        lengths = [sum(len(c.ids) for c in pair.completions) for pair in self.pairs]
        losses = -torch.stack([values.sum() for values in terms.value.split(lengths)]).cpu()
        return {
            "eval/loss": float(losses.mean()),
            "eval/loss/std": float(losses.std()) if len(self.pairs) > 1 else 0.0,
            "eval/samples": float(len(self.pairs)),
            **{f"eval/{name}": float(values.mean()) for name, values in terms.logged.items()},
            **computed(self.compute, rewards_P2),
        }

    def _tokens(self, rows: list[tuple[int, int]], lengths: list[int]) -> TokenBatch:
        """The pairs' tokens, without log-probabilities under the policy."""
        reference = torch.cat([each for pair in self.pairs for each in pair.reference_logprobs or []])
        device = self.policy.device
        nothing = torch.zeros(sum(lengths), device=device)
        return TokenBatch(nothing, nothing, None, reference.to(device), lengths=lengths)
