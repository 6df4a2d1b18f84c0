"""`python tests/fork_ranks.py PROGRAM SCENARIOS`: for each scenario, forks ranks that call the program's `main` after
its imports, which take longer than most of what they do. Prints each rank's exit code and output as JSON."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any


def run(main: Any, ranks: int, arguments: list[str], environment: dict[str, str], seconds: float) -> list[list[Any]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    world = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **environment}
    children: list[tuple[int, Path]] = []
    for rank in range(ranks):
        path = Path(tempfile.mkstemp()[1])
        pid = os.fork()
        if not pid:
            os.environ.update(world, RANK=str(rank), LOCAL_RANK=str(rank))
            output = os.open(path, os.O_WRONLY)
            os.dup2(output, 1)
            os.dup2(output, 2)
            code = 0
            try:
                main(*arguments)
            except SystemExit as end:
                code = int(end.code or 0)
            except BaseException:  # noqa: BLE001
                traceback.print_exc()
                code = 1
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        children.append((pid, path))
    codes: dict[int, int] = {}
    end = time.monotonic() + seconds
    while len(codes) < ranks:
        for pid, _ in children:
            if pid not in codes and (status := os.waitpid(pid, os.WNOHANG))[0]:
                codes[pid] = os.waitstatus_to_exitcode(status[1])
            elif pid not in codes and time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    ended = [[codes[pid], path.read_text(errors="replace")] for pid, path in children]
    for _, path in children:
        path.unlink()
    return ended


if __name__ == "__main__":
    spec = importlib.util.spec_from_file_location("program", sys.argv[1])
    assert spec is not None and spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    sys.modules["program"] = program
    spec.loader.exec_module(program)
    json.dump([run(program.main, *scenario) for scenario in json.loads(sys.argv[2])], sys.stdout)
