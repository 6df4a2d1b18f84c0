"""The judge's endpoint: time limits that hold, replies of any form, a damaged cache, messages without keys."""

from __future__ import annotations

import base64
import json
import logging
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cohort.rewards import Rewards
from cohort.rewards.functions.endpoint import Endpoint, _asked_wait, text_of, well_formed
from cohort.rewards.functions.judge import parsed_score
from cohort.types import UserError

KEY = "sk-5eCr3t/+Key=="
Talk = Callable[[socket.socket, bytes], None]


class Server:
    """Reads each request whole, then calls `talk` with the connection and the request."""

    def __init__(self, talk: Talk) -> None:
        self.talk = talk
        self.requests: list[bytes] = []
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self.socket.getsockname()[1]}"
        self.ended = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self.socket.accept()
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            received = b""
            while b"\r\n\r\n" not in received:
                received += connection.recv(65536)
            head, _, body = received.partition(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].split()[0])
            while len(body) < length:
                body += connection.recv(65536)
            self.requests.append(head + b"\r\n\r\n" + body)
            self.talk(connection, self.requests[-1])

    def drip(self, piece: bytes, before: bytes = b"", every: float = 0.02) -> Talk:
        def talk(connection: socket.socket, _: bytes) -> None:
            connection.sendall(before)
            while not self.ended.wait(every):
                connection.sendall(piece)

        return talk


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("random.uniform", lambda low, high: 0.02)
    server = Server(lambda connection, request: connection.sendall(http(200, chat("Score: 7"))))
    yield server
    server.ended.set()
    server.socket.shutdown(socket.SHUT_RDWR)
    server.socket.close()


def http(status: int, body: bytes, headers: str = "", reason: str = "X") -> bytes:
    return f"HTTP/1.1 {status} {reason}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


def chat(content: Any) -> bytes:
    return json.dumps({"choices": [{"message": {"content": content}}]}).encode()


def saying(data: bytes) -> Talk:
    return lambda connection, request: connection.sendall(data)


def ask(server: Server, url: str = "", key: str | None = None, retries: int = 0, timeout: float = 20.0) -> str:
    endpoint = Endpoint(url or f"http://{server.host}/v1", key, retries, timeout)
    return endpoint.chat({"messages": []}, threading.Event())


OK = b"HTTP/1.1 200 OK\r\n"
DRIPPED = {
    "nothing": (b"", b""),
    "status line": (b"1", b"HTTP/1."),
    "a header line": (b"x", OK + b"X: "),
    "header lines": (b"X: y\r\n", OK),
    "continue": (b"HTTP/1.1 100 Continue\r\n\r\n", b""),
    "continue with headers": (b"X: y\r\n", b"HTTP/1.1 100 Continue\r\n"),
    "body": (b" ", OK + b"Content-Length: 100000\r\n\r\n"),
    "body to the end": (b" ", OK + b"\r\n"),
    "chunks": (b"1\r\n \r\n", OK + b"Transfer-Encoding: chunked\r\n\r\n"),
    "a chunk's length": (b"0", OK + b"Transfer-Encoding: chunked\r\n\r\n"),
    "trailers": (b"X: y\r\n", OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n"),
    "body of an error": (b"x", b"HTTP/1.1 400 No\r\n\r\n"),
}


@pytest.mark.parametrize("what", DRIPPED)
def test_the_time_limit_holds_whatever_the_server_sends(server: Server, what: str) -> None:
    piece, before = DRIPPED[what]
    server.talk = server.drip(piece, before, every=0.005 if what == "continue" else 0.02)
    start = time.monotonic()
    # http.client counts 100 headers and 64 KiB of a line; they are reached before the limit in some cases.
    with pytest.raises(UserError, match=r"did not answer in 2 tries of up to 0\.4 s: "):
        ask(server, timeout=0.4, retries=1)
    assert time.monotonic() - start < 5
    assert len(server.requests) == 2


@pytest.mark.parametrize("url", ["https", "name"])
def test_the_time_limit_holds_before_the_request(server: Server, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if url == "name":
        look_up = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: [server.ended.wait(9), look_up(*a, **k)][1])
    listener = socket.create_server(("127.0.0.1", 0))
    held: list[socket.socket] = []

    def accept() -> None:
        with suppress(OSError):
            held.append(listener.accept()[0])
            while not server.ended.wait(0.02):  # a TLS record of 16 KiB, byte by byte
                held[0].sendall(b"\x16\x03\x03\x40\x00"[:1])

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    start = time.monotonic()
    scheme = "https" if url == "https" else "http"
    with pytest.raises(UserError, match=r"did not answer in 1 tries"):
        ask(server, f"{scheme}://127.0.0.1:{listener.getsockname()[1]}/v1", timeout=0.3)
    assert time.monotonic() - start < 5
    server.ended.set()
    # Closing alone does not end a call of accept.
    listener.shutdown(socket.SHUT_RDWR)
    thread.join()
    for each in (*held, listener):
        each.close()


def test_many_and_long_headers(server: Server) -> None:
    for headers in ("X: y\r\n" * 200, f"X: {'y' * 70_000}\r\n"):
        server.talk = saying(http(200, chat("Score: 7"), headers))
        with pytest.raises(UserError, match=r"did not answer in 1 tries .*(100 headers|65536)"):
            ask(server)
    server.talk = saying(OK + b"\r\n" + b" " * (5 << 20))
    with pytest.raises(UserError, match="sent over 4194304 bytes"):
        ask(server)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("Score: 7", "Score: 7"),
        ([{"type": "text", "text": "Score: "}, {"type": "text", "text": "7"}], "Score: 7"),
        ([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "Score: 7"}], "Score: 7"),
        ([{"type": "image_url", "image_url": {"url": "x"}}], ""),
        (["Score: ", "7", None, 3], "Score: 7"),
        ([], ""),
        (None, ""),
        (7, "7"),
        (7.5, "7.5"),
        (float("inf"), "inf"),
        ("Score: 7 \ud800", "Score: 7 \ufffd"),
        ("\ud83d\ude00", "\U0001f600"),
        (True, None),
        ({"score": 7}, None),
    ],
)
def test_the_text_of_a_reply(content: Any, text: str | None) -> None:
    assert text_of(chat(content)) == text


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b'{"choices": []}',
        b'{"choices": null}',
        b'{"choices": {}}',
        b'{"choices": [null]}',
        b'{"choices": [{"message": null}]}',
        b'{"choices": [{"message": {}}]}',
        b"[" * 200_000,
        b'{"choices": [{"message": {"content": ' + b"[" * 200_000,
        b'{"choices": [{"message": {"content": ' + b"9" * 5000 + b"}}]}",
        b"\xff\xfe",
        b"\x1f\x8b\x08\x00",
    ],
)
def test_a_reply_of_another_form(server: Server, reply: bytes) -> None:
    assert text_of(reply) is None
    server.talk = saying(http(200, reply))
    with pytest.raises(UserError, match="does not answer as OpenAI's chat completions do"):
        ask(server)


def check_reply(reply: bytes) -> None:
    text = text_of(reply)
    if text is not None:
        text.encode()
        score = parsed_score(text, 0, 10)
        assert score is None or 0 <= score <= 10


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.just("Score: 7"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "type", "x"]), inner),
    max_leaves=8,
)
_contents = _json.map(chat)
_shapes = st.recursive(
    _json,
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.fixed_dictionaries({}, optional={"choices": inner, "message": inner, "content": inner})
    ),
    max_leaves=8,
).map(lambda value: json.dumps(value).encode())
_replies = _contents | _shapes | st.binary()


@given(_replies)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_reply_has_a_score_or_none(reply: bytes) -> None:
    check_reply(reply)


@pytest.mark.slow
@given(_replies)
@settings(max_examples=5000, deadline=None, suppress_health_check=list(HealthCheck))
def test_five_thousand_replies(reply: bytes) -> None:
    check_reply(reply)


def test_the_judge_of_texts_with_lone_surrogates(server: Server, tmp_path: Path) -> None:
    server.talk = saying(http(200, b'{"choices": [{"message": {"content": "\\ud800 Score: 7"}}]}'))
    judge = {"url": f"http://{server.host}/v1", "model": "m", "rubric": "r", "cache": str(tmp_path / "c.sqlite")}
    rewards = Rewards([{"judge": judge}])
    for _ in range(2):
        assert rewards(["\udc80?"], ["a \ud800"], [[1]], {"answer": ["4 \udfff"]}).totals == [0.7]
    assert len(server.requests) == 1
    body = json.loads(server.requests[0].partition(b"\r\n\r\n")[2])
    assert "a \ufffd\n" in body["messages"][1]["content"]
    json.dumps(body, ensure_ascii=False).encode()
    assert well_formed("x\ud83d\ude00") == "x\U0001f600"


ECHOES = [
    http(400, f'{{"headers": {{"Authorization": "Bearer {KEY}"}}}}'.encode()),
    http(400, json.dumps({"key": KEY}).replace("/", "\\/").encode()),
    http(401, b" " * 5000 + KEY.encode() * 50),
    http(403, b"", reason=f"{KEY} is wrong"),
    http(307, b"", f"Location: http://elsewhere/?key={KEY}\r\n"),
    http(307, b"", "Location: http://elsewhere/?key=sk-5eCr3t%2F%2BKey%3D%3D\r\n"),
    http(302, b"", f"Location: http://[{KEY}\r\n"),
    http(503, KEY.encode()),
    http(200, KEY.encode()),
    f"{KEY}\r\n\r\n".encode(),
    http(400, b"you sent Bearer anothersecret123"),
]


@pytest.mark.parametrize("answer", ECHOES)
def test_a_message_has_no_key(server: Server, answer: bytes) -> None:
    server.talk = saying(answer)
    with pytest.raises(UserError) as caught:
        ask(server, key=KEY)
    assert f"Authorization: Bearer {KEY}".encode() in server.requests[0]
    for secret in (KEY, "5eCr3t", "anothersecret123"):
        assert secret not in str(caught.value)
    assert "***" in str(caught.value)


def test_keys_in_the_address(server: Server) -> None:
    url = f"http://robot:p%40ss@{server.host}/v1/?api-key={KEY}"
    token = base64.b64encode(b"robot:p@ss").decode()
    assert ask(server, url.replace("=sk", "=%73k")) == "Score: 7"
    head = server.requests[0].decode().splitlines()
    assert head[0].startswith("POST /v1/chat/completions?api-key=") and f"Authorization: Basic {token}" in head
    server.talk = saying(http(400, f"{token} p@ss {KEY} robot:p@ss {url}".encode()))
    with pytest.raises(UserError) as caught:
        ask(server, url)
    assert f"http://{server.host}/v1/chat/completions answers" in str(caught.value)
    for secret in (token, "p@ss", "p%40ss", KEY, "robot"):
        assert secret not in str(caught.value)
    with pytest.raises(UserError, match="give one of them") as caught:
        ask(server, url, key="k")
    assert "p%40ss" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://[::1",
        "http://h:99999/v1",
        "http://h:x/v1",
        "http://h /v1",
        "http://h/\n",
        "http://u:secret@",
        "http://é/v1",
        "http://" + "a" * 64 + ".de",
        "http://a..de/v1",
        "https:/u:secret@h",
        "http://?api-key=secret",
    ],
)
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(UserError, match="is not the address of an endpoint") as caught:
        Endpoint(url, None, 0, 1)
    assert "secret" not in str(caught.value)


def test_a_key_with_a_line_break(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sec\nret")
    with pytest.raises(UserError, match="JUDGE_KEY has characters that no key can have") as caught:
        Rewards([{"judge": {"url": "http://h/v1", "model": "m", "rubric": "r", "api_key_env": "JUDGE_KEY"}}])
    assert "ret" not in str(caught.value).replace("characters that", "").partition("JUDGE_KEY has")[2]


def test_the_wait_asked_for_is_a_number_or_a_date() -> None:
    later = datetime.now(timezone.utc) + timedelta(seconds=30)
    assert 25 < _asked_wait(format_datetime(later, usegmt=True)) <= 30
    assert _asked_wait("Wed, 21 Oct 2015 07:28:00 GMT") < 0
    assert [_asked_wait(text) for text in (" 7 ", "", "soon", "-3", "٣", "Wed, 99 Oct 2015")] == [7, 0, 0, 0, 0, 0]
    assert _asked_wait("9" * 400) == float("inf")


def judged(server: Server, cache: Path, completions: list[str]) -> list[float]:
    judge = {"url": f"http://{server.host}/v1", "model": "m", "rubric": "r", "cache": str(cache), "concurrency": 2}
    return Rewards([{"judge": judge}])(["p"] * len(completions), completions, [[1]] * len(completions), {}).totals


SCHEMAS = {
    "other columns": "CREATE TABLE replies (a, b)",
    "a view": "CREATE VIEW replies AS SELECT 1 AS request",
}


@pytest.mark.parametrize("damage", ["text", *SCHEMAS])
def test_a_file_that_is_no_cache_is_refused_at_the_start(server: Server, tmp_path: Path, damage: str) -> None:
    cache = tmp_path / "judge.sqlite"
    if damage == "text":
        cache.write_text("this is no database, and it is long enough to be read as one" * 20)
    else:
        with closing(sqlite3.connect(cache)) as connection, connection:
            connection.execute(SCHEMAS[damage])
    with pytest.raises(UserError, match=r"cache .*judge.sqlite' cannot be used: .*Give another, or cache: false"):
        judged(server, cache, ["x"])


@pytest.mark.parametrize("value", [None, b"\xff", b"Score: 1"])
def test_an_entry_that_is_no_text_is_asked_again(server: Server, tmp_path: Path, value: Any) -> None:
    cache = tmp_path / "judge.sqlite"
    judged(server, cache, ["x"])
    with closing(sqlite3.connect(cache)) as connection, connection:
        connection.execute("UPDATE replies SET reply = ?", (value,))
    assert judged(server, cache, ["x"]) == [0.7] and len(server.requests) == 2
    assert judged(server, cache, ["x"]) == [0.7] and len(server.requests) == 2


def test_a_cache_damaged_in_the_run_is_left_alone(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "judge.sqlite"
    judge = {"url": f"http://{server.host}/v1", "model": "m", "rubric": "r", "cache": str(cache)}
    rewards = Rewards([{"judge": judge}])
    for change in (lambda: cache.write_bytes(b"\0garbage" * 1000), lambda: None):
        change()
        with caplog.at_level(logging.WARNING, "cohort"):
            assert rewards(["p"] * 8, list("abcdefgh"), [[1]] * 8, {}).totals == [0.7] * 8
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 and "cannot be read: file is not a database" in said[0] and "goes on without it" in said[1]


def test_a_cache_that_cannot_be_written(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = tmp_path / "judge.sqlite"
    judged(server, cache, ["kept"])
    with closing(sqlite3.connect(cache)) as connection, connection:
        connection.execute("CREATE TRIGGER full BEFORE INSERT ON replies BEGIN SELECT RAISE(FAIL, 'disk is full'); END")
    with caplog.at_level(logging.WARNING, "cohort"):
        assert judged(server, cache, ["a", "b", "kept"]) == [0.7] * 3
    assert len(server.requests) == 3
    assert ["cannot be written: disk is full" in record.getMessage() for record in caplog.records] == [True]
