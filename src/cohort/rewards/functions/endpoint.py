"""Requests to an endpoint with OpenAI's chat completions API, and a cache of its replies in a file."""

from __future__ import annotations

import hashlib
import http.client
import json
import random
import sqlite3
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import Any

from cohort.types import UserError

TRY_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)
"""HTTP statuses of temporary failures, after which the request is repeated."""
LARGEST = 4 << 20
"""Maximum length of a reply in bytes."""
LONGEST_WAIT = 60.0
"""Maximum seconds between two tries, even if the endpoint asks for more."""


class Endpoint:
    """An endpoint with its key, retries and time limit. Thread-safe: each request opens its own connection."""

    def __init__(self, url: str, key: str | None, retries: int, timeout: float) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise UserError(
                f"url {url!r} is not the address of an endpoint: give its base, such as http://localhost:8000/v1"
            )
        base = url.rstrip("/").removesuffix("/chat/completions")
        self.url, self.retries, self.timeout = f"{base}/chat/completions", retries, timeout
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._opener = urllib.request.build_opener(_NoRedirects)

    def chat(self, body: dict[str, Any], stop: threading.Event) -> str:
        """The text of the reply. Repeats a request after a temporary failure, with growing delays, until `stop` is set.

        Raises UserError where the endpoint refuses the request or all tries fail.
        """
        data = json.dumps(body).encode()
        for attempt in range(self.retries + 1):
            wait = min(LONGEST_WAIT, 2.0**attempt / 2 * random.uniform(0.5, 1.5))
            try:
                return self._text(self._post(data))
            except urllib.error.HTTPError as error:
                with error:
                    said = " ".join(error.read(2000).decode("utf-8", "replace").split())[:300]
                problem = f"status {error.code} {error.reason}: {said}"
                if error.code not in TRY_AGAIN:
                    raise UserError(f"{self.url} answers with {problem}. {_remedy(error)}") from None
                wait = min(LONGEST_WAIT, max(wait, _asked_wait(error)))
            except (OSError, http.client.HTTPException) as error:
                problem = f"{type(error).__name__}: {error}"
            if attempt < self.retries and stop.wait(wait):
                break
        raise UserError(
            f"{self.url} did not answer in {self.retries + 1} tries of up to {self.timeout:g} s: {problem}. Is the "
            "server running, and is the url right? The run can be resumed when it answers"
        )

    def _post(self, data: bytes) -> bytes:
        """The body of the reply. The time limit holds for the whole reply."""
        deadline = time.monotonic() + self.timeout
        request = urllib.request.Request(self.url, data, self._headers)
        received = bytearray()
        with self._opener.open(request, timeout=self.timeout) as response:
            while piece := response.read1(65536):
                received += piece
                if len(received) > LARGEST:
                    raise UserError(f"{self.url} sent over {LARGEST} bytes in one reply")
                if time.monotonic() > deadline:
                    raise TimeoutError(f"no whole reply within {self.timeout:g} s")
            if response.length:
                raise http.client.IncompleteRead(bytes(received), response.length)
        return bytes(received)

    def _text(self, reply: bytes) -> str:
        try:
            message = json.loads(reply)["choices"][0]["message"]
            return message["content"] or ""
        except (ValueError, LookupError, TypeError):
            start = reply[:300].decode("utf-8", "replace")
            raise UserError(
                f"{self.url} does not answer as OpenAI's chat completions do (choices[0].message.content); its reply "
                f"starts {start!r}"
            ) from None


class Replies:
    """A cache of replies in an SQLite file, by request. Threads and processes may share it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._run("CREATE TABLE IF NOT EXISTS replies (request TEXT PRIMARY KEY, reply TEXT)")
        except (OSError, sqlite3.Error) as error:
            raise UserError(
                f"judge: cache {str(path)!r} cannot be used: {error}. Give another, or cache: false"
            ) from None

    def get(self, url: str, request: dict[str, Any]) -> str | None:
        rows = self._run("SELECT reply FROM replies WHERE request = ?", _digest(url, request))
        return rows[0][0] if rows else None

    def put(self, url: str, request: dict[str, Any], reply: str) -> None:
        self._run("INSERT OR REPLACE INTO replies VALUES (?, ?)", _digest(url, request), reply)

    def _run(self, statement: str, *values: str) -> list[Any]:
        with closing(sqlite3.connect(self._path, timeout=30)) as connection, connection:
            return connection.execute(statement, values).fetchall()


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Refuses redirects, which would send the key to another host and drop the request's body."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _digest(url: str, request: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps([url, request], sort_keys=True).encode()).hexdigest()


def _asked_wait(error: urllib.error.HTTPError) -> float:
    """The Retry-After header in seconds; 0 if it is missing or is not a number."""
    asked = (error.headers.get("Retry-After") or "").strip()
    return float(asked) if asked.isascii() and asked.isdecimal() else 0.0


def _remedy(error: urllib.error.HTTPError) -> str:
    if error.code in (401, 403):
        return "Name the environment variable with the key as api_key_env"
    if error.code == 404:
        return "Is the url its base, such as http://localhost:8000/v1, and the model's name right?"
    if 300 <= error.code < 400:
        return f"It moved to {error.headers.get('Location')}: give that address"
    return "The request is refused as it is: check model, max_tokens and extra_body"
