"""Prints docs/metrics.md from the table in cohort/report/metric_table: `python scripts/write_metrics.py >
docs/metrics.md`."""

from __future__ import annotations

from cohort.report.metric_table.record import Metric, Section
from cohort.report.metric_table.table import SECTIONS

HEAD = """# Metrics

A run writes `metrics.jsonl` into its `output_dir`: one JSON object a line, for every step, whatever `logging_steps`
is. Trackers (`report_to`) get transformers' and TRL's names: train/reward, eval/reward. `cohort plot RUN` draws them;
beside it, `completions.jsonl` has completions of each sampled batch with their scores and advantage.

Five to look at first, in a run that samples:

| key | good | what else it can mean |
|---|---|---|
| `reward` | rises | flat: nothing is learned, or the reward is constant |
| `eval/{name}` | rises with it | falls while `reward` rises: the reward is gamed |
| `frac_reward_zero_std` | below 0.5 | 1: no group has a better and a worse completion, so there is no gradient |
| `completions/clipped_ratio` | below 0.1 | high: answers are cut off before they are given |
| `kl` | below 0.1 (absent with `beta: 0`) | over 1: the policy has left the reference; lower the learning rate |

Not `loss`: with GRPO it is about 0 from the first step on while the policy learns.

"Healthy" is a rule of thumb, "-" a number without a unit. `{name}` is the name of a reward, `{n}` a number.
Logarithms are natural. A group is a prompt with its completions; standard deviations are defined where they appear.
What to do in general: [troubleshooting.md](troubleshooting.md); the formulas: [grpo.md](grpo.md).
"""
TAIL = """
## Your own

`log_metric(name, value)` in a reward function writes `name`, the mean over a batch's calls
([rewards.md](rewards.md)); an entry of `logged` in a coefficient function, its mean over the step's tokens
([new-method.md](new-method.md)). `profile: true` writes no metrics: it prints the phases of two steps and writes
`profile.txt` and `trace.json`.
"""


def metrics_markdown() -> str:
    """docs/metrics.md: every metric with its definition, unit, healthy range, and what to do outside of it."""
    return HEAD + "".join(map(_section, SECTIONS)) + TAIL


def _section(section: Section) -> str:
    lines = ["", f"## {section.title}", *(["", section.about] if section.about else []), ""]
    lines += ["| key | meaning | unit | healthy | otherwise |", "|---|---|---|---|---|", *map(_row, section.metrics)]
    return "\n".join(lines) + "\n"


def _row(metric: Metric) -> str:
    keys = "<br>".join(f"`{key}`" for key in metric.keys.split())
    cells = (keys, metric.meaning, metric.unit, metric.healthy, metric.otherwise)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    print(metrics_markdown(), end="")
