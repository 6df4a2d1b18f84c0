"""A policy without weights: tensors that have shapes and no storage, made from a model's configuration."""

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
from cohort.policy.load import adapt, load_model_config, set_up
from cohort.policy.model import Policy
from cohort.policy.packed.pack import Part
from cohort.policy.paths import NAMES, OWN_LAYERS
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
    """Trained parameters of the backbone, which a critic with its own backbone copies."""
    backbone_trained_size: int
    read: int
    """Bytes read to decode one token: all but the embeddings."""
    unpacked: int
    """Bytes of the largest 4-bit layer as its products read it; 0 where none is in 4 bits."""
    decoder: int
    """Bytes of the matrices that decoding lays out anew; 0 where it uses the model's own."""


def model_config(run: RunConfig, config: TrainingConfig) -> Any:
    """transformers' configuration of the run's model: of `model_sizes` where given, else read by name. Raises
    UserError for what is none."""
    if not run.model_sizes:
        return load_model_config(run.model, trust_remote_code=config.trust_remote_code)
    from transformers import AutoConfig

    sizes = {"model_type": "qwen2", **run.model_sizes}
    try:
        return AutoConfig.for_model(**sizes)
    except (ValueError, TypeError) as error:
        raise UserError(f"model_sizes: {' '.join(str(error).split())[:300]}") from error


def shortened(found: Any, layers: int) -> Any:
    """The configuration with its first layers only."""
    found = copy.deepcopy(found)
    text = found.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    return found


def blank_model(found: Any, config: TrainingConfig, bf16: bool) -> tuple[Any, Any, list[nn.Linear]]:
    """(model on the meta device, its PeftModel or None, the layers that are kept in 4 bits)."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(found, trust_remote_code=config.trust_remote_code)
            dtype = _dtype(config, found)
            model.to(dtype)
            quantized = _quantized(model, config)
            for layer in quantized:
                layer.to(torch.bfloat16 if bf16 else dtype).requires_grad_(False)
            return model, adapt(model, config), quantized
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"this is no causal language model: {' '.join(str(error).split())[:300]}") from error


def _dtype(config: TrainingConfig, found: Any) -> torch.dtype:
    named = config.model_init_kwargs.get("dtype", config.model_init_kwargs.get("torch_dtype", "float32"))
    if named == "auto":
        named = found.get_text_config().dtype or "float32"
    dtype = named if isinstance(named, torch.dtype) else getattr(torch, str(named), None)
    if not isinstance(dtype, torch.dtype):
        raise UserError(f"model_init_kwargs: dtype {named!r} is none; use float32, bfloat16 or float16")
    return dtype


def _quantization(config: TrainingConfig, key: str) -> bool:
    asked = config.model_init_kwargs.get("quantization_config")
    return bool(asked.get(key) if isinstance(asked, Mapping) else getattr(asked, key, False))


def _quantized(model: Any, config: TrainingConfig) -> list[nn.Linear]:
    """The layers that bitsandbytes turns into 4 bits: every linear one but the output layer."""
    if not _quantization(config, "load_in_4bit"):
        return []
    output = model.get_output_embeddings()
    return [module for module in model.modules() if isinstance(module, nn.Linear) and module is not output]


def weights(model: Any, config: TrainingConfig, quantized: list[nn.Linear], bf16: bool) -> Weights:
    """What the model's parameters count and take. A 4-bit weight takes half a byte and its share of a block's scale:
    a float32 for 64 weights, or with double quantisation a byte and a float32 for 256 of these."""
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


def blank_reward_model(name: str, device: str) -> float:
    """Bytes of a sequence classifier's weights: float32 on a CPU, else in their own type. Raises UserError for a name
    that is none."""
    from transformers import AutoModelForSequenceClassification

    found = load_model_config(name)
    found.num_labels = 1
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(found)
    model.to(torch.float32 if device == "cpu" else found.get_text_config().dtype or torch.float32)
    return float(sum(p.nbytes for p in model.parameters()))


class Blank:
    """The policy of a configuration, ready to run without doing anything: `with blank.running(): ...`."""

    def __init__(self, found: Any, config: TrainingConfig, device: str, bf16: bool):
        self.config, self.gpu, self.bf16 = config, device == "cuda", bf16
        self.meter = Meter()
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        model, peft, quantized = blank_model(found, config, bf16)
        self.weights = weights(model, config, quantized, bf16)
        with self._fake:
            # Its buffers are made on the CPU: autocast and attention choose by device, and no GPU need be there.
            model = model.to_empty(device="cpu")
            model.tie_weights()
            set_up(model, peft, config)
            self.policy = Policy(model, None, peft=peft, bf16=bf16)
            if quantized:
                self.policy.paths = self.policy.paths.without("quantised weights", *OWN_LAYERS)
        for tensor in (*model.parameters(), *model.buffers()):
            self.meter.add(tensor)
        if not self._attends_grouped():
            self.policy.paths = self.policy.paths.without("the model does not run the grouped attention", *NAMES)
        model.train()

    def _attends_grouped(self) -> bool:
        """Whether the model runs the grouped attention; what it gives is compared when a policy is made."""
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
        """Inside, nothing is computed, and the meter counts."""
        with self._fake, self.meter, autocast_of_cuda() if self.gpu else nullcontext():
            yield self.meter
