"""A browser, the preference service with its pages, and contexts of that browser."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.fakes.pages import Pages, browser
from trimtab.clients.preference import PreferenceClient

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext


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
