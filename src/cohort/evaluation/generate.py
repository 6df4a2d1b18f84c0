"""Completions of a model by name: what `cohort generate` calls."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch

from cohort.config import TrainingConfig
from cohort.data.chat_templates import use_template
from cohort.data.rows import turns
from cohort.data.templates import encode_prompt
from cohort.policy.load import make_policy
from cohort.rollouts.engine import local_engine
from cohort.rollouts.sampling import OnTokens, Sampling
from cohort.types import Completion, Row, Text, UserError

log = logging.getLogger("cohort")

BYTES = 4
"""Of a character in UTF-8, at most: tokens of one byte each that make it."""
CHUNK = 256
"""Prompts that are answered before the first of them is given back."""


class Speech:
    """Tokens of one completion to pieces of its text, each whole characters."""

    def __init__(self, tokenizer: Any, write: Callable[[str], None]):
        self.tokenizer, self.write = tokenizer, write
        self.ids: list[int] = []
        self.context, self.told = 0, 0
        """The first token that the next piece is decoded with, and the first that is in no piece yet."""

    def hear(self, tokens: list[int]) -> None:
        self.ids += tokens
        piece = self._piece()
        # A character may take four tokens, and until the last is there it decodes to this sign.
        if piece and (not piece.endswith("\ufffd") or len(self.ids) - self.told >= BYTES):
            self.write(piece)
            self.context, self.told = self.told, len(self.ids)

    def end(self) -> None:
        """No more tokens come."""
        if piece := self._piece():
            self.write(piece)

    def _piece(self) -> str:
        """Decoded with the piece before it: some tokenizers leave out a blank where a text begins."""
        before, now = (
            self.tokenizer.decode(self.ids[self.context : end], skip_special_tokens=True)
            for end in (self.told, len(self.ids))
        )
        return str(now[len(before) :])


class Generator:
    """A model, or an adapter with its base model, that answers prompts by the local engine."""

    def __init__(
        self,
        model: str,
        *,
        template: str | None = None,
        trust_remote_code: bool = False,
        allow_pickle: bool = False,
        seed: int = 42,
    ):
        config = TrainingConfig(seed=seed, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
        torch.manual_seed(seed)
        self.policy = make_policy(model, None, config)
        use_template(self.policy.tokenizer, template)
        self.engine = local_engine(self.policy, config.max_rows)
        self.seed = seed

    @property
    def chats(self) -> bool:
        """Whether the tokenizer has a chat template."""
        return bool(getattr(self.policy.tokenizer, "chat_template", None))

    def asked(self, prompt: str, system_prompt: str | None, plain: bool) -> Text:
        """A prompt in the form that the model is asked in: as a chat turn where there is a template, unless `plain`."""
        if plain and system_prompt is not None:
            raise UserError("a plain prompt has no system turn: leave --system-prompt or --plain out")
        return turns(prompt, system_prompt or "") if not plain and (self.chats or system_prompt is not None) else prompt

    def answers(
        self, prompts: list[Text], sampling: dict[str, Any], n: int = 1, on_tokens: OnTokens | None = None
    ) -> list[list[Completion]]:
        """`n` completions of each prompt; `sampling` has the fields of Sampling but the end tokens. Raises UserError
        for a prompt that leaves no room for an answer."""
        encoded = [torch.tensor(encode_prompt(self.policy.tokenizer, prompt)) for prompt in prompts]
        room = self.policy.context_length
        for prompt, ids in zip(prompts, encoded, strict=True):
            if len(ids) >= room:
                start = str(prompt if isinstance(prompt, str) else prompt[-1]["content"])[:60]
                raise UserError(
                    f"a prompt has {len(ids)} tokens and the model {room} positions: no room for an answer ({start!r})"
                )
        settings = Sampling(**sampling, eos_ids=self.policy.eos_ids)
        return self.engine.generate(encoded, n, settings, self.seed, on_tokens).completions

    def answer(self, prompt: Text, sampling: dict[str, Any], write: Callable[[str], None]) -> Completion:
        """One completion; `write` gets its text piece by piece while it is sampled."""
        speech = Speech(self.policy.tokenizer, write)
        found = self.answers([prompt], sampling, on_tokens=lambda _, tokens: speech.hear(tokens))[0][0]
        speech.end()
        return found

    def rows(self, rows: list[Row], sampling: dict[str, Any], n: int = 1) -> Iterator[dict[str, Any]]:
        """One record for each row, in order: its prompt, its columns, its completions and which of them were cut."""
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            for row, found in zip(chunk, self.answers([row.prompt for row in chunk], sampling, n), strict=True):
                yield {
                    "prompt": row.prompt,
                    **row.columns,
                    "completions": [completion.text for completion in found],
                    "truncated": [completion.truncated for completion in found],
                }
            log.info("%d of %d prompts answered", min(start + CHUNK, len(rows)), len(rows))
