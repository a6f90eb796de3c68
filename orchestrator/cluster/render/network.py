"""NetworkPolicies of a run: nobody to nobody, then exactly the picture. Knows ports and labels, no pod.

policy ◀─weights─▶ policy ──weights──▶ learner ◀──rendezvous──▶ learner    operator ──▶ every pod of the run
  │                   │                                      monitoring ──▶ metrics ports
  ├── queue ──▶ redis ◀── queue ──┤                          every pod ──▶ DNS
reference ── queue ──▶  reward ── queue ──┘  reward (a bridge) ── gRPC ──▶ RewardModel
where a model comes from a hub, or files from an object store: port 443 of public addresses, the endpoint's port of any
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal
from urllib.parse import urlsplit

from orchestrator.cluster.kinds import TrainingRun
from orchestrator.cluster.kinds.rewards import RewardModelRef
from orchestrator.cluster.names import REWARD_MODEL, ROLE, RUN, SERVICE, RunNames, service_of
from orchestrator.cluster.render.config import reward_path, starting_model
from orchestrator.cluster.render.options import PORTS, REDIS_PORT, RenderOptions
from orchestrator.cluster.render.parts import Manifest, Owner, manifest
from orchestrator.cluster.render.services import stages_of

NAMESPACE = "kubernetes.io/metadata.name"
PRIVATE = ["10.0.0.0/8", "100.64.0.0/10", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"]
_METADATA = {"to": [{"ipBlock": {"cidr": "169.254.0.0/16"}}], "ports": [{"port": 80, "protocol": "TCP"}]}
"""Where nodes hand out identities; only pods that use an object store without a Secret may ask."""


def render_network(run: TrainingRun, names: RunNames, options: RenderOptions) -> list[Manifest]:
    """All policies of the run; none where it says so."""
    if not run.spec.network.policies:
        return []
    owner = Owner("TrainingRun", run.metadata)
    policies = [_deny_all(names, owner), _common(run, names, options, owner)]
    policies += [_stage(run, names, stage, options, owner) for stage in stages_of(run)]
    policies.append(_learner(run, names, options, owner))
    if run.spec.stages.sft is not None or run.spec.stages.reward_model is not None:
        policies.append(_jobs(run, names, owner))
    if run.spec.redis.owned is not None:
        policies.append(_redis(names, options, owner))
    return policies


def policy(
    name: str,
    selector: Mapping[str, str],
    *,
    owner: Owner,
    labels: Mapping[str, str],
    ingress: Sequence[Manifest] | None = None,
    egress: Sequence[Manifest] | None = None,
) -> Manifest:
    """One NetworkPolicy. An empty list shuts a direction; None says nothing of it."""
    directions = {"Ingress": ingress, "Egress": egress}
    return manifest(
        "networking.k8s.io/v1",
        "NetworkPolicy",
        name,
        owner=owner,
        labels=labels,
        spec={
            "podSelector": {"matchLabels": dict(selector)},
            "policyTypes": [direction for direction, rules in directions.items() if rules is not None],
            **{direction.lower(): list(rules) for direction, rules in directions.items() if rules},
        },
    )


def open_ports(*numbers: int) -> list[Manifest]:
    """TCP ports of a rule."""
    return [{"port": number, "protocol": "TCP"} for number in numbers]


def open_range(first: int, count: int) -> list[Manifest]:
    """So many TCP ports in a row."""
    last = {"endPort": first + count - 1} if count > 1 else {}
    return [{"port": first, "protocol": "TCP", **last}]


def operator_peer(options: RenderOptions) -> Manifest:
    """The operator's pods, in their namespace."""
    return {
        "namespaceSelector": {"matchLabels": {NAMESPACE: options.operator_namespace}},
        "podSelector": {"matchLabels": dict(options.operator_labels)},
    }


def scraped(options: RenderOptions, port: int) -> list[Manifest]:
    """Ingress of whoever scrapes, from the monitoring namespace."""
    if options.monitoring_namespace is None:
        return []
    peer = {"namespaceSelector": {"matchLabels": {NAMESPACE: options.monitoring_namespace}}}
    return [{"from": [peer], "ports": open_ports(port)}]


def dns() -> Manifest:
    """Names. To anybody's port 53: resolvers on the node have no pod that a selector could name."""
    return {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}


def internet() -> Manifest:
    """Port 443 of public addresses: hubs and object stores, never a neighbour."""
    peers = [
        {"ipBlock": {"cidr": "0.0.0.0/0", "except": list(PRIVATE)}},
        {"ipBlock": {"cidr": "::/0", "except": ["fc00::/7", "fe80::/10"]}},
    ]
    return {"to": peers, "ports": open_ports(443)}


def to_cidrs(cidrs: Sequence[str]) -> list[Manifest]:
    """All ports of what the user names."""
    return [{"to": [{"ipBlock": {"cidr": cidr}} for cidr in cidrs]}] if cidrs else []


def to_store(endpoint: str, credentials: str | None) -> list[Manifest]:
    """What a store takes beside port 443: the port of its own endpoint, and the node's identity without a Secret."""
    named = [{"ports": open_ports(_port_of(endpoint))}] if endpoint else []
    return [*named, *([] if credentials else [dict(_METADATA)])]


def from_hub(path: str) -> bool:
    """Whether a model's path is a hub id."""
    return bool(path) and not path.startswith(("/", ".", "package:")) and not path.endswith(".gguf")


def _deny_all(names: RunNames, owner: Owner) -> Manifest:
    return policy(
        f"{names.run}-deny-all", {RUN: names.run}, owner=owner, labels=names.labels(), ingress=[], egress=[]
    )


def _common(run: TrainingRun, names: RunNames, options: RenderOptions, owner: Owner) -> Manifest:
    """What every pod of the run may: ask for names, be asked by the operator."""
    egress = [dns()]
    egress += to_cidrs(run.spec.network.egress_cidrs)
    return policy(
        f"{names.run}-common",
        {RUN: names.run},
        owner=owner,
        labels=names.labels(),
        ingress=[{"from": [operator_peer(options)]}],
        egress=egress,
    )


def _stage(run: TrainingRun, names: RunNames, stage: str, options: RenderOptions, owner: Owner) -> Manifest:
    service, role = service_of(stage), stage.partition("/")[0]
    egress, ingress = [_to_queue(run, names)], scraped(options, PORTS[role].metrics)
    if role == "policy":
        weights = {"podSelector": {"matchLabels": names.selector("learner")}}
        peers = {"podSelector": {"matchLabels": names.selector(service)}}
        egress.append({"to": [weights], **_weight_ports(run, "learner")})
        egress.append({"to": [peers], **_weight_ports(run, "policy")})
        ingress.append({"from": [peers], **_weight_ports(run, "policy")})
        if run.spec.network.fabric:
            ingress.append({"from": [weights]})
        if run.spec.engine.url:
            egress.append({"ports": open_ports(_port_of(run.spec.engine.url))})
    ref = run.spec.reward_of(stage).reward_model_ref if role == "reward" else None
    if ref is not None:
        egress.append(_to_reward_model(ref))
    model = reward_path(names, run.spec.reward_of(stage)) if role == "reward" else starting_model(run, names)
    return policy(
        names.service(service),
        names.selector(service),
        owner=owner,
        labels=names.labels(service, role),
        ingress=ingress,
        egress=[*egress, *_outside(run, model)],
    )


def _weight_ports(run: TrainingRun, role: Literal["learner", "policy"]) -> Manifest:
    """Where weights are asked for; what goes past gRPC chooses its ports itself, on both sides."""
    if run.spec.network.fabric:
        return {}
    # Each process of a learner's pod serves its part, at a port of its own.
    processes = run.spec.roles.learner.nproc_per_node if role == "learner" else 1
    return {"ports": open_range(PORTS[role].grpc, processes)}


def _learner(run: TrainingRun, names: RunNames, options: RenderOptions, owner: Owner) -> Manifest:
    ports = PORTS["learner"]
    peers = {"podSelector": {"matchLabels": names.selector("learner")}}
    policies = {"podSelector": {"matchLabels": {RUN: names.run, ROLE: "policy"}}}
    # Collectives choose their ports themselves, so learner pods may reach each other on all of them.
    together = [{"from": [peers]}] if run.spec.roles.learner.replicas > 1 else []
    to_each_other = [{"to": [peers]}] if together else []
    over_fabric = [{"to": [policies]}] if run.spec.network.fabric else []
    return policy(
        names.learner,
        names.selector("learner"),
        owner=owner,
        labels=names.labels("learner"),
        ingress=[
            {"from": [policies], **_weight_ports(run, "learner")},
            *together,
            *scraped(options, ports.metrics),
        ],
        egress=[
            _to_queue(run, names),
            *to_each_other,
            *over_fabric,
            *_outside(run, starting_model(run, names)),
        ],
    )


def _jobs(run: TrainingRun, names: RunNames, owner: Owner) -> Manifest:
    stages = [stage for stage in (run.spec.stages.sft, run.spec.stages.reward_model) if stage is not None]
    egress = _outside(run, run.spec.model.path, *(stage.model for stage in stages))
    selector = {RUN: names.run, ROLE: "job"}
    return policy(
        f"{names.run}-job", selector, owner=owner, labels=names.labels("job"), ingress=[], egress=egress
    )


def _redis(names: RunNames, options: RenderOptions, owner: Owner) -> Manifest:
    workers = {
        "podSelector": {
            "matchLabels": {RUN: names.run},
            "matchExpressions": [{"key": SERVICE, "operator": "NotIn", "values": ["redis"]}],
        }
    }
    peers = [workers, operator_peer(options)]
    return policy(
        names.redis,
        names.selector("redis"),
        owner=owner,
        labels=names.labels("redis"),
        ingress=[{"from": peers, "ports": open_ports(REDIS_PORT)}],
        egress=[],
    )


def _to_queue(run: TrainingRun, names: RunNames) -> Manifest:
    redis = run.spec.redis
    if redis.owned is not None:
        peer = {"podSelector": {"matchLabels": names.selector("redis")}}
        return {"to": [peer], "ports": open_ports(REDIS_PORT)}
    # A policy cannot name a host, so of a server elsewhere only the port is known.
    port = urlsplit(redis.url).port or REDIS_PORT if redis.url is not None else redis.port
    return {"ports": open_ports(port)}


def _port_of(url: str) -> int:
    """Of a server whose host a policy cannot name."""
    parts = urlsplit(url)
    return parts.port or (443 if parts.scheme == "https" else 80)


def _to_reward_model(ref: RewardModelRef) -> Manifest:
    namespace = {"namespaceSelector": {"matchLabels": {NAMESPACE: ref.namespace}}} if ref.namespace else {}
    peer = {**namespace, "podSelector": {"matchLabels": {REWARD_MODEL: ref.name}}}
    return {"to": [peer], "ports": open_ports(PORTS["reward"].grpc)}


def _outside(run: TrainingRun, *models: str) -> list[Manifest]:
    store = run.spec.storage.object_store
    wanted = run.spec.network.internet
    if wanted is False or (wanted is None and store is None and not any(map(from_hub, models))):
        return []
    return [internet(), *([] if store is None else to_store(store.endpoint, store.credentials_secret))]
