"""Small algebra of concurrent.futures.Future: one made of another, one made of several. Knows no scoring."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

First = TypeVar("First")
Second = TypeVar("Second")


def done(value: First) -> Future[First]:
    """A future that has this result already."""
    future: Future[First] = Future()
    future.set_result(value)
    return future


def failed(error: BaseException) -> Future[Any]:
    """A future that has this error already."""
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


def chained(first: Future[First], then: Callable[[First], Second]) -> Future[Second]:
    """The future of then(result of `first`). Its cancellation cancels `first`; errors pass through."""
    second: Future[Second] = Future()

    def finish(ended: Future[First]) -> None:
        if ended.cancelled():
            second.cancel()
        elif second.set_running_or_notify_cancel():
            settle(second, lambda: then(ended.result()))

    first.add_done_callback(finish)
    second.add_done_callback(lambda ended: first.cancel() if ended.cancelled() else None)
    return second


def flattened(outer: Future[Future[First]]) -> Future[First]:
    """The result of the future that `outer` gives. Cancelling it cancels whichever of the two is under way."""
    flat: Future[First] = Future()
    under_way: list[Future[Any]] = [outer]

    def finish(inner: Future[First]) -> None:
        if inner.cancelled():
            flat.cancel()
        elif flat.set_running_or_notify_cancel():
            settle(flat, inner.result)

    def follow(ended: Future[Future[First]]) -> None:
        if ended.cancelled():
            flat.cancel()
        elif ended.exception() is not None:
            if flat.set_running_or_notify_cancel():
                flat.set_exception(ended.exception())
        else:
            under_way.append(ended.result())
            if flat.cancelled():
                ended.result().cancel()
            ended.result().add_done_callback(finish)

    outer.add_done_callback(follow)
    flat.add_done_callback(lambda ended: under_way[-1].cancel() if ended.cancelled() else None)
    return flat


def gathered(parts: Sequence[Future[First]]) -> Future[list[Future[First]]]:
    """Done when all parts are, each with its own result or error. Its cancellation cancels every part."""
    whole: Future[list[Future[First]]] = Future()
    left = len(parts)
    lock = threading.Lock()

    def count(_: Future[First]) -> None:
        nonlocal left
        with lock:
            left -= 1
            last = left == 0
        if last and whole.set_running_or_notify_cancel():
            whole.set_result(list(parts))

    if not parts:
        return done([])
    for part in parts:
        part.add_done_callback(count)
    whole.add_done_callback(lambda ended: [part.cancel() for part in parts] if ended.cancelled() else None)
    return whole


def settle(future: Future[Second], make: Callable[[], Second]) -> None:
    """End a running future with what `make` gives or raises."""
    try:
        value = make()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(value)
