"""From what the passes took to what a run needs: the memory of its parts and phases, the seconds of its steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from cohort.config import PPOConfig, TrainingConfig
from cohort.plan.figures import Batch, Figures, Lengths
from cohort.plan.machine import Machine
from cohort.policy.decoding import has_room_for
from cohort.policy.fast.products import onednn_is_better
from cohort.policy.packed.cache import GROWTH
from cohort.train.optimizer import BITSANDBYTES

CONTEXT = 0.6 * 2**30
"""Bytes of CUDA's context and libraries."""
WASTE = 0.05
"""Share that PyTorch's allocator on a GPU holds beside what is in use."""
HOLES = 0.7
"""Of a CPU run's tensors, the most that holes in the C library's heap added to resident memory (bench/plan.py)."""
KERNELS = 150 * 2**20
"""Bytes of what oneDNN compiles and keeps for the shapes that it has seen: 110 to 200 MiB in bench/plan.py."""
SHARE_OF_PEAK = 0.5
"""Of the rate of a large matrix product, what whole passes reach."""


@dataclass
class Needs:
    """Bytes by part and by phase, seconds by phase. The parts of a phase are not all there at one moment, so a phase
    takes less than their sum."""

    parts: dict[str, float] = field(default_factory=dict)
    phases: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    persistent: float = 0.0
    """Bytes that are there in every phase."""

    @property
    def peak(self) -> float:
        return max(self.phases.values())

    @property
    def step(self) -> float:
        """Seconds of one optimiser step, its share of sampling included."""
        return sum(self.seconds.values())


def needs(
    found: Figures, config: TrainingConfig, machine: Machine, batch: Batch, lengths: Lengths, models: float
) -> Needs:
    """`models`: bytes of reward models."""
    total = Needs()
    parts, phases = total.parts, total.phases
    weights, update = found.weights, found.update
    parts["weights"] = weights.size
    parts["reference"] = weights.size if _copies_reference(config) else 0.0
    parts["reward models"] = models
    own_critic = isinstance(config, PPOConfig) and config.critic == "own"
    parts["critic"] = weights.backbone_trained_size if own_critic else 0.0
    parts["optimiser"] = states(config, machine, weights.trained, weights.trained_size)
    if own_critic:
        parts["critic's optimiser"] = states(config, machine, weights.backbone_trained, weights.backbone_trained_size)
    parts["unpacked"] = weights.unpacked
    base = sum(parts.values())
    parts["gradients"] = weights.trained_size
    parts["activations"] = update.kept
    parts["head"] = update.head
    if batch.sampled:
        cache, sampling = _decoding(found, config, batch, lengths)
        fused = config.finetuning_type != "lora" or has_room_for(weights.decoder, machine.memory)
        decoder = weights.decoder if fused else 0
        parts["decoder"], parts["KV cache"], parts["sampling"] = decoder, cache, sampling
        known = update.kept if decoder and _keeps(config, machine, batch) else 0.0
        phases["generate"] = base + decoder + known + max(found.prefill.peak, cache + sampling)
        if needs_scoring(config):
            phases["score"] = base + known + found.score.peak
    phases["update"] = base + max(update.peak, weights.trained_size)
    if own_critic:
        phases["critic"] = base + max(found.score.peak, update.backward, weights.backbone_trained_size)
    total.persistent = base
    total.phases = {phase: overhead(taken, machine) for phase, taken in phases.items()}
    total.seconds = _seconds(found, config, machine, batch, lengths)
    return total


def overhead(taken: float, machine: Machine) -> float:
    """With what the device's libraries and allocator add."""
    if machine.device == "cuda":
        return taken * (1 + WASTE) + CONTEXT
    return taken + KERNELS if machine.bf16 or onednn_is_better() else taken


def _copies_reference(config: TrainingConfig) -> bool:
    return config.needs_reference and config.finetuning_type != "lora"


def needs_scoring(config: TrainingConfig) -> bool:
    return isinstance(config, PPOConfig) or config.needs_reference


def _keeps(config: TrainingConfig, machine: Machine, batch: Batch) -> bool:
    """Whether sampling keeps what the update's layers would make."""
    return machine.device == "cpu" and len(batch.micro) == 1 and config.kept_tokens > 0


def states(config: TrainingConfig, machine: Machine, count: int, size: int) -> float:
    """Bytes of AdamW's two moments: in the parameters' own type; bitsandbytes' in 8 bits with a float32 for each 256
    of them, or in float32."""
    kind = BITSANDBYTES.get(config.optim) if machine.device == "cuda" else None
    if kind is None:
        return 2.0 * size
    return 2.0 * count * (1 + 4 / 256) if "8bit" in kind else 8.0 * count


def _decoding(found: Figures, config: TrainingConfig, batch: Batch, lengths: Lengths) -> tuple[float, float]:
    """Bytes of the cache at its largest, and of drawing a token of each row."""
    rows = min(config.max_rows, batch.groups * batch.rows)
    groups = math.ceil(rows / batch.rows)
    # Room grows by a quarter at a time, so a little more than is written.
    capacity = lengths.completion + max(GROWTH, lengths.completion // 8)
    return (groups * lengths.prompt + rows * capacity) * found.kv_per_token, found.sample.peak


def _seconds(
    found: Figures, config: TrainingConfig, machine: Machine, batch: Batch, lengths: Lengths
) -> dict[str, float]:
    rate = machine.flops * SHARE_OF_PEAK
    share = batch.tokens / batch.first_tokens
    """Micro-batches of the step, in first ones."""
    uses = config.batch_uses[1]
    # Chunks are optimiser steps that share a sampled batch of as many times the prompts: a step pays its own.
    update, score = found.update.flops * share / rate, found.score.flops * share / rate
    seconds = {}
    if batch.sampled:
        completions = batch.groups * batch.rows
        per_token = found.score.flops / batch.first_tokens
        rows = min(config.max_rows, completions)
        waves = math.ceil(completions / rows)
        cache = rows * (lengths.completion / 2) * found.kv_per_token
        read = (found.weights.read + cache) / machine.bandwidth
        step = max(read, rows * per_token / rate)
        prefill = batch.groups * lengths.prompt * per_token / rate
        seconds["generate"] = (prefill + waves * lengths.completion * step) / uses
        if config.needs_reference:
            seconds["score"] = score / uses
    if isinstance(config, PPOConfig):
        seconds["critic"] = score / uses + (update if config.critic == "own" else 0.0)
    seconds["update"] = update
    return seconds
