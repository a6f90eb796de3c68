"""What the objects of a run and of a reward model are called, and how they are labelled. Knows no manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.cluster.kinds import GROUP, RewardModel, TrainingRun

MANAGER = "trimtab-operator"
RUN = f"{GROUP}/run"
ROLE = f"{GROUP}/role"
SERVICE = f"{GROUP}/service"
REWARD_MODEL = f"{GROUP}/reward-model"
ATTEMPT = f"{GROUP}/attempt"
EPOCH = f"{GROUP}/epoch"
STEPS = f"{GROUP}/steps"
CONFIG_HASH = f"{GROUP}/config-hash"
DIGEST = f"{GROUP}/digest"
DRAIN = f"{GROUP}/drain"
"""Annotation of a pod that the scaler is about to remove: since when, in the API's form. The pod reads it from a file
(render/pods.py) and takes nothing more."""
STORAGE = "/storage"
CONFIG = "/etc/trimtab"
"""Where pods find their volume and their configuration."""


@dataclass(frozen=True, slots=True)
class RunNames:
    """Names of all that belongs to one run."""

    run: str
    namespace: str
    uid: str = ""

    @classmethod
    def of(cls, run: TrainingRun) -> RunNames:
        """The names of this run's objects."""
        return cls(run.metadata.name, run.metadata.namespace, run.metadata.uid)

    @property
    def run_uid(self) -> str:
        """Names the run's keys in the queue and its folder. A run made anew under an old name has another."""
        return f"{self.run}-{self.uid[:8]}" if self.uid else self.run

    @property
    def folder(self) -> str:
        """The run's folder, as its pods see it."""
        return f"{STORAGE}/runs/{self.run_uid}"

    @property
    def redis(self) -> str:
        """The run's own queue server: StatefulSet, Service, ConfigMap and Secret."""
        return f"{self.run}-redis"

    @property
    def tls(self) -> str:
        """What the names of its certificates and their Secrets begin with, unless its spec says otherwise."""
        return f"{self.run}-tls"

    @property
    def learner(self) -> str:
        """The learner's ConfigMap and the headless Service of all its pods."""
        return f"{self.run}-learner"

    @property
    def weights(self) -> str:
        """The headless Service of the one learner pod that speaks gRPC."""
        return f"{self.run}-weights"

    def service(self, service: str) -> str:
        """Deployment, Service, ConfigMap, PodDisruptionBudget of `policy`, `reward-hh`, …"""
        return f"{self.run}-{service}"

    def learner_job(self, attempt: int) -> str:
        """The learner's Job of one attempt."""
        return f"{self.run}-learner-{attempt}"

    def job(self, stage: str) -> str:
        """The Job of a stage before RL."""
        return f"{self.run}-{stage}"

    def host(self, service: str) -> str:
        """DNS name of a Service of the run."""
        return f"{service}.{self.namespace}.svc"

    def selector(self, service: str) -> dict[str, str]:
        """Labels that a service's pods, and no others, have. Never changed: selectors are immutable."""
        return {RUN: self.run, SERVICE: service}

    def labels(self, service: str = "", role: str = "") -> dict[str, str]:
        """All labels of an object of the run."""
        own = {SERVICE: service, ROLE: role or service} if service else {}
        return common_labels(role or service, self.run, service) | {RUN: self.run} | own


@dataclass(frozen=True, slots=True)
class RewardModelNames:
    """Names of all that belongs to one reward model. Everything is called as it is."""

    name: str
    namespace: str
    uid: str = ""

    @classmethod
    def of(cls, model: RewardModel) -> RewardModelNames:
        """The names of this reward model's objects."""
        return cls(model.metadata.name, model.metadata.namespace, model.metadata.uid)

    @property
    def host(self) -> str:
        """DNS name of its Service."""
        return f"{self.name}.{self.namespace}.svc"

    @property
    def selector(self) -> dict[str, str]:
        """Labels that its pods, and no others, have."""
        return {REWARD_MODEL: self.name}

    @property
    def labels(self) -> dict[str, str]:
        """All labels of its objects."""
        return common_labels("reward", self.name, "reward") | self.selector


def common_labels(role: str, instance: str, component: str) -> dict[str, str]:
    """app.kubernetes.io/*, as dashboards and people look for them."""
    named: Mapping[str, str] = {
        "name": f"trimtab-{role}" if role else "trimtab",
        "instance": instance,
        "component": component,
        "part-of": "trimtab",
        "managed-by": MANAGER,
    }
    return {f"app.kubernetes.io/{key}": value for key, value in named.items() if value}


def service_of(stage: str) -> str:
    """The service that works on a stage: reward/hh is served by reward-hh."""
    return stage.replace("/", "-")
