"""What a TrainingRun stands for on Kubernetes."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest

from orchestrator.cluster.kinds import TrainingRun, read_object
from orchestrator.cluster.names import RunNames
from orchestrator.cluster.render import RenderOptions, RunState, redis_secret, render_run
from orchestrator.cluster.render.config import DRAIN_FILE
from orchestrator.queue_users import QueueUsers
from tests.unit.orchestrator.cluster.objects import FULL_RUN, RUN, UID, changed, found, run
from tests.unit.orchestrator.cluster.pods_rules import pod_specs, restricted_problems
from tests.unit.orchestrator.cluster.versions import VERSIONS, check

ATTEMPT = RunState(attempt=1)
TMP = "/tmp"  # noqa: S108 of the pod


def full(**paths: Any) -> TrainingRun:
    return read_object(TrainingRun, changed(FULL_RUN, **paths))


CASES = {
    "small": (run(), ATTEMPT),
    "full": (full(), ATTEMPT),
    "sft": (full(), RunState(stage="sft")),
    "external redis with users": (run(redis={"usersSecret": "queue"}), ATTEMPT),
    "external redis": (run(redis={"urlSecret": {"name": "queue", "key": "url"}}), ATTEMPT),
    "store": (run(storage={"objectStore": {"url": "gs://bucket/a"}}), ATTEMPT),
    "suspended": (run(suspend=True), RunState()),
    "tls": (full(tls={}), ATTEMPT),
    "external redis with an authority": (
        run(redis={"usersSecret": "queue", "caSecret": {"name": "queue-ca", "key": "ca.crt"}}),
        ATTEMPT,
    ),
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", CASES)
def test_manifests_fit_kubernetes_schemas(case: str, version: str) -> None:
    """Each release accepts every manifest, unknown fields being errors."""
    spec, state = CASES[case]
    users = QueueUsers.draw(RunNames.of(spec).run_uid, spec.spec.rollout.slip)
    secret = redis_secret(spec, RunNames.of(spec), users)
    for item in [*render_run(spec, state=state), secret]:
        if item["kind"] != "Workload":  # Kueue's
            check(item, version)


@pytest.mark.parametrize("case", CASES)
def test_the_same_input_gives_the_same_bytes(case: str) -> None:
    """A second apply has nothing to change."""
    spec, state = CASES[case]
    assert json.dumps(render_run(spec, state=state)) == json.dumps(render_run(spec, state=state))


@pytest.mark.parametrize("case", CASES)
def test_every_pod_is_restricted(case: str) -> None:
    """Every pod satisfies Pod Security `restricted`, has a read-only root, writable /tmp, and no token."""
    spec, state = CASES[case]
    for path, pod in pod_specs(render_run(spec, state=state)):
        assert list(restricted_problems(pod)) == [], path
        assert pod["automountServiceAccountToken"] is False
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert any(mount["mountPath"] == TMP for mount in container["volumeMounts"])
            volumes = {volume["name"] for volume in pod["volumes"]} | {"data"}
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes


@pytest.mark.parametrize("case", CASES)
def test_everything_is_owned_and_labelled(case: str) -> None:
    """Every object belongs to the run, so that deleting it leaves nothing; and can be found by its labels."""
    spec, state = CASES[case]
    for item in render_run(spec, state=state):
        metadata = item["metadata"]
        assert metadata["ownerReferences"][0]["uid"] == UID
        assert metadata["ownerReferences"][0]["controller"] is True
        assert metadata["labels"]["trimtab.dev/run"] == "helpful"
        assert metadata["labels"]["app.kubernetes.io/part-of"] == "trimtab"
        assert len(metadata["name"]) <= 63


def test_names_fit_at_their_longest() -> None:
    """The longest run name and stage name still give valid names of Services and hosts."""
    stage = "reward/" + "a" * 16
    spec = read_object(
        TrainingRun,
        changed(RUN, rollout__slip=["policy", "reference", stage])
        | {"metadata": {"name": "r" * 38, "namespace": "n"}},
    )
    for item in render_run(spec, state=RunState(attempt=99999)):
        assert len(item["metadata"]["name"]) <= 63
        for value in item["metadata"]["labels"].values():
            assert len(value) <= 63


def test_replicas_only_at_creation() -> None:
    """A Deployment that is there is applied without `replicas`: the scaler owns the number."""
    for existing, expected in ((frozenset(), [2, 1, 1, 2]), (None, [None] * 4)):
        names = (
            frozenset(item["metadata"]["name"] for item in render_run(full()))
            if existing is None
            else existing
        )
        manifests = render_run(full(), state=RunState(existing=names))
        assert [m["spec"].get("replicas") for m in manifests if m["kind"] == "Deployment"] == expected


@pytest.mark.parametrize(
    ("spec", "state"), [(full(suspend=True), RunState()), (full(), RunState(admitted=False))]
)
def test_nothing_starts_while_suspended_or_queued(spec: TrainingRun, state: RunState) -> None:
    """A suspended run, and one that Kueue has not admitted, has Deployments of 0 and no Job."""
    manifests = render_run(spec, state=RunState(attempt=1, admitted=state.admitted))
    assert {m["spec"]["replicas"] for m in manifests if m["kind"] == "Deployment"} == {0}
    assert not [m for m in manifests if m["kind"] == "Job"]


def test_each_stage_has_its_objects() -> None:
    """policy, reference and each reward stage: Deployment, headless Service, budget, configuration."""
    manifests = render_run(full(), state=ATTEMPT)
    for service in ("policy", "reference", "reward-hh", "reward-rules"):
        name = f"helpful-{service}"
        selector = {"trimtab.dev/run": "helpful", "trimtab.dev/service": service}
        deployment, where = found(manifests, "Deployment", name), found(manifests, "Service", name)
        assert deployment["spec"]["selector"]["matchLabels"] == selector
        assert where["spec"]["clusterIP"] == "None"
        assert where["spec"]["selector"] == selector
        budget = found(manifests, "PodDisruptionBudget", name)["spec"]
        assert (budget["maxUnavailable"], budget["selector"]["matchLabels"]) == (1, selector)
        assert selector.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
        found(manifests, "ConfigMap", name)


def test_a_changed_configuration_rolls_and_another_does_not() -> None:
    """The hash on a pod template follows its own service's configuration, not the others'."""

    def hashes(spec: TrainingRun) -> dict[str, str]:
        return {
            m["metadata"]["name"]: m["spec"]["template"]["metadata"]["annotations"]["trimtab.dev/config-hash"]
            for m in render_run(spec)
            if m["kind"] == "Deployment"
        }

    before, after = hashes(run()), hashes(run(rewardModel="rule:length"))
    assert {name for name in before if before[name] != after[name]} == {"helpful-reward"}


def test_services_read_their_configuration() -> None:
    """Each TOML file is accepted by the service that reads it, once the queue's URL is set as the container does."""
    from services.learner.config import LearnerConfig
    from services.policy.config import PolicyConfig
    from services.reference.config import ReferenceConfig
    from services.reward.config import RewardConfig

    manifests = render_run(full(), state=ATTEMPT)
    for service, model in {
        "policy": PolicyConfig, "reference": ReferenceConfig, "reward-hh": RewardConfig,
        "reward-rules": RewardConfig, "learner": LearnerConfig,
    }.items():  # fmt: skip
        [text] = found(manifests, "ConfigMap", f"helpful-{service}")["data"].values()
        assert "password" not in text
        tables = tomllib.loads(text)
        tables["queue"]["url"] = "redis://queue"
        config = model.model_validate(tables)
        base = {"policy": 50051, "reference": 50052, "reward": 50053, "learner": 50054}[
            service.partition("-")[0]
        ]
        marked = None if service == "learner" else DRAIN_FILE
        assert (config.server.drain_file and str(config.server.drain_file)) == marked
        ports = (config.server.port, config.server.health_port, config.server.metrics_port)
        assert ports == (base, base + 100, base + 200)
        assert config.queue is not None
        assert config.queue.run_uid == "helpful-0123abcd"


def test_a_replica_reads_its_own_mark() -> None:
    """The annotation of the pod comes as a file of a volume; a folder, since a subPath would never change."""
    for role in ("policy", "reference", "reward-hh"):
        pod = found(render_run(full()), "Deployment", f"helpful-{role}")["spec"]["template"]["spec"]
        [volume] = [one for one in pod["volumes"] if "downwardAPI" in one]
        [mount] = [one for one in pod["containers"][0]["volumeMounts"] if one["name"] == volume["name"]]
        assert volume["downwardAPI"]["items"] == [
            {"path": "drain", "fieldRef": {"fieldPath": "metadata.annotations['trimtab.dev/drain']"}}
        ]
        assert mount == {"name": "marks", "mountPath": "/run/trimtab/pod", "readOnly": True}
        assert f"{mount['mountPath']}/drain" == DRAIN_FILE
    assert "downwardAPI" not in str(found(render_run(full(), state=ATTEMPT), "Job", "helpful-learner-1"))


def test_the_learner_is_told_the_whole_run() -> None:
    """The learner's [run] is the sections of the spec; its folder is named after the run's uid."""
    from services.learner.config import LearnerConfig

    [text] = found(render_run(run(steps=7, sampling={"maxNewTokens": 9})), "ConfigMap", "helpful-learner")[
        "data"
    ].values()
    tables = tomllib.loads(text)
    tables["queue"]["url"] = "redis://queue"
    config = LearnerConfig.model_validate(tables)
    assert (config.run.steps, config.run.sampling.max_new_tokens, config.run.name) == (7, 9, "helpful")
    assert str(config.out) == "/storage/runs/helpful-0123abcd"
    # With 0 the Job of a learner that is drained would be complete.
    assert config.cut_off_status == 143


def test_learner_is_an_indexed_job_per_attempt() -> None:
    """All pods at once, one failure ends the attempt, the first pod's stable name is the meeting point."""
    job = found(render_run(full(), state=RunState(attempt=3, epoch=4)), "Job", "helpful-learner-3")
    spec = job["spec"]
    assert (spec["backoffLimit"], spec["completionMode"], spec["completions"], spec["parallelism"]) == (
        0,
        "Indexed",
        2,
        2,
    )
    [rule] = spec["podFailurePolicy"]["rules"]
    assert rule == {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    pod = spec["template"]["spec"]
    assert pod["subdomain"] == "helpful-learner"
    assert pod["restartPolicy"] == "Never"
    [container] = pod["containers"]
    assert container["command"][-3:] == ["python", "-m", "services.learner.distributed"]
    env = {item["name"]: item.get("value", item.get("valueFrom")) for item in container["env"]}
    assert (env["PET_NNODES"], env["PET_NPROC_PER_NODE"], env["PET_MAX_RESTARTS"]) == ("2", "8", "0")
    assert env["PET_MASTER_ADDR"] == "helpful-learner-3-0.helpful-learner.rlhf.svc"
    assert "job-completion-index" in env["PET_NODE_RANK"]["fieldRef"]["fieldPath"]
    labels = spec["template"]["metadata"]["labels"]
    assert labels["trimtab.dev/attempt"] == "3"
    service = found(render_run(full()), "Service", "helpful-learner")["spec"]
    assert service["publishNotReadyAddresses"] is True
    assert service["selector"].items() <= labels.items()


def test_one_process_needs_no_torchrun() -> None:
    """A learner of one process starts by itself, probed like every service."""
    job = found(render_run(run(), state=ATTEMPT), "Job", "helpful-learner-1")
    [container] = job["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["trimtab-learner"]
    assert not [item for item in container["env"] if item["name"].startswith("PET_")]
    assert container["startupProbe"]["grpc"]["port"] == 50154


def test_probes_and_grace_follow_the_bounds() -> None:
    """The startup probe lasts as long as the load may, the grace period as long as the drain and a little."""
    spec = run(roles__policy={"startupTimeoutSeconds": 5400, "drainSeconds": 20})
    pod = found(render_run(spec), "Deployment", "helpful-policy")["spec"]["template"]["spec"]
    startup = pod["containers"][0]["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] == 5400
    assert pod["terminationGracePeriodSeconds"] == 25
    config = found(render_run(spec), "ConfigMap", "helpful-policy")["data"]["policy.toml"]
    assert tomllib.loads(config)["server"]["drain_seconds"] == 20
    assert pod["containers"][0]["livenessProbe"]["grpc"]["service"] == "live"


def test_a_runs_completions_fit_its_policy() -> None:
    """A run whose completions are longer than a policy lets a call ask for raises that bound."""
    spec = run(sampling={"maxNewTokens": 5000})
    config = found(render_run(spec), "ConfigMap", "helpful-policy")["data"]["policy.toml"]
    assert tomllib.loads(config)["max_new_tokens"] == 5000


@pytest.mark.parametrize(
    ("state", "job"),
    [(RunState(stage="sft"), "helpful-sft"), (ATTEMPT, "helpful-learner-1")],
    ids=["job before RL", "learner"],
)
def test_the_last_upload_has_its_own_time(state: RunState, job: str) -> None:
    """The pod waits for the upload, its program ends as early as without one; nothing of it where a PVC is used."""
    store = {"url": "s3://b/r", "uploadSeconds": 7200}
    stages = {"sft": {"data": "/storage/sft.jsonl"}}
    spec = run(stages=stages, storage={"objectStore": store})
    pod = found(render_run(spec, state=state), "Job", job)["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 10 + 5 + 7200
    assert pod["containers"][0]["command"][:4] == ["timeout", "--foreground", "--kill-after=15", "0"]
    assert pod["initContainers"][-1]["restartPolicy"] == "Always"
    pod = found(render_run(run(stages=stages), state=state), "Job", job)["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 15
    assert pod["containers"][0]["command"][0] != "timeout"


def test_place_and_size_reach_the_pod() -> None:
    """What a role says of its pool, its memory and its environment stands in its pods, the overlay on top."""
    template = found(render_run(full()), "Deployment", "helpful-policy")["spec"]["template"]
    pod = template["spec"]
    [container] = pod["containers"]
    assert pod["nodeSelector"] == {"pool": "a100"}
    assert pod["runtimeClassName"] == "nvidia"
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    terms = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ]
    assert terms[0]["matchExpressions"][0]["values"] == ["a", "b"]
    assert container["resources"] == {
        "requests": {"cpu": "500m"},
        "limits": {"nvidia.com/gpu": "1", "memory": "64Gi"},
    }
    assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}} in pod["volumes"]
    assert {"name": "NCCL_DEBUG", "value": "WARN"} in container["env"]
    # Not filled in by the kubelet: it would stand in the process's arguments.
    assert container["args"][-4:] == ["--set", "max_rows=128", "--set-env", "queue.url=TRIMTAB_QUEUE_URL"]
    assert (pod["hostname"], container["tty"], template["metadata"]["annotations"]["a/b"]) == ("x", True, "c")
    assert container["image"] == "trimtab-policy:0.1.0"


def test_an_overlay_cannot_lose_the_selector() -> None:
    """Labels that the Deployment's selector needs survive whatever is laid over."""
    spec = run(roles__policy={"podTemplate": {"metadata": {"labels": {"trimtab.dev/run": None, "x": "y"}}}})
    labels = found(render_run(spec), "Deployment", "helpful-policy")["spec"]["template"]["metadata"]["labels"]
    assert (labels["trimtab.dev/run"], labels["x"]) == ("helpful", "y")


def test_the_policy_reads_what_generates() -> None:
    """The engine's table as its service understands it, its key as a file; the mask of an algorithm with one."""
    engine = {"kind": "vllm", "url": "http://vllm:8000", "weightsFolder": "/weights"}
    manifests = render_run(run(engine=engine, engineKeySecret={"name": "vllm", "key": "token"}))
    config = tomllib.loads(found(manifests, "ConfigMap", "helpful-policy")["data"]["policy.toml"])
    assert config["engine"] == {
        "kind": "vllm",
        "url": "http://vllm:8000",
        "weights_folder": "/weights",
        "key_file": "/run/trimtab/engine/key",
    }
    pod = found(manifests, "Deployment", "helpful-policy")["spec"]["template"]["spec"]
    volumes = {one["name"]: one.get("secret") for one in pod["volumes"]}
    assert volumes["engine-key"] == {"secretName": "vllm", "items": [{"key": "token", "path": "key"}]}
    assert "/run/trimtab/engine" in {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    masked = render_run(run(algorithm={"kind": "nlpo", "minTokens": 2}))
    config = tomllib.loads(found(masked, "ConfigMap", "helpful-policy")["data"]["policy.toml"])
    assert config["decoding"] == {"mask": {"top_p": 0.9, "min_tokens": 2}}
    assert "engine" not in config


def test_storage_is_mounted_where_it_is_read() -> None:
    """The learner writes; a role mounts the volume, read-only, only if its model lies on it."""
    spec = run(model__path="/storage/models/start")
    manifests = render_run(spec, state=ATTEMPT)
    policy = found(manifests, "Deployment", "helpful-policy")["spec"]["template"]["spec"]
    mount = next(m for m in policy["containers"][0]["volumeMounts"] if m["mountPath"] == "/storage")
    assert mount["readOnly"] is True
    reward = found(manifests, "Deployment", "helpful-reward")["spec"]["template"]["spec"]
    assert not [m for m in reward["containers"][0]["volumeMounts"] if m["mountPath"] == "/storage"]
    learner = found(manifests, "Job", "helpful-learner-1")["spec"]["template"]["spec"]
    mount = next(m for m in learner["containers"][0]["volumeMounts"] if m["mountPath"] == "/storage")
    assert "readOnly" not in mount


def test_an_object_store_is_restored_from_and_uploaded_to() -> None:
    """Without a volume the learner's checkpoint is fetched before it starts, and a sidecar uploads new ones."""
    pod = found(render_run(full(), state=ATTEMPT), "Job", "helpful-learner-1")["spec"]["template"]["spec"]
    restore, upload = pod["initContainers"]
    assert restore["args"] == ["runs/helpful-0123abcd/sft", "prompts.jsonl"]
    assert upload["restartPolicy"] == "Always"
    env = {item["name"]: item["value"] for item in upload["env"]}
    assert (env["STORE"], env["RUN"], env["KEEP"]) == (
        ":s3,provider=AWS,env_auth=true:bucket/runs", "runs/helpful-0123abcd", "3"
    )  # fmt: skip
    assert upload["envFrom"] == [{"secretRef": {"name": "s3"}}]


def test_jobs_go_before_rl() -> None:
    """While SFT goes on there is its Job and no service; RL then begins with what it wrote."""
    manifests = render_run(full(), state=RunState(stage="sft"))
    job = found(manifests, "Job", "helpful-sft")
    [container] = job["spec"]["template"]["spec"]["containers"]
    assert container["args"][:7] == ["sft", "--data", "/storage/sft.jsonl", "--model", "org/model", "--out",
                                     "/storage/runs/helpful-0123abcd/sft"]  # fmt: skip
    assert not [m for m in manifests if m["kind"] == "Deployment"]
    config = found(render_run(full()), "ConfigMap", "helpful-policy")["data"]["policy.toml"]
    assert tomllib.loads(config)["model"]["path"] == "/storage/runs/helpful-0123abcd/sft"


def test_kueue_sees_one_workload() -> None:
    """All roles are in one Workload, with the numbers that the run begins with and what a pod asks for."""
    workload = found(render_run(full()), "Workload", "helpful")["spec"]
    assert workload["queueName"] == "team-a"
    assert [(part["name"], part["count"]) for part in workload["podSets"]] == [
        ("policy", 2), ("reference", 1), ("reward-hh", 1), ("reward-rules", 2), ("learner", 2)
    ]  # fmt: skip
    resources = workload["podSets"][0]["template"]["spec"]["containers"][0]["resources"]
    assert resources["limits"]["nvidia.com/gpu"] == "1"
    assert not [m for m in render_run(run()) if m["kind"] == "Workload"]


@pytest.mark.parametrize(
    ("version", "named"),
    [
        (
            "v1beta1",
            {"priorityClassName": "high", "priorityClassSource": "kueue.x-k8s.io/workloadpriorityclass"},
        ),
        (
            "v1beta2",
            {
                "priorityClassRef": {
                    "group": "kueue.x-k8s.io",
                    "kind": "WorkloadPriorityClass",
                    "name": "high",
                }
            },
        ),
    ],
)
def test_a_priority_class_is_named_as_kueues_version_wants(version: str, named: dict[str, Any]) -> None:
    """By name and source in the older version, by reference in the newer."""
    spec = run(queueing={"queueName": "team-a", "priorityClass": "high"})
    workload = found(render_run(spec, RenderOptions(kueue_version=version)), "Workload", "helpful")["spec"]
    assert {key: value for key, value in workload.items() if key.startswith("priority")} == named


def test_a_run_that_gave_its_quota_back_has_no_workload() -> None:
    """Suspended or finished, and its pods gone."""
    assert not [m for m in render_run(full(), state=RunState(queued=False)) if m["kind"] == "Workload"]


def test_images_and_address_come_from_the_installation() -> None:
    """A role without an image runs the installation's; the run's own goes first."""
    options = RenderOptions(images={**RenderOptions().images, "policy": "mine:1"}, listen_on_pod_ip=True)
    manifests = render_run(run(roles__reference={"image": "theirs:2"}), options)
    policy, reference = (
        found(manifests, "Deployment", f"helpful-{role}")["spec"]["template"]["spec"]["containers"][0]
        for role in ("policy", "reference")
    )
    assert (policy["image"], reference["image"]) == ("mine:1", "theirs:2")
    assert "server.host=$(POD_IP)" in policy["args"]


def test_a_server_of_the_runs_own_listens_on_its_pods_address_where_pods_share_one() -> None:
    """Two runs' servers on one such node would otherwise fight over the port, and one be reached for the other."""
    for shared, bound in ((True, ["--bind", "$(POD_IP)"]), (False, [])):
        manifests = render_run(run(), RenderOptions(listen_on_pod_ip=shared))
        server = found(manifests, "StatefulSet", "helpful-redis")["spec"]["template"]["spec"]["containers"][0]
        assert [*server["command"], *server.get("args", [])] == [
            "valkey-server",
            "/etc/valkey/conf/valkey.conf",
            *bound,
        ]


def test_a_file_without_uid_renders_without_owner() -> None:
    """`trimtab render` on a file that was never applied names no owner, which would be a wrong one."""
    spec = read_object(TrainingRun, RUN | {"metadata": {"name": "helpful"}})
    assert all("ownerReferences" not in item["metadata"] for item in render_run(spec))
