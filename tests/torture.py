"""`python tests/torture.py [--kills 15] [--seed 0] [KIND ...]`: kills runs by SIGKILL, at random instants and at random
file operations, resumes each, and compares its end with that of an undisturbed run, which must write nothing outside
its folder. Prints a line for each kind, and exits with 1 where an end differs.

Each run is a forked process, since imports take longer than the runs."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ranks_program
from cohort import UserError
from helpers import rows_of

KINDS = ("grpo", "grpo lora", "grpo_process", "dapo", "iterative", "ppo", "ppo shared", "rft", "dpo best-worst", "dpo",
         "sft", "remax", "reward model", "experts")  # fmt: skip
WRITES = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree", "shutil.copyfile")
TIMES = ("seconds", "tokens_per_second")


def train(folder: Path, kind: str) -> None:
    """Begin the run, or go on from its newest checkpoint; a checkpoint after each step."""
    settings: dict[str, Any] = {"save_steps": 1, "save_total_limit": 2, "disable_tqdm": True}
    ranks_program.start(folder, kind, **settings).train(resume_from_checkpoint=True)


class FileOperations:
    """Counts what changes files, notes those outside a folder, and kills the process before one of them."""

    def __init__(self, deadly: int = 0, folder: Path | None = None):
        self.count, self.deadly, self.folder = 0, deadly, folder
        self.outside: set[str] = set()
        sys.addaudithook(self.see)

    def see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in WRITES:
            return
        if event == "open" and (not isinstance(arguments[1], str) or not set(arguments[1]) & set("wax+")):
            return
        self.count += 1
        path = arguments[0]
        if self.folder is not None and event in ("open", "os.mkdir", "os.rename"):
            place = Path(os.fsdecode(path)).absolute()
            if not place.is_relative_to(self.folder) and not place.is_relative_to("/dev"):
                self.outside.add(str(place))
        if self.count == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)


def forked(work: Callable[[], None], output: Path) -> int:
    """The exit code of a process that does the work; what it prints is added to the file."""
    pid = os.fork()
    if not pid:
        code = 0
        target = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(target, 1)
        os.dup2(target, 2)
        try:
            work()
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def end_of(folder: Path) -> tuple[list[Any], dict[str, bytes]]:
    """Metrics without times, and the bytes of the final weights."""
    rows = [{k: v for k, v in row.items() if not k.startswith(TIMES)} for row in rows_of(folder)]
    return rows, {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


def undisturbed(folder: Path, kind: str) -> tuple[float, int]:
    """(seconds, file operations) of the run."""
    counted = folder.with_name("operations")

    def work() -> None:
        operations = FileOperations(folder=folder.parent)
        train(folder, kind)
        if operations.outside:
            raise RuntimeError(f"written outside of output_dir: {sorted(operations.outside)}")
        counted.write_text(str(operations.count))

    started = time.monotonic()
    code = forked(work, folder.with_name("output"))
    if code:
        raise RuntimeError(folder.with_name("output").read_text()[-3000:])
    return time.monotonic() - started, int(counted.read_text())


def cut(folder: Path, kind: str, chance: random.Random, seconds: float, operations: int) -> str:
    """Kill or end the run once; returns how."""
    how = chance.choice(["instant", "operation", "signal"])
    when = chance.uniform(0.02, seconds)
    operation = chance.randrange(1, operations)
    number = chance.choice([signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])

    def work() -> None:
        if how == "operation":
            FileOperations(operation)
        else:
            deadly = signal.SIGKILL if how == "instant" else number
            timer = threading.Timer(when, os.kill, (os.getpid(), deadly))
            timer.daemon = True
            timer.start()
        train(folder, kind)

    code = forked(work, folder.with_name(f"{folder.name}.output"))
    expected = {"instant": (0, -signal.SIGKILL), "operation": (0, -signal.SIGKILL)}.get(
        how,
        (0, 128 + number, -number),  # before the first step a signal ends the process as it always does
    )
    if code not in expected:
        raise RuntimeError(f"{how}: exit code {code}: {folder.with_name(f'{folder.name}.output').read_text()[-3000:]}")
    return f"{how} {operation if how == 'operation' else f'{when:.2f} s'}, exit {code}"


def torture(kind: str, kills: int, chance: random.Random) -> dict[str, Any]:
    """What came of it: {"kind", "kills", "took effect", "different": [how, ...]}"""
    with tempfile.TemporaryDirectory() as name:
        parent = Path(name)
        seconds, operations = undisturbed(parent / "whole", kind)
        expected, different, effective = end_of(parent / "whole"), [], 0
        for i in range(kills):
            folder = parent / str(i)
            hows = [cut(folder, kind, chance, seconds, operations) for _ in range(chance.choice([1, 1, 2]))]
            effective += sum(not how.endswith("exit 0") for how in hows)
            code = forked(lambda folder=folder: train(folder, kind), parent / f"{i}.output")
            if code or end_of(folder) != expected:
                different.append(f"{hows}: {code}: {(parent / f'{i}.output').read_text()[-1500:]}")
            shutil.rmtree(folder, ignore_errors=True)
        return {"kind": kind, "kills": effective, "operations": operations, "different": different}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", default=KINDS, metavar="KIND")
    parser.add_argument("--kills", type=int, default=15, help="runs that are cut, of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    chance, different, total = random.Random(arguments.seed), 0, 0
    for kind in arguments.kinds:
        try:
            result = torture(kind, arguments.kills, chance)
        except (RuntimeError, UserError) as error:
            result = {"kind": kind, "kills": 0, "operations": 0, "different": [str(error)]}
        different, total = different + len(result["different"]), total + result["kills"]
        ends = f"{len(result['different'])} different" if result["different"] else "all ends identical"
        line = json.dumps(result) if arguments.json else f"{kind:<16}{result['kills']:>4} cuts  {ends}"
        print(line, *([] if arguments.json else result["different"]), sep="\n  ", flush=True)
    if not arguments.json:
        print(f"{total} cuts, {different} different ends")
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
