"""What tests may do with the values and objects of an honest program: as in one process."""

# ruff: noqa: E501

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cohort.rewards.sandbox.layers import Limits, find_layers
from cohort.rewards.sandbox.plan import plan
from cohort.rewards.sandbox.program import Program
from cohort.rewards.sandbox.remote import Client
from cohort.rewards.sandbox.run import Verdict, run_tests
from cohort.rewards.sandbox.wire import Channel, Gone

SANDBOX = pytest.mark.skipif(not find_layers().safe, reason="no sandbox on this machine")


def judge(code: str, test: str, setup: str = "") -> Verdict:
    return run_tests([code], plan((test,), "", setup, "", "", False), False, Limits(), find_layers())


INT_ENUM = "import enum\nclass E(enum.IntEnum):\n    A = 3\n    B = 5\ndef f(): return E.B\n"
NAMED = "from collections import namedtuple\nP = namedtuple('P', 'x y')\ndef f(): return P(1, 2)\n"
STACK = "class Stack(list):\n    def push(self, x): self.append(x)\n    def peek(self): return self[-1]\n"
CACHE = """
class Cache(dict):
    def __init__(self, n):
        self.n = n
    def put(self, k, v):
        self[k] = v
        if len(self) > self.n:
            del self[next(iter(self))]
    def __missing__(self, k):
        return -1
"""
VECTOR = """
class V:
    def __init__(self, x): self.x = x
    def __add__(self, other): return V(self.x + other.x)
    def __matmul__(self, other): return self.x * other.x
    def __abs__(self): return abs(self.x)
    def __neg__(self): return V(-self.x)
    def __len__(self): return 3
    def __float__(self): return float(self.x)
    def __getitem__(self, i): return [7, 8, 9][i]
    def __bool__(self): return self.x > 0
"""
GENERATOR = "def f():\n    yield 1\n    yield 2\n"


@SANDBOX
@pytest.mark.parametrize(
    ("code", "test"),
    [
        (INT_ENUM, "assert f() > 2 and f() - 2 == 3 and 7 - f() == 2 and -f() == -5 and f() // 2 == 2 and 2 ** f() == 32"),
        (INT_ENUM, "assert isinstance(f(), int) and isinstance(f(), E) and round(f()) == 5 and f'{f():03d}' == '005'"),
        (INT_ENUM, "assert list(range(f()))[-1] == 4 and 'abcdef'[f()] == 'f' and {E.A: 1}[3] == 1 and {f()} == {5}"),
        (INT_ENUM, "assert f().name == 'B' and f() is E.B and E(3) == E.A and sorted([E.B, E.A]) == [3, 5]"),
        (INT_ENUM, "import copy, json, math\nassert copy.deepcopy(f()) == 5 and json.dumps([f()]) == '[5]' and math.sqrt(f() - 1) == 2"),
        ("import enum\nclass C(enum.Enum):\n    RED = 1\ndef f(): return C.RED", "assert f() == C.RED and f() is C.RED and f().value == 1 and f() != 1"),
        ("class S(str):\n    def twice(self): return self * 2\ndef f(): return S('red')",
         "assert f() == 'red' and f().upper() == 'RED' and f() + '!' == 'red!' and 're' in f() and ','.join([f(), 'x']) == 'red,x' and f().twice() == 'redred'"),
        (NAMED, "p = f()\nassert p == (1, 2) == P(1, 2) and p.x == 1 and p[1] == 2 and p + (3,) == (1, 2, 3) and str(p) == 'P(x=1, y=2)'"),
        (NAMED, "assert f()._asdict() == {'x': 1, 'y': 2} and min([P(2, 1), P(1, 3)]).y == 3 and f()._replace(x=5).x == 5"),
        ("class T(tuple):\n    def area(self): return self[0] * self[1]\ndef f(): return [T((2, 3))], {'k': T((1, 1))}",
         "assert f()[0][0].area() == 6 and f()[1]['k'] == (1, 1) and f() == ([(2, 3)], {'k': (1, 1)})"),
        (STACK, "s = Stack()\ns.push(3)\nassert s == [3] and len(s) == 1\ns.append(4)\nassert s == [3, 4] and s.peek() == 4 and s.pop() == 4 and s == [3]"),
        (STACK, "s = Stack([3])\ns[0] = 9\ns.extend([1, 2])\ns.sort()\nassert s == [1, 2, 9] and 2 in s and s[::-1] == [9, 2, 1] and s + [1] == [1, 2, 9, 1]"),
        (STACK, "s = Stack([1, 2, 9])\ndel s[0]\nassert s == [2, 9] and max(s) == 9 and sum(s) == 11 and isinstance(s, list)\ns += [4]\nassert s == [2, 9, 4]"),
        (CACHE, "c = Cache(2)\nc.put(1, 1); c.put(2, 2); c.put(3, 3)\nassert c == {2: 2, 3: 3} and c[1] == -1 and c.n == 2 and 2 in c and c.get(9) is None"),
        (CACHE, "c = Cache(2)\nc.update({7: 8})\nassert c[7] == 8 and list(c.items()) == [(7, 8)]\nc.n = 5\nassert c.n == 5"),
        ("import collections\nclass B(collections.Counter): pass\ndef f(s): return B(s)",
         "assert f('aab')['a'] == 2 and f('aab').most_common(1) == [('a', 2)] and f('aab')['z'] == 0 and f('aab') == {'a': 2, 'b': 1}"),
        ("class Set(set): pass\ndef f(): return Set([1, 2])",
         "x = f()\nx.add(3)\nassert x == {1, 2, 3} and x | {4} == {1, 2, 3, 4} and x - {1} == {2, 3} and x >= {1} and x.issuperset([2])"),
        ("class Money(float):\n    def __str__(self): return f'${float(self):.2f}'\ndef f(): return Money(3.5)",
         "assert str(f()) == '$3.50' and abs(f() - 3.5) < 1e-9 and f() * 2 == 7 and round(f()) == 4 and 1 < f() < 4 and sum([f(), f()]) == 7"),
        ("class I(int): pass\ndef f(x): return I(x)", "assert f(f(3)) == 3 and f(True) + 1 == 2 and f(0) == 0 and not f(0)"),
        (VECTOR, "v = V(4)\nassert (v + V(1)).x == 5 and v @ V(2) == 8 and abs(-v) == 4 and len(v) == 3 and float(v) == 4.0 and v[1] == 8"),
        (VECTOR, "v = V(4)\nassert v and not V(-1) and list(v) == [7, 8, 9] and 8 in v and isinstance(v, V) and v == v != V(4)\nv.x = 10\nassert v.x == abs(v) == 10"),
        ("class C:\n    n = 0\n    def up(self):\n        self.n += 1\n        return self", "c = C()\nassert c.n == 0\nc.up().up()\nassert c.n == 2"),
        (GENERATOR, "x = f()\nassert next(x) == 1 and next(x) == 2 and next(x, 'end') == 'end'\nassert list(zip(f(), f())) == [(1, 1), (2, 2)]"),
        ("import dataclasses\n@dataclasses.dataclass\nclass P:\n    x: int\n    y: int = 2\ndef f(): return P(3)", "assert (f().x, f().y) == (3, 2) and 'x=3' in repr(f())"),
        ("class Node:\n    def __init__(self, v, n=None): self.v, self.next = v, n",
         "a = Node(1, Node(2))\nassert a.next.v == 2 and a.next.next is None\nb = Node(3)\nb.next = a\nassert b.next.next.v == 2 and b.next is a"),
        ("import datetime\nfrom fractions import Fraction\ndef f(): return datetime.date(2020, 1, 2), Fraction(1, 3)",
         "import datetime\nassert f()[0] - datetime.date(2020, 1, 1) == datetime.timedelta(1) and f()[1] + 1 > 1.3 and abs(f()[1] - 1 / 3) < 1e-9"),
        ("def f(g): return sorted([3, 1, 2], key=g)", "assert f(lambda x: -x) == [3, 2, 1]"),
    ],
)  # fmt: skip
def test_what_tests_may_do(code: str, test: str) -> None:
    verdict = judge(code, test)
    assert verdict.ok, verdict.reason


@pytest.mark.parametrize(
    "test",
    ["V(4) * 2", "2 * V(4)", "V(4) + 2", "V(4) - 2", "V(4) < 2", "V(4) % 2", "round(V(4), 2)", "divmod(V(4), 2)"],
)
def test_an_object_is_sent_no_plain_operand(test: str) -> None:
    every = "".join(
        f"    __{name}__ = lambda *o: 1\n" for name in ("mul", "rmul", "sub", "lt", "mod", "round", "divmod")
    )
    assert "TypeError" in judge(VECTOR + every, test).reason


PLAIN_VALUES = st.sampled_from(
    ["0", "2", "-3", "0.5", "'ab'", "''", "b'x'", "[1, 2]", "[]", "(1, 'a')", "{'a': 1}", "{1, 2}", "1j"]
)
OVERRIDDEN = [
    *[f"__{side}{name}__" for side in ("", "r", "i") for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor")],
    *[f"__{name}__" for name in ["eq", "ne", "lt", "le", "gt", "ge", "contains", "len", "getitem", "iter", "bool", "float", "int", "index", "abs", "neg", "round", "hash", "format", "reversed"]],
    *["index", "count", "get", "keys", "items", "startswith", "split", "upper", "find", "issubset", "is_integer"],
]  # fmt: skip
ANSWERS = st.sampled_from(
    ["True", "False", "NotImplemented", "0.0", "1", "'ab'", "(a or [0])[0]", "self", "[1, 2, 3]", "iter(())"]
)
TESTS = st.sampled_from(
    [f"x {operator} {value} == {result}" for operator in ("+", "-", "*", "%", "/", "//", "**", "&", "|", "^") for value in ("2", "0.5", "[3]", "{2}", "'b'") for result in ("1", "0", "4", "[1, 2, 3]", "'abb'", "{2}")]
    + [f"{value} {operator} x == {value}" for operator in ("+", "-", "*", "&", "|") for value in ("2", "[3]", "{2}", "'b'")]
    + [f"x {operator} {value}" for operator in ("==", "!=", "<", "<=", ">", ">=") for value in ("0", "2", "'ab'", "[1, 2]", "(1, 'a')", "{'a': 1}", "{1, 2}")]
    + ["2 in x", "'a' in x", "len(x) == 2", "x[0] == 1", "list(x) == [1, 2]", "bool(x)", "float(x) == 0.5", "int(x) == 2", "abs(x) == 3", "-x == 3",
       "round(x) == 2", "f'{x:>3}' == '  2'", "sorted(x) == [1, 2]", "max(x) == 2", "sum(x) == 3", "x.index(2) == 1", "x.count(1) == 1", "x.get('a') == 1",
       "list(x.items()) == [('a', 1)]", "x.startswith('a')", "x.split('b') == ['a', '']", "x.upper() == 'AB'", "x.find('b') == 1", "x.issubset({1, 2, 3})",
       "hash(x) == hash(2)", "{x: 1}[2] == 1", "[x] == [2]", "(1, x) < (1, 3)", "isinstance(x, (int, list))", "divmod(x, 2) == (1, 0)", "x is not None"]
)  # fmt: skip


def passes(expression: str, x: Any) -> bool:
    try:
        return bool(eval(expression, {"x": x}))
    except Exception:  # noqa: BLE001 - a test fails by any exception
        return False


def agree(value: str, overridden: dict[str, str], expression: str) -> None:
    """A test of an object whose class extends a built-in type says what it says of the plain value."""
    kind = type(eval(value))
    # Methods that the type does not have are the program's to answer.
    names = [name for name in overridden if name.startswith("__") or hasattr(kind, name)]
    methods = [f"Z.{name} = lambda self, *a: {overridden[name]}" for name in names]
    code = "\n".join([f"class Z({kind.__name__}): pass", f"z = Z({value})", *methods, "def f(): return z"])
    ours, theirs = socket.socketpair()
    with ours, theirs:
        program = Program(Channel(theirs.fileno()))
        thread = threading.Thread(target=served, args=(program,))
        thread.start()
        client = Client(Channel(ours.fileno()))
        try:
            client.ask("load", "", [code], "")
            assert passes(expression, client.ask("get", "f")()) == passes(expression, eval(value)), code
        finally:
            ours.shutdown(socket.SHUT_RDWR)
            thread.join()


def served(program: Program) -> None:
    with suppress(Gone):
        program.serve()


CASES = given(PLAIN_VALUES, st.dictionaries(st.sampled_from(OVERRIDDEN), ANSWERS, max_size=8), TESTS)
test_overridden_methods_change_no_verdict = settings(max_examples=60, deadline=None)(CASES(agree))
test_overridden_methods_change_no_verdict_often = pytest.mark.slow(
    settings(max_examples=5000, deadline=None)(CASES(agree))
)


class Replay:
    """A channel whose other end answers with given bytes."""

    def __init__(self, answers: list[bytes]) -> None:
        self.answers = answers

    def send(self, message: bytes) -> None:
        pass

    def receive(self) -> bytes:
        if not self.answers:
            raise Gone("the other process has ended")
        return self.answers.pop(0)


WIRE = st.lists(
    st.sampled_from([b"t4:", b"s2:ok", b"s6:raised", b"s8:callback", b"l0:", b"l1:", b"O1:0", b"O1:1", b"P1:1", b"P1:0l0:", b"C1:0", b"i1:1", b"f3:0x0", b"d0:", b"s1:a", b"t2:"])
).map(b"".join)  # fmt: skip


def survives(answers: list[bytes], expression: str) -> None:
    """Whatever bytes a program sends, a test passes or raises an Exception, as the tester expects."""
    client = Client(Replay([b"t4:s2:okO1:0l0:l0:", *answers]))  # type: ignore[arg-type]
    with suppress(Exception):
        eval(expression, {"x": client.ask("get", "f")()})


BYTES = given(st.lists(WIRE, max_size=5), TESTS)
test_any_bytes_are_an_answer_or_an_error = settings(max_examples=60, deadline=None)(BYTES(survives))
test_any_bytes_are_an_answer_or_an_error_often = pytest.mark.slow(
    settings(max_examples=5000, deadline=None)(BYTES(survives))
)
