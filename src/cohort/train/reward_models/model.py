"""Loading reward models for training, and giving them a head."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from cohort.compat.libraries import quiet
from cohort.config import ProcessRewardConfig, RewardModelConfig
from cohort.config.hub import cache_without_hub
from cohort.policy.device import device_of, one_device, release
from cohort.policy.dropout import dropouts, zero_dropout
from cohort.policy.freeze import freeze
from cohort.policy.load import add_lora, fast_bf16, find_device
from cohort.policy.parity import tell_unrepeatable
from cohort.policy.precision import HALF, widen
from cohort.rewards.models.classifier import (
    is_classifier,
    load_classifier,
    load_config,
    load_tokenizer,
    new_head,
    require_one_label,
)
from cohort.rewards.models.scorer import Scorer, scores_steps
from cohort.types import UserError

log = logging.getLogger("cohort")


class RewardModel:
    """A reward model in training. `model`: a transformers classifier; `peft`: its PeftModel or None."""

    def __init__(self, model: Any, tokenizer: Any, config: RewardModelConfig, *, peft: Any = None, bf16: bool = False):
        self.model, self.tokenizer, self.peft, self.bf16 = model, tokenizer, peft, bf16
        self.device: torch.device = next(model.parameters()).device
        self.scorer = Scorer(model, tokenizer, config.max_length, config.chat_template_kwargs)
        self.version = 0
        """The number of updates so far."""
        self.keeps_config = True
        """An adapter is saved with the model's configuration, which says what its head scores."""

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()


def make_reward_model(model: Any, tokenizer: Any, config: RewardModelConfig, peft_config: Any = None) -> RewardModel:
    """Make a reward model of a name, a path or a transformers model, on its device. A classifier with one label keeps
    its head, any other model gets a new one (`config.head`). Raises UserError for what is neither."""
    from cohort.rewards.models.mlp_head import MLPHeadConfig

    quiet()
    name = model if isinstance(model, str) else model.config.name_or_path
    if tokenizer is None and not name:
        raise UserError("the model object names no directory to load a tokenizer from: pass processing_class=")
    tokenizer = tokenizer or load_tokenizer(name, config.trust_remote_code)
    of_steps = isinstance(config, ProcessRewardConfig)
    peft = model if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else None
    model = _loaded(model, config, of_steps) if isinstance(model, str) else model
    release(model)
    model = peft.get_base_model() if peft is not None else model
    _require_kind(name or type(model).__name__, model, of_steps)
    text_config = model.config.get_text_config()
    size = model.get_input_embeddings().num_embeddings
    if text_config.pad_token_id is None or text_config.pad_token_id >= size:
        # transformers finds a text's last token by it; what learns and what scores, here or elsewhere, must agree.
        known = (token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if token is not None)
        text_config.pad_token_id = next((token for token in known if token < size), None)
    if peft is None and (peft_config is not None or config.finetuning_type == "lora"):
        # By this type peft keeps the head whole, a token classifier's too.
        peft = add_lora(model, config, peft_config, task_type="SEQ_CLS")
        model = peft.get_base_model()
    elif config.finetuning_type == "freeze":
        if config.freeze_trainable_layers:
            freeze(model, config)
        else:
            model.requires_grad_(False)
        _head(model).requires_grad_(True)
    model.config.architectures = [type(model).__name__]
    device = device_of(model, find_device(config.use_cpu), config.use_cpu)
    bf16 = fast_bf16(device) if config.bf16 is None else config.bf16
    for line in widen(model, bf16):
        log.info(line)
    model.to(device)
    if config.disable_dropout:
        # The small network's dropout is part of its architecture.
        zero_dropout(model.base_model if isinstance(model.config, MLPHeadConfig) else model)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if peft is not None:
            model.enable_input_require_grads()
    result = RewardModel(model, tokenizer, config, peft=peft, bf16=bf16)
    if config.disable_dropout:
        _check_repeatable(result)
    return result


def _check_repeatable(reward_model: RewardModel) -> None:
    """Warn where two training passes over the same tokens differ, although dropout is off. What the head makes of them
    does not count: it may be a small network with dropout of its own."""
    trunk = reward_model.model.base_model
    embeddings = trunk.get_input_embeddings().num_embeddings
    ids = torch.randint(embeddings, (2, 8), generator=torch.Generator().manual_seed(0)).to(reward_model.device)
    without = {"use_cache": False} if hasattr(trunk.config, "use_cache") else {}

    def hidden() -> Tensor:
        with reward_model.autocast():
            result: Tensor = trunk(input_ids=ids, attention_mask=torch.ones_like(ids), **without).last_hidden_state
        return result

    half = reward_model.bf16 or any(parameter.dtype in HALF for parameter in trunk.parameters())
    tell_unrepeatable(trunk, hidden, half)


def blank_scorer(name: str, tokenizer: Any, config: RewardModelConfig) -> Scorer:
    """The scorer that a run of the named model has, without weights: it encodes texts, and cannot score them. Raises
    UserError for what is no model of this kind."""
    from transformers import AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification

    from cohort.rewards.models.mlp_head import MLPHeadConfig, MLPHeadModel

    quiet()
    own = load_config(name, trust_remote_code=config.trust_remote_code)
    options = {"trust_remote_code": config.trust_remote_code}
    of_steps = tokens = isinstance(config, ProcessRewardConfig)
    with torch.device("meta"):
        if not is_classifier(own) and config.head == "mlp":
            trunk = AutoModel.from_config(own, **options)
            model: Any = MLPHeadModel(MLPHeadConfig(own, reads=_head_reads(config, own), name_or_path=name), trunk)
        else:
            if is_classifier(own):
                tokens = own.architectures[0].endswith("ForTokenClassification")
            else:
                own.num_labels = 1
            kind: Any = AutoModelForTokenClassification if tokens else AutoModelForSequenceClassification
            model = kind.from_config(own, **options)
    _require_kind(name, model, of_steps)
    return Scorer(model, tokenizer, config.max_length, config.chat_template_kwargs)


def _require_kind(name: str, model: Any, of_steps: bool) -> None:
    """Raise UserError unless the classifier has one label, and scores steps or texts as the method does."""
    require_one_label(name, model.config)
    if scores_steps(model) != of_steps:
        given, method = ("every token", "process_reward_model") if not of_steps else ("the text", "reward_model")
        raise UserError(f"model {name!r} scores {given}: train it with method: {method}")


def _head_reads(config: RewardModelConfig, own: Any) -> str:
    """Which tokens a new small network reads."""
    return "mean" if config.pooling == "mean" else _reads(own, isinstance(config, ProcessRewardConfig))


def _loaded(name: str, config: RewardModelConfig, of_steps: bool) -> Any:
    """The named model: a classifier as it is, another model with a new head."""
    from transformers import AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification

    from cohort.rewards.models.mlp_head import MLPHeadConfig, MLPHeadModel

    own = load_config(name, trust_remote_code=config.trust_remote_code)
    options = {"dtype": torch.float32, "trust_remote_code": config.trust_remote_code, **config.model_init_kwargs}
    if options.get("device_map") is not None:
        options["device_map"] = {"": one_device(options["device_map"], find_device(config.use_cpu), config.use_cpu)}
    if config.pooling == "mean" and (of_steps or config.head == "linear"):
        raise UserError("pooling: mean is for a reward model of texts with head: mlp")
    if is_classifier(own):
        require_one_label(name, own)
        return load_classifier(name, options["dtype"], trust_remote_code=config.trust_remote_code)
    if config.head == "linear":
        own.num_labels = 1
        kind = AutoModelForTokenClassification if of_steps else AutoModelForSequenceClassification
        return new_head(name, kind, own, **options)
    with cache_without_hub(name):
        trunk = AutoModel.from_pretrained(name, **options)
    return MLPHeadModel(MLPHeadConfig(trunk.config, reads=_head_reads(config, own), name_or_path=name), trunk)


def _reads(own: Any, of_steps: bool) -> str:
    """Which tokens the head reads: `every` one for steps; for texts the `first` of an encoder or the `last` of a
    decoder."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as DECODERS
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as ENCODERS

    if of_steps:
        return "every"
    kind = own.get_text_config().model_type
    return "last" if kind in DECODERS and kind not in ENCODERS else "first"


def only_head_learns(model: Any) -> bool:
    """Whether only the head is trained, so that a text has the same hidden states in every pass."""
    from cohort.rewards.models.mlp_head import MLPHeadModel

    return (
        isinstance(model, MLPHeadModel)
        and model.config.reads != "every"
        and not any(parameter.requires_grad for parameter in model.model.parameters())
        and not any(dropouts(model.model))
    )


def _head(model: Any) -> nn.Module:
    head: nn.Module = next(
        module for name in ("score", "classifier") if (module := getattr(model, name, None)) is not None
    )
    return head
