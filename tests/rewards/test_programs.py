"""Which text of a completion is its program: by fences, tags and the names that it defines, never by running tests."""

# ruff: noqa: E501

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cohort.rewards.functions.programs import blocks, bodies, of_command, programs
from cohort.rewards.sandbox.choose import UNUSABLE, choose

F = "def f(x):\n    return x + 1\n"
OTHER = "def f(x):\n    return x - 1\n"
FENCED = f"```python\n{F}```"
DOCUMENTED = 'def f(x):\n    """Adds one:\n    ```\n    f(3)\n    ```\n    """\n    return x + 1\n'
DOCUMENTED_AT_THE_MARGIN = 'TEXT = """\n```python\nf(3)\n```\n"""\ndef f(x):\n    return x + len(TEXT[:1])\n'
TAGGED = 'def f(x):\n    return x + len("</think>"[:1])\n'


def names_of(sources: list[str], *wanted: str, given: str = "") -> dict[str, Any]:
    """The namespace of the chosen program, run here: the programs of these tests are harmless."""
    namespace: dict[str, Any] = {}
    exec(given, namespace)
    for code in choose(sources, set(wanted) - namespace.keys(), namespace):
        exec(code, namespace)
    return namespace


@pytest.mark.parametrize(
    "text",
    [
        F,
        FENCED,
        f"Output:\n```\n4\n```\n{FENCED}",
        f"{FENCED}\nOutput:\n```\n4\n```",
        f"{FENCED}\n```output\n4\n```\n```text\nf = 3\n```\n```json\n[1]\n```",
        f"{FENCED}\nRun it:\n```bash\npython f.py\n```",
        f"{FENCED}\nFor example:\n```python\nprint(f(3))\n```",
        f"{FENCED}\n```python\nassert f(3) == 4\nresult = f(3)\n```",
        f"{FENCED}\n```python\n>>> f(3)\n4\n```",
        f"{FENCED}\n```js\nfunction f(x) {{ return 1 }}\n```",
        f"```python\n{OTHER}```\nThat is wrong. Better:\n{FENCED}",
        f"```python\n{F}``` This is the function.",
        f"```python\n{F}``` The function `f` adds one.\n\nIt is fast.",
        f"````python\n{F}````",
        f"````markdown\n{FENCED}\n````",
        f"~~~python\n{F}~~~",
        f"~~~\n{F}~~~\nbehind",
        f"``` python\n{F}```",
        f'```python title="f.py"\n{F}```',
        f"```{{.python}}\n{F}```",
        f"```PYTHON\n{F}```",
        f"```py3\n{F}```",
        f"```solution.py\n{F}```",
        f"```python\n{DOCUMENTED}```",
        f"```python\n{DOCUMENTED_AT_THE_MARGIN}```\nOutput:\n```\n4\n```",
        f"{DOCUMENTED_AT_THE_MARGIN}",
        f"```python\n{OTHER}```\n```\nit's \"\"\" here\n```\n```python\n{DOCUMENTED}```",
        f"```python\n# it's a comment with \"\"\"\n{F}```\n```\n4\n```",
        "1. First:\n\n   ```python\n   def f(x):\n       return x + 1\n   ```\n2. Then:\n   - output\n     ```\n     4\n     ```",
        "- ```python\n  def f(x):\n      return x + 1\n  ```",
        f"Here it is: ```python\n{F}```",
        FENCED.replace("\n", "\r\n"),
        f"```python\n{F}",
        f"{FENCED}\n```python\n",
        f"```python\n{F}\nNow with a test:\n```python\nprint(f(3))\n```\n{FENCED}",
        f"{FENCED}\nTests:\n```python\nfrom solution import f\nassert f(3) == 4\n```",
        f"````\n{FENCED}\n````",
        f"```\n```python\n{F}```",
        f"{F}```",
        f"{F}```\nIt adds one.\n```\n4\n```",
        f"```python\n{F.rstrip()}```",
        f"\ufeff{F}",
        f"<answer>\n{FENCED}\n</answer>",
        f"<answer>{FENCED}</answer>",
        f"<answer>{F}</answer>",
        f"```python\n{OTHER}```\n<answer>{F}</answer>",
        f"{FENCED}\n<answer>4</answer>",
        f"<answer>```python\n{F}",
        f"<think>\n```python\n{OTHER}```\n</think>\n{FENCED}",
        f"<think>\n```python\n{OTHER}\n</think>\n{FENCED}",
        f"```python\n{OTHER}```\nno.</think>{F}",
        f"<think>a draft</think>\n```python\n{TAGGED}```",
    ],
)  # fmt: skip
def test_the_program_is_the_last_block_that_defines_what_is_used(text: str) -> None:
    assert names_of(programs(text), "f")["f"](3) == 4


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I do not know.",
        f"<think>\n{FENCED}\n</think>\nI do not know.",
        f"<think>\n{FENCED}\n",
        f"<think>\n{FENCED}\n</think>\nWell:\n<think>{FENCED}",
        f"```text\n{F}```",
        f"```output\n{F}```",
        f"```bash\n{F}```",
        f"{FENCED}\n```python\n{OTHER}```",
        f"<answer>{OTHER}</answer>",
        "```python\ndef f(x):\n    return x +\n```",
    ],
)
def test_what_is_no_program_or_a_wrong_one(text: str) -> None:
    try:
        namespace = names_of(programs(text), "f")
    except UNUSABLE:
        return
    assert "f" not in namespace or namespace["f"](3) != 4


@pytest.mark.parametrize(
    "text",
    [
        "```python\nimport math\n```\nand\n```python\ndef f(x):\n    return math.floor(x + 1)\n```",
        "```python\nfrom math import *\n```\nand\n```python\ndef f(x):\n    return floor(x + 1)\n```",
        "```python\nONE = 1\n```\n```python\ndef plus(x):\n    return x + ONE\n```\n```python\ndef f(x):\n    return plus(x)\n```",
        "```python\ndef f(x):\n    return plus(x)\n```\nThe helper:\n```python\ndef plus(x):\n    return x + 1\n```",
        f"```python\ndef plus(x):\n    return x + 1\n{OTHER}```\nBetter:\n```python\ndef f(x):\n    return plus(x)\n```",
        f"```python\n1 / 0\n```\n{FENCED}",
        "```python\nfrom operator import add\n```\n```python\ndef f(x):\n    return add(x, 1)\n```",
    ],
)  # fmt: skip
def test_blocks_that_belong_together_are_joined(text: str) -> None:
    assert names_of(programs(text), "f")["f"](3) == 4


def test_several_names_and_names_that_are_given() -> None:
    both = names_of(
        programs("```python\ndef f(x):\n    return x + 1\n```\n```python\ndef g(x):\n    return x + 2\n```"), "f", "g"
    )
    assert (both["f"](3), both["g"](3)) == (4, 5)
    given = names_of(programs(f"```python\n{F}```\n```python\nplus = 3\n```"), "f", "plus", given="plus = 1")
    assert given["f"](3) == 4 and given["plus"] == 1


def test_a_body_is_put_behind_the_signature() -> None:
    signature = "def f(x):\n    '''Adds one.'''\n"
    for text in (
        "    return x + 1",
        "return x + 1",
        "```python\n    y = x\n    return y + 1\n```\n```python\nprint(f(3))\n```",
        "x += 1\nreturn x",
    ):
        sources = programs(text)
        assert names_of(sources + bodies(signature, sources), "f")["f"](3) == 4


@pytest.mark.parametrize(
    ("command", "text", "program"),
    [
        ("perl {file}.pl", "```perl\nprint 1;\n```\n```\n1\n```", "print 1;\n"),
        ("perl {file}.pl", "```perl\nprint 1;\n```\nRun:\n```bash\nperl x.pl\n```", "print 1;\n"),
        ("perl {file}.pl", "```\nprint 1;\n```\n```output\n1\n```", "print 1;\n"),
        ("node {file}.js", "```javascript\n1\n```\n```text\n2\n```", "1\n"),
        ("/usr/bin/python3.11 {file}.py", "```python\nprint(1)\n```\n```\n1\n```", "print(1)\n"),
        ("bash {file}.sh", "```bash\necho 1\n```\n```\n1\n```", "echo 1\n"),
        ("perl {file}.pl", "print 1;", "print 1;"),
        ("perl {file}.pl", "<think>```perl\nprint 2;\n```</think><answer>print 1;</answer>", "print 1;"),
        ("perl {file}.pl", "```perl\nprint 1;\n```\n```\n\n```", "print 1;\n"),
    ],
)
def test_the_program_of_a_command(command: str, text: str, program: str) -> None:
    assert of_command(text, command) == program


PIECES = ["```", "````", "~~~", "\n", "python", "py", "bash", " ", "    ", '"""', "'''", "\\", "'", "#", "`", "- ", "f", "</think>",
          "<think>", "<answer>", "</answer>", F, "print(f(3))", "\r\n"]  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES), max_size=40).map("".join) | st.text(max_size=60)


def check_any_text(text: str) -> None:
    sources = programs(text)
    assert all(isinstance(source, str) and source.strip() for source in sources)
    for strings in (False, True):
        found = blocks(text, strings)
        assert all(a.end <= b.start for a, b in itertools.pairwise(found))
        assert all(block.text.strip() for block in found)
    try:
        pieces = choose(sources, {"f"}, {})
    except UNUSABLE:
        return
    assert pieces and all(type(piece).__name__ == "code" for piece in pieces)
    assert isinstance(of_command(text, "perl {file}.pl"), str)


@settings(max_examples=60, deadline=None)
@given(TEXTS)
def test_any_text_has_programs(text: str) -> None:
    check_any_text(text)


@pytest.mark.slow
@settings(max_examples=5000, deadline=None)
@given(TEXTS)
def test_any_of_many_texts_has_programs(text: str) -> None:
    check_any_text(text)


@pytest.mark.parametrize(
    "piece",
    [
        "```\n",
        "```python\n",
        "```python\n\\'''\n",
        '```python\n"\\"',
        "<think>\n",
        "</think>",
        "<answer>",
        " ",
        "a ```py",
    ],
)
def test_a_long_hostile_text_takes_linear_time(piece: str) -> None:
    def seconds(size: int) -> float:
        text = piece * (size // len(piece))
        started = time.process_time()
        programs(text)
        of_command(text, "perl {file}.pl")
        return time.process_time() - started

    # In quadratic time, 10 times the text would take 100 times as long. The best of several, beside other programs.
    assert min(seconds(100_000) for _ in range(3)) < 30 * max(seconds(10_000), 0.01)
