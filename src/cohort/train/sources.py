"""Where batches come from: demonstrations, or the policy's own rewarded samples."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.profiler import record_function

from cohort.config import GRPOConfig, OnlineConfig, SampledConfig, TrainingConfig
from cohort.data.configured import demonstration_limit, fit_demonstration, fit_prompt, prompt_limit
from cohort.data.templates import encode_demonstration, encode_prompt
from cohort.methods import Method
from cohort.policy.model import Policy
from cohort.policy.pack import Part, micro_batches
from cohort.policy.reference import Reference
from cohort.rewards.compose import Rewards
from cohort.rollouts.collect import Prompt, Round, collect, says_nothing, statistics, training_sampling
from cohort.rollouts.engine import Engine
from cohort.train.schedule import derive, picks
from cohort.train.watch import RewardWatch
from cohort.types import Completion, Group, Row, TrainerState, UserError

log = logging.getLogger("cohort")

Observer = Callable[[list[Group], int], dict[str, float]]
"""Looks at all groups that were sampled for a batch, and the step that begins with it; returns what to log."""
Attachment = Callable[[list[Group]], dict[str, float]]
"""Fills in a field of rewarded groups that credit or coefficient needs; returns what to log."""


class Source(Protocol):
    """The `index`-th batch of groups with advantages, and what to log of it."""

    per_batch: int
    """Rows of one batch."""

    @property
    def size(self) -> int:
        """Rows of the dataset that are used; known once the source is prepared."""
        ...

    def prepare(self, folder: Path, reuse: bool) -> None:
        """Called once, while the policy is as it started. `reuse`: the run goes on, and what an earlier part of it
        left in the folder may be used."""
        ...

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
    tell_fitted([len(prompt.ids) for prompt in prompts], fitted, limit, "max_prompt_length", "prompts")
    return [Prompt(p.row, torch.tensor(ids)) for p, ids in zip(prompts, fitted, strict=True) if ids is not None]


def tell_fitted(lengths: list[int], fitted: Sequence[Any], limit: int, key: str, what: str) -> None:
    """Count what is longer than `limit` and was cut, or dropped: None in `fitted`. Raises UserError where nothing is
    left."""
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
        tell_fitted(lengths, fitted, limit, key, "demonstrations")
        self.examples = [
            (row, torch.tensor(pair[0]), torch.tensor(pair[1]))
            for row, pair in zip(rows, fitted, strict=True)
            if pair is not None
        ]
        self.policy, self.config, self.method = policy, config, method
        self.size, self.per_batch = len(self.examples), config.batch_size

    def prepare(self, folder: Path, reuse: bool) -> None:
        """Nothing is made ahead of the steps."""

    def batch(self, index: int, state: TrainerState) -> tuple[list[Group], dict[str, float]]:
        config = self.config
        chosen = picks(self.size, index * self.per_batch, self.per_batch, config.seed, config.shuffle_dataset)
        groups = [self._group(*self.examples[i]) for i in chosen]
        for group, advantages in zip(groups, self.method.credit(groups, config), strict=True):
            group.advantages = advantages
        return groups, {}

    def _group(self, row: Row, prompt: Tensor, completion: Tensor) -> Group:
        return Group(prompt, [Completion(completion, torch.zeros(len(completion)), version=self.policy.version)], row)


class Samples:
    """The current policy's completions of the next prompts: rewarded, given what credit needs, credited."""

    def __init__(
        self,
        prompts: list[Prompt],
        policy: Policy,
        engine: Engine,
        attachments: Sequence[Attachment],
        rewards: Rewards,
        config: OnlineConfig,
        method: Method,
        observer: Observer | None = None,
    ):
        self.prompts, self.policy, self.engine, self.attachments = prompts, policy, engine, attachments
        self.rewards, self.config, self.method, self.observer = rewards, config, method, observer
        self.sampling = training_sampling(config, policy.eos_ids)
        self.size, self.per_batch = len(prompts), config.prompts_per_step * config.batch_uses[0]
        self.watch = RewardWatch(rewards.names, rewards.weights)

    def prepare(self, folder: Path, reuse: bool) -> None:
        """Nothing is made ahead of the steps."""

    def batch(self, index: int, state: TrainerState) -> tuple[list[Group], dict[str, float]]:
        config = self.config
        chosen = picks(self.size, index * self.per_batch, self.per_batch, config.seed, config.shuffle_dataset)
        rounds = [self._collect(chosen, derive(config.seed, index), state)]
        groups = rounds[0].groups
        if getattr(config, "dynamic_sampling", False):
            groups = self._refilled(rounds, chosen, derive(config.seed, index), state)
        self.watch.see(groups)
        metrics = statistics(rounds)
        self.watch.see_clipped(metrics.get("rewards_clipped_ratio", 0.0), config.reward_clip)
        for attach in self.attachments:
            metrics |= attach(groups)
        if self.observer is not None:
            metrics |= self.observer([group for found in rounds for group in found.groups], state.global_step + 1)
        for group, advantages in zip(groups, self.method.credit(groups, config), strict=True):
            group.advantages = advantages
        return groups, metrics

    def _collect(self, chosen: list[int], seed: int, state: TrainerState) -> Round:
        prompts = [self.prompts[i] for i in chosen]
        self.policy.room_for_decoded = self.config.kept_tokens
        try:
            return collect(prompts, self.engine, self.rewards, self.config, self.sampling, seed, state)
        finally:
            self.policy.room_for_decoded = 0

    def _refilled(self, rounds: list[Round], chosen: list[int], seed: int, state: TrainerState) -> list[Group]:
        """The batch with groups that say nothing replaced by other prompts', as long as there are rounds and prompts
        left; adds to `rounds`.

        The prompts are drawn apart from the epochs' order, by a seed of the batch's own: a resumed run needs no more
        than the step's number.
        """
        assert isinstance(self.config, GRPOConfig)
        kept = [group for group in rounds[0].groups if not says_nothing(group)]
        dropped = [group for group in rounds[0].groups if says_nothing(group)]
        used = set(chosen)
        others = [i for i in picks(self.size, 0, self.size, seed, True) if i not in used] if dropped else []
        while len(kept) < len(chosen) and others and len(rounds) < self.config.max_sampling_rounds:
            missing = len(chosen) - len(kept)
            drawn, others = others[:missing], others[missing:]
            rounds.append(self._collect(drawn, derive(seed, len(rounds)), state))
            kept += [group for group in rounds[-1].groups if not says_nothing(group)]
        rounds[0].logged["sampling/rounds"] = float(len(rounds))
        rounds[0].logged["sampling/frac_kept_groups"] = len(kept) / len(chosen)
        return kept + dropped[: len(chosen) - len(kept)]


def attach_reference(groups: list[Group], reference: Reference, config: SampledConfig) -> dict[str, float]:
    """Fill in `reference_logprobs` of every completion; returns the time it took."""
    started = time.perf_counter()
    for group, found in zip(groups, logprobs_under(reference, groups, config), strict=True):
        group.reference_logprobs = found
    return {"seconds/reference": time.perf_counter() - started}


def logprobs_under(reference: Reference, groups: list[Group], config: SampledConfig) -> list[list[Tensor]]:
    """By group and completion, [n] log-probabilities under the reference."""
    parts = [
        Part(g, group.prompt_ids, range(len(group.completions)), [c.ids for c in group.completions])
        for g, group in enumerate(groups)
    ]
    with record_function("reference"), reference() as model:
        found = model.logprobs(micro_batches(parts, config.token_budget), config.training_temperature)
    return [[found[g, r] for r in range(len(group.completions))] for g, group in enumerate(groups)]


def attach_step_ends(groups: list[Group], tokenizer: Any) -> dict[str, float]:
    """Find the last token of every step of every completion."""
    for group in groups:
        for steps, completion in zip(group.steps or (), group.completions, strict=True):
            steps.ends = token_ends(completion.ids.tolist(), completion.text, steps.text_ends, tokenizer)
    return {}


def token_ends(ids: list[int], text: str, text_ends: list[int], tokenizer: Any) -> list[int]:
    """Index of the token that completes each of the first `text_ends` characters of the text; the last step ends with
    the last token, whether it has text (an end-of-sequence token has none) or not.

    Decoding decides, so that tokens with several characters, characters with several tokens and tokens without any
    are all right: a prefix of tokens is long enough when its text starts with the step's end.
    """
    found, first = [], 0
    for end in text_ends[:-1]:
        low, high = first, len(ids) - 1
        while low < high:
            middle = (low + high) // 2
            if tokenizer.decode(ids[: middle + 1], skip_special_tokens=True).startswith(text[:end]):
                high = middle
            else:
                low = middle + 1
        found.append(low)
        first = low
    return [*found, len(ids) - 1]
