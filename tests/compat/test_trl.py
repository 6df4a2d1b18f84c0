"""TRL's keys and arguments: each is supported, gets a notice, or is refused; none is ignored silently."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from cohort import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer, UserError
from cohort.compat.trl_keys import GROUPS, KEYS, RENAMED, SUPPORTED
from cohort.data.chains import build_tokenizer
from helpers import ROOT, small_model
from write_coming_from import TABLES, TRL_DEFAULTS, written

DOCS = ROOT / "docs"
NAMES_OF_TRL_1_16 = """
learning_rate model_init_kwargs trust_remote_code router_aux_loss_coef disable_dropout cast_lm_head_to_fp32
remove_unused_columns num_generations num_generations_eval max_completion_length ds3_gather_for_generation
shuffle_dataset pad_to_multiple_of generation_batch_size steps_per_generation temperature top_p top_k min_p
generation_kwargs chat_template_kwargs repetition_penalty cache_implementation use_vllm vllm_mode
vllm_model_impl vllm_enable_sleep_mode vllm_structured_outputs_regex vllm_server_base_url vllm_server_host
vllm_server_port vllm_server_timeout vllm_group_port vllm_gpu_memory_utilization vllm_max_model_length
vllm_tensor_parallel_size beta num_iterations epsilon delta epsilon_high sapo_temperature_neg
sapo_temperature_pos vespo_k_pos vespo_lambda_pos vespo_k_neg vespo_lambda_neg importance_sampling_level
reward_weights multi_objective_aggregation scale_rewards loss_type mask_truncated_completions sync_ref_model
ref_model_mixup_alpha ref_model_sync_steps top_entropy_quantile entropy_coef use_adaptive_entropy
entropy_coef_min entropy_coef_max entropy_coef_delta entropy_target max_tool_calling_iterations
vllm_importance_sampling_correction vllm_importance_sampling_mode vllm_importance_sampling_clip_max
vllm_importance_sampling_clip_min off_policy_mask_threshold use_bias_correction_kl log_completions
log_multimodal num_completions_to_print log_unique_prompts log_completions_hub_repo
use_transformers_continuous_batching transformers_continuous_batching_config use_transformers_paged
vllm_importance_sampling_cap
"""
TRL_1_16 = NAMES_OF_TRL_1_16.split()
SUPPORTED_NAMES = " ".join(SUPPORTED.values()).split()
TRANSFORMERS = {field.name: field for field in dataclasses.fields(TrainingArguments)}


@pytest.mark.parametrize("name", sorted({*TRL_1_16, *TRANSFORMERS}))
def test_every_key_of_trl_and_transformers_is_in_the_table(name: str) -> None:
    assert name in SUPPORTED_NAMES or name in KEYS or name in RENAMED
    if name in SUPPORTED_NAMES:
        assert name in GRPOConfig.model_fields
    page = (DOCS / "coming-from-trl.md").read_text(encoding="utf-8")
    assert f"\n| `{name}` |" in page


def test_the_table_says_nothing_of_keys_that_are_fields() -> None:
    stale = [name for name in KEYS if name in GRPOConfig.model_fields]
    assert not stale, f"supported now: move {stale} from GROUPS to SUPPORTED"
    assert set(SUPPORTED) <= set(GROUPS)
    assert not [name for name in SUPPORTED_NAMES if name not in {*GRPOConfig.model_fields, *SFTConfig.model_fields}]


@pytest.mark.parametrize("name", TABLES)
def test_the_pages_are_written_from_the_tables(name: str) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == written(DOCS / name), "run python scripts/write_coming_from.py"


def test_defaults_said_to_differ_do() -> None:
    for name, value in TRL_DEFAULTS.items():
        assert GRPOConfig.model_fields[name].default != value, name


def test_transformers_defaults_ask_for_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """A script that sets every key to its default gets no notice and no error."""
    defaults = {
        name: field.default_factory() if field.default is dataclasses.MISSING else field.default
        for name, field in TRANSFORMERS.items()
        if name in KEYS and name not in TRL_1_16
    }
    GRPOConfig(**defaults)
    assert caplog.messages == []


NOTICES = [
    ({"fp16": True}, "fp16=True has no effect here: bf16, or float32"),
    ({"use_vllm": True}, "use_vllm=True has no effect here: with vllm_mode: server it becomes engine"),
    ({"dataloader_num_workers": 4}, "dataloader_num_workers=4 has no effect here: rows are tokenised once"),
    ({"repetition_penalty": 1.1}, "the reward `repetition` penalises repeats"),
    ({"optim": "lion_8bit"}, "optim='lion_8bit' has no effect here: AdamW, by adam_beta1"),
    ({"save_safetensors": False}, "always safetensors, never a pickle"),
    ({"logging_nan_inf_filter": False}, "a NaN gradient stops the run"),
    ({"generation_kwargs": {"num_beams": 2}}, "generation_kwargs: num_beams=2 has no effect here"),
]


@pytest.mark.parametrize(("given", "text"), NOTICES, ids=[next(iter(given)) for given, _ in NOTICES])
def test_a_key_without_effect_is_told_in_one_line(
    given: dict[str, Any], text: str, caplog: pytest.LogCaptureFixture
) -> None:
    GRPOConfig(**given)
    (record,) = caplog.records
    assert text in record.getMessage() and "\n" not in record.getMessage()
    assert record.levelno == logging.WARNING


@pytest.mark.parametrize("name", [name for name, key in KEYS.items() if key.refused])
def test_what_would_change_learning_is_refused_where_it_asks_for_something(name: str) -> None:
    key = KEYS[name]
    for off in (*key.off, None):
        GRPOConfig(**{name: off})
    with pytest.raises(UserError, match=f"`{name}` is 'x', and is not supported") as error:
        GRPOConfig(**{name: "x"})
    assert key.text in str(error.value)


FORMS = [
    ({"min_p": None, "num_generations_eval": None}, {"min_p": 0.0, "num_generations_eval": 1}),
    ({"log_completions": True}, {"log_completions": 8}),
    ({"log_completions": False}, {"log_completions": 0}),
    ({"warmup_steps": 0.1}, {"warmup_ratio": 0.1, "warmup_steps": 0}),
    ({"warmup_steps": 7}, {"warmup_ratio": 0.0, "warmup_steps": 7}),
    ({"scale_rewards": True}, {"scale_rewards": "group"}),
    ({"scale_rewards": False}, {"scale_rewards": "none"}),
    ({"eval_strategy": IntervalStrategy.EPOCH}, {"eval_strategy": "epoch"}),
    ({"evaluation_strategy": "steps", "no_cuda": True}, {"eval_strategy": "steps", "use_cpu": True}),
    ({"report_to": ["tensorboard", "none"]}, {"report_to": ["tensorboard"]}),
    ({"report_to": "none"}, {"report_to": []}),
    ({"delta": 1.5, "importance_sampling_level": "sequence"}, {"delta": 1.5, "importance_sampling_level": "sequence"}),
    (
        {"vllm_importance_sampling_correction": True, "vllm_importance_sampling_cap": 3.0},
        {"vllm_importance_sampling_correction": True, "vllm_importance_sampling_clip_max": 3.0},
    ),
    (
        {"generation_kwargs": {"do_sample": True, "top_k": 5, "stop": "#", "max_new_tokens": 9}, "top_k": 3},
        {"top_k": 5, "stop": ["#"], "max_completion_length": 9},
    ),
]


@pytest.mark.parametrize(("given", "expected"), FORMS)
def test_trls_forms_of_values(
    given: dict[str, Any], expected: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    config = GRPOConfig(**given)
    assert {name: getattr(config, name) for name in expected} == expected
    assert caplog.messages == []


def test_the_output_dir_may_come_first_and_typos_are_told() -> None:
    assert GRPOConfig("here", learning_rate=2e-6).output_dir == "here"
    with pytest.raises(UserError, match=re.escape("GRPOConfig: unknown key `num_generation`: did you mean `num_gen")):
        GRPOConfig(num_generation=4)
    with pytest.raises(UserError, match="did you mean `dataloader_num_workers`"):
        GRPOConfig(dataloader_num_worker=4)
    with pytest.raises(UserError, match="`beta` is 'much'"):
        GRPOConfig(beta="much")


def settings(folder: Path, **changes: Any) -> GRPOConfig:
    values: dict[str, Any] = {
        "output_dir": str(folder),
        "learning_rate": 0.1,
        "per_device_train_batch_size": 3,
        "num_generations": 3,
        "max_completion_length": 8,
        "max_steps": 2,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "reward_clip": None,
    }
    return GRPOConfig(**{**values, **changes})


def lengths(completions: list[Any], **kwargs: Any) -> list[float]:
    return [float(len(completion)) for completion in completions]


ROWS = [{"prompt": f"{i}+{i}=", "answer": str(2 * i % 10)} for i in range(5)]


def changed(trainer: Any) -> list[str]:
    """Train; returns the names of the parameters whose values changed."""
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    return [name for name, value in trainer.model.named_parameters() if not torch.equal(before[name], value)]


def test_trls_arguments_and_reward_signatures(tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def tagged(prompts: list[str], completions: list[str], answer: list[str], **kwargs: Any) -> list[float]:
        seen["columns"] = set(kwargs)
        return [float(len(a)) for a in answer]

    def against(completions: list[str], references: list[str], log_metric: Any, log_extra: Any) -> list[float | None]:
        seen["references"] = references
        log_metric("mine", 0.25)
        log_extra("note", ["n"] * len(completions))
        return [None] * len(completions)

    async def later(completions: list[str], completion_ids: list[list[int]], trainer_state: Any) -> list[float]:
        seen["step"] = trainer_state.global_step
        return [float(len(set(ids))) for ids in completion_ids]

    class Watch(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            seen["logged"] = logs.get("mine", seen.get("logged"))

    trainer = GRPOTrainer(
        small_model(),
        reward_funcs=[lengths, tagged, against, later],
        args=settings(tmp_path, reward_weights=[1, 0.5, 1, 1]),
        train_dataset=ROWS,
        tokenizer=build_tokenizer(),
        callbacks=[Watch],
        optimizers=(None, None),
        quantization_config=None,
    )
    assert changed(trainer)
    assert seen["columns"] == {"completion_ids", "trainer_state", "log_metric", "log_extra"}
    assert set(seen["references"]) <= {"0", "2", "4", "6", "8"} and seen["step"] == 1 and seen["logged"] == 0.25
    row = trainer.state.log_history[-2]
    assert row["rewards/tagged/mean"] == 1.0 and "rewards/against/mean" not in row and "rewards/lengths/std" in row


def test_other_arguments_are_refused_with_what_takes_their_place(tmp_path: Path) -> None:
    def make(**given: Any) -> None:
        GRPOTrainer(small_model(), lengths, settings(tmp_path), ROWS, **{"tokenizer": build_tokenizer(), **given})

    with pytest.raises(UserError, match="tools is a list, and is not supported: there are no tools"):
        make(tools=[len])
    with pytest.raises(UserError, match="same thing"):
        make(processing_class=build_tokenizer())
    with pytest.raises(TypeError, match="unknown argument 'tokeniser': did you mean 'tokenizer'"):
        make(tokeniser=1)
    with pytest.raises(UserError, match="needs a model given by name"):
        make(quantization_config={"load_in_4bit": True})
    with pytest.raises(UserError, match=r"args is a argparse.Namespace: import GRPOConfig from cohort"):
        GRPOTrainer(small_model(), lengths, argparse.Namespace(), ROWS)


def classifier(folder: Path) -> Any:
    """A random sequence classifier with one label, and its tokenizer."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(1)
    tokenizer = build_tokenizer()
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), num_labels=1, pad_token_id=tokenizer.pad_token_id, **shape)
    model = LlamaForSequenceClassification(config)
    model.save_pretrained(folder)
    return model, tokenizer


def test_reward_models_with_their_tokenizers(tmp_path: Path) -> None:
    """A model object and a directory without a tokenizer, each with one of reward_processing_classes: one score."""
    model, tokenizer = classifier(tmp_path / "scores")
    trainer = GRPOTrainer(
        small_model(),
        reward_funcs=[model, str(tmp_path / "scores"), lengths],
        args=settings(tmp_path / "out", reward_preflight=False),
        train_dataset=ROWS,
        processing_class=build_tokenizer(),
        reward_processing_classes=[tokenizer, tokenizer, tokenizer],
    )
    assert changed(trainer)
    assert trainer.rewards is not None and trainer.rewards.names[1:] == ["scores", "lengths"]
    for row in trainer.state.log_history[:-1]:
        of_object, of_name = (row[f"rewards/{name}/mean"] for name in trainer.rewards.names[:2])
        assert of_object == pytest.approx(of_name, abs=1e-6) and of_object != 0
    with pytest.raises(UserError, match="1 reward_processing_classes for 2 reward_funcs, and their"):
        GRPOTrainer(small_model(), [model, lengths], train_dataset=ROWS, reward_processing_classes=[tokenizer])


def test_a_batch_smaller_than_a_group_runs_with_whole_groups(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    args = settings(tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=4, num_generations=8)
    trainer = GRPOTrainer(small_model(), lengths, args, ROWS, tokenizer=build_tokenizer())
    assert "each step: 1 prompts x 8 completions = 8 completions" in caplog.messages
    assert changed(trainer)


def test_an_8_bit_optimiser_falls_back_with_a_notice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as if it were not installed
    args = settings(tmp_path, optim="paged_adamw_8bit")
    trainer = GRPOTrainer(small_model(), lengths, args, ROWS, tokenizer=build_tokenizer())
    expected = "optim=paged_adamw_8bit needs bitsandbytes (pip install bitsandbytes): torch's AdamW takes its place"
    assert expected in caplog.messages
    assert type(trainer.loop.updater.optimizer) is torch.optim.AdamW


def test_trls_cases_with_adapters(tmp_path: Path) -> None:
    """As in TRL's tests: a peft_config and a PeftModel train the adapter and do not change the base."""
    lora = LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    tokenizer = build_tokenizer()
    given = GRPOTrainer(small_model(), lengths, settings(tmp_path), ROWS, tokenizer=tokenizer, peft_config=lora)
    wrapped = get_peft_model(small_model(), lora)
    ready = GRPOTrainer(
        wrapped, lengths, settings(tmp_path / "b", gradient_checkpointing=True), ROWS, tokenizer=tokenizer
    )
    for trainer in (given, ready):
        names = changed(trainer)
        assert names and all("lora_" in name for name in names)


def test_all_completions_masked_changes_nothing(tmp_path: Path) -> None:
    args = settings(tmp_path, mask_truncated_completions=True, max_completion_length=1, beta=0.0, weight_decay=0.0)
    model = small_model()
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(97))  # the end token never comes
    model.lm_head.bias.data[1:3] = -1e9
    trainer = GRPOTrainer(model, lengths, args, ROWS, tokenizer=build_tokenizer())
    assert changed(trainer) == []


def test_prompts_too_long_are_dropped_or_cut_by_rule(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"prompt": "1="}, {"prompt": "1+2+3="}]
    tokenizer = build_tokenizer()
    dropped = GRPOTrainer(small_model(), lengths, settings(tmp_path, max_prompt_length=3), rows, tokenizer=tokenizer)
    args = settings(tmp_path, max_prompt_length=3, truncation="cut")
    cut = GRPOTrainer(small_model(), lengths, args, rows, tokenizer=tokenizer)
    assert [tokenizer.decode(p.ids) for p in dropped.loop.source.prompts] == ["1="]
    assert [tokenizer.decode(p.ids) for p in cut.loop.source.prompts] == ["1=", "+3="]
    told = [message for message in caplog.messages if "longer" in message]
    assert told == [
        "1 of 2 prompts are longer than 3 tokens (max_prompt_length) and are dropped",
        "1 of 2 prompts are longer than 3 tokens (max_prompt_length) and are cut",
    ]


def test_demonstrations_too_long_keep_their_beginning(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    rows = [
        {"prompt": "1=", "completion": "1"},
        {"prompt": "2=", "completion": "3+4"},
        {"prompt": "1+1+1=", "completion": "3"},
    ]
    kept = {}
    for truncation in ("drop", "cut"):
        args = SFTConfig(str(tmp_path), max_length=4, truncation=truncation, bf16=False, use_cpu=True)
        trainer = SFTTrainer(small_model(), args, rows, tokenizer=tokenizer)
        kept[truncation] = [tokenizer.decode([*d.prompt, *d.completion]) for _, d in trainer.loop.source.examples]
    assert kept == {"drop": ["1=1<|im_end|>"], "cut": ["1=1<|im_end|>", "2=3+"]}


def test_shares_of_a_run_epochs_and_checkpoints_of_weights_alone(tmp_path: Path) -> None:
    logged: list[int] = []

    class Watch(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            logged.append(state.global_step)

    args = settings(
        tmp_path, max_steps=-1, num_train_epochs=2, logging_steps=0.5, save_strategy="epoch", save_only_model=True,
        save_total_limit=1, eval_strategy="epoch",
    )  # fmt: skip
    trainer = GRPOTrainer(small_model(), lengths, args, ROWS, ROWS[:2], tokenizer=build_tokenizer())
    trainer.add_callback(Watch)
    trainer.train()
    assert logged == [5, 5, 10, 10, 10]  # steps, evaluations, and the run
    assert [row["step"] for row in trainer.state.log_history if "eval_reward" in row] == [5, 10]
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-10"]
    assert {path.name for path in (tmp_path / "checkpoint-10").iterdir()}.isdisjoint(
        {"optimizer.safetensors", "state.json"}
    )
    type(trainer.model).from_pretrained(tmp_path / "checkpoint-10")


@pytest.mark.parametrize(
    ("keys", "url"),
    [
        ({"vllm_mode": "server"}, "http://localhost:8000"),
        ({"vllm_server_host": "0.0.0.0", "vllm_server_port": 9000}, "http://localhost:9000"),
        ({"vllm_mode": "server", "vllm_server_base_url": "http://gpu7:8001/"}, "http://gpu7:8001"),
    ],
)
def test_a_server_of_vllm_becomes_the_engine(keys: dict[str, Any], url: str) -> None:
    config = GRPOConfig(use_vllm=True, vllm_server_timeout=60.0, vllm_enable_sleep_mode=True, **keys)
    assert config.engine.vllm is not None and config.engine.vllm.url == [url]
    assert config.engine.vllm.start_timeout == 60 and config.engine.vllm.sleep
    assert config.vllm_importance_sampling_correction


def test_an_engine_that_is_named_stays(caplog: pytest.LogCaptureFixture) -> None:
    config = GRPOConfig(use_vllm=True, vllm_mode="server", engine={"vllm": {"url": "http://a:1"}})
    assert config.engine.vllm is not None and config.engine.vllm.url == ["http://a:1"]
    assert GRPOConfig(use_vllm=True).engine.is_local and GRPOConfig(vllm_mode="server").engine.is_local
