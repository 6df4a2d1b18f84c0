"""The sandbox's parts: the wire between processes, and the seccomp filter run by an interpreter of our own."""

from __future__ import annotations

import collections
import datetime
import socket
import struct
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cohort.rewards.sandbox.plan import CHECK, plan
from cohort.rewards.sandbox.syscalls import ARCHITECTURES, DENIED, seccomp_filter
from cohort.rewards.sandbox.tester import CHECK as TESTERS_CHECK
from cohort.rewards.sandbox.wire import DEEPEST, LARGEST, Channel, Gone, WireError, decode, encode
from cohort.types import UserError

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.binary(max_size=8)
    | st.text(max_size=8)
    | st.fractions()
    | st.dates()
    | st.datetimes()
    | st.timedeltas()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.frozensets(SCALARS, max_size=4)
        | st.sets(SCALARS, max_size=4)
        | st.dictionaries(SCALARS, inner, max_size=4)
    ),
    max_leaves=12,
)


PIECES = [b"l3:", b"d1:", b"v18:fractions.Fraction", b"t2:", b"i1:0", b"s1:a"]


@settings(max_examples=150, deadline=None)
@given(VALUES)
def test_values_come_over_the_wire_as_they_were(value: Any) -> None:
    received = decode(encode(value))
    assert received == value and type(received) is type(value)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40) | st.lists(st.sampled_from(PIECES)).map(b"".join))
def test_hostile_bytes_are_a_value_or_refused(data: bytes) -> None:
    with suppress(WireError):
        decode(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"i1:1i1:2", "bytes behind the value"),
        (b"l99999999:", "a count beyond the message"),
        (b"d1:l0:N0:", "unhashable"),
        (b"v18:fractions.Fractiont2:i1:1i1:0", "ZeroDivisionError"),
        (b"v9:os.systemt1:s2:ls", "no value type 'os.system'"),
        (b"v15:builtins.objectt0:", "no value type"),
        (b"O1:0", "where plain data belongs"),
        (b"l1:" * 200 + b"N0:", "too deep"),
        (b"f3:xyz", "ValueError"),
    ],
)
def test_what_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(WireError, match=message):
        decode(data)


def test_standard_values_and_limits() -> None:
    for value in (
        Decimal("1.10"),
        Fraction(1, 3),
        datetime.time(1, 2, 3, 4),
        collections.deque([1], 5),
        collections.Counter("aab"),
        collections.OrderedDict(a=1),
        range(1, 9, 2),
        bytearray(b"x"),
        ...,
    ):
        received = decode(encode(value))
        assert (received, type(received)) == (value, type(value))
    nested: Any = 0
    for _ in range(DEEPEST + 1):
        nested = [nested]
    with pytest.raises(WireError, match=f"more than {DEEPEST} containers"):
        encode(nested)
    with pytest.raises(WireError, match="a object is no plain data"):
        encode([object()])


def test_a_channel_carries_whole_messages_and_notices_the_end() -> None:
    a, b = socket.socketpair()
    near, far = Channel(a.fileno()), Channel(b.fileno())
    near.send(b"one")
    near.send(b"")
    assert (far.receive(), far.receive()) == (b"one", b"")
    with pytest.raises(WireError, match="a message may have"):
        near.send(bytes(LARGEST + 1))
    a.sendall((LARGEST + 1).to_bytes(4, "big"))
    with pytest.raises(WireError, match="a message may have"):
        far.receive()
    a.close()
    with pytest.raises(Gone):
        far.receive()
    b.close()


def allowed(machine: str, number: int, *arguments: int, execute: bool = False, arch: int | None = None) -> str:
    """What the filter says to a call, by interpreting it as the kernel's classic BPF does."""
    column = ARCHITECTURES[machine]
    code = seccomp_filter(execute, column)
    program = list(struct.iter_unpack("=HBBI", code))
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("<IIQ6Q", number, column[1] if arch is None else arch, 0, *padded)
    accumulator, place = 0, 0
    while True:
        operation, jump_true, jump_false, value = program[place]
        place += 1
        if operation == 0x20:
            accumulator = struct.unpack_from("<I", data, value)[0]
        elif operation == 0x06:
            return {0x7FFF0000: "allow", 0x80000000: "kill", 0x00050001: "EPERM", 0x00050026: "ENOSYS"}[value]
        else:
            holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[operation]
            place += jump_true if holds else jump_false


# Numbers here are from the kernel's tables for each machine, not from the module.
NAMES = ("read", "openat", "mmap", "futex", "socket", "kill", "ptrace", "fork", "chmod", "clone", "clone3", "execve")
NAMES += ("fcntl", "ioctl", "prctl", "prlimit64")
X86_64 = (0, 257, 9, 202, 41, 62, 101, 57, 90, 56, 435, 59, 72, 16, 157, 302)
AARCH64 = (63, 56, 222, 98, 198, 129, 117, 435, 53, 220, 435, 221, 25, 29, 167, 261)
"""aarch64 has clone3 for fork and fchmodat for chmod."""


@pytest.mark.parametrize(("machine", "numbers"), [("x86_64", X86_64), ("aarch64", AARCH64)])
def test_the_filter(machine: str, numbers: tuple[int, ...]) -> None:
    calls = dict(zip(NAMES, numbers, strict=True))

    def says(name: str, *arguments: int, **options: Any) -> str:
        return allowed(machine, calls[name], *arguments, **options)

    assert {says(name) for name in ("read", "openat", "mmap", "futex")} == {"allow"}
    assert {says(name) for name in ("socket", "kill", "ptrace", "chmod", "execve")} == {"EPERM"}
    assert says("fork") != "allow" and says("clone3") == "ENOSYS"
    assert (says("execve", execute=True), says("socket", execute=True)) == ("allow", "EPERM")
    assert (says("clone", 0x11), says("clone", 0x3D0F00), says("clone", 0x3C0F00)) == ("EPERM", "allow", "EPERM")
    assert [says("fcntl", 3, command) for command in (1, 8, 10, 15)] == ["allow", "EPERM", "EPERM", "EPERM"]
    assert [says("ioctl", 0, request) for request in (0x5401, 0x5412, 0x8901)] == ["allow", "EPERM", "EPERM"]
    assert (says("prctl", 1, 0), says("prctl", 15, 0)) == ("EPERM", "allow")
    assert says("prlimit64", 0, 7, 0, 0x7FFF0000) == "allow"
    assert says("prlimit64", 0, 7, 0x1000, 0) == says("prlimit64", 0, 7, 0x7F << 32, 0) == "EPERM"
    assert says("read", arch=0x40000003) == "kill"
    if machine == "x86_64":
        assert allowed(machine, 0x40000000) == "EPERM"


def test_every_denied_call_is_denied_on_both_machines() -> None:
    for name, numbers in DENIED.items():
        for machine, number in zip(ARCHITECTURES, numbers, strict=True):
            assert number is None or allowed(machine, number) == ("ENOSYS" if name == "clone3" else "EPERM"), name
    for column in (0, 1):
        numbers = [entry[column] for entry in DENIED.values() if entry[column] is not None]
        assert len(numbers) == len(set(numbers))


def test_what_tests_need_of_a_program() -> None:
    made = plan(("assert len(f(x)) == math.floor(g.y)", "x = [i for i in h()]"), "", "", "", "", False)
    assert (made.names, made.shadows, made.modules) == (("f", "g", "h"), ("len",), ("math",))
    setup = "import re\nclass A: pass\nroot = A(1)\ndef same(a, b): return a == b"
    made = plan(("assert same(f(root), 1)",), "", setup, "", "", False)
    assert (made.names, made.given.split()) == (("A", "f"), ["import", "re", "class", "A:", "pass"])
    assert "class A" not in made.setup and "root = A(1)" in made.setup and "def same" in made.setup
    counted = plan((), "def check(c):\n    assert c(1) == 2, 'no'\n    assert c(2)", "", "", "f", True)
    assert counted.assertions == 2 and f"{CHECK}(lambda: c(1) == 2)" in counted.script
    assert CHECK == TESTERS_CHECK
    with pytest.raises(UserError, match="a row's test is not Python"):
        plan((), "def", "", "", "", False)
