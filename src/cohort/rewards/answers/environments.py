"""Matrices, cases and aligned lines: one spelling for each kind, and the cells that they consist of."""

from __future__ import annotations

from collections.abc import Sequence

ROW, COLUMN = "\\\\", "&"

_KINDS = """
    matrix pmatrix bmatrix smallmatrix psmallmatrix bsmallmatrix array | vmatrix | Vmatrix | Bmatrix
    cases dcases rcases | aligned align alignat alignedat gathered gather split eqnarray equation multline
"""
_KIND = {name: names.split()[0] for line in _KINDS.split("\n") for names in line.split("|") for name in names.split()}
_WITH_COLUMNS = ("array", "alignat", "alignedat")
_BARE = ("matrix", "smallmatrix", "array")
_ENCLOSED = {
    ("(", ")"): "matrix",
    ("[", "]"): "matrix",
    ("|", "|"): "vmatrix",
    ("\\|", "\\|"): "Vmatrix",
    ("\\{", "\\}"): "Bmatrix",
    ("\\{", "."): "cases",
}


def unified(parts: list[str]) -> list[str]:
    """The tokens with environments named by what they mean, and without what only places their cells.

    A matrix in parentheses, brackets or neither is `matrix`, in bars `vmatrix`; an array after a brace is `cases`.
    """
    ends = _ends(parts)
    if not ends:
        return parts
    result: list[str] = []
    kinds: dict[int, str] = {}
    inside: list[str] = []
    i = 0
    while i < len(parts):
        part = parts[i]
        if i in ends:
            name, end = _name(part), ends[i]
            kind = _KIND.get(name, name)
            pair = (result[-1] if result else "", parts[end + 1] if end + 1 < len(parts) else "")
            if name in _BARE and (pair in _ENCLOSED or pair[0] == "\\{"):
                kind = _ENCLOSED.get(pair, "cases")
                result.pop()
                if pair in _ENCLOSED:
                    parts[end + 1] = ""
            kinds[end] = kind
            inside.append(kind)
            result.append(f"\\begin{{{kind}}}")
            i = _after_columns(parts, i + 1) if name in _WITH_COLUMNS else i
        elif i in kinds:
            while result[-1] == ROW:
                result.pop()
            result.append(f"\\end{{{kinds[i]}}}")
            inside.pop()
        elif part and not (part == COLUMN and inside and inside[-1] == "aligned"):
            result.append(part)
        i += 1
    return result


def cells(parts: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """The tokens that separate rows, cells and environments, and the pieces between them."""
    edges: list[str] = []
    pieces: list[list[str]] = [[]]
    for part in parts:
        if part in (ROW, COLUMN) or part.startswith(("\\begin{", "\\end{")):
            edges.append(part)
            pieces.append([])
        else:
            pieces[-1].append(part)
    return edges, [_bare_condition(piece) if "\\begin{cases}" in edges else piece for piece in pieces]


def _bare_condition(piece: list[str]) -> list[str]:
    """A cell of `cases` without what only joins it to the next: `x,` -> `x`, `if x > 0` -> `x > 0`."""
    while piece and piece[-1] in (",", ";", "."):
        piece = piece[:-1]
    while piece and piece[0].casefold() in ("if", "for", "when", "where", ","):
        piece = piece[1:]
    return piece


def _ends(parts: Sequence[str]) -> dict[int, int]:
    """The position of each `\\begin{…}` that has an `\\end{…}` -> the position of that end."""
    ends: dict[int, int] = {}
    open_: list[int] = []
    for i, part in enumerate(parts):
        if part.startswith("\\begin{"):
            open_.append(i)
        elif part.startswith("\\end{") and open_ and _name(parts[open_[-1]]) == _name(part):
            ends[open_.pop()] = i
    return ends


def _name(part: str) -> str:
    return part[part.find("{") + 1 : -1]


def _after_columns(parts: Sequence[str], i: int) -> int:
    """The position of the last token of the column specification that starts at i; i - 1 if none starts there."""
    if i < len(parts) and parts[i] == "[" and "]" in parts[i : i + 4]:
        i = parts.index("]", i) + 1
    if i >= len(parts) or parts[i] != "{":
        return i - 1
    depth = 0
    for j in range(i, len(parts)):
        depth += {"{": 1, "}": -1}.get(parts[j], 0)
        if depth == 0:
            return j
    return len(parts) - 1
