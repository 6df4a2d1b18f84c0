"""The process of the untrusted program: it runs the code and answers the tester's requests for values.

It never sees a test or an expected value. Whatever the code does to this process, including this module, it can only
change the values that are returned.
"""

from __future__ import annotations

import builtins
import operator
import os
import sys

from .choose import choose
from .kernel import confine
from .wire import READY, WITH_CONTENT, Channel, Gone, WireError, decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

NAME = "program"
"""The `__name__` of the code's module, so that code under `if __name__ == "__main__":` does not run."""

BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and_", "or_", "xor", "matmul")

OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda function, arguments, keywords: function(*arguments, **keywords),
    "method": lambda value, name, arguments, keywords: getattr(value, name)(*arguments, **keywords),
    "getattr": getattr,
    "setattr": setattr,
    "getitem": operator.getitem,
    "setitem": operator.setitem,
    "delitem": operator.delitem,
    "isinstance": isinstance,
    "neg": operator.neg,
    "len": len,
    "iter": iter,
    "next": next,
    "str": str,
    "repr": repr,
    "bool": bool,
    "int": int,
    "float": float,
    "complex": complex,
    "abs": abs,
    **{name: getattr(operator, name) for name in BINARY},
}
"""Operations that the tester may request on an object. No comparisons: the tester makes them itself. Both operands of
BINARY are the program's own objects."""

MUTABLE = (list, dict, set, bytearray)
PLAIN: dict[type, Callable[[Any], Any]] = {
    int: int.__pos__,
    float: float.__pos__,
    complex: complex.__pos__,
    str: str.__str__,
    bytes: lambda value: bytes.__getitem__(value, slice(None)),
    tuple: lambda value: tuple.__getitem__(value, slice(None)),
    frozenset: lambda value: frozenset(frozenset.__iter__(value)),
    list: lambda value: list.__getitem__(value, slice(None)),
    dict: lambda value: dict(dict.items(value)),
    set: lambda value: set(set.__iter__(value)),
    bytearray: lambda value: bytearray.__getitem__(value, slice(None)),
}
"""Built-in types that classes extend, with the plain value inside an instance, as the type's own comparisons see it."""


class Program:
    """The untrusted code's namespace and the objects that the tester holds references to."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.module = type(sys)(NAME)
        self.objects: list[Any] = []
        self.numbers: dict[int, int] = {}
        self.shared: dict[int, bytes] = {}
        """By number, the content of each mutable object that the tester has a copy of, as it was before a request."""

    def serve(self) -> None:
        """Answer requests until the tester ends."""
        while True:
            self.channel.send(self.answer(self.channel.receive()))

    def answer(self, message: bytes) -> bytes:
        try:
            operation, *arguments = decode(message, self.resolve)
            if operation == "load":
                return encode(("ok", self.load(*arguments), [], []), self.refer)
            if operation == "get":
                return encode(("ok", getattr(self.module, arguments[0]), [], []), self.refer)
            return self.perform(operation, arguments)
        except BaseException as error:  # noqa: BLE001 - whatever untrusted code raises, SystemExit too, is an answer
            return encode(("raised", type(error).__name__, _message(error)))

    def perform(self, operation: str, arguments: list[Any]) -> bytes:
        """The result, the new contents of arguments that were changed in place, and the changed objects."""
        handed = arguments[1] if operation == "call" else ()
        before = [(i, value, encode(value, self.refer)) for i, value in enumerate(handed) if type(value) in MUTABLE]
        self.changed()
        result = OPERATIONS[operation](*arguments)
        changed = [(i, value) for i, value, old in before if encode(value, self.refer) != old]
        return encode(("ok", number_of_numpy(result), changed, self.changed()), self.refer)

    def changed(self) -> list[Any]:
        """The mutable objects whose content is not what it was at the last call of this method."""
        found = []
        for number, old in list(self.shared.items()):
            value = self.objects[number]
            new = self.shared[number] = encode(PLAIN[base(value)](value), self.refer)
            if new != old:
                found.append(value)
        return found

    def load(self, given: str, sources: list[str], wanted: list[str]) -> list[str]:
        """Run the code; the names that it defines.

        given: the row's own imports and classes. sources: readings of the completion, best first. wanted: the names
        that the tests use, by which one is chosen.
        """
        sys.modules[NAME] = self.module
        namespace = self.module.__dict__
        exec(compile(given, "<setup>", "exec"), namespace)
        for code in choose(sources, set(wanted) - namespace.keys(), namespace):
            exec(code, namespace)
        return [name for name in namespace if isinstance(name, str)]

    def refer(self, value: Any) -> tuple[bytes, bytes, Any]:
        """The number of an object that is not plain data, with the plain value inside it if its class extends a
        built-in type; the same object always has the same number."""
        if type(value) is Callback:
            return b"C", b"%d" % value.number, None
        number = self.numbers.get(id(value))
        if number is None:
            number = self.numbers[id(value)] = len(self.objects)
            self.objects.append(value)
        kind = base(value)
        if kind is None:
            return b"O", b"%d" % number, None
        if kind in MUTABLE:
            self.shared.setdefault(number, b"")
        return WITH_CONTENT, b"%d" % number, PLAIN[kind](value)

    def resolve(self, tag: bytes, text: str, _: Any) -> Any:
        if tag == b"O":
            return self.objects[int(text)]
        if tag == b"C":
            return Callback(self, int(text))
        if tag == b"U":
            return getattr(builtins, text)
        raise WireError(f"unknown tag {tag!r}")


class Callback:
    """Stands for a function in the tester's process, such as a lambda that a test passes as an argument."""

    def __init__(self, program: Program, number: int) -> None:
        self.program, self.number = program, number

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        channel = self.program.channel
        channel.send(encode(("callback", self.number, arguments, keywords), self.program.refer))
        while True:
            message = channel.receive()
            kind, *rest = decode(message, self.program.resolve)
            if kind == "returned":
                return rest[0]
            if kind == "raised":
                raise getattr(builtins, rest[0], RuntimeError)(rest[1])
            channel.send(self.program.answer(message))


def base(value: Any) -> Any:
    """The built-in type that a value's class extends: int for an IntEnum, tuple for a named tuple; None if none."""
    return next((kind for kind in PLAIN if issubclass(type(value), kind)), None)


def number_of_numpy(value: Any) -> Any:
    """NumPy's scalars as numbers; other values unchanged."""
    return value.item() if type(value).__module__ == "numpy" and getattr(value, "shape", None) == () else value


def _message(error: BaseException) -> str:
    try:
        return str(error)[:500]
    except BaseException:  # noqa: BLE001 - an exception of the program's own may do anything here
        return ""


def main(fd: int, confinement: dict[str, Any]) -> None:
    """Confine this process with `confine`'s arguments, then serve requests over the socket `fd`."""
    confine(**confinement)
    # The parent can read errors up to this point on stderr, but nothing that the untrusted code writes.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    channel = Channel(fd)
    channel.send(READY)
    try:
        Program(channel).serve()
    except Gone:
        os._exit(0)
