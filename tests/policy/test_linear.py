"""Every architecture, full and with LoRA, on plain and conversational prompts: two steps, saved, loaded again."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from cohort import GRPOConfig, GRPOTrainer
from cohort.data.chains import build_tokenizer
from helpers import small_model

MODELS = ("Qwen2", "Qwen3", "Llama", "Gemma", "Mistral")
CASES = list(product(MODELS, ("full", "lora"), ("plain", "conversational")))
DIAGONAL = {
    ("Qwen2", "full", "plain"), ("Qwen3", "lora", "conversational"), ("Llama", "lora", "plain"),
    ("Gemma", "full", "conversational"), ("Mistral", "lora", "conversational"),
}  # fmt: skip


def reward(completions: list[Any], **kwargs: Any) -> list[float]:
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [float(sum(map(ord, text)) % 7) for text in texts]


@pytest.mark.parametrize(
    ("architecture", "tuning", "form"),
    [pytest.param(*case, marks=() if case in DIAGONAL else pytest.mark.slow, id="-".join(case)) for case in CASES],
)
def test_two_steps_and_back(architecture: str, tuning: str, form: str, tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    small_model(architecture).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    asked = [f"{a}+{b}=" for a, b in ((1, 2), (3, 4), (5, 6))]
    prompts = asked if form == "plain" else [[{"role": "user", "content": text}] for text in asked]
    args = GRPOConfig(
        str(tmp_path / "out"), max_steps=2, num_generations=4, per_device_train_batch_size=8, learning_rate=1e-2,
        max_completion_length=6, finetuning_type=tuning, beta=0.04, bf16=False, use_cpu=True, num_iterations=2,
    )  # fmt: skip
    trainer = GRPOTrainer(str(tmp_path / "m"), reward, args, [{"prompt": prompt} for prompt in prompts])
    before = {name: value.clone() for name, value in trainer.model.named_parameters() if value.requires_grad}
    trainer.train()
    assert [row["step"] for row in trainer.state.log_history] == [1, 2, 2]
    after = dict(trainer.model.named_parameters())
    assert any(not torch.equal(before[name], after[name]) for name in before)

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / ("m" if tuning == "lora" else "out"))
    if tuning == "lora":
        loaded = PeftModel.from_pretrained(loaded, tmp_path / "out")
    ids = torch.tensor([AutoTokenizer.from_pretrained(tmp_path / "out")("1+2=3")["input_ids"]])
    trained = trainer.model.eval()(ids, use_cache=False).logits
    assert torch.allclose(loaded.eval()(ids, use_cache=False).logits, trained, atol=1e-5)
