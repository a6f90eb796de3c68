"""Requests to the API server, asynchronous, objects as plain dictionaries. Knows no pod."""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from orchestrator.cluster.client.connect import connect

Object = dict[str, Any]
SECONDS = 10.0
WATCH_SECONDS = 240
MERGE = "application/merge-patch+json"


class ApiError(Exception):
    """What the server answered instead of the object; status 0 where it did not answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Api:
    """The server of a kubeconfig."""

    def __init__(self, kubeconfig: Path) -> None:
        settings = connect(kubeconfig).configuration
        self.url = str(settings.host).rstrip("/")
        # Asked, not looked up: the client's releases keep it under different names.
        token = settings.auth_settings().get("BearerToken", {}).get("value", "")
        self._client = httpx.AsyncClient(
            base_url=self.url,
            verify=_trust(settings) if self.url.startswith("https") else True,
            headers={"Authorization": token} if token else {},
            timeout=SECONDS,
            limits=httpx.Limits(max_connections=64),
            trust_env=False,
        )

    @property
    def place(self) -> tuple[str, int]:
        """Host and port, as pods are told them."""
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)

    async def close(self) -> None:
        """Let go of connections."""
        await self._client.aclose()

    async def get(self, path: str, **params: Any) -> Object:
        """An object or a list."""
        return await self._ask("GET", path, params=params)

    async def find(self, path: str) -> Object | None:
        """An object, None where there is none."""
        try:
            return await self.get(path)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def create(self, path: str, item: Mapping[str, Any]) -> Object:
        """POST."""
        return await self._ask("POST", path, json=item)

    async def patch(self, path: str, patch: Mapping[str, Any]) -> Object:
        """A merge patch."""
        content = json.dumps(patch).encode()
        return await self._ask("PATCH", path, content=content, headers={"Content-Type": MERGE})

    async def delete(self, path: str, *, grace: int | None = None, uid: str = "") -> None:
        """Delete; one that is gone already is fine."""
        options: Object = {"apiVersion": "v1", "kind": "DeleteOptions"}
        options |= {} if grace is None else {"gracePeriodSeconds": grace}
        options |= {"preconditions": {"uid": uid}} if uid else {}
        try:
            await self._ask("DELETE", path, json=options)
        except ApiError as error:
            if error.status not in (404, 409):
                raise

    async def follow(self, path: str, put: Callable[[Object], None], drop: Callable[[Object], None]) -> None:
        """Tell all objects of a resource and every change, for ever. Errors are waited out."""
        known: dict[tuple[str, str], Object] = {}
        while True:
            try:
                listing = await self.get(path)
                there = {_key(item): item for item in listing["items"]}
                for item in [item for key, item in known.items() if key not in there]:
                    drop(item)
                known = there
                for item in there.values():
                    put(item)
                version = listing["metadata"]["resourceVersion"]
                async for kind, item in self._watch(path, version):
                    if kind == "DELETED":
                        known.pop(_key(item), None)
                        drop(item)
                    elif kind in ("ADDED", "MODIFIED"):
                        known[_key(item)] = item
                        put(item)
            except (ApiError, httpx.HTTPError, json.JSONDecodeError) as error:
                print(f"watch of {path}: {error}", file=sys.stderr, flush=True)
                await asyncio.sleep(0.5)

    async def _watch(self, path: str, version: str) -> AsyncIterator[tuple[str, Object]]:
        """Until the server ends it. Raises ApiError where it is asked to list anew."""
        while True:
            params = {
                "watch": "true",
                "resourceVersion": version,
                "timeoutSeconds": WATCH_SECONDS,
                "allowWatchBookmarks": "true",
            }
            timeout = httpx.Timeout(SECONDS, read=WATCH_SECONDS + 30)
            async with self._client.stream("GET", path, params=params, timeout=timeout) as answer:
                if answer.status_code != 200:
                    raise ApiError(answer.status_code, (await answer.aread()).decode(errors="replace")[:300])
                async for line in answer.aiter_lines():
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        raise ApiError(int(event["object"].get("code") or 500), str(event["object"]))
                    version = event["object"]["metadata"]["resourceVersion"]
                    yield event["type"], event["object"]

    async def _ask(self, method: str, path: str, **options: Any) -> Object:
        try:
            answer = await self._client.request(method, path, **options)
        except httpx.HTTPError as error:
            raise ApiError(0, f"{method} {path}: {error or type(error).__name__}") from None
        if answer.status_code >= 400:
            try:
                message = str(answer.json().get("message", ""))
            except (ValueError, AttributeError):
                message = answer.text[:300]
            raise ApiError(answer.status_code, f"{method} {path}: {message}")
        found: Object = answer.json()
        return found


def _key(item: Object) -> tuple[str, str]:
    return item["metadata"].get("namespace", ""), item["metadata"]["name"]


def _trust(settings: Any) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=settings.ssl_ca_cert)
    if not settings.verify_ssl:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if settings.cert_file:
        context.load_cert_chain(settings.cert_file, settings.key_file)
    return context
