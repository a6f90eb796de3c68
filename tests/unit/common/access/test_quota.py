"""Numbers of the token bucket."""

from __future__ import annotations

import pytest

from services.common.access import quota
from services.common.access.quota import Quotas
from services.common.errors import Overloaded, TooLarge


def take(quotas: Quotas, rows: int, now: float, name: str = "a", per_minute: int = 60) -> None:
    quotas.take(name, rows, per_minute=per_minute, now=now)


def refused(quotas: Quotas, rows: int, now: float) -> float:
    with pytest.raises(Overloaded) as caught:
        take(quotas, rows, now)
    return caught.value.retry_seconds


def test_a_minutes_rows_at_once_then_one_a_second() -> None:
    """60 a minute: 60 at once pass, the 61st in one second, the ten after it in ten."""
    quotas = Quotas()
    take(quotas, 60, now=100.0)
    assert refused(quotas, 1, now=100.0) == pytest.approx(1.0)
    assert refused(quotas, 10, now=100.0) == pytest.approx(10.0)
    assert refused(quotas, 1, now=100.75) == pytest.approx(0.25)
    take(quotas, 1, now=101.0)
    assert refused(quotas, 1, now=101.0) == pytest.approx(1.0)


def test_the_time_that_is_named_is_true() -> None:
    """After exactly retry_seconds the same call passes, and not a little before."""
    quotas = Quotas()
    take(quotas, 50, now=0.0)
    seconds = refused(quotas, 37, now=3.0)
    assert seconds == pytest.approx(24.0)
    assert refused(quotas, 37, now=3.0 + seconds - 0.01) == pytest.approx(0.01)
    take(quotas, 37, now=3.0 + seconds)


def test_a_refused_call_takes_nothing() -> None:
    """All rows or none: a smaller call still passes."""
    quotas = Quotas()
    take(quotas, 50, now=0.0)
    refused(quotas, 11, now=0.0)
    take(quotas, 10, now=0.0)


def test_what_is_given_back_can_be_taken_again() -> None:
    """Rows that were not worked on count no more; a bucket holds a minute's at most, and an unknown one stays so."""
    quotas = Quotas()
    take(quotas, 60, now=0.0)
    quotas.give_back("a", 20)
    take(quotas, 20, now=0.0)
    assert refused(quotas, 1, now=0.0) == pytest.approx(1.0)
    quotas.give_back("a", 60)
    take(quotas, 60, now=30.0)
    assert refused(quotas, 1, now=30.0) == pytest.approx(1.0)
    quotas.give_back("nobody", 5)
    take(quotas, 60, now=30.0, name="nobody")


def test_a_pause_fills_one_minute_and_no_more() -> None:
    """After an hour there are 60 rows, not 3,600."""
    quotas = Quotas()
    take(quotas, 60, now=0.0)
    take(quotas, 60, now=3600.0)
    assert refused(quotas, 1, now=3600.0) == pytest.approx(1.0)


def test_names_have_buckets_of_their_own() -> None:
    """One caller's rows are not another's."""
    quotas = Quotas()
    take(quotas, 60, now=0.0)
    take(quotas, 60, now=0.0, name="b")


def test_more_than_ever_fits_is_not_worth_a_retry() -> None:
    """A call above the whole quota has no time to come back at."""
    with pytest.raises(TooLarge, match="61 rows in one call, a may have 60 a minute"):
        take(Quotas(), 61, now=0.0)


def test_a_smaller_quota_counts_at_once() -> None:
    """A key whose quota was lowered has at most the new one left."""
    quotas = Quotas()
    take(quotas, 1, now=0.0, per_minute=1000)
    with pytest.raises(Overloaded):
        for _ in range(2):
            take(quotas, 6, now=0.0, per_minute=10)


def test_many_names_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buckets that are full again are forgotten; the others keep their count."""
    monkeypatch.setattr(quota, "_MANY", 10)
    quotas = Quotas()
    for number in range(1000):
        take(quotas, 60, now=float(number * 10), name=str(number))
    assert len(quotas._buckets) <= 11
    with pytest.raises(Overloaded):
        take(quotas, 60, now=9990.0, name="999")
