"""Models as directories of their own: merged adapters give the adapter's log-probabilities, copies are clean."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner, Result

from cohort.cli.app import app
from cohort.config import ProcessRewardConfig, RewardConfig, TrainingConfig
from cohort.data.chains import build_tokenizer
from cohort.policy.adapter import merged
from cohort.policy.load import add_lora, load_model, make_policy
from cohort.rewards import resolve
from cohort.train.output import export as exporting
from cohort.train.output.checkpoint import save_policy
from cohort.train.reward_models.trainer import RewardTrainer
from cohort.types import UserError
from helpers import LORA, QUICK_REWARD, byte_tokenizer, classifier, small_model, step_rows


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def saved_base(folder: Path, architecture: str = "Llama", **overrides: Any) -> Path:
    small_model(architecture, **overrides).save_pretrained(folder / "base")
    build_tokenizer().save_pretrained(folder / "base")
    return folder / "base"


def saved_adapter(folder: Path, architecture: str = "Llama", **settings: Any) -> PeftModel:
    """An adapter with weights that are not the start's, in folder/run, as training leaves it."""
    base = saved_base(folder, architecture, initializer_range=0.1)
    config = TrainingConfig(finetuning_type="lora", bf16=False, use_cpu=True, **settings)
    policy = make_policy(str(base), None, config)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in policy.peft.named_parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data += 0.1 * noise * (1 if "lora" in name else parameter.data.abs())
    save_policy(policy, folder / "run")
    return policy.peft.eval()


IDS = torch.tensor([[5, 9, 3, 60, 22, 7, 41], [8, 8, 90, 2, 17, 33, 6]])


@torch.no_grad()
def logprobs(model: Any) -> torch.Tensor:
    return torch.log_softmax(model.eval()(IDS, use_cache=False).logits.float(), -1)


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("architecture", ["Qwen2", "Llama", "Gemma"])
def test_a_merged_export_has_the_adapters_logprobs(architecture: str, dora: bool, tmp_path: Path) -> None:
    adapted = logprobs(saved_adapter(tmp_path, architecture, use_dora=dora))
    done = run("export", tmp_path / "run", "--merge", "--output", tmp_path / "merged")
    assert done.exit_code == 0, done.output
    assert f"exported to {tmp_path / 'merged'}" in done.stdout
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert type(found).__name__ == f"{architecture}ForCausalLM" and not hasattr(found, "peft_config")
    assert (logprobs(found) - adapted).abs().max() < 1e-5
    assert (logprobs(load_model(str(tmp_path / "base"))) - adapted).abs().max() > 1e-2
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert names == {
        "README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer.chat_template == build_tokenizer().chat_template and tokenizer("1+2")["input_ids"]
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`", "ignore:Input and output embeddings are no")
def test_an_output_layer_that_was_trained_is_the_embeddings_no_longer(tmp_path: Path) -> None:
    """Gemma ties its embeddings; an adapter of peft's may give the head weights of its own, which a merge must keep."""
    model = load_model(str(saved_base(tmp_path, "Gemma", initializer_range=0.1)))
    lora = LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    adapter = get_peft_model(model, lora)
    for parameter in adapter.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape) if parameter.requires_grad else 0
    adapter.save_pretrained(tmp_path / "run")
    adapted = logprobs(adapter)
    exporting.export(str(tmp_path / "run"), tmp_path / "merged", merge=True)
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert (logprobs(found) - adapted).abs().max() < 1e-5


TIED: dict[str, dict[str, Any]] = {
    "LoRA on the embeddings": {"lora_target": "q_proj,embed_tokens"},
    "DoRA on the embeddings": {"lora_target": "q_proj,embed_tokens", "use_dora": True},
    "embeddings trained whole": {"lora_target": "q_proj", "modules_to_save": ["embed_tokens"]},
}


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize("way", TIED)
def test_embeddings_that_are_trained_apart_from_the_output_layer_stay_so(
    way: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "cohort")
    adapted = logprobs(saved_adapter(tmp_path, "Gemma", **TIED[way]))
    assert "the embeddings are trained, and the output layer" in caplog.text
    assert (logprobs(load_model(str(tmp_path / "run"))) - adapted).abs().max() < 1e-5
    exporting.export(str(tmp_path / "run"), tmp_path / "merged", merge=True)
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert (logprobs(found) - adapted).abs().max() < 1e-5
    assert found.config.tie_word_embeddings is False


def test_an_adapter_of_peft_on_a_shared_output_layer_is_merged_into_that_alone(tmp_path: Path) -> None:
    for settings in (
        {"target_modules": ["lm_head"]},
        {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
    ):
        model = small_model("Gemma", initializer_range=0.1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapter = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **settings))
        adapted = logprobs(adapter)
        assert (logprobs(merged(adapter)) - adapted).norm() < 1e-6 * adapted.norm()


def test_a_merge_that_changes_the_logits_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved_adapter(tmp_path)
    monkeypatch.setattr("peft.tuners.lora.Linear.merge", lambda self, **_: None)
    with pytest.raises(UserError, match="the merged model's logits differ from the adapted model's by 1 of"):
        exporting.export(str(tmp_path / "run"), tmp_path / "merged", merge=True)
    assert not (tmp_path / "merged").exists()


def test_merged_weights_have_the_base_models_precision_unless_told(tmp_path: Path) -> None:
    saved_adapter(tmp_path)
    small_model("Llama").to(torch.bfloat16).save_pretrained(tmp_path / "base")
    for dtype, expected in (("auto", torch.bfloat16), ("float32", torch.float32)):
        exporting.export(str(tmp_path / "run"), tmp_path / dtype, merge=True, dtype=dtype)
        weights = load_file(tmp_path / dtype / "model.safetensors")
        assert {tensor.dtype for tensor in weights.values()} == {expected}


def test_a_copy_has_the_model_and_nothing_else(tmp_path: Path) -> None:
    base = saved_base(tmp_path)
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    for path in base.iterdir():
        path.rename(run_folder / path.name)
    beside = ("metrics.jsonl", "completions.jsonl", "config.yaml", "state.json", "reward.png", "training_args.bin")
    for name in beside:
        (run_folder / name).write_text("x")
    for name in ("optimizer", "critic", "batch"):
        save_file({"a": torch.zeros(1)}, run_folder / f"{name}.safetensors")
    (run_folder / "checkpoint-2").mkdir()
    done = run("export", run_folder)
    assert done.exit_code == 0, done.output
    target = tmp_path / "run-export"
    assert sorted(path.name for path in target.iterdir()) == [
        "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    same = AutoModelForCausalLM.from_pretrained(target)
    assert torch.equal(logprobs(same), logprobs(AutoModelForCausalLM.from_pretrained(run_folder)))
    assert run("export", run_folder, "--merge", "--output", tmp_path / "again").exit_code == 0
    assert run("export", run_folder).exit_code == 2  # the target is there


def test_shards_are_copied_by_their_index_and_all_must_be_there(tmp_path: Path) -> None:
    base = saved_base(tmp_path)
    small_model("Llama").save_pretrained(base, max_shard_size="20KB")
    (base / "model.safetensors").unlink(missing_ok=True)
    shards = sorted(path.name for path in base.glob("model-*.safetensors"))
    assert len(shards) > 1
    exporting.export(str(base), tmp_path / "copy")
    assert sorted(path.name for path in (tmp_path / "copy").glob("model-*.safetensors")) == shards
    (base / shards[1]).unlink()
    with pytest.raises(UserError, match=f"{shards[1]} is missing"):
        exporting.export(str(base), tmp_path / "other")
    assert not list(tmp_path.glob("other*"))


def test_an_adapter_is_copied_as_an_adapter_without_merge(tmp_path: Path) -> None:
    adapted = logprobs(saved_adapter(tmp_path))
    exporting.export(str(tmp_path / "run"), tmp_path / "copy")
    found = PeftModel.from_pretrained(load_model(str(tmp_path / "base")), tmp_path / "copy")
    assert torch.allclose(logprobs(found), adapted, atol=1e-6)


def test_a_run_that_was_stopped_gives_its_newest_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (2, 10):
        small_model("Llama", initializer_range=step / 100).save_pretrained(tmp_path / "run" / f"checkpoint-{step}")
    exporting.export(str(tmp_path / "run"), tmp_path / "copy")
    newest = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "checkpoint-10")
    assert torch.equal(logprobs(AutoModelForCausalLM.from_pretrained(tmp_path / "copy")), logprobs(newest))
    assert any("its newest checkpoint, checkpoint-10, is taken" in message for message in caplog.messages)


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved_adapter(tmp_path)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "merged_card", full)  # after the weights are written
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        exporting.export(str(tmp_path / "run"), tmp_path / "merged", merge=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "run"]


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda folder: None, [], "is no directory: give a run's output_dir or a model directory"),
        (lambda folder: (folder / "run").mkdir(), [], "holds no model: there is no config.json"),
        (lambda folder: (folder / "run").mkdir(), ["--dtype", "int4"], "--dtype 'int4': it is one of auto"),
        (lambda folder: (folder / "run").mkdir(), ["--private"], "--private needs --push"),
    ],
)
def test_mistakes_are_told(make: Any, options: list[str], message: str, tmp_path: Path) -> None:
    make(tmp_path)
    done = run("export", tmp_path / "run", "--merge", *options)
    assert done.exit_code == 2 and message in done.stderr.replace("\n", "")


def test_an_adapter_whose_base_is_gone_says_so(tmp_path: Path) -> None:
    saved_adapter(tmp_path)
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    done = run("export", tmp_path / "run", "--merge")
    assert done.exit_code == 2
    assert f"is an adapter of '{tmp_path / 'base'}': model '{tmp_path / 'base'}': the directory does not" in done.stderr


def test_an_adapter_with_what_is_no_number_is_refused(tmp_path: Path) -> None:
    saved_adapter(tmp_path)
    weights = load_file(tmp_path / "run" / "adapter_model.safetensors")
    weights[next(iter(weights))].fill_(torch.nan)
    save_file(weights, tmp_path / "run" / "adapter_model.safetensors")
    done = run("export", tmp_path / "run", "--merge")
    assert done.exit_code == 2 and "the adapter cannot be merged" in done.stderr
    assert not list(tmp_path.glob("run-export*"))


def test_pickles_are_refused_unless_told(tmp_path: Path) -> None:
    base = saved_base(tmp_path)
    torch.save(small_model("Llama").state_dict(), base / "pytorch_model.bin")
    expected = logprobs(AutoModelForCausalLM.from_pretrained(base))
    (base / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"pickles, which can run code: allow_pickle loads them"):
        make_policy(str(base), None, TrainingConfig(use_cpu=True))
    done = run("export", base)
    assert done.exit_code == 2 and "pytorch_model.bin, which can run code: --allow-pickle" in done.stderr
    policy = make_policy(str(base), None, TrainingConfig(use_cpu=True, bf16=False, allow_pickle=True))
    assert torch.allclose(logprobs(policy.model), expected, atol=1e-6)
    assert run("export", base, "--allow-pickle").exit_code == 0
    assert torch.equal(logprobs(AutoModelForCausalLM.from_pretrained(tmp_path / "base-export")), expected)
    assert not list((tmp_path / "base-export").glob("*.bin"))


def test_pickled_adapters_are_refused_unless_told(tmp_path: Path) -> None:
    adapted = logprobs(saved_adapter(tmp_path))
    weights = tmp_path / "run" / "adapter_model.safetensors"
    torch.save(load_file(weights), tmp_path / "run" / "adapter_model.bin")
    weights.unlink()
    with pytest.raises(UserError, match=r"has no adapter_model\.safetensors"):
        load_model(str(tmp_path / "run"))
    assert torch.allclose(logprobs(load_model(str(tmp_path / "run"), allow_pickle=True)), adapted, atol=1e-6)


def test_the_card_of_a_merged_model_is_a_models(tmp_path: Path) -> None:
    saved_adapter(tmp_path)
    front = {"library_name": "peft", "tags": ["cohort", "grpo"], "base_model": "Qwen/Qwen2.5-0.5B"}
    body = "# my run\n\n## Use\n\nAn adapter.\n\n## Training\n\n- Base model: `Qwen/Qwen2.5-0.5B`\n"
    (tmp_path / "run" / "README.md").write_text(f"---\n{yaml.safe_dump(front)}---\n{body}")
    exporting.export(str(tmp_path / "run"), tmp_path / "merged", merge=True)
    text = (tmp_path / "merged" / "README.md").read_text()
    assert yaml.safe_load(text.split("---\n")[1]) == {**front, "library_name": "transformers"}
    assert "An adapter." not in text and "vllm serve 'my run'\n" in text and "\n## Training\n\n- Base model" in text


def test_lora_on_nothing_that_is_there_names_the_layers() -> None:
    with pytest.raises(UserError, match=r"LoRA: .*linear layers of this model: down_proj, gate_proj, k_proj"):
        add_lora(small_model("Llama"), TrainingConfig(finetuning_type="lora", lora_target=["query"]))


@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("process", [False, True], ids=["outcome", "process"])
def test_a_reward_models_export_is_a_reward_model(process: bool, head: str, tmp_path: Path) -> None:
    classifier("Qwen2").base_model.save_pretrained(tmp_path / "trunk")
    byte_tokenizer(template=False).save_pretrained(tmp_path / "trunk")
    settings = {**QUICK_REWARD, **LORA, "head": head, "max_steps": 3, "learning_rate": 0.1}
    if process:
        config: Any = ProcessRewardConfig(str(tmp_path / "rm"), **settings)
        rows = step_rows(16)
    else:
        config = RewardConfig(str(tmp_path / "rm"), **settings)
        rows = [{"prompt": "3>", "completion": str(i % 10), "label": i % 2} for i in range(16)]
    RewardTrainer(str(tmp_path / "trunk"), config, rows).train()
    done = run("export", tmp_path / "rm", "--merge", "--output", tmp_path / "merged")
    assert done.exit_code == 0, done.output
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    words = {"prompts": ["3>"] * 4, "completions": ["1", "2\n3", "77", ""]}
    steps = {"steps": [["1"], ["2", "3"], ["77"], [""]]} if process else {}
    found = [resolve(str(tmp_path / name))[1](**words, **steps) for name in ("rm", "merged")]
    flat = [[score for row in scores for score in (row if process else [row])] for scores in found]
    assert flat[0] == pytest.approx(flat[1], abs=1e-4) and len(set(flat[0])) > 2
    for name in ("rm", "merged"):
        with pytest.raises(UserError, match=r"reward model|ForSequenceClassification|ForTokenClassification|MLPHead"):
            make_policy(str(tmp_path / name), None, TrainingConfig(use_cpu=True))


def test_a_model_whose_weights_are_not_all_there_is_no_policy(tmp_path: Path) -> None:
    base = saved_base(tmp_path)
    weights = load_file(base / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"has no weights for 1 parameters .*: model.layers.1.mlp.up_proj.weight"):
        make_policy(str(base), None, TrainingConfig(use_cpu=True))
