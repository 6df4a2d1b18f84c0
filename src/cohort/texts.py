"""What several layers read alike in texts: marks around thoughts, the end of a prompt, integers that name a choice,
names of secrets."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from cohort.types import UserError

MARKS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
)
"""The marks that models put before and after their thoughts."""


OPENED = "opened_thoughts"
"""The column with the opening mark that a row's prompt ends with, once the chat template has rendered it."""


def opened_thoughts(prompt: str) -> str | None:
    """The opening mark that a prompt ends with, as `<|im_start|>assistant\\n<think>\\n` does; else None."""
    end = prompt[-100:].rstrip()
    return next((opening for opening, _ in MARKS if end.endswith(opening)), None)


def closing_of(opening: str) -> str:
    """The mark that closes what `opening`, one of MARKS, opens."""
    return dict(MARKS)[opening]


def behind_thoughts(text: str) -> str:
    """What stands behind the last closing mark; the whole text where there is none."""
    return text[max((text.rfind(mark) + len(mark) for _, mark in MARKS if mark in text), default=0) :]


def prompt_ending(prompt: Sequence[Mapping[str, Any]]) -> dict[str, bool]:
    """How a chat template ends a prompt: by opening the assistant's turn, or by leaving a last one open."""
    opened = prompt[-1].get("role") == "assistant"
    return {"continue_final_message": True} if opened else {"add_generation_prompt": True}


def as_integer(value: Any) -> int | None:
    """The integer that a value is: 2 for 2, 2.0, "2" and "2.0"; None for other values, also for true and false."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,9}(\.0*)?\s*", value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not float(value).is_integer():
        return None
    return int(value)


def numbered_choice(answer: int, choices: Mapping[str, str], by_index: bool = False) -> str | None:
    """The label that an integer means: of numeric labels the one that it is, of others that of the choice with this
    index from 0, or with this text. None where there is none.

    Raises UserError where it is the index of one choice and the text of another, unless `by_index`.
    """
    numeric = {number: label for label in choices if (number := as_integer(label.strip("(). :"))) is not None}
    if numeric:
        return numeric.get(answer)
    label = list(choices)[answer] if 0 <= answer < len(choices) else None
    named = [name for name, text in choices.items() if as_integer(text) == answer]
    if label is None or by_index or not named or label in named:
        return label if label is not None else named[0] if len(named) == 1 else None
    raise UserError(
        f"the answer {answer} is the index of {label} ({choices[label]!r}) and the text of {named[0]}: write the label "
        f"as the answer, or say that integers are indices from 0 by naming the labels: "
        f"{{name: choice, labels: {''.join(choices)}}}"
    )


_SECRET = re.compile(r"secret|passw|credential|authorization|api[_-]?key|token$", re.IGNORECASE)
_INSIDE = re.compile(
    r"((?:(?:secret|passw|credential|authorization|api[_-]?key(?!_env))[a-z_-]{0,40}|token)[\"']?\s{0,9}[:=]\s{0,9})[^\s,}]+",
    re.IGNORECASE,
)
"""A secret within an argument: model_init_kwargs={token: ...}"""


def is_secret(name: str) -> bool:
    """Whether a value of that name is a secret: of hub_token and api_key, not of max_tokens, nor of api_key_env, which
    names a variable."""
    return _SECRET.search(name) is not None and not name.endswith("_env")


def without_secrets(value: Any) -> Any:
    """The value with "..." for texts and numbers under names of secrets, in mappings at any depth."""
    if isinstance(value, list):
        return [without_secrets(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    return {
        key: "..." if is_secret(str(key)) and _is_plain(item) else without_secrets(item) for key, item in value.items()
    }


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def without_secrets_inside(argument: str) -> str:
    """A command's argument with "..." for secrets within its value."""
    return _INSIDE.sub(r"\1...", argument)
