"""Every text reward on the texts that policies write by accident or on purpose, and the strict variants, by value."""

from __future__ import annotations

from typing import Any

import pytest

from cohort.rewards import BUILTIN, reward

LONG = "word " * 20_000
TEXTS = {
    "empty": "",
    "newline": "\n",
    "tags only": "<think></think><reasoning></reasoning><answer></answer>",
    "well-formed": "<reasoning>\nbecause\n</reasoning>\n<answer>\n\\boxed{B}\n</answer>",
    "no newlines": "<reasoning>because</reasoning><answer>\\boxed{B}</answer>",
    "CRLF": "<reasoning>\r\nbecause\r\n</reasoning>\r\n<answer>\r\n\\boxed{B}\r\n</answer>\r\n",
    "several answers": "<reasoning>r</reasoning><answer>\\boxed{A}</answer><answer>\\boxed{B}</answer>",
    "every answer": "<reasoning>r</reasoning><answer>\\boxed{A} \\boxed{C} \\boxed{D} \\boxed{B}</answer>",
    "nested": "<reasoning>r<answer>\\boxed{A}</answer></reasoning><answer>x<answer>\\boxed{B}</answer></answer>",
    "unclosed": "<reasoning>\nbecause\n</reasoning>\n<answer>\n\\boxed{B}",
    "swapped": "<answer>\n\\boxed{B}\n</answer>\n<reasoning>\nbecause\n</reasoning>\n",
    "100 kB": f"<reasoning>\n{LONG}\n</reasoning>\n<answer>\n\\boxed{{B}}\n</answer>{LONG}",
    "100 kB answer": f"<think>x</think><answer>{LONG}</answer>",
    "full width": "<reasoning>因为</reasoning><answer>Ｂ</answer>",
}
# Columns: the names of TEXTS, in order.
EXACT: dict[str, list[float]] = {
    "accuracy": [0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1],
    "format": [0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0],
    "correctness": [0] * 14,
    "tag_presence": [0, 0, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.6, 0.8, 0.8, 0.4, 0.8],
    "choice_accuracy": [0, 0, 0, 2, 2, 2, 2, 2, 2, 0, 2, 2, 0, 0],
    "strict_format": [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    "soft_format": [0, 0, 0, 0.5, 0.5, 0.5, 0, 0.5, 0, 0, 0, 0.5, 0, 0],
    "xml_count": [0, 0, 0, 0.375, 0, 0.124, 0, 0, 0, 0.25, 0.342, 0, 0, 0],
    "reasoning_length": [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0.75, 0, 0],
    "reasoning_keywords": [0] * 14,
    "choice": [0, 0, 0, 1, 1, 1, 1, 0, 1, 1, 1, 1, 0, 1],
    "facts": [0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1],
    "too_short": [-0.3, -0.3, -0.3, -0.3, -0.3, -0.3, -0.3, -0.3, -0.3, -0.3, -0.3, 0, 0, -0.3],
    "repetition": [0] * 11 + [-0.5, -0.5, 0],
}
STRICT: dict[str, list[float]] = {
    "accuracy": [0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1],
    "format": [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0],
    "correctness": [0] * 14,
    "tag_presence": [0, 0, 0.8, 0.8, 0.8, 0.8, 0.4, 0.8, 0.4, 0.6, 0.4, 0.8, 0.4, 0.8],
    "choice_accuracy": [0, 0, 0, 2, 2, 2, 2, 0, 2, 0, 2, 2, 0, 0],
    "strict_format": [0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0],
    "soft_format": [0, 0, 0, 0.5, 0.5, 0.5, 0, 0, 0, 0, 0, 0, 0, 0.5],
    "xml_count": [0, 0, 0, 0.375, 0, 0.375, 0, 0, 0, 0.25, 0.093, 0, 0, 0],
    "reasoning_length": [0] * 14,
    "reasoning_keywords": [0] * 14,
    "choice": [0, 0, 0, 1, 1, 1, 1, 0, 1, 1, 1, 1, 0, 1],
    "facts": [0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1],
}


def scores(function: Any, conversational: bool) -> list[float]:
    texts: list[Any] = list(TEXTS.values())
    if conversational:
        texts = [[{"role": "assistant", "content": text}] for text in texts]
    return function(completions=texts, prompts=["?"] * len(texts), answer=["B"] * len(texts))


@pytest.mark.parametrize("conversational", [False, True])
@pytest.mark.parametrize("name", EXACT)
def test_exact_scores(name: str, conversational: bool) -> None:
    found = dict(zip(TEXTS, scores(BUILTIN[name], conversational), strict=True))
    assert found == dict(zip(TEXTS, EXACT[name], strict=True))


@pytest.mark.parametrize("name", STRICT)
def test_strict_scores(name: str) -> None:
    found = dict(zip(TEXTS, scores(reward(name, strict=True), False), strict=True))
    assert found == dict(zip(TEXTS, STRICT[name], strict=True))


def test_every_built_in_has_a_row() -> None:
    assert set(BUILTIN) - set(EXACT) <= {"overlong", "reasoning_gym", "unit_tests", "chain_steps", "column_steps"}


QUIRKS: list[tuple[str, str, str, float, float]] = [
    # reward, text, reference, its exact score, the strict one
    ("accuracy", "so it is 72", "72", 1, 0),
    ("accuracy", "so \\boxed{72}", "72", 1, 1),
    ("format", "<answer>b</answer><think>a</think>", "", 1, 0),
    ("format", "<think>a</think> so <answer>b</answer>", "", 1, 0),
    ("format", "<think>a</think>\n<answer>b</answer>\n", "", 1, 1),
    ("format", "<think> </think><answer>b</answer>", "", 1, 0),
    ("correctness", "<answer>not 72</answer>", "72", 1.5, 0),
    ("correctness", "<answer>72 km</answer>", "72 m", 1.5, 0),
    ("correctness", "<answer>72 eggs</answer>", "72", 1.5, 1.5),
    ("correctness", "<answer>１，０００</answer>", "1000", 1.5, 1.5),
    ("correctness", "<answer>Rome</answer>", "Rome", 2, 2),
    ("tag_presence", "</answer><answer></reasoning><reasoning>", "", 0.8, 0.2),
    ("choice_accuracy", "<answer>it is \\boxed{B}</answer>", "B", 2, 0),
    ("choice_accuracy", "<answer> \\boxed{B} </answer>", "B", 2, 2),
    ("strict_format", "<reasoning>\n</reasoning>\n</reasoning>\n<answer>\n\\boxed{A}\n</answer>", "", 1, 0),
    ("strict_format", "<reasoning>\n \n</reasoning>\n<answer>\n\\boxed{A}\n</answer>", "", 1, 0),
    ("soft_format", "<reasoning>r</reasoning><answer>A dog</answer>", "", 0.5, 0),
    ("soft_format", "<reasoning>r</reasoning><answer>(A).</answer>", "", 0.5, 0.5),
    ("soft_format", "<reasoning>r</reasoning><answer>选A</answer>", "", 0.5, 0),
    ("xml_count", "\n</answer>\n</reasoning>\n<reasoning>\n", "", 0.35, 0.101),
    ("xml_count", "\n</answer>\n\n\n", "", 0.123, 0.125),
    ("reasoning_length", f"<reasoning>{'word ' * 100}</reasoning>", "", 0.75, 0),
    ("reasoning_length", f"<reasoning>{' '.join(map(str, range(50)))}</reasoning>", "", 0.5, 0.5),
    ("reasoning_keywords", "<reasoning>row column sum unique digit</reasoning>", "", 0.5, 0),
    ("reasoning_keywords", f"<reasoning>row {'and so on ' * 4} column</reasoning>", "", 0.2, 0.1),
]


@pytest.mark.parametrize(("name", "text", "reference", "exact", "strict"), QUIRKS)
def test_what_strict_mends(name: str, text: str, reference: str, exact: float, strict: float) -> None:
    assert BUILTIN[name]([text], answer=[reference]) == [exact]
    assert reward(name, strict=True)([text], answer=[reference]) == [strict]
