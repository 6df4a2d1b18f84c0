"""What one optimiser step's passes take, measured on a model without weights, whole or followed from a short one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from cohort.config import OnlineConfig, SampledConfig, TrainingConfig
from cohort.methods.method import Method
from cohort.plan import passes
from cohort.plan.blank import Blank, Weights, blank_model, shortened, weights
from cohort.plan.machine import Machine
from cohort.plan.passes import Forward, Update
from cohort.policy.packed.pack import Part, micro_batches
from cohort.rollouts.decoding import PREFILL_TOKENS
from cohort.rollouts.sampling import Sampling
from cohort.types import UserError

BY_VALUE = (DataDependentOutputException, DynamicOutputShapeException)
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
WHOLE = 6
"""Layers up to which a model is measured whole."""
PASSES = ("update", "score", "prefill", "sample", "padded")
SAMPLE = (2, 4)
"""Layers of the two models that a longer one follows from."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of a prompt and of a completion, as the plan takes them."""

    prompt: int
    completion: int


@dataclass(frozen=True)
class Figures:
    """What the passes over the model took, in bytes and operations."""

    weights: Weights
    update: Update
    score: Forward
    prefill: Forward
    sample: Forward
    padded: Update
    """The first micro-batch's completions the usual way; zeros where it was not asked for."""
    grouped: bool
    kv_per_token: float
    """Bytes of keys and values of one token, all layers."""


@dataclass(frozen=True)
class Batch:
    """One optimiser step's work: its micro-batches, and what is sampled for it."""

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
        """Of the micro-batch that the passes are measured on."""
        return sum(part.tokens for part in self.micro[0])


def make_batch(method: Method, config: TrainingConfig, lengths: Lengths) -> Batch:
    """The micro-batches of one optimiser step where every length is as the plan takes it."""
    if isinstance(config, OnlineConfig):
        groups, rows = config.prompts_per_step, config.num_generations
    else:
        groups, rows = config.batch_size, 2 if method.source == "preferences" else 1
    prompt = torch.zeros(lengths.prompt, dtype=torch.long)
    different = [torch.full((lengths.completion,), row) for row in range(rows)]
    parts = [Part(g, prompt, range(rows), different) for g in range(groups)]
    micro = list(micro_batches(parts, config.token_budget, whole=method.sees(config) == "group"))
    return Batch(micro, groups, rows, method.source == "policy")


def figures(found: Any, config: TrainingConfig, machine: Machine, batch: Batch, padded: bool) -> Figures:
    """Run the passes, on a shorter model where the layers are many. Raises UserError for a model whose passes depend
    on values, or do not run without storage."""
    model, _, quantized = blank_model(found, config, machine.bf16)
    whole = weights(model, config, quantized, machine.bf16)

    every = found.get_text_config().num_hidden_layers

    def take(layers: int) -> Figures:
        try:
            cut = found if layers == every else shortened(found, layers)
            return _passes(Blank(cut, config, machine.device, machine.bf16), config, batch, padded)
        except BY_VALUE as error:
            raise UserError(f"this model cannot be planned: its passes depend on values ({error})") from error
        except RuntimeError as error:
            if not any(hasattr(found.get_text_config(), key) for key in EXPERTS):
                raise
            # PyTorch knows the shapes of a product over experts in bfloat16 only.
            raise UserError("a mixture of experts can be planned in bfloat16 only: set bf16: true") from error

    if every <= WHOLE:
        return take(every)
    few, more = (take(n) for n in SAMPLE)
    grown = _follow(few.weights.count, more.weights.count, every)
    if abs(grown - whole.count) > 0.001 * whole.count:
        return take(every)
    return Figures(
        whole,
        *(
            type(a)(*(_follow(x, y, every) for x, y in zip(a, b, strict=True)))
            for a, b in ((getattr(few, name), getattr(more, name)) for name in PASSES)
        ),
        grouped=few.grouped,
        kv_per_token=_follow(few.kv_per_token, more.kv_per_token, every),
    )


def _follow(few: float, more: float, layers: int) -> float:
    a, b = SAMPLE
    return few + (more - few) / (b - a) * (layers - a)


def _passes(blank: Blank, config: TrainingConfig, batch: Batch, padded: bool) -> Figures:
    first = batch.micro[0]
    rows = sum(len(part.rows) for part in first)
    length = len(first[0].prompt_ids) + len(first[0].completion_ids[0])
    prompts = [first[0].prompt_ids] * _prefilled(config, batch, len(first[0].prompt_ids))
    sampling = Sampling()
    if isinstance(config, SampledConfig):
        sampling = Sampling(config.temperature, config.top_p, config.top_k, config.min_p)
    return Figures(
        blank.weights,
        passes.update(blank, first, accumulates=len(batch.micro) > 1),
        passes.score(blank, first),
        passes.prefill(blank, prompts) if blank.policy.packed else Forward(0.0, 0.0),
        passes.sample(blank, min(config.max_rows, batch.groups * batch.rows), sampling),
        passes.padded(blank, rows, length) if padded else Update(0.0, 0.0, 0.0, 0.0, 0.0),
        blank.policy.packed,
        _kv_per_token(blank),
    )


def _kv_per_token(blank: Blank) -> float:
    text = blank.policy.model.config.get_text_config()
    heads = getattr(text, "num_attention_heads", None)
    if heads is None:  # a state, whatever the length
        return 0.0
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    size = 2 if blank.bf16 else next(blank.policy.model.parameters()).element_size()
    return 2.0 * text.num_hidden_layers * (getattr(text, "num_key_value_heads", None) or heads) * width * size


def _prefilled(config: TrainingConfig, batch: Batch, prompt: int) -> int:
    """Prompts of one prefill pass."""
    side_by_side = max(1, config.max_rows // batch.rows)
    return max(1, min(batch.groups, side_by_side, PREFILL_TOKENS // prompt))
