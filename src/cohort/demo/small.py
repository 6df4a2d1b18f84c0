"""`cohort demo --small`: a small model learns arithmetic from a flawed teacher, then from its own answers.

It uses the same pieces as a run on a real model: rows, an ordinary transformers directory, SFTTrainer, GRPOTrainer.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from cohort.config import GRPOConfig, SFTConfig
from cohort.data.chains import Teacher, build_model, build_tokenizer, make_chains
from cohort.data.rows import load_rows
from cohort.data.templates import prompt_text
from cohort.evaluation.evaluate import Evaluation
from cohort.evaluation.loaded_model import LoadedModel
from cohort.formulas.chance import wilson
from cohort.report.live import LiveDisplay
from cohort.report.page.write import write_report
from cohort.report.plots import plot_training
from cohort.report.tables import before_after_table, examples_panel, share_with_interval
from cohort.rewards.compose import Rewards
from cohort.train.output.record import require_folder
from cohort.train.trainers import GRPOTrainer, SFTTrainer

OPERATIONS = 3
TRAIN, HELD_OUT = 6000, 1000
LENGTH = 32
BF16 = False
"""At this size bfloat16 is hardly faster, and its rounding costs up to 6 points of accuracy."""
SFT_STEPS, GRPO_STEPS = 300, 90
REWARDS = ("accuracy", "format")
GRPO_REWARDS = (*REWARDS, "overlong")  # the other rewards do not ask that an answer ends
# Below these, SFT has not learned the task and GRPO would have nothing to reward.
LEAST_ACCURACY, LEAST_FORMAT = 0.15, 0.9


def run_demo(seed: int, output: Path, console: Console) -> dict[str, Any]:
    """Train, print and plot, and write everything under `output`. Returns the content of summary.json."""
    require_folder(str(output))
    console.print(
        f"A {OPERATIONS}-operation chain such as 7+5-8+9=, each step keeps the last digit. The teacher gets 40% of the "
        "single steps wrong\nmore often than right, so imitation is not enough; the reward checks only the true answer."
    )
    tokenizer = build_tokenizer()
    demonstrations, train, held_out = make_chains(OPERATIONS, TRAIN, HELD_OUT, seed, Teacher(seed))
    output.mkdir(parents=True, exist_ok=True)
    sft_dir = output / "sft"
    build_model(tokenizer, seed).save_pretrained(output / "start")
    tokenizer.save_pretrained(output / "start")

    with LiveDisplay("1. SFT on the teacher's demonstrations", console) as display:
        sft = SFTTrainer(
            str(output / "start"),
            sft_config(sft_dir, seed),
            demonstrations,
            callbacks=[display],
        )
        started = time.perf_counter()
        sft.train()
        seconds_sft = time.perf_counter() - started

    before = _evaluations(str(sft_dir), held_out, seed)
    _check_start(before["greedy"])

    with LiveDisplay("2. GRPO on its own answers", console) as display:
        grpo = GRPOTrainer(
            str(sft_dir),
            list(GRPO_REWARDS),
            grpo_config(output, seed),
            train,
            held_out[:200],
            callbacks=[display],
        )
        started = time.perf_counter()
        grpo.train()
        seconds_grpo = time.perf_counter() - started
    after = _evaluations(str(output), held_out, seed)
    summary = _summary(before, after, seed, seconds_sft, seconds_grpo)
    (output / "summary.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    shutil.rmtree(output / "start")
    plots = plot_training(output)
    _show(console, before, after, summary, output, plots)
    return summary


def sft_config(output: Path, seed: int) -> SFTConfig:
    return SFTConfig(
        output_dir=str(output),
        seed=seed,
        bf16=BF16,
        learning_rate=3e-3,
        lr_scheduler_type="cosine",
        warmup_ratio=0.1,
        adam_beta2=0.98,
        per_device_train_batch_size=32,
        max_steps=SFT_STEPS,
        max_completion_length=LENGTH,
    )


def grpo_config(output: Path, seed: int) -> GRPOConfig:
    return GRPOConfig(
        output_dir=str(output),
        seed=seed,
        bf16=BF16,
        learning_rate=3e-4,
        lr_scheduler_type="constant",
        adam_beta2=0.99,
        per_device_train_batch_size=128,
        num_generations=8,
        beta=0.0,
        entropy_coef=0.01,  # keeps rare correct values among the samples
        max_steps=GRPO_STEPS,
        max_completion_length=LENGTH,
        eval_strategy="steps",
        eval_steps=15,
        eval_on_start=True,
    )


def _evaluations(model: str, held_out: list[dict[str, Any]], seed: int) -> dict[str, Evaluation]:
    """The held-out problems, answered greedily and sampled at temperature 1."""
    loaded = LoadedModel(model, SFTConfig(bf16=BF16))
    prompts, rewards = loaded.encode(load_rows(held_out)), Rewards(REWARDS)
    return {
        name: loaded.evaluate(prompts, rewards, loaded.sampling(temperature=temperature, max_tokens=LENGTH), 1, seed)
        for name, temperature in (("greedy", 0.0), ("sampled", 1.0))
    }


def _check_start(greedy: Evaluation) -> None:
    metrics = greedy.metrics()
    if metrics["eval/accuracy"] < LEAST_ACCURACY or metrics["eval/format"] < LEAST_FORMAT:
        raise RuntimeError(
            f"SFT has not learned the task: held-out accuracy {metrics['eval/accuracy']:.1%}, format "
            f"{metrics['eval/format']:.1%}; GRPO has nothing to build on. Try another --seed"
        )


def _count_correct(evaluation: Evaluation, component: str) -> int:
    return sum(row[0] for row in evaluation.correct(component))


def _summary(
    before: dict[str, Evaluation],
    after: dict[str, Evaluation],
    seed: int,
    seconds_sft: float,
    seconds_grpo: float,
) -> dict[str, Any]:
    problems = len(before["greedy"].prompts)
    summary: dict[str, Any] = {"seed": seed, "problems": problems}
    for name, evaluations in (("before", before), ("after", after)):
        correct = _count_correct(evaluations["greedy"], "accuracy")
        summary[f"accuracy_{name}"] = correct / problems
        summary[f"interval_{name}"] = list(wilson(correct, problems))
        summary[f"sampled_accuracy_{name}"] = _count_correct(evaluations["sampled"], "accuracy") / problems
    return summary | {"seconds_sft": round(seconds_sft, 2), "seconds_grpo": round(seconds_grpo, 2)}


def _show(
    console: Console,
    before: dict[str, Evaluation],
    after: dict[str, Evaluation],
    summary: dict[str, Any],
    output: Path,
    plots: list[Path],
) -> None:
    n = summary["problems"]

    def share(evaluation: Evaluation, component: str) -> str:
        return share_with_interval(_count_correct(evaluation, component), n)

    rows = [
        (f"{component}, {name}", share(before[name], component), share(after[name], component))
        for component in REWARDS
        for name in ("greedy", "sampled")
    ]
    console.print(before_after_table(f"{n} held-out problems, with 95% intervals", rows))
    corrected = [
        (prompt_text(prompt.row.prompt) + prompt.row.columns["answer"], was[0].text, now[0].text)
        for prompt, was, now, wrong, right in zip(
            before["greedy"].prompts,
            before["greedy"].sampled,
            after["greedy"].sampled,
            before["greedy"].correct("accuracy"),
            after["greedy"].correct("accuracy"),
            strict=True,
        )
        if right[0] and not wrong[0]
    ]
    console.print(examples_panel(corrected[:2]))
    console.print(
        f"SFT took {summary['seconds_sft']:.0f} s, GRPO {summary['seconds_grpo']:.0f} s. In {output}:\n"
        f"  the model (loads with AutoModelForCausalLM), summary.json, metrics.jsonl, completions.jsonl,\n"
        f"  {', '.join(path.name for path in plots)}\n"
        f"Look at it in a browser: {write_report([output])}",
        highlight=False,
        soft_wrap=True,
    )
