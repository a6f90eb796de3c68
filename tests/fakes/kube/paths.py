"""Request paths: which resource, namespace, name and subresource they are about. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from tests.fakes.kube.catalog import Catalog
from tests.fakes.kube.resources import Resource


@dataclass(frozen=True, slots=True)
class Place:
    """A path that was understood. `namespace` None: all of them; `name` empty: the collection."""

    resource: Resource
    namespace: str | None
    name: str = ""
    subresource: str = ""


def parts(path: str) -> list[str]:
    """Of a path, without empty ones."""
    return [part for part in path.split("/") if part]


def place(catalog: Catalog, path: str) -> Place | None:
    """What a path is about; None where nothing is served."""
    match parts(path):
        case ["api", version, *rest]:
            group = ""
        case ["apis", group, version, *rest]:
            pass
        case _:
            return None
    match rest:
        case ["namespaces", namespace, plural, *below] if plural not in ("status", "finalize"):
            found = catalog.find(group, version, plural)
            return _place(found, namespace, below) if found and found.namespaced else None
        case [plural, *below]:
            found = catalog.find(group, version, plural)
            if found is None or (found.namespaced and below):
                return None
            return _place(found, None if found.namespaced else "", below)
    return None


def _place(resource: Resource, namespace: str | None, below: list[str]) -> Place | None:
    match below:
        case []:
            return Place(resource, namespace)
        case [name]:
            return Place(resource, namespace, name)
        case [name, "status"] if resource.status:
            return Place(resource, namespace, name, "status")
        case [name, "scale"] if resource.scale:
            return Place(resource, namespace, name, "scale")
        case [name, "eviction" | "binding" as subresource] if resource.qualified == "pods":
            return Place(resource, namespace, name, subresource)
        case [name, "finalize"] if resource.qualified == "namespaces":
            return Place(resource, namespace, name, "finalize")
    return None
