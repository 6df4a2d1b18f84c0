"""The sources: for each `source` that a row may name, the function that builds it from the parts of a run.

A row is refused when it is made where its source needs more than its configuration class has (methods/method.py): the
casts here only tell the type checker.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

from cohort.config import (
    DistillConfig,
    DPOConfig,
    GreedyBaselineConfig,
    GRPOProcessConfig,
    OnlineConfig,
    SampledConfig,
)
from cohort.rollouts.collect import training_sampling
from cohort.rollouts.encoding import encode_prompts
from cohort.train.sources.attachments import attach_greedy, attach_kl_reference, attach_step_ends
from cohort.train.sources.demonstrations import Demonstrations
from cohort.train.sources.pair_reference import PairReference
from cohort.train.sources.parts import Parts
from cohort.train.sources.preferences import Preferences, encoded_pairs, made_pairs
from cohort.train.sources.samples import Samples
from cohort.train.sources.samples_ahead import SamplesAhead, require_ahead
from cohort.train.sources.source import Source
from cohort.train.sources.starting_samples import KeptSamples, StartingSamples
from cohort.train.sources.teacher import attach_teacher, require_room
from cohort.types import Row


def _demonstrations(parts: Parts, rows: list[Row]) -> Source:
    return Demonstrations(rows, parts.policy, parts.config, parts.method)


def _samples(parts: Parts, rows: list[Row]) -> Source:
    config = cast(OnlineConfig, parts.config)
    prompts, attachments = encode_prompts(rows, parts.policy, config), parts.attachments
    if parts.reference is not None:
        reference = partial(attach_kl_reference, reference=parts.reference, config=config, engine=parts.engine)
        attachments = [reference, *attachments]
    if parts.teacher is not None and isinstance(config, DistillConfig):
        require_room(prompts, parts.teacher, config)
        attachments = [partial(attach_teacher, teacher=parts.teacher, config=config), *attachments]
    if isinstance(config, GRPOProcessConfig):
        attachments = [partial(attach_step_ends, tokenizer=parts.policy.tokenizer), *attachments]
    if isinstance(config, GreedyBaselineConfig):
        assert parts.rewards is not None
        sampling = training_sampling(config, parts.policy.eos_ids)
        greedy = partial(attach_greedy, engine=parts.engine, rewards=parts.rewards, sampling=sampling)
        attachments = [greedy, *attachments]
    if config.staleness:
        require_ahead(config.staleness, parts.engine)
    kind = SamplesAhead if config.staleness else Samples
    return kind(
        prompts,
        parts.policy,
        parts.engine,
        attachments,
        parts.rewards,
        config,
        parts.method,
        parts.health,
        parts.observer,
    )


def _starting_samples(parts: Parts, rows: list[Row]) -> StartingSamples:
    config = cast(SampledConfig, parts.config)
    assert parts.rewards is not None
    prompts = encode_prompts(rows, parts.policy, config)
    return StartingSamples(prompts, parts.policy, parts.engine, parts.rewards, config)


def _kept_samples(parts: Parts, rows: list[Row]) -> Source:
    return KeptSamples(_starting_samples(parts, rows), cast(SampledConfig, parts.config), parts.method)


def _preferences(parts: Parts, rows: list[Row]) -> Source:
    config, policy, reference = cast(DPOConfig, parts.config), parts.policy, PairReference(parts)
    if config.dpo_pairs is None:
        pairs = encoded_pairs(rows, policy, config)
        return Preferences(lambda folder, reuse: pairs, reference, config, parts.method, pairs)
    samples = _starting_samples(parts, rows)
    return Preferences(
        lambda folder, reuse: made_pairs(samples.groups(folder, reuse), config),
        reference,
        config,
        parts.method,
    )


SOURCES: dict[str, Callable[[Parts, list[Row]], Source]] = {
    "demonstrations": _demonstrations,
    "start": _kept_samples,
    "preferences": _preferences,
    "policy": _samples,
}
"""A row's `source` -> the function that builds it."""
