"""Files of a pod's volumes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.node.environment import Missing
from tests.e2e.node.logs import last_lines
from tests.e2e.node.volumes import Volumes


class FakeApi:
    """Objects by path."""

    def __init__(self, objects: dict[str, Any]) -> None:
        self.objects = objects

    async def find(self, path: str) -> Any:
        return self.objects.get(path)

    async def get(self, path: str) -> Any:
        return self.objects[path]

    async def create(self, path: str, item: dict[str, Any]) -> Any:
        assert path.endswith("/serviceaccounts/runs/token")
        assert item["spec"]["boundObjectRef"]["uid"] == "u1"
        return {"status": {"token": "a token"}}


def make_pod(*volumes: dict[str, Any], group: int | None = None, **annotations: str) -> dict[str, Any]:
    security = {} if group is None else {"fsGroup": group}
    return {
        "metadata": {"name": "p", "namespace": "ns", "uid": "u1", "annotations": annotations},
        "spec": {
            "volumes": list(volumes), "containers": [], "securityContext": security, "serviceAccountName": "runs"
        },
    }  # fmt: skip


def volumes_in(folder: Path, objects: dict[str, Any]) -> Volumes:
    return Volumes(FakeApi(objects), folder / "pod", {})  # type: ignore[arg-type]


async def test_keys_become_files(tmp_path: Path) -> None:
    """All keys, or those that are named, with the mode that is asked for."""
    objects = {
        "/api/v1/namespaces/ns/configmaps/c": {"data": {"a": "1", "b": "2"}},
        "/api/v1/namespaces/ns/secrets/s": {"data": {"k": "c2VjcmV0"}},
    }
    made = volumes_in(tmp_path, objects)
    items = [{"key": "k", "path": "deep/key"}]
    await made.prepare(
        make_pod(
            {"name": "config", "configMap": {"name": "c"}},
            {"name": "secret", "secret": {"secretName": "s", "items": items, "defaultMode": 0o400}},
        )
    )
    container = {
        "volumeMounts": [
            {"name": "config", "mountPath": "/etc/c", "readOnly": True},
            {"name": "secret", "mountPath": "/etc/s"},
        ]
    }
    config, secret = made.mounts(container, {})
    assert {file.name: file.read_text() for file in config.source.iterdir()} == {"a": "1", "b": "2"}
    assert (config.target, config.read_only) == ("/etc/c", True)
    key = secret.source / "deep" / "key"
    assert (key.read_text(), key.stat().st_mode & 0o777) == ("secret", 0o400)
    made.remove()
    assert not config.source.exists()


async def test_what_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    """A missing ConfigMap is named; once it is there, all goes on; an optional one may be missing."""
    objects: dict[str, Any] = {}
    made = volumes_in(tmp_path, objects)
    pod = make_pod(
        {"name": "may", "secret": {"secretName": "no", "optional": True}},
        {"name": "c", "configMap": {"name": "c"}},
    )
    with pytest.raises(Missing, match="ConfigMap c not found"):
        await made.prepare(pod)
    objects["/api/v1/namespaces/ns/configmaps/c"] = {"data": {"a": "1"}}
    await made.prepare(pod)
    [mount] = made.mounts({"volumeMounts": [{"name": "c", "mountPath": "/c"}]}, {})
    assert (mount.source / "a").read_text() == "1"


async def test_fields_follow_the_pod(tmp_path: Path) -> None:
    """A downwardAPI file has the annotation's new value as soon as the pod has it."""
    fields = {"items": [{"path": "drain", "fieldRef": {"fieldPath": "metadata.annotations['drain']"}}]}
    made = volumes_in(tmp_path, {})
    await made.prepare(make_pod({"name": "info", "downwardAPI": fields}))
    [mount] = made.mounts({"volumeMounts": [{"name": "info", "mountPath": "/info"}]}, {})
    assert (mount.source / "drain").read_text() == ""
    made.refresh(make_pod({"name": "info", "downwardAPI": fields}, drain="true"))
    assert (mount.source / "drain").read_text() == "true"


async def test_an_account_is_projected(tmp_path: Path) -> None:
    """Token, authority and namespace in one folder, as client libraries look for them."""
    sources = [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
    ]
    objects = {"/api/v1/namespaces/ns/configmaps/kube-root-ca.crt": {"data": {"ca.crt": "PEM"}}}
    made = volumes_in(tmp_path, objects)
    await made.prepare(make_pod({"name": "api", "projected": {"sources": sources}}))
    [mount] = made.mounts({"volumeMounts": [{"name": "api", "mountPath": "/api"}]}, {})
    assert {file.name: file.read_text() for file in mount.source.iterdir()} == {
        "token": "a token", "ca.crt": "PEM", "namespace": "ns"
    }  # fmt: skip


async def test_a_claim_is_its_volumes_folder(tmp_path: Path) -> None:
    """Bound claims give the hostPath of their volume, whose files outlive the pod; unbound ones are waited for."""
    claim = {"spec": {"volumeName": "v"}, "status": {"phase": "Pending"}}
    objects: dict[str, Any] = {
        "/api/v1/namespaces/ns/persistentvolumeclaims/data": claim,
        "/api/v1/persistentvolumes/v": {
            "metadata": {"name": "v"},
            "spec": {"hostPath": {"path": str(tmp_path / "v")}},
        },
    }
    made = volumes_in(tmp_path, objects)
    pod = make_pod({"name": "data", "persistentVolumeClaim": {"claimName": "data"}}, group=os.getgid())
    with pytest.raises(Missing, match="claim data is not bound"):
        await made.prepare(pod)
    claim["status"]["phase"] = "Bound"
    await made.prepare(pod)
    [mount] = made.mounts({"volumeMounts": [{"name": "data", "mountPath": "/data", "subPath": "a/b"}]}, {})
    assert mount.source == tmp_path / "v" / "a" / "b"
    assert (tmp_path / "v").stat().st_mode & 0o2070 == 0o2070
    made.remove()
    assert mount.source.is_dir()


async def test_an_unknown_volume_is_named(tmp_path: Path) -> None:
    """Rather than an empty folder in its place."""
    with pytest.raises(Missing, match="volume v: there is no nfs on this node"):
        await volumes_in(tmp_path, {}).prepare(make_pod({"name": "v", "nfs": {"server": "s", "path": "/"}}))


def test_the_last_lines_of_a_log() -> None:
    """As kubectl logs --tail asks for them; the last one need not be whole."""
    assert last_lines(b"a\nb\nc", 2) == b"b\nc"
    assert last_lines(b"a\n", 0) == b""
    assert last_lines(b"a\nb\n", None) == b"a\nb\n"
