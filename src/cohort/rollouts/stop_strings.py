"""Which completions contain a stop string, told from their last tokens."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

UNFINISHED = "\ufffd"
"""What decoding gives for bytes that are no character, or not yet."""
SPARE = 8
"""Tokens, beside one for each byte of the longest stop string, whose text is decoded at least."""


class StopStrings:
    """Completions that grow token by token, and whether the text of one contains a string of `stop` (not empty).

    A new token can only complete a string that ends in its own text, so a completion's last tokens are enough, from one
    on at which a character begins: there the text of what follows is the end of the whole text."""

    def __init__(self, tokenizer: Any, stop: list[str]):
        self.tokenizer, self.stop = tokenizer, stop
        self.bytes = max(len(string.encode()) for string in stop)
        self.tails: dict[int, list[int]] = defaultdict(list)
        """Number of a completion -> its last tokens."""

    def ended(self, completions: list[int], tokens: list[int]) -> list[bool]:
        """Whether each completion contains a stop string now that it has one more token."""
        tails = [self.tails[number] for number in completions]
        for tail, token in zip(tails, tokens, strict=True):
            tail.append(token)
        texts = self._texts(tails)
        self._shorten([(tail, text) for tail, text in zip(tails, texts, strict=True) if self._is_long(tail)])
        return [any(string in text for string in self.stop) for text in texts]

    def end_across(self, before: list[int], new: list[int]) -> int | None:
        """The number of new tokens with which the completion contains a string of `stop`, which may have begun before
        them; None: it contains none."""
        if not any(string in text for text in self._texts([[*before, *new]]) for string in self.stop):
            return None
        self.tails[0] = list(before)
        ended = (i + 1 for i, token in enumerate(new) if self.ended([0], [token])[0])
        return next(ended, None)

    def _texts(self, sequences: list[list[int]]) -> list[str]:
        # With every special token: a stop string may be one.
        texts: list[str] = self.tokenizer.batch_decode(sequences) if sequences else []  # of none it gives one text
        return texts

    def _is_long(self, tail: list[int]) -> bool:
        return len(tail) >= 2 * (self.bytes + SPARE)

    def _shorten(self, tails: list[tuple[list[int], str]]) -> None:
        """Drop the first half of the tails where the second half's text is the end of the text and long enough."""
        halves = [tail[len(tail) // 2 :] for tail, _ in tails]
        for (tail, text), half, end in zip(tails, halves, self._texts(halves), strict=True):
            if text.endswith(end) and len(end.encode()) >= self.bytes and UNFINISHED not in end:
                tail[:] = half
