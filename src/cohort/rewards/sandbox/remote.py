"""The tester's view of the program: proxies for its names and objects, and copies of its plain data.

Only requests that return values go over the socket. Comparing, `in` and sorting happen here, on plain data. An object
of a class that the program defines equals only itself and the plain data that it wraps, whatever its `__eq__` returns.
"""

from __future__ import annotations

import builtins

from .program import BINARY, MUTABLE
from .wire import Channel, WireError, decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class _Sample:
    def method(self) -> None: ...


FUNCTIONS = (type(lambda: None), type(len), type(_Sample().method))
# Exceptions that would control the tester's own loops and generators if they were raised there.
_STEERING = (StopIteration, StopAsyncIteration, GeneratorExit)


class ProgramError(Exception):
    """The program raised an exception of a class that it defines, or one that controls loops or ends processes."""


class Client:
    """Sends requests to one program."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._remotes: dict[int, Remote] = {}
        self._callbacks: list[Callable[..., Any]] = []

    def ask(self, operation: str, *arguments: Any) -> Any:
        """The program's answer. Its exceptions are raised here, and its changes to a call's arguments applied here."""
        self._channel.send(encode((operation, *arguments), self._refer))
        while True:
            answer = decode(self._channel.receive(), self._resolve)
            kind = answer[0] if type(answer) is tuple and answer else None
            if kind == "callback":
                self._call_back(*answer[1:])
            elif kind == "raised":
                raise _exception(*map(str, answer[1:]))
            elif kind == "ok" and len(answer) == 3:
                if operation == "call" and answer[2]:
                    _change(arguments[1], answer[2])
                return answer[1]
            else:
                raise WireError("an answer that is none")

    def _call_back(self, number: int, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        result: tuple[Any, ...]
        try:
            result = ("returned", self._callbacks[number](*arguments, **keywords))
        except Exception as error:  # noqa: BLE001 - the test's function raises into the program that called it
            result = ("raised", type(error).__name__, str(error)[:500])
        self._channel.send(encode(result, self._refer))

    def _refer(self, value: Any) -> tuple[bytes, bytes]:
        if type(value) is Remote:
            return b"O", b"%d" % value._number
        name: str = getattr(value, "__name__", "")
        if getattr(builtins, name, None) is value:
            return b"U", name.encode()
        if type(value) in FUNCTIONS:
            self._callbacks.append(value)
            return b"C", b"%d" % (len(self._callbacks) - 1)
        raise WireError(f"a test hands over a {type(value).__name__}, which cannot leave the tester")

    def _resolve(self, tag: bytes, text: str) -> Any:
        if tag == b"O":
            return self._remotes.setdefault(int(text), Remote(self, int(text)))
        if tag == b"C":
            return self._callbacks[int(text)]
        raise WireError(f"unknown tag {tag!r}")


class Remote:
    """A proxy for an object in the program's process."""

    def __init__(self, client: Client, number: int) -> None:
        object.__setattr__(self, "_client", client)
        object.__setattr__(self, "_number", number)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._client.ask("call", self, list(arguments), keywords)

    def __getattr__(self, name: str) -> Any:
        return self._client.ask("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._client.ask("setattr", self, name, value)

    def __iter__(self) -> Any:
        iterator = self._client.ask("iter", self)
        while True:
            try:
                item = self._client.ask("next", iterator)
            except ProgramError as error:
                if error.args[:1] == ("StopIteration",):
                    return
                raise
            yield item

    def __next__(self) -> Any:
        return self._client.ask("next", self)

    def _plain(self) -> Any:
        return self._client.ask("plain", self)

    def __eq__(self, other: object) -> bool:
        if other is self:
            return True
        mine, theirs = self._plain(), other._plain() if type(other) is Remote else other
        return type(mine) is not Remote and type(theirs) is not Remote and bool(mine == theirs)

    def __hash__(self) -> int:
        mine = self._plain()
        return id(self) if type(mine) is Remote else hash(mine)

    def __repr__(self) -> str:
        text: str = self._client.ask("repr", self)
        return text


def _forwarded(operation: str) -> Callable[..., Any]:
    return lambda self, *arguments: self._client.ask(operation, self, *arguments)


for _name in ("str", "bool", "int", "float", "len", "getitem", "setitem", "delitem", "neg", "abs"):
    setattr(Remote, f"__{_name}__", _forwarded(_name))
for _name in BINARY:
    setattr(Remote, f"__{_name.rstrip('_')}__", _forwarded(_name))


def _exception(name: str, message: str) -> Exception:
    """The built-in exception of that name; ProgramError(name, message) for others."""
    kind: Any = getattr(builtins, name, None)
    usable = isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, _STEERING)
    try:
        return kind(message) if usable else ProgramError(name, message)
    except TypeError:  # UnicodeDecodeError and its like take more than a message
        return ProgramError(name, message)


def _change(arguments: list[Any], changes: Any) -> None:
    """Apply the program's in-place changes to the arguments here."""
    for place, value in changes:
        argument = arguments[place]
        if type(argument) not in MUTABLE or type(value) is not type(argument):
            raise WireError("a change to an argument that cannot change")
        if type(argument) in (dict, set):
            argument.clear()
            argument.update(value)
        else:
            argument[:] = value
