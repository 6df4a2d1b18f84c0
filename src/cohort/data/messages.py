"""Chat messages of a data set: their check, and plain text as turns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cohort.texts import behind_thoughts
from cohort.types import Message, Row, Text, UserError


def checked_text(value: Any, where: str, name: str) -> Text:
    """The value of a column as text or messages, with content parts joined. Raises UserError unless it is a string or a
    list of {"role", "content"} messages of text."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise UserError(
            f"{where}: `{name}` is {type(value).__name__} {str(value)[:60]!r}; it must be text or a list of messages"
        )
    return [_message(message, f"{where}: message {i} of `{name}`") for i, message in enumerate(value, 1)]


ROLES = {
    "human": "user",
    "gpt": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
    "user": "user",
    "assistant": "assistant",
    "system": "system",
}
"""ShareGPT's speakers (`from`), and the roles."""


def _message(message: Any, where: str) -> Message:
    if isinstance(message, dict) and "from" in message and "value" in message and "role" not in message:
        speaker = message["from"]
        if not isinstance(speaker, str) or speaker not in ROLES:
            raise UserError(f"{where} is from {str(speaker)[:40]!r}; the speakers are {', '.join(ROLES)}")
        message = {"role": ROLES[speaker], "content": message["value"]}
    calls = isinstance(message, dict) and message.get("tool_calls") and message.get("content") is None
    if not isinstance(message, dict) or not isinstance(message.get("role"), str) or not ("content" in message or calls):
        raise UserError(f"{where} is {str(message)[:80]}; each needs `role` and `content`")
    content = message.get("content")
    if isinstance(content, str) or calls:
        return message
    if not isinstance(content, list):
        raise UserError(f"{where} has the content {str(content)[:60]!r}; it must be text")
    return {**message, "content": "".join(_part(part, where) for part in content)}


def _part(part: Any, where: str) -> str:
    """The text of one part of a message's content: {"type": "text", "text": "..."} or a string."""
    text = part.get("text") if isinstance(part, dict) and part.get("type", "text") == "text" else part
    if isinstance(text, str):
        return text
    kind = f"type {part['type']!r}" if isinstance(part, dict) and "type" in part else f"{str(part)[:60]!r}"
    raise UserError(f"{where} has a content part of {kind}; only text can be trained on")


def in_turns(row: Row, system_prompt: str = "") -> Row:
    """The row with a plain prompt as a user turn, after a system turn unless `system_prompt` is empty, and a plain
    completion as an assistant turn."""
    prompt, completion = row.prompt, row.completion
    if isinstance(prompt, str):
        prompt = turns(prompt, system_prompt)
    if isinstance(completion, str):
        completion = [{"role": "assistant", "content": completion}]
    return replace(row, prompt=prompt, completion=completion)


def turns(prompt: str, system_prompt: str) -> list[Message]:
    """A plain prompt as a conversation, without a system turn if `system_prompt` is empty."""
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    return [*system, {"role": "user", "content": prompt}]


def without_thoughts(row: Row) -> Row:
    """The row with answers that begin behind their thoughts: enable_thinking: false has closed them in the prompt."""
    assert row.completion is not None and not isinstance(row.completion, str)
    completion = [
        {**turn, "content": behind_thoughts(turn["content"]).lstrip("\n")}
        if turn.get("role") == "assistant" and isinstance(turn.get("content"), str)
        else turn
        for turn in row.completion
    ]
    return replace(row, completion=completion)
