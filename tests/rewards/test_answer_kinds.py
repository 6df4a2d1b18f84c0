"""Answers by kind of notation: which are equal and which are not."""

from __future__ import annotations

import pytest

from cohort.rewards.answers.extract import equal

SAME = {
    "Unicode signs": r"""
        √2  ##  \sqrt{2}
        2√3  ##  2\sqrt{3}
        √(x+1)  ##  \sqrt{x+1}
        ∛8  ##  2
        \frac{√2}{2}  ##  \frac{\sqrt{2}}{2}
        x₁  ##  x_1
        x \equiv 3 \pmod 5  ##  x ≡ 3 (\bmod 5)
        \pm 3  ##  ±3
        ∛2/2  ##  \frac{\sqrt[3]{2}}{2}
        x^½  ##  \sqrt{x}
        ½x  ##  \frac{x}{2}
        x⁻¹  ##  \frac{1}{x}
    """,
    "bases": r"""
        110_2  ##  110_{2}
        110_2  ##  6_{10}
        110_{\text{two}}  ##  110_2
        110_2  ##  (110)_2
        110_2  ##  110_{(2)}
        110_2  ##  110₂
        110\text{ base }2  ##  110_2
        FF_{16}  ##  255_{10}
        2A_{16}  ##  2\text{A}_{16}
    """,
    "decimals": r"""
        .75  ##  0.75
        -.5  ##  -0.5
        $.50  ##  0.5
        \$.50  ##  0.50
    """,
    "exact numbers": r"""
        \sqrt{2}+\sqrt{3}  ##  \sqrt{5+2\sqrt{6}}
        2004!  ##  2004 \cdot 2003!
        \frac{1}{2004!}  ##  \frac{2005}{2005!}
        0.333333  ##  \frac13
        1.414214  ##  \sqrt{2}
        10^{50}  ##  10^{49} \cdot 10
        9^{9^{9}}  ##  9^{9^9}
        1\,000  ##  1000
        1+\frac{1}{e}  ##  1 + \frac{1}{\mathrm{e}}
        x=0.333333  ##  x=1/3
        \{0.333333\}  ##  \{\frac13\}
        \frac{\sqrt[3]{2}}{2}  ##  \frac{\sqrt[3]2}2
    """,
    "formulas": r"""
        \cos(\pi/7)\cos(2\pi/7)\cos(3\pi/7)  ##  1/8
        \frac{2}{3}x  ##  2x/3
        x^{2}  ##  x^2
        \dfrac{x}{2}  ##  \tfrac x2
        \displaystyle\frac{1}{2}  ##  0.5
        \left\{1,2\right\}  ##  \{1, 2\}
        x \leqslant 2  ##  x\le 2
        (3, \frac{\pi}{2})  ##  \left( 3, \frac{\pi}{2} \right)
        \text{Evelyn}  ##  Evelyn
        \text{(B)}  ##  B
        10\,000  ##  10,000
        x \in \mathbb{R}  ##  x\in\mathbb R
        \sqrt{1/n}  ##  \sqrt{1/n}
        x \equiv 3 \pmod 5  ##  x \equiv 3 \pmod{5}
        x \equiv 3 \pmod 5  ##  x\equiv3 (mod 5)
        0.1x+0.2x  ##  0.3x
        (0.5, 1)  ##  (\frac12, 1)
        \$2\sqrt{3}  ##  2\sqrt{3}
        3 \frac{1}{2}  ##  3.5
        3\tfrac{1}{2}  ##  7/2
    """,
    "matrices": r"""
        \begin{pmatrix} 1 \\ 2 \end{pmatrix}  ##  \begin{pmatrix}1\\2\end{pmatrix}
        \begin{pmatrix} 1 \\ 2 \end{pmatrix}  ##  \begin{bmatrix}1\\2\end{bmatrix}
        \begin{pmatrix} 1 \\ \frac{1}{2} \end{pmatrix}  ##  \begin{pmatrix}1\\0.5\end{pmatrix}
        \begin{pmatrix} 1 \\[2pt] 2 \\ \end{pmatrix}  ##  \begin{pmatrix}1\\2\end{pmatrix}
        \left(\begin{array}{cc} 1 & 2 \\ 3 & 4 \end{array}\right)  ##  \begin{pmatrix}1&2\\3&4\end{pmatrix}
        \left[\begin{matrix} 1 & 2 \end{matrix}\right]  ##  \begin{pmatrix}1&2\end{pmatrix}
        \begin{cases} x & x>0 \\ -x & x \le 0 \end{cases}  ##  \begin{cases}x&x>0\\-x&x\leq0\end{cases}
        \begin{aligned} x &= 1 \\ y &= 2 \end{aligned}  ##  \begin{aligned}x&=1\\y&=2\end{aligned}
        A=\begin{pmatrix}1\\2\end{pmatrix}  ##  \begin{pmatrix}1\\2\end{pmatrix}
        \begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}  ##  \left(\begin{matrix}1&2\\3&4\end{matrix}\right)
        \begin{pmatrix} \dfrac{1}{2} \\ x+1 \end{pmatrix}  ##  \begin{pmatrix}\frac12\\1+x\end{pmatrix}
        \left\{\begin{array}{l} x & x>0 \\ 0 \end{array}\right.  ##  \begin{cases}x,&\text{if }x>0\\0\end{cases}
        \begin{align*} x&=1\\ y&=2 \end{align*}  ##  \begin{aligned}x=1\\y=2\end{aligned}
        \begin{vmatrix} a & b \\ c & d \end{vmatrix}  ##  \left|\begin{array}{cc}a&b\\c&d\end{array}\right|
    """,
    "powers of ten": r"""
        3e-05  ##  0.00003
        3e-05  ##  3\times 10^{-5}
        1e20  ##  10^{20}
        1e+20  ##  100000000000000000000
        1E+20  ##  1\times10^{20}
        1.5 \times 10^{3} \text{ m}  ##  1500 m
        6.02 × 10²³  ##  6.02e23
        1.0E-7  ##  0.0000001
        4.5e+01  ##  45
    """,
    "repeating decimals": r"""
        0.\overline{3}  ##  1/3
        0.\overline{3}  ##  \frac{1}{3}
        0.\bar{3}  ##  1/3
        0.\dot3  ##  1/3
        0.\dot{1}4285\dot{7}  ##  1/7
        0.(3)  ##  1/3
        0.1(6)  ##  1/6
        0.1\overline{6}  ##  \frac16
        -0.\overline{3}  ##  -1/3
    """,
    "sequences and quantifiers": r"""
        1,2,3,\ldots  ##  1, 2, 3, \dots
        1,2,3,…  ##  1, 2, 3, ...
        \forall x>0  ##  \forall x > 0
        \forall n\in\mathbb{N}  ##  \forall n \in \mathbb N
        ∀x∈ℝ  ##  \forall x \in \mathbb{R}
    """,
    "units": r"""
        2\sqrt{3}\text{ units}  ##  2\sqrt{3}
        2\sqrt{3}\text{ units}  ##  \sqrt{12}
        2\sqrt{3}\ \mathrm{cm}  ##  2\sqrt{3}
        2\sqrt{3}~cm  ##  2\sqrt 3 \text{ centimeters}
        \frac{9\pi}{2}\text{ square units}  ##  4.5\pi
        9\pi \text{ cm}^2  ##  9\pi
        5 \mathrm{~cm}  ##  5
        5 \mathrm{~cm}  ##  5 cm
        5~\text{cm}  ##  5\,\text{cm}
        60^\circ  ##  60^{\circ}
        60°  ##  60 \text{ degrees}
        \mathbf{C}  ##  C
        5\%  ##  5 percent
        \frac{3}{4} \text{ hours}  ##  45 min
        5 cm²  ##  5 \text{ square centimeters}
        9\pi \text{ square inches}  ##  9\pi \text{ in}^2
        90\text{ mph}  ##  90 mph
        2\sqrt{3}\%  ##  2\sqrt{3}\%
        75^\circ \text{C}  ##  75°C
        5\ \text{cm}  ##  5 cm
        5 \text{cm}  ##  5\text{ cm}
    """,
}
"""Pairs of answers, one pair a line."""

DIFFERENT = {
    "bases": r"""
        110_2  ##  110_3
        110_{2}  ##  110_{16}
        192_2  ##  192_3
        110_2  ##  110
    """,
    "exact numbers": r"""
        \frac{1000001}{3000000}  ##  \frac{1000002}{3000000}
        \frac{1}{3000001}  ##  \frac{1}{3000002}
        \frac{1}{2004!}  ##  \frac{1}{2006!}
        2004!  ##  2005!
        10^{50}  ##  10^{50}+1
        10^{50}x  ##  (10^{50}+1)x
        \frac{x}{2004!}  ##  \frac{x}{2006!}
        (\frac{1}{3000001},2)  ##  (\frac{1}{3000002},2)
        \sqrt{2000001}  ##  \sqrt{2000002}
        0.0000003x  ##  0.0000004x
        e^{-40}  ##  e^{-41}
        e^{-40}  ##  0
        2^{-100}  ##  0
        2^{-100}  ##  3^{-100}
        x^{23}  ##  x^2 3
        n!  ##  n
        3!!  ##  3!
        1.000001  ##  1.000002
        1/3  ##  333333/1000000
        9^{9^{9}}  ##  9^{9^{8}}
        9^{9^9}+1  ##  9^{9^9}
        10^{100}!  ##  10^{101}!
        \frac{1}{2^{99}}  ##  \frac{1}{2^{98}}
        \frac{2^{2005}+1}{3 \cdot 2^{2006}}  ##  \frac{1}{3 \cdot 2^{2006}}
        1 - \frac{1}{\mathrm{e}}  ##  1 + \frac{1}{\mathrm{e}}
        \pm 2021  ##  2021
        2^{24}  ##  16777217.0
    """,
    "formulas": r"""
        x = 1 \pm 2  ##  x=3
        1 \pm 2  ##  3
        1\pm\sqrt{2}  ##  1+\sqrt{2}
        x \equiv 3 \pmod 5  ##  x \equiv 4 \pmod 5
        x \equiv 3 \pmod 5  ##  x \equiv 3 \pmod 7
        3 \pmod 5  ##  3 \pmod 7
        \{x | x>0\}  ##  \{x | x<0\}
        \{x \mid x>0\}  ##  \{x \mid x>1\}
        \binom{5}{2}  ##  \binom{5}{1}
        \binom{5}{2}  ##  \frac{5}{2}
        A\cup B  ##  A\cap B
        A \subset B  ##  B \subset A
        p \to q  ##  q \to p
        p \land q  ##  p \lor q
        \neg p  ##  p
        x \ne 1  ##  x = 1
        a:b  ##  b:a
        3:4  ##  4:3
        x_1  ##  x_2
        f'(x)  ##  f(x)
        y''  ##  y'
        |x|  ##  x
        \|v\|  ##  v
        \lfloor 2.5 \rfloor  ##  2.5
        \lfloor x \rfloor  ##  \lceil x \rceil
        \overline{AB}  ##  AB
        \vec{a}  ##  a
        \hat{x}  ##  x
        \bar{x}  ##  x
        \log_2 8  ##  \log_3 8
        \log_2 x  ##  \log_3 x
        \sin^{-1} x  ##  \sin x
        \infty  ##  -\infty
        \emptyset  ##  0
        \mathbb{R}  ##  \mathbb{Q}
        \mathbb{Z}  ##  Z
        1+2i  ##  1-2i
        X  ##  x^1
        \Delta  ##  \delta
        \Delta x  ##  \delta x
        12  ##  1 2
        xy  ##  x+y
        5.  ##  5.5
        10:30  ##  10:31
        \int_0^1 f  ##  \int_0^2 f
        x \in (1,2)  ##  y \in (1,2)
        x=1,y=2  ##  x=2,y=1
        (1,2),(3,4)  ##  (1,3),(2,4)
        x=1 \text{ or } x=2  ##  x=1
        x>1  ##  x \geq 1
        1<x<2  ##  1<x\le 2
        2<x<3  ##  2<y<3
        [1,2]\cup[3,4]  ##  [1,2]\cap[3,4]
        (1,2) \setminus \{1.5\}  ##  (1,2)
        \mathbb{R}\setminus\{1\}  ##  \mathbb{R}\setminus\{2\}
        3 R 2  ##  32
        n=2, 3, 4  ##  n=1, 2, 3
        D = (0, 1)  ##  D = (0, 1.5)
        19, 46, \text{ and } 82  ##  21, 36, and 82
        12:00  ##  1:00
        3x-1y+13=0  ##  3x + 4y + 14=0
        4\sqrt(2)  ##  4
        100.0  ##  100.0001
        n \text{ even}  ##  n \text{ odd}
        x \text{ is even}  ##  x
        1 \le x \le 2  ##  1 \le x
        0.333  ##  1/3
        \sqrt{3}  ##  1.732
        \frac{n(n+1)}{2}  ##  \frac{n(n-1)}{2}
        x_{110}  ##  x_{111}
        a_1 = 2  ##  a_2 = 2
        x \pmod 3  ##  x \pmod 5
        0.1x  ##  0.2x
    """,
    "matrices": r"""
        \begin{pmatrix}1\\2\end{pmatrix}  ##  \begin{pmatrix}2\\1\end{pmatrix}
        \begin{pmatrix}1&2\end{pmatrix}  ##  \begin{pmatrix}1\\2\end{pmatrix}
        \begin{vmatrix}1&2\\3&4\end{vmatrix}  ##  \begin{pmatrix}1&2\\3&4\end{pmatrix}
        \begin{cases} x & x>0 \\ -x & x \le 0 \end{cases}  ##  \begin{cases} x & x>0 \\ -x & x < 0 \end{cases}
        \begin{pmatrix} 12 \end{pmatrix}  ##  \begin{pmatrix}1&2\end{pmatrix}
        \begin{pmatrix} 1 \\ 2 \end{pmatrix}  ##  (1,2)
        \begin{pmatrix} 1 \\ 2 \end{pmatrix}  ##  12
    """,
    "powers of ten": r"""
        3\times 10^{-8}  ##  4\times 10^{-8}
        \sqrt{3}\times 10^{-8}  ##  \sqrt{2}\times 10^{-8}
        1e20  ##  1e21
    """,
    "repeating decimals": r"""
        0.\overline{3}  ##  0.\overline{36}
        0.\overline{3}  ##  0.3
        0.(3)  ##  0.3
    """,
    "sequences and quantifiers": r"""
        \forall x > 0  ##  \exists x > 0
        \forall x, x>0  ##  x>0
        1, 2, 3, \ldots  ##  1, 2, 3
        1,2,\ldots,10  ##  1,2,10
        1,2,4,\ldots  ##  1,2,3,\ldots
        1, 2, \ldots, n  ##  1, 3, 5, \ldots, 2n-1
        1:2:3:\ldots  ##  1:4:9:\ldots
        f(x) = 0  ##  \forall x>0, f(x) = 0
        \{1, 2, 3, \ldots\}  ##  \{1, 2, 3\}
        \{2, 4, 6, \ldots\}  ##  \{1, 3, 5, \ldots\}
        1 + 2 + \cdots + n  ##  1 + 2 + n
        \exists! x  ##  \exists x
    """,
    "units": r"""
        5 m^2  ##  5 m
        x^\circ  ##  x
        10\%  ##  20\%
        \sqrt{2} cm  ##  \sqrt{2} m
        9\pi cm^2  ##  9\pi cm^3
        \angle ABC  ##  \angle ACB
        2\sqrt{3} apples  ##  2\sqrt{2} apples
    """,
}
"""Pairs of answers, one pair a line."""


def pairs(text: str) -> list[tuple[str, str]]:
    return [(a.strip(), b.strip()) for a, _, b in (line.partition("  ##  ") for line in text.strip().splitlines())]


@pytest.mark.parametrize("kind", SAME)
def test_the_same_in_another_notation(kind: str) -> None:
    assert [pair for pair in pairs(SAME[kind]) if not (equal(*pair) and equal(*reversed(pair)))] == []


@pytest.mark.parametrize("kind", DIFFERENT)
def test_different_in_a_similar_notation(kind: str) -> None:
    assert [pair for pair in pairs(DIFFERENT[kind]) if equal(*pair) or equal(*reversed(pair))] == []


@pytest.mark.slow
def test_comparisons_that_take_too_long_are_not_equal() -> None:
    sums = "F_n = \\sum_{k=0}^{n-1} F_k F_{n-k-1}", "F_n = \\sum_{k=0}^{n-2} F_k F_{n-k-2}"
    assert not equal(*sums) and not equal("\\sum_{n=1}^\\infty a_n", "\\sum_{n=0}^\\infty a_n")
