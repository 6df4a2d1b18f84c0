"""Small real models in the common architectures, and batches to feed them."""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
import transformers

from cohort.config import TrainingConfig
from cohort.data.chains import build_tokenizer
from cohort.policy.load import make_policy
from cohort.policy.model import Policy
from cohort.types import Completion, Group, Row

transformers.utils.logging.set_verbosity_error()
torch.set_num_threads(1)

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Qwen2": {},
    "Qwen3": {"head_dim": 8},
    "Llama": {},
    "Mistral": {"sliding_window": 6},
    "Gemma": {"head_dim": 8},
    "Gemma2": {"head_dim": 8, "sliding_window": 6},
    "Granite": {"logits_scaling": 2.0},
}


def small_model(architecture: str = "Qwen2", **overrides: Any) -> Any:
    settings = {**SHAPE, **ARCHITECTURES.get(architecture, {}), **overrides}
    config = getattr(transformers, f"{architecture}Config")(**settings)
    torch.manual_seed(0)
    return getattr(transformers, f"{architecture}ForCausalLM")(config)


def small_policy(architecture: str = "Qwen2", config: TrainingConfig | None = None, **overrides: Any) -> Policy:
    config = config or TrainingConfig(bf16=False, use_cpu=True)
    return make_policy(small_model(architecture, **overrides), build_tokenizer(), config)


def random_groups(sizes: list[tuple[int, list[int]]], seed: int = 0, vocabulary: int = 97) -> list[Group]:
    """Groups of the given prompt and completion lengths, with random rewards, advantages, old and reference
    log-probabilities far enough from any policy's that both sides of the clip act."""
    generator = torch.Generator().manual_seed(seed)
    groups = []
    for p, lengths in sizes:
        completions = [
            Completion(
                torch.randint(2, vocabulary, (n,), generator=generator),
                torch.zeros(n),
                text="x",
                truncated=bool(torch.rand(1, generator=generator) < 0.3),
                version=-1,
            )
            for n in lengths
        ]
        groups.append(
            Group(
                torch.randint(2, vocabulary, (p,), generator=generator),
                completions,
                Row("?"),
                rewards=torch.rand(len(lengths), generator=generator).tolist(),
                advantages=[torch.randn(1, generator=generator).expand(n) for n in lengths],
            )
        )
    return groups


@pytest.fixture(params=["fused", "tiles", "scores"])
def layers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ways a packed group runs: layers of our own, and the model's with either form of the attention."""
    if request.param != "fused":
        monkeypatch.setattr("cohort.policy.model.fuses", lambda trunk: False)
    if request.param == "scores":
        monkeypatch.setattr("cohort.policy.attention.GroupLayout._plain", lambda *_: False)


@pytest.fixture
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where texts are compared: in bfloat16, which some processors are fast in, a random model has ties."""
    monkeypatch.setattr("cohort.policy.load.fast_bf16", lambda device: False)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return build_tokenizer()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small model that knows bytes: random weights, a byte-level vocabulary of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    fast.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    folder = tmp_path_factory.mktemp("model")
    small_model("Llama", vocab_size=len(fast), max_position_embeddings=2048).save_pretrained(folder)
    fast.save_pretrained(folder)
    return str(folder)
