"""Demonstrations as a source."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from cohort.config import TrainingConfig
from cohort.data.configured import demonstration_limit, fit_demonstration, log_fitted
from cohort.data.order import picks
from cohort.data.templates import encode_demonstration
from cohort.methods.method import Method
from cohort.policy.model import Policy
from cohort.train.sources.source import Batch, give_credit
from cohort.types import Completion, Group, Row, TrainerState, UserError


class Demonstrations:
    """Prompts and completions of the dataset. A demonstration is a group of one with advantage 1."""

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
        log_fitted(lengths, fitted, limit, key, "demonstrations")
        self.examples = [
            (row, torch.tensor(pair[0]), torch.tensor(pair[1]))
            for row, pair in zip(rows, fitted, strict=True)
            if pair is not None
        ]
        self.policy, self.config, self.method = policy, config, method
        self.size, self.per_batch = len(self.examples), config.batch_size

    def prepare(self, folder: Path, reuse: bool) -> None:
        """Nothing to prepare."""

    def batch(self, index: int, state: TrainerState) -> Batch:
        config = self.config
        chosen = picks(self.size, index * self.per_batch, self.per_batch, config.seed, config.shuffle_dataset)
        groups = [self._group(*self.examples[i]) for i in chosen]
        give_credit(groups, self.method, config)
        return Batch(groups, {})

    def _group(self, row: Row, prompt: Tensor, completion: Tensor) -> Group:
        return Group(prompt, [Completion(completion, torch.zeros(len(completion)), version=self.policy.version)], row)
