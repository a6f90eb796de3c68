"""Owns the connections to the queue server: retries, scripts, what an error means. Knows no stage.

Two connections: one that may block in a read, one for everything else, so that a lease can be renewed while
nothing arrives. redis-py's own retries are off, since they hide that the connection was lost: whoever holds
leases has to know. Files of TLS are read anew by each new connection.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from typing import Any, cast
from urllib.parse import urlsplit

import redis.asyncio
import structlog
from redis import exceptions
from redis.asyncio.connection import RedisSSLContext
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from services.common.errors import (
    ConfigError,
    Corrupted,
    LostOwnership,
    ServiceError,
    TrimtabError,
    Unauthenticated,
    Unavailable,
)
from services.common.stages.tls_files import TlsFiles

SOCKET_TIMEOUT_SECONDS = 10.0
# A single blocking read stays well below the socket's time limit.
LONGEST_BLOCK_SECONDS = 4.0
_FIRST_PAUSE_SECONDS = 0.02
_LONGEST_PAUSE_SECONDS = 1.0

_EXPECTED_URL = (
    "expected redis://user:password@host:port/db (or rediss://, unix://), the password percent-encoded"
)

Argument = str | bytes | int | float
# What a server says that refuses a command inside a script: Valkey, then Redis.
_REFUSED_IN_SCRIPT = ("ACL failure in script", "The user executing the script can't")
_TRANSIENT = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ReadOnlyError,
    exceptions.OutOfMemoryError,
    exceptions.ClusterDownError,
    exceptions.TryAgainError,
    OSError,
)
# First words of answers that pass, which redis-py has no exception for: a full disk under the append-only file, a
# failover that ends a blocking read, a script that takes long, replicas that are not there.
_PASSING = frozenset({"MISCONF", "UNBLOCKED", "BUSY", "NOREPLICAS"})
_RIGHTS = (exceptions.AuthenticationError, exceptions.NoPermissionError)
# What redis-py would tell the server of itself by CLIENT SETINFO, which our users have no right to.
_UNASKED = frozenset({"driver_info", "lib_name", "lib_version"})
# Set around a call that must not go out on a connection made for it.
_standing_only: ContextVar[bool] = ContextVar("standing_only", default=False)
_log = structlog.get_logger(__name__)


class Script:
    """A Lua script and its digest."""

    __slots__ = ("body", "sha")

    def __init__(self, body: str) -> None:
        self.body = body
        self.sha = hashlib.sha1(body.encode(), usedforsecurity=False).hexdigest()


class Link:
    """Commands to one server, repeated while it is away, for at most `patience_seconds` each.

    Everything sent through it must bear being sent twice: an answer may get lost after the deed.
    """

    def __init__(
        self,
        url: str,
        *,
        patience_seconds: float,
        clock: Callable[[], float] = time.monotonic,
        tls: TlsFiles | None = None,
    ) -> None:
        self._place = _without_password(url)
        self._tls = tls or TlsFiles()
        self._patience = patience_seconds
        self._clock = clock
        self._away = False
        self.connected_at = clock()
        self._used = False
        self._commands = self._client(url)
        self._reads = self._client(url)

    def _client(self, url: str) -> redis.asyncio.Redis:
        self._tls.check(url)
        try:
            client = redis.asyncio.Redis.from_url(
                url,
                single_connection_client=True,
                protocol=2,
                retry=Retry(NoBackoff(), 0),
                redis_connect_func=self._on_connect,
                socket_timeout=SOCKET_TIMEOUT_SECONDS,
                socket_connect_timeout=SOCKET_TIMEOUT_SECONDS,
            )
        except (ValueError, TypeError):
            # What redis-py says of it may quote a part of the password.
            raise ConfigError(f"queue.url: {self._place}: {_EXPECTED_URL}") from None
        if self._tls:
            client.connection_pool.connection_class = _connection_with(self._tls)
        # Answers are wanted as they come, not as redis-py's dictionaries.
        client.response_callbacks.clear()
        return client

    async def _on_connect(self, connection: Any) -> None:
        if _standing_only.get():
            raise exceptions.ConnectionError("the connection was lost")
        for told in _UNASKED.intersection(vars(connection)):
            setattr(connection, told, None)
        await connection.on_connect()
        self.connected_at = self._clock()

    async def command(self, *arguments: Argument) -> Any:
        """One command on the connection that never blocks."""
        return await self._repeat(self._commands, arguments)

    async def blocking(self, *arguments: Argument) -> Any:
        """One command that may block, for at most LONGEST_BLOCK_SECONDS."""
        if not self._used:
            # Both connections begin together, so that `connected_at` tells of a loss, not of a first use.
            self._used = True
            await self.command("PING")
        return await self._repeat(self._reads, arguments)

    async def script(self, script: Script, keys: Sequence[str], arguments: Sequence[Argument]) -> Any:
        """Run a script by its digest; send its body only where the server does not know it."""
        try:
            return await self.command("EVALSHA", script.sha, len(keys), *keys, *arguments)
        except exceptions.NoScriptError:
            return await self.command("EVAL", script.body, len(keys), *keys, *arguments)

    async def script_if_connected(
        self, script: Script, keys: Sequence[str], arguments: Sequence[Argument]
    ) -> Any | None:
        """Run a script only on a connection that stood before; None where it was lost, then it is made anew.

        For claims: a repetition after a reconnect would take over from owners who could not renew either.
        """
        if self._away:
            await self.command("PING")
            return None
        token = _standing_only.set(True)
        try:
            return await self._once(script, keys, arguments)
        except (*_TRANSIENT, exceptions.ResponseError) as error:
            if not _passes(error):
                raise _translate(error, self._place) from error
            _standing_only.set(False)
            await self.command("PING")
            return None
        finally:
            _standing_only.reset(token)

    async def _once(self, script: Script, keys: Sequence[str], arguments: Sequence[Argument]) -> Any:
        execute = cast("Callable[..., Awaitable[Any]]", self._commands.execute_command)
        try:
            return await execute("EVALSHA", script.sha, len(keys), *keys, *arguments)
        except exceptions.NoScriptError:
            return await execute("EVAL", script.body, len(keys), *keys, *arguments)

    async def _repeat(self, client: redis.asyncio.Redis, arguments: tuple[Argument, ...]) -> Any:
        execute = cast("Callable[..., Awaitable[Any]]", client.execute_command)
        give_up = time.monotonic() + self._patience
        pause, told = _FIRST_PAUSE_SECONDS, False
        while True:
            try:
                answer = await execute(*arguments)
            except exceptions.NoScriptError:
                raise
            except (*_TRANSIENT, exceptions.ResponseError) as error:
                if not _passes(error):
                    raise _translate(error, self._place) from error
                self._note_away(error, told=told)
                told = True
                if time.monotonic() + pause > give_up:
                    raise Unavailable(f"queue server {self._place} is away: {_one_line(error)}") from error
            else:
                self._note_back(told=told)
                return answer
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    def _note_away(self, error: Exception, *, told: bool) -> None:
        if not told:
            _log.warning("queue server is away, trying again", server=self._place, error=_one_line(error))
        self._away = True

    def _note_back(self, *, told: bool) -> None:
        """told: of this call; a full server refuses one call while others still go through."""
        if told:
            _log.info("queue server is back", server=self._place)
        if self._away:
            # The connection may have stood, as to a server whose disk was full: nobody could renew there either.
            self.connected_at = self._clock()
        self._away = False

    async def close(self) -> None:
        """Close both connections."""
        for client in (self._reads, self._commands):
            await client.aclose()


def _connection_with(tls: TlsFiles) -> type[redis.asyncio.SSLConnection]:
    """redis-py's own trusts the system's authorities beside the one that is named, and reads files once."""

    class Context(RedisSSLContext):
        __slots__ = ()

        def get(self) -> ssl.SSLContext:
            return tls.context()

    class Connection(redis.asyncio.SSLConnection):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            self.ssl_context = Context()

    return Connection


class NoGroupError(ServiceError):
    """The stream or its consumer group is not there. Never leaves this package."""


def _passes(error: Exception) -> bool:
    """Whether the same command may do a moment later; what is no matter of rights."""
    if isinstance(error, _RIGHTS):
        return False
    return isinstance(error, _TRANSIENT) or _one_line(error).partition(" ")[0] in _PASSING


def _translate(error: Exception, place: str) -> TrimtabError:
    """The error of our tree that an answer of the server, or of one of our scripts, stands for."""
    text = _one_line(error)
    if isinstance(error, _RIGHTS):
        return Unauthenticated(f"queue server {place}: {text}")
    code, _, rest = text.partition(" ")
    if code == "NOGROUP":
        return NoGroupError(text)
    if code == "FENCED":
        return LostOwnership(rest)
    if code == "EMPTIED":
        return Unavailable(f"queue server {place}: {rest}")
    if code in {"WRONGTYPE", "WRONGDEST"}:
        return Corrupted(f"queue server {place}: {rest}")
    if text.startswith(_REFUSED_IN_SCRIPT):
        what = text.partition(" script: ")[0]
        return Unauthenticated(f"queue server {place}: {what}; its ACL LOG names user, command and key")
    return ServiceError(f"queue server {place}: {text}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _without_password(url: str) -> str:
    """The URL as it may be logged.

    Raises ConfigError, without a word of it, where no host can be told from what may be a password.
    """
    try:
        parts = urlsplit(url)
        # Asking for a port that is no number raises, too.
        plain = parts.port != 0 and "@" not in parts.path + parts.query + parts.fragment
    except ValueError:
        plain = False
    if not plain:
        raise ConfigError(f"queue.url: {_EXPECTED_URL}")
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"
