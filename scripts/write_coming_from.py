"""Writes the key tables of docs/coming-from-trl.md and docs/coming-from-llama-factory.md from the tables in
src/cohort/compat: `python scripts/write_coming_from.py`. The text above MARK is written by hand."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from cohort.compat import llama_factory, llama_factory_keys, preference_keys, trl_keys
from cohort.compat.keys import Key
from cohort.compat.trl_trainer import UNSUPPORTED
from cohort.config import DPOConfig, GRPOConfig, RewardConfig, RunConfig, SFTConfig

MARK = "<!-- Written by `python scripts/write_coming_from.py`: change the tables in the source. -->\n"
TRL_DEFAULTS = {
    "loss_type": "dapo",
    "beta": 0.0,
    "use_bias_correction_kl": True,
    "vllm_importance_sampling_correction": True,
    "vllm_importance_sampling_clip_max": 3.0,
    "router_aux_loss_coef": 0.001,
    "num_generations": 8,
    "per_device_train_batch_size": 8,
    "max_completion_length": 512,
    "num_train_epochs": 3.0,
    "disable_dropout": False,
    "gradient_checkpointing": True,
    "logging_steps": 10,
    "save_steps": 500,
    "save_total_limit": None,
    "num_generations_eval": "num_generations",
    "eval_steps": "logging_steps",
}
"""Defaults of TRL 1.16 that differ from ours."""


def trl_tables() -> str:
    """Every key of TRL's GRPOConfig and of TrainingArguments, group by group; then defaults and trainer arguments."""
    fields = GRPOConfig.model_fields
    lines = []
    for group, keys in trl_keys.GROUPS.items():
        lines += ["", f"### {group}", "", "| key | here |", "|---|---|"]
        lines += [f"| `{name}` | {_description(name)} |" for name in trl_keys.SUPPORTED.get(group, "").split()]
        cells = {name: _description(name) if name in fields else _notice(key) for name, key in keys.items()}
        lines += [f"| `{name}` | {cell} |" for name, cell in cells.items()]
    lines += ["", "### DPOConfig and RewardConfig", "", "| key | here |", "|---|---|"]
    for kind in (DPOConfig, RewardConfig):
        names = preference_keys.SUPPORTED[kind.__name__].split()
        lines += [f"| `{name}` ({kind.__name__}) | {_of(kind, name)} |" for name in names]
    lines += [f"| `{name}` | {_notice(key)} |" for name, key in preference_keys.KEYS.items()]
    lines += ["", "### Other names", "", "| key | is read as |", "|---|---|"]
    lines += [f"| `{old}` | `{new}` |" for old, new in trl_keys.RENAMED.items()]
    lines += ["", "### Defaults that differ", "", "| key | TRL 1.16 | here |", "|---|---|---|"]
    lines += [f"| `{name}` | `{value}` | `{fields[name].default}` |" for name, value in TRL_DEFAULTS.items()]
    lines += ["", "### Arguments of the trainer that are refused", "", "| argument | instead |", "|---|---|"]
    lines += [f"| `{name}` | {text} |" for name, text in UNSUPPORTED.items()]
    return "\n".join(lines) + "\n"


def llama_factory_tables() -> str:
    """Every key of LLaMA-Factory that is not one of TrainingArguments, group by group; then its defaults."""
    lines = []
    for group, keys in llama_factory_keys.GROUPS.items():
        lines += ["", f"### {group}", "", "| key | becomes | remark |", "|---|---|---|"]
        for name, key in keys.items():
            if key.ours is not None:
                lines.append(f"| `{name}` | `{key.ours}` | {key.text} |")
            elif name in (*llama_factory.SPECIAL, *llama_factory.SAMPLING, "do_sample"):
                lines.append(f"| `{name}` | part of another key | {key.text} |")
            else:
                lines.append(f"| `{name}` | {'refused' if key.refused else 'notice'} | {key.text} |")
    lines += ["", "### Defaults that are filled in", "", "| key | value |", "|---|---|"]
    lines += [f"| `{name}` | `{value}` |" for name, value in llama_factory.DEFAULTS.items()]
    lines += [f"| `{name}` (ppo, do_predict) | `{value}` |" for name, value in llama_factory.SAMPLING.items()]
    return "\n".join(lines) + "\n"


def _description(name: str) -> str:
    for kind in (GRPOConfig, SFTConfig, RunConfig):
        if name in kind.model_fields:
            return _of(kind, name)
    raise KeyError(name)


def _of(kind: type[BaseModel], name: str) -> str:
    return "supported: " + (kind.model_fields[name].description or "").replace("|", "\\|")


def _notice(key: Key) -> str:
    if not key.refused:
        return f"notice: {key.text}"
    allowed = ", ".join(f"`{value}`" for value in key.off) or "off"
    return f"refused unless {allowed}: {key.text}"


TABLES = {"coming-from-trl.md": trl_tables, "coming-from-llama-factory.md": llama_factory_tables}


def written(path: Path) -> str:
    """The page with its tables regenerated. Raises ValueError if the page has no MARK."""
    head, mark, _ = path.read_text(encoding="utf-8").partition(MARK)
    if not mark:
        raise ValueError(f"{path} has no line {MARK!r}")
    return head + mark + TABLES[path.name]()


if __name__ == "__main__":
    for name in TABLES:
        page = Path("docs") / name
        page.write_text(written(page), encoding="utf-8")
