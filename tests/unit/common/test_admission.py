"""Places for calls: who is refused, how that is told, and how fast refusals come."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from services.common import admission
from services.common.admission import Admission, Full
from services.common.errors import Overloaded


def refuse(places: Admission, times: int) -> None:
    for _ in range(times):
        with pytest.raises(Full), places.place():
            pass


def test_beyond_the_limit_it_is_refused_with_a_hint() -> None:
    """Held places count, freed ones do not, also where the work failed."""
    places = Admission(1)
    with places.place():
        with pytest.raises(Overloaded) as caught, places.place():
            pass
        assert caught.value.retry_seconds == 1.0
    with pytest.raises(ValueError, match="work"), places.place():
        raise ValueError("work")
    with places.place():
        assert places.count == 1


def test_a_storm_is_one_line_a_second() -> None:
    """The first refusal at once, then how many there were, not each."""
    now = [0.0]
    places = Admission(0, clock=lambda: now[0])
    with capture_logs() as told:
        refuse(places, 1000)
        now[0] = 1.5
        refuse(places, 1)
    assert [(one["log_level"], one["refused"]) for one in told] == [("warning", 1), ("warning", 1000)]


async def test_many_refusals_at_once_come_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """500 a second: one waits for 2 ms, the hundredth of those at once for 200, none longer than 5 s."""
    waits, go = list[float](), asyncio.Event()

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        await go.wait()

    monkeypatch.setattr(admission.asyncio, "sleep", sleep)
    places = Admission(0)
    lingering = [asyncio.ensure_future(places.linger()) for _ in range(3000)]
    while len(waits) < 3000:
        await asyncio.wait(lingering, timeout=0.01)
    assert (waits[0], waits[99], waits[-1]) == (0.002, 0.2, 5.0)
    go.set()
    await asyncio.gather(*lingering)
    await places.linger()
    assert waits[-1] == 0.002
