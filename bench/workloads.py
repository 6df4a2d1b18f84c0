"""Workloads of the benchmarks: random models, tokenizers, prompts and a reward function."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from real_model import real_model, sums

G = 8
"""Completions of a prompt."""


@dataclass(frozen=True)
class Workload:
    """Workload("L", 8_000, 512, 8, 8, 1408, 512, 64, 2)"""

    name: str
    vocabulary: int
    hidden: int
    layers: int
    heads: int
    mlp: int
    prompt: int
    completion: int
    prompts: int
    mean_length: int | None = None
    """Mean length of completions in tokens; None: all have the maximal length."""
    kv_heads: int | None = None
    """Key/value heads; None: half of the heads."""
    tied: bool = False
    """Embeddings and output layer share a matrix; the end token is then as rare as any other."""
    device: str = "cpu"
    at_once: int | None = None
    """Completions of one forward and backward pass in TRL; None: all of the step."""
    warm_up: int = 2
    """Steps before the measured ones."""
    real: bool = False
    """SmolLM2-135M-Instruct, asked for sums, in place of random weights and random prompts of `prompt` tokens."""

    @property
    def keys(self) -> int:
        """Number of key/value heads."""
        return self.kv_heads or self.heads // 2


WORKLOADS = {
    w.name: w
    for w in (
        Workload("S", 64, 128, 3, 8, 576, 24, 32, 16),
        Workload("M", 8_000, 512, 8, 8, 1408, 128, 128, 4, mean_length=40),
        Workload("L", 8_000, 512, 8, 8, 1408, 512, 64, 2),
        Workload("V", 150_000, 128, 2, 8, 576, 64, 256, 2),
        Workload("R", 49_152, 576, 30, 9, 1536, 40, 64, 4, kv_heads=3, tied=True, real=True),
        Workload(
            "G", 151_936, 1536, 28, 12, 8960, 512, 1024, 16, None, 2, tied=True, device="cuda", at_once=8, warm_up=1
        ),
    )
}


def words_tokenizer(workload: Workload) -> Any:
    """A tokenizer whose tokens are the words "t0", "t1", ..."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", *(f"t{i}" for i in range(workload.vocabulary - 2))]
    inner = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="t0"))
    inner.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="t0")


def tokenizer_of(workload: Workload) -> Any:
    """None: the model's own."""
    return None if workload.real else words_tokenizer(workload)


def model_of(workload: Workload, folder: str, architecture: str = "Qwen2") -> str:
    """The real model's folder, or `folder` with a model of random weights in it."""
    if workload.real:
        return str(real_model())
    build(workload, folder, architecture)
    return folder


def build(workload: Workload, folder: str, architecture: str = "Qwen2") -> None:
    """A model with random weights."""
    import torch
    import transformers
    from transformers import GenerationConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    ends = {"eos_token_id": 1, "pad_token_id": 0, "bos_token_id": None}
    config = getattr(transformers, f"{architecture}Config")(
        vocab_size=workload.vocabulary,
        hidden_size=workload.hidden,
        intermediate_size=workload.mlp,
        num_hidden_layers=workload.layers,
        num_attention_heads=workload.heads,
        num_key_value_heads=workload.keys,
        max_position_embeddings=4096,
        tie_word_embeddings=workload.tied,
        **ends,
    )
    model = getattr(transformers, f"{architecture}ForCausalLM")(config)
    if not workload.tied:
        set_length(model, workload)
    model.generation_config = GenerationConfig(**ends)
    model.save_pretrained(folder)


def set_length(model: Any, workload: Workload) -> None:
    """Set the end token's probability so that completions have `mean_length` on average."""
    import torch

    with torch.no_grad():
        # One direction of the residual stream is made equal for all tokens; it acts as a bias on the end token.
        model.model.embed_tokens.weight[:, 0] = 1.0
        model.lm_head.weight[:, 0] = 0.0
        ids = torch.randint(2, workload.vocabulary, (1, 64))
        level = model.model(ids).last_hidden_state[0, :, 0].mean()
        chance = 1e-9 if workload.mean_length is None else 1 / workload.mean_length
        model.lm_head.weight[0] = 0.0
        model.lm_head.weight[0, 0] = -20 / level
        model.lm_head.weight[1] = 0.0
        model.lm_head.weight[1, 0] = torch.tensor(chance * workload.vocabulary).log() / level


def rows(workload: Workload, steps: int) -> list[dict[str, Any]]:
    """A prompt for each group of the steps."""
    rng = random.Random(0)
    count = workload.prompts * steps
    if workload.real:
        return sums(0)[:count]
    return [
        {"prompt": " ".join(f"t{rng.randrange(workload.vocabulary - 2)}" for _ in range(workload.prompt))}
        for _ in range(count)
    ]


def reward(completions: list[str], **columns: Any) -> list[float]:
    """Share of words with an even number: fast, and different within a group."""
    words = [text.split() for text in completions]
    return [sum(int(w[1:]) % 2 == 0 for w in found if w[1:].isdigit()) / max(1, len(found)) for found in words]


def digits(completions: list[Any], **columns: Any) -> list[float]:
    """Share of digits in a turn's text: the same of a real model's completions."""
    texts = [completion[0]["content"] for completion in completions]
    return [sum(c.isdigit() for c in text) / max(1, len(text)) for text in texts]


def reward_of(workload: Workload) -> Any:
    return digits if workload.real else reward
