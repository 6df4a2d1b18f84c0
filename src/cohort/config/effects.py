"""Keys of GRPO's loss that another key makes useless or wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cohort.config.grpo import GRPOConfig

CLIPPING = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "clip_cov")
BOUNDED = (*CLIPPING, "cispo", "gmpo", "dppo_tv", "dppo_kl")
READ_BY: dict[str, tuple[str, ...]] = {
    "epsilon": BOUNDED,
    "epsilon_high": BOUNDED,
    "delta": CLIPPING,
    "importance_sampling_level": (*CLIPPING, "cispo", "sapo", "kl_cov"),
    **dict.fromkeys(("sapo_temperature_pos", "sapo_temperature_neg"), ("sapo",)),
    **dict.fromkeys(("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"), ("vespo",)),
    **dict.fromkeys(("clip_cov_ratio", "clip_cov_lb", "clip_cov_ub"), ("clip_cov",)),
    **dict.fromkeys(("kl_cov_ratio", "kl_cov_coef"), ("kl_cov",)),
}
"""Key -> the values of `loss_type` that read it."""


def refuse_without_effect(config: GRPOConfig) -> None:
    """Raise ValueError where a key is set that has no effect, because of another key or in this method."""
    reasons = {
        key: f"loss_type: {config.loss_type} does not read it"
        for key, loss_types in READ_BY.items()
        if config.loss_type not in loss_types
    }
    if config.loss_type == "cispo" and config.epsilon_high is not None:
        reasons["epsilon"] = "loss_type: cispo has one bound, epsilon_high"
    if config.multi_objective_aggregation == "normalize_then_sum":
        reasons["scale_rewards"] = "multi_objective_aggregation: normalize_then_sum scales by itself"
    if not config.dynamic_sampling:
        reasons["max_sampling_rounds"] = "dynamic_sampling is off"
    if not config.vllm_importance_sampling_correction:
        for key in ("mode", "clip_max", "clip_min"):
            reasons[f"vllm_importance_sampling_{key}"] = "vllm_importance_sampling_correction is off"
    if not config.beta:
        reasons |= dict.fromkeys(("kl_estimator", "use_bias_correction_kl"), "beta is 0")
    reasons |= dict.fromkeys(config.unused, "this method does not read it")
    for key, reason in reasons.items():
        if getattr(config, key) != type(config).model_fields[key].default:
            raise ValueError(f"{key} is {getattr(config, key)!r} and would do nothing: {reason}. Leave it out")
    if config.clip_cov_lb >= config.clip_cov_ub:
        raise ValueError(f"clip_cov_lb is {config.clip_cov_lb}, not below clip_cov_ub, {config.clip_cov_ub}")
    if config.delta is not None and config.delta <= 1 + config.clip_high:
        raise ValueError(f"delta is {config.delta}: it must lie above the clip, 1 + epsilon_high")


def refuse_lost_advantages(config: GRPOConfig) -> None:
    """Raise ValueError where tokens of a completion would have advantages of their own and the loss takes one."""
    if not config.takes_one_advantage:
        return
    geometric = config.loss_type == "gmpo"
    one = "loss_type: gmpo" if geometric else "importance_sampling_level: sequence"
    remedy = "another loss_type" if geometric else "sequence_token"
    reasons = {
        "this method has one for each token": config.token_advantages,
        "top_entropy_quantile leaves out single tokens": config.top_entropy_quantile < 1,
        "loss_type: clip_cov leaves out single tokens": config.loss_type == "clip_cov",
    }
    reason = next((reason for reason, lost in reasons.items() if lost), None)
    if reason is not None:
        raise ValueError(f"{one} takes one advantage for a completion, and {reason}: use {remedy}")
    weighted = config.vllm_importance_sampling_correction and config.vllm_importance_sampling_mode.startswith("token")
    if geometric and weighted:
        raise ValueError(
            f"{one} takes one weight for a completion: use vllm_importance_sampling_mode: sequence_truncate or "
            "sequence_mask"
        )
