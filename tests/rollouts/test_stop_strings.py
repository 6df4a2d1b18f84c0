"""Stop strings, told from a completion's last tokens: the same ends as by decoding the whole text after each token."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from cohort.data.chains import build_tokenizer
from cohort.rollouts.engine import LocalEngine
from cohort.rollouts.row_engine import RowEngine
from cohort.rollouts.sampling import Sampling
from cohort.rollouts.stop_strings import StopStrings
from helpers import byte_fallback, byte_tokenizer, seeds, small_policy

TEXT = "the answer is 42.\n\nQuestion: où est l'été? 日本語の文章です。 done 🙂🙃🙂 <|end|> it's not \t here , "


def byte_level() -> Any:
    """Byte-level BPE, as of GPT-2 and Qwen: a character may be split over tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([TEXT] * 3, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def word_pieces() -> Any:
    """As of BERT: "##" marks what continues a word, and spaces before punctuation are dropped."""
    pieces = ["[UNK]", "the", "##s", "##wer", "an", "it", "'", "s", ".", ",", "!", "n't", "do", "日", "##本", "##."]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", clean_up_tokenization_spaces=True)


TOKENIZERS = [byte_level, byte_tokenizer, byte_fallback, word_pieces, build_tokenizer]
STOPS = [
    ["\n\n", "Question:"],
    ["日本"],
    ["🙂🙃"],
    ["é", "the answer is 42.\n\nQuestion: où est"],
    [" the an"],
    ["er"],
    ["s."],
    ["日本語の文章です。 done 🙂"],
    ["<|end|>"],
    ["3=3", "!"],
]


def by_the_whole_text(tokenizer: Any, ids: list[int], stop: list[str]) -> int | None:
    texts = (tokenizer.decode(ids[:end]) for end in range(1, len(ids) + 1))
    return next((end for end, text in enumerate(texts, 1) if any(string in text for string in stop)), None)


def by_the_last_tokens(tokenizer: Any, ids: list[int], stop: list[str]) -> int | None:
    stops = StopStrings(tokenizer, stop)
    return next((end for end, token in enumerate(ids, 1) if stops.ended([7], [token])[0]), None)


@pytest.mark.parametrize("make", TOKENIZERS, ids=lambda make: make.__name__)
def test_ends_are_those_of_the_whole_text(make: Callable[[], Any]) -> None:
    tokenizer, rng = make(), random.Random(0)
    found = 0
    for trial in range(120):
        whole: list[int] = tokenizer.encode(TEXT, add_special_tokens=False)
        if trial % 3 == 0:
            ids = whole[rng.randrange(40) :] + whole
        elif trial % 3 == 1:  # random bytes and words, most of them no text
            ids = [rng.randrange(len(tokenizer)) for _ in range(90)]
        else:  # pieces of text with random tokens in between
            ids = []
            while len(ids) < 90:
                start = rng.randrange(max(1, len(whole) - 1))
                ids += whole[start : start + rng.randrange(1, 30)] + [rng.randrange(len(tokenizer))] * rng.randrange(2)
        stop = STOPS[rng.randrange(len(STOPS))]
        expected = by_the_whole_text(tokenizer, ids, stop)
        assert by_the_last_tokens(tokenizer, ids, stop) == expected, (ids, stop)
        found += expected is not None
    assert found > 5


@pytest.mark.parametrize("make", [byte_tokenizer, byte_fallback], ids=lambda make: make.__name__)
@pytest.mark.parametrize(
    ("text", "stop"),
    [
        ("日本語の文章です。" * 20, "日本語の文章でした"),
        ("🙂🙃" * 40, "the end of it"),
        ("the answer " * 40, "日"),
        ("é\n" * 60, "\n:"),
    ],
)
def test_a_token_costs_the_same_late_as_early(make: Callable[[], Any], text: str, stop: str) -> None:
    tokenizer, decoded = make(), [0]
    batch_decode = tokenizer.batch_decode

    def counted(tails: list[list[int]]) -> list[str]:
        decoded[0] += sum(map(len, tails))
        return list(batch_decode(tails))

    tokenizer.batch_decode = counted
    stops, ids = StopStrings(tokenizer, [stop]), tokenizer.encode(text, add_special_tokens=False)
    assert len(ids) > 100
    for token in ids:
        assert stops.ended([0], [token]) == [False]
    longest = 2 * (len(stop.encode()) + 8) + 12
    assert decoded[0] < 2 * longest * len(ids)
    *most, last = tokenizer.encode(stop, add_special_tokens=False)
    assert not any(stops.ended([0], [token])[0] for token in most) and stops.ended([0], [last]) == [True]


def test_completions_of_a_step_are_decoded_at_once_without_those_that_have_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy, prompts = small_policy(vocab_size=22), [torch.tensor([8, 9, 10]), torch.tensor([8])]
    calls: list[int] = []
    ended = StopStrings.ended

    def watched(self: StopStrings, completions: list[int], tokens: list[int]) -> list[bool]:
        calls.append(len(completions))
        return ended(self, completions, tokens)

    monkeypatch.setattr(StopStrings, "ended", watched)
    found = LocalEngine(policy).generate(
        prompts, 30, Sampling(max_tokens=40, eos_ids=[], stop=["3", "55"]), seeds(prompts)
    )
    lengths = [len(completion.ids) for group in found.completions for completion in group]
    assert len(calls) == max(lengths) and sum(calls) == sum(lengths)


@pytest.mark.parametrize("engine", [LocalEngine, RowEngine])
def test_multi_byte_stop_strings_end_a_completion(engine: Any) -> None:
    policy = small_policy(vocab_size=260)
    policy.tokenizer = tokenizer = byte_tokenizer()
    found = engine(policy).generate(
        [torch.tensor([8, 9, 10])],
        40,
        Sampling(max_tokens=60, stop=["é", "ab", "\n"]),
        seeds([torch.tensor([8, 9, 10])]),
    )
    stopped = 0
    for completion in found.completions[0]:
        ids = completion.ids.tolist()
        expected = by_the_whole_text(tokenizer, ids, ["é", "ab", "\n"])
        assert (expected is None) == completion.truncated and expected in (None, len(ids))
        stopped += expected is not None
    assert stopped > 3


def test_a_row_ends_at_a_stop_string_before_its_end_token() -> None:
    """transformers pads a row that has ended, here with a token that is among the end tokens."""
    policy, stop = small_policy(vocab_size=22), ("1", "3", "5", "7", "9")
    sampling = Sampling(max_tokens=40, eos_ids=[0], stop=list(stop))
    found = (
        RowEngine(policy)
        .generate([torch.tensor([8, 9, 10])], 60, sampling, seeds([torch.tensor([8, 9, 10])]))
        .completions[0]
    )
    texts = [policy.tokenizer.decode(completion.ids.tolist()) for completion in found]
    assert sum(text.endswith(stop) for text in texts) > 5
    assert not any(digit in text[:-1] for text in texts for digit in stop)
