"""A policy made from a model's configuration, on fake tensors: they have shapes and types, but no storage."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from cohort.config import RunConfig, TrainingConfig
from cohort.plan.meter import Meter, autocast_of_cuda
from cohort.policy.fast.decoder import rearranged_bytes
from cohort.policy.fast.layers import why_unsupported
from cohort.policy.load import adapt, load_policy_config, set_up
from cohort.policy.model import Policy
from cohort.policy.packed.pack import Part
from cohort.policy.paths import NAMES, OWN_LAYERS
from cohort.policy.precision import widen
from cohort.rewards.models.classifier import load_config
from cohort.types import UserError

BLOCK = 64
"""Weights that share a scale in bitsandbytes' 4-bit format."""


@dataclass(frozen=True)
class Weights:
    """Bytes and counts of a model's parameters. Weights(count=7.6e9, size=15.2e9, trained=4e7, ...)"""

    count: int
    size: int
    trained: int
    """Trained parameters."""
    trained_size: int
    backbone_trained: int
    """Trained parameters without the output layer: a critic of its own copies and trains them."""
    backbone_trained_size: int
    read: int
    """Bytes read to decode one token: all weights but the input embeddings."""
    unpacked: int
    """Bytes of the largest 4-bit layer after dequantisation; 0 without 4-bit layers."""
    decoder: int
    """Bytes of the copies of matrices that the fused decoder makes; 0 where the model's own code decodes."""


def model_config(run: RunConfig, config: TrainingConfig) -> Any:
    """transformers' configuration of the run's model: made from `model_sizes` if set, else read by name. Raises
    UserError for an unknown model or bad sizes."""
    if not run.model_sizes:
        return load_policy_config(run.model, trust_remote_code=config.trust_remote_code)
    from transformers import AutoConfig

    sizes = {"model_type": "qwen2", **run.model_sizes}
    try:
        return AutoConfig.for_model(**sizes)
    except (ValueError, TypeError) as error:
        raise UserError(f"model_sizes: {' '.join(str(error).split())[:300]}") from error


def shortened(model_config: Any, layers: int) -> Any:
    """A copy of transformers' configuration with its first layers only."""
    shorter = copy.deepcopy(model_config)
    text = shorter.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    return shorter


def blank_model(
    model_config: Any, config: TrainingConfig, bf16: bool, trained: bool = True
) -> tuple[Any, Any, list[nn.Linear]]:
    """(model on the meta device, its PeftModel or None, the layers that are in 4 bits). Without `trained` all weights
    are frozen. Raises UserError unless it is a causal language model."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(model_config, trust_remote_code=config.trust_remote_code)
            dtype = _dtype(config, model_config)
            model.to(dtype)
            quantized = _quantized(model, config)
            for layer in quantized:
                layer.to(torch.bfloat16 if bf16 else dtype).requires_grad_(False)
            model.is_quantized = bool(quantized)
            if not trained:
                model.requires_grad_(False)
            peft = adapt(model, config) if trained else None
            widen(model, bf16)
            return model, peft, quantized
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"this is not a causal language model: {' '.join(str(error).split())[:300]}") from error


def _dtype(config: TrainingConfig, model_config: Any) -> torch.dtype:
    named = config.model_init_kwargs.get("dtype", "float32")
    if named == "auto":
        named = model_config.get_text_config().dtype or "float32"
    dtype: torch.dtype = named if isinstance(named, torch.dtype) else getattr(torch, named)
    return dtype


def _quantization(config: TrainingConfig, key: str) -> bool:
    quantization = config.model_init_kwargs.get("quantization_config")
    return bool(quantization.get(key) if isinstance(quantization, Mapping) else getattr(quantization, key, False))


def _quantized(model: Any, config: TrainingConfig) -> list[nn.Linear]:
    """The layers that bitsandbytes quantises to 4 bits: every linear layer but the output layer."""
    if not _quantization(config, "load_in_4bit"):
        return []
    output = model.get_output_embeddings()
    return [module for module in model.modules() if isinstance(module, nn.Linear) and module is not output]


def weights(model: Any, config: TrainingConfig, quantized: list[nn.Linear], bf16: bool) -> Weights:
    """Counts and bytes of the model's parameters. A 4-bit weight takes half a byte and a 64th of its block's scale. The
    scale is a float32, or with double quantisation a byte, with a float32 for 256 of them."""
    every = list(model.parameters())
    trained = [p for p in every if p.requires_grad]
    backbone = [p for p in model.base_model.parameters() if p.requires_grad]
    size = sum(p.numel() * p.element_size() for p in [*every, *model.buffers()])
    scale = (1 + 4 / 256) / BLOCK if _quantization(config, "bnb_4bit_use_double_quant") else 4 / BLOCK
    size -= round(sum(w.weight.numel() * (w.weight.element_size() - 0.5 - scale) for w in quantized))
    output = model.get_output_embeddings()
    embeddings = model.get_input_embeddings().weight
    tied = output.weight is embeddings
    products = torch.bfloat16 if bf16 else output.weight.dtype
    return Weights(
        count=sum(p.numel() for p in every),
        size=size,
        trained=sum(p.numel() for p in trained),
        trained_size=sum(p.numel() * p.element_size() for p in trained),
        backbone_trained=sum(p.numel() for p in backbone),
        backbone_trained_size=sum(p.numel() * p.element_size() for p in backbone),
        read=size - (0 if tied else embeddings.numel() * embeddings.element_size()),
        decoder=0 if quantized or why_unsupported(model.base_model) else rearranged_bytes(model.base_model, products),
        unpacked=max((layer.weight.nbytes for layer in quantized), default=0),
    )


def reward_model_bytes(name: str, device: str) -> float:
    """Bytes of a reward model's weights: float32 on a CPU, else in the checkpoint's type. Raises UserError for an
    unknown name, and for what is no model that scores."""
    from transformers import AutoModelForSequenceClassification

    model_config = load_config(name)
    model_config.num_labels = 1
    try:
        with torch.device("meta"):
            model: Any = AutoModelForSequenceClassification.from_config(model_config)
    except ValueError as error:
        raise UserError(f"reward model {name!r} scores no texts: {' '.join(str(error).split())[:300]}") from error
    model.to(torch.float32 if device == "cpu" else model_config.get_text_config().dtype or torch.float32)
    return float(sum(p.nbytes for p in model.parameters()))


class BlankPolicy:
    """A policy whose passes run on fake tensors inside `with blank.running() as meter:`; nothing is computed."""

    def __init__(self, model_config: Any, config: TrainingConfig, device: str, bf16: bool, trained: bool = True):
        self.config, self.gpu, self.bf16 = config, device == "cuda", bf16
        self.meter = Meter()
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        model, peft, quantized = blank_model(model_config, config, bf16, trained)
        self.weights = weights(model, config, quantized, bf16)
        with self._fake:
            # On the CPU, so that planning for a GPU needs none: autocast and attention choose by device.
            model = model.to_empty(device="cpu")
            model.tie_weights()
            set_up(model, peft, config)
            self.policy = Policy(model, None, peft=peft, bf16=bf16)
            if quantized:
                self.policy.paths = self.policy.paths.without("quantised weights", *OWN_LAYERS)
        for tensor in (*model.parameters(), *model.buffers()):
            self.meter.add(tensor)
        reason, dependence = "", self.policy.length_dependence
        if dependence is not None:
            reason = dependence.why_rows(config.longest_sequence)
            for module in dependence.modules:  # fake positions have no largest one, and all angles cost the same
                kinds = module.rope_type
                module.rope_type = dict.fromkeys(kinds, "default") if isinstance(kinds, dict) else "default"
        if reason:
            self.policy.paths = self.policy.paths.without(reason, *NAMES)
        elif not self._attends_grouped():
            self.policy.paths = self.policy.paths.without("the model does not run the grouped attention", *NAMES)
        model.train()

    def _attends_grouped(self) -> bool:
        """Whether the model calls the grouped attention. Its results are compared when a real policy is loaded."""
        part = Part(0, torch.zeros(3, dtype=torch.long), range(1), [torch.zeros(2, dtype=torch.long)])
        with self.running(), torch.no_grad():
            pack = self.policy.pack([part])
            try:
                prefill = self.policy.prefill(pack)
            except (TypeError, AssertionError, KeyError, IndexError, RuntimeError):
                return False
        return bool(prefill.prompts.keys_values)

    @contextmanager
    def running(self) -> Iterator[Meter]:
        """Inside, operations run on fake tensors and the meter counts their bytes and FLOPs."""
        with self._fake, self.meter, autocast_of_cuda() if self.gpu else nullcontext():
            yield self.meter
