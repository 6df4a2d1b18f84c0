"""Models and ways to train them by name: full, freeze, LoRA, DoRA, QLoRA; what is not loaded unless told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from typer.testing import CliRunner, Result

from cohort import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, UserError
from cohort.cli.app import app
from cohort.compat.llama_factory import FOUR_BIT
from cohort.data.chains import build_tokenizer
from cohort.formulas.preference import Settings, preference
from cohort.policy.load import load_model, load_tokenizer
from cohort.rewards.resolve import with_run_defaults
from helpers import small_model

ROWS = [{"prompt": f"{i}+{i}=", "answer": str(2 * i % 10)} for i in range(4)]


def letters(completions: list[str], **_: Any) -> list[float]:
    return [float(len(set(text))) for text in completions]


def settings(folder: Path, **changes: Any) -> GRPOConfig:
    values: dict[str, Any] = {
        "max_steps": 2, "num_generations": 4, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "beta": 0.04,
        "max_completion_length": 6, "bf16": False, "use_cpu": True, "reward_preflight": False, "reward_clip": None,
    }  # fmt: skip
    return GRPOConfig(str(folder), **{**values, **changes})


@pytest.fixture
def base(tmp_path: Path) -> str:
    small_model("Llama").save_pretrained(tmp_path / "base")
    build_tokenizer().save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


WAYS: dict[str, tuple[dict[str, Any], str]] = {
    "full": ({}, ""),
    "freeze": ({"finetuning_type": "freeze", "freeze_trainable_layers": 1}, "model.layers.1."),
    "lora": ({"finetuning_type": "lora"}, "lora_"),
    "dora": ({"finetuning_type": "lora", "use_dora": True}, "lora_"),
    "qlora": ({"finetuning_type": "lora", "model_init_kwargs": {"quantization_config": FOUR_BIT}}, "lora_"),
}


@pytest.mark.parametrize("way", WAYS)
def test_each_way_trains_what_it_says_and_nothing_else(
    way: str, base: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changes, mark = WAYS[way]
    if way == "qlora":
        pytest.importorskip("bitsandbytes", reason="cohort-rl[quantization] is not installed")
    trainer = GRPOTrainer(base, letters, settings(tmp_path / "out", **changes), ROWS)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    changed = [name for name, value in trainer.model.named_parameters() if not torch.equal(before[name], value)]
    assert changed and all(mark in name for name in changed)
    assert len([name for name, value in before.items() if value.requires_grad]) >= len(changed)
    if way == "dora":
        assert any("lora_magnitude_vector" in name for name in changed)
    told = [message for message in caplog.messages if "quantised weights on cpu" in message]
    assert len(told) == (way == "qlora")
    if way == "qlora":
        assert any(value.dtype == torch.uint8 for value in before.values())
        assert load_model(str(tmp_path / "out")).get_base_model().dtype == torch.float32


def test_quantised_weights_are_trained_by_an_adapter_only(base: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="quantised weights are not trained: set finetuning_type: lora"):
        GRPOTrainer(base, letters, settings(tmp_path, model_init_kwargs={"quantization_config": FOUR_BIT}), ROWS)


def test_an_adapter_by_name_is_for_use(base: str, tmp_path: Path) -> None:
    args = settings(tmp_path / "lora", finetuning_type="lora", max_steps=1)
    GRPOTrainer(base, letters, args, ROWS).train()
    message = r"nothing to train: .*\(cohort export ADAPTER --merge --output DIR\) and train DIR"
    for kind in ("full", "lora"):
        with pytest.raises(UserError, match=message):
            GRPOTrainer(str(tmp_path / "lora"), letters, settings(tmp_path, finetuning_type=kind), ROWS)
    (tmp_path / "lora" / "tokenizer_config.json").unlink()
    (tmp_path / "lora" / "tokenizer.json").unlink()
    tokenizer = load_tokenizer(str(tmp_path / "lora"))  # the base model's
    assert tokenizer("1+2=")["input_ids"] == build_tokenizer()("1+2=")["input_ids"]


def train(folder: Path, model: str, **more: Any) -> Result:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    values = {
        "model": model, "dataset": str(folder / "rows.jsonl"), "reward_funcs": "accuracy", "use_cpu": True,
        "output_dir": str(folder / "out"), "max_steps": 1, "num_generations": 2, "per_device_train_batch_size": 2,
        "max_completion_length": 4, "bf16": False, **more,
    }  # fmt: skip
    (folder / "run.yaml").write_text(yaml.safe_dump(values))
    return CliRunner().invoke(app, ["train", str(folder / "run.yaml")])


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
open({mark!r}, "w").close()


class Own(LlamaConfig):
    model_type = "own"


class OwnLM(LlamaForCausalLM):
    config_class = Own
"""


def test_code_of_a_model_runs_only_where_it_is_trusted(base: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    mark = tmp_path / "it-ran"
    (Path(base) / "own.py").write_text(CODE.format(mark=str(mark)))
    config = json.loads((Path(base) / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnLM"}}
    (Path(base) / "config.json").write_text(json.dumps(config))
    done = train(tmp_path, base)
    assert done.exit_code == 2 and "trust_remote_code" in done.output and "Traceback" not in done.output
    assert not mark.exists()
    for command in (["generate", base, "--prompt", "1"], ["eval", base, "--data", str(tmp_path / "rows.jsonl")]):
        refused = CliRunner().invoke(app, command)
        assert refused.exit_code == 2 and "trust_remote_code" in refused.output
    assert not mark.exists()
    done = train(tmp_path, base, trust_remote_code=True)
    assert done.exit_code == 0 and mark.exists(), done.output


def encoder_decoder(folder: Path) -> None:
    shape = {"d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 97}
    transformers.T5ForConditionalGeneration(transformers.T5Config(**shape)).save_pretrained(folder)


def encoder(folder: Path) -> None:
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    transformers.BertModel(transformers.BertConfig(vocab_size=97, **shape)).save_pretrained(folder)


@pytest.mark.parametrize(
    ("make", "message"),
    [(encoder_decoder, "could not be loaded: Unrecognized configuration class"), (encoder, "cannot be trained here")],
)
def test_what_is_no_causal_model_is_refused(make: Any, message: str, tmp_path: Path) -> None:
    make(tmp_path / "m")
    build_tokenizer().save_pretrained(tmp_path / "m")
    done = train(tmp_path, str(tmp_path / "m"))
    assert done.exit_code == 2 and message in " ".join(done.output.split()), done.output


def test_a_model_without_the_attention_interface_takes_rows_and_says_so(tmp_path: Path) -> None:
    config = transformers.MambaConfig(
        vocab_size=97, hidden_size=16, state_size=4, num_hidden_layers=1, eos_token_id=1, pad_token_id=0
    )
    torch.manual_seed(0)
    transformers.MambaForCausalLM(config).save_pretrained(tmp_path / "m")
    build_tokenizer().save_pretrained(tmp_path / "m")
    done = train(tmp_path, str(tmp_path / "m"))
    assert done.exit_code == 0, done.output
    assert "MambaForCausalLM takes the row path" in " ".join(done.output.split())


def test_a_lora_target_that_matches_nothing_exits_with_2(base: str, tmp_path: Path) -> None:
    done = train(tmp_path, base, finetuning_type="lora", lora_target="query_key_value")
    assert done.exit_code == 2 and "linear layers of this model: down_proj, gate_proj" in " ".join(done.output.split())


def test_reward_models_go_where_use_cpu_says() -> None:
    assert with_run_defaults(["accuracy", "me/scores", {"model": "me/scores", "weight": 2.0}], 8, use_cpu=True) == [
        "accuracy",
        {"model": "me/scores", "device": "cpu"},
        {"device": "cpu", "model": "me/scores", "weight": 2.0},
    ]
    assert with_run_defaults([{"model": "me/scores", "device": "cuda:1"}], 8, use_cpu=True)[0]["device"] == "cuda:1"
    assert with_run_defaults(["me/scores"], 8) == ["me/scores"]


PAIRS = [{"prompt": f"{i}+{i}=", "chosen": str(2 * i % 10), "rejected": "7-7"} for i in range(4)]


def test_dpo_with_a_reference_model_of_its_own(tmp_path: Path) -> None:
    """TRL's ref_model: the first step's loss is DPO's by both models' own log-probabilities."""
    model, other, tokenizer = small_model("Llama"), small_model("Llama", initializer_range=0.4), build_tokenizer()
    before = {name: value.clone() for name, value in other.named_parameters()}
    config = DPOConfig(
        str(tmp_path), max_steps=1, per_device_train_batch_size=4, bf16=False, use_cpu=True, beta=0.3,
        shuffle_dataset=False,
    )  # fmt: skip

    @torch.no_grad()
    def sums(of: Any) -> torch.Tensor:
        rows = []
        for pair in PAIRS:
            prompt = tokenizer(pair["prompt"])["input_ids"]
            for name in ("chosen", "rejected"):
                answer = [*tokenizer(pair[name], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
                logits = of.eval()(torch.tensor([[*prompt, *answer]]), use_cache=False).logits[0]
                logp = torch.log_softmax(logits[len(prompt) - 1 : -1], -1)
                rows.append(logp.gather(1, torch.tensor(answer)[:, None]).sum())
        return torch.stack(rows).view(-1, 2)

    expected = -float(preference(sums(model), sums(other), torch.ones(1, 2), Settings(0.3)).objective_P.mean())
    trainer = DPOTrainer(model, config, PAIRS, processing_class=tokenizer, ref_model=other)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, abs=1e-5)
    assert abs(expected - 0.6931) > 0.05
    assert all(torch.equal(before[name], value) for name, value in other.named_parameters())
    with pytest.raises(UserError, match="ref_model is the model itself"):
        DPOTrainer(model, config, PAIRS, processing_class=tokenizer, ref_model=model)
    with pytest.raises(UserError, match="has another vocabulary"):
        DPOTrainer(model, config, PAIRS, processing_class=tokenizer, ref_model=small_model("Llama", vocab_size=50))
