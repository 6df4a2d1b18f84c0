"""Audit, preflight and explanations: what made-up completions get, in worked numbers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cohort.rewards import Matched, Rewards
from cohort.rewards.check.audit import audit
from cohort.rewards.check.explain import try_rewards
from cohort.rewards.check.preflight import preflight
from cohort.rewards.check.probes import REASONING, STYLES, attacks, cases, score
from cohort.types import Row, UserError

NUMBERS = [Row(f"What is {a}+{b}?", columns={"answer": str(a + b)}, source=f"row {a}") for a, b in ((3, 4), (9, 8))]
LETTERS = [Row("Which? A) x B) y C) z D) w", columns={"answer": letter}) for letter in "ABCD"]
SHAPED = ["tag_presence", "strict_format", "soft_format", "xml_count", "reasoning_length", "reasoning_keywords"]


def test_accuracy_and_format_have_no_hole() -> None:
    found = audit(Rewards(["accuracy", "format"], clip=(-5, 5)), NUMBERS)
    assert found.style == "think and answer tags" and (found.right, found.wrong) == (2, 1)
    assert found.holes == [] and found.warnings == [] and len(found.findings) == 15
    assert {f.attack: f.total for f in found.findings if f.total < 1} == dict.fromkeys(
        ["empty", "white space", "truncated", "look-alike tags"], 0
    )


def test_shaping_that_pays_more_than_correctness_is_found() -> None:
    """The tutorial's sum: 2.0 for the letter against 0.8 + 1 + 0.5 + 0.375 + 0.75 + 0.5 for form, and a clip at 5."""
    found = audit(Rewards(["choice_accuracy", *SHAPED], clip=(-5, 5)), LETTERS)
    assert found.style == "reasoning tags, boxed"
    assert (found.right, found.wrong) == (pytest.approx(4.925), pytest.approx(2.925))
    holes = {finding.attack: finding for finding in found.holes}
    assert set(holes) == {"form only", "very long", "keywords stuffed"}
    assert holes["form only"].paid == pytest.approx({"reasoning_length": 0.5, "reasoning_keywords": 0.5})
    assert holes["form only"].total == pytest.approx(3.925) and holes["form only"].more == 4
    assert found.findings[0] is holes["form only"]
    shaping, clip = found.warnings
    assert "shaping adds up to 3.92" in shaping and "correctness to 2:" in shaping and "strict_format 1" in shaping
    assert "add up to 5.92, and the total is clipped at 5" in clip


def test_gating_by_correctness_closes_the_holes() -> None:
    gated = [{"name": name, "gate": "choice_accuracy"} for name in SHAPED]
    found = audit(Rewards(["choice_accuracy", *gated]), LETTERS)
    assert found.holes == [] and found.warnings == []


def contains(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    """A hole as people write it."""
    return [float(a in c) for c, a in zip(completions, answer, strict=True)]


def silence(completions: list[str]) -> list[float]:
    return [2.0 * (not completion) for completion in completions]


def test_a_reward_that_takes_an_echoed_sum_for_its_value_is_found() -> None:
    found = audit(Rewards(["accuracy"]), [Row(f"{a}+{b}", columns={"answer": str(a + b)}) for a, b in ((3, 4), (9, 8))])
    (hole,) = found.holes
    assert (hole.attack, hole.more, hole.paid) == ("prompt echoed", 2, {"accuracy": 1.0})


def test_a_reward_that_searches_the_text_pays_for_every_answer_listed() -> None:
    found = audit(Rewards([contains]), NUMBERS)
    assert {"every answer listed", "every answer tagged"} <= {hole.attack for hole in found.holes}
    assert {hole.paid["contains"] for hole in found.holes if hole.attack.startswith("every")} == {1.0}


def test_an_audit_without_references_says_so() -> None:
    found = audit(Rewards(["format"]), [Row("a"), Row("b")])
    assert found.right is None and found.holes == [] and "no reference answers" in found.warnings[0]


def test_wrong_answers_are_of_the_right_kind_and_wrong() -> None:
    references = ["18", "B", "yes", "1/2", "Paris", "Rome", "-3.5", "#### 1,000"]
    found = cases([Row("q", columns={"answer": reference}) for reference in references], programs=False)
    assert [case.wrong for case in found] == ["19", "C", "no", "1.5", "18", "18", "-2.5", "1001"]
    rewards = Rewards(["accuracy"])
    for case in found:
        probes = [(case.row, STYLES["boxed"](REASONING, answer)) for answer in (case.right, case.wrong)]
        assert score(rewards, probes).totals == [1, 0]
        assert all(isinstance(text, str) for text in attacks(case, STYLES["boxed"]).values())


def test_programs_are_probed_with_programs() -> None:
    rows = [Row("Write f.", columns={"code": "def f():\n    return 1", "test_list": ["assert f() == 1"]})]
    (case,) = cases(rows, programs=True)
    assert case.right == "def f():\n    return 1" and case.wrong == "pass"
    assert "sys.exit(0)" in attacks(case, STYLES["code block"])["success printed"]
    assert "every answer listed" not in attacks(case, STYLES["code block"])


def test_preflight_shows_what_each_function_gave() -> None:
    found = preflight(Rewards(["accuracy", "format"]), NUMBERS)
    assert found.problem is None and found.warnings == []
    assert found.totals == {"right": [2, 2], "wrong": [1, 1], "empty": [0, 0], "truncated": [0, 0]}
    first, second = found.lines()
    assert first.startswith("accuracy: right 1, wrong 0, empty 0, truncated 0; from 0 to 1; ")
    assert second.startswith("format: right 1, wrong 1, empty 0, truncated 0; from 0 to 1; ")
    assert first.endswith(" ms a completion") and found.milliseconds["accuracy"] > 0


def test_preflight_leaves_a_rule_that_is_only_watched_out_of_account() -> None:
    """What is learned from need not agree with it."""
    assert preflight(Rewards([silence, {"name": "accuracy", "weight": 0}]), NUMBERS).problem is None
    assert preflight(Rewards([silence], watched=["accuracy"]), NUMBERS).problem is None


@pytest.mark.parametrize(
    ("funcs", "weights", "message"),
    [
        (["accuracy"], [0.0], "give a wrong answer as much as the right answer on each of 2 rows"),
        (["accuracy"], [-1.0], "a wrong answer as much"),
        (["accuracy", "correctness"], [0.0, 0.0], "though accuracy and correctness should tell them apart"),
        (["accuracy", silence], [1.0, 1.0], "give nothing as much as the right answer"),
    ],
)
def test_preflight_finds_a_set_that_cannot_tell(funcs: list[Any], weights: list[float], message: str) -> None:
    found = preflight(Rewards(funcs, weights), NUMBERS)
    assert found.problem is not None and message in found.problem
    assert "row 3, its reference '7'" in found.problem and "reward_preflight: false" in found.problem


def test_preflight_names_a_clip_that_hides_the_difference() -> None:
    def generous(completions: list[str]) -> list[float]:
        return [100.0] * len(completions)

    assert preflight(Rewards(["accuracy", generous]), NUMBERS).problem is None
    assert preflight(Rewards(["accuracy", generous], clip=(-5, 5)), NUMBERS).problem is not None


def test_preflight_lets_rewards_be_that_are_not_about_answers() -> None:
    def even(completions: list[str]) -> list[float]:
        return [0.5] * len(completions)

    found = preflight(Rewards([even]), NUMBERS)
    assert found.problem is None and found.warnings == ["the rewards gave the same total to every completion tried"]
    assert preflight(Rewards(["format", contains]), NUMBERS).problem is None
    bare = preflight(Rewards(["format"]), [Row("a")])
    assert bare.problem is None and list(bare.totals) == ["empty", "truncated"]


def test_preflight_counts_references_that_do_not_score() -> None:
    rows = [*NUMBERS, Row("?", columns={"answer": "?."}), Row("!", columns={"answer": "8"})]
    found = preflight(Rewards([{"name": "correctness", "clip": [0, 1]}, {"name": "accuracy", "weight": 0.5}]), rows)
    assert found.problem is None


def test_each_reward_says_what_it_matched() -> None:
    def polite(completions: list[str], **_: Any) -> list[float | None]:
        return [None if "?" in str(c) else 1.0 for c in completions]

    polite.explain = lambda text, row: Matched(text[-6:], row["level"])  # type: ignore[attr-defined]
    rows = [
        Row("q", "<think>\n2+2</think><answer> 4 </answer>", {"answer": "#### 4", "level": "easy"}, "row 1"),
        Row([{"role": "user", "content": "q"}], [{"role": "assistant", "content": "is it 7?"}], {"answer": ["5", "6"]}),
    ]
    rows[1].columns["level"] = "hard"
    one, two = try_rewards(Rewards(["accuracy", "format", {"name": polite, "weight": 2, "gate": "accuracy"}]), rows)
    assert one.scores == {"accuracy": 1, "format": 1, "polite": 1} and one.total == 4
    assert one.matched["accuracy"] == Matched("4", "4")
    assert one.matched["format"].found == "<think> </think> <answer> </answer>"
    assert one.matched["polite"] == Matched("nswer>", "easy")
    assert two.matched["accuracy"] == Matched("7", "5 or 6") and two.scores["polite"] is None and two.total == 0
    assert two.records(2)[0] == {
        "row": 2, "source": "", "reward": "accuracy", "score": 0, "counted": 0, "found": "7", "reference": "5 or 6",
        "total": 0,
    }  # fmt: skip


def test_the_columns_of_a_runs_completions_are_found() -> None:
    row = Row("q", "4", {"columns": {"answer": "4"}, "accuracy": 0.0})
    assert try_rewards(Rewards(["accuracy"]), [row])[0].total == 1
    with pytest.raises(UserError, match="row 9: no completion to score"):
        try_rewards(Rewards(["accuracy"]), [Row("q", None, {"answer": "4"}, "row 9")])


def test_a_gym_answer_is_explained() -> None:
    entry = json.dumps({"answer": "3"})
    row = Row("q", "so \\boxed{4}", {"reasoning_gym_task": None, "reasoning_gym_entry": entry, "answer": "3"})
    trial = try_rewards(Rewards(["accuracy", "reasoning_gym"]), [row])[0]
    assert trial.matched["reasoning_gym"] == Matched("4", "3") and trial.scores["reasoning_gym"] is None
