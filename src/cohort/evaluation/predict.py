"""Predictions of a run's held-out rows, in LLaMA-Factory's files."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from cohort.config import RunConfig, SampledConfig, TrainingConfig
from cohort.data.order import prompt_seeds
from cohort.evaluation.loaded_model import LoadedModel
from cohort.policy.process import seed_everything
from cohort.progress import Task
from cohort.types import Row

FILE, RESULTS = "generated_predictions.jsonl", "predict_results.json"


def predict(model: str, run: RunConfig, config: TrainingConfig, rows: list[Row]) -> None:
    """Sample one completion of each row; write prompt, prediction and label of each into output_dir."""
    seed_everything(config.seed)
    loaded = LoadedModel(model, config, config.template, config.replace_chat_template)
    prompts = loaded.encode(rows)
    settings: dict[str, Any] = {"temperature": 0.0, **run.predict_sampling}
    settings["top_k"] = int(settings.get("top_k", 0))
    stop = config.stop if isinstance(config, SampledConfig) else []
    sampling = loaded.sampling(**settings, max_tokens=config.max_completion_length, stop=stop)
    start = time.perf_counter()
    ids, seeds = [prompt.ids for prompt in prompts], prompt_seeds(config.seed, len(prompts))
    with Task("predicting", len(ids), "prompts") as task:
        sampled = loaded.engine.generate(ids, 1, sampling, seeds, on_group=task.ended).completions
    seconds = time.perf_counter() - start
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / FILE).open("w", encoding="utf-8") as file:
        for prompt, (completion,) in zip(prompts, sampled, strict=True):
            record = {
                "prompt": loaded.tokenizer.decode(prompt.ids),
                "predict": completion.text,
                "label": _label(prompt.row),
            }
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    results = {
        "predict_runtime": round(seconds, 4),
        "predict_samples": len(prompts),
        "predict_samples_per_second": round(len(prompts) / seconds, 3),
    }
    (folder / RESULTS).write_text(json.dumps(results, indent=4) + "\n", encoding="utf-8")


def _label(row: Row) -> str:
    """The row's own answer."""
    if isinstance(row.completion, list):
        return str(row.completion[-1]["content"])
    return str(row.completion or row.columns.get("output", ""))
