"""`cohort plan`: what a configuration needs, beside it PPO and the usual padded pass, and what could be changed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cohort.config import GRPOConfig, OnlineConfig, PPOConfig, RunConfig, TrainingConfig
from cohort.methods.named import find_method
from cohort.plan.blank import blank_reward_model, model_config
from cohort.plan.figures import Batch, Figures, Lengths, figures, make_batch
from cohort.plan.machine import Machine
from cohort.plan.needs import Needs, needs, overhead


@dataclass(frozen=True)
class Change:
    """A setting that lowers the peak. Change("gradient_checkpointing=true", 21e9, 40.0)"""

    keys: str
    peak: float
    """Bytes with it."""
    step: float
    """Seconds of a step with it."""


@dataclass(frozen=True)
class Plan:
    """The estimate of a run; bytes, seconds, tokens."""

    model: str
    method: str
    machine: Machine
    lengths: Lengths
    batch: Batch
    figures: Figures
    needs: Needs
    other: tuple[str, Needs] | None
    """The method it is compared with on the same settings, and what that would need."""
    naive: float
    """The most bytes where the first micro-batch's completions are padded rows whose logits are kept."""
    logits: float
    """Bytes of float32 logits of the first micro-batch's completions: not kept here."""
    steps: int | None
    """Optimiser steps of the run, where the configuration says."""
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
            "parameters": self.figures.weights.count,
            "trained_parameters": self.figures.weights.trained,
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
    """Raises UserError for a model that is none, or whose passes cannot be counted."""
    method = find_method(run.method)
    found = model_config(run, config)
    judges = sum(blank_reward_model(name, machine.device) for name in reward_models(run))

    def estimate(config: TrainingConfig, lengths: Lengths, padded: bool = False) -> tuple[Batch, Figures, Needs]:
        batch = make_batch(method, config, lengths)
        counted = figures(found, config, machine, batch, padded)
        return batch, counted, needs(counted, config, machine, batch, lengths, judges)

    batch, counted, needed = estimate(config, lengths, padded=True)
    naive = needed.persistent + counted.padded.peak
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
        figures=counted,
        needs=needed,
        other=_other(config, counted, machine, batch, lengths, judges),
        naive=overhead(naive, machine),
        logits=4.0 * completions * found.get_text_config().vocab_size,
        steps=steps(run, config),
        changes=changes,
    )


def reward_models(run: RunConfig) -> list[str]:
    """Names of the models among the rewards: `owner/model`, a directory, or `{model: ...}`."""
    names = [spec.get("model", spec.get("name")) if isinstance(spec, dict) else spec for spec in run.reward_funcs]
    return [
        name
        for name in names
        if isinstance(name, str) and ":" not in name and ("/" in name or (Path(name) / "config.json").is_file())
    ]


def _other(
    config: TrainingConfig, counted: Figures, machine: Machine, batch: Batch, lengths: Lengths, judges: float
) -> tuple[str, Needs] | None:
    """PPO on an online method's settings, GRPO on PPO's: one pass over each batch, a critic of its own or none."""
    if not isinstance(config, OnlineConfig):
        return None
    kind = GRPOConfig if isinstance(config, PPOConfig) else PPOConfig
    shared = {key: getattr(config, key) for key in config.model_fields_set & set(kind.model_fields)}
    weight = {"beta": 0.04, "kl_coef": 0.05} if config.needs_reference else {"beta": 0.0, "kl_coef": 0.0}
    own = {key: value for key, value in {**weight, "num_ppo_epochs": 1}.items() if key in kind.model_fields}
    rows = {"num_generations": max(batch.rows, 2 if kind is GRPOConfig else 1)}
    other = kind(**{**shared, **own, **rows})
    return ("ppo" if kind is PPOConfig else "grpo"), needs(counted, other, machine, batch, lengths, judges)


def steps(run: RunConfig, config: TrainingConfig) -> int | None:
    """Optimiser steps of the run; None where that is a matter of how many rows the data has."""
    if config.max_steps > 0:
        return config.max_steps
    if run.max_samples is None:
        return None
    chunks, iterations = config.batch_uses
    per_step = config.prompts_per_step if isinstance(config, OnlineConfig) else config.batch_size
    return math.ceil(config.num_train_epochs * run.max_samples / (per_step * chunks)) * chunks * iterations


def alternatives(config: TrainingConfig, machine: Machine, batch: Batch) -> Iterator[tuple[str, dict[str, Any]]]:
    """(keys, their values) that lower memory, each with those before it: first what changes no gradient, then what
    trains fewer weights, then what changes what is learned."""
    single = []
    kwargs = config.model_init_kwargs
    if machine.bf16 and not {"dtype", "torch_dtype"} & set(kwargs):
        single.append(("model_init_kwargs={dtype: bfloat16}", {"model_init_kwargs": {**kwargs, "dtype": "bfloat16"}}))
    if not config.gradient_checkpointing:
        single.append(("gradient_checkpointing=true", {"gradient_checkpointing": True}))
    part = batch.micro[0][0]
    least = len(part.prompt_ids) + len(part.completion_ids[0])
    for share in (2, 4, 8):
        budget = max(least, min(config.token_budget, batch.first_tokens) // share)
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
