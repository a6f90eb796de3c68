"""Channels that are rebuilt when their certificate files change, without a dropped call. Knows no service.

gRPC never reloads a client's certificates. A renewing channel makes a new channel for the calls to come; the old
one is closed when the last of its calls has ended.

    stub ─▶ method ─▶ Generations.begin() ─▶ the newest channel's method ─▶ call ends ─▶ Generations.end()
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any, cast

import grpc
import grpc.aio

from trimtab.clients.access import TlsOptions
from trimtab.clients.files import Watched

_log = logging.getLogger(__name__)


class Generation:
    """One channel, its methods by kind and name, and how many calls are in it."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self.methods: dict[tuple[str, str], Any] = {}
        self.calls = 0


class Generations:
    """The newest channel and the ones that still have calls. Safe to use from several threads.

    make: a channel of credentials. close: ends a channel that has no call any more.
    """

    def __init__(
        self,
        tls: TlsOptions,
        make: Callable[[grpc.ChannelCredentials], Any],
        close: Callable[[Any], None],
    ) -> None:
        self._tls = tls
        self._make = make
        self._close = close
        self._lock = threading.Lock()
        self._watched = Watched(tls.files)
        self._newest = Generation(make(tls.credentials()))
        self._older: set[Generation] = set()

    def begin(self) -> Generation:
        """The channel for a call that begins now. The call must end()."""
        with self._lock:
            if self._watched.changed():
                self._renew()
            self._newest.calls += 1
            return self._newest

    def end(self, generation: Generation) -> None:
        """A call has ended."""
        with self._lock:
            generation.calls -= 1
            self._close_idle()

    def channels(self) -> list[Any]:
        """All that are open."""
        with self._lock:
            return [each.channel for each in (*self._older, self._newest)]

    def _renew(self) -> None:
        try:
            credentials = self._tls.credentials()
        except (OSError, ValueError) as error:
            # In the middle of a rotation; they are looked at again when they change again.
            _log.warning("certificate files refused, the old ones stay: %s", error)
            return
        self._older.add(self._newest)
        self._newest = Generation(self._make(credentials))
        self._close_idle()

    def _close_idle(self) -> None:
        for generation in [each for each in self._older if not each.calls]:
            self._older.discard(generation)
            self._close(generation.channel)


class _Method:
    """One method over all generations."""

    def __init__(self, generations: Generations, kind: str, name: str, options: dict[str, Any]) -> None:
        self._generations = generations
        self._kind = kind
        self._name = name
        self._options = options

    def _of(self, generation: Generation) -> Any:
        found = generation.methods.get((self._kind, self._name))
        if found is None:
            found = getattr(generation.channel, self._kind)(self._name, **self._options)
            generation.methods[self._kind, self._name] = found
        return found


class _BlockingMethod(_Method):
    """Returns when the call has ended."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        generation = self._generations.begin()
        try:
            return self._of(generation)(*arguments, **options)
        finally:
            self._generations.end(generation)


class _StreamMethod(_Method):
    """Returns a call that ends later."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        generation = self._generations.begin()
        try:
            call = self._of(generation)(*arguments, **options)
        except BaseException:
            self._generations.end(generation)
            raise
        if not call.add_callback(lambda: self._generations.end(generation)):
            self._generations.end(generation)
        return call


class _AsyncMethod(_Method):
    """Returns a call of asyncio's, of any kind."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        generation = self._generations.begin()
        try:
            call = self._of(generation)(*arguments, **options)
        except BaseException:
            self._generations.end(generation)
            raise
        call.add_done_callback(lambda _call: self._generations.end(generation))
        return call


class RenewingChannel:
    """As much of grpc.Channel as stubs and clients use."""

    def __init__(self, tls: TlsOptions, make: Callable[[grpc.ChannelCredentials], grpc.Channel]) -> None:
        self._generations = Generations(tls, make, lambda channel: channel.close())

    def unary_unary(self, method: str, *arguments: Any, **options: Any) -> Any:
        """See grpc.Channel; so are the next three."""
        return _BlockingMethod(self._generations, "unary_unary", method, _named(arguments, options))

    def stream_unary(self, method: str, *arguments: Any, **options: Any) -> Any:
        """A stream of requests, one answer."""
        return _BlockingMethod(self._generations, "stream_unary", method, _named(arguments, options))

    def unary_stream(self, method: str, *arguments: Any, **options: Any) -> Any:
        """One request, a stream of answers."""
        return _StreamMethod(self._generations, "unary_stream", method, _named(arguments, options))

    def stream_stream(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Streams both ways."""
        return _StreamMethod(self._generations, "stream_stream", method, _named(arguments, options))

    def close(self) -> None:
        """Close them all; calls in progress end."""
        for channel in self._generations.channels():
            channel.close()


class AsyncRenewingChannel:
    """As much of grpc.aio.Channel as stubs and clients use."""

    def __init__(self, tls: TlsOptions, make: Callable[[grpc.ChannelCredentials], grpc.aio.Channel]) -> None:
        self._closing: set[asyncio.Task[None]] = set()
        self._generations = Generations(tls, make, self._close_later)

    def unary_unary(self, method: str, *arguments: Any, **options: Any) -> Any:
        """See grpc.aio.Channel; so are the next three."""
        return self._method("unary_unary", method, arguments, options)

    def stream_unary(self, method: str, *arguments: Any, **options: Any) -> Any:
        """A stream of requests, one answer."""
        return self._method("stream_unary", method, arguments, options)

    def unary_stream(self, method: str, *arguments: Any, **options: Any) -> Any:
        """One request, a stream of answers."""
        return self._method("unary_stream", method, arguments, options)

    def stream_stream(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Streams both ways."""
        return self._method("stream_stream", method, arguments, options)

    async def close(self, grace: float | None = None) -> None:
        """Close them all; calls in progress end, after `grace` seconds at most."""
        for channel in self._generations.channels():
            await channel.close(grace)
        if self._closing:
            await asyncio.wait(set(self._closing))

    def _method(self, kind: str, method: str, arguments: Any, options: dict[str, Any]) -> _AsyncMethod:
        return _AsyncMethod(self._generations, kind, method, _named(arguments, options))

    def _close_later(self, channel: grpc.aio.Channel) -> None:
        task = asyncio.ensure_future(cast("Any", channel.close()))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


def _named(arguments: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
    """Stubs give the two serialisers by name; by position is allowed, too."""
    return {**dict(zip(("request_serializer", "response_deserializer"), arguments, strict=False)), **options}
