"""Names of Services and pods."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from tests.e2e.node.dns import Names, answer, resolv_conf


def pod(
    name: str, address: str, *, ready: bool = True, namespace: str = "rlhf", **more: Any
) -> dict[str, Any]:
    status = {
        "phase": "Running",
        "podIP": address,
        "conditions": [{"type": "Ready", "status": str(ready)}],
        **more.pop("status", {}),
    }
    meta = {"name": name, "namespace": namespace, "labels": {"app": "web"}, **more.pop("metadata", {})}
    return {"metadata": meta, "spec": more.pop("spec", {}), "status": status}


@pytest.fixture
def names() -> Names:
    made = Names()
    for name, early in (("web", False), ("early", True)):
        made.services["rlhf", name] = {
            "spec": {"clusterIP": "None", "selector": {"app": "web"}, "publishNotReadyAddresses": early}
        }
    made.services["rlhf", "outside"] = {"spec": {"type": "ExternalName"}}
    named = {"hostname": "web-0", "subdomain": "web"}
    for item in (
        pod("a", "127.0.1.3", spec=named),
        pod("b", "127.0.1.2"),
        pod("slow", "127.0.1.4", ready=False),
        pod("going", "127.0.1.5", metadata={"deletionTimestamp": "now"}),
        pod("done", "127.0.1.6", ready=False, status={"phase": "Succeeded"}),
        pod("other", "127.0.1.7", namespace="else"),
    ):
        made.pods[item["metadata"]["namespace"], item["metadata"]["name"]] = item
    return made


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("web.rlhf.svc.cluster.local", ["127.0.1.2", "127.0.1.3"]),
        ("WEB.rlhf.svc.cluster.local.", ["127.0.1.2", "127.0.1.3"]),
        ("early.rlhf.svc.cluster.local", ["127.0.1.2", "127.0.1.3", "127.0.1.4", "127.0.1.5"]),
        ("web-0.web.rlhf.svc.cluster.local", ["127.0.1.3"]),
        ("web-1.web.rlhf.svc.cluster.local", None),
        ("web-0.early.rlhf.svc.cluster.local", None),
        ("outside.rlhf.svc.cluster.local", []),
        ("web.else.svc.cluster.local", None),
        ("web.rlhf.svc", None),
        ("example.com", None),
    ],
)
def test_a_name_stands_for_pods_that_serve(names: Names, name: str, found: list[str] | None) -> None:
    """Ready pods of the Service, not ready ones where it publishes them, never those that have ended."""
    assert names.look_up(name) == found


def query(name: str, kind: int = 1) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!HHHHHH", 77, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", kind, 1)


def test_answers_on_the_wire(names: Names) -> None:
    """Number and question come back; an address record for each pod; no such name is NXDOMAIN."""
    asked = query("web.rlhf.svc.cluster.local")
    told = answer(asked, names)
    number, flags, questions, answers = struct.unpack_from("!HHHH", told)
    assert (number, flags & 0x000F, questions, answers) == (77, 0, 1, 2)
    assert flags & 0x8400 == 0x8400
    assert told[12 : len(asked)] == asked[12:]
    assert [tuple(told[at : at + 4]) for at in (len(asked) + 12, len(asked) + 28)] == [
        (127, 0, 1, 2),
        (127, 0, 1, 3),
    ]
    assert answer(query("nobody.rlhf.svc.cluster.local"), names)[3] & 0x0F == 3


def test_a_name_without_such_a_record_is_no_error(names: Names) -> None:
    """AAAA of a name that exists: no error and no record, so that resolvers take the A record."""
    told = answer(query("web.rlhf.svc.cluster.local", kind=28), names)
    assert (told[3] & 0x0F, struct.unpack_from("!H", told, 6)[0]) == (0, 0)


def test_an_answer_is_not_answered(names: Names) -> None:
    """Two servers cannot keep each other talking."""
    assert answer(answer(query("web.rlhf.svc.cluster.local"), names), names) == b""


def test_short_names_are_searched_as_in_a_cluster() -> None:
    """A pod's own namespace first; every name of ours has fewer than five dots."""
    text = resolv_conf("127.16.0.1", "rlhf")
    assert text.splitlines()[:2] == [
        "nameserver 127.16.0.1",
        "search rlhf.svc.cluster.local svc.cluster.local cluster.local",
    ]
    assert "ndots:5" in text
