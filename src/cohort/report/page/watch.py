"""`cohort watch`: a run's page over loopback, to which the rows that the run writes are sent as they appear.

Nothing is written and nothing but the page is served. Requests that name another host are refused: a page of the web
could otherwise reach the server by a name of its own (DNS rebinding).
"""

from __future__ import annotations

import json
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cohort.report.page.payload import blocks, judged, read_runs
from cohort.report.page.read import FILES, plain, read_lines
from cohort.report.page.write import page, policy, scripts, styles

LOOPBACK = "127.0.0.1"
INTERVAL = 0.5
"""Seconds between two looks at the files."""
SILENT = 15.0
"""Seconds after which a comment is sent, by which a connection that is gone is noticed."""
Places = dict[str, list[int]]


class Watch(ThreadingHTTPServer):
    """The server of one run's page; `port` 0 takes a free one. `serve_forever` runs it."""

    daemon_threads = True

    def __init__(self, folder: Path, port: int = 0):
        self.folder = folder
        super().__init__((LOOPBACK, port), _Handler)

    @property
    def address(self) -> str:
        return f"http://{LOOPBACK}:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader that closes its page is no error to print."""


class _Handler(BaseHTTPRequestHandler):
    server: Watch
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if self.headers.get("Host") not in {f"{name}:{self.server.server_port}" for name in (LOOPBACK, "localhost")}:
            self._text(403, "this server answers to 127.0.0.1 and localhost alone", "text/plain")
        elif url.path == "/":
            folder = self.server.folder
            self._text(200, page(blocks(read_runs([folder]), live=True), folder.name, live=True), "text/html")
        elif url.path == "/events":
            self._events(parse_qs(url.query))
        else:
            self._text(404, "no such page", "text/plain")

    def _text(self, status: int, text: str, kind: str) -> None:
        data = text.encode("utf-8", errors="replace")
        self._head(status, kind, {"Content-Length": str(len(data))})
        self.wfile.write(data)

    def _head(self, status: int, kind: str, more: dict[str, str]) -> None:
        self.send_response(status)
        allowed = policy(scripts(), styles(), live=True) + "; frame-ancestors 'none'"
        for name, value in {
            "Content-Type": f"{kind}; charset=utf-8",
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Content-Security-Policy": allowed,
            **more,
        }.items():
            self.send_header(name, value)
        self.end_headers()

    def _events(self, query: dict[str, list[str]]) -> None:
        """Server-sent events. Each one's id is where the files were read to, so that a browser that connects again goes
        on from there."""
        places = _places(self.headers.get("Last-Event-ID") or query.get("place", [""])[0])
        if places is None:
            self._text(400, "`place` says where each file was read to", "text/plain")
            return
        self._head(200, "text/event-stream", {"Connection": "close"})
        self.close_connection = True
        last, state = time.monotonic(), ""
        while True:
            changes = news(self.server.folder, places)
            if changes is None:
                self._send("again", "{}", places)
                return
            if changes or not state:
                self._send("rows", json.dumps(plain(changes), allow_nan=False), places)
            fresh = _judged(self.server.folder) if changes or not state or _ended(self.server.folder, state) else state
            if fresh != state:
                self._send("judged", fresh, places)
                state = fresh
                last = time.monotonic()
            if time.monotonic() - last > SILENT:
                self.wfile.write(b": still here\n\n")
                self.wfile.flush()
                last = time.monotonic()
            time.sleep(INTERVAL)

    def _send(self, event: str, data: str, places: Places) -> None:
        text = f"event: {event}\nid: {json.dumps(places)}\ndata: {data}\n\n"
        self.wfile.write(text.encode("utf-8", errors="replace"))
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not printed: the terminal is the run's."""


def _places(text: str) -> Places | None:
    """{"metrics": [inode, bytes], ...} of each file; None where the text is none."""
    try:
        value = json.loads(text)
        return {name: [int(value[name][0]), int(value[name][1])] for name in FILES}
    except (ValueError, LookupError, TypeError):
        return None


def news(folder: Path, places: Places) -> dict[str, Any] | None:
    """The rows since `places`, by file, and `places` moved on. None where a file was cut or replaced, as a run that
    resumes does: the page must be read anew."""
    changes: dict[str, Any] = {}
    for name in FILES:
        path = folder / f"{name}.jsonl"
        try:
            now = path.stat()
        except FileNotFoundError:
            if places[name][1]:
                return None
            continue
        inode, read = places[name]
        if (inode and inode != now.st_ino) or now.st_size < read:
            return None
        if now.st_size > read:
            lines = read_lines(path, read)
            places[name] = lines.place
            if lines.rows:
                changes[name] = lines.rows
    return changes


def _judged(folder: Path) -> str:
    rows, warnings = (read_lines(folder / f"{name}.jsonl").rows for name in ("metrics", "warnings"))
    return json.dumps(judged(folder, rows, warnings), allow_nan=False)


def _ended(folder: Path, state: str) -> bool:
    """Whether the run's end came, or went, since the state was sent."""
    return (folder / "ended.json").is_file() == ('"ended": {}' in state)
