"""The outer loop of iterative GRPO (DeepSeekMath, arXiv 2402.03300, Algorithm 1): at the end of each iteration the
reward model learns from the policy's own samples, and the reference becomes the policy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from cohort.config import DPOConfig, OnlineConfig
from cohort.policy.reference import Reference
from cohort.train.iterations.refit import Refit
from cohort.train.monitors.overoptimization import GoldGuard
from cohort.train.monitors.reward_models import RewardModelGuard
from cohort.types import Group, UserError

RECORD, REFERENCE = "iteration.json", "reference.safetensors"
"""Files in a checkpoint's folder."""


class Iterations:
    """What changes between the steps of a run beside the policy: the reference and the reward model; and the monitors
    of both."""

    def __init__(
        self,
        config: OnlineConfig | DPOConfig,
        reference: Reference | None,
        refit: Refit | None = None,
        guard: RewardModelGuard | None = None,
        gold: GoldGuard | None = None,
    ):
        self.config, self.reference, self.refit, self.guard, self.gold = config, reference, refit, guard, gold
        self.refits = self.completions = 0
        if config.iterations > 1 and reference is not None:
            reference.follow()  # of an adapter that had learned before, the policy and not the bare model

    def see(self, groups: list[Group], step: int) -> dict[str, float]:
        """Take note of all groups sampled for the batch that begins with `step` (from 1); returns metrics."""
        self.completions += sum(len(group.completions) for group in groups)
        metrics = {"num_completions": float(self.completions)}
        if self.config.iterations > 1:
            assert self.config.steps_per_iteration is not None
            metrics["iteration"] = float((step - 1) // self.config.steps_per_iteration)
        if self.refit is not None:
            self.refit.see(groups)
        if self.guard is not None:
            metrics |= self.guard.see(groups)
        if self.gold is not None:
            metrics |= self.gold.see(groups, step, self.refits)
        return metrics

    def end_of_step(self, step: int) -> dict[str, float]:
        """Do what is due after `step`: refit the reward model, let the reference follow the policy. Returns what to
        log."""
        length = self.config.steps_per_iteration
        ends = length is not None and step % length == 0
        metrics: dict[str, float] = {}
        if self.refit is not None and (ends or self._within(step % length if length else step)):
            metrics = self.refit.fit(self.refits)
            self.refits += 1
        if ends and self.config.iterations > 1 and self.reference is not None:
            self.reference.follow()
        if self.config.sync_ref_model and self.reference is not None and step % self.config.ref_model_sync_steps == 0:
            self.reference.follow(self.config.ref_model_mixup_alpha)
        return metrics

    def _within(self, step: int) -> bool:
        """Whether a refit is due after this step of an iteration."""
        assert self.config.reward_model_refit is not None
        every = self.config.reward_model_refit.every
        return every is not None and step % every == 0

    def save(self, folder: Path) -> None:
        """Write the state that a resumed run needs into a checkpoint's folder."""
        record = {
            "refits": self.refits,
            "completions": self.completions,
            "guard": None if self.guard is None else self.guard.state(),
            "gold": None if self.gold is None else self.gold.state(),
        }
        (folder / RECORD).write_text(json.dumps(record), encoding="utf-8")
        if self.reference is not None and (tensors := self.reference.tensors()):
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / REFERENCE)
        if self.refit is not None:
            self.refit.save(folder)

    def restore(self, folder: Path) -> None:
        """Load what `save` wrote. Raises UserError for the checkpoint of a run without iterations."""
        record = _record(folder)
        self.refits, self.completions = record["refits"], record["completions"]
        for part, state in ((self.guard, record["guard"]), (self.gold, record["gold"])):
            if part is not None and state is not None:  # a guard that the run got only now starts with nothing
                part.restore(state)
        if self.reference is not None:
            self._restore_reference(self.reference, folder)
        if self.refit is not None:
            self.refit.restore(folder)

    def _restore_reference(self, reference: Reference, folder: Path) -> None:
        has_moved = (folder / REFERENCE).is_file()
        if self.config.iterations > 1 and not has_moved:
            raise UserError(f"{folder} has no {REFERENCE}: it is of a run of one iteration; resume without more")
        if has_moved and self.config.iterations == 1 and not self.config.sync_ref_model:
            raise UserError(f"{folder} has a {REFERENCE}: resume with the iterations or sync_ref_model that moved it")
        if has_moved:
            reference.restore(load_file(folder / REFERENCE))


def _record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    if not path.is_file():
        raise UserError(
            f"{folder} has no {RECORD}: it is of a run without iterations, sync_ref_model, reward models or "
            "gold_reward; resume with the settings it was made with"
        )
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record
