"""Requests to answers: which verb, on what, with which options. Decides nothing about objects itself."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from tests.fakes.kube import converted, errors, patches, pods, tables
from tests.fakes.kube.catalog import Catalog
from tests.fakes.kube.decoding import Options, Target, parsed
from tests.fakes.kube.deletion import DeleteOptions, delete
from tests.fakes.kube.faults import Call, Calls
from tests.fakes.kube.paths import Place, parts, place
from tests.fakes.kube.reading import Lister, Page, Selection, begin_watch, list_body, watch_lines
from tests.fakes.kube.resources import kept_as
from tests.fakes.kube.scale import scale_of
from tests.fakes.kube.store import Store, Stored
from tests.fakes.kube.wire import Cut, Reply, Request
from tests.fakes.kube.writes import Writer

VERSION = {"major": "1", "minor": "34", "gitVersion": "v1.34.0-trimtab-fake", "gitCommit": "", "gitTreeState": "clean",
           "buildDate": "2025-01-01T00:00:00Z", "goVersion": "", "compiler": "", "platform": "linux/amd64"}  # fmt: skip
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch"}


def utc_now() -> str:
    """RFC 3339, whole seconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Api:
    """Answers requests over a store. `bookmark_seconds`: of silence before a watch says where it stands."""

    def __init__(
        self, store: Store, catalog: Catalog, calls: Calls, clock: Callable[[], str], bookmark_seconds: float
    ) -> None:
        self.store, self.catalog, self.calls, self.clock = store, catalog, calls, clock
        self.writer = Writer(store, clock)
        self.lister = Lister(store)
        self.bookmark_seconds = bookmark_seconds

    def answer(self, request: Request) -> Reply:
        """The reply to a request; what goes wrong becomes a Status."""
        try:
            return self._answer(request)
        except errors.ApiError as refused:
            retry = refused.details.get("retryAfterSeconds")
            headers = {"Retry-After": str(retry)} if retry else {}
            return Reply(json.dumps(refused.body()).encode(), refused.code, headers)
        except Cut:
            raise
        except Exception as wrong:  # a server answers, whatever is wrong with it
            failure = errors.ApiError(
                500, "InternalError", f"Internal error: {type(wrong).__name__}: {wrong}"
            )
            return Reply(json.dumps(failure.body()).encode(), 500)

    def _answer(self, request: Request) -> Reply:
        path = parts(request.path)
        if path in (["healthz"], ["livez"], ["readyz"]):
            return Reply(b"ok", headers={"Content-Type": "text/plain"})
        if path == ["version"]:
            return _json(VERSION)
        with self.store.lock:
            found = self.catalog.discovery(path)
        if found is not None:
            return _json(found)
        where = place(self.catalog, request.path)
        if where is None:
            raise errors.no_such_path()
        self.calls.note(_call(request, where))
        if where.subresource == "scale":
            return self._scale(request, where)
        if where.subresource in ("eviction", "binding"):
            return self._pod_action(request, where)
        return self._object(request, where) if where.name else self._collection(request, where)

    def _collection(self, request: Request, where: Place) -> Reply:
        if request.method == "POST":
            if where.resource.namespaced and where.namespace is None:
                raise errors.not_allowed()
            body, options = self._body(request, where), _options(request)
            target = _target(where)
            stored = self.writer.create(target, body, options)
            return _written(where, stored, options, 201)
        selection = Selection.read(where.resource, where.namespace, request.query)
        if request.method == "DELETE":
            return self._delete_collection(request, where, selection)
        if request.method != "GET":
            raise errors.not_allowed()
        if _is_watch(request):
            return self._watch(request, selection)
        page = self.lister.page(selection, request.query)
        return self._shown(request, where, page) or Reply(list_body(where.resource, page))

    def _watch(self, request: Request, selection: Selection) -> Reply:
        query = request.query
        watcher, first = begin_watch(self.store, selection, query)
        if watcher is None:
            return Reply(stream=iter(first))
        seconds = float(query.get("timeoutSeconds") or 0) or 1800.0
        wants = query.get("allowWatchBookmarks") in ("true", "1", "True")
        lines = watch_lines(self.store, selection, watcher, seconds=seconds,
                            bookmarks=self.bookmark_seconds if wants else None)  # fmt: skip

        def stream() -> Iterator[bytes | None]:
            try:
                yield from first
                yield from lines
            finally:
                lines.close()  # type: ignore[attr-defined]
                self.store.unwatch(selection.resource.storage, watcher)

        return Reply(stream=stream())

    def _object(self, request: Request, where: Place) -> Reply:
        target = _target(where)
        if request.method == "GET":
            if _is_watch(request):
                fields = request.query | {"fieldSelector": f"metadata.name={where.name}"}
                return self._watch(request, Selection.read(where.resource, where.namespace, fields))
            stored = self.writer.current(target)
            alone = Page({"resourceVersion": str(stored.version)}, [stored])
            return self._shown(request, where, alone) or Reply(converted.raw(where.resource, stored))
        if request.method == "DELETE" and not where.subresource:
            return self._delete(request, where)
        options = _options(request)
        if request.method == "PUT":
            stored, created = self.writer.update(target, self._body(request, where), options)
        elif request.method == "PATCH":
            kind = _content_type(request)
            _check_patch_options(request, kind)
            stored, created = self.writer.patch(target, kind, self._patch_body(request, where), options)
        else:
            raise errors.not_allowed()
        return _written(where, stored, options, 201 if created else 200)

    def _shown(self, request: Request, where: Place, page: Page) -> Reply | None:
        """As a table, where that is asked for."""
        if "as=Table" not in request.headers.get("accept", ""):
            return None
        objects = [converted.shown(where.resource, each.obj) for each in page.found]
        return _json(tables.table(where.resource, objects, page.meta, self.clock()))

    def _delete(self, request: Request, where: Place) -> Reply:
        target = _target(where)
        options = DeleteOptions.read(parsed(request.body) if request.body else None, request.query)
        with self.store.lock:
            stored, gone = delete(self.store, target, self.writer.current(target), options, self.clock())
        if not gone or where.resource.returns_deleted:
            return Reply(converted.raw(where.resource, stored))
        details = {"name": where.name, "group": where.resource.group, "kind": where.resource.plural,
                   "uid": stored.obj["metadata"]["uid"]}  # fmt: skip
        kept = {name: value for name, value in details.items() if value}
        return _json(
            {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": kept}
        )

    def _delete_collection(self, request: Request, where: Place, selection: Selection) -> Reply:
        options = DeleteOptions.read(parsed(request.body) if request.body else None, request.query)
        now = self.clock()
        with self.store.lock:
            found = [
                each
                for each in self.store.each(where.resource.storage, where.namespace)
                if selection.has(each)
            ]
            for each in found:
                target = Target(kept_as(where.resource), each.namespace, each.name)
                delete(self.store, target, each, options, now)
        meta = {"resourceVersion": str(self.store.version)}
        return Reply(list_body(where.resource, Page(meta, found)))

    def _scale(self, request: Request, where: Place) -> Reply:
        target = _target(where)
        if request.method == "GET":
            return _json(scale_of(where.resource, self.writer.current(target).obj))
        if request.method not in ("PUT", "PATCH"):
            raise errors.not_allowed()
        kind = _content_type(request) if request.method == "PATCH" else ""
        if kind:
            _check_patch_options(request, kind)
        return _json(self.writer.scale(target, kind, request.body, _options(request)))

    def _pod_action(self, request: Request, where: Place) -> Reply:
        if request.method != "POST":
            raise errors.not_allowed()
        target, body = _target(where), parsed(request.body)
        with self.store.lock:
            if where.subresource == "binding":
                pods.bind(self.store, self.writer.current(target), body)
            else:
                pods.evict(self.store, target, self.writer.current(target), body, self.clock())
        return _json(
            {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}, 201
        )

    def _body(self, request: Request, where: Place) -> Any:
        return converted.kept(where.resource, parsed(request.body))

    def _patch_body(self, request: Request, where: Place) -> bytes:
        if not where.resource.stored_as:
            return request.body
        return json.dumps(converted.kept(where.resource, parsed(request.body))).encode()


def _target(where: Place) -> Target:
    resource = kept_as(where.resource)
    subresource = where.subresource if where.subresource in ("status", "scale") else ""
    return Target(resource, where.namespace or "", where.name, subresource)


def _json(content: Any, status: int = 200) -> Reply:
    return Reply(json.dumps(content, separators=(",", ":")).encode(), status)


def _written(where: Place, stored: Stored, options: Options, status: int) -> Reply:
    warnings = ", ".join(f'299 - "{text}"' for text in (w.replace('"', '\\"') for w in options.warnings[:20]))
    return Reply(converted.raw(where.resource, stored), status, {"Warning": warnings} if warnings else {})


def _is_watch(request: Request) -> bool:
    return request.query.get("watch", "").lower() in ("true", "1")


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip()


def _manager(request: Request) -> str:
    return request.query.get("fieldManager") or request.headers.get("user-agent", "unknown").partition("/")[0]


def _options(request: Request) -> Options:
    query = request.query
    return Options(
        manager=_manager(request),
        force=query.get("force", "").lower() == "true",
        dry_run=query.get("dryRun") == "All",
        validation=query.get("fieldValidation") or "Warn",
    )


def _check_patch_options(request: Request, kind: str) -> None:
    """An apply names its manager; nothing else is forced."""
    causes = []
    if kind == patches.APPLY_PATCH and not request.query.get("fieldManager"):
        causes.append(errors.required_value("fieldManager", "is required for apply patch"))
    if kind != patches.APPLY_PATCH and "force" in request.query:
        causes.append(errors.forbidden_value("force", "may not be specified for non-apply patch"))
    if causes:
        raise errors.invalid("meta.k8s.io", "PatchOptions", "", causes)


def _call(request: Request, where: Place) -> Call:
    verb = _VERBS.get(request.method, "")
    if request.method == "GET":
        verb = "watch" if _is_watch(request) else ("get" if where.name else "list")
    elif request.method == "DELETE":
        verb = "delete" if where.name else "deletecollection"
    resource = where.resource.qualified + (f"/{where.subresource}" if where.subresource else "")
    agent = request.headers.get("user-agent", "")
    return Call(verb, resource, where.namespace or "", where.name, agent, _manager(request), time.monotonic())
