"""Prompts and demonstrations as token ids, through the tokenizer's chat template."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any, NamedTuple

from cohort.config import SFTConfig, TrainingConfig
from cohort.data.chat_templates import take_end, take_template, use_template
from cohort.data.messages import in_turns, without_thoughts
from cohort.data.rendering import render, rendered, template_kwargs
from cohort.texts import behind_thoughts, closing_of, opened_thoughts, prompt_ending
from cohort.types import Row, Text, UserError, joined

log = logging.getLogger("cohort")


def prepared(
    rows: list[Row], held_out: list[Row], tokenizer: Any, config: TrainingConfig
) -> tuple[list[Row], list[Row]]:
    """Training and held-out rows as the configuration's template and apply_chat_template want them; the tokenizer gets
    the template."""
    if isinstance(config, SFTConfig):
        take_template(tokenizer, config.chat_template_path, config.trust_remote_code)
        take_end(tokenizer, config.eos_token)
    use_template(tokenizer, config.template, config.replace_chat_template)
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
    options = {**prompt_ending(row.prompt), **template_kwargs(row, chat_template_kwargs)}
    return render(tokenizer, row.prompt, row, options)


class Demonstration(NamedTuple):
    """Demonstration(prompt=[5, 6], completion=[7, 2, 5, 8, 2], trained=[True, True, False, True, True])"""

    prompt: list[int]
    completion: list[int]
    """It ends with an end-of-sequence token, unless it was cut."""
    trained: list[bool] | None = None
    """For each token of the completion whether it is the assistant's; None: all are."""

    def whole(self) -> Demonstration:
        """The same tokens, trained on from the second on: nothing predicts the first."""
        ids = [*self.prompt, *self.completion]
        return Demonstration(ids[:1], ids[1:])


TOKENS = ("input_ids", "labels", "completion_mask", "assistant_masks")
"""Columns of rows that come as token ids."""


def tokenised(row: Row) -> Demonstration:
    """A row that comes as token ids: `labels` of -100, and zeros in `completion_mask` and `assistant_masks`, mark
    tokens that are not trained on. Raises UserError for columns of other lengths."""
    columns = {name: list(row.columns[name]) for name in TOKENS if row.columns.get(name) is not None}
    ids = columns.pop("input_ids")
    for name, values in columns.items():
        if len(values) != len(ids):
            raise UserError(f"{row.source}: `{name}` has {len(values)} values, and `input_ids` {len(ids)}")
    labels = columns.pop("labels", None)
    if labels is not None:
        trained = [label != -100 for label in labels]
    else:
        trained = [all(marks) for marks in zip(*columns.values(), strict=True)] if columns else [True] * len(ids)
    return Demonstration(ids[:1], ids[1:], None if all(trained[1:]) else trained[1:])


def encode_demonstrations(
    tokenizer: Any, row: Row, chat_template_kwargs: dict[str, Any] | None = None, last_only: bool = False
) -> list[Demonstration]:
    """A row as what is trained on. Of a conversation every assistant turn is trained on, or with `last_only` the last:
    in one demonstration, or, where the template renders a turn differently once others follow (it leaves out its
    thoughts), in one for each turn. Raises UserError naming the row, as encode_demonstration does."""
    if "input_ids" in row.columns:
        return [tokenised(row)]
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
    parts = [(messages[:i], [messages[i]]) for i in answers]
    if len(messages) < len(row.prompt) + len(row.completion) and first == len(row.prompt):
        parts.insert(0, (row.prompt, row.completion[:1]))  # it continues the prompt's last turn
    turns = [
        encode_demonstration(tokenizer, replace(row, prompt=before, completion=answer), chat_template_kwargs)
        for before, answer in parts
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
        options = template_kwargs(row, chat_template_kwargs)
        if options.get("enable_thinking") is False and (bare := without_thoughts(row)) != row:
            log_once(row.source, "enable_thinking: false leaves out thoughts, here and in rows like it", logging.INFO)
            row = bare
        completion = _behind(tokenizer, row, prompt, options)
    return Demonstration(prompt, [*completion, tokenizer.eos_token_id])


def _behind(tokenizer: Any, row: Row, prompt: list[int], options: dict[str, Any]) -> list[int]:
    """Token ids of an answer as the template renders it behind its prompt, without the end token.

    Where a token would span the border, as of two line breaks, the answer's text has tokens of its own: a policy that
    samples gets the prompt's. Raises UserError if the rendered prompt is not the beginning of the conversation.
    """
    assert isinstance(row.prompt, list) and isinstance(row.completion, list)
    messages = joined(row.prompt, row.completion)
    whole = render(tokenizer, messages, row, options)
    if whole[: len(prompt)] == prompt:
        completion = whole[len(prompt) :]
    else:
        completion = _ids(tokenizer, _text_behind(tokenizer, row, options))
    if tokenizer.eos_token_id in completion:  # a template can add text after it, such as a line break
        completion = completion[: -1 - completion[::-1].index(tokenizer.eos_token_id)]
    return _as_written(tokenizer, row, prompt, completion, options) if len(row.completion) == 1 else completion


def _text_behind(tokenizer: Any, row: Row, options: dict[str, Any]) -> str:
    """What the template renders behind the prompt."""
    assert isinstance(row.prompt, list) and isinstance(row.completion, list)
    before = rendered(tokenizer, row.prompt, row, {**prompt_ending(row.prompt), **options}, tokenize=False)
    whole = rendered(tokenizer, joined(row.prompt, row.completion), row, options, tokenize=False)
    if not whole.startswith(before):
        raise UserError(
            f"{row.source}: the chat template renders this prompt differently once its answer follows, so the "
            "answer's tokens cannot be told apart; use another chat template"
        )
    return str(whole[len(before) :])


def _ids(tokenizer: Any, text: str, **options: Any) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, **options)["input_ids"])


def _as_written(
    tokenizer: Any, row: Row, prompt: list[int], completion: list[int], options: dict[str, Any]
) -> list[int]:
    """The tokens of an assistant turn as the template renders it, or, where that is not what the row says, the tokens
    of the row's text: a template may leave thoughts out, and a text may quote the end token."""
    assert row.completion is not None and not isinstance(row.completion, str)
    content = row.completion[0].get("content")
    if not isinstance(content, str) or not content.strip():
        if content and content not in tokenizer.decode(completion):
            log_once(row.source, TRIMMED, logging.INFO)
        return completion
    opened = opened_thoughts(tokenizer.decode(prompt[-LONGEST_MARK:]))
    if opened is not None and content.lstrip().startswith(opened):
        content = content.lstrip()[len(opened) :].lstrip("\n")  # the prompt has opened the thoughts
    elif opened is not None and closing_of(opened) not in content:
        log_once(
            row.source,
            f"the chat template opens a thought ({opened}) before this answer, which has none and is learnt as the "
            "thought, here and in rows like it: give the answers thoughts, or use another chat template",
        )
    own = _ids(tokenizer, content, split_special_tokens=True)
    if tokenizer.eos_token_id not in completion and _bare(tokenizer, own) in _bare(tokenizer, completion):
        if tokenizer.decode(own) not in tokenizer.decode(completion):
            log_once(row.source, TRIMMED, logging.INFO)
        return completion
    text, calls = _text_behind(tokenizer, row, options), bool(row.completion[0].get("tool_calls"))
    for said in (content, content.strip()):
        if said in text:  # it quotes the end token, and what the template puts around the answer stays
            if said != content:
                log_once(row.source, TRIMMED, logging.INFO)
            before, _, after = text.partition(said)
            return _ids(tokenizer, before + said + _calls(after, tokenizer) * calls, split_special_tokens=True)
    log_once(row.source, LEFT_OUT)
    if not calls:
        return own
    tail = behind_thoughts(content).strip()
    after = text[text.rfind(tail) + len(tail) :] if tail and tail in text else text
    return [*own, *_ids(tokenizer, _calls(after, tokenizer))]


def _calls(rest: str, tokenizer: Any) -> str:
    """The tool calls in what a template renders behind an answer's text: everything before the end token."""
    end = rest.rfind(tokenizer.eos_token)
    return rest if end < 0 else rest[:end]


LONGEST_MARK = 32
"""Tokens that hold any opening mark and the white space behind it."""


def _bare(tokenizer: Any, ids: list[int]) -> str:
    """The tokens' text without white space, which templates trim."""
    return "".join(tokenizer.decode(ids).split())


_TOLD: set[str] = set()


TRIMMED = (
    "the chat template changes white space of this answer, which is trained on as rendered, here and in rows like it"
)


LEFT_OUT = (
    "the chat template leaves out a part of this answer (its thoughts, perhaps): the answer is trained on as the row "
    "has it, here and in rows like it"
)


def log_once(place: str, what: str, level: int = logging.WARNING) -> None:
    """Log what is the case of a row, for the first row of which it is."""
    if what not in _TOLD:
        _TOLD.add(what)
        log.log(level, "%s: %s", place, what)


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


def as_completion(prompt: Text, text: str) -> Text:
    """Sampled text in the form that reward functions get: plain for a plain prompt, else one assistant message."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def prompt_text(prompt: Text) -> str:
    """The prompt for display: its text, or the last message's."""
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
