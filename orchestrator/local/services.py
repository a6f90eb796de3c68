"""From a run's spec to the services' configurations and processes. Starts nothing.

One row of `ROLES` and one function of `_OWN_TABLES` per role; everything else is shared.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from orchestrator.local.layout import RunLayout, write_private
from orchestrator.local.ports import free_ports
from orchestrator.local.processes import ManagedProcess
from orchestrator.local.run_tls import RunTls
from orchestrator.local.toml import to_toml
from orchestrator.planning.processes import Restart
from orchestrator.queue_users import QueueUsers
from services.common.allocator import LARGE_PAGES
from services.common.errors import ConfigError
from services.common.spec.rewards import reward_tables
from services.common.spec.run import RunSpec

HOST = "127.0.0.1"
QUEUE = "queue"
CUT_OFF = 128 + signal.SIGTERM


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """What the orchestrator knows of a kind of service."""

    module: str
    drain_rank: int
    """The learner ends first (nothing new is admitted), then the stages hand back, the queue last."""
    reads_queue: bool = True
    restart: Restart = Restart.ALWAYS


ROLES: Mapping[str, Role] = {
    "policy": Role(module="services.policy", drain_rank=1),
    "reference": Role(module="services.reference", drain_rank=1),
    "reward": Role(module="services.reward", drain_rank=1),
    "preference": Role(module="services.preference", drain_rank=1, reads_queue=False),
    "learner": Role(module="services.learner", drain_rank=0, restart=Restart.ON_FAILURE),
}
QUEUE_DRAIN_RANK = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """The ports of one service; fixed, so that it comes back where it was."""

    grpc: int
    health: int
    metrics: int

    def addresses(self) -> dict[str, str]:
        """As written to endpoints.json: kind of endpoint to host:port."""
        return {kind: f"{HOST}:{port}" for kind, port in asdict(self).items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the services of one run share."""

    layout: RunLayout
    queue_url: str
    run_uid: str
    ports: Mapping[str, Ports]
    queue_urls: Mapping[str, str] = field(default_factory=dict, repr=False)
    """By service, each with a user of its own; empty: `queue_url` for all."""
    weights_folder: str = ""
    """Where the learner shares weights with its policies; empty: nowhere."""
    tls: RunTls | None = None
    """Certificates of all; None: they speak plaintext, on loopback."""

    def queue_url_of(self, name: str) -> str:
        """Where the service `name` finds the queue, and as whom."""
        return self.queue_urls[name] if self.queue_urls else self.queue_url

    def address(self, name: str, kind: str = "grpc") -> str:
        """host:port where the service `name` listens (or will)."""
        return self.ports[name].addresses()[kind]


def role_of(name: str) -> Role:
    """The role of a service named `policy`, `reward`, `reward-<name>`, … Raises ConfigError."""
    role = ROLES.get(name.split("-", 1)[0])
    if role is None:
        raise ConfigError(f"no service {name}: expected one of {', '.join(ROLES)}")
    return role


def services_of(spec: RunSpec) -> tuple[str, ...]:
    """The services that a run needs: one for each stage of its slip, and the learner; offline, the learner alone."""
    if spec.offline:
        return ("learner",)
    return (*dict.fromkeys(service_name(stage) for stage in spec.rollout.slip), "learner")


def check_scored(spec: RunSpec) -> None:
    """Refuse a run whose reward service would wait for a model for ever. Raises ConfigError."""
    if problem := spec.unscored_because:
        raise ConfigError(problem)


def service_name(stage: str) -> str:
    """The service that works on a stage: reward/hh is served by reward-hh."""
    return stage.replace("/", "-")


def choose_ports(names: Sequence[str]) -> tuple[int, dict[str, Ports]]:
    """Free ports for the queue server and for each service: of one draw, so that no two are the same."""
    queue, *others = free_ports(1 + 3 * len(names), HOST)
    ports = iter(others)
    return queue, {name: Ports(grpc=next(ports), health=next(ports), metrics=next(ports)) for name in names}


def service_config(
    name: str, spec: RunSpec, around: Surroundings, settings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The tables of a service's TOML file; `settings` are laid over what follows from the spec."""
    role, ports = role_of(name), around.ports[name]
    config: dict[str, Any] = {
        "name": name,
        "endpoints_file": str(around.layout.service_endpoints(name)),
        "server": {
            "host": HOST,
            "port": ports.grpc,
            "health_port": ports.health,
            "metrics_port": ports.metrics,
        },
    }
    if role.reads_queue:
        config["queue"] = {
            "url": around.queue_url_of(name),
            "run_uid": around.run_uid,
            "stage": stage_of(name, spec),
        }
    kind = name.split("-", 1)[0]
    config = overlay(config, _OWN_TABLES[kind](name, spec, around))
    if around.tls is not None:
        config = overlay(config, around.tls.tables(kind))
    return overlay(config, settings or {})


# Generation reads all weights for each token: with pages of 2 MB instead of 4 KB it is 12 to 18 % faster. Training,
# which takes new memory all the time, is not, and its first steps take twice as long until such pages are found.
_ENVIRONMENT: dict[str, dict[str, str]] = (
    {} if LARGE_PAGES.keys() & os.environ.keys() else {"policy": LARGE_PAGES}
)


def queue_users(stages: Iterable[str], spec: RunSpec, run_uid: str) -> QueueUsers:
    """A user for each of these stages, and for whoever looks on."""
    slip = spec.rollout.slip
    return QueueUsers.draw(run_uid, slip, [stage for stage in dict.fromkeys(stages) if stage not in slip])


def service_process(
    name: str, config: Mapping[str, Any], layout: RunLayout, env: Mapping[str, str] | None = None
) -> ManagedProcess:
    """Write the configuration; the process that reads it."""
    path = layout.service_config(name)
    write_private(path, to_toml(config))
    return ManagedProcess(
        name,
        [sys.executable, "-m", role_of(name).module, "--config", str(path)],
        log=layout.log(name),
        endpoints_file=layout.service_endpoints(name),
        env={**_ENVIRONMENT.get(name, {}), **(env or {})},
    )


def stage_of(name: str, spec: RunSpec, settings: Mapping[str, Any] | None = None) -> str:
    """The stage that a service works on; `settings` may name another's, whose replica it then is."""
    told = (settings or {}).get("queue", {}).get("stage")
    return told or next((stage for stage in spec.rollout.slip if service_name(stage) == name), name)


def overlay(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`, table by table; lists are replaced whole."""
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        if isinstance(under, Mapping) and isinstance(value, Mapping):
            merged[key] = overlay(under, value)
        else:
            merged[key] = value
    return merged


def _model(spec: RunSpec) -> dict[str, Any]:
    return spec.model.model_dump(mode="json", exclude_none=True)


def _policy(name: str, spec: RunSpec, around: Surroundings) -> dict[str, Any]:
    if "learner" not in around.ports:
        return {"model": _model(spec)}
    weights = {
        "address": around.address("learner"),
        "peer_address": around.address(name),
        # One more than may be trained on: until a new version is there, everyone is behind.
        "max_behind_steps": spec.rollout.max_staleness + 1,
        "swap": spec.rollout.swap,
        "deltas": False,
        "folder": around.weights_folder,
    }
    return {"model": _model(spec), "weights": weights, **spec.generating()}


def _reference(_name: str, spec: RunSpec, _around: Surroundings) -> dict[str, Any]:
    return {"model": _model(spec)}


def _reward(name: str, spec: RunSpec, _around: Surroundings) -> dict[str, Any]:
    model = name.partition("-")[2] or "reward"
    models = reward_tables(model, spec.reward_model, spec.reward_sources)
    # The composite's parts are models of the service, too: the stage is told which one is its own.
    return {"models": models, **({"queue_model": model} if len(models) > 1 else {})} if models else {}


def _learner(_name: str, spec: RunSpec, around: Surroundings) -> dict[str, Any]:
    # Between processes of one machine whole tensors travel faster than what changed is worked out.
    folder = "" if spec.offline else around.weights_folder
    return {
        "weights": {"folder": folder},
        # Whoever else ends it has not finished the run: only a drain of the supervisor's own is quiet.
        "cut_off_status": CUT_OFF,
        "run": spec.model_dump(mode="json", exclude_none=True),
        "out": str(around.layout.root),
        "deltas": False,
    }


def _preference(_name: str, _spec: RunSpec, around: Surroundings) -> dict[str, Any]:
    return {"database_url": f"sqlite:///{around.layout.root / 'preference.db'}"}


_OWN_TABLES: Mapping[str, Callable[[str, RunSpec, Surroundings], dict[str, Any]]] = {
    "policy": _policy,
    "reference": _reference,
    "reward": _reward,
    "learner": _learner,
    "preference": _preference,
}
