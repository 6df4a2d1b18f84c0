"""Draws the pictures of the page of runs into docs/images/, in Chromium: `python scripts/draw_pages.py`.

The runs are made up (made_runs.py); the pictures show the page, not what a method achieves.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from cohort.report.page.write import write_report
from made_runs import WARNINGS, make_run

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
SIZE = {"width": 1240, "height": 780}
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")


def main() -> None:
    chromium = shutil.which("chromium") or sys.exit("needs Chromium: make browser")
    with tempfile.TemporaryDirectory() as place, sync_playwright() as started:
        folder = Path(place)
        runs = [make_run(folder / "grpo-seed-0"), make_run(folder / "grpo-seed-1", seed=1)]
        runs.append(make_run(folder / "too-fast", "learning_rate"))
        browser = started.chromium.launch(executable_path=chromium, args=list(ARGUMENTS))
        draw(browser, write_report(runs[:1], folder / "one.html"), "page_overview", "Overview")
        draw(browser, write_report(runs[:1], folder / "dark.html"), "page_groups", "Groups", dark=True, height=620)
        draw(browser, write_report(runs, folder / "three.html"), "page_runs", "Runs", height=1180)
        for kind in WARNINGS:
            sick = write_report([make_run(folder / kind, kind)])
            draw(browser, sick, f"page_{kind}", "Overview")
        browser.close()


def draw(browser: Any, report: Path, name: str, view: str, dark: bool = False, height: int = SIZE["height"]) -> None:
    page = browser.new_page(viewport={**SIZE, "height": height}, color_scheme="dark" if dark else "light")
    page.goto(report.as_uri())
    page.wait_for_selector("html[data-ready]")
    page.get_by_role("button", name=view, exact=True).click()
    if view == "Groups":
        for _ in range(32):
            page.keyboard.press("ArrowLeft")
    page.mouse.move(0, 0)
    page.wait_for_timeout(200)
    page.screenshot(path=IMAGES / f"{name}.png")
    page.close()
    print(IMAGES / f"{name}.png")


if __name__ == "__main__":
    main()
