"""Costs of one optimiser step's passes, counted on fake tensors: of the whole model, or extrapolated from two short
ones with fewer layers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from cohort.config import OnlineConfig, SampledConfig, TrainingConfig
from cohort.methods.method import Method
from cohort.plan import passes
from cohort.plan.blank import BlankPolicy, Weights, blank_model, shortened, weights
from cohort.plan.machine import Machine
from cohort.plan.passes import ForwardCost, UpdateCost
from cohort.policy.packed.pack import Part, micro_batches
from cohort.rollouts.decoding import PREFILL_TOKENS
from cohort.rollouts.sampling import Sampling
from cohort.types import UserError

NEEDS_VALUES = (DataDependentOutputException, DynamicOutputShapeException)
EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts")
MAX_WHOLE_LAYERS = 6
"""A model with more layers is extrapolated."""
PASSES = ("update", "score", "prefill", "sample", "padded")
SHORT_LAYERS = (2, 4)
"""Layers of the two models that a longer one is extrapolated from."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of each prompt and of each completion in the plan."""

    prompt: int
    completion: int


class Teacher(NamedTuple):
    """Teacher(size=1.2e9, score=ForwardCost(...))"""

    size: float
    """Bytes of its weights."""
    score: ForwardCost


@dataclass(frozen=True)
class Costs:
    """Bytes and FLOPs of the passes over the first micro-batch."""

    weights: Weights
    update: UpdateCost
    score: ForwardCost
    prefill: ForwardCost
    sample: ForwardCost
    padded: UpdateCost
    """The same completions as padded rows; zeros unless asked for."""
    grouped: bool
    """Whether the model runs the grouped attention."""
    kv_per_token: float
    """Bytes of one token's keys and values in all layers."""
    teacher: Teacher | None = None
    """What a teacher adds, which scores the same completions."""


@dataclass(frozen=True)
class Batch:
    """The micro-batches of one optimiser step, and the groups that are sampled for it."""

    micro: list[list[Part]]
    groups: int
    rows: int
    """Completions of a group."""
    sampled: bool
    """Whether the current policy samples them."""

    @property
    def tokens(self) -> int:
        return sum(part.tokens for micro in self.micro for part in micro)

    @property
    def first_tokens(self) -> int:
        """Tokens of the first micro-batch, on which the passes are counted."""
        return sum(part.tokens for part in self.micro[0])


def make_batch(method: Method, config: TrainingConfig, lengths: Lengths) -> Batch:
    """The batch of one optimiser step with all prompts and completions of the plan's lengths."""
    if isinstance(config, OnlineConfig):
        groups, rows = config.prompts_per_step, config.num_generations
    else:
        groups, rows = config.batch_size, 2 if method.source == "preferences" else 1
    prompt = torch.zeros(lengths.prompt, dtype=torch.long)
    different = [torch.full((lengths.completion,), row) for row in range(rows)]
    parts = [Part(g, prompt, range(rows), different) for g in range(groups)]
    micro = list(micro_batches(parts, config.token_budget, whole=method.sees(config) == "group"))
    return Batch(micro, groups, rows, method.source == "policy")


def count_costs(model_config: Any, config: TrainingConfig, machine: Machine, batch: Batch, padded: bool) -> Costs:
    """Count the passes, on two short models if there are many layers. Raises UserError for a model whose passes read
    values of tensors, or do not run on fake tensors."""
    model, _, quantized = blank_model(model_config, config, machine.bf16)
    whole = weights(model, config, quantized, machine.bf16)
    layers = model_config.get_text_config().num_hidden_layers

    def count(first_layers: int) -> Costs:
        try:
            short = model_config if first_layers == layers else shortened(model_config, first_layers)
            return _run_passes(BlankPolicy(short, config, machine.device, machine.bf16), config, batch, padded)
        except NEEDS_VALUES as error:
            raise UserError(
                f"this model cannot be planned: its passes depend on values of tensors ({error})"
            ) from error
        except RuntimeError as error:
            if not any(hasattr(model_config.get_text_config(), key) for key in EXPERT_KEYS):
                raise
            # PyTorch has the fake kernel of the product over experts in bfloat16 only.
            raise UserError("a mixture of experts can be planned in bfloat16 only: set bf16: true") from error

    if layers <= MAX_WHOLE_LAYERS:
        return count(layers)
    few, more = (count(n) for n in SHORT_LAYERS)
    extrapolated = _extrapolate(few.weights.count, more.weights.count, layers)
    if abs(extrapolated - whole.count) > 0.001 * whole.count:
        return count(layers)  # layers differ in size
    passes = {name: _extrapolate_pass(getattr(few, name), getattr(more, name), layers) for name in PASSES}
    kv_per_token = _extrapolate(few.kv_per_token, more.kv_per_token, layers)
    return replace(few, weights=whole, kv_per_token=kv_per_token, **passes)


def count_teacher(model_config: Any, config: TrainingConfig, machine: Machine, batch: Batch) -> Teacher:
    """The weights and the scoring pass of a frozen model with these settings."""
    model, _, quantized = blank_model(model_config, config, machine.bf16, trained=False)
    layers = model_config.get_text_config().num_hidden_layers

    def score(first_layers: int) -> ForwardCost:
        short = model_config if first_layers == layers else shortened(model_config, first_layers)
        return passes.score(BlankPolicy(short, config, machine.device, machine.bf16, trained=False), batch.micro[0])

    if layers <= MAX_WHOLE_LAYERS:
        cost = score(layers)
    else:
        few, more = (score(n) for n in SHORT_LAYERS)
        cost = _extrapolate_pass(few, more, layers)
    return Teacher(weights(model, config, quantized, machine.bf16).size, cost)


PassCost = TypeVar("PassCost", UpdateCost, ForwardCost)


def _extrapolate_pass(few: PassCost, more: PassCost, layers: int) -> PassCost:
    return type(few)(*(_extrapolate(x, y, layers) for x, y in zip(few, more, strict=True)))


def _extrapolate(few: float, more: float, layers: int) -> float:
    """The value at `layers`, linear in the number of layers, from the values of the two short models."""
    a, b = SHORT_LAYERS
    return few + (more - few) / (b - a) * (layers - a)


def _run_passes(blank: BlankPolicy, config: TrainingConfig, batch: Batch, padded: bool) -> Costs:
    first = batch.micro[0]
    rows = sum(len(part.rows) for part in first)
    length = len(first[0].prompt_ids) + len(first[0].completion_ids[0])
    prompts = [first[0].prompt_ids] * _prompts_per_prefill(config, batch, len(first[0].prompt_ids))
    sampling = Sampling()
    if isinstance(config, SampledConfig):
        sampling = Sampling(config.temperature, config.top_p, config.top_k, config.min_p)
    return Costs(
        blank.weights,
        passes.update(blank, first, accumulates=len(batch.micro) > 1),
        passes.score(blank, first),
        passes.prefill(blank, prompts) if blank.policy.packed else ForwardCost(0.0, 0.0),
        passes.sample(blank, min(config.max_rows, batch.groups * batch.rows), sampling),
        passes.padded(blank, rows, length) if padded else UpdateCost(0.0, 0.0, 0.0, 0.0, 0.0),
        blank.policy.packed,
        _kv_per_token(blank),
    )


def _kv_per_token(blank: BlankPolicy) -> float:
    text = blank.policy.model.config.get_text_config()
    heads = getattr(text, "num_attention_heads", None)
    if heads is None:  # a state-space model: its state does not grow with the length
        return 0.0
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    size = 2 if blank.bf16 else next(blank.policy.model.parameters()).element_size()
    key_value_heads = getattr(text, "num_key_value_heads", None) or heads
    return float(2.0 * text.num_hidden_layers * key_value_heads * width * size)


def _prompts_per_prefill(config: TrainingConfig, batch: Batch, prompt: int) -> int:
    groups_at_once = max(1, config.max_rows // batch.rows)
    return max(1, min(batch.groups, groups_at_once, PREFILL_TOKENS // prompt))
