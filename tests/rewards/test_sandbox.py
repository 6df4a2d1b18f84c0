"""The sandbox against hostile programs, in every combination of layers that this machine has."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hostile
from cohort.rewards.sandbox.layers import NONE, Layers, Limits, find_layers, require
from cohort.rewards.sandbox.plan import plan
from cohort.rewards.sandbox.run import Verdict, run_command, run_tests, side_by_side
from cohort.types import UserError

# The number of bytes marks our processes: it is on their command lines.
LIMITS = Limits(0.5, (256 << 20) + 4096 * (os.getpid() % 60000))
PROGRAMS = {**hostile.BOMBS, **hostile.ESCAPES, **hostile.FORGERIES, **hostile.CONVERSIONS}


def combinations() -> list[Any]:
    """All layers; Landlock and seccomp alone; bubblewrap alone."""
    found = find_layers()
    absent = "left out"
    wanted = {
        "bubblewrap+landlock+seccomp": Layers(None, None, None),
        "landlock+seccomp": Layers(absent, None, None),
        "bubblewrap": Layers(None, absent, absent),
    }
    marks = []
    for name, layers in wanted.items():
        missing = [f"{layer}: {vars(found)[layer]}" for layer in layers.names if vars(found)[layer] is not None]
        marks.append(pytest.param(layers, id=name, marks=pytest.mark.skipif(bool(missing), reason="; ".join(missing))))
    return marks


HERE = pytest.mark.skipif(not find_layers().safe, reason="no sandbox on this machine")


def judge(code: str, *tests: str, layers: Layers | None = None, setup: str = "", limits: Limits = LIMITS) -> Verdict:
    return run_tests([code], plan(tests, "", setup, "", "", False), False, limits, layers or find_layers())


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What the programs attack."""
    folder = tmp_path_factory.mktemp("host")
    (folder / "secret.txt").write_text(hostile.SECRET)
    servers = [socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)]
    servers[1].bind(str(folder / "socket"))
    servers[1].listen()
    for server in servers:
        threading.Thread(target=serve, args=(server,), daemon=True).start()
    secret = ctypes.create_string_buffer(hostile.SECRET.encode())
    yield {
        "address": ctypes.addressof(secret),
        "pid": os.getpid(),
        "port": servers[0].getsockname()[1],
        "socket": str(folder / "socket"),
        "file": str(folder / "secret.txt"),
        "folder": str(folder),
        "name": f"hostile-{os.getpid()}",
    }
    for server in servers:
        server.close()


def serve(server: socket.socket) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        with connection:
            connection.sendall(hostile.SECRET.encode())


def attack(name: str, layers: Layers, host: dict[str, Any]) -> tuple[Verdict, float]:
    program = PROGRAMS[name]
    code, test = program if isinstance(program, tuple) else (program, hostile.TEST)
    helpers = ""
    if test == "helper":
        helpers, test = "def verify(x):\n    return x == 'q7'", "assert verify(attack(host))"
        code += "\ndef verify(x): return True"
    tests = plan((test,), "", f"host = {host!r}", helpers, "", False)
    started = time.monotonic()
    return run_tests([code], tests, False, LIMITS, layers), time.monotonic() - started


def ours() -> list[str]:
    """Command lines of processes of these tests."""
    lines = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            line = Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(LIMITS.memory) in line:
            lines.append(line)
    return lines


def left_behind(host: dict[str, Any]) -> list[str]:
    folders = [Path("/tmp"), Path("/dev/shm"), Path("/var/tmp"), Path("/"), Path.cwd()]
    return [str(path) for folder in folders for path in folder.glob(f"{host['name']}*")]


def withstands(names: list[str], layers: Layers, host: dict[str, Any]) -> None:
    if layers.seccomp is not None:
        names = [name for name in names if name not in hostile.IN_NAMESPACES]
        if os.geteuid() == 0:
            names = [name for name in names if name not in hostile.NEED_SECCOMP_AS_ROOT]
    before = sorted(os.listdir(host["folder"])), os.stat(host["file"]).st_mtime, os.stat(host["file"]).st_mode
    results = side_by_side(lambda name: attack(name, layers, host), names, 6)
    assert {name: verdict for name, (verdict, _) in zip(names, results, strict=True) if verdict.passed} == {}
    # Starting and killing take time too where others use this machine.
    latest = LIMITS.wall_seconds + 5
    assert {name: seconds for name, (_, seconds) in zip(names, results, strict=True) if seconds > latest} == {}
    deadline = time.monotonic() + 2
    while ours() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert ours() == []
    assert left_behind(host) == []
    after = sorted(os.listdir(host["folder"])), os.stat(host["file"]).st_mtime, os.stat(host["file"]).st_mode
    assert after == before
    assert Path(host["file"]).read_text() == hostile.SECRET
    assert judge("def f(x): return x + 1", "assert f(1) == 2", layers=layers, limits=Limits()).ok


def test_there_are_enough_hostile_programs() -> None:
    assert len(PROGRAMS) >= 220 and len(hostile.FORGERIES) >= 25 and len(hostile.CONVERSIONS) >= 140


@pytest.mark.parametrize("layers", combinations())
def test_escapes(layers: Layers, host: dict[str, Any]) -> None:
    withstands([*hostile.ESCAPES], layers, host)


@HERE
def test_forgeries(host: dict[str, Any]) -> None:
    withstands([*hostile.FORGERIES], find_layers(), host)


@HERE
def test_operators_and_conversions(host: dict[str, Any]) -> None:
    withstands([*hostile.CONVERSIONS], find_layers(), host)


def test_operators_and_conversions_are_real_attacks() -> None:
    for code, test in hostile.CONVERSIONS.values():
        namespace: dict[str, Any] = {"host": {}}
        exec(code, namespace)
        exec(test, namespace)


@HERE
def test_bombs(host: dict[str, Any]) -> None:
    withstands([*hostile.BOMBS], find_layers(), host)


@pytest.mark.slow
@pytest.mark.parametrize("layers", combinations()[1:])
def test_bombs_and_forgeries_under_some_layers(layers: Layers, host: dict[str, Any]) -> None:
    withstands([*hostile.BOMBS, *hostile.FORGERIES], layers, host)


def test_without_layers_the_attacks_are_real(host: dict[str, Any]) -> None:
    verdicts = side_by_side(lambda name: attack(name, NONE, host)[0], hostile.HARMLESS, 4)
    assert [name for name, verdict in zip(hostile.HARMLESS, verdicts, strict=True) if not verdict.ok] == []


def test_without_layers_verdicts_are_still_safe(host: dict[str, Any]) -> None:
    names = list(hostile.FORGERIES)
    assert not any(verdict.passed for verdict, _ in side_by_side(lambda name: attack(name, NONE, host), names, 6))


@HERE
def test_programs_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    script = tmp_path / "judge.py"
    script.write_text(
        "from cohort.rewards.sandbox.layers import Limits, find_layers\n"
        "from cohort.rewards.sandbox.plan import plan\n"
        "from cohort.rewards.sandbox.run import run_tests\n"
        f"limits = Limits(100, {LIMITS.memory})\n"
        "run_tests(['import time; time.sleep(1000)'], plan(('assert f()',), '', '', '', '', False), False, limits,"
        " find_layers())\n"
    )
    judge_process = subprocess.Popen([sys.executable, script])
    deadline = time.monotonic() + 30
    while len(ours()) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.5)
    assert len(ours()) >= 2
    judge_process.kill()
    judge_process.wait()
    deadline = time.monotonic() + 5
    while ours() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert ours() == []


def test_a_sandbox_that_does_not_start_is_no_failed_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho no namespaces here >&2\nexit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    absent = "left out"
    with pytest.raises(RuntimeError, match=r"did not start; see `cohort doctor`.*no namespaces here"):
        judge("def f(): return 1", "assert f() == 1", layers=Layers(None, absent, absent))


def test_how_a_program_ended_is_told() -> None:
    test = "assert f() == 1"
    assert judge("import os\ndef f(): os._exit(3)", test).reason == f"{test}: the program ended: exit 3"
    loop = judge("def f():\n    while True: pass", test, limits=Limits(0.4))
    assert "over 0.4 seconds of processor time" in loop.reason or "still running after" in loop.reason
    crash = judge("import ctypes\ndef f(): ctypes.string_at(0)", test).reason
    assert crash == f"{test}: the program ended: Segmentation fault"


def test_no_sandbox_is_refused_with_what_to_do() -> None:
    with pytest.raises(UserError, match=r"no sandbox .*bubblewrap: no: left out.*apt install.*allow_unsandboxed"):
        require(NONE, False)
    assert require(NONE, True) is False
    assert require(Layers("x", None, None), False) is require(Layers(None, "x", None), False) is True
    if os.geteuid() == 0:
        assert not Layers(None, None, "x").safe


def test_other_languages_by_what_they_print(host: dict[str, Any]) -> None:
    layers, command = find_layers(), "perl {file}.pl"

    def run(source: str, *cases: tuple[str, str], share: bool = False) -> Verdict:
        return run_command(command, source, cases, share, LIMITS, layers)

    cases = (("3\n", "6\n"), ("5", "10"))
    assert run("print 2 * <STDIN>, qq(  \n\n);", *cases) == Verdict(2, 2)
    wrong = run("print 6;", *cases, share=True)
    assert (wrong.passed, wrong.total, wrong.reason) == (1, 2, "printed '6', expected '10'")
    assert run("print 6; exit 1;", *cases).reason == "exit 1"
    assert run("while (1) {}", *cases).passed == 0
    assert run("while (1) { print 'x' x 1000000 }", *cases).passed == 0
    assert run(f"open(F, '<', '{host['file']}') or die; print <F>;", ("", hostile.SECRET)).passed == 0
    assert run("fork; print 6;", ("", "66")).passed == 0
    assert run("open(F, '>', 'x') or die; print F 1; close F; print -s 'x'", ("", "1")).ok
    assert ours() == [] and not list(Path("/tmp").glob("cohort-*/program.pl"))
    with pytest.raises(UserError, match="no such program"):
        run_command("no-such-thing {file}", "", [("", "")], False, LIMITS, layers)
    with pytest.raises(UserError, match="must name the program's file once"):
        run_command("perl", "", [("", "")], False, LIMITS, layers)
