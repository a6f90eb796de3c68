"""Makes docs/images/preference-*.png: each page of the preference service, light and dark, wide and on a phone.

    python -m tests.e2e.screenshots        (make screenshots)

The people, their labels and the times are made up.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from playwright.sync_api import Browser, Page

from services.preference.assignment import Assignment
from services.preference.domain import Choice, Comparison, Task
from services.preference.servicer import item_from
from services.preference.store import PreferenceStore
from tests.fakes.campaign import SOURCES, item
from tests.fakes.pages import CHROMIUM, Pages, browser

OUT = Path("docs/images")
WIDE, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 800}
ANNOTATORS = {
    "annotator-1": 0.9,
    "annotator-2": 0.85,
    "annotator-3": 0.8,
    "annotator-4": 0.5,
}  # how often they choose the newer version
HOURS = 40


def seed(url: str) -> None:
    """Two days of labels by four people, one of whom does not look closely."""
    clock = [time.time() - HOURS * 3600]
    assignment = Assignment(overlap_annotators=3, overlap_share=0.4, gold_every=8)
    store = PreferenceStore(url, assignment=assignment, clock=lambda: clock[0])
    draw = random.Random(4)
    store.upload([item_from(item(number)) for number in range(260)])
    store.upload([item_from(item(number, gold=True)) for number in range(6)])
    for hour in range(HOURS):
        awake = 9 <= (hour + 6) % 24 <= 20
        for name, eye in ANNOTATORS.items():
            if not awake or draw.random() < 0.4:
                continue
            for task in store.next_tasks(name, limit=draw.randint(2, 7)):
                clock[0] += draw.uniform(5, 60)
                store.record([_said(task, name, eye, draw)])
        clock[0] = max(clock[0], time.time() - (HOURS - hour - 1) * 3600)
    store.upload([item_from(item(number, campaign="ranked", answers=5)) for number in (4, 10)])
    for name in ANNOTATORS:
        store.release(name)
    store.close()


def _said(task: Task, name: str, eye: float, draw: random.Random) -> Comparison:
    first, second = (
        SOURCES.index(task.item.candidate(candidate).source)
        for candidate in (task.first_candidate_id, task.second_candidate_id)
    )
    better = Choice.FIRST if (first < second) == (draw.random() < eye) else Choice.SECOND
    said = Comparison(
        task_id=task.task_id,
        annotator=name,
        first_candidate_id=task.first_candidate_id,
        second_candidate_id=task.second_candidate_id,
        choice=draw.choices([better, Choice.TIE, Choice.SKIP], [0.9, 0.08, 0.02])[0],
        seconds=draw.lognormvariate(2.5, 0.5),
    )
    return replace(said, comment="Both are right, but A says why.") if draw.random() < 0.05 else said


def take(opened: Browser, pages: Pages, links: dict[str, str]) -> None:
    """All pages in both themes and widths."""
    views: dict[str, tuple[str, str, Callable[[Page], None]]] = {
        "label": ("annotator-1", "/label", _pair),
        "ranking": ("rita", "/label", _ranking),
        "overview": ("owner", "/overview", lambda _: None),
        "comparisons": ("owner", "/browse?campaign=people&disputed=1", _open_first),
        "sign-in": ("", "/join", lambda _: None),
    }
    for theme in ("light", "dark"):
        for size, viewport in (("", WIDE), ("-phone", PHONE)):
            for view, (who, path, prepare) in views.items():
                context = opened.new_context(
                    viewport=viewport, color_scheme=theme, device_scale_factor=1 if not size else 1.5
                )
                page = context.new_page()
                if who:
                    page.goto(links[who])
                    page.wait_for_url("**/label" if who != "owner" else "**/overview")
                page.goto(pages.url + path)
                prepare(page)
                whole = view == "overview"
                page.screenshot(path=OUT / f"preference-{view}-{theme}{size}.png", full_page=whole)
                context.close()


def _pair(page: Page) -> None:
    page.wait_for_selector("#task:not([hidden])")
    page.keyboard.press("w")


def _ranking(page: Page) -> None:
    page.wait_for_selector("#task:not([hidden])")
    for key in "21":
        page.keyboard.press(key)


def _open_first(page: Page) -> None:
    page.click(".row summary >> nth=0")


def main() -> None:
    """Into docs/images."""
    if not CHROMIUM.exists():
        raise SystemExit(
            f"{CHROMIUM}: there is no Chromium; apt-get install chromium, or set TRIMTAB_CHROMIUM"
        )
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        seed(f"sqlite:///{folder}/p.db")
        instructions = "Prefer the answer that helps more. **Truth** before style."
        pages = Pages(Path(folder), f'[web]\ninstructions = "{instructions}"\n')
        with pages.start():
            links = {
                "annotator-1": pages.link("annotator-1", campaign="people"),
                "rita": pages.link("rita", campaign="ranked"),
                "owner": pages.link("owner", "owner"),
            }
            with browser() as opened:
                take(opened, pages, links)
        pages.stop()
    print(f"{len(list(OUT.glob('preference-*.png')))} pictures in {OUT}", file=sys.stderr)


if __name__ == "__main__":
    main()
