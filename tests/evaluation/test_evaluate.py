"""pass@k and maj@k against their definition: the mean over all draws of k samples."""

from __future__ import annotations

import itertools
import json
import logging
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from cohort.data.chains import build_tokenizer
from cohort.evaluation.evaluate import Evaluation, maj_at_k, pass_at_k
from cohort.evaluation.models import evaluate_model, summary
from cohort.report.tables import evaluation_table
from cohort.rewards.component import Component
from cohort.rewards.compose import Rewards
from cohort.rollouts.encoding import Prompt
from cohort.types import Completion, Row
from helpers import small_model


def majority_by_enumeration(answers: list[str | None], right: str, k: int) -> float:
    """The share of draws of k whose most frequent answer is right; equally frequent ones share the draw."""
    won = 0.0
    draws = list(itertools.combinations(answers, k))
    for draw in draws:
        counts = Counter(answer for answer in draw if answer is not None)
        leaders = [answer for answer in counts if counts[answer] == max(counts.values())]
        won += leaders.count(right) / max(len(leaders), 1)
    return won / len(draws)


def test_majority_is_a_mean_over_all_draws() -> None:
    rng = random.Random(0)
    for _ in range(100):
        answers = [rng.choice(["a", "b", "c", "d", None]) for _ in range(rng.randint(1, 8))]
        correct = [answer == "a" for answer in answers]
        for k in range(1, len(answers) + 1):
            expected = majority_by_enumeration(answers, "a", k)
            assert maj_at_k([answers], [correct], k, str) == pytest.approx(expected, abs=1e-12)
        assert maj_at_k([answers], [correct], 1, str) == pytest.approx(pass_at_k([correct], 1))


def test_worked_majorities() -> None:
    two_of_three, one_of_two = ["7", "7", "8"], ["7", "8"]
    assert maj_at_k([two_of_three], [[True, True, False]], 3, str) == 1.0
    assert maj_at_k([one_of_two], [[True, False]], 2, str) == 0.5, "a tie is shared, whichever sample came first"
    assert maj_at_k([["7.0", "7", "8"]], [[True, True, False]], 3, lambda text: str(float(text))) == 1.0
    assert maj_at_k([[None, None, "7"]], [[False, False, True]], 3, str) == 1.0, "what cannot be read does not vote"
    with pytest.raises(ValueError, match="maj@3 needs at least 3 samples"):
        maj_at_k([one_of_two], [[True, False]], 3, str)


def evaluation_of(reward: str, texts: list[str], **columns: str) -> tuple[Evaluation, Component]:
    rewards, row = Rewards([reward]), Row("?", columns=columns)
    prompt, n = Prompt(row, torch.tensor([1])), len(texts)
    scores = rewards(["?"] * n, texts, [[1]] * n, {name: [value] * n for name, value in columns.items()})
    samples = [Completion(torch.tensor([1]), torch.zeros(1), text) for text in texts]
    return Evaluation([prompt], [samples], scores.components, scores.totals, 0.1), rewards.parts[0]


def test_a_summary_votes_by_the_rewards_equality() -> None:
    pairs = ["\\boxed{(1,2)}", "\\boxed{(1, 2)}", "\\boxed{\\left(1,2\\right)}", "\\boxed{(2,1)}", "\\boxed{(2,1)}"]
    result = summary(*evaluation_of("accuracy", pairs, answer="(1,2)"), [1, 5])
    assert result["maj@k"] == {1: pytest.approx(0.6), 5: 1.0} and result["pass@k"][5] == 1.0
    letters = ["so <answer>B</answer>", "\\boxed{b}", "It is C", "\\boxed{C}", "The answer is B."]
    assert summary(*evaluation_of("choice", letters, answer="B"), [5])["maj@k"] == {5: 1.0}


def test_no_majority_without_an_answer(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "cohort"):
        result = summary(*evaluation_of("format", ["<think>a</think><answer>1</answer>", "2"]), [1, 2])
    assert result["maj@k"] == {} and result["pass@k"] == {1: 0.5, 2: 1.0}
    assert "no maj@k: format reads no answer" in caplog.text
    lines = [str(cell) for cell in evaluation_table("t", {**result, "interval": (0.1, 0.9)}).columns[0].cells]
    assert "pass@2" in lines and not any("maj" in line for line in lines)


def test_equal_answers_of_different_verdicts_count_by_their_share() -> None:
    assert maj_at_k([["a", "a"]], [[True, False]], 2) == maj_at_k([["a", "a"]], [[False, True]], 2) == 0.5


def test_several_samples_of_a_problem_have_pass_at_n() -> None:
    token = torch.tensor([1])
    samples = [Completion(token, torch.zeros(1)) for _ in range(4)]
    scores: list[float | None] = [0.0, 1.0, 0.0, 0.0]
    both = Evaluation([], [samples[:2], samples[2:]], {"accuracy": scores}, [0.0, 1.0, 0.0, 0.0], 0.1)
    assert both.metrics()["eval/accuracy"] == 0.25 and both.metrics()["eval/accuracy/pass@2"] == 0.5
    single = Evaluation([], [samples[:1], samples[1:2]], {"accuracy": scores[:2]}, [0.0, 1.0], 0.1)
    assert "eval/accuracy/pass@1" not in single.metrics()


def test_problems_too_long_for_the_model_count_as_wrong(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    small_model(max_position_embeddings=24).save_pretrained(tmp_path / "m")
    build_tokenizer().save_pretrained(tmp_path / "m")
    rows = [{"prompt": "1+1=", "answer": "2"}, {"prompt": "1+" * 20 + "1=", "answer": "21"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"rewards": ["too_short"], "samples": 2, "ks": (1, 2), "max_completion_length": 4, "split": "train"}
    found = evaluate_model(str(tmp_path / "m"), str(tmp_path / "rows.jsonl"), **settings)
    assert (found["problems"], found["unanswered"], found["accuracy"], len(found["completions"])) == (2, 1, 0.0, 1)
    assert "1 of 2 problems are too long for the model and count as wrong" in caplog.text
    always = {**settings, "rewards": [f"{__file__}:always"]}
    found = evaluate_model(str(tmp_path / "m"), str(tmp_path / "rows.jsonl"), **always)
    assert (found["accuracy"], found["pass@k"]) == (0.5, {1: 0.5, 2: 0.5})


def always(completions: list[Any], **_: Any) -> list[float]:
    return [1.0] * len(completions)
