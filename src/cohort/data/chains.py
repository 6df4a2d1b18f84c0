"""The demo's task: chains of one-digit sums and differences modulo 10, with demonstrations of a flawed teacher.

    prompt   7+5-8=
    answer   <think>7+5=2
             2-8=4</think><answer>4</answer>

Each step keeps the last digit. Training contains every single step; the held-out problems are new combinations.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

Problem = tuple[tuple[int, ...], str]
"""Digits, and the operators between them: ((7, 5, 8), "+-")."""

CHARACTERS = "0123456789+-=\n"
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
PAD, END = "<|pad|>", "<|im_end|>"
ROLES = ("<|user|>", "<|assistant|>")
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}{{ message['content'] }}{{ '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def step(a: int, operator: str, b: int) -> int:
    """The last digit of a sum or difference: step(7, "+", 5) is 2, step(2, "-", 8) is 4."""
    return (a + b if operator == "+" else a - b) % 10


@dataclass
class Teacher:
    """Gets a fixed `mistaught` share of the 200 possible steps wrong: in `rate` of their uses it gives a fixed wrong
    value, and continues with it."""

    seed: int
    mistaught: float = 0.4
    rate: float = 0.6
    wrong: dict[tuple[int, str, int], int] = field(init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        facts = [(a, operator, b) for a in range(10) for operator in "+-" for b in range(10)]
        chosen = self._random.sample(facts, round(self.mistaught * len(facts)))
        self.wrong = {fact: (step(*fact) + self._random.randint(1, 9)) % 10 for fact in chosen}

    def value(self, a: int, operator: str, b: int) -> int:
        if (a, operator, b) in self.wrong and self._random.random() < self.rate:
            return self.wrong[a, operator, b]
        return step(a, operator, b)


def question(problem: Problem) -> str:
    digits, operators = problem
    return str(digits[0]) + "".join(f"{o}{d}" for o, d in zip(operators, digits[1:], strict=True)) + "="


def worked(problem: Problem, teacher: Teacher | None = None) -> str:
    """The completion: a line for each operation, and the answer. Correct without a teacher, else the teacher's."""
    digits, operators = problem
    value, lines = digits[0], []
    for operator, digit in zip(operators, digits[1:], strict=True):
        result = step(value, operator, digit) if teacher is None else teacher.value(value, operator, digit)
        lines.append(f"{value}{operator}{digit}={result}")
        value = result
    return "<think>" + "\n".join(lines) + f"</think><answer>{value}</answer>"


def answer(problem: Problem) -> int:
    digits, operators = problem
    value = digits[0]
    for operator, digit in zip(operators, digits[1:], strict=True):
        value = step(value, operator, digit)
    return value


def make_chains(
    k: int, train: int, held_out: int, seed: int, teacher: Teacher | None = None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """(demonstrations, training problems, held-out problems) of `k` operations: `train` of each of the first two,
    `held_out` of the last, all problems different. Raises ValueError if there are too few.
    """
    rng = random.Random(seed)
    count = 2 * train + held_out
    if count > 10 * 20**k:
        raise ValueError(f"there are only {10 * 20**k} different chains of {k} operations")
    problems: dict[Problem, None] = {}
    while len(problems) < count:
        digits = tuple(rng.randrange(10) for _ in range(k + 1))
        problems[digits, "".join(rng.choice("+-") for _ in range(k))] = None
    ordered = list(problems)
    teacher = teacher or Teacher(seed)
    demonstrations = [
        {**_prompt(problem), "completion": [{"role": "assistant", "content": worked(problem, teacher)}]}
        for problem in ordered[:train]
    ]
    answered = [{**_prompt(problem), "answer": str(answer(problem))} for problem in ordered]
    return demonstrations, answered[train : 2 * train], answered[2 * train :]


def _prompt(problem: Problem) -> dict[str, Any]:
    return {"prompt": [{"role": "user", "content": question(problem)}]}


def build_tokenizer() -> Any:
    """A Qwen2Tokenizer with one token for each character, tag and role: byte-level, without merges."""
    from tokenizers import AddedToken
    from transformers import Qwen2Tokenizer

    special = [PAD, END, *ROLES]
    # Byte-level vocabularies write a line break as U+010A.
    tokens = [*special, *TAGS, *CHARACTERS.replace("\n", "\u010a")]
    tokenizer = Qwen2Tokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=[],
        unk_token=PAD,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=list(ROLES),
        chat_template=TEMPLATE,
    )
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    return tokenizer


def build_model(tokenizer: Any, seed: int, **overrides: Any) -> Any:
    """A Qwen2ForCausalLM of half a million parameters with random weights. The global random state does not change."""
    import torch
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    settings = {
        "hidden_size": 128,
        "intermediate_size": 544,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "initializer_range": 0.06,
        # Texts have 40 tokens: with a base of 10,000 most of a head's dimensions would hardly rotate.
        "rope_parameters": {"rope_type": "default", "rope_theta": 10.0},
    }
    ends = {
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), **{**settings, **overrides}, **ends))
    model.generation_config = GenerationConfig(**ends)
    return model
