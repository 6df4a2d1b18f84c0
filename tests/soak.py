"""`python tests/soak.py [--steps 2000]`: a long run of a tiny model. Prints resident memory, open files, threads and
child processes on the way, and the memory that a step adds: a line fitted to the second half."""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import ranks_program
from helpers import TrainerCallback

PAGE = os.sysconf("SC_PAGE_SIZE") / 1024


class Watch(TrainerCallback):
    def __init__(self, every: int):
        self.every, self.seen = every, list[tuple[int, float]]()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self.every:
            return
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
        files, threads = (len(os.listdir(f"/proc/self/{name}")) for name in ("fd", "task"))
        children = sum(
            Path(f"/proc/self/task/{t}/children").read_text().split().__len__() for t in os.listdir("/proc/self/task")
        )
        self.seen.append((state.global_step, resident))
        print(
            f"step {state.global_step:>5}  {resident:>10,.0f} KiB  {files} files  {threads} threads  {children} "
            "children",
            flush=True,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    steps = parser.parse_args().steps
    watch = Watch(max(1, steps // 20))
    with tempfile.TemporaryDirectory() as name:
        changes = {"max_steps": steps, "save_steps": 200, "eval_steps": 200, "learning_rate": 1e-5}
        ranks_program.run(Path(name), "grpo", [watch], **changes).train()
    half = watch.seen[len(watch.seen) // 2 :]
    slope = statistics.linear_regression(*zip(*half, strict=True)).slope
    print(f"{slope:.2f} KiB a step")
    return 0


if __name__ == "__main__":
    sys.exit(main())
