"""One spelling for each formula: Unicode signs as LaTeX, and LaTeX as a list of tokens without what only spaces it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

from cohort.rewards.answers.environments import ROW, unified

_SIGNS = """
    × \\times | · \\cdot | ⋅ \\cdot | ∙ \\cdot | ÷ \\div | ≤ \\le | ⩽ \\le | ≦ \\le | ≥ \\ge | ⩾ \\ge | ≧ \\ge
    ≠ \\ne | ≈ \\approx | ± \\pm | ∓ \\mp | ∈ \\in | ∉ \\notin | ⊂ \\subset | ⊆ \\subseteq | ⊇ \\supseteq
    ∪ \\cup | ∩ \\cap | ∅ \\emptyset | ∞ \\infty | → \\to | ⇒ \\Rightarrow | ⇔ \\Leftrightarrow | ∀ \\forall
    ∃ \\exists | … \\ldots | ⋯ \\ldots | ∑ \\sum | ∏ \\prod | ∫ \\int | ∂ \\partial | ℝ \\mathbb{R}
    ℤ \\mathbb{Z} | ℚ \\mathbb{Q} | ℕ \\mathbb{N} | ℂ \\mathbb{C} | ⟨ \\langle | ⟩ \\rangle | ⌊ \\lfloor
    ⌋ \\rfloor | ⌈ \\lceil | ⌉ \\rceil | ∖ \\setminus | ∧ \\wedge | ∨ \\vee | ¬ \\neg | ≡ \\equiv | ∥ \\parallel
    ⊥ \\perp | ∠ \\angle | △ \\triangle | α \\alpha | β \\beta | γ \\gamma | δ \\delta | ε \\epsilon | θ \\theta
    λ \\lambda | μ \\mu | π \\pi | ρ \\rho | σ \\sigma | τ \\tau | φ \\phi | ω \\omega | Δ \\Delta | Γ \\Gamma
    Θ \\Theta | Λ \\Lambda | Π \\Pi | Σ \\Sigma | Φ \\Phi | Ω \\Omega
"""
_PAIRS = [pair.split() for line in _SIGNS.split("\n") for pair in line.split("|") if pair.strip()]
_TO_LATEX = str.maketrans(
    {sign: command + " " for sign, command in _PAIRS} | {"−": "-", "–": "-", "′": "'", "″": "''", "∣": "|"}
)
_ROOT = re.compile(r"([√∛∜])\s*(?:\(([^()]*)\)|\{([^{}]*)\}|(\d+(?:\.\d+)?|[^\W\d_]))")
_DEGREES = {"√": "", "∛": "[3]", "∜": "[4]"}
_POWERS = re.compile("[⁻⁺]?[⁰¹²³⁴-⁹]+")
_INDICES = re.compile("[₋₊]?[₀-₉]+")
_VULGAR = re.compile("(\\^?)([\u00bc-\u00be\u2150-\u215e])")

_TOKEN = re.compile(
    r"\\(?P<edge>begin|end)\s*\{\s*(?P<name>[a-zA-Z]+\*?)\s*\}"
    r"|(?P<row>\\\\\*?(?:\s*\[\s*-?[\d.]+\s*(?:pt|em|ex|mm|cm|in|mu)\s*\])?|\\(?:cr|tabularnewline)(?![a-zA-Z]))"
    r"|\\(?P<command>[a-zA-Z]+)|\\.|\d+(?:\.\d+)?|\.\d+|[^\W\d_]+|\S",
    re.DOTALL,
)
_SYNONYMS = """
    frac dfrac tfrac cfrac | binom dbinom tbinom | le leq leqslant leqq | ge geq geqslant geqq | ne neq | to rightarrow
    ldots dots cdots dotsc dotsb dotsm | Rightarrow implies Longrightarrow | Leftrightarrow iff | wedge land | vee lor
    neg lnot | emptyset varnothing | setminus smallsetminus backslash | in isin | overline bar | cdot ast
"""
_SAME = {
    "\\" + other: "\\" + names.split()[0]
    for line in _SYNONYMS.split("\n")
    for names in line.split("|")
    for other in names.split()[1:]
}
_SAME |= {"\\lt": "<", "\\gt": ">", "\\lbrace": "\\{", "\\rbrace": "\\}", "\\lbrack": "[", "\\rbrack": "]"}
_SAME |= {"\\vert": "|", "\\lvert": "|", "\\rvert": "|", "\\mid": "|", "\\lVert": "\\|", "\\rVert": "\\|"}
_SAME |= {"\\Vert": "\\|", "\\colon": ":", "\\prime": "'", "*": "\\cdot", "\\%": "%", "\\$": "$"}
_SPACERS = """
    left right middle displaystyle textstyle scriptstyle limits nolimits big Big bigg Bigg bigl bigr Bigl Bigr biggl
    biggr Biggl Biggr quad qquad enspace thinspace medspace thickspace nonumber notag hline rm bf it sf tt mathrm mathit
    mathbf boldsymbol operatorname
"""
_UNSEEN = {"\\" + name for name in _SPACERS.split()} | {"\\!", "\\,", "\\;", "\\:", "\\>", "\\ ", "~"}
_ARGUMENTS = {"\\frac": 2, "\\binom": 2, "\\sqrt": 1, "\\mathbb": 1, "\\overline": 1, "\\vec": 1, "^": 1, "_": 1}


def as_latex(text: str) -> str:
    """Rewrites Unicode signs as LaTeX: `√2 ≤ x²` -> `\\sqrt{2} \\le x^{2}`."""
    if text.isascii():
        return text
    text = _ROOT.sub(lambda m: f"\\sqrt{_DEGREES[m[1]]}{{{m[2] or m[3] or m[4] or ''}}}", text)
    text = _POWERS.sub(lambda match: f"^{{{_ascii(match.group())}}}", text)
    text = _INDICES.sub(lambda match: f"_{{{_ascii(match.group())}}}", text)
    text = _VULGAR.sub(_fraction, text)
    return text.translate(_TO_LATEX)


def tokens(text: str) -> list[str]:
    """The tokens of a formula in one spelling, so that equal lists are the same formula."""
    return unified(_braced(_single(as_latex(text))))


def spelled(parts: Sequence[str]) -> str:
    """The text of tokens, with a space only where two words or numbers would become one."""
    pieces: list[str] = []
    for part in parts:
        if pieces and part[0].isalnum() and pieces[-1][-1].isalnum():
            pieces.append(" ")
        pieces.append(part)
    return "".join(pieces)


def _fraction(match: re.Match[str]) -> str:
    top, _, bottom = _ascii(match[2]).partition("\u2044")
    fraction = f"\\frac{{{top}}}{{{bottom}}}"
    return f"^{{{fraction}}}" if match[1] else fraction


def _ascii(text: str) -> str:
    return unicodedata.normalize("NFKC", text).replace("\u2212", "-")


def _single(text: str) -> Iterator[str]:
    """The tokens with synonyms replaced and spacing left out."""
    for match in _TOKEN.finditer(text):
        token = match.group()
        if match["edge"]:
            yield f"\\{match['edge']}{{{match['name'].rstrip('*')}}}"
        elif match["row"]:
            yield ROW
        elif token not in _UNSEEN:
            yield _SAME.get(token, token)


def _braced(parts: Iterator[str]) -> list[str]:
    """Braces around arguments of one letter, digit or command: `\\frac12` -> `\\frac{1}{2}`, `x^2` -> `x^{2}`."""
    result: list[str] = []
    stack: list[int] = []
    wanted, optional = 0, False
    for part in parts:
        if part in ("{", "}"):
            if part == "{":
                stack.append(max(0, wanted - 1))
                wanted = 0
            else:
                wanted = stack.pop() if stack else 0
            result.append(part)
        elif optional or (wanted and part == "["):
            optional = part != "]"
            result.append(part)
        elif wanted and (part.isalnum() and len(part) in (1, wanted)):
            for character in part:
                result += ("{", character, "}")
            wanted -= len(part)
        elif wanted and part[0] == "\\" and part[1:].isalpha() and part not in _ARGUMENTS:
            result += ("{", part, "}")
            wanted -= 1
        else:
            result.append(part)
            wanted = _ARGUMENTS.get(part, 0)
    return result
