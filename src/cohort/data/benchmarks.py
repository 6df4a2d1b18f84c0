"""Benchmarks by name: the data set, the form of a problem's prompt, and the reward function that scores answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cohort.data.rows import make_row, read_records
from cohort.texts import as_integer, numbered_choice
from cohort.types import Row, UserError

Record = dict[str, Any]

STEPS = "Reason step by step and put the final answer inside \\boxed{}."
STEPS_ZH = "请一步一步地推理,并把最终答案写在 \\boxed{} 里。"
LETTER = "Think it over, then put the letter of the right choice inside \\boxed{}."
CODE = "Answer with the whole program in one block fenced with ```python and ```."
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Benchmark:
    """Benchmark("openai/gsm8k", gsm8k, "accuracy", kwargs={"name": "main"})"""

    source: str | None
    """Its data set on the hub; None: the user names a file."""
    to_row: Callable[[Record], Record]
    """Turns a record of that data set into a row: `prompt`, and the columns that the reward reads. Raises KeyError for
    a missing column."""
    reward: str
    """Name of the reward function; its score is above 0 for a correct answer."""
    kwargs: dict[str, str] = field(default_factory=dict)
    split: str = "test"


def gsm8k(record: Record) -> Record:
    return {"prompt": f"{record['question']}\n\n{STEPS}", "answer": record["answer"]}


def math(record: Record) -> Record:
    """The answer is in its own column (MATH-500), or boxed in the solution (MATH)."""
    problem = record.get("problem") or record["question"]
    reference = record["answer"] if record.get("answer") is not None else record["solution"]
    return {"prompt": f"{problem}\n\n{STEPS}", "answer": reference}


def mgsm_zh(record: Record) -> Record:
    return {"prompt": f"{record['question']}\n\n{STEPS_ZH}", "answer": str(record["answer_number"])}


def cmath(record: Record) -> Record:
    return {"prompt": f"{record['question']}\n\n{STEPS_ZH}", "answer": str(record["golden"])}


def mbpp(record: Record) -> Record:
    """The task and its tests, which show how the function is called. `prompt` and `test_imports` are columns of the
    sanitized set."""
    task = record.get("text") or record["prompt"]
    tests = list(record["test_list"])
    setup = [record.get("test_setup_code") or "", *(record.get("test_imports") or [])]
    return {
        "prompt": f"{task}\n\nThese tests are to pass:\n\n" + "\n".join(tests) + f"\n\n{CODE}",
        "test_list": tests,
        "test_setup_code": "\n".join(line for line in setup if line),
    }


def humaneval(record: Record) -> Record:
    signature = record["prompt"].strip("\n")
    return {
        "prompt": f"Write out this function with its body.\n\n```python\n{signature}\n```\n\n{CODE}",
        "test": record["test"],
        "entry_point": record["entry_point"],
    }


def choice(record: Record) -> Record:
    """A question with choices in the form of MMLU (`choices` and the answer's index), of ARC (`choices` with labels and
    `answerKey`), or of C-Eval and CMMLU (columns A to D)."""
    choices = _choices(record)
    answer = record.get("answerKey", record.get("answer", record.get("Answer")))
    if answer is None or isinstance(answer, bool):
        raise KeyError("answer")
    number = None if isinstance(answer, str) else as_integer(answer)
    label = None if number is None else numbered_choice(number, choices, by_index=True)
    label = label or str(answer).strip()
    if label not in choices:
        named = [name for name, text in choices.items() if text == label]
        if len(named) != 1:
            raise UserError(f"the answer is {answer!r}, and the choices are {', '.join(choices)}")
        label = named[0]
    question = record.get("question") or record["Question"]
    listed = "\n".join(f"{name}. {text}" for name, text in choices.items())
    return {"prompt": f"{question}\n{listed}\n\n{LETTER}", "choices": choices, "answer": label}


def _choices(record: Record) -> dict[str, str]:
    choices = record.get("choices", record.get("options"))
    if isinstance(choices, dict) and {"text", "label"} <= choices.keys():
        return dict(zip(map(str, choices["label"]), map(str, choices["text"]), strict=True))
    if isinstance(choices, dict) and choices:
        return {str(label): str(text) for label, text in choices.items()}
    if isinstance(choices, list | tuple) and choices:
        return dict(zip(LETTERS, map(str, choices), strict=False))
    letters = {name: str(record[name]) for name in "ABCDE" if record.get(name) is not None}
    if len(letters) < 2:
        raise KeyError("choices")
    return letters


BENCHMARKS: dict[str, Benchmark] = {
    "gsm8k": Benchmark("openai/gsm8k", gsm8k, "accuracy", {"name": "main"}),
    "math": Benchmark("HuggingFaceH4/MATH-500", math, "accuracy"),
    "mgsm_zh": Benchmark("juletxara/mgsm", mgsm_zh, "accuracy", {"name": "zh"}),
    "cmath": Benchmark("weitianwen/cmath", cmath, "accuracy"),
    "mbpp": Benchmark("google-research-datasets/mbpp", mbpp, "unit_tests", {"name": "full"}),
    "humaneval": Benchmark("openai/openai_humaneval", humaneval, "unit_tests"),
    "mmlu": Benchmark("cais/mmlu", choice, "choice", {"name": "all"}),
    "arc": Benchmark("allenai/ai2_arc", choice, "choice", {"name": "ARC-Challenge"}),
    "choice": Benchmark(None, choice, "choice"),
}


def benchmark_rows(
    name: str,
    data: str | None = None,
    *,
    split: str | None = None,
    max_samples: int | None = None,
    dataset_kwargs: dict[str, Any] | None = None,
) -> list[Row]:
    """Rows of a benchmark, from the hub or from `data` with the same columns. Raises UserError naming a row that lacks
    one."""
    benchmark = BENCHMARKS[name]
    if data is None and benchmark.source is None:
        raise UserError(f"--benchmark {name} has no data set: name a file by --data")
    kwargs = dataset_kwargs or (benchmark.kwargs if data is None or data == benchmark.source else {})
    rows = []
    for where, record in read_records(data or benchmark.source, split or benchmark.split, kwargs):
        rows.append(_row(name, benchmark, record, where))
        if len(rows) == max_samples:
            break
    if not rows:
        raise UserError(f"--benchmark {name}: the data is empty")
    return rows


def _row(name: str, benchmark: Benchmark, record: Any, where: str) -> Row:
    if not isinstance(record, dict):
        raise UserError(f"{where}: expected an object with columns, found {type(record).__name__}")
    try:
        return make_row(benchmark.to_row(record), where, {}, None)
    except KeyError as error:
        raise UserError(
            f"{where}: --benchmark {name} needs the column {error}; it has {', '.join(map(str, record))}"
        ) from None
    except UserError as error:
        raise UserError(f"{where}: --benchmark {name}: {error}") from None
