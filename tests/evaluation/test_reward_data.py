"""`cohort reward label` and `cohort reward eval`: labels are the rule's on the policy's completions, and the measures
equal textbook values."""

from __future__ import annotations

import io
import itertools
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy import stats
from typer.testing import CliRunner, Result

from cohort.cli.app import app
from cohort.data.rows import load_rows
from cohort.evaluation.judging import ModelScores, ScoredText, score_rows
from cohort.evaluation.labelling import Labeller
from cohort.report import ranking
from cohort.report.judgement import chance, judgement, judgement_table
from cohort.report.judgement_plots import plot_judgement
from cohort.rewards.compose import Rewards
from cohort.rewards.steps import by_separator
from cohort.rollouts.encoding import Prompt
from cohort.rollouts.sampling import Generation, Sampling
from cohort.types import Completion, Row
from helpers import byte_tokenizer, classifier, saved, token_classifier

RULES = """
def even(completions, **columns):
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [float(sum(map(ord, text)) % 2 == 0) for text in texts]
"""


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["reward", *arguments])


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def even(text: str) -> bool:
    return sum(map(ord, text)) % 2 == 0


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rules.py").write_text(RULES)
    rows = [{"prompt": "a=?", "answer": "1"}, {"prompt": [{"role": "user", "content": "b"}], "answer": "2"}]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


LABEL = ["--data", "data.jsonl", "--reward", "rules.py:even", "--max-completion-length", "24"]


def test_samples_are_labelled_by_the_rule(model: str, files: Path) -> None:
    result = run("label", model, *LABEL, "--num-generations", "6", "--output", "rows.jsonl")
    assert result.exit_code == 0, result.output
    rows = read(files / "rows.jsonl")
    assert len(rows) == 12 and [row["answer"] for row in rows] == ["1"] * 6 + ["2"] * 6
    texts = [r["completion"] if isinstance(r["completion"], str) else r["completion"][0]["content"] for r in rows]
    assert len(set(texts)) == 12 and [row["label"] for row in rows] == [int(even(text)) for text in texts]
    assert isinstance(rows[6]["prompt"], list) and rows[6]["completion"][0]["role"] == "assistant"
    share = sum(row["label"] for row in rows) / 12
    assert f"12 rows, {share:.1%} right: rows.jsonl" in result.output
    assert run("label", model, *LABEL, "--num-generations", "6", "--output", "rows.jsonl").exit_code == 2
    run("label", model, *LABEL, "--num-generations", "6", "--output", "again.jsonl")
    assert read(files / "again.jsonl") == rows


def test_pairs_are_right_over_wrong(model: str, files: Path) -> None:
    result = run("label", model, *LABEL, "--num-generations", "8", "--pairs", "--output", "pairs.jsonl")
    assert result.exit_code == 0, result.output
    found = read(files / "pairs.jsonl")
    assert found and all(row["answer"] for row in found)
    for row in found:
        sides = [
            row[side] if isinstance(row[side], str) else row[side][0]["content"] for side in ("chosen", "rejected")
        ]
        assert even(sides[0]) and not even(sides[1])


class Digits:
    """An engine that samples four digits: an even one with probability 1 after an even one, else with 1/2. It records
    its calls."""

    def __init__(self, tokenizer: Any):
        self.tokenizer, self.asked = tokenizer, list[tuple[str, int]]()

    def generate(self, prompts: list[Any], n: int, sampling: Sampling, seeds: list[int], **_: Any) -> Generation:
        decoded = [self.tokenizer.decode(prompt.tolist()) for prompt in prompts]
        pairs = zip(decoded, map(random.Random, seeds), strict=True)
        return Generation([[self.one(prompt, n, rng) for _ in range(n)] for prompt, rng in pairs])

    def one(self, prompt: str, n: int, rng: random.Random) -> Completion:
        self.asked.append((prompt, n))
        lines = prompt.partition(">")[2].split()
        written = len(lines)
        while len(lines) < 4:
            sure = lines and int(lines[-1]) % 2 == 0
            lines.append(str(rng.choice([0, 2]) if sure else rng.choice([0, 1])))
        text = "".join(line + "\n" for line in lines[written:])
        ids = torch.tensor(self.tokenizer(text)["input_ids"])
        return Completion(ids, torch.zeros(len(ids)), text)


def last_is_even(completions: list[str], **columns: Any) -> list[float]:
    return [float(int(text.split()[-1]) % 2 == 0) for text in completions]


@pytest.mark.parametrize("soft", [True, False])
def test_steps_are_labelled_by_roll_outs_from_their_prefixes(soft: bool) -> None:
    """After an even digit the completion is right; after k odd ones of 4 it is with probability 1 - 2^-(4 - k)."""
    tokenizer = byte_tokenizer(template=False)
    engine = Digits(tokenizer)
    labeller = Labeller(tokenizer, engine, Rewards([last_is_even]), Sampling(max_tokens=20), 4, 0)
    prompt = Prompt(Row("x>"), torch.tensor(tokenizer("x>")["input_ids"]))
    judged = list(labeller.groups([prompt, prompt]))
    asked = len(engine.asked)
    labels = labeller.step_labels(judged, by_separator("\n"), 400, soft)
    prefixes = set()
    for p, (each, of_prompt) in enumerate(zip(judged, labels, strict=True)):
        for completion, right, found in zip(each.completions, each.right, of_prompt, strict=True):
            lines = completion.text.split()
            assert len(found) == 4 and found[-1] == float(right) == float(int(lines[-1]) % 2 == 0)
            for k, value in enumerate(found[:-1], 1):
                sure = int(lines[k - 1]) % 2 == 0
                exact = 1.0 if sure else 1 - 0.5 ** (4 - k)
                assert value == (pytest.approx(exact, abs=0.08) if soft else 1.0)
                prefixes.add((p, tuple(lines[:k])))
    # one call of n roll-outs for each different prefix
    assert len(engine.asked) - asked == 400 * len(prefixes)
    assert {text for text, _ in engine.asked[asked:]} == {
        "x>" + "".join(x + "\n" for x in lines) for _, lines in prefixes
    }


def test_process_labels_from_a_real_policy(model: str, files: Path) -> None:
    arguments = [*LABEL, "--num-generations", "4", "--rollouts", "3", "--step-pattern", "[a-zA-Z]"]
    result = run("label", model, *arguments, "--process", "soft", "--output", "soft.jsonl")
    assert result.exit_code == 0, result.output
    rows = read(files / "soft.jsonl")
    assert len(rows) == 8 and any(len(row["labels"]) > 2 for row in rows)
    for row in rows:
        assert row["labels"][-1] == row["label"]
        assert all(min(abs(3 * value - k) for k in range(4)) < 1e-9 for value in row["labels"])
    hard = run("label", model, *arguments, "--process", "hard", "--output", "hard.jsonl")
    assert hard.exit_code == 0
    assert [[float(v > 0) for v in row["labels"]] for row in rows] == [
        row["labels"] for row in read(files / "hard.jsonl")
    ]


BAD = [
    (["--pairs", "--process", "hard"], "--pairs and --process make different data"),
    (["--temperature", "0"], "greedy samples of a prompt are all the same"),
    (["--process", "soft", "--step-separator", "@@@"], "the step separator never occurs"),
    (["--reward", "acuracy"], "did you mean 'accuracy'"),
    (["--columns", "prompt"], "--columns 'prompt': write name=value"),
    (["--data", "none.jsonl"], "no such file"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_what_cannot_be_labelled_leaves_no_file(model: str, files: Path, arguments: list[str], message: str) -> None:
    result = run("label", model, *LABEL, "--output", "x.jsonl", *arguments)
    assert result.exit_code == 2 and message in result.stderr and not (files / "x.jsonl").exists()


def test_numbers_of_ranking() -> None:
    rng = random.Random(0)
    scores = [float(rng.randint(0, 6)) for _ in range(60)]
    right = [rng.random() < s / 6 for s in scores]
    good, bad = ([s for s, r in zip(scores, right, strict=True) if r == kind] for kind in (True, False))
    u = stats.mannwhitneyu(good, bad).statistic / (len(good) * len(bad))
    assert ranking.auc(scores, right) == pytest.approx(u) == ranking.ranking_accuracy(good, bad)
    assert ranking.ranks([5, 7, 7]) == [1, 2.5, 2.5] and ranking.auc([1.0], [True]) is None
    other = [rng.random() for _ in scores]
    assert ranking.spearman(scores, other) == pytest.approx(stats.spearmanr(scores, other).statistic)
    assert ranking.spearman([1.0, 1.0], [1.0, 2.0]) is None
    bins = ranking.reliability([0.1, 0.15, 0.8, 1.0], [0, 1, 1, 1])
    assert [tuple(each) for each in bins] == [(pytest.approx(0.125), 0.5, 2), (0.8, 1, 1), (1.0, 1, 1)]
    assert ranking.calibration_error(bins) == pytest.approx((2 * 0.375 + 0.2 + 0) / 4)
    assert ranking.probability(-800.0) == 0.0 and ranking.probability(math.log(3)) == pytest.approx(0.75)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_best_of_n_is_the_mean_over_all_subsets(n: int) -> None:
    """With ties: in a subset with equal scores any of them can be the best."""
    scores, right = [3.0, 1.0, 3.0, 2.0, 0.5], [0.0, 1.0, 1.0, 1.0, 0.0]
    found = []
    for subset in itertools.combinations(range(5), n):
        best = max(scores[i] for i in subset)
        tied = [right[i] for i in subset if scores[i] == best]
        found.append(sum(tied) / len(tied))
    assert ranking.best_of_n(scores, right, n) == pytest.approx(sum(found) / len(found))
    with pytest.raises(ValueError, match="best of 6 needs at least 6 samples, not 5"):
        ranking.best_of_n(scores, right, 6)


def test_a_judgement_by_hand() -> None:
    texts = [
        ScoredText(0, 2.0, 2.0, 10, 1.0),
        ScoredText(0, 1.0, 1.0, 30, 0.0),
        ScoredText(0, 3.0, 3.5, 20, 0.0),
        ScoredText(1, -1.0, -1.0, 5, 0.0),
        ScoredText(1, 0.5, 0.5, 9, 1.0),
        ScoredText(2, 4.0, 4.0, 1, 1.0),
    ]
    found = judgement(ModelScores(texts, "rows", True))
    assert found["ranking_accuracy"]["value"] == pytest.approx(0.75) and found["ranking_accuracy"]["of"] == 2
    assert found["agreement"]["value"] == pytest.approx(4 / 6) and found["auc"] == pytest.approx(6 / 9)
    assert found["position"] == {"largest_change_by_order": 0.5}
    assert found["length"]["ranking_accuracy_right_shorter"] == 0.5
    assert found["length"]["ranking_accuracy_right_longer"] == 1.0
    one, two = found["best_of_n"]
    assert (one["n"], one["value"], one["mean"], one["lift"]) == (1, pytest.approx(11 / 18), pytest.approx(11 / 18), 0)
    assert two["value"] == pytest.approx((1 / 3 + 1) / 2) and two["best"] == pytest.approx((2 / 3 + 1) / 2)
    steps = [
        *(ScoredText(0, s, s, 4, y, i) for i, (s, y) in enumerate([(1.0, 1.0), (-1.0, 0.0), (2.0, 0.0)])),
        *(ScoredText(1, s, s, 4, y, i) for i, (s, y) in enumerate([(1.0, 1.0), (-1.0, 1.0)])),
        *(ScoredText(2, s, s, 4, y, i) for i, (s, y) in enumerate([(1.0, 1.0), (3.0, 1.0)])),
    ]
    found = judgement(ModelScores(steps, "steps", True))
    assert found["first_error"] == {"with_error": 1.0, "without": 0.5, "f1": pytest.approx(2 / 3)}
    lost = judgement(ModelScores(steps, "steps", True, incomplete=frozenset([1])))
    assert lost["first_error"] == {"with_error": 1.0, "without": 1.0, "f1": 1.0}
    assert found["agreement"]["value"] == pytest.approx(5 / 7) and found["agreement"]["of"] == 3


def test_what_of_a_judgement_is_like_chance() -> None:
    def of(scores: list[float], labels: list[float], kind: str = "rows", log_odds: bool = True) -> str | None:
        prompts = [i // 2 for i in range(len(scores))]
        texts = [ScoredText(p, s, s, 4, y) for p, s, y in zip(prompts, scores, labels, strict=True)]
        pairs = [(i, i + 1) for i in range(0, len(scores), 2)] if kind == "pairs" else []
        return chance(judgement(ModelScores(texts, kind, log_odds, pairs)))

    right = [1.0, 0.0] * 20
    assert of([2.0, 1.0] * 20, right, "pairs") is None and of([2.0, 1.0, 1.0, 2.0] * 10, right, "pairs")
    assert of([2.0, 1.0] * 20, right) is None  # all are called right, and in order
    assert "50.0% of its verdicts agree" in (of([2.0, 1.0, 1.0, 2.0] * 10, right) or "")
    assert of([2.0, -1.0] * 20, right) is None and of([1.0, 2.0] * 20, [1.0] * 40) is None
    values = [float(i % 5) for i in range(40)]
    assert of(values, values, log_odds=False) is None
    assert "correlate by +0.00" in (of([1.0] * 40, values, log_odds=False) or "")


def test_eval_of_rows_pairs_and_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer = byte_tokenizer(template=False)
    saved(tmp_path / "rm", classifier("Qwen2"), tokenizer)
    saved(tmp_path / "prm", token_classifier("Qwen2"), tokenizer)
    rng = random.Random(0)
    rows = [{"prompt": f"p{i % 5}", "completion": str(rng.random()), "answer": "4", "label": i % 2} for i in range(20)]
    pairs = [{"prompt": "p", "chosen": str(rng.random()), "rejected": str(rng.random())} for _ in range(6)]
    steps = [
        {"prompt": "p", "completion": "12\n3\n4", "labels": [1, 0.5, 0]},
        {"prompt": "q", "completion": "1\n2", "labels": [1, 1]},
    ]
    for name, records in (("rows", rows), ("pairs", pairs), ("steps", steps)):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records))
        result = run("eval", "prm" if name == "steps" else "rm", "--data", f"{name}.jsonl", "--output", name)
        assert result.exit_code == 0, result.output
        found = json.loads(Path(name, "judgement.json").read_text())
        assert found["kind"] == name and "calibration error" in result.output
        plots = {"reliability.png", "scores.png", *(["best_of_n.png"] if name == "rows" else [])}
        assert ("No better than chance: it orders" in result.output) is (name == "pairs")
        assert plots == {path.name for path in Path(name).glob("*.png")}
    from cohort.rewards import resolve

    score = resolve(str(tmp_path / "rm"))[1]
    chosen, rejected = (score(["p"] * 6, [row[side] for row in pairs]) for side in ("chosen", "rejected"))
    share = sum(a > b for a, b in zip(chosen, rejected, strict=True)) / 6
    assert json.loads(Path("pairs/judgement.json").read_text())["ranking_accuracy"]["value"] == pytest.approx(share)
    # a rule in place of the labels: none of these answers is 4
    ruled = run("eval", "rm", "--data", "rows.jsonl", "--reward", "accuracy", "--output", "ruled")
    assert ruled.exit_code == 0 and json.loads(Path("ruled/judgement.json").read_text())["ranking_accuracy"] is None
    # an exact checker in place of the labels of steps
    worked = [{"prompt": "7+5-8=", "completion": "7+5=2\n2-8=5"}, {"prompt": "1+1=", "completion": "1+1=2\n2"}]
    Path("worked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in worked))
    checked = run("eval", "prm", "--data", "worked.jsonl", "--reward", "chain_steps", "--output", "checked")
    assert checked.exit_code == 0, checked.output
    found = json.loads(Path("checked/judgement.json").read_text())
    assert found["kind"] == "steps" and found["texts"] == 4 and found["prompts"] == 2
    # of p12\n3\n4<eos> the last 4 tokens have the ends of the last two steps
    split = by_separator("\n")
    cut = score_rows("prm", load_rows("steps.jsonl"), [], split, "\n", max_length=4)
    assert [(each.prompt, each.step, each.label) for each in cut.texts] == [
        (0, 1, 0.5),
        (0, 2, 0),
        (1, 0, 1),
        (1, 1, 1),
    ]
    assert cut.incomplete == {0} and "1 steps of 1 of 2 completions (steps.jsonl row 1 the first) are" in caplog.text
    ranks = run("eval", "rm", "--data", "pairs.jsonl", "--reward", "accuracy", "--output", "bad")
    assert ranks.exit_code == 2 and "pairs are judged by which side is chosen" in ranks.stderr
    bad = run("eval", "rm", "--data", "steps.jsonl", "--output", "bad")
    assert bad.exit_code == 2 and "learns from `prompt`, `completion` and `label`" in bad.stderr
    assert not Path("bad").exists()


def test_a_model_of_squared_errors_gives_the_value_itself(tmp_path: Path) -> None:
    model = classifier("Qwen2")
    model.config.problem_type = "regression"
    saved(tmp_path / "rm", model, byte_tokenizer(template=False))
    rows = load_rows([{"prompt": "p", "completion": c, "label": i % 2} for i, c in enumerate("abcd")])
    scores = score_rows(str(tmp_path / "rm"), rows, [], by_separator("\n"), "\n")
    predicted = [min(1.0, max(0.0, each.score)) for each in scores.texts]
    expected = ranking.calibration_error(ranking.reliability(predicted, [0.0, 1.0, 0.0, 1.0]))
    assert judgement(scores)["calibration"]["ece"] == pytest.approx(expected)


@pytest.mark.parametrize("labels", [[1.0, 2.0, 5.0, 3.0], [-1.0, 1.0, 1.0, -1.0]])
@pytest.mark.parametrize("log_odds", [False, True])
def test_labels_that_are_values_are_judged_by_their_order(labels: list[float], log_odds: bool, tmp_path: Path) -> None:
    scores = [0.5, 2.5, 4.0, 4.0]
    texts = [ScoredText(i // 2, s, s, i, label) for i, (s, label) in enumerate(zip(scores, labels, strict=True))]
    found = judgement(ModelScores(texts, "rows", log_odds))
    assert found["ranking_accuracy"] == {"value": (1.0 + 0.5) / 2, "of": 2}
    assert found["correlation"]["linear"] == pytest.approx(float(np.corrcoef(scores, labels)[0, 1]))
    gaps = np.array(scores) - np.array(labels)
    error = {
        "mean_absolute": pytest.approx(abs(gaps).mean()),
        "root_mean_square": pytest.approx((gaps**2).mean() ** 0.5),
    }
    assert found["error"] == (None if log_odds else error)
    assert not {"auc", "agreement", "calibration", "best_of_n"} & set(found)
    table = io.StringIO()
    Console(file=table, width=100).print(judgement_table("it", found))
    assert "ranking accuracy" in table.getvalue() and "75.0%" in table.getvalue() and "[" not in table.getvalue()
    assert [path.name for path in plot_judgement(ModelScores(texts, "rows", log_odds), found, tmp_path)] == [
        "scores.png"
    ]


def test_pairs_are_compared_within_themselves_and_counted_by_prompt() -> None:
    """Two pairs of one prompt, one of them hard: a chosen text is not compared with the other pair's rejected one."""
    texts = [
        ScoredText(p, s, s, 4, y)
        for p, s, y in [(0, 1.0, 1.0), (0, 0.0, 0.0), (0, 5.0, 1.0), (0, 4.0, 0.0), (1, 0.0, 1.0), (1, 1.0, 0.0)]
    ]
    found = judgement(ModelScores(texts, "pairs", True, [(0, 1), (2, 3), (4, 5)]))
    assert (found["prompts"], found["ranking_accuracy"]["value"], found["ranking_accuracy"]["of"]) == (2, 0.5, 2)
