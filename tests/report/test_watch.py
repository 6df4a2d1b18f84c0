"""The live page's server: what it serves, to whom, and what it sends as a run writes."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from cohort.report.page.payload import read_runs
from cohort.report.page.watch import LOOPBACK, Watch, news
from helpers import ROOT
from made_runs import make_run


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Watch]:
    with Watch(make_run(tmp_path / "run", steps=3)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def listen(server: Watch, path: str, **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(LOOPBACK, server.server_port, timeout=10)
    connection.request("GET", path, headers=headers)
    return connection.getresponse()


def get(server: Watch, path: str, method: str = "GET", **headers: str) -> tuple[http.client.HTTPResponse, str]:
    """The answer and its text."""
    with closing(http.client.HTTPConnection(LOOPBACK, server.server_port, timeout=10)) as connection:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer, answer.read().decode()


def events(answer: http.client.HTTPResponse) -> Iterator[tuple[str, Any, Any]]:
    while True:
        fields = {}
        while line := answer.readline().decode().strip():
            name, _, value = line.partition(": ")
            fields[name] = value
        if fields:
            yield fields["event"], json.loads(fields["data"]), json.loads(fields["id"])


def places(folder: Path) -> dict[str, list[int]]:
    return {name: lines.place for name, lines in read_runs([folder])[0].files.items()}


def test_it_serves_the_page_to_this_machine_alone(server: Watch) -> None:
    assert server.server_address[0] == "127.0.0.1"
    answer, text = get(server, "/")
    assert answer.status == 200 and "block-head" in text
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy and "frame-ancestors 'none'" in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert get(server, "/", Host="evil.example")[0].status == 403
    assert get(server, "/events?place=x", Host=f"evil.example:{server.server_port}")[0].status == 403
    for path, code in {"/../config.yaml": 404, "/config.yaml": 404, "/events": 400, "/events?place=[]": 400}.items():
        assert get(server, path)[0].status == code
    assert get(server, "/", "POST")[0].status == 501


def test_it_sends_what_the_run_writes(server: Watch) -> None:
    folder = server.folder
    (folder / "ended.json").unlink()
    answer = listen(server, f"/events?place={quote(json.dumps(places(folder)))}")
    stream = events(answer)
    assert next(stream)[:2] == ("rows", {})
    kind, state, _ = next(stream)
    assert kind == "judged" and "No end is recorded" in state["summary"]["lines"][1]
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "reward": 0.75, "kl": NaN}\n{"step": 5, "rew')
    kind, rows, place = next(stream)
    assert (kind, rows) == ("rows", {"metrics": [{"step": 4, "reward": 0.75, "kl": None}]})
    assert next(stream)[0] == "judged"
    (folder / "ended.json").write_text('{"step": 4, "max_steps": 4, "by": "max_steps"}')
    assert next(stream)[1]["ended"]["by"] == "max_steps"
    answer.close()
    # A browser that connects again goes on from the last event.
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('ard": 1.0}\n')
    again = listen(server, "/events", **{"Last-Event-ID": json.dumps(place)})
    assert next(events(again))[1] == {"metrics": [{"step": 5, "reward": 1}]}
    again.close()


def test_a_run_that_begins_again_is_read_anew(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=3)
    place = places(folder)
    assert news(folder, place) == {}
    text = (folder / "metrics.jsonl").read_text()
    (folder / "cut").write_text(text)
    (folder / "cut").replace(folder / "metrics.jsonl")
    assert news(folder, place) is None
    place = places(folder)
    (folder / "rows.jsonl").unlink()
    assert news(folder, place) is None


def test_the_command_prints_its_address_and_ends_quietly_by_ctrl_c(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=1)
    # A background job of a shell ignores Ctrl-C, and so would its children.
    restored = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = f"{restored}; from cohort.cli.app import main; main()"
    command = [sys.executable, "-c", program, "watch", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split(" ")[0]
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", address)
        port = urlsplit(address).port
        assert port is not None
        taken = subprocess.run([*command, "--port", str(port)], env=environment, capture_output=True, text=True)
        assert taken.returncode == 2 and f"--port {port}: Address already in use" in taken.stderr
        process.send_signal(signal.SIGINT)
        try:
            _, errors = process.communicate(timeout=20)
        finally:
            process.kill()
        assert (process.returncode, errors) == (0, "")
