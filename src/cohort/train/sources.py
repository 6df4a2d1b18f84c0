"""Where batches come from: demonstrations, or the policy's own rewarded samples."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

from cohort.config import GRPOConfig, TrainingConfig
from cohort.data.configured import demonstration_limit, fit_demonstration, fit_prompt, prompt_limit
from cohort.data.templates import encode_demonstration, encode_prompt
from cohort.methods import Method
from cohort.policy.model import Policy
from cohort.policy.pack import Part, micro_batches
from cohort.rewards.compose import Rewards
from cohort.rollouts.collect import Prompt, collect, training_sampling
from cohort.rollouts.engine import Engine
from cohort.train.schedule import derive, picks
from cohort.train.watch import RewardWatch
from cohort.types import Completion, Group, Row, TrainerState, UserError

log = logging.getLogger("cohort")


class Source(Protocol):
    """The `index`-th batch of groups with advantages, and what to log of it."""

    size: int
    """Rows of the dataset that are used."""
    per_batch: int
    """Rows of one batch."""

    def batch(self, index: int, state: TrainerState) -> tuple[list[Group], dict[str, float]]: ...


def encode_prompts(rows: list[Row], policy: Policy, config: TrainingConfig) -> list[Prompt]:
    """Prompts as token ids; those over the limit are dropped or cut, by `truncation`, and counted. Raises UserError
    where none is left."""
    limit = prompt_limit(policy.context_length, config)
    prompts = [
        Prompt(row, torch.tensor(encode_prompt(policy.tokenizer, row.prompt, config.chat_template_kwargs)))
        for row in rows
    ]
    empty = next((prompt for prompt in prompts if not len(prompt.ids)), None)
    if empty is not None:
        raise UserError(f"{empty.row.source}: the prompt has no tokens; give it some text")
    fitted = [fit_prompt(prompt.ids.tolist(), limit, config.truncation) for prompt in prompts]
    _tell([len(prompt.ids) for prompt in prompts], fitted, limit, "max_prompt_length", "prompts")
    return [Prompt(p.row, torch.tensor(ids)) for p, ids in zip(prompts, fitted, strict=True) if ids is not None]


def _tell(lengths: list[int], fitted: list[Any], limit: int, key: str, what: str) -> None:
    dropped, longer = sum(kept is None for kept in fitted), sum(n > limit for n in lengths)
    if dropped == len(lengths):
        raise UserError(
            f"all {dropped} {what} are longer than {limit} tokens (the shortest has {min(lengths)}): raise {key}, "
            "or use a model with more positions"
        )
    for count, fate in ((longer - dropped, "cut"), (dropped, "dropped")):
        if count:
            log.warning(
                "%d of %d %s are longer than %d tokens (%s) and are %s", count, len(lengths), what, limit, key, fate
            )


class Demonstrations:
    """Prompt and completion as the dataset has them; a demonstration is a group of one, its advantage 1."""

    def __init__(self, rows: list[Row], policy: Policy, config: TrainingConfig, method: Method):
        missing = next((row for row in rows if row.completion is None), None)
        if missing is not None:
            raise UserError(
                f"{missing.source}: no completion; {method.name} learns from demonstrations and needs a column "
                f"`completion` (here: {', '.join(missing.columns) or 'none'}): map it: `columns: {{completion: ...}}`"
            )
        pairs = [encode_demonstration(policy.tokenizer, row, config.chat_template_kwargs) for row in rows]
        lengths = [len(prompt) + len(completion) for prompt, completion in pairs]
        limit, key = demonstration_limit(policy.context_length, config)
        fitted = [fit_demonstration(*pair, limit, config.truncation) for pair in pairs]
        _tell(lengths, fitted, limit, key, "demonstrations")
        self.examples = [
            (row, torch.tensor(pair[0]), torch.tensor(pair[1]))
            for row, pair in zip(rows, fitted, strict=True)
            if pair is not None
        ]
        self.policy, self.config, self.method = policy, config, method
        self.size, self.per_batch = len(self.examples), config.batch_size

    def batch(self, index: int, state: TrainerState) -> tuple[list[Group], dict[str, float]]:
        config = self.config
        chosen = picks(self.size, index * self.per_batch, self.per_batch, config.seed, config.shuffle_dataset)
        advantage = float(self.method.credit(torch.ones(1, 1), config))
        groups = []
        for i in chosen:
            row, prompt, completion = self.examples[i]
            length = len(completion)
            sample = Completion(completion, torch.zeros(length), version=self.policy.version)
            groups.append(Group(prompt, [sample], row, advantages=[torch.full((length,), advantage)]))
        return groups, {}


class Samples:
    """The current policy's completions of the next prompts, rewarded and credited; reference log-probabilities
    where there is a KL term."""

    def __init__(
        self,
        prompts: list[Prompt],
        policy: Policy,
        engine: Engine,
        reference: Callable[[], AbstractContextManager[Policy]] | None,
        rewards: Rewards,
        config: GRPOConfig,
        method: Method,
    ):
        self.prompts, self.policy, self.engine, self.reference = prompts, policy, engine, reference
        self.rewards, self.config, self.method = rewards, config, method
        self.sampling = training_sampling(config, policy.eos_ids)
        self.size, self.per_batch = len(prompts), config.prompts_per_step * config.updates_per_generation
        self.watch = RewardWatch(rewards.names, rewards.weights)

    def batch(self, index: int, state: TrainerState) -> tuple[list[Group], dict[str, float]]:
        config = self.config
        chosen = picks(self.size, index * self.per_batch, self.per_batch, config.seed, config.shuffle_dataset)
        prompts = [self.prompts[i] for i in chosen]
        seed = derive(config.seed, index)
        groups, metrics = collect(prompts, self.engine, self.rewards, self.method, config, self.sampling, seed, state)
        self.watch.see(groups)
        if self.reference is not None:
            started = time.perf_counter()
            attach_reference(groups, self.reference, config)
            metrics["seconds/reference"] = time.perf_counter() - started
        return groups, metrics


def attach_reference(groups: list[Group], reference: Any, config: GRPOConfig) -> None:
    """Fill in `reference_logprobs` of every completion."""
    parts = [
        Part(g, group.prompt_ids, range(len(group.completions)), [c.ids for c in group.completions])
        for g, group in enumerate(groups)
    ]
    with reference() as model:
        found = model.logprobs(micro_batches(parts, config.token_budget), config.temperature)
    for g, group in enumerate(groups):
        group.reference_logprobs = [found[g, r] for r in range(len(group.completions))]
