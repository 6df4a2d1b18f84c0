"""The table of built-in rewards. To add one, add its record here; its function may stand here or in another module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from cohort.rewards.functions import choice, code, facts, gym, judge, matched, tags, text, working
from cohort.rewards.functions.matched import Explain
from cohort.rewards.models import classifier

Judged = Literal["answer", "program"]
Form = Literal["bonus", "penalty"]


@dataclass(frozen=True)
class BuiltIn:
    """BuiltIn("accuracy", text.accuracy, text.make_accuracy, explain=matched.answer, judges="answer")"""

    name: str
    """The name in `reward_funcs`."""
    function: Callable[..., Any] | None
    """The reward with its default options; None where some option has no default."""
    make: Callable[..., Callable[..., Any]] | None = None
    """Options, as keyword arguments -> the reward with them; None where it has no options."""
    explain: Explain | None = None
    """What `cohort reward try` shows as matched; None: nothing."""
    judges: Judged | None = None
    """What the reward must score higher when it is right than when it is wrong: a run does not start when the rewards
    fail at this on made-up completions. None: no such requirement."""
    form: Form | None = None
    """For a reward that looks at the form alone, and says nothing of whether the answer is right: whether it adds to
    the sum, or takes off and is 0 at best."""


_RECORDS = (
    BuiltIn("accuracy", text.accuracy, text.make_accuracy, matched.answer, "answer"),
    BuiltIn("format", tags.format_reward, tags.make_format, matched.tags, form="bonus"),
    BuiltIn("correctness", text.correctness, text.make_correctness, matched.tagged_answer, "answer"),
    BuiltIn("tag_presence", tags.tag_presence, tags.make_tag_presence, matched.tags, form="bonus"),
    BuiltIn("choice_accuracy", choice.choice_accuracy, choice.make_choice_accuracy, matched.boxed_answer, "answer"),
    BuiltIn("strict_format", tags.strict_format, tags.make_strict_format, matched.tags, form="bonus"),
    BuiltIn("soft_format", tags.soft_format, tags.make_soft_format, matched.tagged_answer, form="bonus"),
    BuiltIn("xml_count", tags.xml_count, tags.make_xml_count, matched.tags, form="bonus"),
    BuiltIn("reasoning_length", text.reasoning_length, text.make_reasoning_length, matched.reasoning, form="bonus"),
    BuiltIn("reasoning_keywords", text.reasoning_keywords, text.keyword_reward, matched.reasoning, form="bonus"),
    BuiltIn("choice", choice.choice, choice.make_choice, matched.tagged_answer, "answer"),
    BuiltIn("facts", facts.facts, facts.make_facts, matched.answer, "answer"),
    BuiltIn("too_short", text.too_short, text.too_short_penalty, matched.word_count, form="penalty"),
    BuiltIn("repetition", text.repetition, text.repetition_penalty, matched.word_count, form="penalty"),
    BuiltIn("overlong", text.overlong, text.overlong_penalty, form="penalty"),
    # Not required to tell right from wrong: the verifiers of some tasks refuse the entry's own answer.
    BuiltIn("reasoning_gym", gym.reasoning_gym, explain=matched.gym_answer),
    BuiltIn("unit_tests", code.unit_tests, code.unit_tests_reward, judges="program"),
    BuiltIn("chain_steps", working.chain_steps),
    BuiltIn("column_steps", working.column_steps),
    BuiltIn("judge", None, judge.make_judge),
    BuiltIn("model", None, classifier.make_classifier),
)

TABLE = {record.name: record for record in _RECORDS}

BUILTIN: dict[str, Callable[..., Any]] = {
    record.name: record.function for record in _RECORDS if record.function is not None
}
"""Name -> function, for the built-in rewards that need no options."""

_BY_FUNCTION = {function.__name__: TABLE[name] for name, function in BUILTIN.items()}


def record_of(function: Callable[..., Any]) -> BuiltIn | None:
    """The record of a built-in reward's function, whatever options it was made with; None for other functions."""
    module = getattr(function, "__module__", None) or ""
    return _BY_FUNCTION.get(getattr(function, "__name__", "")) if module.startswith("cohort.rewards") else None
