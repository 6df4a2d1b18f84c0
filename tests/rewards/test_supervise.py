"""Workers end with all that they started: at their time limit, at their end, and with the trainer."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cohort.rewards import RewardFunctionError, Rewards

# Each function starts a process with the marker on its command line, then ends in its own way.
FILE = """
import json, multiprocessing, os, re, subprocess, sys, time

def sleeper(marker):
    return [sys.executable, "-c", f"import time; time.sleep(300)  # {marker}"]

def child(marker): subprocess.Popen(sleeper(marker))

def session(marker): subprocess.Popen(sleeper(marker), start_new_session=True)

def forked(marker):
    if os.fork() == 0:
        os.execv(sys.executable, sleeper(marker))

def daemon(marker):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execv(sys.executable, sleeper(marker))
        os._exit(0)
    os.wait()

def stubborn(marker):
    command = sleeper("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\\n" + marker)
    subprocess.Popen(["/bin/sh", "-c", 'trap "" TERM HUP INT; "$@" & wait', "sh", *command], start_new_session=True)

def reward(completions, marker, start, then):
    for name in start[0].split():
        globals()[name](marker[0])
    time.sleep(0.3)
    if then[0] == "hang":
        time.sleep(300)
    if then[0] == "regex":
        re.match(r"(a+)+$", "a" * 40 + "b")
    if then[0] == "die":
        os._exit(7)
    if then[0] == "killed":
        os.kill(os.getpid(), 11)
    return [1.0]

def forks(completions, how):
    if os.fork() == 0:
        if how[0] == "exit":
            sys.exit(0)
        return [9.0]
    os.wait()
    return [1.0]

def exits(completions, how):
    if "end" in completions:
        exec(how[0])
    return [1.0] * len(completions)

async def exits_later(completions, how):
    import asyncio
    await asyncio.sleep(0)
    async def inner(): return exits(completions, how)
    return await asyncio.create_task(inner())

def circular(completions):
    each = []
    each.append(each)
    return each
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return str(path)


def score(rewards: Rewards, completions: list[str], **columns: list[Any]) -> list[float]:
    return rewards([f"p{i}" for i in range(len(completions))], completions, [[1]] * len(completions), columns).totals


def processes() -> list[int]:
    """Listed, not globbed: a glob fails where a process ends between its listing and its look at it."""
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def running(marker: str) -> list[int]:
    """Processes with the marker on their command line."""
    found = []
    for pid in processes():
        try:
            if marker.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
        except OSError:
            continue
    return found


def gone(marker: str, seconds: float = 10) -> bool:
    until = time.monotonic() + seconds
    while running(marker) and time.monotonic() < until:
        time.sleep(0.05)
    return not running(marker)


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")


EVERY_WAY = "child session forked daemon stubborn"


@on_linux
def test_what_a_function_started_ends_with_its_call_or_its_worker(file: str, tmp_path: Path) -> None:
    marker = str(tmp_path / "marker")

    def call(rewards: Rewards, start: str, then: str) -> list[float]:
        return score(rewards, ["c"], marker=[marker], start=[start], then=[then])

    with pytest.raises(RewardFunctionError, match=r"(?s)its time limit of 1 s.*at row 0 of 1"):
        call(Rewards([{"name": f"{file}:reward", "timeout": 1.0}]), EVERY_WAY, "hang")
    assert running(marker) == []
    rewards = Rewards([{"name": f"{file}:reward", "processes": 1}])
    with pytest.raises(RewardFunctionError, match=r"(?s)lost its worker process, which ended with code 7.*at row 0"):
        call(rewards, EVERY_WAY, "die")
    assert running(marker) == []
    with pytest.raises(RewardFunctionError, match="was killed by signal 11"):
        call(rewards, "daemon", "killed")
    assert running(marker) == []
    # A process in the background lives as long as the worker.
    assert call(rewards, "daemon", "return") == [1] and len(running(marker)) == 1
    del rewards
    gc.collect()
    assert gone(marker)


@on_linux
def test_nothing_outlives_a_killed_trainer(file: str, tmp_path: Path) -> None:
    marker = str(tmp_path / "marker")
    # The calls are made in threads, as in a run. One of them ends; the other one's worker is in a regular expression.
    code = (
        "import threading, time\n"
        "from cohort.rewards import Rewards\n"
        "from cohort.rewards.answers import verify\n"
        "def call(then):\n"
        f"    rewards = Rewards([{{'name': {file + ':reward'!r}, 'processes': 1}}])\n"
        f"    rewards(['p'], ['c'], [[1]], dict(marker=[{marker!r}], start=['daemon'], then=[then]))\n"
        "    kept.append(rewards)\n"
        "kept = []\n"
        "calls = [threading.Thread(target=call, args=(then,)) for then in ('return', 'regex')]\n"
        "calls.append(threading.Thread(target=verify.Worker('gym').ask, args=([1],)))\n"
        "for each in calls:\n    each.start()\n"
        "time.sleep(300)\n"
    )
    trainer = subprocess.Popen([sys.executable, "-c", code, f"{marker} of the trainer"], env=os.environ)
    try:
        until = time.monotonic() + 60
        while len(running(marker)) < 3 and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.5)
        started = descendants(trainer.pid)
        # Two supervisors, two workers and two daemons at least.
        assert len(running(marker)) == 3 and len(started) >= 6, (running(marker), started)
    finally:
        trainer.kill()
        trainer.wait()
    until = time.monotonic() + 10
    while any(map(alive, started)) and time.monotonic() < until:
        time.sleep(0.05)
    assert [pid for pid in started if alive(pid)] == []


@on_linux
@pytest.mark.parametrize("to", ["the trainer", "its group"])
def test_ctrl_c_ends_a_call_that_hangs(file: str, tmp_path: Path, to: str) -> None:
    marker = str(tmp_path / "marker")
    code = (
        # A shell starts what runs in its background with the signal ignored.
        "import signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from cohort.rewards import Rewards\n"
        f"rewards = Rewards([{{'name': {file + ':reward'!r}, 'processes': 1}}])\n"
        "try:\n"
        f"    rewards(['p'], ['c'], [[1]], dict(marker=[{marker!r}], start=['daemon'], then=['regex']))\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted', flush=True)\n"
    )
    trainer = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env=os.environ, text=True, start_new_session=True
    )
    assert trainer.stdout is not None
    try:
        until = time.monotonic() + 60
        while not running(f"# {marker}") and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.5)
        (os.kill if to == "the trainer" else os.killpg)(trainer.pid, signal.SIGINT)
        assert trainer.communicate(timeout=30)[0] == "interrupted\n"
    finally:
        trainer.kill()
        trainer.wait()
        trainer.stdout.close()
    assert gone(f"# {marker}")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def descendants(pid: int) -> list[int]:
    parents: dict[int, int] = {}
    for each in processes():
        try:
            parents[each] = int(Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = [pid]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found[1:]


@pytest.mark.parametrize("how", ["exit", "return"])
def test_a_forked_process_gives_no_reply(file: str, how: str) -> None:
    rewards = Rewards([{"name": f"{file}:forks", "processes": 1}])
    assert [score(rewards, ["c"], how=[how]) for _ in range(3)] == [[1], [1], [1]]


@pytest.mark.parametrize("name", ["exits", "exits_later"])
def test_an_exit_in_a_worker_is_an_error_with_its_row(file: str, name: str) -> None:
    rewards = Rewards([{"name": f"{file}:{name}", "timeout": 60}])
    for how, kind in (("sys.exit(0)", "SystemExit: 0"), ("raise KeyboardInterrupt", "KeyboardInterrupt")):
        with pytest.raises(RewardFunctionError, match=rf"(?s)'{name}' raised {kind}.*at row 1 of 2"):
            score(rewards, ["a", "end"], how=[how] * 2)
        assert score(rewards, ["a"], how=[how]) == [1]


def test_a_result_that_is_no_json(file: str) -> None:
    with pytest.raises(RewardFunctionError, match="'circular' raised ValueError: Circular reference detected"):
        score(Rewards([{"name": f"{file}:circular", "processes": 1}]), ["c"])
