"""Demonstrations as a source."""

from __future__ import annotations

import logging
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cohort.config import SFTConfig, TrainingConfig
from cohort.data.configured import demonstration_limit, fit_demonstration, log_fitted
from cohort.data.order import picks
from cohort.data.templates import Demonstration, encode_demonstrations
from cohort.methods.method import Method
from cohort.policy import ranks
from cohort.policy.model import Policy
from cohort.policy.packed.pack import Part
from cohort.progress import track
from cohort.train.sources.source import Batch, give_credit
from cohort.types import Completion, Group, Row, TrainerState, UserError

log = logging.getLogger("cohort")


def encoded_as(row: Row, tokenizer: Any, config: TrainingConfig) -> list[Demonstration]:
    """A row as what is trained on, by the configuration. Raises UserError where `completion_only_loss` is true and the
    row has no prompt."""
    kwargs = config.chat_template_kwargs
    if not isinstance(config, SFTConfig):
        return encode_demonstrations(tokenizer, row, kwargs)
    if config.completion_only_loss and not row.prompt and "input_ids" not in row.columns:
        raise UserError(
            f"{row.source}: it is a text without a prompt, and completion_only_loss is true: give prompt and "
            "completion, or leave completion_only_loss out"
        )
    everything = config.completion_only_loss is False or (row.conversation and not config.assistant_only_loss)
    if everything and "input_ids" not in row.columns:
        return [each.whole() for each in encode_demonstrations(tokenizer, row, kwargs, last_only=True)]
    return encode_demonstrations(tokenizer, row, kwargs, config.mask_history)


class Demonstrations:
    """Prompts and completions of the dataset. A demonstration is a group of one with advantage 1."""

    def __init__(self, rows: list[Row], policy: Policy, config: TrainingConfig, method: Method):
        missing = next((row for row in rows if row.completion is None), None)
        if missing is not None:
            raise UserError(
                f"{missing.source}: no completion; {method.name} learns from demonstrations and needs a column "
                f"`completion` (here: {', '.join(missing.columns) or 'none'}): map it: `columns: {{completion: ...}}`"
            )
        encoded = [
            (row, each)
            for row in track(rows, "tokenising", "demonstrations")
            for each in encoded_as(row, policy.tokenizer, config)
        ]
        _tell_conversations(rows, encoded)
        for row, (prompt, completion, _) in encoded:
            policy.require_known([*prompt, *completion], row.source)
        lengths = [len(each.prompt) + len(each.completion) for _, each in encoded]
        limit, key = demonstration_limit(policy.context_length, config)
        fitted = [(row, fit_demonstration(each, limit, config.truncation)) for row, each in encoded]
        log_fitted(lengths, [each for _, each in fitted], limit, key, "demonstrations", [row for row, _ in fitted])
        self.examples = [(row, each) for row, each in fitted if each is not None]
        self.policy, self.config, self.method = policy, config, method
        self.size, self.per_batch = len(self.examples), config.batch_size

    def parts(self) -> list[Part]:
        """All demonstrations, for a forward pass."""
        return [
            Part(i, torch.tensor(each.prompt), range(1), [torch.tensor(each.completion)])
            for i, (_, each) in enumerate(self.examples)
        ]

    def trained(self, i: int) -> Tensor:
        """bool [n], which tokens of the i-th completion are trained on."""
        _, (_, completion, trained) = self.examples[i]
        return torch.tensor([True] * len(completion) if trained is None else trained)

    def held_out_loss(self) -> dict[str, float]:
        """Mean over demonstrations of the mean negative log-probability of their trained tokens, and its standard
        deviation."""
        parts = self.parts()
        self.policy.model.eval()
        score = partial(self.policy.logprobs, temperature=1.0)
        logprobs_of = ranks.scored(parts, score, self.config.token_budget, "evaluating")
        self.policy.model.train()
        means = [float(logprobs_of[i, 0][self.trained(i)].mean()) for i in range(len(parts))]
        std = statistics.stdev(means) if len(means) > 1 else 0.0
        return {"eval/loss": -sum(means) / len(means), "eval/loss/std": std, "eval/samples": float(len(means))}

    def prepare(self, folder: Path, reuse: bool) -> None:
        """Nothing to prepare."""

    def batch(self, index: int, state: TrainerState) -> Batch:
        config = self.config
        chosen = picks(self.size, index * self.per_batch, self.per_batch, config.seed, config.shuffle_dataset)
        groups = [self._group(*self.examples[i]) for i in chosen]
        give_credit(groups, self.method, config)
        for group, i in zip(groups, chosen, strict=True):
            _leave_out_others(group, self.trained(i))
        return Batch(groups, {})

    def _group(self, row: Row, demonstration: Demonstration) -> Group:
        completion = torch.tensor(demonstration.completion)
        zeros = torch.zeros(len(completion))
        return Group(
            torch.tensor(demonstration.prompt), [Completion(completion, zeros, version=self.policy.version)], row
        )


def _tell_conversations(rows: list[Row], encoded: list[tuple[Row, Demonstration]]) -> None:
    """Log that several answers of a conversation are trained on, where they are."""
    if len(encoded) > len(rows) or any(each.trained is not None for _, each in encoded):
        log.info(
            "%d rows are %d demonstrations: every answer of a conversation is trained on (mask_history: true for the "
            "last only)",
            len(rows),
            len(encoded),
        )


def _leave_out_others(group: Group, trained: Tensor) -> None:
    """Give tokens that are not the assistant's no advantage. The others' grows by their share of the completion, so
    that its mean over all tokens stays the mean over the trained ones."""
    if not bool(trained.all()):
        group.advantages[0] = group.advantages[0] * trained * (len(trained) / trained.sum())
