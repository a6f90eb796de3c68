"""What tests do on the annotator's page, and wait for there."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.fakes.pages import Pages
from trimtab.clients.preference import PreferenceClient
from trimtab.preference.v1 import preference_pb2 as wire

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page, Route


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
    holds(page, "#done", str(count))


def saved(page: Page) -> None:
    holds(page, "#connection", "All saved")


def holds(page: Page, selector: str, text: str) -> None:
    """Wait for a text. (The page's policy lets no test evaluate a condition in it, either.)"""
    from playwright.sync_api import expect

    expect(page.locator(selector)).to_have_text(text, timeout=10_000)


def answers(page: Page) -> list[str]:
    texts: list[str] = page.locator(".answer .prose").all_inner_texts()
    return texts


def comparisons(client: PreferenceClient, campaign: str) -> list[wire.StreamComparisonsResponse]:
    return list(client.comparisons(campaign=campaign, include_items=True))


def answering(status: int, body: str) -> Callable[[Route], None]:
    """In place of the service, whatever is asked."""

    # A function of one parameter: playwright hands a partial the request as well.
    def fulfil(route: Route) -> None:
        route.fulfill(status=status, body=body)

    return fulfil


def unheard(times: int) -> Callable[[Route], None]:
    """The service has what is sent, and so many times nobody hears of it."""
    left = [times]

    def pass_on(route: Route) -> None:
        left[0] -= 1
        if left[0] < 0:
            route.continue_()
        else:
            route.fetch()
            route.abort()

    return pass_on
