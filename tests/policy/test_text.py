"""The text of sampled tokens: without bos, eos and pad, with every other special token, wherever tokens are decoded."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cohort.config import TrainingConfig
from cohort.evaluation.generate import TextStream
from cohort.policy.load import make_policy
from cohort.policy.model import Policy
from cohort.policy.text import text_of, texts_of
from cohort.rewards import format_reward
from cohort.rewards.steps import by_separator, cut
from cohort.rollouts.encoding import token_ends
from cohort.rollouts.engine import LocalEngine
from cohort.rollouts.row_engine import RowEngine
from cohort.rollouts.sampling import Sampling
from helpers import seeds, small_model

SPECIAL = ["<pad>", "<bos>", "<eos>", "<|im_end|>", "<think>", "</think>", "<answer>", "</answer>"]
PERFECT = ["<think>", "a", "b", "</think>", "<answer>", "4", "</answer>"]


def tagged(**roles: str) -> Any:
    """A byte-level tokenizer whose tags are special tokens."""
    tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    inner = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(False, use_regex=False), decoders.ByteLevel()
    inner.add_special_tokens(SPECIAL)
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"} | roles
    return PreTrainedTokenizerFast(tokenizer_object=inner, **names)


def sentencepiece() -> Any:
    """As of Llama 2: the text's first space is dropped."""
    pieces = ["<unk>", "<s>", "</s>", "▁", "▁the", "▁a", *"abthe4.\n", *(f"<0x{byte:02X}>" for byte in range(256))]
    inner = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], byte_fallback=True))
    inner.normalizer = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    inner.decoder = decoders.Sequence(steps)
    inner.add_special_tokens(["<s>", "</s>", "<think>", "</think>"])
    inner.add_tokens([AddedToken("<answer>", special=False), AddedToken("</answer>", special=False)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="</s>")


def ids_of(tokenizer: Any, tokens: list[str]) -> list[int]:
    return [int(token) for token in tokenizer.convert_tokens_to_ids(tokens)]


def test_tags_that_are_special_tokens_stay() -> None:
    tokenizer = tagged()
    ids = ids_of(tokenizer, [*PERFECT, "<eos>"])
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ab4", "what rewards would see without the tags"
    text = text_of(tokenizer, ids, [tokenizer.eos_token_id])
    assert text == "<think>ab</think><answer>4</answer>" and format_reward([text]) == [1.0]
    end = ids_of(tokenizer, ["<|im_end|>"])
    assert text_of(tokenizer, ids[:-1] + end, end) == text, "the end token of the generation configuration"
    assert text_of(tokenizer, end + ids, end) == "<|im_end|>" + text, "anywhere else it is part of the text"
    mixed = ids_of(tokenizer, ["<bos>", "<think>", "<pad>", "a", "<bos>", "b", "</think>", "<pad>", "<eos>"])
    assert texts_of(tokenizer, [mixed, [], end], end) == ["<think>ab</think>", "", ""]


def test_a_word_that_is_named_as_pad_or_eos_stays_in_the_text() -> None:
    tokenizer = tagged()
    tokenizer.pad_token = tokenizer.eos_token = "."
    dot = tokenizer.convert_tokens_to_ids(".")
    ids = ids_of(tokenizer, ["a", ".", "b", "."])
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (dot, dot)
    assert text_of(tokenizer, ids, [dot]) == "a.b" and text_of(tokenizer, ids) == "a.b."
    both = tagged(pad_token="<eos>")
    assert text_of(both, ids_of(both, ["a", "<eos>"]), [both.eos_token_id]) == "a"


def test_spaces_of_sentencepiece_stay_as_they_were() -> None:
    tokenizer = sentencepiece()
    ids = ids_of(tokenizer, ["<s>", "▁the", "<think>", "▁a", "</think>", "▁the", "<answer>", "4", "</answer>", "</s>"])
    text = text_of(tokenizer, ids, [tokenizer.eos_token_id])
    assert text == "the<think> a</think> the<answer>4</answer>"


@pytest.mark.parametrize("make", [tagged, sentencepiece])
@pytest.mark.parametrize("seed", range(10))
def test_steps_end_at_the_token_that_completes_their_text(make: Any, seed: int) -> None:
    tokenizer, rng = make(), random.Random(seed)
    newline = tokenizer.convert_tokens_to_ids("\n" if make is sentencepiece else "Ċ")
    ids = [rng.choice([newline, *range(len(tokenizer))]) for _ in range(30)] + [tokenizer.eos_token_id]
    text = text_of(tokenizer, ids, [tokenizer.eos_token_id])
    for separator in ("\n", "</think>", "a"):
        ends = cut(text, by_separator(separator)).ends
        tokens = token_ends(ids, text, ends, tokenizer)
        for end, token in zip(ends[:-1], tokens[:-1], strict=True):
            assert text_of(tokenizer, ids[: token + 1]).startswith(text[:end])
            assert not text_of(tokenizer, ids[:token]).startswith(text[:end])
        assert tokens[-1] == len(ids) - 1


def test_a_stream_writes_the_tags() -> None:
    tokenizer, pieces = tagged(), list[str]()
    stream = TextStream(tokenizer, pieces.append, [tokenizer.eos_token_id])
    for token in ids_of(tokenizer, [*PERFECT, "<eos>"]):
        stream.add([token])
    stream.end()
    assert "".join(pieces) == "<think>ab</think><answer>4</answer>"


@pytest.fixture(scope="module")
def policy() -> Policy:
    tokenizer = tagged()
    model = small_model(vocab_size=len(tokenizer))
    model.generation_config.eos_token_id = ids_of(tokenizer, ["<eos>", "<|im_end|>"])
    return make_policy(model, tokenizer, TrainingConfig(bf16=False, use_cpu=True))


@pytest.mark.parametrize("kind", [LocalEngine, RowEngine])
def test_engines_return_the_tags(kind: Any, policy: Policy) -> None:
    tokenizer = policy.tokenizer
    sampling = Sampling(max_tokens=16, eos_ids=policy.eos_ids)
    (group,) = (
        kind(policy).generate([torch.tensor([20, 21])], 32, sampling, seeds([torch.tensor([20, 21])])).completions
    )
    for completion in group:
        ids = completion.ids.tolist()
        kept = [token for token in ids if token not in ids_of(tokenizer, ["<pad>", "<bos>"])]
        assert completion.text == tokenizer.decode(kept[:-1] if ids[-1] in policy.eos_ids else kept)
        assert not any(tag in completion.text for tag in SPECIAL[:4])
    assert any(tag in completion.text for completion in group for tag in SPECIAL[4:])
