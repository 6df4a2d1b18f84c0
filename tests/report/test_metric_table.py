"""docs/metrics.md and its table: runs of every kind write what the table has, and the numbers are what it says."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from cohort import RewardConfig, RewardTrainer, Trainer
from cohort.config import METHOD_CONFIGS
from cohort.data.chains import build_tokenizer, make_chains
from cohort.report.metric_table.table import SECTIONS, fits, metric_of
from cohort.rollouts.collect import reward_statistics
from helpers import ROOT, SHAPE, byte_tokenizer, classifier, digits, pair_rows, rows_of, small_model
from write_metrics import metrics_markdown

DEMONSTRATIONS, TRAIN, HELD_OUT = make_chains(2, 24, 4, seed=0)
WRONG = [{"role": "assistant", "content": "<answer>0</answer>"}]
PAIRS = [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": WRONG} for row in DEMONSTRATIONS]
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
EVALUATED = {"eval_strategy": "steps", "eval_steps": 2}
KEYS = [key for section in SECTIONS for metric in section.metrics for key in metric.keys.split()]


def even(completions: list[Any], **_: Any) -> list[float]:
    return [float(sum(c.isdigit() for c in completion[0]["content"]) % 2 == 0) for completion in completions]


EVEN = f"{__file__}:even"
GATED = [{"name": digits, "clip": [0, 0.2]}, {"name": EVEN, "gate": "digits"}]
RUNS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "grpo": ("grpo", GATED, {"num_iterations": 2, "dynamic_sampling": True, "num_generations_eval": 2, **EVALUATED,
                             "eval_temperature": 1.0, "use_adaptive_entropy": True, "on_nonfinite": "skip"}),
    "corrected": ("grpo", digits, {"vllm_importance_sampling_correction": True, "off_policy_mask_threshold": 0.5}),
    "grpo_process": ("grpo_process", "chain_steps", {"reward_preflight": False}),
    "remax": ("remax", digits, {}),
    "reinforce++": ("reinforce++", digits, {}),
    "ppo": ("ppo", digits, {"on_nonfinite": "skip"}),
    "online_rft": ("online_rft", digits, {"reward_threshold": 0.1}),
    "rft": ("rft", digits, {"reward_threshold": 0.1}),
    "dpo": ("dpo", None, EVALUATED),
    "sft": ("sft", None, {"router_aux_loss_coef": 0.01, **EVALUATED}),
    "distill": ("distill", None, EVALUATED),
}  # fmt: skip
NOT_IN_RUNS = {
    "{name}/unreadable",
    "guard/overoptimized_from",
    "sampling/staleness",
    "sampling/continued",
    "sampling/logp_difference",
    "seconds/wait",
}
"""A judge's, a run's that went wrong, those of batches sampled ahead (tests/train/test_samples_ahead.py), and that of
servers (tests/train/test_vllm_runs.py)."""


def train(folder: Path, name: str) -> list[dict[str, Any]]:
    method, rewards, values = RUNS[name]
    sampled = {"num_generations": 4} if method not in ("sft", "dpo") else {}
    config = METHOD_CONFIGS[method](
        str(folder), max_steps=2, learning_rate=1e-2, per_device_train_batch_size=8, max_completion_length=6,
        use_cpu=True, bf16=False, **sampled, **values,
    )  # fmt: skip
    data = {"dpo": (PAIRS[4:], PAIRS[:4]), "sft": (DEMONSTRATIONS, DEMONSTRATIONS[:4])}.get(method, (TRAIN, HELD_OUT))
    Trainer(
        small_model("Qwen2Moe", vocab_size=22, **MOE) if method == "sft" else small_model(vocab_size=22),
        rewards,
        config,
        data[0],
        data[1] if config.eval_strategy != "no" else None,
        processing_class=build_tokenizer(),
        method=method,
        **({"teacher": small_model(vocab_size=22, hidden_size=48)} if method == "distill" else {}),
    ).train()
    return rows_of(folder)


def refitted(folder: Path) -> list[dict[str, Any]]:
    """Iterations with a reward model that is refitted and guarded."""
    torch.manual_seed(1)
    scorer = transformers.Qwen2Config(**{**SHAPE, "vocab_size": 22, "num_labels": 1})
    transformers.Qwen2ForSequenceClassification(scorer).save_pretrained(folder / "rm")
    build_tokenizer().save_pretrained(folder / "rm")
    config = METHOD_CONFIGS["grpo"](
        str(folder / "run"), iterations=2, steps_per_iteration=1, gold_reward=EVEN, num_generations=4,
        reward_model_refit={"rule": EVEN}, per_device_train_batch_size=8, max_completion_length=6,
        use_cpu=True, bf16=False, reward_preflight=False, on_nonfinite="skip",
    )  # fmt: skip
    model = small_model(vocab_size=22)
    Trainer(model, [{"model": str(folder / "rm")}], config, TRAIN, processing_class=build_tokenizer()).train()
    return rows_of(folder / "run")


def rewarding(folder: Path) -> list[dict[str, Any]]:
    config = RewardConfig(str(folder), max_steps=2, use_cpu=True, bf16=False, **EVALUATED)
    RewardTrainer(classifier("Qwen2"), config, pair_rows(16), pair_rows(4), byte_tokenizer(template=False)).train()
    return rows_of(folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("runs")
    rows = {name: train(folder / str(i), name) for i, name in enumerate(RUNS)}
    return {**rows, "iterations": refitted(folder), "reward model": rewarding(folder / "reward")}


def test_the_page_is_current() -> None:
    committed = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert committed == metrics_markdown(), "write it again: python scripts/write_metrics.py > docs/metrics.md"


def test_every_key_of_every_kind_of_run_is_in_the_table(runs: dict[str, list[dict[str, Any]]]) -> None:
    written = {key: name for name, rows in runs.items() for row in rows for key in row}
    assert {key: name for key, name in written.items() if metric_of(key) is None} == {}


def test_every_key_of_the_table_is_written_by_a_run(runs: dict[str, list[dict[str, Any]]]) -> None:
    written = {key for rows in runs.values() for row in rows for key in row}
    assert {key for key in KEYS if not any(fits(other, key) for other in written)} == NOT_IN_RUNS
    assert len(KEYS) == len(set(KEYS))


NO_METRICS = (
    *("application/json", "{}/chat/completions"),
    *("entropy/trained",),  # is taken out before a row is written
    *("score/mean", "score/std"),  # are written behind eval/
    *("{}/min", "{}/max"),  # of ratio and kl
)


def literals(path: Path) -> Iterator[str]:
    """Strings of the form a/b, those of f-strings with {} for a value."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            text = "".join(str(p.value) if isinstance(p, ast.Constant) else "{}" for p in node.values)
        else:
            text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
        # What ends in a value is the name of another metric behind a prefix.
        if re.fullmatch(r"[a-z_{}]+(/[a-z_@{}]+)*/[a-z_@]+", text) and text not in NO_METRICS:
            yield text


@pytest.mark.parametrize("folder", ["evaluation", "methods", "rewards", "rollouts", "train"])
def test_every_literal_key_in_the_code_is_in_the_table(folder: Path) -> None:
    keys = {text for path in (ROOT / "src" / "cohort" / folder).rglob("*.py") for text in literals(path)}
    assert {key for key in keys if metric_of(key.replace("{}", "x")) is None} == set()


def test_a_literal_key_comes_before_a_pattern() -> None:
    assert (metric_of("eval/loss") or SECTIONS[0].metrics[0]).keys == "eval/loss"
    assert (metric_of("eval/format") or SECTIONS[0].metrics[0]).keys == "eval/{name}"
    assert metric_of("eval/format/other") is None and metric_of("lost") is None


def test_what_the_page_says_of_grpos_first_update(runs: dict[str, list[dict[str, Any]]]) -> None:
    first = runs["reinforce++"][0]
    assert "kl" not in first and "seconds/reference" in first
    first, second = (row for row in runs["grpo"] if "loss" in row)
    assert first["loss"] == pytest.approx(0, abs=1e-5) and first["grad_norm"] > 0.01
    assert first["ratio/min"] == first["ratio/max"] == 1 and first["clip_ratio/region_mean"] == 0
    # The second update on the batch repeats the batch's numbers.
    assert all(first[key] == second[key] for key in ("reward", "seconds/generate", "num_tokens"))
    assert second["kl"] > 0 and second["ratio/max"] > 1
    distilled = runs["distill"][0]  # means of completions in one, of tokens in the other
    assert distilled["loss"] == pytest.approx(distilled["teacher/kl"], rel=0.2)


def test_the_spread_is_the_mean_of_the_groups() -> None:
    """Of all four rewards the standard deviation is 2.45."""
    values = reward_statistics(torch.tensor([[0.0, 2.0], [5.0, 5.0]]))
    assert values == pytest.approx({"reward": 3.0, "reward_std": 2**0.5 / 2, "frac_reward_zero_std": 0.5})
