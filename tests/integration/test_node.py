"""The node of tests/e2e against the API server of tests/fakes/kube: real processes in namespaces of their own."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.node.api import Api
from tests.e2e.node.kubelet import Addresses, Kubelet
from tests.e2e.node.process import ROOT, namespaces_refused
from tests.e2e.node.registration import NodeSpec
from tests.fakes.kube import KubeServer

WHY = namespaces_refused()
pytestmark = pytest.mark.skipif(WHY is not None, reason=f"pods need namespaces: {WHY}")
Object = dict[str, Any]
NOBODY = 10001
SHELL = ["/bin/sh", "-c"]


class World:
    """A server with one node, and a pod's file system for things to be seen in."""

    def __init__(self, server: KubeServer, api: Api, kubelet: Kubelet, folder: Path) -> None:
        self.server, self.api, self.kubelet, self.folder = server, api, kubelet, folder

    def run(self, name: str, script: str, *, volumes: list[Object] | None = None, **spec: Any) -> None:
        """A pod of one container with this shell script."""
        container = {
            "name": "main",
            "image": "none",
            "command": [*SHELL, script],
            **spec.pop("container", {}),
        }
        metadata = {"name": name, "namespace": "default", **spec.pop("metadata", {})}
        given = {"nodeName": "gpu-0", "containers": [container], "terminationGracePeriodSeconds": 5, **spec}
        given |= {"volumes": volumes} if volumes else {}
        self.server.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": given})

    def pod(self, name: str) -> Object:
        return dict(self.server.get("Pod", name) or {})

    def state(self, name: str) -> Object:
        """Of its container."""
        return dict(((self.pod(name).get("status") or {}).get("containerStatuses") or [{}])[0])

    def log(self, name: str, start: int = 0) -> str:
        [log] = self.folder.glob(f"pods/default_{name}_*/logs/main/{start}.log")
        return log.read_text()


async def until(question: Callable[[], object], seconds: float = 15) -> None:
    """Wait until it is so."""
    ends = time.monotonic() + seconds
    while not question():
        assert time.monotonic() < ends, "it did not come to be in time"
        await asyncio.sleep(0.02)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A node that is Ready, on a network that no other test has."""
    addresses = Addresses(f"127.{random.randint(32, 250)}.{random.randint(0, 250)}.0/24")
    with KubeServer() as server:
        api, ending = Api(server.kubeconfig(tmp_path / "config")), asyncio.Event()
        spec = NodeSpec(
            name="gpu-0",
            address=addresses.node,
            labels={"pool": "policy"},
            taints=[{"key": "gpu", "value": "yes", "effect": "NoSchedule"}],
            capacity={"nvidia.com/gpu": "4"},
        )
        kubelet = Kubelet(api, spec, addresses, tmp_path / "node", log_port=0)
        running = asyncio.create_task(kubelet.run(ending))
        await until(lambda: server.get("Lease", "gpu-0", "kube-node-lease"))
        yield World(server, api, kubelet, tmp_path / "node")
        ending.set()
        await running
        assert server.get("Node", "gpu-0") is None
        assert server.get("Lease", "gpu-0", "kube-node-lease") is None
        await api.close()


async def test_a_node_is_registered(world: World) -> None:
    """With its labels, taints and GPUs, Ready; and it leaves no trace (the fixture looks)."""
    node = world.server.get("Node", "gpu-0")
    assert node is not None
    assert node["metadata"]["labels"]["pool"] == "policy"
    assert node["spec"]["taints"] == [{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]
    assert node["status"]["allocatable"]["nvidia.com/gpu"] == "4"
    ready = {one["type"]: one["status"] for one in node["status"]["conditions"]}
    assert ready["Ready"] == "True"


async def test_a_pod_runs_to_its_end(world: World) -> None:
    """Its own user, root, mounts, names and variables; its exit status in the pod's."""
    ours = Path(tempfile.gettempdir()) / f"trimtab-node-{os.getpid()}"
    ours.touch()
    world.server.create({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"mode": "fast"}
    })  # fmt: skip
    world.run(
        "once",
        "id -u; hostname; cat /etc/trimtab/mode; echo; echo $IP; echo mine > /scratch/file && cat /scratch/file;"
        f"touch /tmp/x 2>/dev/null || echo read-only; test -e {ours} || echo hidden; exit 3",
        restartPolicy="Never",
        securityContext={"runAsUser": NOBODY, "runAsGroup": NOBODY, "fsGroup": NOBODY, "runAsNonRoot": True},
        container={
            "env": [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
            "securityContext": {"readOnlyRootFilesystem": True},
            "volumeMounts": [
                {"name": "config", "mountPath": "/etc/trimtab", "readOnly": True},
                {"name": "scratch", "mountPath": "/scratch"},
            ],
        },
        volumes=[{"name": "config", "configMap": {"name": "settings"}}, {"name": "scratch", "emptyDir": {}}],
    )
    await until(lambda: world.pod("once").get("status", {}).get("phase") == "Failed")
    ours.unlink()
    address = world.pod("once")["status"]["podIP"]
    assert world.log("once").split() == [str(NOBODY), "once", "fast", address, "mine", "read-only", "hidden"]
    ended = world.state("once")["state"]["terminated"]
    assert (ended["exitCode"], ended["reason"]) == (3, "Error")
    assert not Path("/scratch").exists()
    assert not Path("/etc/trimtab").exists()


async def test_init_containers_come_first_and_sidecars_stay(world: World) -> None:
    """One after the other; a sidecar runs beside the pod's container and ends after it."""
    mount = {"volumeMounts": [{"name": "shared", "mountPath": "/shared"}]}
    first = {"name": "first", "image": "none", "command": [*SHELL, "echo 1 >> /shared/order"], **mount}
    beside = {
        "name": "beside", "image": "none", "restartPolicy": "Always",
        "command": [*SHELL, "echo 2 >> /shared/order; trap 'echo 4 >> /shared/order; exit 0' TERM; sleep 60 & wait"],
        "startupProbe": {"exec": {"command": ["grep", "2", "/shared/order"]}, "periodSeconds": 1}, **mount,
    }  # fmt: skip
    world.run(
        "staged",
        "echo 3 >> /shared/order",
        restartPolicy="Never",
        initContainers=[first, beside],
        container=mount,
        volumes=[
            {"name": "shared", "hostPath": {"path": str(world.folder / "s"), "type": "DirectoryOrCreate"}}
        ],
    )
    await until(lambda: world.pod("staged").get("status", {}).get("phase") == "Succeeded")
    await until(lambda: (world.folder / "s" / "order").read_text().split() == ["1", "2", "3", "4"])


async def test_a_failed_init_container_fails_the_pod(world: World) -> None:
    """Where nothing is to be restarted: the pod's container never starts."""
    first = {"name": "first", "image": "none", "command": [*SHELL, "exit 1"]}
    world.run("stuck", "echo never", restartPolicy="Never", initContainers=[first])
    await until(lambda: world.pod("stuck").get("status", {}).get("phase") == "Failed")
    assert "waiting" in world.state("stuck")["state"]


async def test_probes_decide(world: World) -> None:
    """Readiness shows in status; a failed liveness probe ends the process, and the policy starts another."""
    world.run(
        "probed",
        "trap 'exit 0' TERM; touch /work-dir/alive; while true; do sleep 0.05; done",
        container={
            "volumeMounts": [{"name": "d", "mountPath": "/work-dir"}],
            "readinessProbe": {"exec": {"command": ["test", "-e", "/work-dir/alive"]}, "periodSeconds": 1},
            "livenessProbe": {
                "exec": {"command": ["test", "-e", "/work-dir/alive"]},
                "periodSeconds": 1, "initialDelaySeconds": 1, "failureThreshold": 1,
            },
        },
        volumes=[{"name": "d", "hostPath": {"path": str(world.folder / "d"), "type": "DirectoryOrCreate"}}],
    )  # fmt: skip
    await until(lambda: world.state("probed").get("ready"))
    (world.folder / "d" / "alive").unlink()
    await until(lambda: world.state("probed").get("restartCount") == 1 and world.state("probed").get("ready"))
    ended = world.state("probed")["lastState"]["terminated"]
    assert ended["exitCode"] == 0
    assert "liveness probe failed" in ended["message"]


async def test_a_network_probe_asks_the_pods_own_address(world: World) -> None:
    """Two pods may listen on the same port; each is asked by itself, TCP and HTTP alike."""
    serve = "exec python -m http.server 8000 --bind $POD_IP --directory /etc"
    for name, probe in (
        ("tcp", {"tcpSocket": {"port": "web"}}),
        ("http", {"httpGet": {"path": "/", "port": 8000}}),
    ):
        world.run(
            name,
            serve,
            container={
                "env": [{"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
                "ports": [{"name": "web", "containerPort": 8000}],
                "readinessProbe": {**probe, "periodSeconds": 1},
            },
        )
    await until(lambda: world.state("tcp").get("ready") and world.state("http").get("ready"))


async def test_deletion_gives_a_pod_its_grace(world: World) -> None:
    """preStop, then SIGTERM, then the object goes; one that ignores SIGTERM is killed when its time is over."""
    seen = {"name": "d", "hostPath": {"path": str(world.folder / "d"), "type": "DirectoryOrCreate"}}
    mount = {"volumeMounts": [{"name": "d", "mountPath": "/seen"}]}
    hook = {"lifecycle": {"preStop": {"exec": {"command": [*SHELL, "echo hook >> /seen/order"]}}}}
    world.run(
        "polite",
        "trap 'echo term >> /seen/order; exit 0' TERM; while true; do sleep 0.05; done",
        container=mount | hook,
        volumes=[seen],
    )
    world.run("deaf", "while true; do sleep 0.05; done", terminationGracePeriodSeconds=1)
    await until(lambda: world.state("polite").get("ready") and world.state("deaf").get("ready"))
    # The shell has to reach its trap.
    await until(lambda: len(processes("polite")) == 2 and len(processes("deaf")) == 2)
    for name in ("polite", "deaf"):
        await world.api.delete(f"/api/v1/namespaces/default/pods/{name}")
    await until(lambda: not world.pod("polite") and not world.pod("deaf"))
    assert (world.folder / "d" / "order").read_text().split() == ["hook", "term"]
    await until(lambda: not processes("polite") and not processes("deaf"))


async def test_names_of_services_are_resolved_in_pods(world: World) -> None:
    """By the short name that our configuration has, as soon as the pod behind it is ready."""
    world.server.create({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "queue"},
        "spec": {"clusterIP": "None", "selector": {"app": "queue"}, "ports": [{"port": 6379}]},
    })  # fmt: skip
    world.run("behind", "sleep 60", metadata={"labels": {"app": "queue"}})
    await until(lambda: world.state("behind").get("ready"))
    script = "until getent ahostsv4 queue.default.svc > /here/x; do sleep 0.1; done; cut -d' ' -f1 /here/x | sort -u"
    world.run(
        "asks",
        script,
        restartPolicy="Never",
        container={"volumeMounts": [{"name": "here", "mountPath": "/here"}]},
        volumes=[{"name": "here", "emptyDir": {}}],
    )
    await until(lambda: world.pod("asks").get("status", {}).get("phase") == "Succeeded")
    assert world.log("asks").split() == [world.pod("behind")["status"]["podIP"]]


async def test_annotations_reach_a_running_pod(world: World) -> None:
    """Through a downwardAPI file, without a restart."""
    fields = [{"path": "drain", "fieldRef": {"fieldPath": "metadata.annotations['drain']"}}]
    world.run(
        "told",
        "until grep -q yes /info/drain; do sleep 0.05; done; echo drained",
        restartPolicy="Never",
        container={"volumeMounts": [{"name": "info", "mountPath": "/info", "readOnly": True}]},
        volumes=[{"name": "info", "downwardAPI": {"items": fields}}],
    )
    await until(lambda: world.state("told").get("ready"))
    await world.api.patch(
        "/api/v1/namespaces/default/pods/told", {"metadata": {"annotations": {"drain": "yes"}}}
    )
    await until(lambda: world.pod("told").get("status", {}).get("phase") == "Succeeded")
    assert world.log("told") == "drained\n"


@pytest.mark.parametrize(
    ("spec", "kind", "words"),
    [
        ({"command": ["no-such-program"]}, "terminated", "no-such-program is not on this node's PATH"),
        ({"command": None}, "waiting", "container main has no command"),
        (
            {"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]},
            "waiting",
            "Secret s not",
        ),
    ],
)
async def test_what_cannot_start_says_why(world: World, spec: Object, kind: str, words: str) -> None:
    """In the container's state, where `kubectl describe` shows it."""
    world.run("wrong", "true", restartPolicy="Never", container=spec)
    await until(lambda: words in world.state("wrong").get("state", {}).get(kind, {}).get("message", ""))


def test_nothing_outlives_a_node_that_is_killed(tmp_path: Path) -> None:
    """SIGKILL of the node: its pods' processes, and what they have started, end with it."""
    with KubeServer() as server:
        flags = [
            "--kubeconfig", str(server.kubeconfig(tmp_path / "config")), "--name", "gpu-0",
            "--network", f"127.{random.randint(32, 250)}.{random.randint(0, 250)}.0/24",
            "--folder", str(tmp_path / "n"),
        ]  # fmt: skip
        node = subprocess.Popen([sys.executable, "-m", "tests.e2e.node", *flags], cwd=ROOT)
        try:
            container = {"name": "main", "image": "none", "command": [*SHELL, "sleep 60 & wait"]}
            server.create({
                "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "orphan"},
                "spec": {"nodeName": "gpu-0", "containers": [container]},
            })  # fmt: skip
            asyncio.run(until(lambda: len(processes("orphan")) == 2, 30))
            node.send_signal(signal.SIGKILL)
            node.wait()
            asyncio.run(until(lambda: not processes("orphan")))
        finally:
            node.kill()
            node.wait()


def test_a_node_that_cannot_reach_a_server_says_so(tmp_path: Path) -> None:
    """One line, exit status 2 for a file that is not there."""
    flags = ["--kubeconfig", str(tmp_path / "none"), "--name", "gpu-0"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.node", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=dict(os.environ),
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "no such file" in done.stderr


def processes(pod: str) -> list[int]:
    """By the host name that a pod's processes are given."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("HOSTNAME") == pod and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found
