"""The share of a GRPO step that goes into the records of a run's folder.

    python bench/recording.py [S M L V R] [--steps 30]

Each function that records is timed within the run that it records, with the default keys (8 completions and one whole
group of each batch), so that the load of the machine changes both sides of the ratio. The first two steps are left out;
the figures are medians of the others.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from typing import Any

from one_step import common, timed
from workloads import WORKLOADS, G, Workload, model_of, reward_of, rows, tokenizer_of

WARM_UP = 2
PARTS = {
    "completions.jsonl": "completions",
    "rows.jsonl": "rows",
    "groups.jsonl": "groups",
    "metrics.jsonl": "metrics",
}
"""File -> the method of the recorder that writes it."""


class Clock:
    """A callback that notes when each step ends."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())


def measure(workload: Workload, steps: int, model: str, folder: str) -> tuple[list[float], dict[str, list[float]]]:
    """The seconds of each step after the first WARM_UP, and those of each part of the recording."""
    from cohort import GRPOConfig, GRPOTrainer
    from cohort.train import measured

    config = GRPOConfig(**common(workload, steps, folder), bf16=False)
    clock = Clock()
    trainer = GRPOTrainer(
        model, reward_of(workload), config, rows(workload, steps), processing_class=tokenizer_of(workload),
        callbacks=[clock],
    )  # fmt: skip
    seconds: dict[str, list[float]] = {file: [] for file in PARTS}
    for file, method in PARTS.items():
        timed(trainer.loop.recorder, method, seconds[file])
    seconds["entropies and log-probabilities"] = []
    timed(measured, "note", seconds["entropies and log-probabilities"])
    trainer.train()
    wall = [after - before for before, after in zip(clock.ends, clock.ends[1:], strict=False)]
    return wall[WARM_UP - 1 :], {name: values[WARM_UP:] for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", default=["S"], help=f"of {', '.join(WORKLOADS)}")
    parser.add_argument("--steps", type=int, default=30)
    given = parser.parse_args()
    print(f"{'':2} {'':32} {'ms a step':>10} {'of the step':>12}")
    for name in given.workloads:
        workload = WORKLOADS[name]
        with tempfile.TemporaryDirectory() as random_model, tempfile.TemporaryDirectory() as folder:
            wall, parts = measure(workload, given.steps, model_of(workload, random_model), folder)
        step = statistics.median(wall)
        lines = {part: statistics.median(seconds) for part, seconds in parts.items()}
        for part, seconds in {**lines, "all of these": sum(lines.values()), "the step": step}.items():
            print(f"{name:2} {part:32} {1e3 * seconds:10.3f} {seconds / step:12.2%}")
        print(
            f"{name:2} {workload.prompts} prompts x {G} completions of up to {workload.completion} tokens", flush=True
        )


if __name__ == "__main__":
    main()
