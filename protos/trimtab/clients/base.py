"""What every client does around a call: a deadline, retries where they are safe, typed errors.

Retried are UNAVAILABLE and RESOURCE_EXHAUSTED with RetryInfo, nothing else: an oversized message has that
code too, and would only be refused again. The deadline covers all attempts together.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import grpc.aio

from trimtab.clients.access import Access, AccessOptions, Metadata, access_of
from trimtab.clients.channel import DEFAULT_MAX_MESSAGE_MIB, open_async_channel, open_sync_channel
from trimtab.clients.errors import OverloadedError, TrimtabClientError, UnavailableError, client_error

if TYPE_CHECKING:
    from typing_extensions import Unpack

DEFAULT_TIMEOUT_SECONDS = 60.0
# Of what may take minutes by itself: a large model is loaded, a step ends before its checkpoint is written.
LONG_TIMEOUT_SECONDS = 600.0
DEFAULT_ATTEMPTS = 4
_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 5.0

Answer = TypeVar("Answer")
_Sync = TypeVar("_Sync", bound="SyncClient")
_Async = TypeVar("_Async", bound="AsyncClient")


def pause_before_retry(
    error: TrimtabClientError, *, attempt: int, attempts: int, seconds_left: float, jitter: float
) -> float | None:
    """Seconds to wait before the next attempt; None where none should follow.

    attempt: how many there have been, from 1. jitter: in [0, 1), so that callers do not come back together.
    """
    if attempt >= attempts:
        return None
    if isinstance(error, OverloadedError):
        pause = (error.retry_seconds or 0.0) * (1 + 0.25 * jitter)
    elif isinstance(error, UnavailableError):
        full = min(_FIRST_PAUSE_SECONDS * 2 ** (attempt - 1), _LONGEST_PAUSE_SECONDS)
        pause = full * (0.5 + 0.5 * jitter)
    else:
        return None
    return pause if pause < seconds_left else None


class _Settings:
    def __init__(self, timeout_seconds: float, attempts: int, metadata: Metadata, access: Access) -> None:
        if timeout_seconds <= 0 or attempts < 1:
            raise ValueError("timeout_seconds must be above 0 and attempts at least 1")
        self.timeout_seconds = timeout_seconds
        self.attempts = attempts
        self._metadata = metadata
        self._access = access

    def long_seconds(self, given: float | None) -> float:
        """The limit of a call that may take minutes by itself: its own, else the client's, unless nobody chose that."""
        chosen = self.timeout_seconds != DEFAULT_TIMEOUT_SECONDS
        return given or (self.timeout_seconds if chosen else LONG_TIMEOUT_SECONDS)

    @property
    def metadata(self) -> Metadata:
        """What goes along with a call that begins now."""
        return self._metadata + self._access.metadata()


class SyncClient:
    """Base of the blocking clients. `target` is host:port, a gRPC target, or a channel of your own.

    access: key, certificates and what else says who calls, see AccessOptions; the channel of your own keeps
    its credentials, whether it may carry a key is for you to know.
    """

    def __init__(
        self,
        target: str | grpc.Channel,
        *,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        attempts: int = DEFAULT_ATTEMPTS,
        max_message_mib: int = DEFAULT_MAX_MESSAGE_MIB,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: Metadata = (),
        **access: Unpack[AccessOptions],
    ) -> None:
        allowed = access_of(target, access)
        self._settings = _Settings(timeout_seconds, attempts, metadata, allowed)
        self._owned = isinstance(target, str)
        self._channel: grpc.Channel = (
            open_sync_channel(target, allowed, max_message_mib=max_message_mib, credentials=credentials)
            if isinstance(target, str)
            else target
        )

    def __enter__(self: _Sync) -> _Sync:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the channel, if this client made it."""
        if self._owned:
            self._channel.close()

    def _long(self, timeout_seconds: float | None) -> float:
        return self._settings.long_seconds(timeout_seconds)

    def _call(
        self, method: Callable[..., Answer], request: Any, timeout_seconds: float | None = None
    ) -> Answer:
        settings = self._settings
        ends = time.monotonic() + (timeout_seconds or settings.timeout_seconds)
        attempt = 0
        while True:
            attempt += 1
            try:
                return method(
                    request, timeout=max(ends - time.monotonic(), 0.001), metadata=settings.metadata
                )
            except grpc.RpcError as raw:
                error = client_error(raw)
                pause = pause_before_retry(
                    error,
                    attempt=attempt,
                    attempts=settings.attempts,
                    seconds_left=ends - time.monotonic(),
                    jitter=random.random(),
                )
                if pause is None:
                    raise error from raw
            time.sleep(pause)

    def _stream(
        self,
        method: Callable[..., Iterator[Answer]],
        request: Any,
        timeout_seconds: float | None = None,
    ) -> Iterator[Answer]:
        """Messages of a stream; never retried, since some may have been used already."""
        settings = self._settings
        call = method(
            request, timeout=timeout_seconds or settings.timeout_seconds, metadata=settings.metadata
        )
        try:
            yield from call
        except grpc.RpcError as raw:
            raise client_error(raw) from raw
        finally:
            call.cancel()  # type: ignore[attr-defined]


class AsyncClient:
    """Base of the asyncio clients, otherwise the same. Make it inside the loop that uses it."""

    def __init__(
        self,
        target: str | grpc.aio.Channel,
        *,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        attempts: int = DEFAULT_ATTEMPTS,
        max_message_mib: int = DEFAULT_MAX_MESSAGE_MIB,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: Metadata = (),
        **access: Unpack[AccessOptions],
    ) -> None:
        allowed = access_of(target, access)
        self._settings = _Settings(timeout_seconds, attempts, metadata, allowed)
        self._owned = isinstance(target, str)
        self._channel: grpc.aio.Channel = (
            open_async_channel(target, allowed, max_message_mib=max_message_mib, credentials=credentials)
            if isinstance(target, str)
            else target
        )

    async def __aenter__(self: _Async) -> _Async:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the channel, if this client made it."""
        if self._owned:
            await self._channel.close()

    def _long(self, timeout_seconds: float | None) -> float:
        return self._settings.long_seconds(timeout_seconds)

    async def _call(
        self, method: Callable[..., Awaitable[Answer]], request: Any, timeout_seconds: float | None = None
    ) -> Answer:
        settings = self._settings
        ends = time.monotonic() + (timeout_seconds or settings.timeout_seconds)
        attempt = 0
        while True:
            attempt += 1
            try:
                return await method(
                    request, timeout=max(ends - time.monotonic(), 0.001), metadata=settings.metadata
                )
            except grpc.aio.AioRpcError as raw:
                error = client_error(raw)
                pause = pause_before_retry(
                    error,
                    attempt=attempt,
                    attempts=settings.attempts,
                    seconds_left=ends - time.monotonic(),
                    jitter=random.random(),
                )
                if pause is None:
                    raise error from raw
            await asyncio.sleep(pause)

    async def _stream(
        self,
        method: Callable[..., Any],
        request: Any,
        timeout_seconds: float | None = None,
    ) -> AsyncIterator[Any]:
        """Messages of a stream; never retried, since some may have been used already."""
        settings = self._settings
        call = method(
            request, timeout=timeout_seconds or settings.timeout_seconds, metadata=settings.metadata
        )
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as raw:
            raise client_error(raw) from raw
        finally:
            call.cancel()
