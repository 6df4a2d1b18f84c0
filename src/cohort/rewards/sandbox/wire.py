"""How two processes that do not trust each other exchange values: tagged plain data, never pickle.

A value is a tag, a decimal length or count, a colon, and the content: `s2:hi`, `l2:i1:1i1:2`. Decoding builds plain
data and the few standard value types of `VALUES`; everything else is a reference that its owner resolves.
"""

from __future__ import annotations

import os

# Importing typing and collections takes longer than a program may run: see `TYPE_CHECKING` in mypy's manual.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Refer = Callable[[Any], tuple[bytes, bytes, Any]]
    Resolve = Callable[[bytes, str, Any], Any]

LARGEST = 16 << 20
"""Maximum bytes of one message."""
DEEPEST = 150
"""Maximum depth of nested containers."""
READY = b"s5:ready"
"""A program's first message, sent before it has untrusted code."""


class WireError(Exception):
    """A message or value that cannot be sent or decoded: too large, too deep, or malformed."""


class Gone(WireError):
    """The other process has ended."""


def _date(value: Any) -> tuple[Any, ...]:
    return value.year, value.month, value.day


def _clock(value: Any) -> tuple[Any, ...]:
    if value.tzinfo is not None:
        raise WireError("a time with a time zone")
    return value.hour, value.minute, value.second, value.microsecond


VALUES: dict[str, Callable[[Any], tuple[Any, ...]]] = {
    "builtins.range": lambda value: (value.start, value.stop, value.step),
    "fractions.Fraction": lambda value: (value.numerator, value.denominator),
    "decimal.Decimal": lambda value: (str(value),),
    "datetime.date": _date,
    "datetime.time": _clock,
    "datetime.datetime": lambda value: _date(value) + _clock(value),
    "datetime.timedelta": lambda value: (value.days, value.seconds, value.microseconds),
    "collections.deque": lambda value: (list(value), value.maxlen),
    "collections.Counter": lambda value: (dict(value),),
    "collections.OrderedDict": lambda value: (list(value.items()),),
    "collections.defaultdict": lambda value: (None, dict(value)),
    "array.array": lambda value: (value.typecode, value.tolist()),
}
"""Standard value types by name, with the arguments that make an equal one."""

_CONSTANTS = {None: b"N", True: b"T", False: b"F", ...: b"E"}
_OF_CONSTANT = {tag: value for value, tag in _CONSTANTS.items()}
_CONTAINERS: dict[type, bytes] = {list: b"l", tuple: b"t", set: b"e", frozenset: b"z"}
_OF_CONTAINER = {tag: kind for kind, tag in _CONTAINERS.items()}


WITH_CONTENT = b"P"
"""Tag of a reference that is followed by the plain value inside the object."""


def no_reference(value: Any) -> tuple[bytes, bytes, Any]:
    raise WireError(f"a {type(value).__name__} is no plain data")


def no_resolving(tag: bytes, text: str, plain: Any) -> Any:
    raise WireError(f"tag {tag!r} where plain data belongs")


def encode(value: Any, refer: Refer = no_reference) -> bytes:
    """The bytes of a value. Raises WireError.

    `refer` returns (tag, name, plain) for an object that is not plain data; `plain` is sent with the tag WITH_CONTENT.
    """
    pieces: list[bytes] = []
    _encode(value, refer, pieces, 0)
    return b"".join(pieces)


def _encode(value: Any, refer: Refer, pieces: list[bytes], depth: int) -> None:
    if depth > DEEPEST:
        raise WireError(f"more than {DEEPEST} containers inside each other")
    kind = type(value)
    if value is None or kind is bool or value is ...:
        pieces.append(_CONSTANTS[value] + b"0:")
    elif kind in _CONTAINERS or kind is dict:
        items = value if kind is not dict else [part for item in value.items() for part in item]
        pieces.append(_CONTAINERS.get(kind, b"d") + b"%d:" % len(value))
        for item in items:
            _encode(item, refer, pieces, depth + 1)
    else:
        tag, content = _scalar(value, kind) or (b"", b"")
        if tag:
            pieces.append(tag + b"%d:" % len(content) + content)
            return
        name = f"{kind.__module__}.{kind.__qualname__}"
        if name in VALUES:
            pieces.append(b"v%d:" % len(name) + name.encode())
            _encode(VALUES[name](value), refer, pieces, depth + 1)
        else:
            tag, content, plain = refer(value)
            pieces.append(tag + b"%d:" % len(content) + content)
            if tag == WITH_CONTENT:
                _encode(plain, refer, pieces, depth + 1)


def _scalar(value: Any, kind: type) -> tuple[bytes, bytes] | None:
    if kind is int:
        return b"i", b"%x" % value
    if kind is str:
        return b"s", value.encode("utf-8", "surrogatepass")
    if kind is float:
        return b"f", value.hex().encode()
    if kind is complex:
        return b"c", f"{value.real.hex()} {value.imag.hex()}".encode()
    if kind is bytes or kind is bytearray:
        return (b"b" if kind is bytes else b"B"), bytes(value)
    return None


def decode(data: bytes, resolve: Resolve = no_resolving) -> Any:
    """The value from its bytes. `resolve` returns the object of a reference (tag, name, plain). Raises WireError."""
    reader = _Reader(data, resolve)
    try:
        value = reader.value(0)
    except WireError:
        raise
    # A hostile sender can cause these: unhashable keys, malformed numbers, a date that does not exist.
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise WireError(f"{type(error).__name__}: {error}"[:200]) from None
    if reader.place != len(data):
        raise WireError("bytes behind the value")
    return value


class _Reader:
    def __init__(self, data: bytes, resolve: Resolve) -> None:
        self.data, self.resolve, self.place = data, resolve, 0

    def value(self, depth: int) -> Any:
        if depth > DEEPEST + 1:
            raise WireError("too deep")
        colon = self.data.index(b":", self.place, self.place + 12)
        tag, size = self.data[self.place : self.place + 1], int(self.data[self.place + 1 : colon])
        self.place = colon + 1
        if tag in _OF_CONSTANT:
            return _OF_CONSTANT[tag]
        if not 0 <= size <= len(self.data) - self.place:
            raise WireError("a count beyond the message")
        if tag in _OF_CONTAINER:
            return _OF_CONTAINER[tag]([self.value(depth + 1) for _ in range(size)])
        if tag == b"d":
            return {self.value(depth + 1): self.value(depth + 1) for _ in range(size)}
        content = self.data[self.place : self.place + size]
        self.place += size
        if tag == b"v":
            return _built(content.decode(), self.value(depth + 1))
        if tag == WITH_CONTENT:
            return self.resolve(tag, content.decode(), self.value(depth + 1))
        return self._scalar(tag, content)

    def _scalar(self, tag: bytes, content: bytes) -> Any:
        if tag == b"s":
            return content.decode("utf-8", "surrogatepass")
        if tag == b"b" or tag == b"B":
            return content if tag == b"b" else bytearray(content)
        text = content.decode()
        if tag == b"i":
            return int(text, 16)
        if tag == b"f":
            return float.fromhex(text)
        if tag == b"c":
            return complex(*map(float.fromhex, text.split()))
        return self.resolve(tag, text, None)


def _built(name: str, arguments: Any) -> Any:
    if name not in VALUES or type(arguments) is not tuple:
        raise WireError(f"no value type {name!r}")
    if name == "builtins.range":
        return range(*arguments)
    module, _, kind = name.rpartition(".")
    return getattr(__import__(module), kind)(*arguments)


class Channel:
    """Whole messages over a stream socket: four bytes of length, then the message."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def send(self, message: bytes) -> None:
        """Send a message. Raises WireError if it is too large, Gone if the other process has closed the socket."""
        if len(message) > LARGEST:
            raise WireError(f"{len(message)} bytes; a message may have {LARGEST}")
        left = memoryview(len(message).to_bytes(4, "big") + message)
        while left:
            try:
                left = left[os.write(self._fd, left) :]
            except OSError as error:
                raise Gone(str(error)) from None

    def receive(self) -> bytes:
        """Receive a message. Raises Gone if the socket is closed at the other end, WireError for one beyond LARGEST."""
        size = int.from_bytes(self._exactly(4), "big")
        if size > LARGEST:
            raise WireError(f"{size} bytes; a message may have {LARGEST}")
        return self._exactly(size)

    def _exactly(self, size: int) -> bytes:
        pieces, left = [], size
        while left:
            try:
                piece = os.read(self._fd, min(left, 1 << 20))
            except OSError as error:
                raise Gone(str(error)) from None
            if not piece:
                raise Gone("the other process has ended")
            pieces.append(piece)
            left -= len(piece)
        return b"".join(pieces)
