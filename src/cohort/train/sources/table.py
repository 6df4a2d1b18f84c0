"""From a trainer to what makes its batches, by the `source` of the method's row."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from cohort.config import DPOConfig, GRPOProcessConfig, OnlineConfig, SampledConfig
from cohort.rollouts.encoding import encode_prompts
from cohort.train.sources.attachments import attach_reference, attach_step_ends
from cohort.train.sources.demonstrations import Demonstrations
from cohort.train.sources.preferences import Preferences, encoded_pairs, made_pairs
from cohort.train.sources.samples import Samples
from cohort.train.sources.source import Attachment, Source
from cohort.train.sources.starting_samples import KeptSamples, StartingSamples
from cohort.types import Row

if TYPE_CHECKING:
    from cohort.train.trainer import Trainer


def _demonstrations(trainer: Trainer, rows: list[Row], attachments: list[Attachment]) -> Source:
    return Demonstrations(rows, trainer.policy, trainer.args, trainer.method)


def _samples(trainer: Trainer, rows: list[Row], attachments: list[Attachment]) -> Source:
    config = trainer.args
    assert isinstance(config, OnlineConfig) and trainer.rewards is not None
    prompts = encode_prompts(rows, trainer.policy, config)
    if trainer.online_reference is not None:
        reference = partial(attach_reference, reference=trainer.online_reference, config=config)
        attachments = [reference, *attachments]
    if isinstance(config, GRPOProcessConfig):
        attachments = [partial(attach_step_ends, tokenizer=trainer.policy.tokenizer), *attachments]
    observer = None if trainer.iterations is None else trainer.iterations.see
    return Samples(
        prompts, trainer.policy, trainer.engine, attachments, trainer.rewards, config, trainer.method, observer
    )


def _starting_samples(trainer: Trainer, rows: list[Row]) -> StartingSamples:
    config = trainer.args
    assert isinstance(config, SampledConfig) and trainer.rewards is not None
    prompts = encode_prompts(rows, trainer.policy, config)
    return StartingSamples(prompts, trainer.policy, trainer.engine, trainer.rewards, config)


def _kept_samples(trainer: Trainer, rows: list[Row], attachments: list[Attachment]) -> Source:
    assert isinstance(trainer.args, SampledConfig)
    return KeptSamples(_starting_samples(trainer, rows), trainer.args, trainer.method)


def _preferences(trainer: Trainer, rows: list[Row], attachments: list[Attachment]) -> Source:
    config, policy = trainer.args, trainer.policy
    assert isinstance(config, DPOConfig)
    if config.dpo_pairs is None:
        pairs = encoded_pairs(rows, policy, config)
        return Preferences(lambda folder, reuse: pairs, trainer.reference, config, trainer.method)
    samples = _starting_samples(trainer, rows)
    return Preferences(
        lambda folder, reuse: made_pairs(samples.groups(folder, reuse), config),
        trainer.reference,
        config,
        trainer.method,
    )


SOURCES: dict[str, Callable[[Trainer, list[Row], list[Attachment]], Source]] = {
    "demonstrations": _demonstrations,
    "start": _kept_samples,
    "preferences": _preferences,
    "policy": _samples,
}
"""A row's `source` -> what makes its batches."""
