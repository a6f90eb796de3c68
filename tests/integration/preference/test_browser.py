"""The annotator's page in a real browser, against the real process: keys, undo, lost connections, kill -9."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.fakes.campaign import HOSTILE, hostile_item, item
from tests.fakes.pages import CHROMIUM, Pages, browser
from trimtab.clients.preference import PreferenceClient
from trimtab.preference.v1 import preference_pb2 as wire

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page, Route

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    pytest.importorskip("playwright")
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Pages, PreferenceClient]]:
    pages = Pages(tmp_path_factory.mktemp("pages"), "lease_seconds = 60\n[web]\ntasks_ahead = 20\n")
    with pages.start() as client:
        yield pages, client
    assert pages.stop() == 0


@pytest.fixture
def context(chromium: Browser) -> Iterator[BrowserContext]:
    opened = chromium.new_context()
    opened.set_default_timeout(10_000)
    yield opened
    opened.close()


@pytest.fixture
def routed(chromium: Browser) -> Iterator[BrowserContext]:
    """Without the service worker, past which no route of the test reaches; it claims the page at any moment."""
    opened = chromium.new_context(service_workers="block")
    opened.set_default_timeout(10_000)
    yield opened
    opened.close()


def signed_in(context: BrowserContext, pages: Pages, name: str, campaign: str) -> Page:
    page = context.new_page()
    page.goto(pages.link(name, campaign=campaign))
    page.wait_for_url("**/label")
    assert "#" not in page.url  # the token does not stay in the address
    shown(page)
    return page


def shown(page: Page) -> None:
    page.wait_for_selector("#task:not([hidden])")


def done(page: Page, count: int) -> None:
    _holds(page, "#done", str(count))


def saved(page: Page) -> None:
    _holds(page, "#connection", "All saved")


def _holds(page: Page, selector: str, text: str) -> None:
    """Wait for a text. (The page's policy lets no test evaluate a condition in it, either.)"""
    from playwright.sync_api import expect

    expect(page.locator(selector)).to_have_text(text, timeout=10_000)


def answers(page: Page) -> list[str]:
    texts: list[str] = page.locator(".answer .prose").all_inner_texts()
    return texts


def comparisons(client: PreferenceClient, campaign: str) -> list[wire.StreamComparisonsResponse]:
    return list(client.comparisons(campaign=campaign, include_items=True))


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


def test_a_page_with_nothing_left_asks_now_and_then(
    service: tuple[Pages, PreferenceClient], context: BrowserContext
) -> None:
    """Once all is answered it says so and asks every few seconds, not without pause; new tasks appear by themselves."""
    pages, client = service
    client.upload([item(0, campaign="last")])
    page = signed_in(context, pages, "ann-last", "last")
    page.keyboard.press("ArrowLeft")
    saved(page)
    _holds(page, "#empty-text", "All done for now. New tasks appear here by themselves.")
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
    page.route(
        "**/api/tasks", _answering(429, '{"error": {"code": "RESOURCE_EXHAUSTED", "message": "wait"}}')
    )
    page.goto(pages.link("ann-rate", campaign="rate"))
    page.wait_for_url("**/label")
    told = "Too many requests for now. What you answered is kept here; this page tries again."
    _holds(page, "#empty-text", told)
    page.unroute("**/api/tasks")
    shown(page)


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
    _holds(page, "#connection", "Offline: 1 kept here")
    before = (page.inner_text("#prompt-text"), answers(page))
    for _ in range(2):
        page.reload()
        shown(page)
        assert (page.inner_text("#prompt-text"), answers(page)) == before
        _holds(page, "#connection", "Offline: 1 kept here")
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
        _holds(page, "#connection", "Offline: 1 kept here")
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


def test_two_tabs_that_write_at_once_lose_no_label(
    service: tuple[Pages, PreferenceClient], routed: BrowserContext
) -> None:
    """An answer that waits in one tab stays, though another tab keeps and sends one without having seen it."""
    pages, client = service
    client.upload([item(number, campaign="tabs") for number in range(2)])
    one = signed_in(routed, pages, "ida", "tabs")
    one.route("**/api/answers", _answering(503, ""))
    one.keyboard.press("ArrowLeft")
    _holds(one, "#connection", "Offline: 1 kept here")
    other = routed.new_page()
    other.route("**/api/answers", _answering(503, ""))
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


def _answering(status: int, body: str) -> Callable[[Route], None]:
    # A function of one parameter: playwright hands a partial the request as well.
    def fulfil(route: Route) -> None:
        route.fulfill(status=status, body=body)

    return fulfil


def test_what_stands_in_front_of_the_service_deletes_no_label(
    service: tuple[Pages, PreferenceClient], routed: BrowserContext
) -> None:
    """A 404 and a 400 of an ingress, or JSON that is not ours, keep the answer until the service has it."""
    pages, client = service
    client.upload([item(number, campaign="ingress") for number in range(3)])
    page = signed_in(routed, pages, "eve", "ingress")
    for count, (status, body) in enumerate(
        ((404, "<h1>404</h1>"), (400, "null"), (409, '{"error": "gone"}')), start=1
    ):
        page.route("**/api/answers", _answering(status, body))
        page.keyboard.press("ArrowLeft")
        _holds(page, "#connection", "Offline: 1 kept here")
        page.unroute("**/api/answers")
        saved(page)
        done(page, count)
    assert page.locator("#notice").is_hidden()
    assert len(comparisons(client, "ingress")) == 3


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
    _holds(page, "#notice-text", "An answer can be undone for 60 minutes. This one stands.")
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
    _holds(page, "#notice-text", "Not undone: it is too old.")
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
    _holds(page, "#notice-text", "One answer was not kept: not like this.")
    page.unroute("**/api/answers")
    page.keyboard.press("ArrowLeft")
    saved(page)
    assert len(comparisons(client, "invalid")) == 1
