"""Which resources are served now: the built-in ones and those of the CRDs that are there; and discovery of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.fakes.kube import openapi
from tests.fakes.kube.resources import BUILTIN, Resource, custom_resources

_VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
CRDS = "customresourcedefinitions.apiextensions.k8s.io"


class Catalog:
    """Resources by group, version and plural."""

    def __init__(self) -> None:
        self._found = {(each.group, each.version, each.plural): each for each in BUILTIN}

    def find(self, group: str, version: str, plural: str) -> Resource | None:
        """The resource behind a path."""
        return self._found.get((group, version, plural))

    def stored(self, storage: str) -> Resource:
        """The resource whose form objects of a storage have."""
        return next(each for each in self._found.values() if each.qualified == storage and not each.stored_as)

    def of_kind(self, api_version: str, kind: str) -> Resource | None:
        """The resource of an object."""
        found = (
            each for each in self._found.values() if (each.api_version, each.kind) == (api_version, kind)
        )
        return next(found, None)

    def named(self, name: str) -> Resource:
        """By kind (Deployment) or plural (deployments)."""
        return next(each for each in self._found.values() if name in (each.kind, each.plural))

    def namespaced(self) -> Iterator[Resource]:
        """Whose objects live in namespaces; each storage once."""
        seen = set()
        for each in list(self._found.values()):
            if each.namespaced and each.storage not in seen and not each.stored_as:
                seen.add(each.storage)
                yield each

    def define(self, crd: dict[str, Any]) -> None:
        """Serve what a CRD defines, as it now says."""
        self.drop(crd)
        for each in custom_resources(crd):
            self._found[each.group, each.version, each.plural] = each

    def drop(self, crd: dict[str, Any]) -> None:
        """Serve it no longer."""
        group, plural = crd["spec"]["group"], crd["spec"]["names"]["plural"]
        for key in [key for key in self._found if (key[0], key[2]) == (group, plural)]:
            del self._found[key]

    def discovery(self, path: list[str]) -> dict[str, Any] | None:
        """What a discovery path answers; None where it is none."""
        match path:
            case ["api"]:
                return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}
            case ["apis"]:
                groups = sorted({each.group for each in self._found.values() if each.group})
                return {
                    "kind": "APIGroupList",
                    "apiVersion": "v1",
                    "groups": [self._group(name) for name in groups],
                }
            case ["apis", group] if any(each.group == group for each in self._found.values()):
                return {"kind": "APIGroup", "apiVersion": "v1"} | self._group(group)
            case ["api", version]:
                return self._resources("", version)
            case ["apis", group, version]:
                return self._resources(group, version)
            case ["openapi", "v3"]:
                return openapi.index(self._found.values())
            case ["openapi", "v3", *root]:
                return openapi.document(self._found.values(), "/".join(root))
        return None

    def _group(self, group: str) -> dict[str, Any]:
        versions = sorted(
            {each.version for each in self._found.values() if each.group == group}, reverse=True
        )
        each = [{"groupVersion": f"{group}/{version}", "version": version} for version in versions]
        return {"name": group, "versions": each, "preferredVersion": each[0]}

    def _resources(self, group: str, version: str) -> dict[str, Any] | None:
        found = [each for each in self._found.values() if (each.group, each.version) == (group, version)]
        if not found:
            return None
        entries = [entry for each in found for entry in _entries(each)]
        name = f"{group}/{version}" if group else version
        return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": name, "resources": entries}


def _entries(resource: Resource) -> Iterator[dict[str, Any]]:
    """A resource and its subresources in an APIResourceList."""
    entry = {
        "name": resource.plural, "singularName": resource.singular, "namespaced": resource.namespaced,
        "kind": resource.kind, "verbs": _VERBS, "shortNames": list(resource.short_names),
        "categories": list(resource.categories),
    }  # fmt: skip
    yield {name: value for name, value in entry.items() if value or name not in ("shortNames", "categories")}
    base = {"singularName": "", "namespaced": resource.namespaced}
    if resource.status:
        yield base | {
            "name": f"{resource.plural}/status",
            "kind": resource.kind,
            "verbs": ["get", "patch", "update"],
        }
    if resource.scale:
        yield base | {
            "name": f"{resource.plural}/scale", "group": "autoscaling", "version": "v1", "kind": "Scale",
            "verbs": ["get", "patch", "update"],
        }  # fmt: skip
    if resource.qualified == "pods":
        yield base | {
            "name": "pods/eviction", "group": "policy", "version": "v1", "kind": "Eviction", "verbs": ["create"],
        }  # fmt: skip
