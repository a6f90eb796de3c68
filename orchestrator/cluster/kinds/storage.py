"""Where a run's files and its queue live. Knows no manifest."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from orchestrator.cluster.kinds.base import Name, SecretKey, rules
from orchestrator.cluster.kinds.pods import PodSettings, Quantity
from services.common.spec.base import Spec

Endpoint = Annotated[str, StringConstraints(max_length=512, pattern=r"^(https?://[^\s,:]+(:[0-9]+)?/?)?$")]
OBJECT_URL_PATTERN = r"^(s3|gs|az)://[a-z0-9][-a-z0-9._]*(/[-A-Za-z0-9._/]*)?$"
ObjectUrl = Annotated[str, StringConstraints(min_length=6, max_length=1024, pattern=OBJECT_URL_PATTERN)]


def one_of(message: str, *fields: str) -> dict[str, Any]:
    """The CEL rule that exactly one of the fields is given."""
    given = ", ".join(f"has(self.{field})" for field in fields)
    return rules((f"[{given}].exists_one(given, given)", message))


class PvcSpec(Spec):
    """A volume that exists. The learner writes to it; others mount it read-only where their model lies on it."""

    claim_name: Name = Field(
        description="The PersistentVolumeClaim; ReadWriteMany where other roles read from it."
    )
    sub_path: str = Field(
        "", max_length=512, pattern=r"^([^/.][^/]*(/[^/.][^/]*)*)?$", description="Folder in it."
    )


class ObjectStoreSpec(Spec):
    """An object store. A sidecar of the learner copies whole checkpoints to it; what is read is fetched first."""

    url: ObjectUrl = Field(description="s3://bucket/prefix, gs://bucket/prefix, az://container/prefix.")
    endpoint: Endpoint = Field("", description="Of an S3 that is not Amazon's.")
    credentials_secret: Name | None = Field(
        None,
        description="Secret whose keys become variables (AWS_ACCESS_KEY_ID, …); left out: the nodes' identity.",
    )
    scratch: Quantity = Field("100Gi", description="Local disk of the learner for checkpoints on their way.")
    upload_seconds: int = Field(
        3600,
        ge=1,
        le=86_400,
        description="For the last upload, once the learner or a job has ended. A pod whose node is lost is waited for "
        "as long.",
    )


class StorageSpec(Spec):
    """Checkpoints, metrics, rollouts and what the run reads: exactly one of pvc, objectStore."""

    model_config = ConfigDict(
        json_schema_extra=one_of("storage takes exactly one of pvc, objectStore", "pvc", "objectStore")
    )

    pvc: PvcSpec | None = None
    object_store: ObjectStoreSpec | None = None

    @model_validator(mode="after")
    def _one(self) -> StorageSpec:
        if (self.pvc is None) == (self.object_store is None):
            raise ValueError("expected exactly one of pvc, objectStore")
        return self


OWN_STORAGE = "10Gi"


class OwnRedisSpec(PodSettings):
    """A Valkey of the run's own, with an append-only file and an ACL user for each service."""

    storage: Quantity = Field(OWN_STORAGE, description="Of its append-only file.")
    storage_class_name: Name | None = Field(None, description="Left out: the cluster's default.")


def _stays(what: str, field: str, default: str = "") -> tuple[str, str]:
    """The rule that an optional field keeps its value; left out is the same as the default, where there is one.

    Compared are fields and constants alone: how long what a `?:` between strings gives may be, an API server does not
    know, and it takes no rule whose cost it cannot bound.
    """
    there = " && ".join(
        f"has(self.{field[:at]})"
        for at in [*(at for at, sign in enumerate(field) if sign == "."), len(field)]
    )
    was = there.replace("self.", "oldSelf.")
    now_default, was_default = (
        f"{one}.{field} == '{default}'" if default else "false" for one in ("self", "oldSelf")
    )
    same = f"self.{field} == oldSelf.{field}"
    rule = f"({there}) ? (({was}) ? {same} : {now_default}) : (!({was}) || {was_default})"
    return rule, f"{what} cannot change once the run exists"


_AS_MADE = (
    _stays("redis.url", "url"),
    ("self.acl == oldSelf.acl", "redis.acl cannot change once the run exists"),
    _stays("redis.own.storage", "own.storage", OWN_STORAGE),
    _stays("redis.own.storageClassName", "own.storageClassName"),
)
"""What the run's Secret and the claim of its server were made from; Kubernetes lets no claim template change."""


class RedisSpec(Spec):
    """The server of the run's queue: its own, or one that is there. With none of them: its own."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                (
                    "[has(self.own), has(self.url), has(self.urlSecret), has(self.usersSecret)]"
                    ".filter(given, given).size() <= 1"
                ),
                "redis takes one of own, url, urlSecret, usersSecret",
            ),
            (
                "!has(self.caSecret) || has(self.url) || has(self.urlSecret) || has(self.usersSecret)",
                "caSecret is for a server elsewhere: the run's own has its certificate from spec.tls",
            ),
            *_AS_MADE,
        )
    )

    own: OwnRedisSpec | None = None
    url: str | None = Field(
        None,
        max_length=512,
        pattern=r"^rediss?://[^\s/@]+(/[0-9]+)?$",
        description="Of a server without a password; one with a password goes into urlSecret.",
    )
    url_secret: SecretKey | None = Field(
        None, description="Secret with the whole URL, redis://user:password@host:port/0."
    )
    users_secret: Name | None = Field(
        None,
        description="Secret with a URL for each service under its name (policy, reward-hh, …, learner, operator), "
        "each with a user of its own, as `trimtab queue users` writes them.",
    )
    ca_secret: SecretKey | None = Field(
        None, description="Authorities of a rediss:// server elsewhere, PEM; left out: the system's."
    )
    port: int = Field(
        6379,
        ge=1,
        le=65535,
        description="Of the server in urlSecret or usersSecret, for the NetworkPolicies.",
    )
    acl: bool = Field(
        True,
        description="Own server: each service is a user with its commands and keys alone; false: the default user.",
    )

    @model_validator(mode="after")
    def _one(self) -> RedisSpec:
        if len([part for part in (self.own, *self._elsewhere) if part is not None]) > 1:
            raise ValueError("expected one of own, url, urlSecret, usersSecret")
        if self.ca_secret is not None and all(part is None for part in self._elsewhere):
            raise ValueError(
                "caSecret is for a server elsewhere: the run's own has its certificate from spec.tls"
            )
        return self

    @property
    def _elsewhere(self) -> tuple[str | SecretKey | None, ...]:
        return self.url, self.url_secret, self.users_secret

    @property
    def owned(self) -> OwnRedisSpec | None:
        """The server that belongs to the run; None where it uses another."""
        if any(part is not None for part in self._elsewhere):
            return None
        return self.own or OwnRedisSpec()


class ModelCacheSpec(Spec):
    """Where models of a hub are kept between starts."""

    claim_name: Name | None = Field(None, description="PersistentVolumeClaim; left out: with each pod anew.")
    size_limit: Quantity | None = Field(None, description="Of the cache that comes and goes with a pod.")
