"""Small runs that sample ahead, with copies of the policy or with the engine of a key; as a program, one that ends
itself by a signal: python sampled_ahead.py FOLDER SIGNAL KEYS"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from cohort import GRPOConfig, GRPOTrainer
from cohort.data.chains import build_tokenizer, make_chains
from cohort.policy.model import Policy
from cohort.rollouts.engine import Engine, LocalEngine
from cohort.rollouts.sampling import Generation, Sampling
from cohort.types import Group, TrainerState
from helpers import StopAfter, digits, numbers, rows_of, small_model

_, TRAIN, HELD_OUT = make_chains(2, 40, 8, seed=0)
SIGNALLED = 5
"""The step after which the program ends itself."""


class Copies:
    """Samples copies of the policy, one for each version, with a delay."""

    def __init__(self, policy: Policy, delay: float = 0.0):
        self.policy, self.delay = policy, delay
        self.asked: list[tuple[int, tuple[int, ...], str]] = []

    def follow(self, policy: Policy, version: int) -> None:
        self.copy = policy.copy()
        self.copy.version = version

    def check(self) -> None:
        """Always ready."""

    def present(self) -> Engine:
        return OneCopy(self, self.copy)

    def generate(
        self, prompts: list[Tensor], n: int, sampling: Sampling, seeds: Sequence[int], *others: Any, **options: Any
    ) -> Generation:
        return self.present().generate(prompts, n, sampling, seeds)


class OneCopy:
    def __init__(self, engine: Copies, policy: Policy):
        self.engine, self.policy = engine, policy

    def generate(
        self, prompts: list[Tensor], n: int, sampling: Sampling, seeds: Sequence[int], *others: Any, **options: Any
    ) -> Generation:
        time.sleep(self.engine.delay)
        self.engine.asked.append((self.policy.version, tuple(seeds), threading.current_thread().name))
        return LocalEngine(self.policy).generate(prompts, n, sampling, seeds, on_group=options.get("on_group"))


def grpo(folder: Path, make_engine: Any = Copies, reward: Any = digits, **values: Any) -> GRPOTrainer:
    values = {"max_steps": 6, "learning_rate": 1e-2, "staleness": 1, "max_completion_length": 6, **values}
    config = GRPOConfig(str(folder), num_generations=4, per_device_train_batch_size=8, use_cpu=True, bf16=False,
                        logged_groups=0, **values)  # fmt: skip
    model, tokenizer = small_model(vocab_size=22), build_tokenizer()
    return GRPOTrainer(model, reward, config, TRAIN, HELD_OUT, processing_class=tokenizer, engine=make_engine)


def steps(folder: Path) -> list[dict[str, Any]]:
    return [row for row in numbers(rows_of(folder)) if "loss" in row]


def batches_of(trainer: GRPOTrainer) -> list[list[Any]]:
    """The batches that are learned from now on: the version, ids and reward of each completion."""
    batches: list[list[Any]] = []
    finished = trainer.loop.source.finished

    def seen(sampled: Any, state: TrainerState) -> Any:
        groups: list[Group] = sampled.groups
        batches.append(
            [
                (group.row.number, completion.version, completion.ids.tolist(), reward)
                for group in groups
                for completion, reward in zip(group.completions, group.rewards, strict=True)
            ]
        )
        return finished(sampled, state)

    trainer.loop.source.finished = seen
    return batches


class EndItself(StopAfter):
    """Sends its process group a signal after a step."""

    def __init__(self, number: int):
        super().__init__(SIGNALLED)
        self.number = number

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), self.number) if self.number == signal.SIGKILL else os.killpg(0, self.number)


def in_a_program(folder: Path, name: str, **keys: Any) -> subprocess.CompletedProcess[str]:
    """Run a program in a process group of its own that ends itself by the signal."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",  # as many threads as here: sums are in the same order
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
    }
    command = [sys.executable, __file__, str(folder), name, json.dumps(keys)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, start_new_session=True, timeout=300)


if __name__ == "__main__":
    folder, name, keys = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    # A shell that starts the tests in the background has Ctrl-C ignored in them.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder.mkdir(exist_ok=True)
    (folder / "pid").write_text(str(os.getpid()))
    trainer = grpo(folder, None if "engine" in keys else Copies, **keys)
    trainer.loop.callbacks.callbacks.append(EndItself(getattr(signal, name)))
    trainer.train()
