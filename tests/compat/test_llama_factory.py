"""LLaMA-Factory's YAML, data sets and templates, unchanged."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from cohort.cli.app import app
from cohort.compat.llama_factory import KEYS, translate
from cohort.config import GRPOConfig, SFTConfig, read_run
from cohort.data.chains import build_tokenizer
from cohort.data.chat_templates import TEMPLATES, use_template
from cohort.data.configured import configured_rows
from cohort.data.dataset_info import entry_rows, find_entries
from cohort.data.templates import encode_demonstration
from cohort.policy.load import make_policy
from cohort.types import UserError
from helpers import ROOT, small_model

# As in tutorials.
GRPO = """
model_name_or_path: Qwen/Qwen2.5-7B
stage: grpo
do_train: true
finetuning_type: lora
num_generations: 8
pref_beta: 0.1
reward_funcs: accuracy,format
lora_rank: 64
lora_target: all
dataset: my_math_data
template: qwen
cutoff_len: 4096
per_device_train_batch_size: 1
gradient_accumulation_steps: 4
learning_rate: 5.0e-7
num_train_epochs: 1
bf16: true
output_dir: saves/qwen2.5-7b/lora/grpo
"""


def test_the_tutorials_grpo_yaml(tmp_path: Path) -> None:
    (tmp_path / "grpo_config.yaml").write_text(GRPO)
    run, config = read_run(tmp_path / "grpo_config.yaml", ["learning_rate=1e-6", "lora_alpha=32"])
    assert (run.method, run.model, run.dataset, run.dataset_dir) == ("grpo", "Qwen/Qwen2.5-7B", "my_math_data", "data")
    assert run.reward_funcs == ["accuracy", "format"]
    assert isinstance(config, GRPOConfig)
    expected = {
        "beta": 0.1, "finetuning_type": "lora", "lora_rank": 64, "lora_target": "all", "lora_alpha": 32,
        "template": "qwen", "max_prompt_length": 4096, "truncation": "cut", "learning_rate": 1e-6, "bf16": True,
        "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "num_generations": 8,
    }  # fmt: skip
    assert {key: getattr(config, key) for key in expected} == expected
    assert config.prompts_per_step == 1


def test_an_sft_yaml_with_everything(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = (
        "model_name_or_path: m\ndataset: a,b\ndataset_dir: d\ncutoff_len: 128\nval_size: 0.1\nmax_samples: 10\n"
        "finetuning_type: freeze\nfreeze_trainable_layers: -1\nfreeze_trainable_modules: mlp,self_attn\n"
        "additional_target: norm\nuse_dora: true\nenable_thinking: false\ndefault_system: Be brief.\nplot_loss: true\n"
        "packing: true\npreprocessing_num_workers: 16\nflash_attn: fa2\nsave_steps: 500\nlogging_steps: 10\n"
    )
    (tmp_path / "sft.yaml").write_text(lines)
    run, config = read_run(tmp_path / "sft.yaml")
    assert isinstance(config, SFTConfig) and run.method == "sft"
    assert (run.val_size, run.max_samples, run.system_prompt) == (0.1, 10, "Be brief.")
    assert (config.max_length, config.truncation) == (128, "cut")
    assert (config.freeze_trainable_layers, config.freeze_trainable_modules) == (-1, ["mlp", "self_attn"])
    assert config.chat_template_kwargs == {"enable_thinking": False} and config.modules_to_save == []
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    unread = ["preprocessing_num_workers", "flash_attn", "additional_target", "use_dora"]
    assert [message.split("=")[0] for message in told] == unread
    assert told[-1] == "use_dora=True has no effect here: it is read with finetuning_type: lora"


def test_reward_models_quantisation_and_revisions_join_other_keys() -> None:
    values = {"stage": "grpo", "model_name_or_path": "m", "finetuning_type": "lora"}
    found = translate(
        {**values, "reward_model": "rm", "reward_funcs": "format", "model_revision": "v2", "quantization_bit": 4}, "f"
    )
    assert found["reward_funcs"] == ["format", "rm"]
    assert found["model_init_kwargs"]["revision"] == "v2"
    assert found["model_init_kwargs"]["quantization_config"]["bnb_4bit_quant_type"] == "nf4"
    with pytest.raises(UserError, match="needs finetuning_type: lora"):
        translate({"stage": "sft", "finetuning_type": "full", "quantization_bit": 4}, "f")
    with pytest.raises(UserError, match="`quantization_bit` is 8: 4 is supported"):
        translate({**values, "quantization_bit": 8}, "f")


BROKEN = [
    ({"stage": ["sft"]}, "unknown stage ['sft']"),
    ({"chat_template_kwargs": 3, "enable_thinking": False}, "`chat_template_kwargs` is '3': it must be a mapping"),
    ({"model_init_kwargs": "x", "model_revision": "v2"}, "`model_init_kwargs` is 'x': it must be a mapping"),
    ({"additional_target": 3}, "`additional_target` is '3': it must be a list, or names with commas"),
    ({"reward_model": "rm", "reward_funcs": 3}, "`reward_funcs` is '3'"),
    ({"max_new_tokens": 8, "max_completion_length": 9}, "`max_new_tokens` and `max_completion_length` are one key"),
    ({"model_init_kwargs": {"revision": "v1"}, "model_revision": "v2"}, "has revision: 'v1', and another key"),
]


@pytest.mark.parametrize(("values", "message"), BROKEN)
def test_values_of_another_kind_are_told(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        translate({"model_name_or_path": "m", "stage": "sft", "finetuning_type": "lora", **values}, "f")
    assert "f: " in str(error.value) and message in str(error.value)


def test_null_is_the_default_and_data_may_keep_their_order() -> None:
    nothing = dict.fromkeys(("val_size", "lora_rank", "max_new_tokens", "additional_target", "template"))
    values = {"model_name_or_path": "m", "stage": "sft"}
    assert translate(values | nothing, "f") == translate(values, "f") | {"modules_to_save": []}
    assert translate(values | {"disable_shuffling": True}, "f")["shuffle_dataset"] is False
    assert "shuffle_dataset" not in translate(values | {"disable_shuffling": False}, "f")


def test_overrides_by_another_name(tmp_path: Path) -> None:
    """What the command line says replaces what the file says, by whichever name."""
    (tmp_path / "f.yaml").write_text("model_name_or_path: m\ndataset: d\nstage: grpo\nmax_new_tokens: 8\n")
    run, config = read_run(tmp_path / "f.yaml", ["model=n", "max_completion_length=9", "num_generations=8"])
    assert (run.model, config.max_completion_length) == ("n", 9)


def test_keys_of_the_stages_dpo_and_ppo(caplog: pytest.LogCaptureFixture) -> None:
    shared = {"model_name_or_path": "m", "pref_beta": 0.2, "cutoff_len": 32}
    dpo = translate({**shared, "stage": "dpo", "pref_loss": "sigmoid", "dpo_label_smoothing": 0.1}, "f")
    assert (dpo["method"], dpo["beta"], dpo["max_length"], dpo["label_smoothing"]) == ("dpo", 0.2, 32, 0.1)
    assert (
        dpo["loss_type"] == "sigmoid"
        and translate({**shared, "stage": "dpo", "pref_loss": "ipo"}, "f")["loss_type"] == "ipo"
    )
    sampled = translate({**shared, "stage": "dpo", "dpo_pairs": "random"}, "f")
    assert sampled["max_prompt_length"] == 32 and "max_length" not in sampled
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    ppo = translate({**shared, "stage": "ppo", "ppo_epochs": 2, "ppo_buffer_size": 3, "reward_model": "rm"}, "f")
    assert (ppo["num_ppo_epochs"], ppo["num_mini_batches"], ppo["reward_funcs"]) == (2, 3, ["rm"])
    assert "beta" not in ppo and ppo["max_prompt_length"] == 32
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert told == ["pref_beta=0.2 has no effect here: only the stages grpo and dpo have it"]


def test_our_own_files_stay_as_they_are() -> None:
    values = {"model": "m", "method": "sft", "dataset": "d", "template": "qwen"}
    assert translate(values, "f") is values


REFUSED = [
    ({"stage": "pt"}, "stage pt: further pre-training on raw text is not done here"),
    ({"stage": "kto"}, "stage kto: it has no counterpart here: make pairs"),
    ({"stage": "grpoo"}, "unknown stage 'grpoo': did you mean 'grpo'?"),
    ({"stage": "zz"}, "unknown stage 'zz': it is one of sft, grpo, dpo, ppo, rm"),
    ({"pref_loss": "orpo"}, "`pref_loss` is 'orpo', and is not supported: sigmoid, hinge and ipo are"),
    ({"adapter_name_or_path": "x"}, "merge the adapter into its model first"),
    ({"template": "qwenn"}, "unknown template 'qwenn': did you mean 'qwen'?"),
    ({"dataset": "sumz"}, "is no key of data/dataset_info.json and no file: did you mean 'sums'?"),
    ({"dataset": "other"}, "dataset 'other' is no key of data/dataset_info.json and no file; it has sums, ranked"),
    ({"dataset_dir": "nowhere"}, "is no file, and there is no nowhere/dataset_info.json: set dataset_dir"),
    ({"num_generation": 4}, "unknown key `num_generation`: did you mean `num_generations`?"),
    ({"lora_target": "q_projj"}, "linear layers of this model: down_proj, gate_proj"),
    ({"finetuning_type": "freeze", "freeze_trainable_layers": 9}, "this model has 2 layers: give 1 to 2"),
    ({"finetuning_type": "freeze", "freeze_trainable_modules": "ml"}, "no module is named 'ml'; there are act_fn"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and data in LLaMA-Factory's layout; the tokenizer has no chat template."""
    folder = tmp_path_factory.mktemp("lf")
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder / "m")
    small_model().save_pretrained(folder / "m")
    (folder / "data").mkdir()
    info = {"sums": {"file_name": "sums.json"}, "ranked": {"file_name": "ranked.json", "ranking": True}}
    (folder / "data" / "dataset_info.json").write_text(json.dumps(info))
    rows = [{"instruction": f"{a}+1=", "input": "", "output": str(a + 1)} for a in range(8)]
    (folder / "data" / "sums.json").write_text(json.dumps(rows))
    ranked = [{"instruction": f"{a}+1=", "chosen": str(a + 1), "rejected": "9" * 12} for a in range(8)]
    (folder / "data" / "ranked.json").write_text(json.dumps(ranked))
    return folder


def run_yaml(folder: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], *command: str) -> Result:
    monkeypatch.chdir(folder)
    (folder / "run.yaml").write_text(yaml.safe_dump(values))
    return CliRunner().invoke(app, [*(command or ("train",)), "run.yaml"])


BASE = {
    "model_name_or_path": "./m", "stage": "grpo", "finetuning_type": "lora", "dataset": "sums", "template": "chatml",
    "reward_funcs": "accuracy", "num_generations": 2, "per_device_train_batch_size": 2, "max_steps": 2, "bf16": False,
    "cutoff_len": 64, "max_completion_length": 4, "output_dir": "out",
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=["-".join(map(str, c.values())) for c, _ in REFUSED])
def test_a_mistake_is_one_message_and_exit_code_2(
    change: dict[str, Any], message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run_yaml(folder, monkeypatch, {**BASE, **change})
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())
    assert "Traceback" not in done.output


def test_no_chat_template_and_no_name_for_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run_yaml(folder, monkeypatch, {key: value for key, value in BASE.items() if key != "template"})
    assert done.exit_code == 2 and "the tokenizer has no chat template" in done.output
    assert "template: qwen" in done.output


def test_grpo_and_sft_run_to_their_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run_yaml(folder, monkeypatch, BASE)
    assert done.exit_code == 0, done.output
    first = json.loads((folder / "out" / "completions.jsonl").read_text().splitlines()[0])
    assert first["prompt"][0]["role"] == "user" and first["prompt"][0]["content"].endswith("+1=")
    sft = {**BASE, "stage": "sft", "val_size": 2, "eval_strategy": "steps", "reward_funcs": "", "output_dir": "sft"}
    done = run_yaml(folder, monkeypatch, {key: v for key, v in sft.items() if key != "num_generations"})
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in (folder / "sft" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "eval/loss" in row] == [2]
    saved = yaml.safe_load((folder / "sft" / "config.yaml").read_text())
    assert (saved["method"], saved["template"], saved["max_length"]) == ("sft", "chatml", 64)
    run, _ = read_run(folder / "sft" / "config.yaml")  # a run writes a configuration of ours
    assert run.dataset_dir == "data"


def test_dpo_and_ppo_run_to_their_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = ("reward_funcs", "num_generations", "max_completion_length")
    dpo = {key: value for key, value in BASE.items() if key not in own}
    dpo |= {"stage": "dpo", "dataset": "ranked", "pref_beta": 0.2, "cutoff_len": 20, "output_dir": "dpo"}
    done = run_yaml(folder, monkeypatch, dpo)
    assert done.exit_code == 0, done.output
    assert "8 of 8 pairs are longer than 20 tokens (max_length) and are cut" in " ".join(done.output.split())
    saved = yaml.safe_load((folder / "dpo" / "config.yaml").read_text())
    assert (saved["beta"], saved["max_length"], saved["truncation"]) == (0.2, 20, "cut")
    ppo = {**BASE, "stage": "ppo", "num_generations": 1, "ppo_epochs": 2, "ppo_buffer_size": 1, "output_dir": "ppo"}
    done = run_yaml(folder, monkeypatch, ppo)
    assert done.exit_code == 0, done.output
    for name, key in (("dpo", "rewards/margins"), ("ppo", "critic/loss")):
        rows = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows if "loss" in row] == [1, 2]
        assert all(key in row for row in rows), sorted(rows[0])
    # The loss is log 2 while the policy equals the reference.
    first = json.loads((folder / "dpo" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(0.693147, abs=1e-5)


def info(folder: Path, entry: dict[str, Any], records: list[Any]) -> Any:
    (folder / "dataset_info.json").write_text(json.dumps({"it": {"file_name": "it.json", **entry}}))
    (folder / "it.json").write_text(json.dumps(records))
    return find_entries("it", str(folder))[0]


def rows_of(entry: Any, **options: Any) -> list[Any]:
    return entry_rows(entry, **{"max_samples": None, "system_prompt": None, "seed": 0, **options})


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_alpaca_rows(tmp_path: Path) -> None:
    record = {
        "instruction": "Add.", "input": "1 and 2", "output": "3", "system": "Be exact.", "history": [["Hi", "Hello"]],
        "level": "easy",
    }  # fmt: skip
    (row,) = rows_of(info(tmp_path, {}, [record]))
    history = [turn("system", "Be exact."), turn("user", "Hi"), turn("assistant", "Hello")]
    assert row.prompt == [*history, turn("user", "Add.\n1 and 2")]
    assert row.completion == [turn("assistant", "3")]
    assert row.columns == {"output": "3", "level": "easy"}
    entry = info(tmp_path, {"columns": {"prompt": "q", "response": "a"}}, [{"q": "1+1", "a": "2"}])
    (row,) = rows_of(entry, system_prompt="Be brief.")
    assert row.prompt == [turn("system", "Be brief."), turn("user", "1+1")]
    assert row.columns["output"] == "2"


def test_sharegpt_and_openai_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "cohort")
    talk = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    more = [*talk, {"from": "human", "value": "c"}, {"from": "gpt", "value": "d"}]
    entry = info(
        tmp_path, {"formatting": "sharegpt"}, [{"conversations": talk, "system": "s"}, {"conversations": more}]
    )
    first, second = rows_of(entry)
    assert first.prompt == [turn("system", "s"), turn("user", "a")] and first.columns["output"] == "b"
    assert [message["content"] for message in second.prompt] == ["a", "b", "c"]
    assert second.completion == [turn("assistant", "d")]
    assert second.conversation and not caplog.messages
    messages = [turn("system", "s"), turn("user", "a"), turn("assistant", "b")]
    (row,) = rows_of(info(tmp_path, {"formatting": "openai"}, [{"messages": messages}]))
    assert (row.prompt, row.completion) == (messages[:2], messages[2:])


def test_ranked_rows_have_both_answers_as_messages(tmp_path: Path) -> None:
    records = [{"instruction": "q", "input": "", "chosen": "good", "rejected": "bad"}]
    (row,) = rows_of(info(tmp_path, {"ranking": True}, records))
    assert (row.columns["chosen"], row.columns["rejected"]) == ([turn("assistant", "good")], [turn("assistant", "bad")])
    talk = [{"from": "human", "value": "q"}]
    ranked = {"conversations": talk, "chosen": {"from": "gpt", "value": "x"}, "rejected": {"from": "gpt", "value": "y"}}
    (row,) = rows_of(info(tmp_path, {"ranking": True, "formatting": "sharegpt"}, [ranked]))
    assert (row.columns["chosen"], row.columns["rejected"]) == ([turn("assistant", "x")], [turn("assistant", "y")])
    with pytest.raises(UserError, match=r"it\.json row 1: ranking data needs 'rejected'"):
        rows_of(info(tmp_path, {"ranking": True}, [{"instruction": "q", "chosen": "good"}]))


def test_samples_of_an_entry(tmp_path: Path) -> None:
    records = [{"instruction": str(i)} for i in range(4)]
    assert len(rows_of(info(tmp_path, {}, records), max_samples=3)) == 3
    drawn = [row.prompt[0]["content"] for row in rows_of(info(tmp_path, {"num_samples": 6}, records))]
    assert drawn[:4] == ["0", "1", "2", "3"] and len(set(drawn[4:])) == 2
    assert rows_of(info(tmp_path, {}, [{"messages": [turn("user", "q")]}][:0] or records))[0].completion is None


BAD_ENTRIES = [
    ({"file_name": "it.json", "formating": "alpaca"}, "unknown key 'formating': did you mean 'formatting'?"),
    ({"formatting": "alpaca"}, "it needs file_name or hf_hub_url"),
    ({"script_url": "x"}, "loading scripts are not run"),
    ({"file_name": "it.json", "formatting": "xml"}, "formatting 'xml' is not one of alpaca, sharegpt, openai"),
    ({"file_name": "it.json", "columns": {"responce": "a"}}, "unknown column 'responce': did you mean 'response'?"),
    ({"file_name": "it.json", "columns": {"images": "i"}}, "column 'images' is not supported; prompts are text"),
    ({"file_name": "it.json", "tags": {"role": "a"}}, "unknown tag 'role': did you mean 'role_tag'?"),
    (["it.json"], "expected an object with file_name or hf_hub_url, found list"),
]


@pytest.mark.parametrize(("entry", "message"), BAD_ENTRIES)
def test_entries_that_cannot_be_used(entry: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text(json.dumps({"it": entry}))
    with pytest.raises(UserError, match=f"dataset_info.json, data set 'it'.*{message.replace('?', '.')}"):
        find_entries("it", str(tmp_path))


BAD_ROWS = [
    ({}, [1], "it.json row 1: expected an object with columns, found int"),
    ({}, [{"output": "x"}], "neither 'instruction' nor 'input' has text; it has output"),
    ({"columns": {"response": "a"}}, [{"instruction": "q"}], "no column 'a' (it's response); it has instruction"),
    ({}, [{"instruction": "q", "history": ["x"]}], "history 1 is x: it must be a pair"),
    ({}, [{"instruction": "q", "output": ["a", "b"]}], "'output' is a list: name its parts as chosen and rejected"),
    ({}, [{"instruction": "q", "output": 3}], "the assistant's text is int '3': it must be text"),
    ({"formatting": "sharegpt"}, [{"conversations": "x"}], "'conversations' is no list of turns"),
    ({"formatting": "sharegpt"}, [{"conversations": [{"role": "user"}]}], "each needs 'from' and 'value'"),
    (
        {"formatting": "sharegpt"},
        [{"conversations": [{"from": "me", "value": "x"}]}],
        "turn 1 has the role 'me', and the roles are human",
    ),
    ({"formatting": "sharegpt"}, [{"conversations": [{"from": "gpt", "value": "x"}]}], "no question before its answer"),
]


@pytest.mark.parametrize(("entry", "records", "message"), BAD_ROWS)
def test_rows_that_do_not_fit_are_named(entry: Any, records: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        rows_of(info(tmp_path, entry, records))
    assert message in str(error.value)


def test_paths_and_splits(folder: Path, tmp_path: Path) -> None:
    path = folder / "data" / "sums.json"
    assert find_entries(str(path), "nowhere")[0].source == str(path)
    assert find_entries("sums.json", str(folder / "data"))[0].source == str(path)
    assert find_entries("someone/something", "nowhere")[0].source == "someone/something"
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**BASE, "dataset_dir": str(folder / "data"), "val_size": 0.25}))
    run, config = read_run(tmp_path / "run.yaml")
    rows, held_out = configured_rows(run, config.seed)
    assert held_out is not None and (len(rows), len(held_out)) == (6, 2)
    texts = [row.prompt[0]["content"] for row in (*rows, *held_out)]
    assert sorted(texts) == [f"{a}+1=" for a in range(8)]
    with pytest.raises(UserError, match="val_size 8 of 8 rows holds out 8"):
        configured_rows(run.model_copy(update={"val_size": 8}), 0)


# One conversation in each family's published format; the begin and end tokens are the tokenizer's.
TURNS = [turn("system", "S"), turn("user", "Q"), turn("assistant", "A"), turn("user", "R")]
RENDERED = {
    "default": "System: S<e>\nHuman: Q<e>\nAssistant:A<e>\nHuman: R<e>\nAssistant:",
    "empty": "SQAR",
    "alpaca": "S### Instruction:\nQ\n\n### Response:\nA<e>\n\n### Instruction:\nR\n\n### Response:\n",
    "chatml": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
    "<|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\n",
    "deepseek": "<b>S\n\nUser: Q\n\nAssistant: A<e>User: R\n\nAssistant:",
    "deepseek3": "<b>S<｜User｜>Q<｜Assistant｜>A<e><｜User｜>R<｜Assistant｜>",
    "gemma": "<b><start_of_turn>user\nS\n\nQ<end_of_turn>\n<start_of_turn>model\nA<end_of_turn>\n"
    "<start_of_turn>user\nR<end_of_turn>\n<start_of_turn>model\n",
    "llama3": "<b><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
    "Q<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
    "R<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<b>[INST] S\n\nQ[/INST] A<e>[INST] R[/INST]",
    "phi4": "<|im_start|>system<|im_sep|>S<|im_end|><|im_start|>user<|im_sep|>Q<|im_end|>"
    "<|im_start|>assistant<|im_sep|>A<|im_end|><|im_start|>user<|im_sep|>R<|im_end|><|im_start|>assistant<|im_sep|>",
    "vicuna": "S USER: Q ASSISTANT: A<e>USER: R ASSISTANT:",
    "zephyr": "<|system|>\nS<e>\n<|user|>\nQ<e>\n<|assistant|>\nA<e>\n<|user|>\nR<e>\n<|assistant|>\n",
}  # fmt: skip
RENDERED |= dict.fromkeys(("qwen", "qwen3", "qwen3_nothink", "yi"), RENDERED["chatml"])
RENDERED |= {"deepseekr1": RENDERED["deepseek3"], "gemma2": RENDERED["gemma"], "gemma3": RENDERED["gemma"]}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_write_their_familys_format(name: str) -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = TEMPLATES[name].jinja()
    tokenizer.bos_token, tokenizer.eos_token = "<b>", "<e>"
    assert tokenizer.apply_chat_template(TURNS, add_generation_prompt=True, tokenize=False) == RENDERED[name]
    with pytest.raises(Exception, match="this template has no role tool"):
        tokenizer.apply_chat_template([turn("user", "q"), turn("tool", "x")], tokenize=False)


def test_qwens_default_system_and_thoughts() -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = TEMPLATES["qwen"].jinja()
    text = tokenizer.apply_chat_template([turn("user", "q")], tokenize=False)
    assert text.startswith(
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>"
    )
    tokenizer.chat_template = TEMPLATES["qwen3"].jinja()
    asked = tokenizer.apply_chat_template(
        [turn("user", "q")], add_generation_prompt=True, tokenize=False, enable_thinking=False
    )
    assert asked.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    given = tokenizer.apply_chat_template(
        [turn("user", "q"), turn("assistant", "a")], tokenize=False, enable_thinking=False
    )
    assert given.startswith(asked)


def test_a_templates_end_token_ends_answers(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "cohort")
    tokenizer = build_tokenizer()
    tokenizer.chat_template, tokenizer.eos_token = None, "<|pad|>"
    use_template(tokenizer, "chatml")
    assert tokenizer.eos_token == "<|im_end|>"
    from cohort.types import Row

    row = Row([turn("user", "1+1=")], [turn("assistant", "2")])
    assert tokenizer.decode(encode_demonstration(tokenizer, row)[1]) == "2<|im_end|>"
    use_template(tokenizer, "llama3")  # it has one now
    assert "template llama3: the tokenizer's own chat template is used instead" in caplog.messages[-1]
    tokenizer.chat_template = None
    use_template(tokenizer, "llama3")
    assert "<|eot_id|> is not a token of this tokenizer and becomes several tokens" in caplog.messages[-1]


def trained(config: SFTConfig) -> set[str]:
    policy = make_policy(small_model(), build_tokenizer(), config)
    return {name for name, value in policy.model.named_parameters() if value.requires_grad}


def test_freeze_trains_what_it_says() -> None:
    def config(**values: Any) -> SFTConfig:
        return SFTConfig(finetuning_type="freeze", bf16=False, use_cpu=True, **values)

    every = {name for name, _ in small_model().named_parameters()}
    last = {name for name in every if name.startswith("model.layers.1.")}
    first = {name for name in every if name.startswith("model.layers.0.")}
    assert trained(config(freeze_trainable_layers=1)) == last
    assert trained(config(freeze_trainable_layers=-1)) == first
    assert trained(config()) == first | last
    some = trained(config(freeze_trainable_layers=1, freeze_trainable_modules=["mlp"], freeze_extra_modules=["norm"]))
    assert some == {name for name in last if ".mlp." in name} | {"model.norm.weight"}


def test_every_key_is_on_the_page() -> None:
    page = (ROOT / "docs" / "coming-from-llama-factory.md").read_text(encoding="utf-8")
    assert [name for name in KEYS if f"\n| `{name}` |" not in page] == []
    for name in TEMPLATES:
        assert f"`{name}`" in page


@pytest.mark.parametrize(("stage", "kept"), [("sft", True), ("dpo", None), ("rm", None)])
def test_mask_history_is_for_sft(stage: str, kept: bool | None, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"model_name_or_path: m\nstage: {stage}\ndataset: d\nmask_history: true\noutput_dir: o\n")
    assert getattr(read_run(path)[1], "mask_history", None) is kept
