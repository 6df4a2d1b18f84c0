"""Seconds of a step, and accuracy, of sampling beside training and in turn with it.

    pip install 'cohort-rl[ray]'
    python bench/asynchronous.py [--seeds 3] [--steps 90] [--cases local ray-0 ray-1]

The small demo's GRPO from one SFT checkpoint for each seed, in float32. Every case takes the same number of steps of
128 completions. Cases named local sample in the process that trains; those named ray have one worker on one core, the
training process on one thread, and the staleness of their name. Each run is a process of its own. A line is the mean
over seeds: seconds of a step after the first ones, seconds for which training waited for its batch (where it samples in
turn: of sampling and rewards), nats of sampling/mismatch_kl; then greedy accuracy on 300 held-out problems after a
third, two thirds and all of the steps, with the range of the last over seeds. It is measured after the run.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trl_environment
from learning_tasks import SmallDemo
from time_to_accuracy import accuracy_of

TASK = SmallDemo()
WARM_UP = 5
"""Steps whose seconds are left out: workers and kernels start, and the first batches are asked for."""


@dataclass(frozen=True)
class Case:
    engine: Any = "local"
    staleness: int = 0
    threads: int = 1
    """Of the process that trains."""
    others: dict[str, Any] = field(default_factory=dict)
    """Further keys of the configuration."""


RAY = {"ray": {"workers": 1, "cpus": 1}}
UNCORRECTED = {"vllm_importance_sampling_correction": False}
CASES = {
    "local": Case(),
    "local-2-threads": Case(threads=2),
    "ray-0": Case(RAY),
    "ray-1": Case(RAY, 1),
    "ray-1-uncorrected": Case(RAY, 1, others=UNCORRECTED),
    "ray-2": Case(RAY, 2),
    "ray-2-uncorrected": Case(RAY, 2, others=UNCORRECTED),
}


def configured(case: Case, seed: int, folder: Path, steps: int) -> Any:
    from cohort import GRPOConfig

    values = TASK.config(folder / "out", seed, steps).model_dump(exclude_unset=True)
    return GRPOConfig(**{**values, "engine": case.engine, "staleness": case.staleness, **case.others})


def measure(case: Case, seed: int, folder: Path, steps: int) -> dict[str, Any]:
    """A run's means, and its accuracy at a third, two thirds and the end."""
    import torch
    from transformers import TrainerCallback

    from cohort import GRPOTrainer

    torch.set_num_threads(case.threads)
    config = configured(case, seed, folder, steps)
    ends: list[float] = []
    weights: list[dict[str, Any]] = []

    class Note(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            ends.append(time.perf_counter())
            if state.global_step in (steps // 3, 2 * steps // 3, steps):
                weights.append({name: tensor.clone() for name, tensor in model.state_dict().items()})

    trainer = GRPOTrainer(TASK.start(seed, folder), TASK.rewards("ours"), config, TASK.train(seed), callbacks=[Note()])
    trainer.train()
    lines = (folder / "out" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if "loss" in row][WARM_UP:]
    accuracy = []
    for each in weights:
        trainer.model.load_state_dict(each)
        accuracy.append(accuracy_of(trainer.model, TASK, seed, folder, config))
    waits = ("seconds/wait",) if case.staleness else ("seconds/generate", "seconds/reward")
    return {
        "step": (ends[-1] - ends[WARM_UP - 1]) / (len(ends) - WARM_UP),
        "wait": statistics.mean(sum(row[key] for key in waits) for row in rows),
        "mismatch": statistics.mean(row.get("sampling/mismatch_kl", math.nan) for row in rows),
        "accuracy": accuracy,
    }


def child(*arguments: str) -> None:
    trl_environment.quiet()
    name, seed, folder, steps = arguments
    if name == "start":
        trl_environment.give(TASK.start(int(seed), Path(folder)))
    else:
        trl_environment.give(measure(CASES[name], int(seed), Path(folder), int(steps)))


def run(*arguments: Any) -> Any:
    result, errors = trl_environment.child(__file__, *arguments)
    if result is None:
        raise SystemExit(f"{' '.join(map(str, arguments))}: {errors[-2000:]}")
    return result


def line(name: str, runs: list[dict[str, Any]]) -> str:
    def mean(key: str) -> float:
        return statistics.mean(run[key] for run in runs)

    thirds = [statistics.mean(values) for values in zip(*(run["accuracy"] for run in runs), strict=True)]
    last = [run["accuracy"][-1] for run in runs]
    mismatch = "" if math.isnan(mean("mismatch")) else f"{mean('mismatch'):.4f}"
    accuracies = " ".join(f"{each:7.1%}" for each in thirds)
    span = f"{min(last):.1%} to {max(last):.1%}"
    return f"{name:18} {mean('step'):7.3f} {mean('wait'):7.3f} {mismatch:>8} {accuracies}  {span}"


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0")
    parser.add_argument("--steps", type=int, default=90, help="of each run")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in options.cases}
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            run("start", seed, folder, options.steps)
            for name in options.cases:
                runs[name].append(run(name, seed, folder, options.steps))
                print(f"seed {seed}: {name}: {json.dumps(runs[name][-1])}", file=sys.stderr, flush=True)
    print(f"{'case':18} {'s/step':>7} {'waits':>7} {'mismatch':>8} {'1/3':>7} {'2/3':>7} {'all':>7}  all, over seeds")
    for name in options.cases:
        print(line(name, runs[name]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
