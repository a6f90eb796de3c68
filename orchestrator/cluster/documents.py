"""YAML in and out for people: objects of a file, manifests and CRDs as text. Calls no cluster."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from orchestrator.cluster.crds import crd_yaml, crds
from orchestrator.cluster.kinds import RewardModel, TrainingRun, read_object
from orchestrator.cluster.kinds.base import API_VERSION
from orchestrator.cluster.render import Manifest, RunState, render_reward_model, render_run
from services.common.errors import ConfigError, InvalidInput
from services.common.spec.load import read_text

Object = TrainingRun | RewardModel
_KINDS: Mapping[str, type[TrainingRun] | type[RewardModel]] = {
    "TrainingRun": TrainingRun,
    "RewardModel": RewardModel,
}


@cache
def crd_files() -> Mapping[str, str]:
    """File name to text, as in the templates of the chart trimtab-crds. Made once: PyYAML takes a second."""
    return {f"{manifest['spec']['names']['plural']}.yaml": crd_yaml(manifest) for manifest in crds()}


def read_objects(path: Path, namespace: str = "default") -> list[Object]:
    """The TrainingRuns and RewardModels of a YAML file. Raises ConfigError that names file, document and field."""
    return [item for item, _ in read_documents(path, namespace)]


def read_documents(path: Path, namespace: str = "default") -> list[tuple[Object, dict[str, Any]]]:
    """The same, each with the document as it stands in the file: what a server is given has no defaults of ours."""
    try:
        documents = list(yaml.safe_load_all(read_text(path)))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{path}{line}: expected YAML: {getattr(error, 'problem', error)}") from None
    objects = [
        _object(path, number, document, namespace)
        for number, document in enumerate(documents, start=1)
        if document is not None
    ]
    if not objects:
        raise ConfigError(f"{path}: there is no object in it")
    return objects


def render_file(path: Path, namespace: str, *, attempt: int = 1, update: bool = False) -> str:
    """All manifests for the objects of a file, as one YAML text."""
    manifests: list[Manifest] = []
    for item in read_objects(path, namespace):
        if isinstance(item, RewardModel):
            manifests += render_reward_model(item, creating=not update)
            continue
        rendered = render_run(item, state=RunState(attempt=attempt))
        manifests += (
            render_run(item, state=RunState(attempt=attempt, existing=_named(rendered)))
            if update
            else rendered
        )
    return to_yaml(manifests)


def to_yaml(manifests: Iterable[Manifest]) -> str:
    """Manifests as YAML documents, keys in the order in which they were made."""
    return yaml.dump_all(
        list(manifests), Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True, explicit_start=True
    )


class _Dumper(yaml.SafeDumper):
    """Texts of several lines stand as they are; nothing is written as an alias of something else."""

    def ignore_aliases(self, _data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def _named(manifests: Iterable[Manifest]) -> frozenset[str]:
    return frozenset(item["metadata"]["name"] for item in manifests if item["kind"] == "Deployment")


def _object(path: Path, number: int, document: Any, namespace: str) -> tuple[Object, dict[str, Any]]:
    where = f"{path}: document {number}"
    if not isinstance(document, dict):
        raise ConfigError(f"{where}: expected an object with apiVersion, kind, metadata, spec")
    kind = _KINDS.get(str(document.get("kind")))
    if kind is None or document.get("apiVersion") != API_VERSION:
        told = f"{document.get('apiVersion')} {document.get('kind')}"
        raise ConfigError(f"{where}: expected kind {' or '.join(_KINDS)} of {API_VERSION}, got {told}")
    metadata = document.get("metadata")
    if isinstance(metadata, dict):
        document = document | {"metadata": {"namespace": namespace} | metadata}
    try:
        return read_object(kind, document), document
    except InvalidInput as error:
        raise ConfigError(f"{where}: {error}") from None
