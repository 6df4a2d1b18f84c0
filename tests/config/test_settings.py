"""Settings that cannot be meant, and messages about them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cohort.compat.keys import READ_WITH
from cohort.config import METHOD_CONFIGS, REWARD_CONFIGS, DPOConfig, GRPOConfig, RunConfig, SFTConfig, read_run
from cohort.config.problems import shortened
from cohort.config.refit import RefitConfig
from cohort.types import UserError

KINDS = sorted({*METHOD_CONFIGS.values(), *REWARD_CONFIGS.values()}, key=lambda kind: kind.__name__)
CLIP = {"loss_type": "clip_cov", "clip_cov_lb": 5.0, "clip_cov_ub": 1.0}
BAD: list[tuple[Any, dict[str, Any], str]] = [
    (SFTConfig, {"lora_rank": 4}, "lora_rank is 4 and would do nothing: finetuning_type is 'full'"),
    (DPOConfig, {"lora_alpha": 4}, "Set finetuning_type: lora, or leave it out"),
    (SFTConfig, {"finetuning_type": "lora", "freeze_trainable_layers": 1}, "Set finetuning_type: freeze"),
    (SFTConfig, {"eval_steps": 2.5}, "`eval_steps` is 2.5: give a whole number of steps, or below 1 a fraction"),
    (SFTConfig, {"save_steps": 1.5}, "`save_steps` is 1.5"),
    (SFTConfig, {"load_best_model_at_end": True}, "load_best_model_at_end compares evaluations, and eval_strategy is"),
    (SFTConfig, {"save_strategy": "best"}, "save_strategy: best compares evaluations, and eval_strategy is no"),
    (SFTConfig, {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "no"}, "saves none"),
    (GRPOConfig, {"stop": ["a", ""]}, "an empty text is in every completion"),
    (GRPOConfig, CLIP, "clip_cov_lb is 5.0, not below clip_cov_ub, 1.0"),
    (GRPOConfig, {"beta": 0, "kl_estimator": "k1"}, "kl_estimator is 'k1' and would do nothing: beta is 0"),
    (GRPOConfig, {"beta": 0, "use_bias_correction_kl": True}, "would do nothing: beta is 0"),
    (DPOConfig, {"ld_alpha": 0.5, "loss_type": ["sigmoid", "sft"]}, "loss_type: sft has none: leave one of them out"),
]


@pytest.mark.parametrize(("kind", "values", "message"), BAD)
def test_settings_without_effect_or_sense_are_refused(kind: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        kind(**values)
    assert message in str(error.value)


def test_defaults_written_out_are_no_mistake() -> None:
    every = {key: value for keys in READ_WITH.values() for key, value in keys.items()}
    assert SFTConfig(**every).lora_rank == every["lora_rank"]
    assert SFTConfig(eval_steps=2.0, save_steps=0.5, logging_steps=1).eval_steps == 2
    assert DPOConfig(ld_alpha=1.0, loss_type=["sigmoid", "sft"]).ld_alpha == 1


def test_a_setting_under_its_earlier_name() -> None:
    args = GRPOConfig(use_cpu=True, evaluation_strategy="steps")
    args.evaluation_strategy, args.no_cuda = "no", False
    assert (args.eval_strategy, args.use_cpu) == ("no", False)
    with pytest.raises(UserError, match="`no_cuda` and `use_cpu` are one key under two names, and differ"):
        GRPOConfig(use_cpu=True, no_cuda=False)
    assert GRPOConfig(use_cpu=True, no_cuda=True).use_cpu


@pytest.mark.parametrize("kind", KINDS)
def test_no_check_of_a_configuration_replaces_another(kind: Any) -> None:
    """pydantic calls one validator of a name: that of a subclass takes the place of its parents'."""
    homes: dict[str, list[str]] = {}
    for each in kind.__mro__:
        checks = each.__dict__.get("__pydantic_decorators__")
        for names in (checks.model_validators, checks.field_validators, checks.field_serializers) if checks else ():
            for name in names.keys() & each.__dict__.keys():
                homes.setdefault(name, []).append(each.__name__)
    assert {name: classes for name, classes in homes.items() if len(classes) > 1} == {}
    assert "_best_is_looked_for" in homes


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"temperature": -1}, "temperature is -1: it must be 0 or more"),
        ({"top_p": 7}, "top_p is 7: it must be from 0 to 1"),
        ({"top_p": 0}, "top_p is 0"),
        ({"top_k": 1.5}, "top_k is 1.5"),
        ({"top_k": float("inf")}, "finite number"),
        ({"length_penalty": 1}, "predict_sampling has 'length_penalty': temperature, top_p, top_k, min_p are read"),
    ],
)
def test_sampling_of_predictions_has_bounds(sampling: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError) as error:
        RunConfig(model="m", dataset="d", predict_sampling=sampling)
    assert message in str(error.value)
    assert RunConfig(model="m", dataset="d", predict_sampling={"top_p": 1, "top_k": 0, "min_p": 0}).predict_sampling


def test_rows_are_held_out_whole() -> None:
    with pytest.raises(ValueError, match=r"val_size is 1\.5: give a whole number of rows, or below 1 a share of them"):
        RunConfig(model="m", dataset="d", val_size=1.5)
    assert RunConfig(model="m", dataset="d", val_size=0.5).val_size == 0.5


def test_a_key_inside_of_another_is_shown_where_it_belongs(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("model: m\ndataset: d\nmethod: grpo\nreward_model_refit: {rule: x}\n")
    with pytest.raises(UserError) as error:
        read_run(tmp_path / "a.yaml", ["reward_model_refit.every=5"])
    assert "`every` is a key inside of `reward_model_refit`: write reward_model_refit={every: ...}" in str(error.value)


def test_a_long_value_is_not_printed_whole() -> None:
    assert shortened("a" * 10) == repr("a" * 10)
    assert len(shortened("a" * 10_000)) < 220 and " ... " in shortened("a" * 10_000)


def test_a_refit_has_finite_settings() -> None:
    with pytest.raises(ValueError, match="finite number"):
        RefitConfig(learning_rate=float("inf"))
