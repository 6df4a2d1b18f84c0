"""The page of runs as one HTML file."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment

from cohort.report.page.payload import blocks, read_runs
from cohort.report.page.read import run_folders

REPORT = "report.html"
TOOLS = ("base", "data", "charts", "list", "diff")
VIEWS = ("overview", "completions", "groups", "then_now", "prompts", "reward", "health", "time", "runs")
STYLES = ("vendor/uplot.min.css", "page.css")


def write_report(paths: list[Path], output: Path | None = None) -> Path:
    """Write the page of the runs, by default as report.html in the first folder; returns its path.

    Raises UserError for a folder that is no run.
    """
    folders = [folder for path in paths for folder in run_folders(path)]
    output = output or paths[0] / REPORT
    output.write_text(page(blocks(read_runs(folders)), ", ".join(path.name for path in paths)), encoding="utf-8")
    return output


def page(data: dict[str, str], title: str, live: bool = False) -> str:
    """The HTML text. Its policy allows its own script and style alone, and no connection but a live page's own."""
    template = Environment(autoescape=True).from_string(_static("page.html"))
    script, style = scripts(), styles()
    return template.render(
        policy=policy(script, style, live), title=title, style=style, script=script, blocks=data, live=live
    )


@cache
def scripts() -> str:
    """uPlot, and the page's own files in one function."""
    own = [*(f"{name}.js" for name in TOOLS), *(f"views/{name}.js" for name in VIEWS), "main.js"]
    inner = "\n".join(map(_static, own))
    return f'{_static("vendor/uplot.min.js")}\n(() => {{\n"use strict";\n{inner}\n}})();'


@cache
def styles() -> str:
    return "\n".join(map(_static, STYLES))


def policy(script: str, style: str, live: bool) -> str:
    """The content security policy."""
    connect = "'self'" if live else "'none'"
    return (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:; "
        f"connect-src {connect}; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def _static(name: str) -> str:
    return (files("cohort.report.page") / "static" / name).read_text(encoding="utf-8")
