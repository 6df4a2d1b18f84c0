"""Seconds until the demo's task is learned, here and in TRL, from the same SFT checkpoint with the same settings.

    python bench/time_to_accuracy.py [--seeds 3] [--goal 0.8]

Both take the demo's GRPO settings, rewards and problems, in float32, each in a separate process. Every five steps the
clock stops and greedy accuracy on 300 held-out problems is measured, for both with this project's engine. A line for
each seed gives the seconds and sampled completions to the goal, interpolated linearly between two measurements.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from trl_parity import ROOT, VENV, prepare

EVERY = 5
HELD_OUT = 300


def problems(seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    from cohort import demo
    from cohort.data.chains import Teacher, make_chains

    return make_chains(demo.OPERATIONS, demo.TRAIN, demo.HELD_OUT, seed, Teacher(seed))


def make_start(seed: int, folder: Path) -> None:
    from cohort import SFTTrainer, demo
    from cohort.data.chains import build_model, build_tokenizer

    tokenizer = build_tokenizer()
    build_model(tokenizer, seed).save_pretrained(folder / "random")
    tokenizer.save_pretrained(folder / "random")
    SFTTrainer(str(folder / "random"), demo.sft_config(folder / "start", seed), problems(seed)[0]).train()


def accuracy_of(model: Any, seed: int) -> float:
    """Greedy accuracy of a copy of the model on held-out problems."""
    from cohort import SFTConfig, demo
    from cohort.data.chains import build_tokenizer
    from cohort.data.rows import load_rows
    from cohort.evaluation.evaluate import evaluate
    from cohort.policy.load import make_policy
    from cohort.rewards.compose import Rewards
    from cohort.rollouts.encoding import encode_prompts
    from cohort.rollouts.engine import local_engine
    from cohort.rollouts.sampling import Sampling
    from cohort.types import TrainerState

    model = copy.deepcopy(model)
    model.set_attn_implementation("sdpa")
    policy = make_policy(model, build_tokenizer(), SFTConfig(use_cpu=True))
    prompts = encode_prompts(load_rows(problems(seed)[2][:HELD_OUT]), policy, SFTConfig())
    sampling = Sampling(temperature=0.0, max_tokens=demo.LENGTH, eos_ids=policy.eos_ids)
    engine, rewards = local_engine(policy, 256), Rewards(["accuracy"])
    evaluation = evaluate(prompts, engine, rewards, sampling, 1, seed, TrainerState())
    return evaluation.metrics()["eval/accuracy"]


def measure(peer: str, seed: int, folder: Path, goal: float) -> list[tuple[float, int, float]]:
    """(seconds of training, completions, accuracy) at each evaluation until the goal is reached."""
    from transformers import TrainerCallback

    curve: list[tuple[float, int, float]] = []

    class Measure(TrainerCallback):
        spent = 0.0

        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            self.note(0, model)

        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            self.spent += time.perf_counter() - self.since
            if state.global_step % EVERY == 0 and self.note(state.global_step, model) >= goal:
                control.should_training_stop = True
            self.since = time.perf_counter()

        def note(self, step: int, model: Any) -> float:
            accuracy = accuracy_of(model, seed)
            curve.append((self.spent, step * 128, accuracy))
            self.since = time.perf_counter()
            return accuracy

    trainer = (ours if peer == "ours" else trls)(seed, folder, Measure())
    trainer.train()
    return curve


def ours(seed: int, folder: Path, callback: Any) -> Any:
    from cohort import GRPOTrainer, demo

    config = demo.grpo_config(folder / "out", seed).model_copy(
        update={"eval_strategy": "no", "eval_on_start": False, "use_cpu": True, "bf16": False}
    )
    rewards = list(demo.GRPO_REWARDS)
    return GRPOTrainer(str(folder / "start"), rewards, config, problems(seed)[1], callbacks=[callback])


def trls(seed: int, folder: Path, callback: Any) -> Any:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from cohort import demo
    from cohort.rewards import accuracy, format_reward, overlong_penalty

    config = demo.grpo_config(folder / "out", seed)
    shared = ("output_dir", "seed", "learning_rate", "adam_beta2", "weight_decay", "max_grad_norm", "beta",
              "per_device_train_batch_size", "num_generations", "max_completion_length", "max_steps", "temperature",
              "entropy_coef", "loss_type", "scale_rewards", "epsilon")  # fmt: skip
    args = GRPOConfig(
        **{key: getattr(config, key) for key in shared},
        lr_scheduler_type="constant",
        warmup_steps=0,
        bf16=False,
        use_cpu=True,
        report_to="none",
        gradient_checkpointing=False,
        save_strategy="no",
        logging_steps=10,
        model_init_kwargs={"attn_implementation": "sdpa", "dtype": "float32"},
    )
    return GRPOTrainer(
        str(folder / "start"),
        [accuracy, format_reward, overlong_penalty(demo.LENGTH)],
        args=args,
        train_dataset=Dataset.from_list(problems(seed)[1]),
        callbacks=[callback],
    )


def reached(curve: list[tuple[float, int, float]], goal: float) -> tuple[float, float] | None:
    """Seconds and completions when the goal is reached."""
    for (s0, n0, a0), (s1, n1, a1) in itertools.pairwise(curve):
        if a1 >= goal:
            part = (goal - a0) / (a1 - a0)
            return s0 + part * (s1 - s0), n0 + part * (n1 - n0)
    return None


def child(arguments: list[str]) -> None:
    os.environ.update(HF_HUB_OFFLINE="1", TRL_EXPERIMENTAL_SILENCE="1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    peer, seed, folder, goal = arguments
    if peer == "start":
        make_start(int(seed), Path(folder))
    else:
        print("RESULT " + json.dumps(measure(peer, int(seed), Path(folder), float(goal))), flush=True)


def run(peer: str, seed: int, folder: str, goal: float) -> list[tuple[float, int, float]]:
    command = [sys.executable, str(Path(__file__).resolve()), "--child", peer, str(seed), folder, str(goal)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{peer}, seed {seed}: {done.stderr[-2000:]}")
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), "RESULT []")
    curve: list[tuple[float, int, float]] = json.loads(line[7:])
    return curve


def main() -> int:
    if Path(sys.prefix).resolve() != VENV.resolve():
        return subprocess.call([str(prepare()), str(Path(__file__).resolve()), *sys.argv[1:]], cwd=ROOT)
    arguments = sys.argv[1:]
    if arguments[:1] == ["--child"]:
        child(arguments[1:])
        return 0
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    goal = float(given.get("--goal", 0.8))
    print(f"{'seed':>4} {'start':>6} {'ours s':>7} {'TRL s':>7} {'TRL / ours':>10} {'ours n':>7} {'TRL n':>7}")
    ratios = []
    for seed in range(int(given.get("--seeds", 3))):
        with tempfile.TemporaryDirectory() as folder:
            run("start", seed, folder, goal)
            curves = [run(peer, seed, folder, goal) for peer in ("ours", "TRL")]
        times = [reached(curve, goal) for curve in curves]
        if None in times:
            print(f"{seed:4} {curves[0][0][2]:6.1%} not reached: best {[max(a for *_, a in c) for c in curves]}")
            continue
        (s0, n0), (s1, n1) = (pair for pair in times if pair is not None)
        ratios.append(s1 / s0)
        print(f"{seed:4} {curves[0][0][2]:6.1%} {s0:7.1f} {s1:7.1f} {s1 / s0:10.2f} {n0:7.0f} {n1:7.0f}", flush=True)
    if ratios:
        print(f"median TRL / ours: {statistics.median(ratios):.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
