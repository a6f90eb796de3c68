"""The annotator's page in a real browser, against the real process: keys, rankings, undo, hostile texts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.fakes.campaign import HOSTILE, hostile_item, item
from tests.fakes.pages import CHROMIUM, Pages
from trimtab.clients.preference import PreferenceClient
from trimtab.preference.v1 import preference_pb2 as wire

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext
from tests.integration.preference.labelling import answers, comparisons, done, saved, shown, signed_in

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed")


def test_thirty_labels_one_undone_and_a_lost_connection(
    service: tuple[Pages, PreferenceClient], context: BrowserContext
) -> None:
    """By keyboard: 30 answers, one undone and given anew, five of them offline; the export has each once, as said."""
    pages, client = service
    client.upload([item(number, campaign="thirty") for number in range(30)])
    page = signed_in(context, pages, "ann", "thirty")
    page.keyboard.press("v")  # texts as they are, to be compared with the export
    said: list[tuple[str, str, str]] = []

    def label(key: str) -> None:
        shown(page)
        said.append((key, *answers(page)))  # type: ignore[arg-type]
        before = page.inner_text("#done")
        page.keyboard.press(key)
        done(page, int(before) + 1)

    for number in range(10):
        label(("ArrowLeft", "ArrowRight", "t")[number % 3])
    page.keyboard.press("u")  # the tenth, and another answer
    done(page, 9)
    undone = said.pop()
    shown(page)
    assert answers(page) == list(undone[1:])
    label("ArrowRight" if undone[0] == "ArrowLeft" else "ArrowLeft")
    saved(page)
    context.set_offline(True)
    for _ in range(4):
        label("ArrowLeft")
    page.keyboard.press("u")  # an answer that never left
    done(page, 13)
    said.pop()
    label("ArrowRight")
    assert re.fullmatch(r"Offline: [4-6] kept here", page.inner_text("#connection"))
    assert client.statistics(campaign="thirty").comparisons == 10
    context.set_offline(False)
    saved(page)
    while len(said) < 30:
        label(("ArrowRight", "ArrowLeft", "s")[len(said) % 3])
    saved(page)
    page.wait_for_selector("#empty:not([hidden])")

    owner = context.new_page()
    owner.goto(pages.link("owner-thirty", "owner"))
    owner.wait_for_url("**/overview")
    owner.select_option("select[name=campaign]", "thirty")
    owner.wait_for_url("**campaign=thirty")
    with owner.expect_download() as download:
        owner.click("text=Export all")
    rows = [json.loads(line) for line in Path(download.value.path()).read_text().splitlines()]
    assert len(rows) == len({row["task_id"] for row in rows}) == 30
    choices = {"ArrowLeft": "first", "ArrowRight": "second", "t": "tie", "s": "skip"}
    expected = sorted((choices[key], _words(first), _words(second)) for key, first, second in said)
    exported = sorted(
        (row["choice"], _words(row["first"]["text"]), _words(row["second"]["text"])) for row in rows
    )
    assert exported == expected


def _words(text: str) -> str:
    return " ".join(text.split())


def test_hostile_texts_do_nothing(service: tuple[Pages, PreferenceClient], context: BrowserContext) -> None:
    """A script, an image with a handler and a javascript: link are text in prompt and answers, formatted or plain."""
    pages, client = service
    client.upload([hostile_item(1, campaign="hostile")])
    asked: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    page = signed_in(context, pages, "ann-hostile", "hostile")
    for _ in range(2):
        for part in ("#prompt-text", "#answers"):
            assert page.locator(f"{part} :is(script, img, iframe, style)").count() == 0
            links = page.locator(f"{part} a").evaluate_all("links => links.map(link => link.href)")
            assert all(link.startswith("https:") for link in links)
        assert "<script>window.hurt = 1" in page.inner_text("#answers")
        assert "javascript:window.hurt=3" in page.inner_text("#answers")
        page.keyboard.press("v")
    assert answers(page)[0].startswith(HOSTILE[:40])
    assert page.locator("#prompt-text strong").count() == 1
    assert page.evaluate("window.hurt") is None
    assert all(url.startswith(pages.url) for url in asked)
    assert page.inner_text("#done") == "0"  # and it still works
    page.keyboard.press("f")
    done(page, 1)
    saved(page)
    assert [one.comparison.choice for one in comparisons(client, "hostile")] == [wire.CHOICE_FLAG]


def test_a_ranking_by_keyboard(service: tuple[Pages, PreferenceClient], context: BrowserContext) -> None:
    """Keys 3, 1, = 4, 2 rank four answers with a tie: six comparisons of one ranking, as said."""
    pages, client = service
    client.upload([item(2, campaign="ranked", answers=4)])
    page = signed_in(context, pages, "ann-ranked", "ranked")
    page.keyboard.press("v")
    texts = answers(page)
    for key in ("3", "2", "Backspace", "1", "=", "4"):
        page.keyboard.press(key)
    assert page.inner_text("#order") == "Best first: 3, 1 = 4, 2"  # the last one left has its place by itself
    page.keyboard.press("Enter")
    done(page, 1)
    saved(page)
    rows = comparisons(client, "ranked")
    place = {_words(text): rank for text, rank in zip(texts, (2, 3, 1, 2), strict=True)}
    assert len(rows) == 6
    assert len({row.comparison.ranking_id for row in rows}) == 1
    for row in rows:
        words = {one.candidate_id: _words(one.text) for one in row.item.candidates}
        first = place[words[row.comparison.first_candidate_id]]
        second = place[words[row.comparison.second_candidate_id]]
        expected = (
            wire.CHOICE_TIE
            if first == second
            else wire.CHOICE_FIRST
            if first < second
            else wire.CHOICE_SECOND
        )
        assert row.comparison.choice == expected


def test_every_key_says_what_it_did(service: tuple[Pages, PreferenceClient], context: BrowserContext) -> None:
    """Keys that change something in place are announced, too: a place taken out, how sure one is, formatting."""
    pages, client = service
    client.upload([item(3, campaign="told", answers=3)])
    page = signed_in(context, pages, "ann-told", "told")
    for key, told in (
        ("2", "Order: 2"),
        ("Backspace", "Taken out. No answer has a place."),
        ("w", "How sure: Fairly"),
        ("w", "How sure: not said"),
        ("v", "Texts as they are."),
        ("v", "Texts with formatting."),
    ):
        page.keyboard.press(key)
        assert page.inner_text("#status") == told


def test_without_a_mouse_and_without_single_keys(
    service: tuple[Pages, PreferenceClient], context: BrowserContext
) -> None:
    """Tab and Enter alone: buttons have names, focus begins at the prompt, what happened is announced."""
    pages, client = service
    client.upload([item(number, campaign="tab") for number in range(2)])
    page = signed_in(context, pages, "ann-tab", "tab")
    assert page.evaluate("document.activeElement.id") == "prompt-title"
    unnamed = page.locator("button:visible").evaluate_all(
        "buttons => buttons.filter(b => !(b.getAttribute('aria-label') || b.innerText).trim()).length"
    )
    assert unnamed == 0
    page.keyboard.press("?")
    page.get_by_label("Single keys work", exact=False).uncheck()
    page.get_by_role("button", name="Close").click()
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#done") == "0"
    page.locator("#prompt-title").focus()
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "right":
            break
    page.keyboard.press("Enter")
    done(page, 1)
    assert page.inner_text("#status") == "Answer B is better. 1 answered."
    saved(page)
    assert [one.comparison.choice for one in comparisons(client, "tab")] == [wire.CHOICE_SECOND]
