"""The tester's view of the program: plain data, copies of objects that extend built-in types, and proxies for the rest.

The program controls what it answers, so it is never asked for a verdict. What it returns becomes plain data at once:
operators, comparisons, `in`, sorting and the methods of built-in types then work on that data here. An object whose
class extends a built-in type (an IntEnum, a named tuple) is here an instance of that type with the plain value inside
it. Any other object equals only itself, and no plain operand is sent to it.
"""

from __future__ import annotations

import builtins
import operator

from .program import BINARY, MUTABLE, PLAIN
from .wire import WITH_CONTENT, Channel, WireError, decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class _Sample:
    def method(self) -> None: ...


FUNCTIONS = (type(lambda: None), type(len), type(_Sample().method))
# Exceptions that would control the tester's own loops and generators if they were raised there.
_STEERING = (StopIteration, StopAsyncIteration, GeneratorExit)
CONVERSIONS = ("str", "repr", "bool", "int", "float", "complex", "len", "neg", "abs")
READS = (*CONVERSIONS, "getattr", "getitem", "isinstance")
"""Operations that are asked once: until the program is asked to do something else, the first answer holds."""
CHANGES: dict[type, str] = {
    list: "append extend insert remove pop clear reverse sort __setitem__ __delitem__",
    dict: "update pop popitem clear setdefault __setitem__ __delitem__",
    set: "add discard remove pop clear update difference_update intersection_update symmetric_difference_update",
    bytearray: "append extend insert remove pop clear reverse __setitem__ __delitem__",
}
"""Methods that change an object: the program makes the change, and the copy here follows."""
IN_PLACE = ("iadd", "imul", "iand", "ior", "isub", "ixor")
_SYMBOLS = [name.rstrip("_") for name in BINARY] + ["divmod", "lshift", "rshift"]
OPERATORS = {f"__{side}{name}__" for name in _SYMBOLS for side in ("", "r", "i")}
OPERATORS |= {f"__{name}__" for name in ("eq", "ne", "lt", "le", "gt", "ge", "contains", "round", "format")}


class ProgramError(Exception):
    """The program raised an exception of a class that it defines, or one that controls loops or ends processes."""


class Client:
    """Sends requests to one program."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._objects: dict[int, Any] = {}
        self._numbers: dict[int, int] = {}
        self._copies: dict[type, type] = {}
        self._callbacks: list[Callable[..., Any]] = []
        self._answers: dict[bytes, bytes] = {}

    def ask(self, operation: str, *arguments: Any) -> Any:
        """The program's answer. Its exceptions are raised here, and its changes to a call's arguments applied here."""
        request = encode((operation, *arguments), self._refer)
        if operation not in READS:
            self._answers.clear()
        message = self._answers.get(request)
        if message is None:
            self._channel.send(request)
            message = self._channel.receive()
        while True:
            answer = decode(message, self._resolve)
            kind = answer[0] if type(answer) is tuple and answer else None
            if kind == "callback":
                self._call_back(*answer[1:])
                message = self._channel.receive()
                continue
            if operation in READS:
                self._answers[request] = message
            if kind == "raised":
                raise _exception(*map(str, answer[1:]))
            if kind != "ok" or len(answer) != 4:
                raise WireError("an answer that is none")
            if operation == "call" and answer[2]:
                for place, value in answer[2]:
                    _change(arguments[1][place], value)
            return answer[1]

    def _call_back(self, number: int, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        result: tuple[Any, ...]
        try:
            result = ("returned", self._callbacks[number](*arguments, **keywords))
        except Exception as error:  # noqa: BLE001 - the test's function raises into the program that called it
            result = ("raised", type(error).__name__, str(error)[:500])
        self._channel.send(encode(result, self._refer))

    def owns(self, value: Any) -> bool:
        """Whether the value stands for an object of the program."""
        return id(value) in self._numbers

    def _refer(self, value: Any) -> tuple[bytes, bytes, Any]:
        number = self._numbers.get(id(value))
        if number is not None:
            return b"O", b"%d" % number, None
        name = getattr(value, "__name__", "")
        if type(name) is str and getattr(builtins, name, None) is value:
            return b"U", name.encode(), None
        if type(value) in FUNCTIONS:
            self._callbacks.append(value)
            return b"C", b"%d" % (len(self._callbacks) - 1), None
        raise WireError(f"a test hands over a {type(value).__name__}, which cannot leave the tester")

    def _resolve(self, tag: bytes, text: str, plain: Any) -> Any:
        if tag == b"C":
            return self._callbacks[int(text)]
        if tag not in (b"O", WITH_CONTENT):
            raise WireError(f"unknown tag {tag!r}")
        number = int(text)
        value = self._objects.get(number)
        if value is None:
            value = Remote(self) if tag == b"O" else self._copy(plain)
            # Both keep the object alive, so that its id stays its own.
            self._objects[number], self._numbers[id(value)] = value, number
        elif tag == WITH_CONTENT and isinstance(value, MUTABLE):
            _change(value, plain)
        return value

    def _copy(self, plain: Any) -> Any:
        """An instance of a built-in type, with the attributes of the program's object."""
        kind = type(plain)
        if kind not in PLAIN:
            raise WireError(f"an object with a {kind.__name__} inside")
        if kind not in self._copies:
            self._copies[kind] = type(kind.__name__, (kind,), _methods(self, kind))
        return self._copies[kind](plain)


class Remote:
    """A proxy for an object in the program's process that has no plain value. It equals only itself."""

    def __init__(self, client: Client) -> None:
        object.__setattr__(self, "_client", client)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._client.ask("call", self, list(arguments), keywords)

    def __getattr__(self, name: str) -> Any:
        return _attribute(self._client, self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._client.ask("setattr", self, name, value)

    def __iter__(self) -> Any:
        iterator = self._client.ask("iter", self)
        while True:
            try:
                yield self._client.ask("next", iterator)
            except ProgramError as error:
                if error.args[:1] == ("StopIteration",):
                    return
                raise

    def __next__(self) -> Any:
        try:
            return self._client.ask("next", self)
        except ProgramError as error:
            if error.args[:1] == ("StopIteration",):
                raise StopIteration from None
            raise

    def __instancecheck__(self, value: Any) -> bool:
        return self._client.owns(value) and self._client.ask("isinstance", value, self) is True


def _methods(client: Client, kind: type) -> dict[str, Any]:
    """The methods of a copy of a program's object: its own text, its attributes, and the changes of its content."""

    def changing(name: str) -> Callable[..., Any]:
        return lambda self, *arguments, **keywords: client.ask("method", self, name, list(arguments), keywords)

    def in_place(name: str) -> Callable[..., Any]:
        return lambda self, other: getattr(operator, name)(PLAIN[kind](self), other)

    operators = [name for name in IN_PLACE if hasattr(kind, f"__{name}__")]
    return {
        "__slots__": (),
        "__str__": lambda self: client.ask("str", self),
        "__repr__": lambda self: client.ask("repr", self),
        "__getattr__": lambda self, name: _attribute(client, self, name),
        "__setattr__": lambda self, name, value: client.ask("setattr", self, name, value),
        # A copy by the copy module is plain data.
        "__reduce_ex__": lambda self, protocol: (kind, (PLAIN[kind](self),)),
        "__missing__": lambda self, key: client.ask("getitem", self, key),
        **{name: changing(name) for name in CHANGES.get(kind, "").split()},
        # The result is plain data: the operand is not for the program.
        **{f"__{name}__": in_place(name) for name in operators},
    }


def _attribute(client: Client, value: Any, name: str) -> Any:
    """An attribute of the program's object, but no method that would be sent an operand."""
    if name in OPERATORS or not client.owns(value):
        raise AttributeError(name)
    return client.ask("getattr", value, name)


def _asked(operation: str) -> Callable[..., Any]:
    return lambda self, *arguments: self._client.ask(operation, self, *arguments)


def _between_objects(operation: str) -> Callable[..., Any]:
    def method(self: Any, other: Any) -> Any:
        return self._client.ask(operation, self, other) if self._client.owns(other) else NotImplemented

    return method


for _name in (*CONVERSIONS, "getitem", "setitem", "delitem"):
    setattr(Remote, f"__{_name}__", _asked(_name))
for _name in BINARY:
    setattr(Remote, f"__{_name.rstrip('_')}__", _between_objects(_name))


def _exception(name: str, message: str) -> Exception:
    """The built-in exception of that name; ProgramError(name, message) for others."""
    kind: Any = getattr(builtins, name, None)
    usable = isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, _STEERING)
    try:
        return kind(message) if usable else ProgramError(name, message)
    except TypeError:  # UnicodeDecodeError and its like take more than a message
        return ProgramError(name, message)


def _change(value: Any, content: Any) -> None:
    """Give a mutable value here the content that the program's has."""
    kind = next((kind for kind in MUTABLE if isinstance(value, kind)), None)
    if kind is None or type(content) is not kind:
        raise WireError("a change to an argument that cannot change")
    if kind is list or kind is bytearray:
        kind.__setitem__(value, slice(None), content)
    else:
        kind.clear(value)
        kind.update(value, content)
