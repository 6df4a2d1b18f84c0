"""Prompts and demonstrations as token ids, through the tokenizer's chat template."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

from cohort.config import TrainingConfig
from cohort.data.chat_templates import use_template
from cohort.data.messages import in_turns
from cohort.texts import opened_thoughts
from cohort.types import Message, Row, Text, UserError, joined

log = logging.getLogger("cohort")


def prepared(
    rows: list[Row], held_out: list[Row], tokenizer: Any, config: TrainingConfig
) -> tuple[list[Row], list[Row]]:
    """Training and held-out rows as the configuration's template and apply_chat_template want them; the tokenizer gets
    the template."""
    use_template(tokenizer, config.template)
    both = for_template([*rows, *held_out], tokenizer, config.apply_chat_template)
    return both[: len(rows)], both[len(rows) :]


def for_template(rows: list[Row], tokenizer: Any, wanted: bool | None) -> list[Row]:
    """The rows with plain prompts as user turns, where the tokenizer has a chat template and `wanted`
    (apply_chat_template) is true. What becomes of plain prompts is logged."""
    plain = sum(_is_plain(row) for row in rows)
    if not plain or wanted is False or not getattr(tokenizer, "chat_template", None):
        return rows
    if wanted is None:
        log.warning(
            "WARNING: %d of %d prompts are plain text and reach the model as they are, although its tokenizer has a "
            "chat template. An instruct model answers a user turn far better: apply_chat_template=True makes them one; "
            "False leaves them plain without this line",
            plain,
            len(rows),
        )
        return rows
    log.info(
        "%d of %d prompts are plain text: each becomes a user turn of the tokenizer's chat template "
        "(apply_chat_template: false leaves them as they are)",
        plain,
        len(rows),
    )
    return [in_turns(row) if _is_plain(row) else row for row in rows]


def _is_plain(row: Row) -> bool:
    """Whether the prompt is plain text. A row with a text alone has none."""
    return isinstance(row.prompt, str) and bool(row.prompt)


def encode_prompt(tokenizer: Any, row: Row, chat_template_kwargs: dict[str, Any] | None = None) -> list[int]:
    """Token ids of a row's prompt. Plain text gets the tokenizer's special tokens, without a trailing end token;
    messages go through the chat template with its generation prompt, and a last assistant turn is left open.

    The row's columns `tools` and `chat_template_kwargs` reach the template. Raises UserError for messages if the
    tokenizer has no chat template, or if the template refuses them.
    """
    if isinstance(row.prompt, str):
        return _plain_ids(tokenizer, row.prompt)
    opened = row.prompt[-1].get("role") == "assistant"
    ending = {"continue_final_message": True} if opened else {"add_generation_prompt": True}
    return _render(tokenizer, row.prompt, row, {**ending, **_template_kwargs(row, chat_template_kwargs)})


class Demonstration(NamedTuple):
    """Demonstration(prompt=[5, 6], completion=[7, 2, 5, 8, 2], trained=[True, True, False, True, True])"""

    prompt: list[int]
    completion: list[int]
    """It ends with an end-of-sequence token, unless it was cut."""
    trained: list[bool] | None = None
    """For each token of the completion whether it is the assistant's; None: all are."""


def encode_demonstrations(
    tokenizer: Any, row: Row, chat_template_kwargs: dict[str, Any] | None = None, last_only: bool = False
) -> list[Demonstration]:
    """A row as what is trained on. Of a conversation every assistant turn is trained on, or with `last_only` the last:
    in one demonstration, or, where the template renders a turn differently once others follow (it leaves out its
    thoughts), in one for each turn. Raises UserError naming the row, as encode_demonstration does."""
    first = _first_answer(row)
    if (
        isinstance(row.prompt, str)
        or isinstance(row.completion, str)
        or row.completion is None
        or last_only
        or (first == len(row.prompt) and len(row.completion) == 1)
    ):
        return [encode_demonstration(tokenizer, row, chat_template_kwargs)]
    messages = joined(row.prompt, row.completion)
    answers = [i for i in range(first, len(messages)) if messages[i]["role"] == "assistant"]
    turns = [
        encode_demonstration(
            tokenizer, replace(row, prompt=messages[:i], completion=[messages[i]]), chat_template_kwargs
        )
        for i in answers
    ]
    prompt, completion, trained = turns[0].prompt, list[int](), list[bool]()
    for turn in turns:
        before = [*prompt, *completion]
        if turn.prompt[: len(before)] != before:
            return turns
        between = turn.prompt[len(before) :]
        completion += [*between, *turn.completion]
        trained += [False] * len(between) + [True] * len(turn.completion)
    return [Demonstration(prompt, completion, trained)]


def _first_answer(row: Row) -> int:
    """Index in prompt and completion of the first assistant turn that is trained on."""
    if isinstance(row.prompt, str) or not row.conversation:
        return len(row.prompt)
    found = (i for i, message in enumerate(row.prompt) if i and message["role"] == "assistant")
    return next(found, len(row.prompt))


def encode_demonstration(tokenizer: Any, row: Row, chat_template_kwargs: dict[str, Any] | None = None) -> Demonstration:
    """Prompt and completion; the completion ends with one end-of-sequence token.

    Raises UserError naming the row if the template renders the prompt differently once the answer follows it, or if
    prompt and completion are of different kinds.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(
            "the tokenizer has no end-of-sequence token, which ends each completion: set tokenizer.eos_token, or name "
            "a chat template that has one (template: chatml, ...)"
        )
    prompt = encode_prompt(tokenizer, row, chat_template_kwargs)
    assert row.completion is not None, f"{row.source}: no completion"
    if isinstance(row.prompt, str) and isinstance(row.completion, str):
        completion = _continuation(tokenizer, row.prompt, prompt, row.completion)
        if completion[-1:] == [tokenizer.eos_token_id]:  # the tokenizer's own
            completion.pop()
        if not prompt:  # a text alone: nothing predicts its first token
            prompt, completion = completion[:1], completion[1:]
    elif isinstance(row.prompt, str) or isinstance(row.completion, str):
        kinds = ["plain text" if isinstance(text, str) else "chat messages" for text in (row.prompt, row.completion)]
        raise UserError(f"{row.source}: the prompt is {kinds[0]} and its completion {kinds[1]}: make both the same")
    else:
        messages = joined(row.prompt, row.completion)
        whole = _render(tokenizer, messages, row, _template_kwargs(row, chat_template_kwargs))
        if whole[: len(prompt)] != prompt:
            raise UserError(
                f"{row.source}: the chat template renders this prompt differently once its answer follows, so the "
                "answer's tokens cannot be told apart; use another chat template"
            )
        completion = whole[len(prompt) :]
        if tokenizer.eos_token_id in completion:  # a template can add text after it, such as a line break
            completion = completion[: -1 - completion[::-1].index(tokenizer.eos_token_id)]
        if len(row.completion) == 1:
            completion = _as_written(tokenizer, row, prompt, completion)
    return Demonstration(prompt, [*completion, tokenizer.eos_token_id])


def _as_written(tokenizer: Any, row: Row, prompt: list[int], completion: list[int]) -> list[int]:
    """The tokens of an assistant turn as the template renders it, or, where that is not what the row says, the tokens
    of the row's text: a template may leave thoughts out, and a text may quote the end token."""
    assert row.completion is not None and not isinstance(row.completion, str)
    content = row.completion[0].get("content")
    if not isinstance(content, str) or not content.strip():
        return completion
    opened = opened_thoughts(tokenizer.decode(prompt[-LONGEST_MARK:]))
    if opened is not None and content.lstrip().startswith(opened):
        content = content.lstrip()[len(opened) :].lstrip("\n")  # the prompt has opened the thoughts
    own = list(tokenizer(content, add_special_tokens=False, split_special_tokens=True)["input_ids"])
    if tokenizer.eos_token_id not in completion and _bare(tokenizer, own) in _bare(tokenizer, completion):
        return completion
    if tokenizer.eos_token_id not in completion:
        log_once(
            f"{row.source}: the chat template leaves out a part of this answer (its thoughts, perhaps): the answer is "
            "trained on as the row has it, here and in rows like it"
        )
    return own


LONGEST_MARK = 32
"""Tokens that hold any opening mark and the white space behind it."""


def _bare(tokenizer: Any, ids: list[int]) -> str:
    """The tokens' text without white space, which templates trim."""
    return "".join(tokenizer.decode(ids).split())


@cache
def log_once(message: str) -> None:
    log.warning(message)


def _plain_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of plain text with the tokenizer's special tokens, without a trailing end token and a second beginning
    token, where the text brings its own."""
    ids = list(tokenizer(text)["input_ids"])
    if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
        ids = ids[:-1]
    return ids[1:] if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id else ids


def _continuation(tokenizer: Any, prompt: str, prompt_ids: list[int], completion: str) -> list[int]:
    """Token ids of a completion as they follow its prompt: SentencePiece puts a space before a text that stands alone.
    Where a token would span the border, the completion's ids are those that it has on a new line."""
    whole = _plain_ids(tokenizer, prompt + completion)
    if whole[: len(prompt_ids)] == prompt_ids:
        return whole[len(prompt_ids) :]
    line = list(tokenizer("\n", add_special_tokens=False)["input_ids"])
    on_new_line = list(tokenizer("\n" + completion, add_special_tokens=False)["input_ids"])
    if on_new_line[: len(line)] == line:
        return on_new_line[len(line) :]
    return list(tokenizer(completion, add_special_tokens=False)["input_ids"])


def _template_kwargs(row: Row, kwargs: dict[str, Any] | None) -> dict[str, Any]:
    """The run's arguments for the chat template, with the row's own and its tools."""
    own, tools = row.columns.get("chat_template_kwargs") or {}, row.columns.get("tools")
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except json.JSONDecodeError as error:
            raise UserError(f"{row.source}: `tools` is text that is not JSON ({error.msg}): {tools[:80]!r}") from None
    if not isinstance(own, dict):
        raise UserError(f"{row.source}: `chat_template_kwargs` is {str(own)[:60]!r}; it must be an object")
    if tools and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise UserError(f"{row.source}: `tools` is {str(tools)[:60]!r}; it must be a list of JSON schemas")
    return {**(kwargs or {}), **own, **({"tools": tools} if tools else {})}


def _render(tokenizer: Any, messages: list[Message], row: Row, options: dict[str, Any]) -> list[int]:
    from jinja2 import TemplateError

    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            "the prompts are chat messages, but the tokenizer has no chat template: use an instruct model's, name one "
            "(template: qwen, llama3, chatml, ...), set tokenizer.chat_template, or give plain text prompts"
        )
    try:
        rendered = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **options)
    except (TemplateError, TypeError, ValueError) as error:
        roles = ", ".join(str(message.get("role")) for message in messages)
        where = f"{row.source}: " if row.source else ""
        raise UserError(f"{where}the chat template refuses a conversation of roles {roles}: {error}") from None
    return list(rendered["input_ids"])


def as_completion(prompt: Text, text: str) -> Text:
    """Sampled text in the form that reward functions get: plain for a plain prompt, else one assistant message."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def prompt_text(prompt: Text) -> str:
    """The prompt for display: its text, or the last message's."""
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
