"""Requests to an endpoint with OpenAI's chat completions API, and a cache of its replies in a file."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import logging
import queue
import random
import re
import socket
import sqlite3
import threading
import urllib.parse
import urllib.request
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from cohort.types import UserError

log = logging.getLogger("cohort")

TRY_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)
"""HTTP statuses of temporary failures, after which the request is repeated."""
LARGEST = 4 << 20
"""Maximum length of a reply in bytes."""
LONGEST_WAIT = 60.0
"""Maximum seconds between two tries, even if the endpoint asks for more."""
HIDDEN = "***"
"""Stands in messages for keys and passwords."""


@dataclass(frozen=True)
class _Answer:
    status: int
    reason: str
    headers: http.client.HTTPMessage
    body: bytes


class Endpoint:
    """An endpoint with its key, retries and time limit. Thread-safe: each request opens its own connection."""

    def __init__(self, url: str, key: str | None, retries: int, timeout: float) -> None:
        parts = _parts(url)
        host, path = parts.netloc.rpartition("@")[2], parts.path.rstrip("/").removesuffix("/chat/completions")
        user, password = (urllib.parse.unquote(part or "") for part in (parts.username, parts.password))
        if key and (user or password):
            raise UserError(f"the url of {host} has a user or password in it, and api_key_env is set: give one of them")
        self._headers = {"Content-Type": "application/json"}
        basic = base64.b64encode(f"{user}:{password}".encode()).decode()
        if key or user or password:
            self._headers["Authorization"] = f"Bearer {key}" if key else f"Basic {basic}"
        values = [pair.partition("=")[2] for pair in parts.query.split("&")]
        short = [user, *values, *map(urllib.parse.unquote, values)]
        self._hidden = _pattern([key or "", password, basic, *(text for text in short if len(text) > 3)])
        address = (parts.scheme, host, f"{path}/chat/completions")
        self.target = urllib.parse.urlunsplit((*address, parts.query, ""))
        """The address of the requests; its query may have a key."""
        self.url = self.shown(urllib.parse.urlunsplit((*address, "", "")), 1000)
        """The address for messages."""
        self.retries, self.timeout = retries, timeout
        self._opener = urllib.request.build_opener(_AnyStatus, _Http, _Https)

    def chat(self, body: dict[str, Any], stop: threading.Event) -> str:
        """The text of the reply. Repeats a request after a temporary failure, with growing delays, until `stop` is set.

        Raises UserError where the endpoint refuses the request or all tries fail.
        """
        data = json.dumps(body).encode()
        for attempt in range(self.retries + 1):
            wait = min(LONGEST_WAIT, 2.0**attempt / 2 * random.uniform(0.5, 1.5))
            try:
                answer = self._post(data)
            except (OSError, http.client.HTTPException) as error:
                problem = f"{type(error).__name__}: {self.shown(str(error))}"
            else:
                if 200 <= answer.status < 300:
                    return self._text(answer.body)
                said = self.shown(answer.body.decode("utf-8", "replace"))
                problem = f"status {answer.status} {self.shown(answer.reason)}: {said}"
                if answer.status not in TRY_AGAIN:
                    raise UserError(f"{self.url} answers with {problem}. {self._remedy(answer)}")
                wait = min(LONGEST_WAIT, max(wait, _asked_wait(answer.headers.get("Retry-After") or "")))
            if attempt < self.retries and stop.wait(wait):
                break
        raise UserError(
            f"{self.url} did not answer in {self.retries + 1} tries of up to {self.timeout:g} s: {problem}. Is the "
            "server running, and is the url right? The run can be resumed when it answers"
        )

    def shown(self, text: str, longest: int | None = 300) -> str:
        """The start of a text for a message, in one line and without keys and passwords."""
        return " ".join(self._hidden.sub(HIDDEN, text).split())[:longest]

    def _post(self, data: bytes) -> _Answer:
        """The endpoint's answer. The time limit holds for the whole request, from the name's look-up to the last byte.

        A socket's own time limit is for one read, and a server may send a byte, or a line of headers, each second.
        """
        request, answers = _Request(self.target, data, self._headers), queue.SimpleQueue[_Answer | BaseException]()

        def ask() -> None:
            try:
                answers.put(self._exchange(request))
            except BaseException as error:  # noqa: BLE001 - the caller's thread raises it
                answers.put(error)

        # A look-up of a name cannot be stopped: the thread is left to end by itself.
        threading.Thread(target=ask, name="judge request", daemon=True).start()
        try:
            answer = answers.get(timeout=self.timeout)
        except queue.Empty:
            raise TimeoutError(f"no whole reply within {self.timeout:g} s") from None
        finally:
            request.cut()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _exchange(self, request: _Request) -> _Answer:
        received = bytearray()
        with self._opener.open(request, timeout=self.timeout) as response:
            while piece := response.read1(65536):
                received += piece
                if len(received) > LARGEST:
                    raise UserError(f"{self.url} sent over {LARGEST} bytes in one reply")
            if response.length:
                raise http.client.IncompleteRead(bytes(received), response.length)
            return _Answer(response.status, response.reason or "", response.headers, bytes(received))

    def _text(self, reply: bytes) -> str:
        text = text_of(reply)
        if text is None:
            raise UserError(
                f"{self.url} does not answer as OpenAI's chat completions do (choices[0].message.content); its reply "
                f"starts {self.shown(reply.decode('utf-8', 'replace'))!r}"
            )
        return text

    def _remedy(self, answer: _Answer) -> str:
        if answer.status in (401, 403):
            return "Name the environment variable with the key as api_key_env"
        if answer.status == 404:
            return "Is the url its base, such as http://localhost:8000/v1, and the model's name right?"
        if 300 <= answer.status < 400:
            return f"It moved to {self.shown(answer.headers.get('Location') or 'nowhere')}: give that address"
        return "The request is refused as it is: check model, max_tokens and extra_body"


class Replies:
    """A cache of replies in an SQLite file, by request. Threads and processes may share it.

    A file that cannot be used at the start is a UserError; one that fails later is reported once, and left alone.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self._failed: set[str] = set()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._run("CREATE TABLE IF NOT EXISTS replies (request TEXT PRIMARY KEY, reply TEXT)")
            self._run("SELECT request, reply FROM replies LIMIT 1")
        except (OSError, sqlite3.Error, ValueError) as error:
            raise UserError(
                f"judge: cache {str(path)!r} cannot be used: {error}. Give another, or cache: false"
            ) from None

    def get(self, url: str, request: dict[str, Any]) -> str | None:
        rows = self._try("read", "SELECT reply FROM replies WHERE request = ?", _digest(url, request))
        return rows[0][0] if rows and isinstance(rows[0][0], str) else None

    def put(self, url: str, request: dict[str, Any], reply: str) -> None:
        self._try("written", "INSERT OR REPLACE INTO replies VALUES (?, ?)", _digest(url, request), reply)

    def _try(self, how: str, statement: str, *values: str) -> list[Any]:
        if how in self._failed:
            return []
        try:
            return self._run(statement, *values)
        except (OSError, sqlite3.Error, ValueError) as error:
            with self._lock:
                if how not in self._failed:
                    log.warning(
                        "judge: cache %r cannot be %s: %s. The run goes on without it", str(self._path), how, error
                    )
                self._failed.add(how)
            return []

    def _run(self, statement: str, *values: str) -> list[Any]:
        with closing(sqlite3.connect(self._path, timeout=30)) as connection, connection:
            return connection.execute(statement, values).fetchall()


class _Request(urllib.request.Request):
    """A request whose connections another thread can cut off."""

    def __init__(self, url: str, data: bytes, headers: dict[str, str]) -> None:
        super().__init__(url, data, headers)
        self._sockets: list[socket.socket] = []
        self._lock, self._over = threading.Lock(), False

    def connect(self, *arguments: Any) -> socket.socket:
        """socket.create_connection."""
        connected = socket.create_connection(*arguments)
        with self._lock:
            if self._over:
                connected.close()
                raise TimeoutError("connected after the time limit")
            # TLS takes the descriptor away from the socket that it wraps; a duplicate stays.
            self._sockets.append(connected.dup())
        return connected

    def cut(self) -> None:
        with self._lock:
            self._over = True
            for connected in self._sockets:
                with suppress(OSError):
                    connected.shutdown(socket.SHUT_RDWR)
                connected.close()


def _connecting(kind: Any, request: Any) -> Any:
    """http.client's class `kind` with connections that `request` can cut off."""

    def make(*arguments: Any, **options: Any) -> Any:
        connection = kind(*arguments, **options)
        connection._create_connection = request.connect
        return connection

    return make


class _Http(urllib.request.HTTPHandler):
    def do_open(self, http_class: Any, req: Any, **options: Any) -> Any:
        return super().do_open(_connecting(http_class, req), req, **options)


class _Https(urllib.request.HTTPSHandler):
    def do_open(self, http_class: Any, req: Any, **options: Any) -> Any:
        return super().do_open(_connecting(http_class, req), req, **options)


class _AnyStatus(urllib.request.HTTPErrorProcessor):
    """Returns every response. A redirect would send the key to another host and drop the request's body."""

    def http_response(self, request: Any, response: Any) -> Any:
        return response

    https_response = http_response


def text_of(reply: bytes) -> str | None:
    """choices[0].message.content of a reply: a text, a list with text parts, a number or null. None for other forms."""
    try:
        content = json.loads(reply)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, dict) else part for part in content]
        content = "".join(text for text in texts if isinstance(text, str))
    if isinstance(content, bool) or not isinstance(content, str | int | float | None):
        return None
    return "" if content is None else well_formed(str(content))


def well_formed(text: str) -> str:
    """The text with U+FFFD for each surrogate that has no partner: it can be encoded."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _parts(url: str) -> urllib.parse.SplitResult:
    """The parts of an endpoint's address. Raises UserError, without what may be a password, for what is none."""
    with suppress(ValueError):
        parts = urllib.parse.urlsplit(url)
        plain = url.isascii() and url.isprintable() and " " not in url
        if plain and parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            parts.hostname.encode("idna")
            return parts
    start = url.rpartition("@")[2].partition("?")[0]
    raise UserError(f"url {start!r} is not the address of an endpoint: give its base, such as http://localhost:8000/v1")


def _pattern(secrets: list[str]) -> re.Pattern[str]:
    """Matches the secrets as they are, quoted as in an address, and with backslashes as in JSON; and bearer tokens."""
    forms = {form for secret in secrets if secret for form in (secret, urllib.parse.quote(secret, safe=""))}
    words = [r"\\*".join(map(re.escape, form)) for form in sorted(forms, key=len, reverse=True)]
    return re.compile("|".join([*words, r"(?<=\bbearer )(?=\S*\d)\S{8,}"]), re.IGNORECASE)


def _digest(url: str, request: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps([url, request], sort_keys=True).encode()).hexdigest()


def _asked_wait(asked: str) -> float:
    """The Retry-After header, a number or a date, in seconds from now; 0 if it is neither."""
    asked = asked.strip()
    if asked.isascii() and asked.isdecimal():
        return float(asked)
    try:
        date = parsedate_to_datetime(asked)
    except (ValueError, TypeError, OverflowError, IndexError):
        return 0.0
    return (date.replace(tzinfo=date.tzinfo or timezone.utc) - datetime.now(timezone.utc)).total_seconds()
