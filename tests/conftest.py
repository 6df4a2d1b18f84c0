"""Fixtures: a small model on disk, its tokenizer, and the code paths that a packed group can take."""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
import transformers

from cohort.data.chains import build_tokenizer
from helpers import small_model

transformers.utils.logging.set_verbosity_error()
torch.set_num_threads(1)


@pytest.fixture(params=["fused", "tiles", "scores"])
def layers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code paths of a packed group: fused layers, and the model's layers with either form of the attention."""
    if request.param != "fused":
        monkeypatch.setattr("cohort.policy.model.why_unsupported", lambda backbone: "test")
    if request.param == "scores":
        monkeypatch.setattr("cohort.policy.packed.layout.GroupLayout._causal_only", lambda *_: False)


@pytest.fixture
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns bfloat16 off, for tests that compare texts: in bfloat16 a random model has ties."""
    monkeypatch.setattr("cohort.policy.load.fast_bf16", lambda device: False)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return build_tokenizer()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a small Llama with random weights and a byte-level tokenizer."""
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
