"""The model card: README.md beside a trained model, for people and for the hub."""

from __future__ import annotations

import json
import logging
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from cohort.config import TrainingConfig
from cohort.methods.method import Paper
from cohort.texts import is_secret, without_secrets, without_secrets_inside
from cohort.types import Row, printable

log = logging.getLogger("cohort")

TASKS = {"reward_model": "text-classification", "process_reward_model": "token-classification"}
"""Method -> the hub's word for what its model does; text-generation for the others."""
NOT_SETTINGS = {
    "output_dir",
    "logging_dir",
    "run_name",
    "project",
    "trackio_space_id",
    "resume_from_checkpoint",
    "push_to_hub",
    "hub_model_id",
    "hub_private_repo",
}
PACKAGES = ("cohort-rl", "torch", "transformers", "peft", "datasets")
SHOWN = ("eval/reward", "eval/loss", "reward", "loss")
"""Metrics shown beside each reward's own where there was no evaluation."""
_REPO = re.compile(r"[\w.-]+/[\w.-]+")
_FRONT = re.compile(r"\A---\n(.*?\n)---\n", re.DOTALL)
_USE = re.compile(r"^## Use\n.*?(?=^## )", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Card:
    """Card("gsm8k-grpo", "grpo", "Qwen/Qwen2.5-0.5B-Instruct", ["openai/gsm8k train"], 7473, ["accuracy"],
    {"learning_rate": 2e-6}, rows of metrics.jsonl, adapter=False, command="cohort train examples/gsm8k.yaml")"""

    name: str
    method: str
    base_model: str
    data: list[str]
    rows: int
    rewards: list[str]
    settings: dict[str, Any]
    metrics: list[dict[str, Any]]
    adapter: bool
    command: str = ""
    paper: Paper | None = None

    def text(self) -> str:
        return "\n".join(
            [
                _front(self._metadata()),
                f"# {plain(self.name)}",
                "",
                f"Trained with Cohort, by {self._method()}.",
                "",
                _use(self.name, self.base_model, self.adapter, self.method),
                "## Training",
                "",
                f"- Base model: {code(self.base_model)}",
                f"- Data: {', '.join(map(code, self.data)) or 'rows given in Python'}; {self.rows} rows",
                *([f"- Rewards: {', '.join(map(code, self.rewards)) or 'none'}"] * (self.method not in TASKS)),
                *([f"- Command: {code(self.command)}"] if self.command else []),
                f"- Versions: {', '.join(_versions())}",
                "",
                "Settings that are not the defaults:",
                "",
                fenced(yaml.safe_dump(self.settings, sort_keys=False, allow_unicode=True), "yaml"),
                "",
                "## Results",
                "",
                *_results(self.metrics),
                "",
            ]
        )

    def _method(self) -> str:
        if self.paper is None:
            return code(self.method)
        return f"{code(self.method)} ([{plain(self.paper.title)}](https://arxiv.org/abs/{self.paper.arxiv}))"

    def _metadata(self) -> dict[str, Any]:
        sets = sorted({name for data in self.data if _REPO.fullmatch(name := data.split(" ")[0])})
        return {
            **_library(self.adapter),
            "pipeline_tag": TASKS.get(self.method, "text-generation"),
            "tags": ["cohort", re.sub(r"\W+", "-", self.method).strip("-")],
            **({"base_model": self.base_model} if _is_repo(self.base_model) else {}),
            **({"datasets": sets} if sets else {}),
        }


def describe(
    method: str,
    base_model: str,
    rows: list[Row],
    rewards: list[str],
    config: TrainingConfig,
    adapter: bool,
    paper: Paper | None = None,
) -> Card:
    """The card of a finished run, with the metrics in output_dir's metrics.jsonl."""
    sources = {row.source.rpartition(" row ")[0] for row in rows}
    name = config.hub_model_id or Path(config.output_dir).resolve().name
    record = Path(config.output_dir) / "metrics.jsonl"
    lines = record.read_text(encoding="utf-8").split("\n") if record.is_file() else []
    return Card(
        name.rpartition("/")[2],
        method,
        _public_name(base_model),
        sorted(source for source in sources if source),
        len(rows),
        rewards,
        settings_of(config),
        [json.loads(line) for line in lines if line],
        adapter,
        command_line(sys.argv),
        paper,
    )


def settings_of(config: TrainingConfig) -> dict[str, Any]:
    """The settings that differ from the defaults, without paths, secrets, and keys that do not affect learning."""
    fields = type(config).model_fields
    values = config.model_dump(mode="json")
    values = {key: values[key] for key, field in fields.items() if getattr(config, key) != _default(field)}
    if "teacher" in values:
        values["teacher"] = _public_name(values["teacher"])
    return {key: without_secrets(value) for key, value in values.items() if key in fields and key not in NOT_SETTINGS}


def _default(field: Any) -> Any:
    return field.get_default(call_default_factory=True)


def command_line(arguments: list[str]) -> str:
    """The command as typed, with values that look like secrets replaced; empty where there was no program or script."""
    path = Path(arguments[0])
    program = "cohort" if path.parts[-2:] == ("cohort", "__main__.py") else path.name  # python -m cohort
    if program != "cohort" and not program.endswith(".py"):
        return ""
    kept: list[str] = []
    for argument in arguments[1:]:
        name, equals, _ = argument.partition("=")
        if kept and is_secret(kept[-1]) and kept[-1].startswith("-") and "=" not in kept[-1]:
            kept.append("...")
        else:
            kept.append(f"{name}=..." if equals and is_secret(name) else without_secrets_inside(argument))
    return shlex.join([program] if program == "cohort" else ["python", program]) + "".join(
        " " + shlex.quote(argument) for argument in kept
    )


def write_card(folder: Path, card: Card) -> None:
    """Write the folder's README.md, unless somebody else wrote the one that is there."""
    path = folder / "README.md"
    if path.is_file() and not _is_generated(path.read_text(encoding="utf-8", errors="replace")):
        log.warning("%s is not a model card of ours: it stays, and no card is written", path)
        return
    path.write_text(card.text(), encoding="utf-8")


def add_to_card(folder: Path, datasets: Sequence[str], tags: Sequence[str]) -> None:
    """Add names of datasets and tags to the metadata of the folder's card, where it is ours."""
    path = folder / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    front = _FRONT.match(text)
    if not front or not _is_generated(text):
        log.warning("%s is not a model card of ours: dataset_name and tags are not written", path)
        return
    data = yaml.safe_load(front[1])
    for key, added in (("datasets", datasets), ("tags", tags)):
        if added:
            data[key] = [*dict.fromkeys([*(data.get(key) or []), *added])]
    path.write_text(_front(data) + text[front.end() :], encoding="utf-8")


def merged_card(text: str, base_model: str) -> str:
    """An adapter's card, changed to that of the merged model."""
    front = _FRONT.match(text)
    data = yaml.safe_load(front[1]) if front else None
    if not isinstance(data, dict) or "cohort" not in (data.get("tags") or []):
        name = _public_name(base_model)
        known = {"base_model": base_model} if _is_repo(base_model) else {}
        return f"{_front(_library(False) | known)}\n{code(name)} with an adapter merged into its weights.\n"
    heading = re.search(r"^# (.*)$", text, re.MULTILINE)
    name = re.sub(r"\\(.)", r"\1", heading[1]) if heading else "model"
    rest = text[front.end() :] if front else text
    method = next((m for m, task in TASKS.items() if task == data.get("pipeline_tag")), "")
    return _front(data | _library(False)) + _USE.sub(lambda _: _use(name, "", False, method) + "\n", rest)


def _is_generated(text: str) -> bool:
    """Whether the card was written by this package or by peft."""
    front = _FRONT.match(text)
    try:
        data = yaml.safe_load(front[1]) if front else None
    except yaml.YAMLError:
        return False
    return isinstance(data, dict) and ("cohort" in (data.get("tags") or []) or data.get("library_name") == "peft")


def _library(adapter: bool) -> dict[str, Any]:
    return {"library_name": "peft" if adapter else "transformers"}


def _front(data: dict[str, Any]) -> str:
    return f"---\n{yaml.safe_dump(data, sort_keys=False, allow_unicode=True)}---\n"


def _use(name: str, base_model: str, adapter: bool, method: str) -> str:
    what = _word(name)
    if method in TASKS:
        lines = [f"cohort reward eval {what} --data labelled.jsonl", f"cohort train grpo.yaml reward_funcs={what}"]
    elif adapter:
        base = _word(base_model)
        lines = [f"cohort generate {what}", f"vllm serve {base} --enable-lora --lora-modules adapter={what}"]
    else:
        lines = [f"cohort generate {what}", f"vllm serve {what}"]
    kind = "An adapter of peft" if adapter else "An ordinary transformers model"
    return f"## Use\n\n{kind}.\n\n{fenced(chr(10).join(lines), 'bash')}\n"


def _word(text: str) -> str:
    """The text quoted as one word of a shell command, on one line."""
    return shlex.quote(" ".join(text.split()))


def _results(metrics: list[dict[str, Any]]) -> Iterable[str]:
    """A table of held-out metrics, or else of training metrics, at the first and the last step that has them."""
    held_out = [row for row in metrics if any(key.startswith("eval/") for key in row)]
    rows = held_out or [row for row in metrics if "reward" in row or "loss" in row]
    if not rows:
        return ["Nothing was measured."]
    first, last = rows[0], rows[-1]
    own = [key for key in last if key.startswith("rewards/") and key.endswith("/mean")]
    plain_eval = [key for key in last if key.startswith("eval/") and key.count("/") == 1 and key != "eval/samples"]
    keys = plain_eval if held_out else [*[key for key in SHOWN if key in last], *own]
    title = "Held-out data" if held_out else "Training data"
    steps = [first, last] if len(rows) > 1 else [last]
    head = [f"step {row['step']}" for row in steps]
    return [
        f"{title}, as in `metrics.jsonl`.",
        "",
        f"| metric | {' | '.join(head)} |",
        "|---|" + "---:|" * len(head),
        *(f"| {plain(key)} | {' | '.join(_number(row.get(key)) for row in steps)} |" for key in keys),
    ]


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else ""


def _versions() -> Iterable[str]:
    for name in PACKAGES:
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            continue


def _is_repo(name: str) -> bool:
    return bool(_REPO.fullmatch(name)) and not Path(name).exists()


def _public_name(name: str) -> str:
    """A repository's name; of a path the last part, since a path says nothing elsewhere and is nobody else's
    business."""
    return name if _is_repo(name) else Path(name).resolve().name


def plain(text: str) -> str:
    """Escape the text for Markdown: plain("a*b") -> "a\\*b"."""
    return re.sub(r"([\\`*_\[\]<>|#&~$])", r"\\\1", printable(" ".join(text.split())))


def code(text: str) -> str:
    """The text as an inline code span; backticks in it cannot end the span."""
    line = printable(" ".join(text.split()))
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{ticks}{space}{line}{space}{ticks}"


def fenced(text: str, language: str = "") -> str:
    """The text as a code block; fences in it cannot end the block."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
