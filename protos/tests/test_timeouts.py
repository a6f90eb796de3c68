"""How long a client waits for a call."""

from __future__ import annotations

import pytest

from trimtab.clients.access import Access
from trimtab.clients.base import DEFAULT_TIMEOUT_SECONDS, LONG_TIMEOUT_SECONDS, _Settings


@pytest.mark.parametrize(
    ("of_client", "given", "expected"),
    [
        (DEFAULT_TIMEOUT_SECONDS, None, LONG_TIMEOUT_SECONDS),
        (DEFAULT_TIMEOUT_SECONDS, 5.0, 5.0),
        (7.0, None, 7.0),
        (1200.0, None, 1200.0),
        (7.0, 5.0, 5.0),
    ],
)
def test_what_takes_minutes_has_them(of_client: float, given: float | None, expected: float) -> None:
    """Loading a model and writing a checkpoint have ten minutes, unless somebody chose a limit."""
    settings = _Settings(of_client, 1, (), Access(environment=False))
    assert settings.long_seconds(given) == expected
