"""Nothing that another library prints reaches the user of the main flows. They run in a process of their own, in which
what Cohort prints is left out: what its descriptors get then is of others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers import ROOT, byte_tokenizer, classifier, saved, small_model

QUICK: dict[str, Any] = {
    "dataset": "rows.jsonl",
    "eval_dataset": "rows.jsonl",
    "eval_strategy": "steps",
    "eval_steps": 1,
    "max_steps": 1,
    "per_device_train_batch_size": 4,
    "max_completion_length": 4,
    "use_cpu": True,
}
SAMPLED = {"num_generations": 2, "reward_funcs": "rewards.py:length", "truncation": "cut"}
LORA = {"finetuning_type": "lora", "lora_rank": 2, "gradient_checkpointing": True}
STEPS = {"dataset": "steps.jsonl", "eval_dataset": "steps.jsonl"}
RUNS: dict[str, dict[str, Any]] = {
    "grpo": {"model": "Qwen2", **SAMPLED, "profile": True},
    "grpo_lora": {"model": "Gemma2", **SAMPLED, **LORA},
    "gpt2": {"model": "gpt2", **SAMPLED, "gradient_checkpointing": True},
    "base": {"model": "Llama", **SAMPLED, "apply_chat_template": False, "fast_paths": "off"},
    "ppo": {"model": "Qwen2", **SAMPLED, **LORA, "method": "ppo"},
    "sft": {"model": "Qwen2", "method": "sft", "gradient_checkpointing": True},
    "dpo": {"model": "Qwen2", **LORA, "method": "dpo"},
    "rm": {"model": "Qwen2", **LORA, "method": "reward_model"},
    "mlp": {"model": "bert", "method": "reward_model", "head": "mlp", "max_length": 64},
    "prm": {
        "model": "Qwen2",
        "method": "process_reward_model",
        "dataset": "steps.jsonl",
        "eval_dataset": "steps.jsonl",
    },
    "by_rm": {"model": "Qwen2", **SAMPLED, "reward_funcs": "out/rm"},
}
SHORT = ["--max-completion-length", "4"]
COMMANDS = [
    ["eval", "out/grpo_lora", "--data", "rows.jsonl", "--num-generations", "2", *SHORT],
    ["generate", "out/grpo", "--prompt", "x" * 300, *SHORT],
    ["generate", "out/grpo_lora", "--data", "rows.jsonl", *SHORT],
    ["reward", "eval", "out/rm", "--data", "rows.jsonl"],
    [
        "reward",
        "label",
        "Qwen2",
        "--data",
        "rows.jsonl",
        "--reward",
        "rewards.py:length",
        "--output",
        "l.jsonl",
        *SHORT,
    ],
    ["reward", "audit", "grpo.yaml"],
    ["export", "out/grpo_lora", "--merge", "--output", "out/merged"],
    ["data", "show", "sft.yaml"],
    ["plan", "grpo_lora.yaml", "--memory", "8GiB", "--flops", "1e12", "--bandwidth", "1e10"],
]


@pytest.mark.slow
def test_nothing_of_other_libraries_is_printed(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT / 'tests'}", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "script" / "model.safetensors").is_file() and (tmp_path / "out" / "by_rm").is_dir()


def _make_files() -> None:
    """Models whose tokenizers know their length, and rows of which one is longer."""
    import transformers

    shape: dict[str, Any] = {"vocab_size": 260, "max_position_embeddings": 128}
    ends = {"bos_token_id": 1, "eos_token_id": 1}
    gpt2 = transformers.GPT2Config(n_embd=32, n_layer=1, n_head=4, n_positions=128, **ends, **shape)
    models = {name: small_model(name, **shape) for name in ("Qwen2", "Gemma2", "Llama")}
    models |= {"gpt2": transformers.GPT2LMHeadModel(gpt2), "bert": classifier("Bert", max_position_embeddings=64).bert}
    for name, model in models.items():
        tokenizer = byte_tokenizer(bert=name == "bert", template=name != "Llama")
        tokenizer.model_max_length = 64 if name == "bert" else 128
        saved(Path(name), model, tokenizer)
    texts = [*map(str, range(7)), "x" * 300]
    rows = [
        {"prompt": text, "answer": "1", "completion": "yes", "chosen": "yes", "rejected": "no", "label": bool(i % 2)}
        for i, text in enumerate(texts)
    ]
    steps = [{"prompt": text, "completion": "a\nb", "labels": [1.0, 0.0]} for text in texts]
    for name, records in {"rows": rows, "steps": steps}.items():
        Path(f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)))
    Path("rewards.py").write_text("def length(completions, **_):\n    return [len(str(c)) % 3 for c in completions]\n")


def _run() -> None:
    import typer
    from typer.main import get_command

    from cohort.cli import app, generate
    from cohort.report import plots
    from cohort.report.console import SafeConsole
    from cohort.train import profile

    SafeConsole.print = lambda *_, **__: None  # type: ignore[method-assign]
    for module, name in ((typer, "echo"), (generate, "write_data"), (profile, "print")):
        setattr(module, name, lambda *_, **__: None)
    plots.plot_training = lambda folder: []  # half of the time, and none of these libraries
    command = get_command(app.app)
    for name, settings in RUNS.items():
        Path(f"{name}.yaml").write_text(
            json.dumps({"method": "grpo", "output_dir": f"out/{name}", **QUICK, **settings})
        )
        command(["train", f"{name}.yaml"], standalone_mode=False)
    for words in COMMANDS:
        command(words, standalone_mode=False)


def _run_scripts() -> None:
    from datasets import Dataset
    from peft import LoraConfig

    from cohort import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
    from helpers import digits

    rows = [{"prompt": "1?", "completion": "yes", "chosen": "yes", "rejected": "no"}] * 4
    quick: dict[str, Any] = {"max_steps": 1, "per_device_train_batch_size": 4, "use_cpu": True, "output_dir": "script"}
    config = GRPOConfig(num_generations=2, max_completion_length=4, **quick)
    prompts = Dataset.from_list([{"prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows])
    GRPOTrainer("Qwen2", digits, config, prompts, peft_config=LoraConfig(r=2, task_type="CAUSAL_LM")).train()
    DPOTrainer("Qwen2", DPOConfig(**quick), Dataset.from_list(rows)).train()
    SFTTrainer("Qwen2", SFTConfig(**quick), Dataset.from_list(rows)).train()


if __name__ == "__main__":
    from transformers.utils.logging import disable_progress_bar, enable_progress_bar

    disable_progress_bar()
    _make_files()
    enable_progress_bar()
    _run()
    _run_scripts()
