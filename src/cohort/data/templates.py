"""Prompts and demonstrations as token ids, through the tokenizer's chat template."""

from __future__ import annotations

from typing import Any

from cohort.types import Row, Text, UserError


def encode_prompt(tokenizer: Any, prompt: Text, chat_template_kwargs: dict[str, Any] | None = None) -> list[int]:
    """Token ids of a prompt. Plain text gets the tokenizer's special tokens, without a trailing end token; messages go
    through the chat template with its generation prompt.

    Raises UserError for messages if the tokenizer has no chat template, or if the template refuses them.
    """
    if not isinstance(prompt, str):
        return _render(tokenizer, prompt, True, chat_template_kwargs or {})
    ids = list(tokenizer(prompt)["input_ids"])
    return ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids


def encode_demonstration(
    tokenizer: Any, row: Row, chat_template_kwargs: dict[str, Any] | None = None
) -> tuple[list[int], list[int]]:
    """(prompt ids, completion ids); the completion ends with one end-of-sequence token.

    Raises UserError naming the row if the template renders the prompt differently once the answer follows it.
    """
    kwargs = chat_template_kwargs or {}
    prompt = encode_prompt(tokenizer, row.prompt, kwargs)
    if isinstance(row.completion, str):
        completion = list(tokenizer(row.completion, add_special_tokens=False)["input_ids"])
    else:
        assert isinstance(row.prompt, list) and row.completion is not None, f"{row.source}: no completion"
        whole = _render(tokenizer, [*row.prompt, *row.completion], False, kwargs)
        if whole[: len(prompt)] != prompt:
            raise UserError(
                f"{row.source}: the chat template renders this prompt differently once its answer follows, so the "
                "answer's tokens cannot be told apart; use another chat template"
            )
        completion = whole[len(prompt) :]
    if tokenizer.eos_token_id in completion:  # a template can add text after it, such as a line break
        completion = completion[: completion.index(tokenizer.eos_token_id)]
    return prompt, [*completion, tokenizer.eos_token_id]


def _render(
    tokenizer: Any, messages: list[dict[str, Any]], generation_prompt: bool, kwargs: dict[str, Any]
) -> list[int]:
    from jinja2 import TemplateError

    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            "the prompts are chat messages, but the tokenizer has no chat template: use an instruct model's, name one "
            "(template: qwen, llama3, chatml, ...), set tokenizer.chat_template, or give plain text prompts"
        )
    try:
        rendered = tokenizer.apply_chat_template(
            messages, add_generation_prompt=generation_prompt, tokenize=True, return_dict=True, **kwargs
        )
    except TemplateError as error:
        roles = ", ".join(str(message.get("role")) for message in messages)
        raise UserError(f"the chat template refuses a conversation of roles {roles}: {error}") from None
    return list(rendered["input_ids"])


def as_completion(prompt: Text, text: str) -> Text:
    """Sampled text in the form that reward functions get: plain for a plain prompt, else one assistant message."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def prompt_text(prompt: Text) -> str:
    """The prompt for display: its text, or the last message's."""
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
