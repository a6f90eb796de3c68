"""The annotator's page on several devices and in several tabs at once, and what one that goes leaves behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.fakes.campaign import item
from tests.fakes.pages import CHROMIUM, Pages
from trimtab.clients.preference import PreferenceClient
from trimtab.preference.v1 import preference_pb2 as wire

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page
from tests.integration.preference.labelling import (
    answering,
    comparisons,
    done,
    holds,
    saved,
    shown,
    signed_in,
    unheard,
)

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed")

# As where two tabs are two processes, and what the other one wrote a moment ago is not seen yet.
_SEES_ITS_OWN_WRITES_ALONE = """() => {
  const written = new Map();
  const setItem = Storage.prototype.setItem;
  Storage.prototype.setItem = function (name, value) {
    written.set(name, value);
    setItem.call(this, name, value);
  };
  Storage.prototype.getItem = (name) => written.get(name) ?? null;
}"""
_WORKER_STANDS_BEFORE_IT = """() => new Promise((resolve) => {
  const { serviceWorker } = navigator;
  if (serviceWorker.controller) return resolve();
  serviceWorker.addEventListener("controllerchange", () => resolve());
})"""


def test_devices_whose_clocks_differ_lose_no_label(
    service: tuple[Pages, PreferenceClient], chromium: Browser
) -> None:
    """What a phone two minutes ahead answered and took back, its owner's laptop answers: that label is kept."""
    pages, client = service
    client.upload([item(0, campaign="clocks")])
    link = pages.link("ann-clocks", campaign="clocks")
    for ahead, keys in ((120_000, ("ArrowLeft", "u")), (0, ("ArrowRight",))):
        device = chromium.new_context()
        device.add_init_script(f"{{ const now = Date.now; Date.now = () => now() + {ahead}; }}")
        page = device.new_page()
        page.goto(link)
        page.wait_for_url("**/label")
        shown(page)
        for key in keys:
            page.keyboard.press(key)
            saved(page)
        device.close()
    assert [one.comparison.choice for one in comparisons(client, "clocks")] == [wire.CHOICE_SECOND]


def test_an_answer_that_another_device_took_back_is_asked_again(
    service: tuple[Pages, PreferenceClient], chromium: Browser
) -> None:
    """Of a task that both devices show, the one whose clock is behind answers last: it says so, and asks once more.
    What a device took back itself is told nowhere, though it is sent twice."""
    pages, client = service
    client.upload([item(0, campaign="behind")])
    link = pages.link("ann-behind", campaign="behind")
    shows: list[Page] = []
    for ahead in (-120_000, 0):
        device = chromium.new_context(service_workers="block")
        device.add_init_script(f"{{ const now = Date.now; Date.now = () => now() + {ahead}; }}")
        shows.append(device.new_page())
        shows[-1].goto(link)
        shows[-1].wait_for_url("**/label")
        shown(shows[-1])
    late, first = shows
    first.route("**/api/answers", unheard(2))
    first.keyboard.press("ArrowLeft")
    holds(first, "#connection", "Offline: 1 kept here")
    first.keyboard.press("u")
    saved(first)
    assert first.locator("#notice").is_hidden()
    late.keyboard.press("ArrowRight")
    holds(
        late,
        "#notice-text",
        "One answer was not kept: it was taken back on another device, and is asked again.",
    )
    shown(late)
    done(late, 0)
    late.keyboard.press("ArrowRight")
    saved(late)
    assert [one.comparison.choice for one in comparisons(client, "behind")] == [wire.CHOICE_SECOND]
    for page in shows:
        page.context.close()


def test_two_tabs_that_write_at_once_lose_no_label(
    service: tuple[Pages, PreferenceClient], routed: BrowserContext
) -> None:
    """An answer that waits in one tab stays, though another tab keeps and sends one without having seen it."""
    pages, client = service
    client.upload([item(number, campaign="tabs") for number in range(2)])
    one = signed_in(routed, pages, "ida", "tabs")
    one.route("**/api/answers", answering(503, ""))
    one.keyboard.press("ArrowLeft")
    holds(one, "#connection", "Offline: 1 kept here")
    other = routed.new_page()
    other.route("**/api/answers", answering(503, ""))
    other.goto(f"{pages.url}/label")
    shown(other)
    other.evaluate(_SEES_ITS_OWN_WRITES_ALONE)
    other.keyboard.press("ArrowLeft")
    done(other, 2)
    other.unroute("**/api/answers")
    saved(other)
    one.unroute("**/api/answers")
    saved(one)
    assert len(comparisons(client, "tabs")) == 2


def test_a_tab_that_goes_leaves_tasks_to_the_one_that_stays(
    service: tuple[Pages, PreferenceClient], context: BrowserContext, chromium: Browser
) -> None:
    """Both tabs of a person hold the same task: it is free for others when the last one goes, and not before."""
    pages, client = service
    client.upload([item(0, campaign="twice")])
    first = signed_in(context, pages, "ida-twice", "twice")
    second = context.new_page()
    second.goto(f"{pages.url}/label")
    shown(second)
    second.goto("about:blank")
    beside = chromium.new_context()
    other = beside.new_page()
    other.goto(pages.link("ole-twice", campaign="twice"))
    holds(other, "#empty-text", "All done for now. New tasks appear here by themselves.")
    shown(first)
    beside.close()


@pytest.mark.parametrize("way", ["left", "undone", "closed"])
def test_the_last_tab_gives_its_tasks_back(
    service: tuple[Pages, PreferenceClient], context: BrowserContext, chromium: Browser, way: str
) -> None:
    """Whoever comes next has them at once, not when the lease is over; the page's worker does not come in between."""
    pages, client = service
    client.upload([item(0, campaign=way)])
    page = signed_in(context, pages, f"ida-{way}", way)
    page.evaluate(_WORKER_STANDS_BEFORE_IT)
    if way == "undone":
        page.keyboard.press("ArrowLeft")
        saved(page)
        page.keyboard.press("u")
        saved(page)
    page.close() if way == "closed" else page.goto("about:blank")
    beside = chromium.new_context()
    signed_in(beside, pages, f"ole-{way}", way)
    beside.close()
