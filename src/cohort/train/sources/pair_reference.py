"""The reference that pairs are compared with: the model before its first update, another model, or one that follows the
policy."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

from cohort.config import DPOConfig, OnlineConfig, TrainingConfig
from cohort.policy.load import make_policy
from cohort.policy.model import Policy
from cohort.policy.reference import Reference, reference_of
from cohort.train.sources.attachments import attach_reference
from cohort.train.sources.parts import Parts
from cohort.types import Group, UserError

log = logging.getLogger("cohort")


def reference_model(model: Any, policy: Policy, config: TrainingConfig) -> Policy:
    """A frozen reference model, given by name or as a model. Raises UserError where it cannot serve as one."""
    if model is policy.model or model is policy.peft:
        raise UserError("ref_model is the model itself, which training changes: leave it out, and the start is meant")
    reference = make_policy(model, policy.tokenizer, config, trained=False)
    if reference.head.output.weight.shape[0] != policy.head.output.weight.shape[0]:
        raise UserError(f"ref_model {reference.name!r} has another vocabulary than the model {policy.name!r}")
    return reference


def kept_reference(policy: Policy, start: Policy, config: TrainingConfig) -> Reference | None:
    """The reference that a run keeps beside its policy; None where it needs none. `start`: the policy itself, or the
    `ref_model` of DPO."""
    if isinstance(config, OnlineConfig):
        return reference_of(policy) if config.needs_reference else None
    if not isinstance(config, DPOConfig):
        return None
    given = start is not policy
    if config.sync_ref_model and given and policy.peft is not None:
        raise UserError("sync_ref_model with an adapter moves the adapter, and ref_model is another model: give one")
    if not config.sync_ref_model and (given or policy.peft is None or policy.is_sharded):
        return None
    reference = reference_of(policy, start if given else None)
    if policy.peft is not None and not reference.is_policy():
        reference.follow()  # the start is the model with the adapter that it came with
    return reference


def require_random_access(config: TrainingConfig, *datasets: Any) -> None:
    """Raise UserError for precompute_ref_log_probs and a dataset, or one in a dictionary, without random access."""
    if not isinstance(config, DPOConfig) or not config.precompute_ref_log_probs:
        return
    every: Iterable[Any] = [
        each for given in datasets for each in (given.values() if isinstance(given, Mapping) else [given])
    ]
    if any(type(each).__name__ == "IterableDataset" for each in every):
        raise UserError(
            "`precompute_ref_log_probs=True` is not supported with IterableDataset: give a datasets.Dataset, or leave "
            "precompute_ref_log_probs out"
        )


class PairReference:
    """Sets the reference log-probabilities of pairs."""

    def __init__(self, parts: Parts):
        self.policy, self.start, self.kept = parts.policy, parts.start, parts.reference
        self.config, self.name = cast(DPOConfig, parts.config), parts.start_name
        self.moves = self.config.sync_ref_model

    def attach(self, groups: list[Group]) -> None:
        """Under the reference as it is now."""
        was_training = self.policy.model.training
        self.policy.model.eval()
        attach_reference(groups, self._lent, self.config)
        self.policy.model.train(was_training)

    def _lent(self) -> AbstractContextManager[Policy]:
        if self.moves:
            assert self.kept is not None
            return self.kept()
        if self.start is not self.policy or self.policy.version == 0:
            return nullcontext(self.start)
        if self.config.precompute_ref_log_probs:
            raise UserError(
                "Cannot compute reference log-probs for a dataset passed to evaluate() after training has started: "
                "with precompute_ref_log_probs the reference is not kept. Give it to the trainer as eval_dataset, pass "
                "ref_model, or leave precompute_ref_log_probs out"
            )
        if self.kept is not None:
            return self.kept()
        if self.name is None or self.policy.is_sharded:
            raise UserError(
                "the reference is the model before training, which has changed, and it was not given by a name from "
                "which it could be loaded again: give this dataset to the trainer as eval_dataset, or pass ref_model"
            )
        log.info("the reference, %s as it was before training, is loaded again", self.name)
        self.start = reference_model(self.name, self.policy, self.config)
        return nullcontext(self.start)
