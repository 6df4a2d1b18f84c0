"""A reward model with its tokenizer: texts -> token ids -> scores of texts or of step ends."""

from __future__ import annotations

import bisect
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from cohort.rewards.functions.text import content
from cohort.texts import prompt_ending
from cohort.types import Message, Text, UserError, joined

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger("cohort")


class Encoded(NamedTuple):
    """Encoded({"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1]}, ends=[], truncated=False)"""

    inputs: dict[str, list[int]]
    ends: list[int]
    """Indices of the tokens that get a score, such as the last token of each step; empty if the text gets one score."""
    truncated: bool = False
    steps: tuple[int, ...] = ()
    """Index of the step that ends at each of `ends`: a truncated text may have lost steps."""
    whole: int = 0
    """Tokens before it was truncated."""
    lost: int = 0
    """Steps that were cut off."""

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
        self.left_out = False
        """Whether it has been told that the chat template leaves out a part of a completion."""
        self.cut_off = False
        """Whether it has been told that the limit cuts off steps."""
        if self.of_steps and not tokenizer.is_fast:
            raise UserError(
                f"a process reward model needs a fast tokenizer, to find where steps end; {type(tokenizer).__name__} "
                "is none"
            )

    def encode_ids(self, ids: list[int]) -> Encoded:
        """Token ids of a text that is scored as a whole. What is too long loses its beginning."""
        limit = self.max_length or len(ids)
        inputs = {"input_ids": ids[-limit:], "attention_mask": [1] * min(limit, len(ids))}
        return Encoded(inputs, [], len(ids) > limit, whole=len(ids))

    def encode(self, prompt: Text, completion: Text, template: dict[str, Any] | None = None) -> Encoded:
        """A text that is scored as a whole. What is too long loses its beginning, of a pair the longer text its
        end. `template`: arguments for the chat template, in place of those of all texts."""
        ids, limit = self._whole(prompt, completion, template), self.max_length
        if not ids["input_ids"]:
            return Encoded({"input_ids": [self.tokenizer.eos_token_id or 0], "attention_mask": [1]}, [])
        if limit is None or len(ids["input_ids"]) <= limit:
            return Encoded(ids, [])
        whole = len(ids["input_ids"])
        if self._is_pair(prompt):
            cut = self.tokenizer(_plain(prompt), content(completion), truncation=True, max_length=limit)
            return Encoded(dict(cut), [], True, whole=whole)
        return Encoded({key: value[-limit:] for key, value in ids.items()}, [], True, whole=whole)

    def _whole(self, prompt: Text, completion: Text, template: dict[str, Any] | None = None) -> dict[str, list[int]]:
        """The tokenizer's inputs, however long."""
        tokenizer = self.tokenizer
        if not isinstance(prompt, str) and tokenizer.chat_template:
            reply = completion if isinstance(completion, list) else [{"role": "assistant", "content": completion}]
            options = self.template if template is None else template
            written = tokenizer.apply_chat_template(joined(prompt, reply), tokenize=False, **options)
            self._tell_left_out(reply, written)
            return dict(tokenizer(written, add_special_tokens=False))
        if self.pairs:
            return dict(tokenizer(_plain(prompt), content(completion)))
        return dict(tokenizer(_plain(prompt) + content(completion)))

    def _tell_left_out(self, reply: list[Message], written: str) -> None:
        """Warn once where the template leaves out a part of a completion, which the model then never gets."""
        if self.left_out:
            return
        seen = "".join(written.split())
        texts = [text for m in reply for text in (content([m]), m.get("reasoning_content")) if isinstance(text, str)]
        missing = next((text for text in texts if "".join(text.split()) not in seen), None)
        if missing is None:
            return
        self.left_out = True
        log.warning(
            "reward model %s: its chat template leaves out a part of the completion that starts %r (thoughts, "
            "perhaps), so that the model neither learns from it nor scores it, here and in texts like it. A template "
            "that keeps it: an option of this one in chat_template_kwargs, or another tokenizer.chat_template; with "
            "plain prompts (apply_chat_template: false) there is none",
            getattr(self.model.config, "name_or_path", "") or type(self.model).__name__,
            missing[:60],
        )

    def _is_pair(self, prompt: Text) -> bool:
        """Whether prompt and completion are the two texts of a pair, as an encoder without a chat template has them."""
        return self.pairs and (isinstance(prompt, str) or not self.tokenizer.chat_template)

    def encode_tokens(self, prompt: Text, completion: Text) -> Encoded:
        """A text whose completion has a score at every token, the text's own score last. Raises UserError for a model
        that scores the first token, from which an encoder sees the whole text."""
        if not scores_last(self.model):
            raise UserError(
                f"every_token: {type(self.model).__name__} does not score a text at its last token; only a decoder "
                "that does has a score for what stands up to each token"
            )
        text = self.encode(prompt, completion)
        last = text.length - 1
        if self._is_pair(prompt):
            _, starts, _ = self._written_pair(_plain(prompt), content(completion))
            start = next((token for token, _ in starts if token >= 0), last)
        else:
            whole, before = (self._whole(prompt, each)["input_ids"] for each in (completion, ""))
            unlike = (i for i, (a, b) in enumerate(zip(whole[:-1], before, strict=False)) if a != b)
            lost = len(whole) - text.length if text.truncated else 0
            start = min(max(0, next(unlike, len(before)) - lost), last)
        return text._replace(ends=list(range(start, last + 1)))

    def encode_steps(self, prompt: Text, completion: Text, steps: Sequence[str]) -> Encoded:
        """A text with the last token of each step: of the white space behind it too, of the last step the end of the
        text. The text is what a policy writes: the prompt's template, then the completion, then the end token. What
        is too long is cut as in `encode`; a step whose last token this cuts off has no end."""
        text = content(completion)
        inputs, starts, whole = self._written(prompt, text)
        characters = [character for _, character in starts]
        last = len(inputs["input_ids"]) - 1
        ends = []
        for end in step_ends(text, steps)[:-1]:
            # The last token that begins before the step's end holds the step's last character.
            place = bisect.bisect_left(characters, end) - 1
            ends.append(starts[place][0] if place >= 0 else 0)
        ends.append(last if not starts or starts[-1][0] >= 0 else -1)
        over = 0 if self.max_length is None else max(0, last + 1 - self.max_length)
        kept = {key: value[over:] for key, value in inputs.items()}
        seen = [(step, end - over) for step, end in enumerate(ends) if end >= over]
        truncated = self.max_length is not None and whole > self.max_length
        return Encoded(
            kept,
            [end for _, end in seen],
            truncated,
            tuple(step for step, _ in seen),
            whole * truncated,
            len(ends) - len(seen),
        )

    def _written(self, prompt: Text, text: str) -> tuple[dict[str, list[int]], list[tuple[int, int]], int]:
        """(the tokenizer's inputs, (token, character it begins at) of the completion's tokens, tokens before a cut).
        Only pairs are cut here; a token of the completion that is cut off is -1."""
        tokenizer = self.tokenizer
        if self._is_pair(prompt):
            return self._written_pair(_plain(prompt), text)
        if not isinstance(prompt, str) and tokenizer.chat_template:
            options = {**prompt_ending(prompt), "tokenize": False, **self.template}
            before, special = tokenizer.apply_chat_template(prompt, **options), False
        else:
            before, special = _plain(prompt), True
        encoding = tokenizer(before + text, return_offsets_mapping=True, add_special_tokens=special)
        spans = encoding.pop("offset_mapping")
        starts = [(i, span[0] - len(before)) for i, span in enumerate(spans) if span[1] > len(before)]
        end = {"input_ids": tokenizer.eos_token_id or 0, "attention_mask": 1}
        inputs = {key: [*value, end.get(key, 0)] for key, value in encoding.items()}
        return inputs, starts, len(inputs["input_ids"])

    def _written_pair(self, prompt: str, text: str) -> tuple[dict[str, list[int]], list[tuple[int, int]], int]:
        tokenizer, limit = self.tokenizer, self.max_length
        encoding = tokenizer(prompt, text, return_offsets_mapping=True)
        spans, parts = encoding.pop("offset_mapping"), encoding.sequence_ids()
        cut = limit is not None and len(spans) > limit
        characters = [span[0] for span, part in zip(spans, parts, strict=True) if part == 1]
        if cut:
            encoding = tokenizer(prompt, text, truncation=True, max_length=limit)
        tokens = [i for i, part in enumerate(encoding.sequence_ids()) if part == 1]
        lost = [-1] * (len(characters) - len(tokens))
        tokens = [*lost, *tokens] if tokenizer.truncation_side == "left" else [*tokens, *lost]
        return dict(encoding), list(zip(tokens, characters, strict=True)), len(spans)

    def forward(self, batch: Sequence[Encoded]) -> Tensor:
        """One padded forward pass: float32 logits [B] of B texts, or of the `ends` of all texts in order."""
        import torch

        pad = self._pad(batch)
        placed = self._padded(batch, pad)
        config = self.model.config.get_text_config()
        # No token follows: keys and values would be kept for nothing.
        changes = {"pad_token_id": pad, "use_cache": False}
        kept = {name: getattr(config, name) for name in changes if hasattr(config, name)}
        for name in kept:
            setattr(config, name, changes[name])
        logits: Tensor
        try:
            if batch[0].ends and not self.of_steps:
                logits = self.model.score(self.model.base_model(**placed).last_hidden_state)
            else:
                logits = self.model(**placed).logits
        finally:
            for name, value in kept.items():
                setattr(config, name, value)
        if not (self.of_steps or batch[0].ends):
            whole: Tensor = logits[:, 0].float()
            return whole
        rows = [i for i, each in enumerate(batch) for _ in each.ends]
        places = [end for each in batch for end in each.ends]
        at = torch.tensor([rows, places], dtype=torch.long, device=logits.device)
        at_ends: Tensor = logits[at[0], at[1], 0].float()
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
                results[i] = [next(scores) for _ in range(len(encoded[i].ends) or int(not self.of_steps))]
        self.model.train(training)
        return results

    def _pad(self, batch: Sequence[Encoded]) -> int:
        """The padding token id.

        transformers takes the score of a causal model at the last token that is not the padding token. If the model
        has a padding token, its scores were trained that way, even for texts that end with this token. If it has
        none, the score is at the text's last token, so the padding must be a token that no text of the batch ends
        with. The same holds where its padding token is beyond its embeddings, which no text was padded with.
        """
        named: int | None = self.model.config.get_text_config().pad_token_id
        if named is not None and named < self.model.get_input_embeddings().num_embeddings:
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
