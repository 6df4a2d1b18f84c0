"""The plan of a run: its needs, those of PPO (or GRPO) and of padded rows to compare with, settings that lower them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cohort.config import DistillConfig, GRPOConfig, OnlineConfig, PPOConfig, RunConfig, TrainingConfig
from cohort.methods.named import find_method
from cohort.plan.blank import model_config, reward_model_bytes
from cohort.plan.costs import Batch, Costs, Lengths, count_costs, count_teacher, make_batch
from cohort.plan.machine import Machine
from cohort.plan.needs import Needs, needs, with_overhead
from cohort.policy.load import load_policy_config
from cohort.policy.teacher import chosen_teacher, frozen_settings


@dataclass(frozen=True)
class Change:
    """A setting that lowers the peak: Change("gradient_checkpointing=true", peak=21e9, step=40.0)"""

    keys: str
    peak: float
    """Peak bytes with this change and those before it."""
    step: float
    """Seconds of a step with them."""


@dataclass(frozen=True)
class Plan:
    """The estimate of a run, in bytes, seconds and tokens."""

    model: str
    method: str
    machine: Machine
    lengths: Lengths
    batch: Batch
    costs: Costs
    needs: Needs
    other: tuple[str, Needs] | None
    """(method, needs) of PPO with the same settings; of GRPO if the run is PPO's."""
    naive: float
    """Peak bytes of the usual way: the first micro-batch's completions as padded rows, all their logits in memory."""
    logits: float
    """Bytes of float32 logits of the first micro-batch's completions, which this package never holds."""
    steps: int | None
    """Optimiser steps of the run; None if they depend on the number of rows."""
    changes: list[Change]

    @property
    def fits(self) -> bool:
        return self.needs.peak <= self.machine.memory

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        run = None if self.steps is None else self.steps * self.needs.step
        return {
            "model": self.model,
            "method": self.method,
            "parameters": self.costs.weights.count,
            "trained_parameters": self.costs.weights.trained,
            "machine": asdict(self.machine),
            "prompt_length": self.lengths.prompt,
            "completion_length": self.lengths.completion,
            "micro_batches": len(self.batch.micro),
            "micro_batch_tokens": self.batch.first_tokens,
            "tokens_per_step": self.batch.tokens,
            "bytes": {"parts": self.needs.parts, "phases": self.needs.phases, "peak": self.needs.peak},
            "fits": self.fits,
            "logits_not_kept": self.logits,
            "naive_peak": self.naive,
            "seconds": {**self.needs.seconds, "step": self.needs.step, "run": run},
            "steps": self.steps,
            "compared_with": None
            if self.other is None
            else {"method": self.other[0], **asdict(self.other[1]), "peak": self.other[1].peak},
            "changes": [asdict(change) for change in self.changes],
        }


def make_plan(run: RunConfig, config: TrainingConfig, machine: Machine, lengths: Lengths) -> Plan:
    """Raises UserError for an unknown model, or one whose passes cannot be counted."""
    method = find_method(run.method)
    of_model = model_config(run, config)
    of_teacher = _teacher_config(config) if isinstance(config, DistillConfig) else None
    judges = sum(reward_model_bytes(name, machine.device) for name in reward_models(run))

    def estimate(config: TrainingConfig, lengths: Lengths, padded: bool = False) -> tuple[Batch, Costs, Needs]:
        batch = make_batch(method, config, lengths)
        costs = count_costs(of_model, config, machine, batch, padded)
        if isinstance(config, DistillConfig):
            costs = replace(costs, teacher=count_teacher(of_teacher, frozen_settings(config), machine, batch))
        return batch, costs, needs(costs, config, machine, batch, lengths, judges)

    batch, costs, needed = estimate(config, lengths, padded=True)
    naive = needed.persistent + costs.padded.peak
    completions = sum(len(ids) for part in batch.micro[0] for ids in part.completion_ids)
    changes = []
    if needed.peak > machine.memory:
        for keys, values in alternatives(config, machine, batch):
            changed = config.model_copy(update=values)
            shorter = Lengths(lengths.prompt, min(lengths.completion, changed.max_completion_length))
            _, _, after = estimate(changed, shorter)
            changes.append(Change(keys, after.peak, after.step))
            if after.peak <= machine.memory:
                break
    return Plan(
        model=run.model,
        method=run.method,
        machine=machine,
        lengths=lengths,
        batch=batch,
        costs=costs,
        needs=needed,
        other=_other(config, costs, machine, batch, lengths, judges),
        naive=with_overhead(naive, machine),
        logits=4.0 * completions * of_model.get_text_config().vocab_size,
        steps=steps(run, config),
        changes=changes,
    )


def _teacher_config(config: DistillConfig) -> Any:
    return load_policy_config(chosen_teacher(None, config), trust_remote_code=config.trust_remote_code)


def reward_models(run: RunConfig) -> list[str]:
    """The rewards that are models: `owner/model`, a directory, or `{model: ...}`."""
    given = [spec["model"] for spec in run.reward_funcs if isinstance(spec, dict) and "model" in spec]
    names = [spec.get("name") if isinstance(spec, dict) else spec for spec in run.reward_funcs]
    return given + [
        name for name in names if isinstance(name, str) and ":" not in name and ("/" in name or _is_model(name))
    ]


def _is_model(name: str) -> bool:
    return any((Path(name) / file).is_file() for file in ("config.json", "adapter_config.json"))


def _other(
    config: TrainingConfig, costs: Costs, machine: Machine, batch: Batch, lengths: Lengths, judges: float
) -> tuple[str, Needs] | None:
    """(method, needs) to compare with: PPO with an online method's settings, GRPO with PPO's; one update for each
    sampled batch. Neither has a teacher."""
    if not isinstance(config, OnlineConfig):
        return None
    kind = GRPOConfig if isinstance(config, PPOConfig) else PPOConfig
    shared = {key: getattr(config, key) for key in config.model_fields_set & set(kind.model_fields)}
    weight = {"beta": 0.04, "kl_coef": 0.05} if config.needs_reference else {"beta": 0.0, "kl_coef": 0.0}
    fixed = {key: value for key, value in {**weight, "num_ppo_epochs": 1}.items() if key in kind.model_fields}
    rows = {"num_generations": max(batch.rows, 2 if kind is GRPOConfig else 1)}
    other = kind(**{**shared, **fixed, **rows})
    alone = replace(costs, teacher=None)
    return ("ppo" if kind is PPOConfig else "grpo"), needs(alone, other, machine, batch, lengths, judges)


def steps(run: RunConfig, config: TrainingConfig) -> int | None:
    """Optimiser steps of the run; None if they depend on the number of rows."""
    if config.max_steps > 0:
        return config.max_steps
    if run.max_samples is None:
        return None
    chunks, iterations = config.batch_uses
    per_step = config.prompts_per_step if isinstance(config, OnlineConfig) else config.batch_size
    return math.ceil(config.num_train_epochs * run.max_samples / (per_step * chunks)) * chunks * iterations


def alternatives(config: TrainingConfig, machine: Machine, batch: Batch) -> Iterator[tuple[str, dict[str, Any]]]:
    """(text, changed keys) of settings that lower memory, each added to those before it: first settings that do not
    change the gradient, then fewer trained weights, then shorter or fewer completions."""
    single: list[tuple[str, dict[str, Any]]] = []
    kwargs = config.model_init_kwargs
    in_half = ("model_init_kwargs={dtype: bfloat16}", {"model_init_kwargs": {**kwargs, "dtype": "bfloat16"}})
    can_be_half = machine.bf16 and "dtype" not in kwargs  # trained weights are float32 in any case
    if can_be_half and config.finetuning_type != "full":
        single.append(in_half)
    if not config.gradient_checkpointing:
        single.append(("gradient_checkpointing=true", {"gradient_checkpointing": True}))
    part = batch.micro[0][0]
    least = len(part.prompt_ids) + len(part.completion_ids[0])
    for divisor in (2, 4, 8):
        budget = max(least, min(config.token_budget, batch.first_tokens) // divisor)
        single.append((f"token_budget={budget}", {"token_budget": budget}))
        if budget == least:
            break
    if batch.sampled and config.max_rows > 2 * batch.rows:
        rows = max(batch.rows, config.max_rows // 4)
        single.append((f"max_rows={rows}", {"max_rows": rows}))
    if machine.device == "cuda" and config.finetuning_type != "lora" and "8bit" not in config.optim:
        single.append(("optim=paged_adamw_8bit", {"optim": "paged_adamw_8bit"}))
    if config.finetuning_type == "full":
        single.append(("finetuning_type=lora", {"finetuning_type": "lora"}))
        if can_be_half:
            single.append(in_half)
    if config.max_completion_length > 256:
        half = config.max_completion_length // 2
        single.append((f"max_completion_length={half}", {"max_completion_length": half}))
    if isinstance(config, OnlineConfig) and config.num_generations > 4:
        half = config.num_generations // 2
        single.append((f"num_generations={half}", {"num_generations": half}))
    together: dict[str, Any] = {}
    for keys, values in single:
        together = {**together, **values}
        yield keys, together
