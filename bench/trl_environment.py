"""The environment in which scripts run TRL beside this project, and the processes that a script starts in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv-trl"
TRL = "trl==1.16.0"
RESULT = "RESULT "
"""What the line of a child's result begins with."""


def prepare() -> Path:
    """Create `.venv-trl` with TRL and this project if it is missing. Returns its Python."""
    python = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    ready = VENV / ".ready"
    wanted = TRL + "\n" + (ROOT / "constraints.txt").read_text()
    if not ready.is_file() or ready.read_text() != wanted:
        print(f"installing {TRL} in {VENV.name}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--quiet", "-c", "constraints.txt", TRL, "-e", "."]
        subprocess.run(install, check=True, cwd=ROOT)
        ready.write_text(wanted)
    return python


def outside() -> bool:
    """Whether this process runs in another environment."""
    return Path(sys.prefix).resolve() != VENV.resolve()


def run_inside(script: str) -> int:
    """Run the script with this process's arguments in the environment. Returns its exit code."""
    return subprocess.call([str(prepare()), str(Path(script).resolve()), *sys.argv[1:]], cwd=ROOT)


def quiet() -> None:
    """No hub, no progress bars, and no warnings of names that TRL still uses and transformers deprecates."""
    os.environ.update(HF_HUB_OFFLINE="1", TRL_EXPERIMENTAL_SILENCE="1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def give(result: Any) -> None:
    """Print a child's result for its parent."""
    print(RESULT + json.dumps(result), flush=True)


def child(script: str, *arguments: object) -> tuple[Any, str]:
    """Run `script --child ARGUMENTS` in a process of its own. Returns its result, None without one, and its errors."""
    command = [sys.executable, str(Path(script).resolve()), "--child", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    line = next((line for line in done.stdout.splitlines() if line.startswith(RESULT)), None)
    return (None if line is None else json.loads(line[len(RESULT) :])), done.stderr
