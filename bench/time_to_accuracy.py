"""Seconds until a task is learned, here and in TRL, from the same start with the same settings.

    python bench/time_to_accuracy.py [--seeds 3] [--goal 0.8] [--steps 90]
    python bench/time_to_accuracy.py --real [--seeds 3] [--goal 0.6] [--steps 30]

Both take the small demo's GRPO settings, rewards and problems from one SFT checkpoint, in float32; with --real,
SmolLM2-135M-Instruct and sums of two numbers, rewarded for accuracy alone, in bfloat16 where the processor has it. Each
runs in a separate process. Every few steps the clock stops and greedy accuracy on 300 held-out problems is measured,
for both with this project's engine; a run ends at the goal or after --steps. A line for each seed gives the seconds and
sampled completions to the goal, interpolated linearly between two measurements.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import trl_environment
from learning_tasks import RealModel, SmallDemo
from real_model import real_model, why_no_real_model
from trl_environment import outside, quiet, run_inside

Task = SmallDemo | RealModel
TASKS: dict[str, Task] = {"demo": SmallDemo(), "real": RealModel()}
Curve = list[tuple[float, int, float]]


def accuracy_of(model: Any, task: Task, seed: int, folder: Path, config: Any) -> float:
    """Greedy accuracy of the model's weights on held-out problems."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from cohort import SFTConfig
    from cohort.data.rows import load_rows
    from cohort.evaluation.evaluate import evaluate
    from cohort.policy.load import make_policy
    from cohort.rewards.compose import Rewards
    from cohort.rollouts.encoding import encode_prompts
    from cohort.rollouts.engine import local_engine
    from cohort.rollouts.sampling import Sampling
    from cohort.types import TrainerState

    start = task.start(seed, folder)
    # Not a deep copy: TRL's trainer may have replaced the model's forward, which would go on to use its own layers.
    copied = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    copied.load_state_dict(model.state_dict())
    policy = make_policy(copied, AutoTokenizer.from_pretrained(start), SFTConfig(use_cpu=True, bf16=config.bf16))
    prompts = encode_prompts(load_rows(task.held_out(seed)), policy, SFTConfig())
    sampling = Sampling(temperature=0.0, max_tokens=config.max_completion_length, eos_ids=policy.eos_ids)
    engine, rewards = local_engine(policy, 256), Rewards(["accuracy"])
    evaluation = evaluate(prompts, engine, rewards, sampling, 1, seed, TrainerState())
    return evaluation.metrics()["eval/accuracy"]


def measure(library: str, task: Task, seed: int, folder: Path, goal: float, steps: int) -> Curve:
    """(seconds of training, completions, accuracy) at each evaluation until the goal is reached."""
    from transformers import TrainerCallback

    curve: Curve = []
    config = task.config(folder / "out", seed, steps)

    class Measure(TrainerCallback):
        spent = 0.0

        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            self.note(0, model)

        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            self.spent += time.perf_counter() - self.since
            if state.global_step % task.every == 0 and self.note(state.global_step, model) >= goal:
                control.should_training_stop = True
            self.since = time.perf_counter()

        def note(self, step: int, model: Any) -> float:
            accuracy = accuracy_of(model, task, seed, folder, config)
            curve.append((self.spent, step * config.per_device_train_batch_size, accuracy))
            self.since = time.perf_counter()
            return accuracy

    trainer = (ours if library == "ours" else trls)(task, seed, folder, config, Measure())
    trainer.train()
    return curve


def ours(task: Task, seed: int, folder: Path, config: Any, callback: Any) -> Any:
    from cohort import GRPOTrainer

    rewards = task.rewards("ours")
    return GRPOTrainer(task.start(seed, folder), rewards, config, task.train(seed), callbacks=[callback])


def trls(task: Task, seed: int, folder: Path, config: Any, callback: Any) -> Any:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    shared = ("output_dir", "seed", "learning_rate", "adam_beta2", "weight_decay", "max_grad_norm", "beta", "bf16",
              "per_device_train_batch_size", "num_generations", "max_completion_length", "max_steps", "temperature",
              "entropy_coef", "loss_type", "scale_rewards", "epsilon")  # fmt: skip
    args = GRPOConfig(
        **{key: getattr(config, key) for key in shared},
        lr_scheduler_type="constant",
        warmup_steps=0,
        use_cpu=True,
        report_to="none",
        gradient_checkpointing=False,
        save_strategy="no",
        logging_steps=10,
        model_init_kwargs={"attn_implementation": "sdpa", "dtype": "float32"},
    )
    return GRPOTrainer(
        task.start(seed, folder),
        task.rewards("TRL"),
        args=args,
        train_dataset=Dataset.from_list(task.train(seed)),
        callbacks=[callback],
    )


def reached(curve: Curve, goal: float) -> tuple[float, float] | None:
    """Seconds and completions when the goal is reached."""
    for (s0, n0, a0), (s1, n1, a1) in itertools.pairwise(curve):
        if a1 >= goal:
            part = (goal - a0) / (a1 - a0)
            return s0 + part * (s1 - s0), n0 + part * (n1 - n0)
    return None


def child(library: str, task: str, seed: str, folder: str, goal: str, steps: str) -> None:
    quiet()
    if library == "start":
        trl_environment.give(TASKS[task].start(int(seed), Path(folder)))
    else:
        trl_environment.give(measure(library, TASKS[task], int(seed), Path(folder), float(goal), int(steps)))


def run(*arguments: Any) -> Any:
    result, errors = trl_environment.child(__file__, *arguments)
    if result is None:
        raise SystemExit(f"{' '.join(map(str, arguments))}: {errors[-2000:]}")
    return result


def compare(task: str, seeds: int, goal: float, steps: int) -> None:
    print(
        f"{'seed':>4} {'start':>6} {'ours s':>7} {'TRL s':>7} {'TRL / ours':>10} {'ours n':>7} {'TRL n':>7}", flush=True
    )
    ratios = []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            run("start", task, seed, folder, goal, steps)
            curves = [run(library, task, seed, folder, goal, steps) for library in ("ours", "TRL")]
        times = [reached(curve, goal) for curve in curves]
        if None in times:
            for library, curve in zip(("ours", "TRL"), curves, strict=True):
                points = ", ".join(f"{accuracy:.1%} at {spent:.0f} s" for spent, _, accuracy in curve)
                print(f"{seed:4} {library}: {points}", flush=True)
            continue
        (s0, n0), (s1, n1) = (pair for pair in times if pair is not None)
        ratios.append(s1 / s0)
        print(f"{seed:4} {curves[0][0][2]:6.1%} {s0:7.1f} {s1:7.1f} {s1 / s0:10.2f} {n0:7.0f} {n1:7.0f}", flush=True)
    if ratios:
        print(f"median TRL / ours: {statistics.median(ratios):.2f}")


def main() -> int:
    if outside():
        return run_inside(__file__)
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", action="store_true", help="the real model's task in place of the small demo's")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0")
    parser.add_argument("--goal", type=float, help="accuracy at which a run ends")
    parser.add_argument("--steps", type=int, help="steps after which a run ends without the goal")
    given = parser.parse_args()
    if given.real and real_model() is None:
        print(f"The real model's task is left out: {why_no_real_model()}.")
        return 0
    name = "real" if given.real else "demo"
    task = TASKS[name]
    compare(name, given.seeds, task.goal if given.goal is None else given.goal, given.steps or task.steps)
    return 0


if __name__ == "__main__":
    sys.exit(main())
