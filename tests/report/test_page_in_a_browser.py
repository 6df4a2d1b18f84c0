"""The page in Chromium without a network: what is drawn, clicked, found, and that texts of a run stay texts."""

from __future__ import annotations

import json
import os
import random
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cohort.report.page.watch import Watch
from cohort.report.page.write import write_report
from helpers import ROOT
from made_runs import MadeRun, make_run

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install 'cohort-rl[dev]')")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
AXE = Path(os.environ.get("COHORT_AXE", ROOT / ".venv" / "axe.min.js"))
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (make browser)")
HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>\x1b[31m</script>"
COLOURED = """canvas => {
  const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  const seen = new Set();
  for (let i = 0; i < data.length; i += 4) if (data[i + 3]) seen.add(data.slice(i, i + 3).join());
  return seen.size;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield browser
        browser.close()


class Opened:
    """A page, what its console said, and what it asked for."""

    def __init__(self, browser: Any, address: str, **options: Any):
        self.context = browser.new_context(viewport={"width": 1360, "height": 860}, **options)
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        started = time.perf_counter()
        self.page.goto(address, wait_until="commit")
        self.page.wait_for_selector("h1")
        self.seconds = time.perf_counter() - started
        self.page.wait_for_selector("html[data-ready]", timeout=20_000)

    def go(self, view: str) -> Any:
        self.page.get_by_role("button", name=view, exact=True).click()
        return self.page.locator("#view")

    def count(self) -> str:
        return self.page.locator(".count").inner_text().split(" ")[0]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    runs = [make_run(folder / "first"), make_run(folder / "second", "learning_rate", seed=1)]
    hole = {"attack": HOSTILE, "rows": 8, "more": 3, "total": 0.9, "honest": 0.0, "paid": {HOSTILE: 1.0}, "hole": True}
    audit = {"style": "plain", "right": 1.0, "wrong": 0.0, "warnings": [], "findings": [hole]}
    (runs[0] / "audit.json").write_text(json.dumps(audit))
    line = {"step": 41, "why": HOSTILE, "prompt": HOSTILE, "completion": HOSTILE, "tokens": 999, "truncated": True}
    with open(runs[0] / "completions.jsonl", "a", encoding="utf-8") as file:
        file.write(
            json.dumps({**line, "reward": -7.0, "columns": {HOSTILE: HOSTILE}, HOSTILE: 1.0, "row": 999}) + "\nno\n"
        )
    group = {"step": 41, "group": 0, "row": 999, "prompt": HOSTILE, "columns": {HOSTILE: HOSTILE}}
    completion = {"index": 0, "text": HOSTILE, "tokens": [HOSTILE[:9], HOSTILE[9:]], "advantages": [1.0, 2.0]}
    signs = {"index": 1, "text": "😀😀 21!", "tokens": ["😀", "😀 ", "21!"], "advantages": -1.0, "spans": {"x": [3, 5]}}
    completion |= {"changes": [0.1, -0.2], "spans": {HOSTILE: [2, 12]}, "steps": [{"end": 20, "reward": 0.5}]}
    with open(runs[0] / "groups.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({**group, "completions": [completion, signs]}) + "\n")
    return write_report(runs, folder / "page.html")


def test_the_page_of_two_runs(browser: Any, report: Path) -> None:
    opened = Opened(browser, report.as_uri())
    page = opened.page
    assert page.locator("h1").inner_text().startswith("Held-out accuracy")
    assert "completions.jsonl: 1 unreadable line left out" in page.locator("#view").inner_text()
    colours = [canvas.evaluate(COLOURED) for canvas in page.locator(".u-wrap canvas").all()]
    assert len(colours) == 6 and min(colours) > 20

    opened.go("Completions")
    assert opened.count() == "641"
    detail = page.locator(".detail")
    assert HOSTILE.replace("\x1b", "") in detail.inner_text().replace("\x1b", "")
    page.keyboard.press("/")
    page.keyboard.type("SUM OF")
    some = int(opened.count())
    assert 0 < some < 641 and "The sum of" in page.locator(".row").first.inner_text()
    page.get_by_label("at least").fill("1")
    fewer = int(opened.count())
    assert 0 < fewer < some
    page.get_by_label("at least").fill("")
    page.locator("#search").fill("")
    page.get_by_label("cut off").select_option("1")
    assert opened.count() == "1"
    page.get_by_label("cut off").select_option("")
    page.get_by_role("button", name="reward", exact=True).click()
    rewards = page.locator(".row span:nth-child(3)").all_inner_texts()
    assert rewards[0] == "1.1" and rewards == sorted(rewards, reverse=True)
    page.get_by_role("button", name="reward ↓", exact=True).click()
    assert page.locator(".row span:nth-child(3)").first.inner_text() == "-7"
    page.locator(".rows").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    assert page.locator(".row.picked").count() == 1 and "-7" not in detail.inner_text()

    opened.go("Groups")
    assert page.locator("h2").first.inner_text() == "Step 41, group 0, row 999"
    assert (
        page.locator(".card .text").first.inner_text().startswith("<img src=x")
        and page.locator("sup").inner_text() == "0.5"
    )
    # A span counts characters, of which an emoji is one.
    assert page.locator(".card .span1").inner_text() == "21"
    page.keyboard.press("ArrowLeft")
    assert page.locator("h2").first.inner_text().startswith("Step 40") and page.locator(".card").count() == 8
    advantages = [float(text.split(" ")[1]) for text in page.locator(".card header b").all_inner_texts()]
    assert advantages == sorted(advantages, reverse=True)
    assert page.locator(".card .span0").count() > 0 and page.locator(".card span[style*=background]").count() > 5
    page.get_by_label("colour tokens by").select_option("entropy")
    assert "entropy" in page.locator(".legend").inner_text()

    opened.go("Then and now")
    page.locator(".row").nth(1).click()
    assert page.locator("ins").count() > 0 and page.locator("del").count() > 0
    page.locator(".slider input").focus()
    page.keyboard.press("Home")
    assert page.locator("ins").count() == 0 and "Now: step 0" in page.locator("#view").inner_text()

    opened.go("Prompts")
    assert page.locator(".row").count() >= 20
    with page.expect_download() as exported:
        page.get_by_label("show").select_option("band")
        page.locator("#export").click()
    rows = [json.loads(line) for line in Path(exported.value.path()).read_text().splitlines()]
    assert rows and all(0.2 <= row["share_right"] <= 0.8 for row in rows)
    recorded = [row for row in rows if "prompt" in row]
    assert recorded and all(row["answer"] for row in recorded)
    assert all(row["prompt_begins"].startswith("What is") for row in rows if row not in recorded)

    for view in ("Reward", "Health", "Time"):
        opened.go(view)
        assert min(canvas.evaluate(COLOURED) for canvas in page.locator("canvas").all()) > 2
        if view == "Reward":
            assert "1 of 1 attacks get more than an honest wrong answer" in page.locator("#view").inner_text()

    opened.go("Runs")
    page.get_by_label("metric").select_option("kl")
    assert page.locator(".u-wrap canvas").evaluate(COLOURED) > 20
    differing = page.locator(".diff").inner_text()
    assert "learning_rate" in differing and "0.001" in differing and "max_steps" not in differing
    assert page.locator("ins").count() > 0
    page.get_by_label("and", exact=True).select_option("0")
    assert "The configurations are equal" in page.locator("#view").inner_text()

    page.locator("#top select").select_option("1")
    page.keyboard.press("Escape")
    opened.go("Overview")
    assert "learning_rate 0.001 is too high" in page.locator(".causes").inner_text()
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_role("button", name="Dark / light").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light

    assert opened.errors == [] and "taken" not in page.title()
    assert [url for url in opened.asked if not url.startswith(("file:", "blob:"))] == []
    opened.context.close()


def test_values_move_while_a_run_goes(browser: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=3)
    (run / "ended.json").unlink()
    with Watch(run) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        opened = Opened(browser, server.address)
        page = opened.page
        page.wait_for_selector(".live.going")
        assert "3 steps" in page.locator("#top").inner_text()
        more = MadeRun("healthy", 6, 6, 8, random.Random(5))
        more.visited |= set(range(30))
        for step in (4, 5):
            for name, lines in more.step(step).items():
                with open(run / f"{name}.jsonl", "a") as file:
                    file.writelines(json.dumps(line) + "\n" for line in lines)
        page.locator("#top").filter(has_text="5 steps").wait_for(timeout=10_000)
        opened.go("Completions")
        assert opened.count() == str(5 * 16)
        opened.go("Groups")
        assert page.locator("h2").first.inner_text().startswith("Step 5")
        (run / "ended.json").write_text('{"step": 5, "max_steps": 5, "by": "max_steps"}')
        page.locator("#live").filter(has_text="ended").wait_for(timeout=10_000)
        assert opened.errors == [] and all(url.startswith(server.address) for url in opened.asked)
        opened.context.close()
        server.shutdown()
        thread.join()


@pytest.mark.slow
def test_a_hundred_thousand_completions(browser: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=10)
    words = [f"word{i}" for i in range(500)]
    draw = random.Random(0)
    with open(run / "completions.jsonl", "w") as file:
        for i in range(100_000):
            text = " ".join(draw.choices(words, k=60))
            line = {
                "step": i // 100,
                "prompt": f"question {i % 5000}?",
                "completion": text,
                "tokens": 60,
                "row": i % 5000,
            }
            file.write(json.dumps({**line, "truncated": False, "reward": draw.random(), "why": "sample"}) + "\n")
    report = write_report([run])
    assert report.stat().st_size <= 30e6
    opened = Opened(browser, report.as_uri())
    assert opened.seconds < 3
    started = time.perf_counter()
    opened.go("Completions")
    opened.page.locator("#search").fill("word7 word8")
    assert 0 < int(opened.count().replace(",", "")) < 100_000
    opened.page.get_by_role("button", name="reward", exact=True).click()
    assert time.perf_counter() - started < 3
    assert opened.errors == []
    opened.context.close()


@pytest.mark.slow
@pytest.mark.skipif(not AXE.is_file(), reason="needs axe-core (make browser)")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(browser: Any, report: Path, scheme: str) -> None:
    opened = Opened(browser, report.as_uri(), color_scheme=scheme, bypass_csp=True)
    opened.page.add_script_tag(path=str(AXE))
    views = ("Overview", "Completions", "Groups", "Then and now", "Prompts", "Reward", "Health", "Time", "Runs")
    serious = {}
    for view in views:
        opened.go(view)
        found = opened.page.evaluate("axe.run()")["violations"]
        bad = [
            (each["id"], each["nodes"][0]["html"][:200]) for each in found if each["impact"] in ("serious", "critical")
        ]
        if bad:
            serious[view] = bad
    assert serious == {}
    opened.context.close()
