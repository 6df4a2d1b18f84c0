"""A reward model with its tokenizer: texts -> token ids -> scores of texts or of step ends."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from cohort.rewards.functions.text import content
from cohort.types import Text, UserError, joined

if TYPE_CHECKING:
    from torch import Tensor


class Encoded(NamedTuple):
    """Encoded({"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1]}, ends=[], truncated=False)"""

    inputs: dict[str, list[int]]
    ends: list[int]
    """Indices of the tokens that get a score, such as the last token of each step; empty if the text gets one score."""
    truncated: bool = False
    whole: int = 0
    """Tokens before it was truncated."""
    lost: int = 0
    """Steps whose end was cut off: their scores are read at the nearest token left."""

    @property
    def length(self) -> int:
        return len(self.inputs["input_ids"])


class Scorer:
    """`model`: a transformers sequence classifier with one label, which scores texts, or a token classifier with one
    label (or an MLPHeadModel that reads every token), which scores step ends."""

    def __init__(
        self, model: Any, tokenizer: Any, max_length: int | None = None, template: dict[str, Any] | None = None
    ):
        self.model, self.tokenizer, self.template = model, tokenizer, template or {}
        self.max_length = max_length or positions(model)
        self.pairs = tokenizer.cls_token_id is not None and tokenizer.sep_token_id is not None
        self.of_steps = scores_steps(model)
        if self.of_steps and not tokenizer.is_fast:
            raise UserError(
                f"a process reward model needs a fast tokenizer, to find where steps end; {type(tokenizer).__name__} "
                "is none"
            )

    def encode(self, prompt: Text, completion: Text) -> Encoded:
        """A text that is scored as a whole. What is too long loses its beginning, of a pair the longer text its
        end."""
        tokenizer = self.tokenizer
        templated = not isinstance(prompt, str) and tokenizer.chat_template
        if templated and not isinstance(prompt, str):
            reply = completion if isinstance(completion, list) else [{"role": "assistant", "content": completion}]
            written = tokenizer.apply_chat_template(joined(prompt, reply), tokenize=False, **self.template)
            ids = tokenizer(written, add_special_tokens=False)
        elif self.pairs:
            ids = tokenizer(_plain(prompt), content(completion))
        else:
            ids = tokenizer(_plain(prompt) + content(completion))
        if not ids["input_ids"]:
            return Encoded({"input_ids": [tokenizer.eos_token_id or 0], "attention_mask": [1]}, [])
        limit = self.max_length
        if limit is None or len(ids["input_ids"]) <= limit:
            return Encoded(dict(ids), [])
        if self.pairs and not templated:
            cut = tokenizer(_plain(prompt), content(completion), truncation=True, max_length=limit)
            return Encoded(dict(cut), [], True, len(ids["input_ids"]))
        return Encoded({key: value[-limit:] for key, value in ids.items()}, [], True, len(ids["input_ids"]))

    def encode_tokens(self, prompt: Text, completion: Text) -> Encoded:
        """A text whose completion has a score at every token, the text's own score last. Raises UserError for a model
        that scores the first token, from which an encoder sees the whole text."""
        if not scores_last(self.model):
            raise UserError(
                f"every_token: {type(self.model).__name__} does not score a text at its last token; only a decoder "
                "that does has a score for what stands up to each token"
            )
        text, before = self.encode(prompt, completion), self.encode(prompt, "")
        last = text.length - 1
        ids = zip(text.inputs["input_ids"][:last], before.inputs["input_ids"], strict=False)
        start = next((i for i, (a, b) in enumerate(ids) if a != b), min(last, before.length))
        return text._replace(ends=list(range(start, last + 1)))

    def encode_steps(self, prompt: Text, completion: Text, steps: Sequence[str]) -> Encoded:
        """A text with the last token of each step: of the white space behind it too, of the last step the end of the
        text. The text is what a policy writes: the prompt's template, then the completion, then the end token. What
        is too long loses its beginning, as in `encode`; steps that this cuts off end at the nearest token left."""
        text = content(completion)
        inputs, starts, whole, left = self._written(prompt, text)
        characters = [character for _, character in starts]
        last = len(inputs["input_ids"]) - 1
        ends, text_ends = list[int](), step_ends(text, steps)
        for end in text_ends[:-1]:
            # The last token that begins before the step's end holds the step's last character.
            place = bisect.bisect_left(characters, end) - 1
            ends.append(starts[place][0] if place >= 0 else 0)
        over = 0 if self.max_length is None else max(0, last + 1 - self.max_length)
        kept = {key: value[over:] for key, value in inputs.items()}
        lost = sum(end < over for end in ends)
        if left is not None:
            lost = sum(len(text[:end].rstrip()) > left for end in text_ends)
        truncated = self.max_length is not None and whole > self.max_length
        return Encoded(kept, [max(0, end - over) for end in (*ends, last)], truncated, whole * truncated, lost)

    def _written(self, prompt: Text, text: str) -> tuple[dict[str, list[int]], list[tuple[int, int]], int, int | None]:
        """(the tokenizer's inputs, (token, character it begins at) of the completion's tokens, tokens before the end
        was cut off, characters of the text that this has left, or None)."""
        tokenizer = self.tokenizer
        templated = not isinstance(prompt, str) and tokenizer.chat_template
        if self.pairs and not templated:
            limit = self.max_length
            encoding = tokenizer(_plain(prompt), text, return_offsets_mapping=True)
            whole = len(encoding["input_ids"])
            cut = limit is not None and whole > limit
            if cut:
                options = {"truncation": True, "max_length": limit}
                encoding = tokenizer(_plain(prompt), text, return_offsets_mapping=True, **options)
            spans, parts = encoding.pop("offset_mapping"), encoding.sequence_ids()
            of_text = [(i, span) for i, span in enumerate(spans) if parts[i] == 1]
            left = max((span[1] for _, span in of_text), default=0) if cut else None
            return dict(encoding), [(i, span[0]) for i, span in of_text], whole, left
        if templated and not isinstance(prompt, str):
            opened = prompt[-1].get("role") == "assistant"
            ending = {"continue_final_message": True} if opened else {"add_generation_prompt": True}
            options = {**ending, "tokenize": False, **self.template}
            before, special = tokenizer.apply_chat_template(prompt, **options), False
        else:
            before, special = _plain(prompt), True
        encoding = tokenizer(before + text, return_offsets_mapping=True, add_special_tokens=special)
        spans = encoding.pop("offset_mapping")
        starts = [(i, span[0] - len(before)) for i, span in enumerate(spans) if span[1] > len(before)]
        end = {"input_ids": tokenizer.eos_token_id or 0, "attention_mask": 1}
        inputs = {key: [*value, end.get(key, 0)] for key, value in encoding.items()}
        return inputs, starts, len(inputs["input_ids"]), None

    def forward(self, batch: Sequence[Encoded]) -> Tensor:
        """One padded forward pass: float32 logits [B] of B texts, or of the `ends` of all texts in order."""
        import torch

        pad = self._pad(batch)
        placed = self._padded(batch, pad)
        config = self.model.config.get_text_config()
        kept, config.pad_token_id = config.pad_token_id, pad
        logits: Tensor
        try:
            if batch[0].ends and not self.of_steps:
                logits = self.model.score(self.model.base_model(**placed).last_hidden_state)
            else:
                logits = self.model(**placed).logits
        finally:
            config.pad_token_id = kept
        if not batch[0].ends:
            whole: Tensor = logits[:, 0].float()
            return whole
        rows = torch.tensor([i for i, each in enumerate(batch) for _ in each.ends], device=logits.device)
        places = torch.tensor([end for each in batch for end in each.ends], device=logits.device)
        at_ends: Tensor = logits[rows, places, 0].float()
        return at_ends

    def read(self, batch: Sequence[Encoded]) -> Tensor:
        """The hidden states [B, h] that the head of an MLPHeadModel reads of B texts."""
        hidden: Tensor = self.model.read(**self._padded(batch, self._pad(batch)))
        return hidden

    def _padded(self, batch: Sequence[Encoded], pad: int) -> dict[str, Tensor]:
        import torch

        width = max(each.length for each in batch)
        fill = {"input_ids": pad, "token_type_ids": self.tokenizer.pad_token_type_id}
        rows = {
            key: [x.inputs[key] + [fill.get(key, 0)] * (width - x.length) for x in batch] for key in batch[0].inputs
        }
        return {key: torch.tensor(value, device=self.model.device) for key, value in rows.items()}

    def score(self, encoded: Sequence[Encoded], batch_size: int) -> list[list[float]]:
        """The scores of each text, without gradient: one score, or one for each of its `ends`."""
        import torch

        # Texts of similar length share a batch, so that little of it is padding.
        order = sorted(range(len(encoded)), key=lambda i: encoded[i].length)
        results: list[list[float]] = [[] for _ in encoded]
        training = self.model.training
        self.model.eval()
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            with torch.no_grad():
                scores = iter(self.forward([encoded[i] for i in batch]).tolist())
            for i in batch:
                results[i] = [next(scores) for _ in range(len(encoded[i].ends) or 1)]
        self.model.train(training)
        return results

    def _pad(self, batch: Sequence[Encoded]) -> int:
        """The padding token id.

        transformers takes the score of a causal model at the last token that is not the padding token. If the model
        has a padding token, its scores were trained that way, even for texts that end with this token. If it has
        none, the score is at the text's last token, so the padding must be a token that no text of the batch ends
        with.
        """
        named: int | None = self.model.config.get_text_config().pad_token_id
        if named is not None:
            return named
        last = {each.inputs["input_ids"][-1] for each in batch}
        return next(token for token in range(len(last) + 1) if token not in last)


def scores_steps(model: Any) -> bool:
    """Whether the model scores every token (so steps can be scored), not the whole text."""
    return type(model).__name__.endswith("ForTokenClassification") or getattr(model.config, "reads", None) == "every"


def scores_last(model: Any) -> bool:
    """Whether a text's score is read at its last token by a head that can be applied to any token."""
    reads = getattr(model.config, "reads", None)
    return reads == "last" if reads else hasattr(model, "score") and not scores_steps(model)


def step_ends(text: str, steps: Sequence[str]) -> list[int]:
    """The end of each step in characters, exclusive: the start of the next step, or the end of the text.

    step_ends("a=1\\nb=2", ["a=1", "b=2"]) == [4, 7]. Raises UserError where the text does not hold them in order.
    """
    starts, at = [], 0
    for step in steps:
        start = text.find(step, at)
        if start < 0:
            raise UserError(f"step {step[:60]!r} is not in the completion {text[:100]!r} behind the steps before it")
        starts.append(start)
        at = start + len(step)
    return [*starts[1:], len(text)]


def _plain(prompt: Text) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(content([message]) for message in prompt)


def positions(model: Any) -> int | None:
    """The maximum number of tokens; RoBERTa's position embeddings start after the padding token's index."""
    count: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if count is None or count < 1:
        return None
    embeddings = [module for name, module in model.named_modules() if name.endswith("position_embeddings")]
    offset: int | None = getattr(embeddings[0], "padding_idx", None) if embeddings else None
    return count if offset is None else count - offset - 1
