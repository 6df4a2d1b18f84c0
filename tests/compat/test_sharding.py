"""DeepSpeed's and FSDP's keys as ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cohort.compat.sharding import sharding_of
from cohort.config import GRPOConfig, RewardConfig
from cohort.train.sharded import make_policy
from cohort.types import UserError
from helpers import settings, small_model

ZERO_3: dict[str, Any] = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "zero_allow_untested_optimizer": True,
    "fp16": {"enabled": "auto", "loss_scale": 0, "initial_scale_power": 16},
    "bf16": {"enabled": "auto"},
    "zero_optimization": {
        "stage": 3,
        "overlap_comm": False,
        "contiguous_gradients": True,
        "sub_group_size": 1e9,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "stage3_max_live_parameters": 1e9,
        "stage3_max_reuse_distance": 1e9,
        "stage3_gather_16bit_weights_on_model_save": True,
    },
}
"""As LLaMA-Factory's ds_z3_config.json."""


def zero(**values: Any) -> dict[str, Any]:
    return {**ZERO_3, "zero_optimization": {**ZERO_3["zero_optimization"], **values}}


def test_llama_factorys_zero_3_is_fsdp2_and_one_line_says_so(tmp_path: Path) -> None:
    path = tmp_path / "ds_z3_config.json"
    path.write_text(json.dumps(ZERO_3))
    for given in (str(path), ZERO_3):
        ours, told = sharding_of({"deepspeed": given, "bf16": True})
        assert ours == {"distributed": "fsdp2", "fsdp_param_dtype": "bfloat16"}
        assert len(told) == 1
        assert told[0].startswith("deepspeed: ZeRO-3 is distributed: fsdp2 here: ")
        assert "gathered for its forward pass and again for its backward pass" in told[0]


@pytest.mark.parametrize(
    ("given", "ours"),
    [
        (zero(stage=0), {"distributed": "replicated"}),
        (zero(stage=2), {"distributed": "fsdp2"}),
        (zero(offload_param={"device": "cpu", "pin_memory": True}), {"distributed": "fsdp2", "fsdp_offload": True}),
        (zero(offload_optimizer={"device": "nvme"}), {"distributed": "fsdp2", "fsdp_offload": True}),
        (zero(offload_param={"device": "none"}), {"distributed": "fsdp2"}),
        ({**ZERO_3, "gradient_clipping": 0.3}, {"distributed": "fsdp2", "max_grad_norm": 0.3}),
        (
            {**ZERO_3, "bf16": {"enabled": True}},
            {"distributed": "fsdp2", "bf16": True, "fsdp_param_dtype": "bfloat16"},
        ),
        ("examples/deepspeed/ds_z2_offload_config.json", {"distributed": "fsdp2", "fsdp_offload": True}),
        ("ds_z0_config.json", {"distributed": "replicated"}),
    ],
)
def test_deepspeed(given: Any, ours: dict[str, Any]) -> None:
    assert sharding_of({"deepspeed": given}).ours == ours


def test_parts_of_a_deepspeed_file_without_effect_are_told() -> None:
    given = {
        **zero(reduce_bucket_size=123),
        "optimizer": {"type": "Adam"},
        "elasticity": {"enabled": True},
        "gather": 1,
    }
    assert sharding_of({"deepspeed": given}).told[1:] == [
        "deepspeed: optimizer={'type': 'Adam'} has no effect here: AdamW trains, by learning_rate, weight_decay, "
        "adam_beta1, adam_beta2 and adam_epsilon",
        "deepspeed: elasticity={'enabled': True} has no effect here: it is not known",
        "deepspeed: gather=1 has no effect here: it is not known",
        "deepspeed: zero_optimization: reduce_bucket_size=123 has no effect here: FSDP2 sizes and overlaps its "
        "transfers itself",
    ]


FULL = {"distributed": "fsdp2"}


@pytest.mark.parametrize(
    ("values", "ours", "lines"),
    [
        ({"fsdp": ""}, {}, 0),
        ({"fsdp": False, "fsdp_config": {"min_num_params": 0}}, {}, 0),
        ({"fsdp": "full_shard auto_wrap"}, FULL, 1),
        ({"fsdp": ["full_shard", "offload"]}, {**FULL, "fsdp_offload": True}, 1),
        ({"fsdp": "shard_grad_op"}, FULL, 2),
        ({"fsdp": "no_shard"}, {"distributed": "replicated"}, 1),
        ({"fsdp": True, "bf16": True}, {**FULL, "fsdp_param_dtype": "bfloat16"}, 1),
        (
            {"fsdp": True, "fsdp_config": {"fsdp_activation_checkpointing": True, "cpu_offload": "true", "version": 2}},
            {**FULL, "gradient_checkpointing": True, "fsdp_offload": True},
            1,
        ),
        ({"fsdp": True, "fsdp_config": {"reshard_after_forward": False, "version": 1}}, FULL, 3),
        ({"fsdp": True, "fsdp_config": {"transformer_layer_cls_to_wrap": ["X"], "unheard": 2}}, FULL, 3),
    ],
)
def test_fsdp(values: dict[str, Any], ours: dict[str, Any], lines: int) -> None:
    read = sharding_of(values)
    assert read.ours == ours
    assert len(read.told) == lines


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"deepspeed": "my.json"}, "run.yaml: `deepspeed`: my.json: no such file"),
        ({"deepspeed": zero(stage=4)}, "has stage 4, which is not 0, 1, 2 or 3"),
        ({"deepspeed": ZERO_3, "fsdp": "full_shard"}, "two ways to divide a model among ranks: give one"),
        ({"fsdp": "full_shrad"}, "`fsdp`: 'full_shrad' is unknown: full_shard, shard_grad_op"),
        ({"fsdp": True, "fsdp_config": "absent.json"}, "`fsdp_config`: absent.json: No such file"),
        ({"fsdp": True, "fsdp_config": {"xla": True}}, "xla is True, and is not supported: there is no XLA"),
    ],
)
def test_what_cannot_be_read_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        sharding_of(values, "run.yaml")
    assert message in str(caught.value)


def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    for text, message in (("[1]", "holds no mapping"), ("{", "is not readable as JSON")):
        (tmp_path / "ds.json").write_text(text)
        with pytest.raises(UserError, match=message):
            sharding_of({"deepspeed": str(tmp_path / "ds.json")})


def test_keys_of_sharding_without_it_are_refused() -> None:
    with pytest.raises(UserError, match="fsdp_offload is True and would do nothing: set distributed: fsdp2"):
        GRPOConfig(fsdp_offload=True)
    with pytest.raises(UserError, match="a reward model is not divided among ranks"):
        RewardConfig(distributed="fsdp2")
    config = GRPOConfig(distributed="fsdp2", fsdp_offload=True, fsdp_param_dtype="bfloat16")
    assert (config.fsdp_offload, config.fsdp_param_dtype) == (True, "bfloat16")


def test_the_keys_are_read_from_a_configuration(caplog: pytest.LogCaptureFixture) -> None:
    config = GRPOConfig(deepspeed=ZERO_3, bf16=True)
    assert (config.distributed, config.fsdp_param_dtype) == ("fsdp2", "bfloat16")
    assert "deepspeed: ZeRO-3 is distributed: fsdp2 here" in caplog.text
    assert GRPOConfig(fsdp="full_shard offload").fsdp_offload
    assert GRPOConfig(fsdp="", fsdp_config={"min_num_params": 0}).distributed == "replicated"


def test_one_process_says_that_nothing_is_divided(tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    policy = make_policy(small_model(), tokenizer, settings(distributed="fsdp2"), None)
    assert not policy.is_sharded
    assert "divides a model among ranks, and this run is one process, which holds all of it" in caplog.text
