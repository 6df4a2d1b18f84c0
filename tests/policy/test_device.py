"""One device: what device_map says, models that accelerate has dispatched, and weights that are not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from accelerate.hooks import AlignDevicesHook, add_hook_to_module

from cohort import GRPOConfig, GRPOTrainer, UserError
from cohort.config import RewardConfig, TrainingConfig
from cohort.data.chains import build_tokenizer
from cohort.policy.device import device_of, one_device
from cohort.policy.load import make_policy
from cohort.train.reward_models.model import make_reward_model
from helpers import byte_tokenizer, classifier, saved, small_model

CPU = torch.device("cpu")
OFF = TrainingConfig(bf16=False, use_cpu=True)
ROWS = [{"prompt": f"{i}+{i}="} for i in range(4)]


def letters(completions: list[str], **_: Any) -> list[float]:
    return [float(len(set(text))) for text in completions]


def hooked(model: Any) -> Any:
    """As `device_map="auto"` leaves a model that it has split over several devices."""
    model.hf_device_map = {"model": 0, "lm_head": 1}
    for module in model.modules():
        add_hook_to_module(module, AlignDevicesHook("cpu", io_same_device=True))
    model.to = lambda *_, **__: pytest.fail("accelerate's own `to`")
    return model


def test_hooks_of_accelerate_are_removed(tmp_path: Path) -> None:
    model = hooked(small_model("Llama"))
    config = GRPOConfig(
        str(tmp_path), max_steps=1, num_generations=4, per_device_train_batch_size=4, max_completion_length=4,
        beta=0.04, bf16=False, use_cpu=True, reward_preflight=False,
    )  # fmt: skip
    trainer = GRPOTrainer(model, letters, config, ROWS, processing_class=build_tokenizer())
    assert not [module for module in model.modules() if hasattr(module, "_hf_hook") or hasattr(module, "_old_forward")]
    assert not hasattr(model, "hf_device_map")
    trainer.train()
    reward_model = make_reward_model(hooked(classifier("Bert")), byte_tokenizer(bert=True), RewardConfig(use_cpu=True))
    assert not [module for module in reward_model.model.modules() if hasattr(module, "_hf_hook")]


def test_offloaded_weights_are_refused() -> None:
    message = "weights of this LlamaForCausalLM are not in memory"
    with pytest.raises(UserError, match=message):
        make_policy(cpu_offload(small_model("Llama")), build_tokenizer(), OFF)
    with torch.device("meta"):
        nowhere = small_model("Llama")
    with pytest.raises(UserError, match=message):
        make_policy(nowhere, build_tokenizer(), OFF)
    with pytest.raises(UserError, match="weights of this BertForSequenceClassification are not in memory"):
        make_reward_model(cpu_offload(classifier("Bert")), byte_tokenizer(bert=True), RewardConfig(use_cpu=True))


def test_a_model_on_disk_in_part_is_refused(tmp_path: Path) -> None:
    model = small_model("Llama")
    device_map = {"model.embed_tokens": "cpu", "model.layers": "disk", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}  # fmt: skip  # noqa: E501
    dispatch_model(model, device_map, offload_dir=str(tmp_path))
    with pytest.raises(UserError, match="are not in memory: device_map offloaded them"):
        make_policy(model, build_tokenizer(), OFF)


@pytest.mark.parametrize("device_map", ["auto", "balanced", "cpu", {"": "cpu"}, {"model": "cpu", "lm_head": "cpu"}])
def test_a_device_map_loads_the_whole_model_on_one_device(device_map: Any, tmp_path: Path) -> None:
    name = saved(tmp_path / "m", small_model("Llama"), build_tokenizer())
    config = TrainingConfig(bf16=False, use_cpu=True, model_init_kwargs={"device_map": device_map})
    policy = make_policy(name, None, config)
    assert policy.device == CPU and {p.device for p in policy.model.parameters()} == {CPU}


def test_a_device_map_names_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    second = torch.device("cuda", 1)
    for named in ("cuda:1", 1, {"": 1}, {"": "cuda:1"}, second, {"model": 1, "lm_head": "cuda:1"}):
        assert one_device(named, torch.device("cuda"), use_cpu=False) == second
        assert one_device(named, CPU, use_cpu=True) == CPU
    assert one_device("auto", torch.device("cuda"), use_cpu=False) == torch.device("cuda")
    for split in ({"model": 0, "lm_head": 1}, {"model": 0, "lm_head": "disk"}, {"model": 0, "lm_head": "cpu"}, "here"):
        with pytest.raises(UserError, match="training has one device"):
            one_device(split, torch.device("cuda"), use_cpu=False)
    with pytest.raises(UserError, match="names cuda:7, and there are 2 CUDA devices"):
        one_device("cuda:7", torch.device("cuda"), use_cpu=False)


class Placed:
    """A model with parameters on these devices."""

    def __init__(self, *devices: str):
        self.devices = devices

    def parameters(self) -> list[Any]:
        return [type("Parameter", (), {"device": torch.device(device)}) for device in self.devices]


def test_a_model_stays_on_the_accelerator_that_it_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    first, second = torch.device("cuda"), torch.device("cuda", 1)
    assert device_of(Placed("cuda:1", "cuda:1"), first, use_cpu=False) == second and current == [second]
    assert device_of(Placed("cuda:1"), CPU, use_cpu=True) == CPU
    assert device_of(Placed("cpu"), first, use_cpu=False) == first
    assert device_of(Placed("cuda:0", "cuda:1"), first, use_cpu=False) == first
    assert device_of(Placed("mps:0"), first, use_cpu=False).type == "mps" and len(current) == 1
