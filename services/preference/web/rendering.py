"""Owns templates and static files: found in this package, escaped by default, named by their content."""

from __future__ import annotations

import hashlib
import mimetypes
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

_HERE = Path(__file__).parent
_STATIC = _HERE / "static"
_WORKER = "label-worker.js"
_NOTHING = "\N{EN DASH}"
_FOR_GOOD = "public, max-age=31536000, immutable"


class Renderer:
    """Pages from templates. Every value is escaped unless it comes from markdown.py."""

    def __init__(self) -> None:
        self._environment = Environment(
            loader=FileSystemLoader(_HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        names = {path.name: _digest(path) for path in _STATIC.iterdir()}
        self._environment.globals["static"] = lambda name: f"/static/{name}?{names[name]}"
        self._environment.filters["moment"] = _moment
        self._environment.filters["percent"] = _percent

    def page(
        self,
        template: str,
        *,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        **values: Any,
    ) -> Response:
        """A page. `headers` that describe another body are left out."""
        kept = {name: value for name, value in (headers or {}).items() if name != "content-type"}
        return HTMLResponse(self._environment.get_template(template).render(values), status, kept)


def static_routes() -> Sequence[BaseRoute]:
    """One route for each file; with a digest in the query, so that browsers may keep it for good."""
    return [Route(f"/static/{path.name}", _file(path), methods=["GET"]) for path in _STATIC.iterdir()]


def worker_route() -> BaseRoute:
    """The service worker, beside its page, since it may serve nothing above itself. Always asked for anew."""
    return Route(f"/{_WORKER}", _file(_STATIC / _WORKER, "no-cache"), methods=["GET"])


def _file(path: Path, keep: str = _FOR_GOOD) -> Any:
    content, digest = path.read_bytes(), _digest(path)
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"

    async def file(request: Request) -> Response:
        if request.url.query not in ("", digest):
            # Of a page by another replica, which is newer or older: kept under this name it would stay for a year.
            return PlainTextResponse("another version", 503, {"cache-control": "no-store"})
        return Response(content, media_type=kind, headers={"cache-control": keep})

    return file


def _digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=6).hexdigest()


def _moment(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}"


def _percent(share: float | None) -> str:
    return _NOTHING if share is None else f"{share:.0%}"
