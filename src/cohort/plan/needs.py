"""The needs of a run, from the costs of its passes: bytes of its parts and phases, seconds of a step."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass, field

from cohort.config import PPOConfig, TrainingConfig
from cohort.plan.costs import Batch, Costs, Lengths
from cohort.plan.machine import Machine
from cohort.policy.decoding import has_room_for
from cohort.policy.fast.products import onednn_is_better
from cohort.policy.packed.cache import GROWTH
from cohort.train.optimizer import bitsandbytes_class

CUDA_CONTEXT = 0.6 * 2**30
"""Bytes of CUDA's context and libraries."""
ALLOCATOR_WASTE = 0.05
"""Memory that PyTorch's CUDA allocator reserves beyond the tensors, as a share of their bytes."""
HEAP_HOLES = 0.7
"""Resident memory that holes in the C library's heap add on a CPU, as a share of the tensors' bytes: the most that
bench/plan.py measured."""
ONEDNN_KERNELS = 150 * 2**20
"""Bytes of the kernels that oneDNN compiles and caches for each shape: 110 to 200 MiB in bench/plan.py."""
SHARE_OF_PEAK = 0.5
"""The FLOP/s of whole passes, as a share of a large matrix product's."""


@dataclass
class Needs:
    """Bytes by part and by phase, seconds by phase. A phase takes less than the sum of its parts, which are not all
    allocated at once."""

    parts: dict[str, float] = field(default_factory=dict)
    phases: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    persistent: float = 0.0
    """Bytes that are allocated in every phase."""

    @property
    def peak(self) -> float:
        return max(self.phases.values())

    @property
    def step(self) -> float:
        """Seconds of one optimiser step with its part of sampling and scoring."""
        return sum(self.seconds.values())


def needs(
    costs: Costs, config: TrainingConfig, machine: Machine, batch: Batch, lengths: Lengths, reward_models: float
) -> Needs:
    """`reward_models`: bytes of the reward models."""
    total = Needs()
    parts, phases = total.parts, total.phases
    weights, update = costs.weights, costs.update
    parts["weights"] = weights.size
    parts["reference"] = weights.size if _copies_reference(config) else 0.0
    parts["teacher"] = 0.0 if costs.teacher is None else costs.teacher.size
    parts["reward models"] = reward_models
    own_critic = isinstance(config, PPOConfig) and config.critic == "own"
    parts["critic"] = weights.backbone_trained_size if own_critic else 0.0
    parts["optimiser"] = optimizer_state_bytes(config, machine, weights.trained, weights.trained_size)
    if own_critic:
        parts["critic's optimiser"] = optimizer_state_bytes(
            config, machine, weights.backbone_trained, weights.backbone_trained_size
        )
    parts["unpacked"] = weights.unpacked
    base = sum(parts.values())
    parts["gradients"] = weights.trained_size
    parts["activations"] = update.activations
    parts["head"] = update.head
    if batch.sampled:
        cache, sampling = _cache_bytes(costs, config, batch, lengths), costs.sample.peak
        fused = config.finetuning_type != "lora" or has_room_for(weights.decoder, machine.memory)
        decoder = weights.decoder if fused else 0
        parts["decoder"], parts["KV cache"], parts["sampling"] = decoder, cache, sampling
        reused = update.activations if decoder and _reuses_activations(config, machine, batch) else 0.0
        phases["generate"] = base + decoder + reused + max(costs.prefill.peak, cache + sampling)
        if costs.teacher is not None:
            phases["score"] = base + reused + costs.teacher.score.peak
        elif needs_scoring(config):
            phases["score"] = base + reused + costs.score.peak
    phases["update"] = base + max(update.peak, weights.trained_size)
    if own_critic:
        phases["critic"] = base + max(costs.score.peak, update.backward, weights.backbone_trained_size)
    total.persistent = base
    total.phases = {phase: with_overhead(taken, machine) for phase, taken in phases.items()}
    total.seconds = _seconds(costs, config, machine, batch, lengths)
    return total


def with_overhead(tensors: float, machine: Machine) -> float:
    """Bytes of the tensors plus those that the device's libraries and allocator take."""
    if machine.device == "cuda":
        return tensors * (1 + ALLOCATOR_WASTE) + CUDA_CONTEXT
    return tensors + ONEDNN_KERNELS if machine.bf16 or onednn_is_better() else tensors


def _copies_reference(config: TrainingConfig) -> bool:
    return config.needs_reference and config.finetuning_type != "lora"


def needs_scoring(config: TrainingConfig) -> bool:
    """Whether sampled completions are scored before the update: by a reference, or by a critic."""
    return isinstance(config, PPOConfig) or config.needs_reference


def _reuses_activations(config: TrainingConfig, machine: Machine, batch: Batch) -> bool:
    """Whether sampling stores activations that the update then does not recompute."""
    return machine.device == "cpu" and len(batch.micro) == 1 and config.kept_tokens > 0


def optimizer_state_bytes(config: TrainingConfig, machine: Machine, count: int, size: int) -> float:
    """Bytes of AdamW's two moments of `count` parameters, `size` their bytes. They have the parameters' type; with
    bitsandbytes they are float32, or 8 bits with a float32 for each 256 of them."""
    kind = bitsandbytes_class(config.optim, machine.device)
    if machine.device == "cpu" and importlib.util.find_spec("bitsandbytes") is None:
        kind = None  # torch's AdamW takes its place
    if kind is None:
        return 2.0 * size
    return 2.0 * count * (1 + 4 / 256) if "8bit" in kind else 8.0 * count


def _cache_bytes(costs: Costs, config: TrainingConfig, batch: Batch, lengths: Lengths) -> float:
    """Bytes of the key/value cache at its largest."""
    rows = min(config.max_rows, batch.groups * batch.rows)
    groups = math.ceil(rows / batch.rows)
    # The cache grows by steps, so its capacity exceeds what is written to it.
    capacity = lengths.completion + max(GROWTH, lengths.completion // 8)
    return (groups * lengths.prompt + rows * capacity) * costs.kv_per_token


def _seconds(
    costs: Costs, config: TrainingConfig, machine: Machine, batch: Batch, lengths: Lengths
) -> dict[str, float]:
    """Seconds of one optimiser step by phase. A sampled batch serves several steps, which share its seconds."""
    rate = machine.flops * SHARE_OF_PEAK
    scale = batch.tokens / batch.first_tokens
    """The step's tokens over those of the first micro-batch, whose costs are known."""
    uses = config.batch_uses[1]
    update, score = costs.update.flops * scale / rate, costs.score.flops * scale / rate
    seconds = {}
    if batch.sampled:
        completions = batch.groups * batch.rows
        per_token = costs.score.flops / batch.first_tokens
        rows = min(config.max_rows, completions)
        waves = math.ceil(completions / rows)
        cache = rows * (lengths.completion / 2) * costs.kv_per_token
        read = (costs.weights.read + cache) / machine.bandwidth
        step = max(read, rows * per_token / rate)
        prefill = batch.groups * lengths.prompt * per_token / rate
        seconds["generate"] = (prefill + waves * lengths.completion * step) / uses
        if costs.teacher is not None:
            seconds["score"] = costs.teacher.score.flops * scale / rate / uses
        elif config.needs_reference:
            seconds["score"] = score / uses
    if isinstance(config, PPOConfig):
        seconds["critic"] = score / uses + (update if config.critic == "own" else 0.0)
    seconds["update"] = update
    return seconds
