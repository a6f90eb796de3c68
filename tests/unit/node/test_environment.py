"""Variables of a container: references, fields, quantities."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.node.environment import (
    Missing,
    command_of,
    expand,
    field_of,
    quantity,
    resource_of,
    variables_of,
)

POD: dict[str, Any] = {
    "metadata": {
        "name": "web-0", "namespace": "rlhf", "uid": "u1",
        "labels": {"app": "web"}, "annotations": {"note": 'say "hi"\n', "a": "1"},
    },
    "spec": {"nodeName": "gpu-0", "serviceAccountName": "runs"},
    "status": {"podIP": "127.16.0.2", "hostIP": "127.16.0.1"},
}  # fmt: skip
OBJECTS = {
    ("ConfigMap", "settings"): {"kind": "ConfigMap", "data": {"MODE": "fast", "SIZE": "3"}},
    ("Secret", "key"): {"kind": "Secret", "data": {"url": "cmVkaXM6Ly9x"}},
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$(A)/$(B)", "1/2"),
        ("$(MISSING)", "$(MISSING)"),
        ("$$(A)", "$(A)"),
        ("cost: $5 $(A", "cost: $5 $(A"),
        ("$(A)$(A)", "11"),
    ],
)
def test_references_are_filled_in(text: str, expected: str) -> None:
    """$(NAME) of a known name is replaced, an unknown one stays, $$ is one dollar."""
    assert expand(text, {"A": "1", "B": "2"}) == expected


def test_variables_come_in_order() -> None:
    """The image's, then envFrom, then env, each able to refer to those before it."""
    container = {
        "name": "c",
        "envFrom": [{"prefix": "S_", "configMapRef": {"name": "settings"}}],
        "env": [
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "URL", "valueFrom": {"secretKeyRef": {"name": "key", "key": "url"}}},
            {"name": "BOTH", "value": "$(IP) $(URL) $(S_MODE) $(LATER)"},
            {"name": "LATER", "value": "x"},
            {"name": "PATH", "value": "/mine"},
            {"name": "NONE", "valueFrom": {"configMapKeyRef": {"name": "no", "key": "k", "optional": True}}},
        ],
    }
    made = variables_of(POD, container, {"PATH": "/bin"}, lambda kind, name: OBJECTS.get((kind, name)))
    assert made == {
        "PATH": "/mine", "S_MODE": "fast", "S_SIZE": "3", "IP": "127.16.0.2", "URL": "redis://q",
        "BOTH": "127.16.0.2 redis://q fast $(LATER)", "LATER": "x",
    }  # fmt: skip
    assert command_of({"name": "c", "command": ["run", "--host=$(IP)"], "args": ["$(S_SIZE)"]}, made) == [
        "run", "--host=127.16.0.2", "3"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"secretKeyRef": {"name": "gone", "key": "k"}}, "Secret gone not found"),
        ({"secretKeyRef": {"name": "key", "key": "k"}}, "Secret key has no k"),
        ({"fieldRef": {"fieldPath": "spec.containers"}}, "field spec.containers cannot be referred to"),
    ],
)
def test_what_is_missing_is_named(source: dict[str, Any], words: str) -> None:
    """A reference to nothing says to what."""
    container = {"name": "c", "env": [{"name": "A", "valueFrom": source}]}
    with pytest.raises(Missing, match=words):
        variables_of(POD, container, {}, lambda kind, name: OBJECTS.get((kind, name)))


def test_an_image_without_a_command_cannot_be_run() -> None:
    """There are no images that would know one."""
    with pytest.raises(Missing, match="container c has no command"):
        command_of({"name": "c", "args": ["x"]}, {})


def test_fields_of_a_pod() -> None:
    """As env and as files: single values, and all labels or annotations with their values quoted."""
    assert field_of(POD, "metadata.labels['app']") == "web"
    assert field_of(POD, "metadata.annotations['none']") == ""
    assert field_of(POD, "metadata.annotations") == 'a="1"\nnote="say \\"hi\\"\\n"'
    assert field_of(POD, "spec.nodeName") == "gpu-0"


@pytest.mark.parametrize(
    ("text", "number"),
    [("500m", 0.5), ("64Gi", 64 * 2**30), ("3", 3), ("1e3", 1000), ("2k", 2000), ("1Mi", 2**20)],
)
def test_quantities(text: str, number: float) -> None:
    """Kubernetes' suffixes, of two and of ten."""
    assert float(quantity(text)) == number


def test_resources_are_rounded_up_to_the_divisor() -> None:
    """A limit of 1500m CPU is 2 cores or 1500 millis; one that is left out is the node's."""
    container = {"resources": {"limits": {"cpu": "1500m"}}}
    capacity = {"memory": "2Gi"}
    assert resource_of(container, {"resource": "limits.cpu"}, capacity) == "2"
    assert resource_of(container, {"resource": "limits.cpu", "divisor": "1m"}, capacity) == "1500"
    assert resource_of(container, {"resource": "limits.memory", "divisor": "1Mi"}, capacity) == "2048"
    assert resource_of(container, {"resource": "requests.cpu"}, capacity) == "0"
