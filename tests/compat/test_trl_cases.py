"""The cases of TRL's tests/test_grpo_trainer.py that hold here: the same settings train and change the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from cohort import GRPOConfig, GRPOTrainer, UserError
from cohort.data.chains import build_tokenizer
from helpers import small_model

PROMPTS = ["1+1=", "2+", "3+3+3=", "4", "5+5="]
PLAIN = [{"prompt": text} for text in PROMPTS]
CHAT = [{"prompt": [{"role": "user", "content": text}]} for text in PROMPTS]


def text_of(completion: Any) -> str:
    return completion if isinstance(completion, str) else str(completion[0]["content"])


def longer(completions: list[Any], **kwargs: Any) -> list[float]:
    return [float(len(text_of(completion))) for completion in completions]


def varied(completions: list[Any], **kwargs: Any) -> list[float]:
    return [float(len(set(text_of(completion)))) for completion in completions]


def settings(folder: Path, **changes: Any) -> GRPOConfig:
    """The settings of TRL's tests; TRL does not clip reward sums."""
    values: dict[str, Any] = {
        "learning_rate": 0.1, "per_device_train_batch_size": 3, "num_generations": 3, "max_completion_length": 8,
        "report_to": "none", "bf16": False, "use_cpu": True, "reward_clip": None, "reward_preflight": False,
        "beta": 0.0,
    }  # fmt: skip
    return GRPOConfig(str(folder), **{**values, **changes})


STEPS = {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 3}
CASES: dict[str, dict[str, Any]] = {
    "test_training_loss_types-bnpo": {"loss_type": "bnpo", "gradient_accumulation_steps": 2},
    "test_training_loss_types-dr_grpo": {"loss_type": "dr_grpo", "gradient_accumulation_steps": 2},
    "test_training_loss_types-dapo": {"loss_type": "dapo", "gradient_accumulation_steps": 2},
    "test_training_loss_types-cispo": {"loss_type": "cispo", "gradient_accumulation_steps": 2},
    "test_training_loss_types-sapo": {"loss_type": "sapo", "gradient_accumulation_steps": 2},
    "test_training_loss_types-luspo": {"loss_type": "luspo", "gradient_accumulation_steps": 2},
    "test_training_loss_types-vespo": {"loss_type": "vespo", "gradient_accumulation_steps": 2},
    "test_training_with_off_policy_mask": {"off_policy_mask_threshold": 0.5},
    "test_training_with_eval": STEPS,
    "test_training_with_num_generations_eval": {**STEPS, "num_generations_eval": 1},
    "test_training_eval_on_start": {**STEPS, "eval_on_start": True, "loss_type": "grpo"},
    "test_training_multiple_iterations": {"num_iterations": 2},
    "test_training_beta_non_zero": {"beta": 0.1},
    "test_training_with_bias_correction_kl": {"beta": 0.1, "use_bias_correction_kl": True},
    "test_training_with_entropy_filter": {"top_entropy_quantile": 0.2},
    "test_training_with_additional_generation_kwargs": {
        "top_p": 0.9, "top_k": 10, "min_p": 0.01, "repetition_penalty": 1.1,
    },
    "test_training_scale_rewards-False": {"scale_rewards": False},
    "test_training_scale_rewards-batch": {"scale_rewards": "batch"},
    "test_training_scale_rewards-none": {"scale_rewards": "none"},
    "test_training_scale_rewards-True": {"scale_rewards": True},
    "test_training_num_generations_larger_than_batch_size": {"num_generations": 6, "gradient_accumulation_steps": 2},
    "test_training_delta_clipping": {"delta": 2.0},
    "test_training_multiple_dataloader_workers": {"dataloader_num_workers": 2},
    "test_training_with_generation_kwargs": {
        "generation_kwargs": {"do_sample": True, "top_k": 50, "num_beams": 2, "length_penalty": -0.1},
    },
    "test_training_sequence_importance_sampling": {"num_iterations": 2, "importance_sampling_level": "sequence"},
    "test_training_vllm": {"use_vllm": True},
    "test_training_with_transformers_paged": {"use_transformers_paged": True},
    "test_training_with_liger_grpo_kernel": {"use_liger_kernel": True},
}  # fmt: skip


def changed(trainer: GRPOTrainer) -> dict[str, bool]:
    """Train; returns which parameters changed."""
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    return {name: not torch.equal(before[name], value) for name, value in trainer.model.named_parameters()}


@pytest.mark.parametrize("case", CASES)
def test_the_same_settings_train_every_parameter(case: str, tmp_path: Path) -> None:
    args = settings(tmp_path, **CASES[case])
    trainer = GRPOTrainer(small_model("Llama"), longer, args, PLAIN, PLAIN[:2], tokenizer=build_tokenizer())
    assert all(changed(trainer).values())
    assert ("eval_reward" in str(trainer.state.log_history)) == ("eval_strategy" in CASES[case])


@pytest.mark.parametrize("architecture", ["Qwen3", "Gemma2"])
def test_training_with_cast_lm_head_to_fp32(architecture: str, tmp_path: Path, caplog: Any) -> None:
    args = settings(tmp_path, cast_lm_head_to_fp32=True, max_steps=2)
    trainer = GRPOTrainer(small_model(architecture), longer, args, PLAIN, tokenizer=build_tokenizer())
    assert any(changed(trainer).values()) and trainer.model.lm_head.weight.dtype == torch.float32
    assert any("cast_lm_head_to_fp32=True has no effect" in message for message in caplog.messages)


def test_rewards_of_every_kind_side_by_side(tmp_path: Path) -> None:
    """test_training_reward_func_conversational, ..._additional_column, ..._with_weights, ..._sync_and_async, ..._None,
    ..._accessing_trainer_state, ..._with_chat_template_kwargs, test_training_normalize_then_sum_aggregation."""

    async def later(completions: list[Any], **kwargs: Any) -> list[float]:
        return varied(completions)

    def near(completions: list[Any], some_values: list[int], **kwargs: Any) -> list[float]:
        assert kwargs["trainer_state"].global_step >= 0
        return [float(abs(len(text_of(c)) - v)) for c, v in zip(completions, some_values, strict=True)]

    def nothing(completions: list[Any], **kwargs: Any) -> list[None]:
        return [None] * len(completions)

    args = settings(
        tmp_path, reward_weights=[0.7, 0.3, 0.5, 1.0], multi_objective_aggregation="normalize_then_sum",
        chat_template_kwargs={"enable_thinking": False},
    )  # fmt: skip
    rows = [{**row, "some_values": i} for i, row in enumerate(CHAT)]
    trainer = GRPOTrainer(small_model("Llama"), [longer, later, near, nothing], args, rows, tokenizer=build_tokenizer())
    assert all(changed(trainer).values())
    last = trainer.state.log_history[-2]
    assert {f"rewards/{name}/{kind}" for name in ("longer", "later", "near") for kind in ("mean", "std")} <= set(last)
    means = [last[f"rewards/{name}/mean"] for name in ("longer", "later", "near")]
    assert last["reward"] == pytest.approx(0.7 * means[0] + 0.3 * means[1] + 0.5 * means[2], rel=1e-5)


def test_prompts_come_in_the_order_of_the_rows(tmp_path: Path) -> None:
    """test_prepare_input_called_with_correct_data: each prompt num_generations times, in the order of the rows, and a
    sampled batch serves steps_per_generation * num_iterations micro-batches."""
    seen: list[list[str]] = []

    def watch(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        seen.append(prompts)
        return longer(completions)

    args = settings(
        tmp_path, per_device_train_batch_size=8, num_generations=4, gradient_accumulation_steps=1,
        steps_per_generation=2, num_iterations=2, shuffle_dataset=False, max_steps=8,
    )  # fmt: skip
    rows = [{"prompt": f"{i}="} for i in range(8)]
    GRPOTrainer(small_model("Llama"), watch, args, rows, tokenizer=build_tokenizer()).train()
    assert seen == [[f"{i}=" for i in first for _ in range(4)] for first in (range(4), range(4, 8))]


def test_mask_truncated_completions_learns_from_the_others(tmp_path: Path) -> None:
    """Some completions end before the limit, and only their tokens have a loss."""
    model = small_model("Llama")
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(97))
    model.lm_head.bias.data[1] = 2.5  # the end token is likely, not certain
    args = settings(tmp_path, mask_truncated_completions=True, num_generations=8, per_device_train_batch_size=8)
    trainer = GRPOTrainer(model, longer, args, PLAIN, tokenizer=build_tokenizer())
    assert all(changed(trainer).values())
    clipped = [row["completions/clipped_ratio"] for row in trainer.state.log_history if "loss" in row]
    assert 0 < sum(clipped) / len(clipped) < 1


def test_what_trl_refuses_with_adapters_and_quantised_models(tmp_path: Path, caplog: Any) -> None:
    tokenizer, lora = build_tokenizer(), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")

    def make(model: Any, **given: Any) -> GRPOTrainer:
        args = settings(tmp_path, **given.pop("args", {}))
        return GRPOTrainer(model, longer, args, PLAIN, tokenizer=tokenizer, **given)

    with pytest.raises(UserError, match="the model has an adapter already"):
        make(get_peft_model(small_model("Llama"), lora), peft_config=lora)
    with pytest.raises(UserError, match="peft_config is a dict: give a configuration of peft"):
        make(small_model("Llama"), peft_config={"r": 8})
    twice = {"model_init_kwargs": {"quantization_config": {"load_in_4bit": True}}}
    with pytest.raises(UserError, match="quantization_config is given twice"):
        make("some/model", quantization_config={"load_in_4bit": True}, args=twice)
    make(small_model("Llama"), args={"model_init_kwargs": {"dtype": "float32"}})
    assert any("model_init_kwargs have no effect here" in message for message in caplog.messages)
