"""The status that controllers write on Deployments, StatefulSets and Jobs, and the pods that they make. Pure."""

from __future__ import annotations

from typing import Any

from tests.fakes.kube.store import Object


def condition(kind: str, held: bool, reason: str, now: str, message: str = "") -> Object:
    """An entry of status.conditions."""
    return {
        "type": kind,
        "status": str(held),
        "reason": reason,
        "message": message,
        "lastTransitionTime": now,
    }


def with_conditions(status: Object, conditions: list[Object]) -> list[Object]:
    """Those of a status with some set; one whose status stays keeps its time."""
    found = {each["type"]: each for each in status.get("conditions", ())}
    for each in conditions:
        before = found.get(each["type"])
        same = before is not None and before["status"] == each["status"]
        found[each["type"]] = each | (
            {"lastTransitionTime": before["lastTransitionTime"]} if same and before else {}
        )
    return list(found.values())


def deployment_status(obj: Object, ready: int, now: str) -> Object:
    """With `ready` of the replicas that are wanted."""
    wanted = obj["spec"].get("replicas", 1)
    ready = min(ready, wanted)
    enough = ready >= wanted - (1 if wanted > 1 else 0)
    name = f'ReplicaSet "{obj["metadata"]["name"]}"'
    conditions = [
        condition("Available", enough, "MinimumReplicasAvailable" if enough else "MinimumReplicasUnavailable", now),
        condition("Progressing", True, "NewReplicaSetAvailable" if ready == wanted else "ReplicaSetUpdated", now,
                  f"{name} has successfully progressed." if ready == wanted else f"{name} is progressing."),
    ]  # fmt: skip
    counts = {"replicas": wanted, "updatedReplicas": wanted, "readyReplicas": ready, "availableReplicas": ready,
              "unavailableReplicas": wanted - ready}  # fmt: skip
    return _status(obj, counts, [
        each | {"lastUpdateTime": each["lastTransitionTime"]}
        for each in with_conditions(obj.get("status") or {}, conditions)
    ])  # fmt: skip


def statefulset_status(obj: Object, ready: int) -> Object:
    """With `ready` of the replicas that are wanted."""
    wanted = obj["spec"].get("replicas", 1)
    ready = min(ready, wanted)
    counts = {"replicas": wanted, "currentReplicas": wanted, "updatedReplicas": wanted, "readyReplicas": ready,
              "availableReplicas": ready}  # fmt: skip
    return _status(obj, counts, None)


def _status(obj: Object, counts: dict[str, int], conditions: list[Object] | None) -> Object:
    # Zeros are left out, as they are by the real one; replicas of a StatefulSet are not, but no client minds.
    kept = {name: number for name, number in counts.items() if number}
    found = {name: value for name, value in (obj.get("status") or {}).items() if name not in counts}
    found |= {"observedGeneration": obj["metadata"].get("generation", 1)} | kept
    return found if conditions is None else found | {"conditions": conditions}


def job_running(obj: Object, ready: int, now: str) -> Object:
    """As many pods as may run at once."""
    active = obj["spec"].get("parallelism", 1)
    started = (obj.get("status") or {}).get("startTime", now)
    return {"startTime": started, "active": active, "ready": min(ready, active), "terminating": 0,
            "uncountedTerminatedPods": {}}  # fmt: skip


def job_suspended(obj: Object, now: str) -> Object:
    """No pods, and said so."""
    before = obj.get("status") or {}
    return {
        "conditions": with_conditions(
            before, [condition("Suspended", True, "JobSuspended", now, "Job suspended")]
        )
    }


def job_succeeded(obj: Object, now: str) -> Object:
    """All completions."""
    before = obj.get("status") or {}
    done = obj["spec"].get("completions", 1)
    words = "Reached expected number of succeeded pods"
    conditions = [
        condition("SuccessCriteriaMet", True, "CompletionsReached", now, words),
        condition("Complete", True, "CompletionsReached", now, words),
    ]
    indexed = {"completedIndexes": "0" if done == 1 else f"0-{done - 1}"}
    return {
        "startTime": before.get("startTime", now), "completionTime": now, "succeeded": done, "ready": 0,
        "terminating": 0, "uncountedTerminatedPods": {}, "conditions": with_conditions(before, conditions),
    } | (indexed if obj["spec"].get("completionMode") == "Indexed" else {})  # fmt: skip


def job_failed(obj: Object, now: str, reason: str, message: str) -> Object:
    """One pod too many."""
    before = obj.get("status") or {}
    conditions = [
        condition("FailureTarget", True, reason, now, message),
        condition("Failed", True, reason, now, message),
    ]
    return {
        "startTime": before.get("startTime", now), "failed": 1, "ready": 0, "terminating": 0,
        "uncountedTerminatedPods": {}, "conditions": with_conditions(before, conditions),
    }  # fmt: skip


def is_finished(job: Object) -> bool:
    """Whether it has succeeded or failed."""
    conditions = (job.get("status") or {}).get("conditions", ())
    return any(each["type"] in ("Complete", "Failed") and each["status"] == "True" for each in conditions)


def pod_of(owner: Object, suffix: str, index: int | None = None) -> Object:
    """A pod from a workload's template."""
    meta, template = owner["metadata"], owner["spec"]["template"]
    above = template.get("metadata") or {}
    found = {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": f"{meta['name']}-{suffix}", "namespace": meta["namespace"],
            "labels": dict(above.get("labels") or {}), "annotations": dict(above.get("annotations") or {}),
            "ownerReferences": [{
                "apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": meta["name"], "uid": meta["uid"],
                "controller": True, "blockOwnerDeletion": True,
            }],
        },
        "spec": template["spec"],
    }  # fmt: skip
    if index is not None:
        mark = "batch.kubernetes.io/job-completion-index"
        found["metadata"]["labels"][mark] = found["metadata"]["annotations"][mark] = str(index)
    return found


def pod_status(pod: Object, phase: str, ready: bool, now: str, **fields: Any) -> Object:
    """Of a pod and its containers."""
    flags = {"Running": {"running": {"startedAt": now}}, "Succeeded": {"terminated": {"exitCode": 0}},
             "Failed": {"terminated": {"exitCode": 1}}}  # fmt: skip
    containers = [
        {"name": each["name"], "image": each.get("image", ""), "imageID": "", "ready": ready, "restartCount": 0,
         "started": phase == "Running", "state": flags.get(phase, {"waiting": {"reason": "ContainerCreating"}})}
        for each in pod["spec"]["containers"]
    ]  # fmt: skip
    conditions = [
        {"type": kind, "status": str(held), "lastTransitionTime": now}
        for kind, held in (
            ("PodScheduled", True),
            ("Initialized", True),
            ("ContainersReady", ready),
            ("Ready", ready),
        )
    ]
    return {
        "phase": phase,
        "startTime": now,
        "conditions": conditions,
        "containerStatuses": containers,
    } | fields
