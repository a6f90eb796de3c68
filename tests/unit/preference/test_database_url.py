"""Which databases there are is told to whoever names another."""

from __future__ import annotations

import pytest

from services.common.errors import ConfigError
from services.preference.database import open_engine


@pytest.mark.parametrize("url", ["mysql://x", "nothing://x"])
def test_another_kind_of_database(url: str) -> None:
    """One line that says what is expected, be its driver unknown or not installed."""
    with pytest.raises(ConfigError, match=r"expected sqlite:///… or postgresql\+psycopg://…") as caught:
        open_engine(url)
    assert "\n" not in str(caught.value)
