"""environment.json: where and with what a run was started, and each time it was resumed."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from cohort.policy import ranks
from cohort.train.facts import versions
from cohort.train.output.card import command_line

ENVIRONMENT = "environment.json"
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "PYTORCH_CUDA_ALLOC_CONF")


def record_start(folder: Path, resumed_from: Path | None) -> None:
    """Write the environment of this start; a resumed run adds it to the first one's."""
    path = folder / ENVIRONMENT
    start = {**_environment(), "resumed_from": None if resumed_from is None else resumed_from.name}
    first = start
    if resumed_from is not None and path.is_file():
        try:
            first = json.loads(path.read_text(encoding="utf-8"))
            first["resumed"] = [*first.get("resumed", []), start]
        except (ValueError, AttributeError, TypeError):  # damaged: this start is what is known
            first = start
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(first, indent=1, ensure_ascii=False), encoding="utf-8")
    partial.replace(path)


def _environment() -> dict[str, Any]:
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": command_line(sys.argv),
        "versions": versions(),
        "machine": {
            "system": platform.platform(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "gpus": gpus,
            "cuda": torch.version.cuda,
        },
        "ranks": ranks.count(),
        "threads": torch.get_num_threads(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "git": _git(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _git() -> dict[str, Any] | None:
    """The commit of the working directory, and whether files differ from it; None outside a repository."""
    commit = _output("git", "rev-parse", "HEAD")
    return None if commit is None else {"commit": commit, "changed": bool(_output("git", "status", "--porcelain"))}


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
