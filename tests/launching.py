"""Starts ranks of a program of tests/ by tests/fork_ranks.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from helpers import ROOT


class Ended(NamedTuple):
    """How a rank ended: its exit code and what it printed."""

    code: int
    output: str


class Ranks(NamedTuple):
    """Ranks that call a program's `main`."""

    count: int
    arguments: Sequence[str] = ()
    environment: Mapping[str, str] = MappingProxyType({})
    seconds: float = 200
    """After which those that still run are killed."""


def launch(program: str, *scenarios: Ranks) -> list[list[Ended]]:
    """For each scenario, how each rank of `tests/PROGRAM` ended."""
    threads = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore::FutureWarning"}
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
    plain = [(each.count, [*each.arguments], {**each.environment}, each.seconds) for each in scenarios]
    arguments = ["tests/fork_ranks.py", f"tests/{program}", json.dumps(plain)]
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **threads, "PYTHONPATH": path},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60 + sum(each.seconds for each in scenarios),
    )
    assert done.returncode == 0, done.stderr
    return [[Ended(*rank) for rank in scenario] for scenario in json.loads(done.stdout)]
