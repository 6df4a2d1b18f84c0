"""Dropout: all of a model's is off unless told, an adapter's stays, and what is random is not left on in silence."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import nn

from cohort import GRPOConfig, GRPOTrainer
from cohort.config import RewardConfig, TrainingConfig
from cohort.data.chains import build_tokenizer
from cohort.methods.table import METHODS
from cohort.policy.dropout import zero_dropout
from cohort.policy.load import make_policy
from cohort.policy.model import Policy
from cohort.policy.packed.pack import Part
from cohort.policy.reference import reference_of
from cohort.train.reward_models.model import _check_repeatable, make_reward_model
from cohort.train.step import Updater
from helpers import (
    LORA,
    SIZES,
    assert_close,
    byte_tokenizer,
    classifier,
    gradients,
    random_groups,
    saved,
    settings,
    small_model,
    tokens_of,
)

DROPS: dict[str, dict[str, Any]] = {
    "OPT": {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.3, "attention_dropout": 0.2, "layerdrop": 0.3},
    "XGLM": {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4, "dropout": 0.3, "layerdrop": 0.3},
    "BioGpt": {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3, "activation_dropout": 0.3},
    "GPT2": {"n_embd": 32, "n_head": 4, "n_layer": 2, "resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3},
    "Bloom": {"n_head": 4, "hidden_dropout": 0.3, "attention_dropout": 0.3},
    "Starcoder2": {"residual_dropout": 0.3, "embedding_dropout": 0.3, "attention_dropout": 0.3},
    "Falcon": {"hidden_dropout": 0.3, "attention_dropout": 0.3},
    "Persimmon": {"hidden_dropout": 0.3, "attention_dropout": 0.3},
}
READS_CONFIGURATION = ("Falcon", "Persimmon")
"""Read dropout from the configuration in each pass."""
OFF = TrainingConfig(bf16=False, use_cpu=True)


def model_that_drops(architecture: str, **changes: float) -> Any:
    shape = {key: value for key, value in small_model().config.to_dict().items() if key in KEPT}
    config = getattr(transformers, f"{architecture}Config")(**{**shape, **DROPS[architecture], **changes})
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config)


KEPT = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "pad_token_id",
    "num_key_value_heads", "max_position_embeddings", "initializer_range", "eos_token_id",
)  # fmt: skip


def gradient(policy: Policy) -> dict[str, torch.Tensor]:
    groups = random_groups(SIZES)
    policy.model.train()
    Updater(policy, METHODS["grpo"], settings(beta=0.0)).gradient(groups, tokens_of(groups))
    return gradients(policy.model)


@pytest.mark.parametrize("architecture", DROPS)
def test_the_gradient_is_that_of_a_model_without_dropout(architecture: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "cohort")
    nothing = {key: 0.0 for key, value in DROPS[architecture].items() if isinstance(value, float)}
    policy = make_policy(model_that_drops(architecture), build_tokenizer(), OFF)
    plain = make_policy(model_that_drops(architecture, **nothing), build_tokenizer(), OFF)
    assert_close(gradient(policy), gradient(plain), 1e-5)
    assert "something random" not in caplog.text
    told = [message for message in caplog.messages if "from its configuration: 0 there" in message]
    assert len(told) == (architecture in READS_CONFIGURATION)
    assert policy.packed == plain.packed
    if architecture in READS_CONFIGURATION:
        assert policy.model.config.hidden_dropout == 0.0
    elif architecture == "OPT":
        assert policy.model.config.dropout == 0.3  # the saved model drops as it did


class DropPath(nn.Module):
    """As timm's: its attribute and its function are its own."""

    def __init__(self, p: float):
        super().__init__()
        self.rate = p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (torch.rand(()) > self.rate) if self.training else x


def test_every_spelling_is_found() -> None:
    module = nn.Module()
    module.path, module.recurrent = DropPath(0.2), nn.LSTM(2, 2, 2, dropout=0.2)
    module.attention, module.alpha = nn.MultiheadAttention(4, 2, dropout=0.2), nn.AlphaDropout(0.2)
    module.drop_last, module.hidden_pdrop, module.layerdrop, module.dropout_layers = True, 0.2, 0.2, 3
    zero_dropout(module)
    rates = module.path.rate, module.recurrent.dropout, module.attention.dropout, module.alpha.p
    assert rates == (0.0, 0.0, 0.0, 0.0) and (module.hidden_pdrop, module.layerdrop) == (0.0, 0.0)
    assert module.drop_last is True and module.dropout_layers == 3


class Noisy(nn.Module):
    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * (1 + 0.2 * torch.randn(()) if self.training else 1)


def test_what_is_random_and_not_known_is_told(caplog: pytest.LogCaptureFixture) -> None:
    model = small_model("Gemma")
    model.model.layers[0].mlp.down_proj = Noisy(model.model.layers[0].mlp.down_proj)
    state = torch.get_rng_state()
    make_policy(model, build_tokenizer(), OFF)
    assert "two training passes of GemmaForCausalLM over the same tokens differ by 0." in caplog.text
    assert torch.equal(state, torch.get_rng_state())
    caplog.clear()
    make_policy(model, build_tokenizer(), TrainingConfig(bf16=False, use_cpu=True, disable_dropout=False))
    make_policy(small_model("Gemma"), build_tokenizer(), OFF)
    assert "training passes" not in caplog.text


@pytest.mark.parametrize("architecture", ["Llama", "OPT"])
def test_attention_dropout_that_is_left_on_is_in_the_training_pass(
    architecture: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The packed stream's attention drops nothing: the model's own must run."""
    model = small_model("Llama", attention_dropout=0.3) if architecture == "Llama" else model_that_drops("OPT")
    policy = make_policy(model, build_tokenizer(), TrainingConfig(bf16=False, use_cpu=True, disable_dropout=False))
    assert not policy.packed and "attention dropout of 0." in caplog.text
    first, second = gradient(policy), gradient(policy)
    assert any(not torch.allclose(first[name], second[name], rtol=1e-3) for name in first)


def adapted(policy: Policy) -> None:
    """Give LoRA's B weights that are not 0, so that what A's input drops matters."""
    torch.manual_seed(1)
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.3 * torch.randn_like(parameter)


def logprobs(policy: Policy) -> torch.Tensor:
    groups = random_groups(SIZES)
    parts = [
        Part(g, group.prompt_ids, range(len(group.completions)), [c.ids for c in group.completions])
        for g, group in enumerate(groups)
    ]
    return torch.cat(list(policy.logprobs(iter([parts]), 1.0).values()))


@pytest.mark.parametrize("given", ["by name", "as a PeftModel"])
def test_an_adapters_dropout_trains_and_only_trains(given: str, caplog: pytest.LogCaptureFixture) -> None:
    config = TrainingConfig(bf16=False, use_cpu=True, lora_dropout=0.5, **LORA)
    model = small_model("Llama", attention_dropout=0.1)
    if given == "as a PeftModel":
        lora = LoraConfig(r=4, lora_dropout=0.5, target_modules="all-linear", init_lora_weights=False)
        model = get_peft_model(model, lora)
    policy = make_policy(model, build_tokenizer(), config)
    assert "training passes" not in caplog.text
    rates = {m.p for name, m in policy.model.named_modules() if isinstance(m, nn.Dropout) and "lora_dropout" in name}
    assert rates == {0.5} and policy.model.model.layers[0].self_attn.attention_dropout == 0.0
    assert policy.packed and not policy.paths.layers.taken and not policy.paths.reuse.taken
    adapted(policy)
    first, second = gradient(policy), gradient(policy)
    assert any(not torch.allclose(first[name], second[name], rtol=1e-3) for name in first)
    policy.model.train()
    measured = logprobs(policy)
    assert policy.model.training and torch.equal(measured, logprobs(policy))
    reference = reference_of(policy)
    reference.follow()
    with reference() as frozen:
        assert torch.equal(measured, logprobs(frozen))
    policy.model.eval()
    assert torch.equal(measured, logprobs(policy))


def letters(completions: list[str], **_: Any) -> list[float]:
    return [float(len(set(text))) for text in completions]


def test_a_run_with_an_adapters_dropout_is_on_policy_at_its_first_update(tmp_path: Path) -> None:
    config = GRPOConfig(
        str(tmp_path), max_steps=2, num_generations=4, per_device_train_batch_size=8, learning_rate=1e-2, beta=0.04,
        max_completion_length=6, bf16=False, use_cpu=True, lora_dropout=0.5, num_iterations=2, reward_preflight=False,
        **LORA,
    )  # fmt: skip
    rows = [{"prompt": f"{i}+{i}="} for i in range(4)]
    trainer = GRPOTrainer(small_model("Llama"), letters, config, rows, processing_class=build_tokenizer())
    adapted(trainer.policy)
    trainer.train()
    first, second, _ = trainer.state.log_history
    assert (first["ratio/min"], first["ratio/max"]) == (1.0, 1.0) and second["ratio/max"] != 1.0


def test_a_reward_models_adapter_drops_and_its_base_does_not() -> None:
    base = classifier("Bert", hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2)
    config = RewardConfig(bf16=False, use_cpu=True, lora_dropout=0.5, lora_target="query", finetuning_type="lora")
    model = make_reward_model(base, byte_tokenizer(bert=True), config).model
    rates = {"lora_dropout" in name: m.p for name, m in model.named_modules() if isinstance(m, nn.Dropout)}
    assert rates == {True: 0.5, False: 0.0}


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_what_is_random_in_a_reward_model_is_told(head: str, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """The dropout of the small network on top does not count."""
    config = RewardConfig(bf16=False, use_cpu=True, head=head)
    path = saved(tmp_path, small_model("Gemma"), build_tokenizer())
    model = make_reward_model(path, None, config)
    assert "training passes" not in caplog.text
    trunk = model.model.base_model
    trunk.layers[0].mlp.down_proj = Noisy(trunk.layers[0].mlp.down_proj)
    _check_repeatable(model)
    assert "two training passes of GemmaModel over the same tokens differ by 0." in caplog.text


def test_a_reward_model_that_reads_dropout_from_its_configuration(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "cohort")
    shape = model_that_drops("Falcon").config
    shape.num_labels = 1
    falcon = transformers.FalconForSequenceClassification(shape)
    model = make_reward_model(falcon, byte_tokenizer(), RewardConfig(bf16=False, use_cpu=True)).model
    assert model.config.hidden_dropout == 0.0 and "from its configuration: 0 there" in caplog.text
