"""Kubernetes' own schemas, as PyPI kubernetes-validate carries them: from 1.32 to the newest. For tests.

Its `validate` reads megabytes of definitions at every call; here they are read once per release.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import jsonschema
from kubernetes_validate.utils import all_versions, schema_contents
from referencing import Registry, Resource

OLDEST = (1, 32)
_FULL = {tuple(int(part) for part in version.split(".")[:2]): version for version in all_versions()}
VERSIONS: list[str] = [_FULL[release] for release in sorted(_FULL) if release >= OLDEST]


def check(manifest: dict[str, Any], version: str) -> None:
    """ValidationError where the release does not accept it; an unknown field is an error."""
    _validator(version, manifest["kind"], manifest["apiVersion"]).validate(manifest)


@cache
def _registry(version: str) -> Registry[Any]:
    definitions = schema_contents(
        f"kubernetes-json-schema/v{version}-local-strict/_definitions.json", version
    )
    return Resource.from_contents(definitions) @ Registry()


@cache
def _validator(version: str, kind: str, api_version: str) -> jsonschema.Draft202012Validator:
    group, slash, release = api_version.partition("/")
    name = f"{kind.lower()}-{group.partition('.')[0]}-{release}" if slash else f"{kind.lower()}-{group}"
    schema = schema_contents(f"kubernetes-json-schema/v{version}-local-strict/{name}.json", version)
    return jsonschema.Draft202012Validator(
        schema, registry=Resource.from_contents(schema) @ _registry(version)
    )
