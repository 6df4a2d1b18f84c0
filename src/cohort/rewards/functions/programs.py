"""Which texts of a completion may be its program, found without running or compiling any: one pass over the text.

`sandbox/choose.py` takes the one that defines what the tests use.
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass

from cohort.rewards.answers.extract import last_tagged
from cohort.texts import MARKS

MOST = 2_000_000
"""Maximum characters of all candidates of a completion: a message to the sandbox has a limit in bytes."""
BODIES = 4
"""Candidates that are tried as the body of the prompt's function."""
UNENDED = 4
"""Strings without an end that are searched for; later fences end a block also inside of strings."""

PYTHON = frozenset({"", "python", "python3", "py", "py3", "ipython", "ipython3"})
SHELL = frozenset({"bash", "sh", "shell", "zsh", "console", "terminal", "shellsession", "powershell", "cmd", "bat"})
NO_PROGRAM = SHELL | {
    *("output", "out", "stdout", "stderr", "result", "results", "input", "stdin", "traceback", "error", "log", "logs"),
    *("text", "txt", "plaintext", "plain", "json", "jsonl", "yaml", "yml", "toml", "ini", "xml", "html", "css", "csv"),
    *("diff", "patch", "latex", "tex", "math", "mermaid", "pycon", "doctest", "none", "nohighlight"),
}
"""Language tags of blocks that are no program."""
MARKDOWN = frozenset({"markdown", "md"})
LANGUAGES = {
    "perl": ("pl",),
    "node": ("javascript", "js", "mjs"),
    "deno": ("typescript", "ts", "javascript", "js"),
    "bun": ("typescript", "ts", "javascript", "js"),
    "ruby": ("rb",),
    "python": tuple(PYTHON - {""}),
    "pypy": tuple(PYTHON - {""}),
    "rscript": ("r",),
    "bash": tuple(SHELL),
    "sh": tuple(SHELL),
    "zsh": tuple(SHELL),
    "runghc": ("haskell", "hs"),
    "runhaskell": ("haskell", "hs"),
    "julia": ("jl",),
    "tcc": ("c",),
    "guile": ("scheme", "scm"),
    "sbcl": ("lisp", "commonlisp", "common-lisp"),
    "pwsh": ("powershell", "ps1"),
}
"""An interpreter -> the tags of its language, beside its own name and its file's extension."""
KNOWN = PYTHON | NO_PROGRAM | MARKDOWN | {name for key, names in LANGUAGES.items() for name in (key, *names)} - {""}

_FENCE = (
    r"^(?P<lead>[ \t]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]+|<[A-Za-z_]{1,20}>[ \t]*)?"
    # A block may begin behind words on the same line, if its language is named.
    r"|[^`\n]*[^`\w\n](?=```(?:python3?|py)[ \t]*$))"
    r"(?P<run>`{3,}|~{3,})(?P<info>[^\n]*)$"
)
_OUTSIDE = re.compile(_FENCE, re.MULTILINE)
_INSIDE = re.compile(
    _FENCE
    + r"|\#[^\n]*"
    + r"|(?P<quote>\"\"\"|''')"
    + r"|\"[^\"\\\n]*(?:\\[^\n][^\"\\\n]*)*\"?"
    + r"|'[^'\\\n]*(?:\\[^\n][^'\\\n]*)*'?",
    re.MULTILINE,
)
"""Fences, and what hides them in Python: comments and strings."""
_ENDS = {
    quote: re.compile(rf"[^\\{quote[0]}]*(?:(?:\\.|{quote[0]}(?!{quote[1:]}))[^\\{quote[0]}]*)*{quote}", re.DOTALL)
    for quote in ('"""', "'''")
}
_TAG = re.compile(r"\s*\{?\s*\.?([\w+#-]*)")
_RETURNS = re.compile(r"\b(?:return|yield)\b")
_THOUGHT = re.compile(rf"^[ \t]*(?:{'|'.join(re.escape(opening) for opening, _ in MARKS)})", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block: Block("python", "x = 1\\n", 10, 28), with the places of its fences in the text."""

    tag: str
    text: str
    start: int
    end: int


def blocks(text: str, strings: bool = False) -> list[Block]:
    """The fenced blocks that are not empty, closed or not, in order.

    A fence ends a block if it is as long as the block's first, alone or before words; before the name of a language it
    begins the next block. strings: a fence inside a string of Python does not count.
    """
    found: list[Block] = []
    opened: tuple[str, int, str, int] | None = None
    unended, at = 0, 0
    while True:
        lexed = strings and opened is not None and opened[2] in PYTHON and unended < UNENDED
        match = (_INSIDE if lexed else _OUTSIDE).search(text, at)
        if match is None:
            break
        at = match.end()
        if lexed and match["quote"]:
            end = _ENDS[match["quote"]].match(text, at)
            at, unended = (at, unended + 1) if end is None else (end.end(), unended)
        if match["run"] is None:
            continue
        tag = _opens(match, opened)
        if opened is not None and (tag is not None or _closes(match, opened[0])):
            found.append(_block(text, opened, match.start()))
            opened = None
        # A fence without a tag right before one with a tag is around it, or ends a block that the prompt began.
        if opened is None and tag == "" and (inner := _OUTSIDE.match(text, match.end() + 1)) and inner["info"].strip():
            continue
        if opened is None and tag is not None:
            lead = match["lead"]
            # In a list item, the block is indented by the item's marker; behind other text, not at all.
            indent = len(lead) if not lead.strip(" \t-*+.)0123456789") else len(lead) - len(lead.lstrip())
            opened = (match["run"], indent, tag, match.end() + 1)
    if opened is not None:
        found.append(_block(text, opened, len(text.rstrip().removesuffix(opened[0]))))
    return [block for block in found if block.text.strip()]


def _opens(match: re.Match[str], opened: tuple[str, int, str, int] | None) -> str | None:
    """The tag of the block that a fence begins; None if it begins none."""
    info = match["info"]
    language = _TAG.match(info)
    tag = language[1].lower() if language else ""
    if (match["run"][0] == "`" and "`" in info) or tag in MARKDOWN:
        return None
    if opened is None:
        return tag
    named = tag in KNOWN and (not info[:1].isspace() or info.strip().lower() == tag)
    return tag if tag and named and _same_fence(match, opened[0]) else None


def _closes(match: re.Match[str], run: str) -> bool:
    info = match["info"]
    return _same_fence(match, run) and ("`" not in info or info[:1].isspace())


def _same_fence(match: re.Match[str], run: str) -> bool:
    return bool(match["run"].startswith(run) and not match["lead"].strip())


def _block(text: str, opened: tuple[str, int, str, int], end: int) -> Block:
    _, indent, tag, start = opened
    lines = text[start:end].split("\n")
    if indent:
        lines = [line[min(indent, len(line) - len(line.lstrip(" \t"))) :] for line in lines]
    return Block(tag, "\n".join(lines), start, end)


def programs(completion: str) -> list[str]:
    """The texts that may be the completion's Python program, the last first.

    They are the fenced blocks of Python and of unknown languages, the content of `<answer>`, the whole text, and the
    text before the first fence. Only what follows the thoughts counts, except a block whose own text has their mark.
    """
    text = _lines(completion)
    said, cuts = _said(text)
    answer = _answer(said)
    spanning = [block for block in _both(text) if any(block.start <= cut < block.end for cut in cuts)] if cuts else []
    inside, around = [] if answer == said else _sources(_both(answer)), _sources([*_both(said), *spanning])
    # An answer without blocks comes before the blocks around it.
    sources = dict.fromkeys([*inside, *([] if answer == said else [answer]), *around, said, _before_fences(said), text])
    return _within(MOST, [source for source in sources if source.strip()])


def _before_fences(said: str) -> str:
    """The text up to its first fence: the program where the prompt begins the block."""
    first = _OUTSIDE.search(said)
    return said if first is None else said[: first.start()]


def _lines(text: str) -> str:
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _said(text: str) -> tuple[str, list[int]]:
    """What follows the last thoughts that end, up to thoughts that do not, and where the text was cut."""
    start, mark = max((text.rfind(closing), closing) for _, closing in MARKS)
    cuts = [start] if start >= 0 else []
    start = start + len(mark) if cuts else 0
    if unfinished := _THOUGHT.search(text, start):
        return text[start : unfinished.start()], [*cuts, unfinished.start()]
    return text[start:], cuts


def _answer(said: str) -> str:
    """The content of the last complete `<answer>`, else what follows the last one, else the text."""
    return last_tagged(said, "answer") or said.rpartition("<answer>")[2].partition("</answer>")[0]


def _sources(found: list[Block]) -> list[str]:
    return [block.text for block in found if block.tag not in NO_PROGRAM]


def _both(text: str) -> list[Block]:
    """The blocks with regard to strings of Python, and without; the last first."""
    if "```" not in text and "~~~" not in text:
        return []
    return sorted([*blocks(text, strings=True), *blocks(text)], key=lambda block: -block.start)


def _within(most: int, sources: list[str]) -> list[str]:
    for i, source in enumerate(sources):
        most -= len(source)
        if most < 0:
            return sources[:i]
    return sources


def bodies(signature: str, sources: list[str]) -> list[str]:
    """The candidates as the body of the prompt's last function, those that return something first: unchanged, with
    the first line indented, fully indented."""
    head = signature.rstrip() + "\n"
    returning = [source for source in sources if _RETURNS.search(source)]
    last = list(dict.fromkeys([*returning[:BODIES], *sources[:1]]))
    return [
        head + body
        for source in last
        for body in (source, "    " + source.lstrip(), "\n".join("    " + line for line in source.split("\n")))
    ]


def of_command(completion: str, command: str) -> str:
    """The program of a completion for a command such as `perl {file}.pl`.

    It is the last block with a tag of the command's language, else the last block that is not of output, text or
    another shell, else the whole text.
    """
    words = shlex.split(command)
    name = os.path.basename(words[0]).lower() if words else ""
    bare = re.sub(r"[\d.]+$", "", name)
    extensions = {os.path.splitext(word)[1][1:].lower() for word in words if "{file}" in word} - {""}
    named = {name, bare, *LANGUAGES.get(bare, ()), *extensions}
    said, _ = _said(_lines(completion))
    answer = _answer(said)
    found = blocks(answer) or ([] if "<answer>" in said and answer.strip() else blocks(said))
    own = [block.text for block in found if block.tag in named]
    other = [block.text for block in found if block.tag not in NO_PROGRAM]
    return (own or other or [answer if answer.strip() else said])[-1]
