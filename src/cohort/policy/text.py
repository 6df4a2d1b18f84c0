"""The text of a completion's tokens, as rewards and records get it.

Tags such as `<think>`, `<answer>` and `<tool_call>` are special tokens of some tokenizers and part of the answer, so
they stay. Dropped are only the token that ends the completion, and bos, eos and pad.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any


def text_of(tokenizer: Any, ids: Sequence[int], eos_ids: Collection[int] = ()) -> str:
    """The text of one completion; see `texts_of`."""
    return texts_of(tokenizer, [ids], eos_ids)[0]


def texts_of(tokenizer: Any, sequences: Sequence[Sequence[int]], eos_ids: Collection[int] = ()) -> list[str]:
    """The texts of completions. `eos_ids`: tokens that end a completion; only a last one is dropped, since it may be a
    word. The text of a completion's first tokens is the start of its text, but for a character that is cut."""
    roles = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id} - {None}
    if roles and any(not roles.isdisjoint(ids) for ids in sequences):
        roles &= _special_ids(tokenizer)
    cut = [ids[:-1] if len(ids) and ids[-1] in eos_ids else ids for ids in sequences]
    kept = [[token for token in ids if token not in roles] for ids in cut]
    texts: list[str] = tokenizer.batch_decode(kept, skip_special_tokens=False) if kept else []
    return texts


def _special_ids(tokenizer: Any) -> set[int]:
    """Tokens that are special in the vocabulary: a word that is named as pad_token is not."""
    added = getattr(tokenizer, "added_tokens_decoder", None)
    if added is None:
        return set(tokenizer.all_special_ids)
    return {int(token) for token, content in added.items() if content.special}
