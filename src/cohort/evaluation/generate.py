"""Completions of a model loaded by name, for `cohort generate`: of one prompt, of a file's rows, or streamed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch

from cohort.config import TrainingConfig
from cohort.data.messages import turns
from cohort.data.order import prompt_seeds
from cohort.data.templates import encode_prompt, for_template, prompt_text
from cohort.evaluation.loaded_model import LoadedModel
from cohort.policy.process import seed_everything
from cohort.policy.text import text_of
from cohort.progress import Task
from cohort.rollouts.sampling import OnGroup, OnTokens
from cohort.types import Completion, Row, Text, UserError

MAX_BYTES = 4
"""Bytes of the longest character in UTF-8, and so the most tokens that one character can take."""
CHUNK = 256
"""Prompts that are sampled together; their records follow when all of them are done."""


class TextStream:
    """Decodes the tokens of one completion as they arrive and writes the text in pieces of whole characters."""

    def __init__(self, tokenizer: Any, write: Callable[[str], None], eos_ids: Collection[int] = ()):
        self.tokenizer, self.write, self.eos_ids = tokenizer, write, eos_ids
        self.ids: list[int] = []
        self.context = 0
        """Index of the first token of the piece that was written last."""
        self.written = 0
        """Tokens whose text was written."""

    def add(self, tokens: list[int]) -> None:
        self.ids += tokens
        piece = self._piece()
        # A character whose last token is missing decodes to U+FFFD.
        if piece and (not piece.endswith("\ufffd") or len(self.ids) - self.written >= MAX_BYTES):
            self.write(piece)
            self.context, self.written = self.written, len(self.ids)

    def end(self) -> None:
        """Write what is left: no more tokens come."""
        if piece := self._piece():
            self.write(piece)

    def _piece(self) -> str:
        """The text of the unwritten tokens. They are decoded after the previous piece, because some tokenizers drop a
        space at the start of a text."""
        before, now = (
            text_of(self.tokenizer, self.ids[self.context : end], self.eos_ids) for end in (self.written, len(self.ids))
        )
        return str(now[len(before) :])


class Generator:
    """Samples completions of a model, or of an adapter with its base model, by the local engine. `one_by_one`: prompts
    come alone, which the model's own code answers sooner than the fast paths are ready."""

    def __init__(
        self,
        model: str,
        *,
        template: str | None = None,
        plain: bool = False,
        one_by_one: bool = False,
        trust_remote_code: bool = False,
        allow_pickle: bool = False,
        seed: int = 42,
    ):
        config = TrainingConfig(
            seed=seed,
            apply_chat_template=not plain,
            fast_paths="off" if one_by_one else "auto",
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
        )
        seed_everything(seed)
        self.model = LoadedModel(model, config, template)
        self.seed = seed

    def as_prompt(self, text: str, system_prompt: str | None = None) -> Text:
        """The text as a chat turn if there is a system prompt, or a template that plain prompts go through."""
        templated = self.model.config.apply_chat_template and self.model.has_chat_template
        return turns(text, system_prompt or "") if templated or system_prompt is not None else text

    def generate(
        self,
        prompts: list[Text] | list[Row],
        sampling: dict[str, Any],
        n: int = 1,
        on_tokens: OnTokens | None = None,
        on_group: OnGroup | None = None,
        first: int = 0,
    ) -> list[list[Completion]]:
        """`n` completions of each prompt. `sampling` holds Sampling's fields except `eos_ids`. `first`: the
        position of the first prompt among all that are asked, for the seeds. Raises UserError for a prompt that fills
        the model's positions."""
        rows = [prompt if isinstance(prompt, Row) else Row(prompt) for prompt in prompts]
        encoded = [torch.tensor(encode_prompt(self.model.tokenizer, row)) for row in rows]
        positions = self.model.policy.context_length
        for row, ids in zip(rows, encoded, strict=True):
            if len(ids) >= positions:
                start = prompt_text(row.prompt)[:60]
                raise UserError(
                    f"a prompt has {len(ids)} tokens and the model {positions} positions: no room for an answer "
                    f"({start!r})"
                )
        asked = encoded, n, self.model.sampling(**sampling), prompt_seeds(self.seed, len(encoded), first)
        return self.model.engine.generate(*asked, on_tokens, on_group).completions

    def stream(self, prompt: Text, sampling: dict[str, Any], write: Callable[[str], None]) -> Completion:
        """One completion; `write` gets its text piece by piece while it is sampled."""
        text = TextStream(self.model.tokenizer, write, self.model.policy.eos_ids)
        completion = self.generate([prompt], sampling, on_tokens=lambda _, tokens: text.add(tokens))[0][0]
        text.end()
        return completion

    def records(self, rows: list[Row], sampling: dict[str, Any], n: int = 1) -> Iterator[dict[str, Any]]:
        """One record for each row, in order: prompt, columns, the completions' texts, and whether each was cut."""
        asked = for_template(rows, self.model.tokenizer, self.model.config.apply_chat_template)
        with Task("answering", len(rows), "prompts") as task:
            for start in range(0, len(rows), CHUNK):
                chunk = rows[start : start + CHUNK]
                prompts = asked[start : start + CHUNK]
                sampled = self.generate(prompts, sampling, n, on_group=lambda *_: task.add(), first=start)
                for row, completions in zip(chunk, sampled, strict=True):
                    yield {
                        "prompt": row.prompt,
                        **row.columns,
                        "completions": [completion.text for completion in completions],
                        "truncated": [completion.truncated for completion in completions],
                    }
                task.done = start + len(chunk)
