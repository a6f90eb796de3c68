"""Futures made of futures: results, errors and cancellation in both directions."""

from __future__ import annotations

from concurrent.futures import CancelledError, Future

import pytest

from services.reward.futures import chained, done, failed, flattened, gathered


def test_chained_maps_results_and_passes_errors() -> None:
    """then(result) where there is one; an error of either side where not."""
    assert chained(done(2), lambda value: value + 1).result(0) == 3
    with pytest.raises(KeyError):
        chained(failed(KeyError("x")), lambda value: value).result(0)
    with pytest.raises(ZeroDivisionError):
        chained(done(0), lambda value: 1 // value).result(0)


def test_cancelling_reaches_the_source() -> None:
    """A caller that goes away cancels what has not begun; and a cancelled source cancels what hangs on it."""
    first: Future[int] = Future()
    chained(first, str).cancel()
    assert first.cancelled()
    second: Future[int] = Future()
    hanging = chained(second, str)
    second.cancel()
    second.set_running_or_notify_cancel()
    with pytest.raises(CancelledError):
        hanging.result(0)


def test_flattened_follows_the_inner_future() -> None:
    """The inner result; cancelling reaches the inner one once it is known, else the outer one."""
    outer: Future[Future[int]] = Future()
    inner: Future[int] = Future()
    flat = flattened(outer)
    outer.set_result(inner)
    inner.set_result(5)
    assert flat.result(0) == 5
    outer, inner = Future(), Future()
    flat = flattened(outer)
    outer.set_result(inner)
    flat.cancel()
    assert inner.cancelled()
    outer = Future()
    flattened(outer).cancel()
    assert outer.cancelled()


def test_gathered_waits_for_all_and_keeps_each_outcome() -> None:
    """Done when the last part is; errors stay with their part; no part at all is done at once."""
    parts: list[Future[int]] = [Future(), Future()]
    whole = gathered(parts)
    parts[0].set_exception(KeyError("x"))
    assert not whole.done()
    parts[1].set_result(1)
    bad, good = whole.result(0)
    assert isinstance(bad.exception(), KeyError)
    assert good.result() == 1
    assert gathered([]).result(0) == []
    left: list[Future[int]] = [Future(), Future()]
    gathered(left).cancel()
    assert all(part.cancelled() for part in left)
