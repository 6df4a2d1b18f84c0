"""Benchmarks: prompts, and which answers are right; tasks of lm-eval."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cohort.cli.app import app
from cohort.config import TrainingConfig
from cohort.data.benchmarks import BENCHMARKS, benchmark_rows
from cohort.policy.load import make_policy
from cohort.rewards.compose import Rewards
from cohort.rewards.sandbox.layers import find_layers
from cohort.train.output.checkpoint import save_policy
from cohort.types import Row, UserError
from helpers import ROOT

DATA = ROOT.parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="GSM8K and MBPP are not beside the project")
needs_sandbox = pytest.mark.skipif(not find_layers().safe, reason="this machine has no sandbox")


def scores(name: str, rows: list[Row], answers: list[str]) -> list[float | None]:
    """The scores of one answer for each row by the benchmark's reward."""
    columns = {key: [row.columns.get(key) for row in rows] for key in rows[0].columns}
    found = Rewards([BENCHMARKS[name].reward])([row.prompt for row in rows], answers, [[]] * len(rows), columns)
    return found.totals


def one(name: str, record: dict[str, Any], tmp_path: Path) -> Row:
    (tmp_path / "rows.jsonl").write_text(json.dumps(record, ensure_ascii=False) + "\n")
    (row,) = benchmark_rows(name, str(tmp_path / "rows.jsonl"))
    return row


@needs_data
def test_gsm8k_as_it_is() -> None:
    rows = benchmark_rows("gsm8k", str(DATA / "gsm8k" / "test.jsonl"), max_samples=50)
    assert rows[0].prompt.startswith("Janet\u2019s ducks lay 16 eggs") and rows[0].prompt.endswith("inside \\boxed{}.")
    right = [f"So \\boxed{{{row.columns['answer'].split('#### ')[1]}}}." for row in rows]
    assert scores("gsm8k", rows, right) == [1.0] * 50
    assert scores("gsm8k", rows, ["\\boxed{-7}"] * 50) == [0.0] * 50


@needs_data
@needs_sandbox
def test_mbpp_as_it_is() -> None:
    rows = benchmark_rows("mbpp", str(DATA / "mbpp" / "mbpp.jsonl"), max_samples=12)
    codes = [json.loads(line)["code"] for line in (DATA / "mbpp" / "mbpp.jsonl").read_text().splitlines()[:12]]
    assert "assert min_cost([[1, 2, 3]" in rows[0].prompt and rows[0].prompt.endswith("```python and ```.")
    assert scores("mbpp", rows, [f"Here:\n```python\n{code}\n```" for code in codes]) == [1.0] * 12
    assert scores("mbpp", rows[:3], ["```python\ndef min_cost(*a): return 0\n```", "", "no"]) == [-1.0] * 3


@needs_sandbox
def test_humaneval_and_the_sanitized_mbpp(tmp_path: Path) -> None:
    humaneval = {
        "task_id": "HumanEval/0",
        "prompt": 'from typing import List\n\n\ndef double(xs: List[int]) -> List[int]:\n    """Twice each."""\n',
        "canonical_solution": "    return [2 * x for x in xs]\n",
        "test": "def check(candidate):\n    assert candidate([1, 2]) == [2, 4]\n    assert candidate([]) == []\n",
        "entry_point": "double",
    }
    row = one("humaneval", humaneval, tmp_path)
    whole = f"```python\n{humaneval['prompt']}{humaneval['canonical_solution']}```"
    body = "```python\n    return [2 * x for x in xs]\n```"
    wrong = "```python\ndef double(xs):\n    return xs\n```"
    assert scores("humaneval", [row] * 3, [whole, body, wrong]) == [1.0, 1.0, -1.0]
    sanitized = {
        "prompt": "Root of 16.",
        "test_imports": ["import math"],
        "test_list": ["assert root() == math.sqrt(16)"],
    }
    row = one("mbpp", sanitized, tmp_path)
    assert row.columns["test_setup_code"] == "import math"
    assert scores("mbpp", [row], ["```python\ndef root():\n    return 4\n```"]) == [1.0]


def test_maths_in_english_and_chinese(tmp_path: Path) -> None:
    boxed = {"problem": "Half of 1?", "level": "Level 1", "solution": "It is $\\boxed{\\frac{1}{2}}$."}
    row = one("math", boxed, tmp_path)
    assert scores("math", [row] * 3, ["\\boxed{0.5}", "\\boxed{\\dfrac12}", "\\boxed{2}"]) == [1.0, 1.0, 0.0]
    row = one("math", {**boxed, "answer": "3"}, tmp_path)  # MATH-500 has the answer by itself
    assert scores("math", [row], ["\\boxed{3}"]) == [1.0]
    mgsm = {
        "question": "小明有3个苹果,又买了15个。共有几个?",
        "answer": None,
        "answer_number": 18,
        "equation_solution": None,
    }
    row = one("mgsm_zh", mgsm, tmp_path)
    assert row.prompt.startswith("小明有3个苹果") and "\\boxed{}" in row.prompt
    assert scores("mgsm_zh", [row] * 3, ["答案是 \\boxed{18}。", "共有 18 个。", "\\boxed{15}"]) == [1.0, 1.0, 0.0]
    row = one("cmath", {"question": "1.2 + 0.3 = ?", "golden": "1.5", "grade": 3}, tmp_path)
    assert scores("cmath", [row] * 2, ["\\boxed{1.5}", "\\boxed{1.3}"]) == [1.0, 0.0]


CHOICES = {
    "mmlu": {"question": "Capital of Italy?", "choices": ["Oslo", "Rome", "Bern", "Graz"], "answer": 1, "subject": "x"},
    "arc": {
        "question": "Capital of Italy?",
        "choices": {"text": ["Oslo", "Rome", "Bern"], "label": ["1", "2", "3"]},
        "answerKey": "2",
    },
    "ceval": {"question": "意大利的首都?", "A": "奥斯陆", "B": "罗马", "C": "伯尔尼", "D": "格拉茨", "answer": "B"},
    "cmmlu": {"Question": "意大利的首都?", "A": "奥斯陆", "B": "罗马", "C": "伯尔尼", "D": "格拉茨", "Answer": "B"},
    "text": {"question": "Capital of Italy?", "options": ["Oslo", "Rome"], "answer": "Rome"},
    "mapping": {"question": "Capital of Italy?", "options": {"X": "Oslo", "Y": "Rome"}, "answer": "Y"},
}


@pytest.mark.parametrize("kind", CHOICES)
def test_multiple_choice_in_the_forms_that_data_sets_have(kind: str, tmp_path: Path) -> None:
    row = one("choice", CHOICES[kind], tmp_path)
    label = {"arc": "2", "mapping": "Y"}.get(kind, "B")
    assert f"\n{label}. {'Rome' if 'Italy' in str(CHOICES[kind]) else '罗马'}" in row.prompt
    other = {"arc": "1", "mapping": "X"}.get(kind, "A")
    assert scores("choice", [row] * 3, [f"\\boxed{{{label}}}", f"\\boxed{{{other}}}", "?"]) == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("name", "record", "message"),
    [
        ("gsm8k", {"question": "q"}, "rows.jsonl row 1: --benchmark gsm8k needs the column 'answer'; it has question"),
        ("mbpp", {"text": "t"}, "needs the column 'test_list'"),
        ("choice", {"question": "q", "answer": "A"}, "needs the column 'choices'"),
        ("choice", {"question": "q", "choices": ["a", "b"]}, "needs the column 'answer'"),
        (
            "choice",
            {"question": "q", "choices": ["a", "b"], "answer": "E"},
            "the answer is 'E', and the choices are A, B",
        ),
        ("math", ["q"], "expected an object with columns, found list"),
    ],
)
def test_rows_in_another_form_are_named(name: str, record: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        one(name, record, tmp_path)
    assert message in str(error.value)


def test_benchmarks_without_data() -> None:
    with pytest.raises(UserError, match="--benchmark choice has no data set: name a file by --data"):
        benchmark_rows("choice")
    with pytest.raises(UserError, match="dataset 'openai/gsm8k' is no file here, and could not be loaded from the hub"):
        benchmark_rows("gsm8k")


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


def test_a_random_model_is_measured_and_asked_in_a_chat_turn(model: str, tmp_path: Path) -> None:
    rows = [{"question": f"{i}+{i}=?", "answer": f"#### {2 * i}"} for i in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "result.json"
    options = ["--benchmark", "gsm8k", "--data", tmp_path / "rows.jsonl", "--max-completion-length", 8]
    done = run(model, *options, "--num-generations", 2, "--k", "1,2", "--limit", 2, "--output", output)
    assert done.exit_code == 0, done.output
    assert "2 problems x 2 samples" in done.stdout and "0.0%" in done.stdout
    result = json.loads(output.read_text())
    assert result["accuracy"] == 0.0 and result["pass@k"] == {"1": 0.0, "2": 0.0}
    assert result["completions"][0]["prompt"].startswith("0+0=?\n\nReason step by step")
    assert len(result["completions"]) == 2 and len(result["completions"][0]["completions"]) == 2


@needs_data
@needs_sandbox
def test_real_rows_end_to_end(model: str) -> None:
    for name, file in (("gsm8k", "gsm8k/test.jsonl"), ("mbpp", "mbpp/mbpp.jsonl")):
        done = run(model, "--benchmark", name, "--data", DATA / file, "--limit", 3, "--max-completion-length", 8)
        assert done.exit_code == 0 and "3 problems x 1 sample" in done.stdout, done.output


TASK = """
task: sums
dataset_path: json
dataset_kwargs:
  data_files: {test: "%s"}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: ["1", "2", "3", "4"]
doc_to_target: "{{answer}}"
metric_list:
  - metric: acc
"""


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder with a task of lm-eval's on three sums."""
    rows = [{"question": f"{i}+1=", "answer": i} for i in range(3)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "sums.yaml").write_text(TASK % (tmp_path / "sums.jsonl"))
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_tasks_of_lm_eval(model: str, tasks: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="cohort-rl[lm-eval] is not installed")
    policy = make_policy(model, None, TrainingConfig(finetuning_type="lora", use_cpu=True, bf16=False))
    save_policy(policy, tmp_path / "adapter")  # a new adapter changes nothing
    found = []
    for name in (model, tmp_path / "adapter"):
        output = tmp_path / "result.json"
        done = run(name, "--lm-eval", "sums", "--include-path", tasks, "--output", output)
        assert done.exit_code == 0, done.output
        assert "sums" in done.stdout and "acc" in done.stdout
        result = json.loads(output.read_text())
        assert result["n-samples"]["sums"]["effective"] == 3
        found.append(result["results"]["sums"]["acc,none"])
    assert found[0] == found[1] and found[0] in [pytest.approx(n / 3) for n in range(4)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_unknown_tasks_of_lm_eval(model: str, tasks: Path) -> None:
    pytest.importorskip("lm_eval", reason="cohort-rl[lm-eval] is not installed")
    done = run(model, "--lm-eval", "summs", "--include-path", tasks)
    assert done.exit_code == 2 and "there is no task 'summs': did you mean 'sums'?" in done.stderr
