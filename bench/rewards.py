"""Time of the built-in reward functions on hostile completions.

    python bench/rewards.py

Each text reward scores texts of one megabyte that are built to be slow to search; the table gives its worst time for
one of them, in processor seconds. Then math-verify parses LaTeX on which it does not terminate: it runs in a separate
process, which is stopped at the time limit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from cohort.rewards import BUILTIN
from cohort.rewards.answers import verify
from cohort.rewards.functions.judge import parsed_score

SIZE = 1_000_000
"""Bytes of a text in UTF-8."""
TEXT_REWARDS = [name for name in BUILTIN if name not in ("overlong", "reasoning_gym", "unit_tests")]
PIECES = [
    "<answer>",
    "</answer>",
    "<answer></answer>",
    "<think>",
    "</think>",
    "<reasoning>",
    "</reasoning>\n<answer>\n\\boxed{A}\n",
    "<reasoning>\n</reasoning>\n<answer>\n\\boxed{A}\n</answer>\n",
    "\\boxed{",
    "\\boxed" + " " * 9,
    "{",
    "{}",
    "}",
    "\\",
    " ",
    "\n",
    "\r\n",
    "A ",
    "A",
    "1",
    "1,",
    "000,",
    "1/",
    "- ",
    "1e",
    "\\frac{",
    "no ",
    "row row ",
    "no repeat",
    "a b c d ",
    "the ",
    "é",
    "行",
    "１",
    "e\u0301",
    "\u202f1",
    "<",
    "$",
    "*",
    "the answer is ",
    "分之",
    "五分之",
]
HOSTILE = [
    "9^{9^{9^9}}",
    "9^9^9^9^9",
    "\\frac{1}{9^{9^9}}",
    "10^{10^{10}}!",
    "\\sum_{i=1}^{10^9} \\sin(i)",
    "\\int_0^1 x^{x^{x^{x}}} dx",
    "(x+1)^{10000}",
    "\\prod_{i=1}^{10^8} (x+i)",
    "\\sqrt{" * 300 + "2" + "}" * 300,
    "\\frac{1}{" * 150 + "x" + "}" * 150,
    "(" * 500 + "1" + ")" * 500,
    "\\{" + ",".join(map(str, range(390))) + "\\}",
    "+".join(["x^2"] * 390),
    "\\begin{pmatrix}" + "1&" * 600 + "1\\end{pmatrix}",
]


def texts() -> Iterator[tuple[str, str]]:
    """(description, text of SIZE bytes), without tags and inside the tags that reward functions read."""
    for piece in PIECES:
        body = piece * (SIZE // len(piece.encode()))
        yield f"{piece!r} repeated", body
        for tag in ("answer", "reasoning", "think"):
            yield f"{piece!r} repeated in <{tag}>", f"<{tag}>{body}</{tag}>"


def seconds(function: Callable[..., Any], *arguments: Any, **named: Any) -> float:
    start = time.process_time()
    function(*arguments, **named)
    return time.process_time() - start


def text_table() -> list[str]:
    worst = dict.fromkeys([*TEXT_REWARDS, "judge (reading a reply)"], (0.0, ""))
    for what, text in texts():
        for name in TEXT_REWARDS:
            took = seconds(BUILTIN[name], completions=[text], steps=[[text]], prompts=["7+5="], answer=["A"])
            worst[name] = max(worst[name], (took, what))
        took = seconds(parsed_score, text.replace("answer", "score:"), 0, 10)
        worst["judge (reading a reply)"] = max(worst["judge (reading a reply)"], (took, what))
    rows = [f"| `{name}` | {1000 * took:.0f} ms | {what.replace('|', '')} |" for name, (took, what) in worst.items()]
    return ["| reward | worst of one megabyte | on |", "|---|---|---|", *rows]


def verify_table() -> list[str]:
    verify.equal("x+1", "1+x")
    rows = []
    for latex in HOSTILE:
        start = time.monotonic()
        same = verify.equal(latex, "x+3")
        took = time.monotonic() - start
        shown = latex if len(latex) <= 30 else f"{latex[:12]}… ({len(latex)} characters)"
        ended = "cut off" if took >= verify.SECONDS else "equal" if same else "not equal"
        rows.append(f"| `{shown}` | {took:.2f} s | {ended} |")
    return ["| against `x+3` | time | |", "|---|---|---|", *rows]


def main() -> None:
    print("\n".join([*text_table(), "", *verify_table()]))


if __name__ == "__main__":
    main()
