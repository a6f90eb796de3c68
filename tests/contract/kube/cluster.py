"""An API server, spoken to by the official client alone: ours or a real one."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from kubernetes import client

Object = dict[str, Any]

APPLY, MERGE = "application/apply-patch+yaml", "application/merge-patch+json"
JSON_PATCH, STRATEGIC = "application/json-patch+json", "application/strategic-merge-patch+json"
PATHS = {
    "Namespace": "/api/v1/namespaces", "Node": "/api/v1/nodes",
    "Pod": "/api/v1/namespaces/{}/pods", "ConfigMap": "/api/v1/namespaces/{}/configmaps",
    "Secret": "/api/v1/namespaces/{}/secrets", "Service": "/api/v1/namespaces/{}/services",
    "ServiceAccount": "/api/v1/namespaces/{}/serviceaccounts", "Event": "/api/v1/namespaces/{}/events",
    "PersistentVolumeClaim": "/api/v1/namespaces/{}/persistentvolumeclaims",
    "Deployment": "/apis/apps/v1/namespaces/{}/deployments",
    "StatefulSet": "/apis/apps/v1/namespaces/{}/statefulsets",
    "Job": "/apis/batch/v1/namespaces/{}/jobs",
    "PodDisruptionBudget": "/apis/policy/v1/namespaces/{}/poddisruptionbudgets",
    "NetworkPolicy": "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies",
    "Lease": "/apis/coordination.k8s.io/v1/namespaces/{}/leases",
    "CustomResourceDefinition": "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
    "TrainingRun": "/apis/trimtab.dev/v1alpha1/namespaces/{}/trainingruns",
    "RewardModel": "/apis/trimtab.dev/v1alpha1/namespaces/{}/rewardmodels",
    "Widget": "/apis/contract.trimtab.dev/v1/namespaces/{}/widgets",
}  # fmt: skip


class Refused(Exception):
    """What the server answered: `code` and the Status."""

    def __init__(self, code: int, status: Object) -> None:
        super().__init__(f"{code} {status}")
        self.code, self.status = code, status

    @property
    def causes(self) -> list[tuple[str, str]]:
        """Reason and field of each."""
        return [(each["reason"], each["field"]) for each in self.status["details"]["causes"]]


class Cluster:
    """Objects as dictionaries, in a namespace of the test's own."""

    def __init__(self, api: client.ApiClient, namespace: str) -> None:
        self.api, self.namespace = api, namespace

    def path(self, kind: str, name: str = "", sub: str = "", namespace: str | None = None) -> str:
        """Of a collection, an object or a subresource."""
        base = PATHS[kind].format(self.namespace if namespace is None else namespace)
        return "/".join(part for part in (base, name, sub) if part)

    def call(
        self, method: str, path: str, body: Any = None, kind: str = "application/json", **query: Any
    ) -> Object:
        """One request. Refused for anything but success."""
        params = [
            (name, str(value).lower() if isinstance(value, bool) else value) for name, value in query.items()
        ]
        answer = self._request(
            method, path, params, {"Accept": "application/json", "Content-Type": kind}, body
        )
        try:
            found: Object = json.loads(answer.data)
        except json.JSONDecodeError:  # where no kind is served, a real server answers in plain words
            found = {"message": answer.data.decode(errors="replace")}
        if answer.status >= 300:
            raise Refused(answer.status, found)
        return found

    def _request(
        self, method: str, path: str, query: list[tuple[str, Any]], headers: dict[str, str], body: Any = None
    ) -> Any:
        """As urllib3 has it, not read yet."""
        request = self.api.param_serialize(
            method, path, query_params=query, header_params=headers, body=body, auth_settings=["BearerToken"]
        )
        return self.api.call_api(*request).response

    def create(self, obj: Object, **query: Any) -> Object:
        """POST."""
        return self.call("POST", self.path(obj["kind"]), obj, **query)

    def get(self, kind: str, name: str, sub: str = "") -> Object:
        """GET."""
        return self.call("GET", self.path(kind, name, sub))

    def listed(self, kind: str, **query: Any) -> Object:
        """GET of the collection."""
        return self.call("GET", self.path(kind), **query)

    def names(self, kind: str, **query: Any) -> list[str]:
        """Of a list."""
        return [each["metadata"]["name"] for each in self.listed(kind, **query)["items"]]

    def replace(self, obj: Object, sub: str = "", **query: Any) -> Object:
        """PUT."""
        return self.call("PUT", self.path(obj["kind"], obj["metadata"]["name"], sub), obj, **query)

    def patch(self, kind: str, name: str, body: Any, how: str = MERGE, sub: str = "", **query: Any) -> Object:
        """PATCH."""
        return self.call("PATCH", self.path(kind, name, sub), body, how, **query)

    def apply(self, obj: Object, manager: str, sub: str = "", **query: Any) -> Object:
        """PATCH with what a manager wants of the object."""
        return self.patch(
            obj["kind"], obj["metadata"]["name"], obj, APPLY, sub, fieldManager=manager, **query
        )

    def delete(self, kind: str, name: str, **options: Any) -> Object:
        """DELETE with options in the body."""
        return self.call("DELETE", self.path(kind, name), options or None)

    def is_gone(self, kind: str, name: str) -> bool:
        """Whether it is not there."""
        try:
            self.get(kind, name)
        except Refused as refused:
            return refused.code == 404
        return False

    def watch(self, kind: str, seconds: float = 1, **query: Any) -> list[tuple[str, Object]]:
        """All events until the server ends the watch."""
        params = [("watch", "true"), ("timeoutSeconds", int(seconds)), *query.items()]
        answer = self._request("GET", self.path(kind), params, {"Accept": "application/json"})
        lines = b"".join(answer.stream()).splitlines()
        if answer.status >= 300:
            raise Refused(answer.status, json.loads(lines[0]))
        events = [json.loads(line) for line in lines if line]
        return [(event["type"], event["object"]) for event in events]


def managers(obj: Object) -> dict[tuple[str, str, str], Object]:
    """Fields by manager, operation and subresource."""
    return {
        (each["manager"], each["operation"], each.get("subresource", "")): each["fieldsV1"]
        for each in obj["metadata"].get("managedFields", ())
    }


def version(obj: Object) -> str:
    """resourceVersion."""
    return str(obj["metadata"]["resourceVersion"])


def until(condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
    """Wait for a condition."""
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, f"{what} has not happened within {seconds} s"
        time.sleep(0.02)
