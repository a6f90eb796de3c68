"""A run on a cluster from the chart to its deletion, with nodes without containers: make e2e-cluster KUBECONFIG=file.

Needs an API server, controller manager and scheduler, root (pods get namespaces of their own), helm and kubectl from
`make helm`. One test, since each step begins where the one before has ended; each prints what it saw.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster import objects
from tests.e2e.cluster.eyes import Eyes, accounting, is_ready, rise, tell_trouble
from tests.e2e.cluster.leftovers import cluster_objects, objects_in, processes
from tests.e2e.cluster.nodes import processes_of
from tests.e2e.cluster.objects import RUN
from tests.e2e.cluster.plane import ROOT, Plane, holds, until
from tests.e2e.cluster.stage import Stage, sweep

CHARTS = ROOT / "deploy" / "charts"
RISE = 0.2
"""Of the mean optimality, in [0, 1], from the first five steps to the last five."""
LAST_STEPS = 20
SERVICES = ("policy", "reference", "reward", "learner", "redis")
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]


@pytest.fixture
def stage() -> Iterator[Stage]:
    """Whatever happens, nothing of the test stays in the cluster or on this machine."""
    given = Path(os.environ.get("TRIMTAB_TEST_KUBECONFIG", ""))
    if not given.is_file():
        pytest.fail("no control plane: make e2e-cluster KUBECONFIG=file")
    if os.geteuid() != 0:
        pytest.fail("pods get namespaces of their own, which only root may make")
    # Not below pytest's folders, which only root may enter: pods have a user of their own.
    folder = Path(tempfile.mkdtemp(prefix="trimtab-e2e-"))
    folder.chmod(0o755)
    made = Stage(Plane(given), folder)
    try:
        yield made
    finally:
        sweep(made)
        shutil.rmtree(folder, ignore_errors=True)


def test_a_run_from_the_chart_to_its_deletion(stage: Stage) -> None:
    """Installed, trained on four pools, scaled, drained, its leader killed, suspended, resumed, deleted: all exact."""
    try:
        comes_up(stage)
        installs(stage)
        trains(stage)
        scales_reward_alone(stage)
        drains_a_node(stage)
        drains_the_learner(stage)
        loses_its_leader(stage)
        suspends_and_resumes(stage)
        adds_up(stage)
        leaves_nothing(stage)
    except BaseException:
        tell_trouble(stage.plane, [stage.system, stage.namespace], stage.nodes)
        raise


def comes_up(stage: Stage) -> None:
    """The control plane works, and has nodes."""
    print()
    with stage.tell.step("control plane") as seen:
        seen.append(stage.plane.check())
        seen.append("controller manager and scheduler answer")
    with stage.tell.step("nodes") as seen:
        stage.nodes.start()
        seen.append(f"{len(stage.nodes.plans)} Ready")


def installs(stage: Stage) -> None:
    """Both charts, as the documentation says, and `helm test`."""
    plane = stage.plane
    with stage.tell.step("helm install") as seen:
        plane.kubectl("create", "namespace", stage.namespace)
        crds = ["upgrade", "--install", "trimtab-crds", str(CHARTS / "trimtab-crds")]
        plane.helm(*crds, "--namespace", stage.system, "--create-namespace", "--take-ownership")
        plane.helm(
            "upgrade", "--install", "trimtab", str(CHARTS / "trimtab"), "--namespace", stage.system,
            "--values", "-", "--wait", "--timeout", "120s", given=json.dumps(objects.chart_values(stage.namespace)),
        )  # fmt: skip
        operators = plane.items("pods", "-n", stage.system)
        seen.append(f"{sum(map(is_ready, operators))} of {len(operators)} operators ready")
        assert sum(map(is_ready, operators)) == 2
        stage.before_the_run = objects_in(plane, stage.namespace)
    with stage.tell.step("helm test") as seen:
        told = plane.helm("test", "trimtab", "--namespace", stage.system)
        assert "Phase:          Succeeded" in told, told
        seen.append("Succeeded")


def trains(stage: Stage) -> None:
    """A small task over four pools, until the reward has clearly risen."""
    from tests.e2e.cluster.walks import make_files

    plane, eyes = stage.plane, stage.eyes
    with stage.tell.step("task") as seen:
        make_files(stage.folder / "runs")
        plane.apply(*objects.volumes(stage.tag, stage.namespace, stage.folder))
        plane.apply(objects.training_run(stage.tag, stage.namespace))
        seen.append("random walks: model of 23 symbols pretrained on the data's walks; TrainingRun applied")
    with stage.tell.step("pools") as seen:
        plane.kubectl(
            "wait",
            "--for=condition=Available",
            f"trun/{RUN}",
            "-n",
            stage.namespace,
            "--timeout=240s",
            seconds=260,
        )
        for service in SERVICES:
            [pod] = eyes.ready(service)
            node = pod["spec"]["nodeName"].removeprefix(f"{stage.tag}-")
            assert node.startswith("system" if service == "redis" else service), (service, node)
            seen.append(f"{service} on {node}")
    with stage.tell.step("training") as seen:
        until("a rise of the reward", lambda: _risen(eyes), 420, every=1)
        first, last = rise(eyes.rows())
        seen.append(f"mean optimality {first:.3f} in steps 1 to 5, {last:.3f} in the last 5 of {eyes.step}")
        words, exact = accounting(eyes.rows()[-1])
        assert exact, words
        seen.append(words)


def _risen(eyes: Eyes) -> bool:
    first, last = rise(eyes.rows())
    return last - first >= RISE


def scales_reward_alone(stage: Stage) -> None:
    """`kubectl scale` of one Deployment: its pods, nobody else's; both take work."""
    plane, eyes = stage.plane, stage.eyes
    with stage.tell.step("kubectl scale reward to 2") as seen:
        before = eyes.uids()
        plane.kubectl("scale", f"deployment/{RUN}-reward", "--replicas=2", "-n", stage.namespace)
        until("two reward replicas serve", lambda: len(eyes.ready("reward")) == 2, 90)
        until("both take groups", lambda: _both_work(eyes), 60)
        after = eyes.uids()
        assert {name: pods for name, pods in after.items() if name != "reward"} == {
            name: pods for name, pods in before.items() if name != "reward"
        }
        assert before["reward"] < after["reward"]
        done = [int(eyes.groups_done(pod, 50253)) for pod in eyes.ready("reward")]
        seen.append(f"both serve and have scored {done[0]} and {done[1]} groups; no other pod changed")


def _both_work(eyes: Eyes) -> bool:
    return all(eyes.groups_done(pod, 50253) > 0 for pod in eyes.ready("reward"))


def drains_a_node(stage: Stage) -> None:
    """The node of the policy is drained while it generates: its pod moves, nothing fails."""
    plane, eyes = stage.plane, stage.eyes
    with stage.tell.step("kubectl drain under load") as seen:
        [pod] = eyes.ready("policy")
        node, step, failed = pod["spec"]["nodeName"], eyes.step, eyes.rows()[-1]["rollouts/failed"]
        began = time.monotonic()
        plane.kubectl("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=90s")
        took = time.monotonic() - began
        [moved] = until("the policy serves elsewhere", lambda: eyes.ready("policy"), 90)
        assert moved["spec"]["nodeName"] != node
        until("training goes on", lambda: eyes.step >= step + 5, 120)
        assert eyes.rows()[-1]["rollouts/failed"] == failed
        plane.kubectl("uncordon", node)
        place = moved["spec"]["nodeName"].removeprefix(f"{stage.tag}-")
        seen.append(
            f"empty after {took:.1f} s, policy on {place}, step {step} to {eyes.step}, no group failed"
        )


def drains_the_learner(stage: Stage) -> None:
    """The learner's node is drained: a last checkpoint, another attempt from it, and no failure of the run's own."""
    plane, eyes = stage.plane, stage.eyes
    with stage.tell.step("kubectl drain of the learner") as seen:
        [pod] = eyes.ready("learner")
        node, attempt, step = pod["spec"]["nodeName"], eyes.status["attempt"], eyes.step
        began = time.monotonic()
        plane.kubectl("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=90s")
        took = time.monotonic() - began
        written = _checkpoint(eyes)
        assert step <= written == eyes.step
        plane.kubectl("uncordon", node)
        until("another attempt trains", lambda: eyes.status.get("attempt") == attempt + 1, 60)
        until("training goes on", lambda: eyes.step >= written + 5, 120)
        assert not eyes.condition("Finished") or eyes.condition("Finished")["status"] != "True"
        assert (eyes.status.get("restarts"), eyes.status.get("failures", 0)) == (1, 0)
        seen.append(
            f"empty after {took:.1f} s with a checkpoint of step {written}; attempt {attempt + 1} goes on"
        )


def loses_its_leader(stage: Stage) -> None:
    """SIGKILL of the operator that leads: the other one does, and the run never notices."""
    plane, eyes = stage.plane, stage.eyes
    with stage.tell.step("kill -9 of the operator's leader") as seen:
        before = _leader(stage)
        pod = before.rpartition("-")[0]
        step, pods = eyes.step, eyes.uids()
        began = time.monotonic()

        def another() -> str:
            # As often as its container begins again: else it is a race which of the two gets the lease.
            for process in processes_of(pod):
                process.send_signal(signal.SIGKILL)
            leader = _leader(stage)
            return leader if leader.rpartition("-")[0] != pod else ""

        until("the other leads", another, 60)
        took = time.monotonic() - began
        until("training goes on", lambda: eyes.step > step, 60)
        assert eyes.uids() == pods
        restarted = until("it is back", lambda: _restarts(plane, stage.system, pod), 60)
        seen.append(
            f"the other leads after {took:.1f} s; step {step} to {eyes.step} meanwhile; restarts {restarted}"
        )


def _leader(stage: Stage) -> str:
    return str(
        stage.plane.get("lease", "trimtab-operator", "-n", stage.system)["spec"].get("holderIdentity") or ""
    )


def _restarts(plane: Plane, namespace: str, pod: str) -> int:
    status = plane.get("pod", pod, "-n", namespace)["status"]["containerStatuses"][0]
    return int(status["restartCount"]) if status["ready"] else 0


def suspends_and_resumes(stage: Stage) -> None:
    """A checkpoint, then no pods; on from that checkpoint with the replicas of before, to the end."""
    plane, eyes = stage.plane, stage.eyes
    with stage.tell.step("suspend") as seen:
        _patch(stage, {"suspend": True})
        until("no pods", lambda: not [pod for pod in eyes.pods() if not _is_queue(pod)], 120)
        written, reached = _checkpoint(eyes), eyes.step
        # Status has what the operator was told last: between two looks at the learner it may be an older one.
        told = eyes.status.get("lastCheckpoint") or {}
        assert 0 < told["step"] <= written <= reached
        left = sorted(pod["metadata"]["name"] for pod in eyes.pods())
        seen.append(f"checkpoint of step {written} (status: {told['step']}); pods left: {', '.join(left)}")
        seen.append(f"{reached - written} steps after it will be trained again")
    with stage.tell.step("resume") as seen:
        attempt = eyes.status["attempt"]
        _patch(stage, {"suspend": False, "steps": written + LAST_STEPS})
        until("two reward replicas again", lambda: len(eyes.ready("reward")) == 2, 120)
        until("training goes on", lambda: eyes.step > written, 120)
        status = until(
            "another attempt", lambda: eyes.status if eyes.status.get("attempt", 0) > attempt else None, 30
        )
        seen.append(f"attempt {status['attempt']} went on with step {written + 1}; reward has its 2 replicas")
    with stage.tell.step("end") as seen:
        plane.kubectl(
            "wait",
            "--for=condition=Finished",
            f"trun/{RUN}",
            "-n",
            stage.namespace,
            "--timeout=240s",
            seconds=260,
        )
        finished = eyes.condition("Finished")
        assert finished["reason"] == "Succeeded", finished
        seen.append(f"{finished['reason']} at step {eyes.step} of {written + LAST_STEPS}")
        assert eyes.step == written + LAST_STEPS


def _patch(stage: Stage, spec: dict[str, object]) -> None:
    patch = json.dumps({"spec": spec})
    stage.plane.kubectl("patch", "trun", RUN, "-n", stage.namespace, "--type=merge", "-p", patch)


def _is_queue(pod: dict[str, dict[str, dict[str, str]]]) -> bool:
    return pod["metadata"]["labels"]["trimtab.dev/service"] == "redis"


def _checkpoint(eyes: Eyes) -> int:
    """Step of the newest on the volume."""
    newest = max(eyes.folder.glob("checkpoints/step-*/state.json"))
    return int(json.loads(newest.read_text())["step"])


def adds_up(stage: Stage) -> None:
    """Every step once and in order, every group accounted for, by three tellers."""
    eyes = stage.eyes
    with stage.tell.step("accounting") as seen:
        rows = eyes.rows()
        assert [int(row["step"]) for row in rows] == list(range(1, len(rows) + 1))
        for row in rows:
            words, exact = accounting(row)
            assert exact, f"step {row['step']:.0f}: {words}"
        last = rows[-1]
        assert last["rollouts/in_flight"] == 0
        assert last["rollouts/trained"] == objects.BATCH_GROUPS * len(rows)
        newest = max(eyes.folder.glob("checkpoints/step-*/state.json"))
        ledger = json.loads(newest.read_text())["ledger"]
        assert ledger["in_flight"] == []
        told = until("the operator's figures", lambda: _told(eyes, last), 60)
        first, best = rise(rows)
        seen.append(
            f"{accounting(last)[0]}; {len(rows)} steps, each once; the operator's status says the same: {told}"
        )
        seen.append(f"mean optimality {first:.3f} to {best:.3f}")


def _told(eyes: Eyes, row: dict[str, float]) -> str:
    """What status says, once it is what the last row says."""
    rollouts = eyes.status.get("rollouts") or {}
    wanted = {
        "admitted": "admitted",
        "trained": "trained",
        "stale": "stale",
        "failed": "failed",
        "inFlight": "in_flight",
    }
    same = all(rollouts.get(theirs, 0) == row[f"rollouts/{ours}"] for theirs, ours in wanted.items())
    return json.dumps(rollouts) if same else ""


def leaves_nothing(stage: Stage) -> None:
    """Run, release and nodes go: no object, no process. The run's files stay until their owner removes them."""
    plane, eyes = stage.plane, stage.eyes
    with stage.tell.step("delete the run") as seen:
        checkpoints = sorted(eyes.folder.glob("checkpoints/step-*"))
        plane.kubectl("delete", "trun", RUN, "-n", stage.namespace, "--timeout=120s", seconds=140)
        before = stage.before_the_run | {"persistentvolumeclaim/runs"}
        holds(lambda: objects_in(plane, stage.namespace) <= before, 60)
        assert objects_in(plane, stage.namespace) - before == set()
        assert checkpoints and all(path.exists() for path in checkpoints)
        seen.append(f"no object left; its {len(checkpoints)} checkpoints are still on the volume")
    with stage.tell.step("helm uninstall") as seen:
        plane.helm("uninstall", "trimtab", "--namespace", stage.system, "--wait")
        if not stage.had_crds:
            plane.helm("uninstall", "trimtab-crds", "--namespace", stage.system, "--wait")
        plane.kubectl("delete", "pvc", "runs", "-n", stage.namespace, "--timeout=60s")
        plane.kubectl("delete", "pv", f"{stage.tag}-runs", f"{stage.tag}-queue", "--timeout=60s")
        plane.kubectl("delete", "namespace", stage.system, stage.namespace, "--timeout=120s", seconds=140)
        left = [
            line
            for line in cluster_objects(plane)
            if stage.tag in line and "/node" not in line and not line.startswith("node/")
        ]
        assert not [line for line in left if not line.startswith(("lease.", "event"))], left
        seen.append("no object of the release, no namespace")
    with stage.tell.step("stop the nodes") as seen:
        pods = {
            path.parent.name
            for plan in stage.nodes.plans
            for path in (stage.nodes.folder / plan.name).glob("pods/*/logs")
        }
        stage.nodes.stop()
        until(
            "no Node is left",
            lambda: not [line for line in stage.find("nodes").splitlines() if stage.tag in line],
            30,
        )
        assert not processes(stage.folder)
        seen.append(f"{len(pods)} pods had run here; no process, no Node, no Lease")
