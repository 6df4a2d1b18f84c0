"""Chat messages through the tokenizer's chat template, with the arguments of a run and of a row."""

from __future__ import annotations

import json
from typing import Any

from cohort.types import Message, Row, UserError


def template_kwargs(row: Row, kwargs: dict[str, Any] | None) -> dict[str, Any]:
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


def render(tokenizer: Any, messages: list[Message], row: Row, options: dict[str, Any]) -> list[int]:
    """Token ids of messages in the chat template."""
    return list(rendered(tokenizer, messages, row, {"return_dict": True, **options}, tokenize=True)["input_ids"])


def rendered(tokenizer: Any, messages: list[Message], row: Row, options: dict[str, Any], tokenize: bool) -> Any:
    """What the template makes of messages. Raises UserError where there is none, or it refuses them."""
    from jinja2 import TemplateError

    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            "the prompts are chat messages, but the tokenizer has no chat template: use an instruct model's, name one "
            "(template: qwen, llama3, chatml, ...), set tokenizer.chat_template, or give plain text prompts"
        )
    try:
        return tokenizer.apply_chat_template(messages, tokenize=tokenize, **options)
    except (TemplateError, TypeError, ValueError) as error:
        roles = ", ".join(str(message.get("role")) for message in messages)
        where = f"{row.source}: " if row.source else ""
        raise UserError(f"{where}the chat template refuses a conversation of roles {roles}: {error}") from None
