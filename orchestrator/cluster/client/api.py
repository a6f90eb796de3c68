"""Requests to the API server: objects in and out as plain dictionaries. Knows no run.

The official dynamic client sends them; its discovery is left out, since the kinds are known (control/resources.py):
one request less for each at the start, and no right to discover is needed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

import urllib3
from kubernetes.client import ApiClient
from kubernetes.client.exceptions import ApiException
from kubernetes.dynamic import DynamicClient

from orchestrator.cluster.client.errors import error_of
from orchestrator.cluster.control.resources import RESOURCES, Object, Ref, Resource
from services.common.errors import Unavailable

REQUEST_SECONDS = 4.0
"""Less than what lies between the end of our lease's renewals and its own end (election.Timing)."""
LIST_SECONDS = 60.0
PAGE = 500
MERGE, APPLY = "application/merge-patch+json", "application/apply-patch+yaml"


@dataclass(frozen=True, slots=True)
class Listing:
    """A list, and the version to watch from."""

    items: list[Object]
    version: str


class Api:
    """The API server. `gate` is called before each write and may raise; `wrote` after each, with kind and verb.

    `resources`: where it has each kind, and in which version.
    """

    def __init__(
        self,
        client: ApiClient,
        *,
        gate: Callable[[], None] = lambda: None,
        wrote: Callable[[str, str], None] = lambda _kind, _verb: None,
        resources: Mapping[str, Resource] = RESOURCES,
    ) -> None:
        self._client = client
        self._dynamic = DynamicClient(client, discoverer=lambda _client, _cache: None)
        self._gate, self._wrote, self._resources = gate, wrote, resources

    def gated(self, gate: Callable[[], None], wrote: Callable[[str, str], None]) -> Api:
        """The same server, with another gate."""
        return Api(self._client, gate=gate, wrote=wrote, resources=self._resources)

    def speaking(self, resources: Mapping[str, Resource]) -> Api:
        """The same server, kinds in other versions."""
        return Api(self._client, gate=self._gate, wrote=self._wrote, resources=resources)

    def close(self) -> None:
        """Let go of connections."""
        self._client.rest_client.pool_manager.clear()

    # ------------------------------------------------------------ reading

    def get(self, ref: Ref) -> Object:
        """One object. Raises NotFound."""
        return self._ask("get", self._path(ref), f"get {_named(ref)}")

    def log(self, pod: Ref, container: str, lines: int) -> str:
        """The last lines of a container."""
        # The client's own list of query parameters has none of a log's.
        query = urlencode({"container": container, "tailLines": lines})
        return self._send("get", f"{self._path(pod, 'log')}?{query}", f"log of {_named(pod)}").decode(
            errors="replace"
        )

    def list(self, kind: str, namespace: str = "", selector: str = "") -> Listing:
        """All objects of a kind, page by page. Raises NotFound where the server has no such kind."""
        resource = self._resources[kind]
        path, what = resource.path(namespace), f"list {resource.plural}"
        items: list[Object] = []
        more = ""
        while True:
            page = self._ask(
                "get",
                path,
                what,
                label_selector=selector or None,
                limit=PAGE,
                _continue=more or None,
                _request_timeout=LIST_SECONDS,
            )
            items += [_whole(item, resource) for item in page.get("items") or ()]
            more = page["metadata"].get("continue", "")
            if not more:
                return Listing(items, page["metadata"].get("resourceVersion", ""))

    def watch(self, kind: str, namespace: str, selector: str, version: str, seconds: int) -> Watching:
        """Changes since `version`, for at most `seconds`. Raises Gone where the server has forgotten them."""
        resource = self._resources[kind]
        response = self._raw(
            "get",
            resource.path(namespace),
            f"watch {resource.plural}",
            label_selector=selector or None,
            resource_version=version,
            watch="true",
            allow_watch_bookmarks="true",
            timeout_seconds=seconds,
            _request_timeout=(5.0, seconds + 30.0),
        )
        return Watching(resource, response)

    # ------------------------------------------------------------ writing

    def create(self, item: Mapping[str, Any], manager: str) -> Object:
        """Make it. Raises Conflict where it is there."""
        ref = Ref.of(item)
        path = _resource(item).path(ref.namespace)
        return self._write("create", "post", path, ref, body=dict(item), field_manager=manager)

    def apply(
        self, item: Mapping[str, Any], manager: str, subresource: str = "", *, force: bool = True
    ) -> Object:
        """Server-side apply: these fields are the manager's, others stay as they are.

        Without `force` it raises Conflict where it would change what another manager owns.
        """
        ref = Ref.of(item)
        return self._write(
            "apply",
            "patch",
            _resource(item).path(ref.namespace, ref.name, subresource),
            ref,
            body=dict(item),
            content_type=APPLY,
            field_manager=manager,
            force_conflicts="true" if force else "false",
        )

    def merge(self, ref: Ref, patch: Mapping[str, Any], manager: str, subresource: str = "") -> Object:
        """JSON merge patch: null removes."""
        return self._write(
            "scale" if subresource == "scale" else "patch",
            "patch",
            self._path(ref, subresource),
            ref,
            body=dict(patch),
            content_type=MERGE,
            field_manager=manager,
        )

    def replace(self, item: Mapping[str, Any], manager: str) -> Object:
        """Put, with the resourceVersion that it carries. Raises Conflict."""
        ref = Ref.of(item)
        return self._write("replace", "put", self._path(ref), ref, body=dict(item), field_manager=manager)

    def delete(self, ref: Ref, uid: str = "", *, grace_seconds: int | None = None) -> Object:
        """Delete it and, in the background, what it owns. `uid`: only this one. Raises NotFound."""
        body: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if uid:
            body["preconditions"] = {"uid": uid}
        if grace_seconds is not None:
            body["gracePeriodSeconds"] = grace_seconds
        return self._write("delete", "delete", self._path(ref), ref, body=body)

    # ------------------------------------------------------------ sending

    def _path(self, ref: Ref, subresource: str = "") -> str:
        return self._resources[ref.kind].path(ref.namespace, ref.name, subresource)

    def _write(self, verb: str, method: str, path: str, ref: Ref, **options: Any) -> Object:
        self._gate()
        answer = self._ask(method, path, f"{verb} {_named(ref)}", **options)
        self._wrote(ref.kind, verb)
        return answer

    def _ask(self, method: str, path: str, what: str, **options: Any) -> Object:
        answer: Object = json.loads(self._send(method, path, what, **options))
        return answer

    def _send(self, method: str, path: str, what: str, **options: Any) -> bytes:
        response = self._raw(method, path, what, **{"_request_timeout": REQUEST_SECONDS, **options})
        with _explained(what):
            data: bytes = response.data
        return data

    def _raw(self, method: str, path: str, what: str, **options: Any) -> Any:
        with _explained(what):
            return self._dynamic.request(
                method, path, serialize=False, query_params=[], header_params={}, **options
            )


class Watching:
    """A watch under way: an iterator of (type, object), which another thread may end."""

    def __init__(self, resource: Resource, response: Any) -> None:
        self._resource, self._response = resource, response
        self._stopped = False

    def __iter__(self) -> Iterator[tuple[str, Object]]:
        """ADDED, MODIFIED, DELETED, BOOKMARK. Raises Gone, or Unavailable where the connection breaks."""
        what = f"watch {self._resource.plural}"
        with _explained(what):
            for line in _lines(self._response):
                if self._stopped:
                    return
                event = json.loads(line)
                if event["type"] == "ERROR":
                    status = event["object"]
                    code = int(status.get("code") or (410 if status.get("reason") == "Expired" else 500))
                    raise error_of(code, status.get("reason", ""), json.dumps(status), what)
                yield event["type"], _whole(event["object"], self._resource)

    def stop(self) -> None:
        """End it: the iteration stops."""
        # First the flag: shutting a TLS socket down takes its decryption away under the thread that reads, which then
        # sees ciphertext as if it were lines.
        self._stopped = True
        try:
            self._response.shutdown()
        except (AttributeError, RuntimeError, ValueError, OSError):
            # It has ended already, or the client is too old to be interrupted: then it ends by its own bound.
            return

    def close(self) -> None:
        """Give the connection up."""
        self._response.close()


@contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except ApiException as error:
        raise error_of(int(error.status or 0), str(error.reason or ""), error.body, what) from None
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise Unavailable(f"{what}: the API server does not answer: {_brief(error)}") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        # Half a line of a connection that broke: no JSON, or no UTF-8.
        raise Unavailable(f"{what}: the API server's answer is no JSON") from None


def _lines(response: Any) -> Iterator[bytes]:
    left = b""
    for chunk in response.stream(amt=None, decode_content=False):
        *whole, left = (left + chunk).split(b"\n")
        yield from (line for line in whole if line.strip())


def _brief(error: BaseException) -> str:
    reason = getattr(error, "reason", None)
    return " ".join(str(reason if isinstance(reason, Exception) else error).split())[:200]


def _resource(item: Mapping[str, Any]) -> Resource:
    """Of the version that the object itself names: Kueue's may be another than ours."""
    return replace(RESOURCES[item["kind"]], api_version=item["apiVersion"])


def _named(ref: Ref) -> str:
    where = f" in {ref.namespace}" if ref.namespace else ""
    return f"{ref.kind} {ref.name}{where}"


def _whole(item: Object, resource: Resource) -> Object:
    """Items of lists come without kind and apiVersion."""
    return {"apiVersion": resource.api_version, **item, "kind": item.get("kind") or resource.kind}
