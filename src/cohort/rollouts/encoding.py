"""Token ids of prompts, and the tokens at which steps end."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cohort.config import TrainingConfig
from cohort.data.configured import fit_prompt, log_fitted, prompt_limit
from cohort.data.templates import LONGEST_MARK, encode_prompt
from cohort.policy.model import Policy
from cohort.policy.text import text_of
from cohort.progress import track
from cohort.texts import OPENED, opened_thoughts
from cohort.types import Row, UserError


def encode_prompts(rows: list[Row], policy: Policy, config: TrainingConfig) -> list[Prompt]:
    """The rows' prompts as token ids. Prompts over the limit are dropped or cut, by `truncation`, and counted. Raises
    UserError where none is left."""
    limit = prompt_limit(policy.context_length, config)
    prompts = []
    for row in track(rows, "tokenising", "prompts"):
        ids = encode_prompt(policy.tokenizer, row, config.chat_template_kwargs)
        # A template may open the thoughts, which the completion then only closes: rewards must know.
        mark = opened_thoughts(policy.tokenizer.decode(ids[-LONGEST_MARK:]))
        opened = row if mark is None else replace(row, columns={**row.columns, OPENED: mark})
        prompts.append(Prompt(opened, torch.tensor(ids)))
    empty = next((prompt for prompt in prompts if not len(prompt.ids)), None)
    if empty is not None:
        raise UserError(f"{empty.row.source}: the prompt has no tokens; give it some text")
    for prompt in prompts:
        policy.require_known(prompt.ids.tolist(), prompt.row.source)
    fitted = [fit_prompt(prompt.ids.tolist(), limit, config.truncation) for prompt in prompts]
    log_fitted([len(prompt.ids) for prompt in prompts], fitted, limit, "max_prompt_length", "prompts", rows)
    return [Prompt(p.row, torch.tensor(ids)) for p, ids in zip(prompts, fitted, strict=True) if ids is not None]


def token_ends(ids: list[int], text: str, text_ends: list[int], tokenizer: Any) -> list[int]:
    """Index of the token that completes each of the first `text_ends` characters of the text; a step that ends with the
    text ends with the last token, whether that has text (an end-of-sequence token has none) or not.

    Decoding decides, so that tokens with several characters, characters with several tokens and tokens without any
    are all right: a prefix of tokens is long enough when its text starts with the step's end.
    """
    found, first = [], 0
    for end in text_ends:
        low, high = first, len(ids) - 1
        if end == len(text):
            low = high
        while low < high:
            middle = (low + high) // 2
            if text_of(tokenizer, ids[: middle + 1]).startswith(text[:end]):
                high = middle
            else:
                low = middle + 1
        found.append(low)
        first = low
    return found


@dataclass(frozen=True)
class Prompt:
    """A row and the token ids of its prompt, int64 [p]."""

    row: Row
    ids: Tensor
