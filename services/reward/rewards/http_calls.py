"""HTTP requests that end in time, whatever the other side does. Knows no shape of bodies.

Decision: an event loop in a thread of its own, and threads that wait for it. Rejected: a blocking client, whose
time limits begin anew with every byte, so that a server that trickles holds its caller for hours.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from services.common.errors import (
    Expired,
    InvalidInput,
    NotFound,
    Overloaded,
    ServiceError,
    TooLarge,
    TrimtabError,
    Unavailable,
)
from services.reward.rewards.calling import TryAgain, answered_error
from trimtab.clients.access import Access, check_pair, is_local

MAX_ANSWER_BYTES = 64 << 20
_LONGEST_PAUSE_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """A whole answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class HttpCalls:
    """Requests to one server; threads may share it. Proxies are taken from the environment, but to this machine;
    redirects are refused."""

    def __init__(
        self, url: str, *, access: Access, connections: int, trust: ssl.SSLContext | bool = True
    ) -> None:
        parsed = parsed_url(url)
        host = f"[{parsed.host}]" if ":" in parsed.host else parsed.host
        target = f"{host}:{parsed.port or 0}"
        try:
            access.check_target(target, secure=parsed.scheme == "https")
        except ValueError as error:
            raise InvalidInput(str(error), {"key": "https, or loopback"}) from None
        self._place = f"{parsed.scheme}://{parsed.netloc.decode()}"
        self._access = access
        self._client = httpx.AsyncClient(
            timeout=None,  # noqa: S113 - every request has one limit for all of it
            verify=trust,
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            headers={"accept-encoding": "identity", "user-agent": "trimtab"},
            trust_env=not is_local(target),
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="reward-http", daemon=True)
        self._thread.start()

    @property
    def place(self) -> str:
        """Scheme, host and port, for messages."""
        return self._place

    def ask(self, method: str, url: str, content: Any, *, ends: float) -> Any:
        """The JSON that a 2xx answers, as Python has it; `content` is sent as JSON, None: no body.

        Raises TryAgain for what is worth another attempt, else a TrimtabError.
        """
        answer = asyncio.run_coroutine_threadsafe(
            self._exchange(method, url, content, ends), self._loop
        ).result()
        if not 200 <= answer.status < 300:
            raise _refusal(self._place, answer)
        try:
            return json.loads(answer.body)
        except (ValueError, RecursionError):
            raise ServiceError(f"{self._place} answered what is no JSON") from None

    def close(self) -> None:
        """Close all connections."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        loop = self._loop
        try:
            loop.run_forever()
        finally:
            loop.run_until_complete(self._client.aclose())
            loop.run_until_complete(loop.shutdown_asyncgens())
            # Transports that were closed just now let go of their sockets in the loop's next turn.
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()

    async def _exchange(self, method: str, url: str, content: Any, ends: float) -> HttpAnswer:
        headers = dict(self._access.metadata())
        body = None
        if content is not None:
            headers["content-type"] = "application/json"
            body = json.dumps(content).encode()
        try:
            async with asyncio.timeout(max(0.0, ends - time.monotonic())):
                return await self._whole(method, url, body, headers)
        except TimeoutError:
            raise Expired(f"{self._place} has not answered in time") from None
        except httpx.TransportError as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise TryAgain(Unavailable(f"{self._place} cannot be reached: {reason}")) from None

    async def _whole(
        self, method: str, url: str, body: bytes | None, headers: Mapping[str, str]
    ) -> HttpAnswer:
        async with self._client.stream(method, url, content=body, headers=headers) as response:
            content = bytearray()
            async for part in response.aiter_raw():
                content += part
                if len(content) > MAX_ANSWER_BYTES:
                    raise ServiceError(f"{self._place} answered with more than {MAX_ANSWER_BYTES} bytes")
            return HttpAnswer(response.status_code, response.headers, bytes(content))


def access_to(url: str, *, key: str | None, key_file: Path | None, allow_plaintext: bool) -> Access:
    """The key for another server; never the environment's, which is for this one. InvalidInput."""
    try:
        return Access(key=key, key_file=key_file, allow_plaintext=allow_plaintext, environment=False)
    except (ValueError, OSError) as error:
        raise InvalidInput(f"key for {url}: {error}", {"key": "a key, or a file with one"}) from None


def parsed_url(url: str) -> httpx.URL:
    """An http or https URL with a host and without a password. InvalidInput."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise InvalidInput(f"{url!r} is no URL: {error}", {"url": "http(s)://host:port"}) from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InvalidInput(f"{url!r}: expected http://host or https://host", {"url": "http(s)://host:port"})
    if parsed.userinfo:
        raise InvalidInput(
            "the URL has a name or password in it; use key or key_file", {"url": "no password"}
        )
    return parsed


def trust(
    ca_file: Path | None, certificate_file: Path | None = None, private_key_file: Path | None = None
) -> ssl.SSLContext | bool:
    """Whom we trust over https, and who we are; True: httpx's own. Read once. Raises InvalidInput."""
    if ca_file is None and certificate_file is None:
        return True
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # ssl.SSLError too
        raise InvalidInput(f"ca_file {ca_file}: {error}", {"ca_file": "certificates in PEM"}) from None
    if certificate_file is not None and private_key_file is not None:
        try:
            check_pair(certificate_file, private_key_file)
            context.load_cert_chain(certificate_file, private_key_file)
        except (OSError, ValueError) as error:
            raise InvalidInput(str(error), {"certificate_file": "a certificate and its key in PEM"}) from None
    return context


def _refusal(place: str, answer: HttpAnswer) -> Exception:
    """What a status means here."""
    code, text = _told(answer)
    message = f"{place} answered {answer.status}{': ' if text else ''}{text}"
    pause = retry_after(answer.headers)
    if answer.status == 429:
        return TryAgain(Overloaded(message, 1.0 if pause is None else pause), pause)
    # A proxy answers 502 while what is behind it starts anew.
    if answer.status in (502, 503):
        return TryAgain(Unavailable(message), pause)
    return _final(answer.status, code, message)


def _final(status: int, code: str, message: str) -> TrimtabError:
    by_status: dict[int, type[TrimtabError]] = {
        400: InvalidInput,
        404: NotFound,
        413: TooLarge,
        422: InvalidInput,
        504: Expired,
    }
    # FAILED_PRECONDITION and others share a status with INVALID_ARGUMENT; a service like ours names them.
    if status in (400, 409) and code:
        return answered_error(code, message)
    return by_status.get(status, ServiceError)(message)


def _told(answer: HttpAnswer) -> tuple[str, str]:
    """gRPC's name for the error, where there is one, and its text in a line."""
    try:
        content = json.loads(answer.body)
        error = content.get("error", content)
        told = error if isinstance(error, dict) else {"message": error}
        code, text = told.get("code"), told.get("message", told.get("detail", ""))
    except (ValueError, RecursionError, AttributeError):
        code, text = "", answer.body[:400].decode(errors="replace")
    return code if isinstance(code, str) else "", " ".join(str(text).split())[:200]


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that Retry-After asks for, RFC 9110; None where it says nothing that can be read."""
    text = headers.get("retry-after", "").strip()
    try:
        if text.isdecimal():
            return min(float(text), _LONGEST_PAUSE_SECONDS)
        seconds = (email.utils.parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return None
    return min(max(seconds, 0.0), _LONGEST_PAUSE_SECONDS)
