"""How a model is loaded, in a configuration: one dtype under either name, and values that can be written down."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cohort import GRPOConfig, GRPOTrainer, RewardConfig, UserError
from cohort.config.user_code import load_module
from cohort.data.chains import build_tokenizer
from helpers import saved, small_model

ROWS = [{"prompt": f"{i}+{i}="} for i in range(4)]


def letters(completions: list[str], **_: Any) -> list[float]:
    return [float(len(set(text))) for text in completions]


@pytest.mark.parametrize("given", [{"dtype": torch.bfloat16}, {"torch_dtype": "bfloat16"}, {"torch_dtype": torch.bfloat16, "dtype": "bfloat16"}])  # fmt: skip  # noqa: E501
def test_a_dtype_has_two_names_and_two_forms(given: dict[str, Any]) -> None:
    for kind in (GRPOConfig, RewardConfig):
        assert kind(model_init_kwargs={**given, "revision": "main"}).model_init_kwargs == {
            "revision": "main",
            "dtype": "bfloat16",
        }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dtype": "bf16"}, "dtype 'bf16': did you mean 'bfloat16'"),
        ({"dtype": "half"}, "dtype 'half': use one of float32, bfloat16, float16, auto"),
        ({"torch_dtype": torch.int8}, "dtype 'int8'"),
        ({"dtype": "float32", "torch_dtype": torch.bfloat16}, "differ: give dtype alone"),
    ],
)
def test_a_dtype_that_is_none_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GRPOConfig(model_init_kwargs=given)


class Settings:
    """As transformers' quantisation settings."""

    def to_dict(self) -> dict[str, Any]:
        return {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.bfloat16, "skip": ("lm_head",)}


def test_objects_are_written_as_plain_values() -> None:
    config = GRPOConfig(
        model_init_kwargs={"quantization_config": Settings(), "device_map": {"": torch.device("cuda", 1)}},
        chat_template_kwargs={"folder": Path("a/b")},
    )
    written = json.loads(json.dumps(config.model_dump(mode="json")))
    assert yaml.safe_load(yaml.safe_dump(written)) == written
    assert written["model_init_kwargs"] == {
        "quantization_config": {"load_in_4bit": True, "bnb_4bit_compute_dtype": "bfloat16", "skip": ["lm_head"]},
        "device_map": {"": "cuda:1"},
    }
    assert written["chat_template_kwargs"] == {"folder": "a/b"}
    assert isinstance(config.model_init_kwargs["quantization_config"], Settings)


def test_a_run_with_a_dtype_object_ends_with_a_card(tmp_path: Path) -> None:
    model = saved(tmp_path / "m", small_model("Llama"), build_tokenizer())
    config = GRPOConfig(
        str(tmp_path / "out"), max_steps=1, num_generations=4, per_device_train_batch_size=4, max_completion_length=4,
        bf16=False, use_cpu=True, reward_preflight=False, finetuning_type="lora",
        model_init_kwargs={"torch_dtype": torch.bfloat16},
    )  # fmt: skip
    trainer = GRPOTrainer(model, letters, config, ROWS)
    assert trainer.policy.dtype is torch.bfloat16
    trainer.train()
    assert "model_init_kwargs:\n  dtype: bfloat16\n" in (tmp_path / "out" / "README.md").read_text()


def test_a_file_that_two_threads_load_is_whole_for_both(tmp_path: Path) -> None:
    path = tmp_path / "slow.py"
    path.write_text("import time\ntime.sleep(0.3)\nvalue = 3\n")
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda _: getattr(load_module(str(path), "it"), "value", None), range(2)))
    assert found == [3, 3]
