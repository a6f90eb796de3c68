"""The annotator's page where something is amiss: connections, clocks, refusals, kill -9."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.fakes.campaign import item
from tests.fakes.pages import CHROMIUM, Pages
from trimtab.clients.preference import PreferenceClient
from trimtab.preference.v1 import preference_pb2 as wire

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Route
from tests.integration.preference.labelling import (
    answering,
    answers,
    comparisons,
    done,
    holds,
    saved,
    shown,
    signed_in,
)

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed")

_KEPT = "() => Object.keys(sessionStorage).sort()"
_FULL = """() => {
  const setItem = Storage.prototype.setItem;
  Storage.prototype.setItem = function (name, value) {
    if (this === sessionStorage) throw new DOMException("full", "QuotaExceededError");
    setItem.call(this, name, value);
  };
}"""


def test_a_page_with_nothing_left_asks_now_and_then(
    service: tuple[Pages, PreferenceClient], context: BrowserContext
) -> None:
    """Once all is answered it says so and asks every few seconds, not without pause; new tasks appear by themselves."""
    pages, client = service
    client.upload([item(0, campaign="last")])
    page = signed_in(context, pages, "ann-last", "last")
    page.keyboard.press("ArrowLeft")
    saved(page)
    holds(page, "#empty-text", "All done for now. New tasks appear here by themselves.")
    asked: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(2_000)
    assert len([url for url in asked if url.endswith("/api/tasks")]) <= 2
    client.upload([item(1, campaign="last")])
    shown(page)


def test_too_many_requests_are_not_told_as_a_lost_connection(
    service: tuple[Pages, PreferenceClient], routed: BrowserContext
) -> None:
    """A page whose first asking is refused for the rate says so, and goes on when it is taken again."""
    pages, client = service
    client.upload([item(0, campaign="rate")])
    page = routed.new_page()
    page.route("**/api/tasks", answering(429, '{"error": {"code": "RESOURCE_EXHAUSTED", "message": "wait"}}'))
    page.goto(pages.link("ann-rate", campaign="rate"))
    page.wait_for_url("**/label")
    told = "Too many requests for now. What you answered is kept here; this page tries again."
    holds(page, "#empty-text", told)
    page.unroute("**/api/tasks")
    shown(page)


def test_a_clock_that_steps_back_loses_no_label(
    service: tuple[Pages, PreferenceClient], context: BrowserContext
) -> None:
    """An answer to a task during which the clock was set back by an hour is kept, with the seconds that it took."""
    pages, client = service
    client.upload([item(0, campaign="stepped")])
    page = signed_in(context, pages, "ann-stepped", "stepped")
    page.evaluate("() => { const now = Date.now; Date.now = () => now() - 3_600_000; }")
    page.keyboard.press("ArrowLeft")
    saved(page)
    assert page.locator("#notice").is_hidden()
    [kept] = comparisons(client, "stepped")
    assert 0 <= kept.comparison.seconds < 60


def test_a_reload_without_a_connection_goes_on(chromium: Browser, tmp_path: Path) -> None:
    """The page comes back with the task that was shown, and with what was answered; it goes on from there, undo too,
    and all of it arrives once. Who signs out leaves nothing behind to load."""
    pages = Pages(tmp_path, "lease_seconds = 60")
    with pages.start() as client:
        client.upload([item(number, campaign="reload") for number in range(8)])
        context = chromium.new_context()
        page = signed_in(context, pages, "ann", "reload")
        assert page.evaluate("navigator.serviceWorker.ready.then(() => true)")
        page.keyboard.press("ArrowLeft")
        done(page, 1)
        saved(page)
        assert pages.stop(signal.SIGKILL) == -signal.SIGKILL
    page.keyboard.press("ArrowRight")
    holds(page, "#connection", "Offline: 1 kept here")
    before = (page.inner_text("#prompt-text"), answers(page))
    for _ in range(2):
        page.reload()
        shown(page)
        assert (page.inner_text("#prompt-text"), answers(page)) == before
        holds(page, "#connection", "Offline: 1 kept here")
        done(page, 2)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("t")
    done(page, 4)
    page.keyboard.press("u")
    page.reload()
    shown(page)
    done(page, 3)
    with pages.start() as client:
        saved(page)
        page.keyboard.press("t")
        done(page, 4)
        saved(page)
        rows = comparisons(client, "reload")
        assert len({row.comparison.task_id for row in rows}) == len(rows) == 4
        assert sum(row.comparison.choice == wire.CHOICE_TIE for row in rows) == 1
        page.click("#sign-out")
        page.wait_for_url("**/join")
        assert page.evaluate("caches.keys()") == []
        assert page.evaluate("Object.keys(sessionStorage)") == []
        page.goto(f"{pages.url}/label")
        assert page.url.endswith("/join")
        assert page.evaluate("caches.keys()") == []
    assert pages.stop() == 0
    from playwright.sync_api import Error

    with pytest.raises(Error, match="net::ERR_"):
        page.goto(f"{pages.url}/label")
    context.close()


def test_a_killed_service_loses_no_label(chromium: Browser, tmp_path: Path) -> None:
    """kill -9 under way: what was saved is there, what was not waits in the page, also in a new tab; none is twice."""
    pages = Pages(tmp_path, "lease_seconds = 60")
    with pages.start() as client:
        client.upload([item(number, campaign="killed") for number in range(8)])
        context = chromium.new_context()
        page = signed_in(context, pages, "ann", "killed")
        for count in range(1, 4):
            page.keyboard.press("ArrowLeft")
            done(page, count)
        saved(page)
        assert pages.stop(signal.SIGKILL) == -signal.SIGKILL
        page.keyboard.press("ArrowRight")
        holds(page, "#connection", "Offline: 1 kept here")
        page.close()
    with pages.start() as client:
        assert client.statistics().comparisons == 3
        again = context.new_page()
        again.goto(f"{pages.url}/label")
        saved(again)
        done(again, 4)
        shown(again)
        rows = comparisons(client, "killed")
        assert len({row.comparison.task_id for row in rows}) == len(rows) == 4
        assert sum(row.comparison.choice == wire.CHOICE_SECOND for row in rows) == 1
        context.close()
    assert pages.stop() == 0


def test_what_stands_in_front_of_the_service_deletes_no_label(
    service: tuple[Pages, PreferenceClient], routed: BrowserContext
) -> None:
    """A 404, 400 or 403 of an ingress, or JSON that is not ours, keeps the answer until the service has it."""
    pages, client = service
    client.upload([item(number, campaign="ingress") for number in range(4)])
    page = signed_in(routed, pages, "eve", "ingress")
    for count, (status, body) in enumerate(
        ((404, "<h1>404</h1>"), (400, "null"), (409, '{"error": "gone"}'), (403, "<h1>blocked</h1>")), start=1
    ):
        page.route("**/api/answers", answering(status, body))
        page.keyboard.press("ArrowLeft")
        holds(page, "#connection", "Offline: 1 kept here")
        page.unroute("**/api/answers")
        saved(page)
        done(page, count)
    assert page.locator("#notice").is_hidden()
    assert len(comparisons(client, "ingress")) == 4


def test_a_task_that_was_undone_is_held_for_whoever_works_on_it(
    service: tuple[Pages, PreferenceClient], context: BrowserContext
) -> None:
    """Its time is shown again, since the page asks for it."""
    pages, client = service
    client.upload([item(number, campaign="held") for number in range(12)])
    page = signed_in(context, pages, "uma", "held")
    page.keyboard.press("ArrowLeft")
    saved(page)
    page.keyboard.press("u")
    from playwright.sync_api import expect

    expect(page.locator("#timer")).to_have_text(re.compile(r"\d:\d\d left"), timeout=15_000)


def test_a_service_on_this_machine_needs_no_network(
    service: tuple[Pages, PreferenceClient], context: BrowserContext
) -> None:
    """The browser says that it is offline, and the service is there all the same: answers arrive."""
    pages, client = service
    client.upload([item(number, campaign="loopback") for number in range(2)])
    page = signed_in(context, pages, "lea", "loopback")
    saved(page)
    page.evaluate("() => window.dispatchEvent(new Event('offline'))")
    page.keyboard.press("ArrowLeft")
    holds(page, "#connection", "Offline: 1 kept here")
    saved(page)
    assert len(comparisons(client, "loopback")) == 1


def test_who_signs_out_is_signed_out_or_told(
    service: tuple[Pages, PreferenceClient], routed: BrowserContext
) -> None:
    """Also on a page of an earlier session, whose link was opened again since; without an answer the page stays."""
    pages, client = service
    client.upload([item(0, campaign="leave")])
    link = pages.link("zoe", campaign="leave")
    old, new = routed.new_page(), routed.new_page()
    told: list[str] = []
    old.goto(link)
    old.wait_for_url("**/label")
    old.on("dialog", lambda dialog: (told.append(dialog.message), dialog.dismiss()))
    old.route("**/api/sign-out", answering(503, ""))
    old.click("#sign-out")
    old.wait_for_timeout(500)
    assert old.url.endswith("/label") and "You are still signed in" in told[0]
    old.unroute("**/api/sign-out")
    new.goto(link)
    new.wait_for_url("**/label")
    old.click("#sign-out")
    old.wait_for_url("**/join")
    new.goto(f"{pages.url}/label")
    assert new.url.endswith("/join")


def test_a_full_browser_undoes_no_other_answer(
    service: tuple[Pages, PreferenceClient], context: BrowserContext
) -> None:
    """What does not fit any more leaves nothing older behind, which a reload would take for the last answer."""
    pages, client = service
    client.upload([item(number, campaign="full") for number in range(3)])
    page = signed_in(context, pages, "fin", "full")
    page.keyboard.press("ArrowLeft")
    saved(page)
    assert page.evaluate(_KEPT) == ["trimtab-held:fin", "trimtab-history:fin"]
    page.evaluate(_FULL)
    page.keyboard.press("ArrowLeft")
    done(page, 2)
    assert page.evaluate(_KEPT) == []


def test_an_answer_that_is_too_old_to_be_undone_stands(
    service: tuple[Pages, PreferenceClient], context: BrowserContext
) -> None:
    """Two hours after it Undo says until when it could be, and changes neither the count nor the task that is shown."""
    pages, client = service
    client.upload([item(number, campaign="old") for number in range(2)])
    page = signed_in(context, pages, "gus", "old")
    page.keyboard.press("ArrowLeft")
    saved(page)
    before = page.inner_text("#prompt-text")
    later = "const now = Date.now; Date.now = () => now() + 7_200_000;"
    page.evaluate(f"() => {{ {later} document.getElementById('undo').click(); Date.now = now; }}")
    holds(page, "#notice-text", "An answer can be undone for 60 minutes. This one stands.")
    assert (page.inner_text("#done"), page.inner_text("#prompt-text")) == ("1", before)
    assert page.locator("#undo").is_disabled()
    saved(page)
    assert len(comparisons(client, "old")) == 1


def test_an_undo_that_the_service_refuses_is_told_as_one(
    service: tuple[Pages, PreferenceClient], routed: BrowserContext
) -> None:
    """The answer counts as before, its task is not shown again, and the one that was shown is."""

    def too_late(route: Route) -> None:
        [sent] = route.request.post_data_json["answers"]
        told = {"unit": sent["unit"], "revision": sent["revision"], "new": 0, "refused": "it is too old"}
        route.fulfill(json={"outcomes": [told]})

    pages, client = service
    client.upload([item(number, campaign="undone") for number in range(2)])
    page = signed_in(routed, pages, "hal", "undone")
    page.keyboard.press("ArrowLeft")
    saved(page)
    before = page.inner_text("#prompt-text")
    page.route("**/api/answers", too_late)
    page.keyboard.press("u")
    holds(page, "#notice-text", "Not undone: it is too old.")
    done(page, 1)
    assert page.inner_text("#prompt-text") == before
    page.unroute("**/api/answers")
    page.keyboard.press("ArrowLeft")
    done(page, 2)
    saved(page)
    assert len(comparisons(client, "undone")) == 2


def test_an_answer_that_is_never_taken_stops_no_other(
    service: tuple[Pages, PreferenceClient], routed: BrowserContext
) -> None:
    """The service says INVALID_ARGUMENT of one answer: that one is told of and gone, the next one is kept."""
    pages, client = service
    client.upload([item(number, campaign="invalid") for number in range(2)])
    page = signed_in(routed, pages, "fay", "invalid")
    told = {"error": {"code": "INVALID_ARGUMENT", "message": "not like this", "violations": {}}}
    page.route("**/api/answers", lambda route: route.fulfill(status=400, json=told))
    page.keyboard.press("ArrowLeft")
    holds(page, "#notice-text", "One answer was not kept: not like this.")
    page.unroute("**/api/answers")
    page.keyboard.press("ArrowLeft")
    saved(page)
    assert len(comparisons(client, "invalid")) == 1
