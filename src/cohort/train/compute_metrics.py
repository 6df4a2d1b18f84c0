"""transformers' `compute_metrics` on pairs: a function of the scores of chosen and rejected completions."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from cohort.types import UserError

log = logging.getLogger("cohort")

ComputeMetrics = Callable[[Any], dict[str, float]]


def tell_predictions(function: ComputeMetrics | None, scores: str) -> None:
    """Log what the function gets. `scores`: what the numbers are."""
    if function is not None:
        log.info(
            "compute_metrics gets predictions of shape [pairs, 2], %s of chosen and rejected, and labels that are 0, "
            "the chosen one's index: logits are never held",
            scores,
        )


def computed(function: ComputeMetrics | None, scores_P2: Tensor, prefix: str = "eval") -> dict[str, float]:
    """The function's metrics under our names: eval/name. Raises UserError where it returns no dictionary."""
    if function is None:
        return {}
    from transformers import EvalPrediction

    labels = np.zeros(len(scores_P2), dtype=np.int64)
    result = function(EvalPrediction(predictions=scores_P2.float().cpu().numpy(), label_ids=labels))
    if not isinstance(result, dict):
        raise UserError(f"compute_metrics returned a {type(result).__name__}: it must return a dictionary of numbers")
    return {f"{prefix}/{name.removeprefix(f'{prefix}_')}": float(value) for name, value in result.items()}
