"""The TOML that each service of a run reads, without secrets: those come as variables. Makes no manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.cluster.kinds import TrainingRun
from orchestrator.cluster.kinds.rewards import TRAINED, RewardStage
from orchestrator.cluster.names import RunNames
from orchestrator.cluster.render.options import PORTS
from orchestrator.cluster.render.storage import reads_storage
from orchestrator.cluster.render.tls import queue_fields, server_tables, weights_fields
from orchestrator.local.toml import to_toml

KEY_FILE = "/run/trimtab/key/key"
"""API key of a reward model that the run refers to."""
ENGINE_KEY_FILE = "/run/trimtab/engine/key"
"""API key of the server that generates."""
CA_FILE, CLIENT_TLS = "/run/trimtab/ca/ca.crt", "/run/trimtab/client"
"""Whom a bridge trusts, and who it is."""

DRAIN_FILE = "/run/trimtab/pod/drain"
"""The pod's annotation `trimtab.dev/drain`, kept by the kubelet, empty where there is none. The service reads it
(services/common/drain_mark.py)."""


def server_table(
    role: str, drain_seconds: int, *, http: bool = False, drains_by_mark: bool = True
) -> dict[str, Any]:
    """[server]: the fixed ports. Who may connect is the NetworkPolicies' matter, and that of spec.tls.

    `drains_by_mark`: its pods have DRAIN_FILE.
    """
    ports = PORTS[role]
    return {
        "host": "0.0.0.0",  # noqa: S104 a pod has an address of its own
        "port": ports.grpc,
        "health_port": ports.health,
        "metrics_port": ports.metrics,
        **({"http_port": ports.http} if http and ports.http else {}),
        "drain_seconds": drain_seconds,
        **({"drain_file": DRAIN_FILE} if drains_by_mark else {}),
    }


def service_toml(run: TrainingRun, names: RunNames, stage: str) -> str:
    """The configuration of a stage's service. `stage`: policy, reference, reward, reward/<name>."""
    role = stage.partition("/")[0]
    settings = run.spec.reward_of(stage).role if role == "reward" else None
    drain = (settings or getattr(run.spec.roles, role)).drain_seconds
    own = {"policy": _policy, "reference": _reference}.get(role)
    tables = _common(run, names, stage, drain)
    tables |= own(run, names) if own is not None else _reward(run, names, stage)
    return to_toml(tables)


LINGER_SECONDS = 20.0
"""Longer than the operator looks: status is to have the figures of the last step."""
CUT_OFF = 143
"""As of a process that SIGTERM ended: with 0 the Job of a learner that is drained would be complete."""


def learner_toml(run: TrainingRun, names: RunNames) -> str:
    """The learner's: the run itself, and the folder that it writes."""
    spec = run.spec.run_spec(names.run).model_dump(mode="json", exclude_none=True)
    spec["model"]["path"] = starting_model(run, names)
    tables = _common(run, names, "learner", run.spec.roles.learner.drain_seconds)
    if fabric := _fabric(run, names):
        tables["weights"] = fabric
    own = {"out": names.folder, "linger_seconds": LINGER_SECONDS, "cut_off_status": CUT_OFF}
    return to_toml({**tables, **own, "run": spec})


def starting_model(run: TrainingRun, names: RunNames) -> str:
    """What RL begins with: the model after SFT where there is such a stage."""
    return f"{names.folder}/sft" if run.spec.stages.sft is not None else run.spec.model.path


def reward_path(names: RunNames, entry: RewardStage) -> str:
    """Folder of a stage's reward model: the one given, else the one that the run trains. Empty for others."""
    if any(source is not None for source in (entry.rule, entry.function, entry.reward_model_ref)):
        return ""
    return f"{names.folder}/reward-model" if entry.path == TRAINED else entry.path or ""


def paths_read(run: TrainingRun, names: RunNames, stage: str) -> tuple[str, ...]:
    """What a stage's pods read of the run's storage."""
    if stage.partition("/")[0] == "reward":
        return reads_storage(reward_path(names, run.spec.reward_of(stage)))
    return reads_storage(starting_model(run, names))


def _common(run: TrainingRun, names: RunNames, stage: str, drain: int) -> dict[str, Any]:
    role, guarded = stage.partition("/")[0], server_tables(run, names)
    return {
        # Nobody scales a learner.
        "server": server_table(role, drain, drains_by_mark=role != "learner")
        | ({} if guarded else {"allow_unauthenticated": True}),
        **guarded,
        "queue": {"run_uid": names.run_uid, "stage": stage, **queue_fields(run, names)},
        "log": {"level": "info", "json_lines": True},
    }


def _model(run: TrainingRun, names: RunNames) -> dict[str, Any]:
    return run.spec.model.model_dump(mode="json", exclude_none=True) | {"path": starting_model(run, names)}


def _policy(run: TrainingRun, names: RunNames) -> dict[str, Any]:
    learner = f"{names.host(names.weights)}:{PORTS['learner'].grpc}"
    spec = run.spec.run_spec(names.run)
    weights = {
        "address": learner,
        "peer_address": "auto",
        # One more than may be trained on: until a new version is there, everyone is behind.
        "max_behind_steps": spec.rollout.max_staleness + 1,
        "swap": spec.rollout.swap,
        **_fabric(run, names),
        **weights_fields(run, names),
    }
    tables = spec.generating()
    if run.spec.engine_key_secret is not None:
        tables["engine"] = {**tables.get("engine", {}), "key_file": ENGINE_KEY_FILE}
    return {"model": _model(run, names), "weights": weights, **tables}


def _fabric(run: TrainingRun, names: RunNames) -> dict[str, str]:
    """Of [weights]: all that say the same may be connected past gRPC."""
    return {"fabric": names.run_uid} if run.spec.network.fabric else {}


def _reference(run: TrainingRun, names: RunNames) -> dict[str, Any]:
    return {"model": _model(run, names)}


def _reward(run: TrainingRun, names: RunNames, stage: str) -> dict[str, Any]:
    entry = run.spec.reward_of(stage)
    name = stage.partition("/")[2] or "reward"
    return {"queue_model": name, "models": [{"name": name, **_source(names, entry)}]}


def _source(names: RunNames, entry: RewardStage) -> Mapping[str, Any]:
    if entry.rule is not None:
        return {"rule": entry.rule}
    if entry.function is not None:
        return {"function": {"name": entry.function}}
    ref = entry.reward_model_ref
    if ref is None:
        return {"path": reward_path(names, entry)}
    host = f"{ref.name}.{ref.namespace or names.namespace}.svc"
    scheme = "grpc" if ref.tls is None else "grpcs"
    remote: dict[str, Any] = {"url": f"{scheme}://{host}:{PORTS['reward'].grpc}", "model": ref.name}
    if ref.digest is not None:
        remote["digest"] = ref.digest
    if ref.key_secret is not None:
        remote["key_file"] = KEY_FILE
    if ref.allow_plaintext:
        remote["allow_plaintext"] = True
    if ref.tls is not None and ref.tls.ca_secret is not None:
        remote["ca_file"] = CA_FILE
    if ref.tls is not None and ref.tls.client_secret is not None:
        pair = {"certificate_file": f"{CLIENT_TLS}/tls.crt", "private_key_file": f"{CLIENT_TLS}/tls.key"}
        remote |= pair
    return {"remote": remote}
