"""/v1/admin/models: load, swap, take away, shadow. Translates to administration.py and back, nothing else."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from services.common.validation import require
from services.reward.administration import Administration, checked_definition, parse_definition
from services.reward.config import NAME_PATTERN, SourceSpec
from services.reward.http.calls import Calls, json_response
from services.reward.http.models import ModelAnswer, describe
from services.reward.http.shapes import Strict


class SwapRequest(Strict):
    """Either a path, or a definition."""

    path: str = Field(
        "", max_length=4096, description="A folder of safetensors on the server, or rule:<rule>."
    )
    definition: dict[str, Any] | None = Field(
        None, description="The fields of a [[models]] table of the configuration, without its name."
    )

    def source(self, name: str) -> SourceSpec:
        """What is to be opened. InvalidInput."""
        if self.definition is None:
            return parse_definition(name, self.path, "")
        require(not self.path, "path", "expected either a path or a definition")
        return checked_definition(self.definition)


class LoadRequest(SwapRequest):
    """A name, and either a path or a definition."""

    name: str = Field(min_length=1, max_length=63, pattern=NAME_PATTERN)


class ShadowRequest(Strict):
    """Which model scores the same rows, for comparison only."""

    shadow: str = Field("", max_length=63, description="Empty: none any more.")


class LoadAnswer(BaseModel):
    """What is there now."""

    model: ModelAnswer


class SwapAnswer(LoadAnswer):
    """What is there now, and what was."""

    replaced_digest: str


class AdminRoutes:
    """The handlers; every one is refused to whoever may only score."""

    def __init__(self, calls: Calls, administration: Administration) -> None:
        self._calls = calls
        self._administration = administration

    async def load(self, request: Request) -> Response:
        """Load a model or rule behind a new name; the answer comes when it can score."""
        body: LoadRequest = await self._asked(request, LoadRequest)
        slot = await self._administration.load(body.name, body.source(body.name))
        return json_response({"model": describe(slot)}, 201)

    async def swap(self, request: Request) -> Response:
        """Put another model behind a name; requests that began before end on the old one."""
        body: SwapRequest = await self._asked(request, SwapRequest)
        name = _name(request)
        slot, replaced = await self._administration.swap(name, body.source(name))
        return json_response({"model": describe(slot), "replaced_digest": replaced})

    async def unload(self, request: Request) -> Response:
        """Take a model away."""
        self._permitted(request)
        await self._administration.unload(_name(request))
        return Response(status_code=204)

    async def set_shadow(self, request: Request) -> Response:
        """Let another model score the same rows for comparison."""
        body: ShadowRequest = await self._asked(request, ShadowRequest)
        await self._administration.set_shadow(_name(request), body.shadow)
        return Response(status_code=204)

    async def _asked(self, request: Request, kind: type[BaseModel]) -> Any:
        self._permitted(request)
        return await self._calls.parsed(request, kind)

    def _permitted(self, request: Request) -> None:
        self._calls.permitted(request, "admin")


def _name(request: Request) -> str:
    return str(request.path_params["name"])
