"""A transformers model type: a backbone of any type with a small MLP as its reward head.

Importing this module registers the type, so that AutoModelForSequenceClassification can load a saved model.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class MLPHeadConfig(PreTrainedConfig):
    """`text_config`: the backbone's configuration. `reads`: the hidden states that the head reads: of the `first` token
    (encoders), the `last` one (decoders), the `mean` of all, or `every` one (process models)."""

    model_type = "cohort_reward_model"
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012

    def __init__(self, text_config: Any = None, reads: str = "first", **others: Any):
        if isinstance(text_config, dict):
            text_config = AutoConfig.for_model(**text_config)
        # A copy, because the attention implementation is unset in it, and the backbone's configuration keeps its own.
        self.text_config, self.reads = copy.deepcopy(text_config), reads
        others.setdefault("num_labels", 1)
        super().__init__(**others)


class MLPHeadModel(PreTrainedModel):
    """Linear(h, h/2), ReLU, Dropout 0.1, Linear(h/2, 1) on the backbone's last hidden states."""

    config_class = MLPHeadConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True

    def __init__(self, config: MLPHeadConfig, backbone: Any = None):
        super().__init__(config)
        self.model = AutoModel.from_config(config.text_config) if backbone is None else backbone
        self.model.config.use_cache = False  # no token follows a text
        h = config.text_config.get_text_config().hidden_size
        self.score = nn.Sequential(nn.Linear(h, h // 2), nn.ReLU(), nn.Dropout(0.1), nn.Linear(h // 2, 1))
        self.post_init()  # type: ignore[no-untyped-call]  # transformers'

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **inputs: Any) -> SequenceClassifierOutput:
        """Token ids and mask [B, T], padded on the right -> logits [B, 1], or [B, T, 1] if `reads` is `every`."""
        return SequenceClassifierOutput(logits=self.score(self.read(input_ids, attention_mask, **inputs)))

    def read(self, input_ids: Tensor, attention_mask: Tensor, **inputs: Any) -> Tensor:
        """The hidden states that the head reads, [B, h], or [B, T, h] if `reads` is `every`."""
        hidden: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask, **inputs).last_hidden_state
        if self.config.reads == "every":
            return hidden
        if self.config.reads == "mean":
            seen = attention_mask.unsqueeze(-1).to(hidden.dtype)
            mean: Tensor = (hidden * seen).sum(1) / seen.sum(1)
            return mean
        rows = torch.arange(len(hidden), device=hidden.device)
        at = attention_mask.sum(1) - 1 if self.config.reads == "last" else torch.zeros_like(rows)
        return hidden[rows, at]


AutoConfig.register(MLPHeadConfig.model_type, MLPHeadConfig, exist_ok=True)
AutoModelForSequenceClassification.register(MLPHeadConfig, MLPHeadModel, exist_ok=True)
