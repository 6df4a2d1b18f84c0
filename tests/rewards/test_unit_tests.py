"""`unit_tests`: scores, columns, what is code in a completion, and tests of many kinds."""

# ruff: noqa: E501

from __future__ import annotations

import importlib.util
import json
import math
import sys
from typing import Any

import pytest

from cohort.rewards import Rewards, resolve, unit_tests, unit_tests_reward
from cohort.rewards.sandbox.layers import NONE, Limits, find_layers
from cohort.rewards.sandbox.plan import plan
from cohort.rewards.sandbox.run import run_tests
from cohort.types import UserError
from helpers import ROOT

EXAMPLE = ROOT / "examples" / "rewards" / "code.py"
MBPP = ROOT.parent / "shared" / "data" / "mbpp" / "mbpp.jsonl"

pytestmark = pytest.mark.skipif(not find_layers().safe, reason="no sandbox on this machine")
ADD = "def add(a, b):\n    return a + b"
SUBTRACT = "def add(a, b):\n    return a - b"
IMPORTS_ACT = ("antigravity", "this", "idlelib", "turtledemo", "tkinter", "turtle", "lib2to3")
ADDS = ["assert add(1, 2) == 3", "assert add(0, 0) == 0", "assert add('a', 'b') == 'ab'"]


def passes(code: str, *tests: str, setup: str = "") -> bool:
    verdict = run_tests([code], plan(tests, "", setup, "", "", False), False, Limits(), find_layers())
    assert verdict.ok or verdict.reason
    return verdict.ok


def test_scores() -> None:
    completions = [ADD, SUBTRACT, f"Here:\n```python\n{ADD}\n```\nDone.", [{"role": "assistant", "content": ADD}], ""]
    columns: dict[str, Any] = {"test_list": [ADDS] * 5}
    assert unit_tests(completions, **columns) == [1.0, -1.0, 1.0, 1.0, -1.0]
    assert unit_tests_reward(share=True)(completions, **columns) == [1.0, 1 / 3, 1.0, 1.0, 0.0]
    assert resolve("unit_tests") == ("unit_tests", unit_tests)


def test_rows_without_tests_do_not_apply_and_reasons_are_logged() -> None:
    logged: dict[str, list[str]] = {}
    scores = unit_tests([ADD, ADD, SUBTRACT], log_extra=logged.__setitem__, test_list=[None, [], ADDS[:1]])
    assert scores == [None, None, -1.0]
    assert logged == {"unit_tests": ["", "", "assert add(1, 2) == 3: AssertionError: "]}


def test_in_a_composition_with_prompts() -> None:
    prompts = ["Write add.", [{"role": "user", "content": f"Complete:\n```python\n{ADD[:14]}\n```"}]]
    rewards = Rewards(["unit_tests"])
    scores = rewards(prompts, [ADD, "return a + b"], [[1], [2]], {"test_list": [ADDS, ADDS], "task_id": [1, 2]})
    assert scores.totals == [1.0, 1.0]


def test_mistakes_in_the_data_are_told() -> None:
    with pytest.raises(UserError, match=r"needs a column test_list or test; the rows have: tests"):
        unit_tests([ADD], tests=[ADDS])
    with pytest.raises(UserError, match=r"a row's test_list is not Python: .* It starts 'assert add\(1'"):
        unit_tests([ADD], test_list=[["assert add(1"]])
    with pytest.raises(UserError, match="test_list is a list of texts"):
        unit_tests([ADD], test_list=["assert add(1, 2) == 3"])
    with pytest.raises(UserError, match="seconds is 0; it must be above 0"):
        unit_tests_reward(seconds=0)
    with pytest.raises(UserError, match="a row has 1 test_inputs and 0 test_outputs"):
        unit_tests_reward(command="perl {file}.pl")([""], test_inputs=[["1"]], test_outputs=[[]])


def test_without_a_sandbox_a_run_does_not_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("cohort.rewards.functions.code.find_layers", lambda: NONE)
    with pytest.raises(UserError, match="this machine has no sandbox"):
        Rewards(["format", "unit_tests"])
    with pytest.raises(UserError, match="this machine has no sandbox"):
        unit_tests([ADD], test_list=[ADDS])
    allowed = unit_tests_reward(allow_unsandboxed=True)
    Rewards([allowed])
    assert "run as you, with your files and your network" in caplog.text
    assert allowed([ADD, SUBTRACT], test_list=[ADDS, ADDS]) == [1.0, -1.0]


NODE = "class Node:\n    def __init__(self, v): self.v, self.next = v, None\n"


@pytest.mark.parametrize(
    ("code", "tests"),
    [
        ("f = lambda x: (x, [x], {x: {x}}, None, ...)", ["assert f(1) == (1, [1], {1: {1}}, None, ...)"]),
        ("def f(): return [1.5, float('inf'), 2j, b'a\\xff', bytearray(b'b'), '\\ud800é', -0.0]",
         ["assert f() == [1.5, float('inf'), 2j, b'a\\xff', bytearray(b'b'), '\\ud800é', 0]"]),
        ("def f(): return 7 ** 9000", ["assert f() == 7 ** 9000", "assert f() % 10 == 1"]),
        ("def f(): return float('nan')", ["assert f() != f()", "import math\nassert math.isnan(f())"]),
        ("def f(x): return x > 1", ["assert f(2)", "assert not f(1)", "assert f(2) is True"]),
        ("def f(x):\n    x.sort(); x.append(9)", ["x = [3, 1]\nf(x)\nassert x == [1, 3, 9]"]),
        ("def f(d, s): d['a'] = 1; s.add(2)", ["d, s = {}, set()\nassert f(d, s) is None and d == {'a': 1} and s == {2}"]),
        ("def f(n):\n    for i in range(n): yield i", ["assert list(f(3)) == [0, 1, 2]", "assert sum(f(4)) == 6"]),
        ("def f(x): return map(str, x)", ["assert list(f([1, 2])) == ['1', '2']", "assert f([1]) != ['1']"]),
        ("import collections\ndef f(x): return collections.Counter(x)",
         ["assert f('aab') == {'a': 2, 'b': 1}", "assert f('aab').most_common(1) == [('a', 2)]"]),
        ("import collections\nP = collections.namedtuple('P', 'x y')\ndef f(): return P(1, 2)",
         ["assert f() == (1, 2)", "assert f().y == 2", "assert {f(): 3}[(1, 2)] == 3", "a, b = f()\nassert a + b == 3"]),
        ("import collections\ndef f():\n    d = collections.defaultdict(list)\n    d[1].append(2)\n    return d",
         ["assert f() == {1: [2]}", "assert isinstance(f(), dict)"]),
        ("import enum\nclass E(enum.IntEnum):\n    A = 3\ndef f(): return E.A", ["assert f() == 3"]),
        ("from fractions import Fraction\nfrom decimal import Decimal\ndef f(): return Fraction(1, 3), Decimal('1.10')",
         ["from fractions import Fraction\nassert f()[0] * 3 == 1 and str(f()[1]) == '1.10'"]),
        ("import datetime\ndef f(): return datetime.datetime(2020, 2, 29), datetime.timedelta(1)",
         ["import datetime\nassert f()[0] + f()[1] == datetime.datetime(2020, 3, 1)"]),
        ("def f(x): return range(x)", ["assert list(f(3)) == [0, 1, 2]", "assert f(3) == range(3)"]),
        ("def f(x):\n    if x < 0: raise ValueError('negative')\n    return x",
         ["try:\n    f(-1)\n    assert False\nexcept ValueError as e:\n    assert str(e) == 'negative'"]),
        ("def f(x): return open('/no/such/file')", ["try:\n    f(1)\n    assert False\nexcept OSError:\n    pass"]),
        ("def f(): return input()", ["try:\n    f()\n    assert False\nexcept EOFError:\n    pass"]),
        ("def f(g, x): return [g(y) for y in x]", ["assert f(lambda y: y * 2, [1, 2]) == [2, 4]", "assert f(str, [1]) == ['1']"]),
        ("def f(g):\n    try: return g(0)\n    except ZeroDivisionError: return 'none'", ["assert f(lambda x: 1 / x) == 'none'"]),
        ("def sum(a, b): return a * b", ["assert sum(3, 4) == 12"]),
        ("def f(x): return sorted(x)", ["assert len(f({2, 1})) == 2 and max(f([1, 2])) == 2"]),
        ("def f(): return 1\nLIMIT = 10", ["assert f() < LIMIT", "assert LIMIT == 10"]),
        (NODE + "def f(n): return n.v", ["n = Node(4)\nn.next = Node(5)\nassert f(n.next) == 5 and n.next.v == 5"]),
        ("class Stack:\n    def __init__(self): self.items = []\n    def push(self, x): self.items.append(x)\n"
         "    def __len__(self): return len(self.items)\n    def __getitem__(self, i): return self.items[i]",
         ["s = Stack()\ns.push(3)\nassert len(s) == 1 and s[0] == 3 and s.items == [3] and list(s) == [3]"]),
        ("class V:\n    def __init__(self, x): self.x = x\n    def __add__(self, o): return V(self.x + o.x)\n"
         "    def __str__(self): return f'V({self.x})'", ["assert (V(1) + V(2)).x == 3 and str(V(4)) == 'V(4)'"]),
        ("import sys\ndef f(x): return sys.getsizeof(x)", ["assert f((1, 2)) == sys.getsizeof((1, 2))"]),
        ("import dataclasses\n@dataclasses.dataclass\nclass P:\n    x: int\ndef f(): return P(3)", ["assert f().x == 3"]),
        ("import sys\nsys.setrecursionlimit(5000)\ndef f(n): return n and 1 + f(n - 1)", ["assert f(3000) == 3000"]),
        ("import threading\ndef f():\n    out = []\n    t = threading.Thread(target=out.append, args=(1,))\n"
         "    t.start(); t.join()\n    return out", ["assert f() == [1]"]),
        ("if __name__ == '__main__':\n    raise SystemExit\ndef f(): return 1", ["assert f() == 1"]),
        ("print('x' * 100000)\ndef f(): return 1", ["assert f() == 1\nprint('y')"]),
    ],
)  # fmt: skip
def test_what_passes(code: str, tests: list[str]) -> None:
    assert passes(code, *tests)


@pytest.mark.parametrize(
    ("code", "tests"),
    [
        ("def f(): return [1, 2]", ["assert f() == (1, 2)"]),
        ("def f(): return 1", ["assert f() == 1", "assert f() is True"]),
        ("def f(): return '1'", ["assert f() == 1"]),
        ("def f(): return f", ["assert f() == f()"]),
        ("def f(x): x.append(1)", ["x = ()\nf(x)"]),
        ("def f(): raise KeyError('k')", ["try:\n    f()\nexcept ValueError:\n    pass"]),
        ("def g(): return 1", ["assert f() == 1"]),
    ],
)
def test_what_fails(code: str, tests: list[str]) -> None:
    assert passes(code, *tests) is (code == "def f(): return f")


def test_setup_code() -> None:
    setup = "import math\nclass Point:\n    def __init__(self, x): self.x = x\nSCALE = 2\np = Point(3)"
    code = "def f(p: Point): return math.sqrt(p.x ** 2)"
    assert passes(code, "assert math.isclose(f(p) * SCALE, 6)", setup=setup)
    assert passes(
        "class Point:\n    def __init__(self, x): self.x = x + 1\ndef f(p): return p.x", "assert f(p) == 4", setup=setup
    )


HUMANEVAL = '''from typing import List


def encode(s: str) -> str:
    """Reversed."""
    return s[::-1]


def decode(s: str, parts: List[int] = []) -> str:
    """Undo encode.

    >>> decode("ba")
    'ab'
    """
'''
CHECK = """
METADATA = {'author': 'x'}


def check(candidate):
    for word in ['abc', '', 'level']:
        assert candidate(encode(word)) == word
    assert candidate('x') == 'x'
"""


@pytest.mark.parametrize(
    ("completion", "score", "share"),
    [
        ("    return s[::-1]\n", 1.0, 1.0),
        ("return s[::-1]", 1.0, 1.0),
        ("if not s:\n        return s\n    return s[::-1]", 1.0, 1.0),
        ("if not s:\n    return s\nreturn s[::-1]", 1.0, 1.0),
        ("```python\ndef decode(s: str, parts: List[int] = []) -> str:\n    return encode(s)\n```", 1.0, 1.0),
        ("def encode(s): return s\ndef decode(s): return s", -1.0, 3 / 4),
        ("def decode(s): return s", -1.0, 3 / 4),
        ("def decode(s): return s[::-1] if s else 1 / 0", -1.0, 3 / 4),
        ("    return 'x'", -1.0, 1 / 4),
        ("the word, backwards", -1.0, 0.0),
    ],
)
def test_humaneval_rows(completion: str, score: float, share: float) -> None:
    columns: dict[str, Any] = {"prompts": [HUMANEVAL], "test": [CHECK], "entry_point": ["decode"]}
    assert unit_tests([completion], **columns) == [score]
    assert unit_tests_reward(share=True)([completion], **columns) == [share]


def test_other_languages() -> None:
    perl = unit_tests_reward(command="perl {file}.pl", share=True)
    columns: dict[str, Any] = {"test_inputs": [["3", "4"], None], "test_outputs": [["6", "9"], None]}
    assert perl(["```perl\nprint 2 * <STDIN>;\n```", "x"], **columns) == [0.5, None]


def test_an_explained_program_is_the_program() -> None:
    explained = f"```python\n{ADD}\n```\nOutput:\n```\n3\n```\nRun it:\n```bash\npython add.py\n```"
    demonstrated = f"```python\n{ADD}\n```\nFor example:\n```python\nprint(add(1, 2))\n```"
    in_pieces = "```python\nimport operator\n```\nthen\n```python\ndef add(a, b):\n    return operator.add(a, b)\n```"
    draft = f"<think>\n```python\n{ADD}\n```\n</think>\nI do not know."
    corrected = f"```python\n{ADD}\n```\nOr rather:\n```python\n{SUBTRACT}\n```"
    completions = [explained, demonstrated, in_pieces, draft, corrected]
    assert unit_tests(completions, test_list=[ADDS[:2]] * 5) == [1.0, 1.0, 1.0, -1.0, -1.0]


def test_every_module_of_the_standard_library_can_be_imported() -> None:
    # Only those that this Python has: tkinter and its like may be missing; antigravity opens a browser.
    names = [name for name in sorted(sys.stdlib_module_names) if not name.startswith("_") and name not in IMPORTS_ACT]
    here = [name for name in names if importlib.util.find_spec(name) is not None]
    assert {"code", "doctest", "pdb", "platform", "types", "calendar"} <= set(here)
    program = f"""
import importlib
def failures():
    failed = []
    for name in {here}:
        try:
            module = importlib.import_module(name)
        except BaseException as error:
            failed.append((name, repr(error)))
        else:
            if 'cohort' in (getattr(module, '__file__', None) or ''):
                failed.append((name, module.__file__))
    return failed
"""
    assert passes(program, "assert failures() == []")


def test_no_file_on_a_module_path_hides_the_standard_library() -> None:
    rewards = ROOT / "src" / "cohort" / "rewards"
    # The sandbox's parent folder, and the folders of files that are started by their path.
    for folder in (rewards, rewards / "sandbox", rewards / "answers"):
        assert not {path.stem for path in folder.iterdir()} & sys.stdlib_module_names


def test_the_example() -> None:
    rewards = Rewards([f"{EXAMPLE}:tests", f"{EXAMPLE}:imports"])
    scores = rewards(["?"] * 2, [ADD, "import os\n" + SUBTRACT], [[1], [2]], {"test_list": [ADDS, ADDS]})
    assert scores.totals == pytest.approx([1.0, 1 / 3 - 0.1])


def mbpp_rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in MBPP.read_text(encoding="utf-8").splitlines()]


def mbpp_scores(rows: list[dict[str, Any]], seconds: float = 4.0) -> list[float | None]:
    reward = unit_tests_reward(seconds=seconds)
    columns = {name: [row[name] for row in rows] for name in ("test_list", "test_setup_code")}
    return reward([row["code"] for row in rows], prompts=[row["text"] for row in rows], **columns)


def inverted(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its last assertion negated."""
    *others, last = row["test_list"]
    assert last.startswith("assert ")
    return {**row, "test_list": [*others, f"assert not ({last.removeprefix('assert ')})"]}


@pytest.mark.skipif(not MBPP.is_file(), reason="MBPP is not beside the project")
def test_a_sample_of_mbpp() -> None:
    # 126 asks for a `sum`; 367, 601 and 927 for classes; 596 compares with sys.getsizeof.
    rows = [row for row in mbpp_rows() if row["task_id"] % 28 == 5 or row["task_id"] in (126, 367, 596, 601, 927)]
    assert len(rows) == 40
    assert mbpp_scores(rows, seconds=10) == [1.0] * 40
    assert mbpp_scores([inverted(row) for row in rows[::4]], seconds=10) == [-1.0] * 10


@pytest.mark.slow
@pytest.mark.skipif(not MBPP.is_file(), reason="MBPP is not beside the project")
def test_all_of_mbpp() -> None:
    rows = mbpp_rows()
    assert len(rows) == 974
    scores = mbpp_scores(rows)
    # Task 123's reference tries every divisor of every number to 9,999: six seconds of processor time.
    assert {row["task_id"] for row, score in zip(rows, scores, strict=True) if score != 1.0} <= {123}
    slow = [row for row in rows if row["task_id"] == 123]
    assert mbpp_scores(slow, seconds=30) == [1.0]
    assert mbpp_scores([inverted(row) for row in rows]) == [-1.0] * 974
    assert math.isclose(sum(score or 0 for score in scores), 974, abs_tol=2)


def test_options_in_a_configuration() -> None:
    half = Rewards([{"name": "unit_tests", "share": True, "seconds": 2}])
    assert half(["p"], [ADD], [[1]], {"test_list": [["assert add(1, 2) == 3", "assert add(1, 2) == 4"]]}).totals == [
        0.5
    ]
