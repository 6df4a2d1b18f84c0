"""Finding boxed answers: `\\boxed{7}`, `\\fbox{7}`, `\\boxed 7`."""

from __future__ import annotations

import re

_BRACES = re.compile(r"\\(?:boxed|fbox|framebox(?:\[[^\]{}]{0,40}\]){0,2})\s{0,8}\{|\\.|[{}]", re.DOTALL)
_BARE = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z{])\s{0,8}(?!\s|\{)")
_PART = re.compile(r"\\[a-zA-Z]+|\\[()\[\]]|\\.|.", re.DOTALL)

LONGEST_BARE = 200
"""Maximum characters of a boxed answer without braces."""


def last_boxed(text: str) -> str | None:
    """Content of the last `\\boxed{…}` whose braces balance; of `\\boxed 7`, what stands before the next space."""
    if "box" not in text:
        return None
    stack: list[int] = []
    best: tuple[int, int] | None = None
    for match in _BRACES.finditer(text):
        token = match.group()
        if token == "{" or (len(token) > 2 and token[-1] == "{"):
            stack.append(-1 if token == "{" else match.end())
        elif token == "}" and stack:
            start = stack.pop()
            if start >= 0 and (best is None or start > best[0]):
                best = (start, match.start())
    last = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    bare = _BARE.match(text, last) if last >= 0 else None
    content = _bare_content(text[bare.end() : bare.end() + LONGEST_BARE]) if bare else None
    if content and (best is None or last > best[1]):
        return content
    return None if best is None else text[best[0] : best[1]]


def balanced(text: str) -> bool:
    depth = 0
    for match in _BRACES.finditer(text):
        token = match.group()
        depth += -1 if token == "}" else token[-1] == "{" and token != "\\{"
        if depth < 0:
            return False
    return depth == 0


def _bare_content(text: str) -> str | None:
    depth = end = 0
    for match in _PART.finditer(text):
        token = match.group()
        if depth == 0 and (token.isspace() or token in ("$", "\\)", "\\]", "<")):
            break
        depth += {"{": 1, "}": -1}.get(token, 0)
        if depth < 0:
            return None
        end = match.end()
    return text[:end].rstrip(".,;:*") if depth == 0 else None
