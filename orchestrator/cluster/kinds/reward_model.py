"""RewardModel: reward scoring as a service of its own, for any trainer. Knows no run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from orchestrator.cluster.kinds.base import Cidr, Name, ObjectMeta, SecretKey, rules
from orchestrator.cluster.kinds.pods import ServiceRole
from orchestrator.cluster.kinds.status import RewardModelStatus
from orchestrator.cluster.kinds.storage import Endpoint, ModelCacheSpec, ObjectUrl, PvcSpec, one_of
from services.common.digests import DIGEST_PATTERN
from services.common.spec.base import Spec
from services.common.spec.service import Dtype

NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
MOST_NAME = 38
"""Names of what is made for an object are its own and a suffix; a Service's may have 63 characters."""
Digest = Annotated[str, StringConstraints(max_length=256, pattern=DIGEST_PATTERN)]
NAMED_WELL = rules(
    (
        f"self.metadata.name.size() <= {MOST_NAME} && self.metadata.name.matches('{NAME_PATTERN}')",
        f"metadata.name: at most {MOST_NAME} of a-z, 0-9 and -, a letter first: Services are named after it",
    )
)


class RewardSource(Spec):
    """Where the model is: exactly one of path, url, registry, rule."""

    model_config = ConfigDict(
        json_schema_extra=one_of(
            "a reward model's source takes exactly one of path, url, registry, rule",
            "path",
            "url",
            "registry",
            "rule",
        )
    )

    path: str | None = Field(
        None,
        min_length=1,
        max_length=1024,
        pattern=r"^/",
        description="Folder of safetensors in the image or on the volume, which is mounted at /storage.",
    )
    url: ObjectUrl | None = Field(
        None, description="Folder in an object store; fetched before the service starts."
    )
    registry: str | None = Field(
        None,
        max_length=512,
        pattern=r"^[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+(@[A-Za-z0-9_.-]+)?$",
        description="Repository of the model hub, name/model@revision; fetched before the service starts.",
    )
    rule: str | None = Field(
        None, min_length=1, max_length=1024, description="sentiment, length:target=40, …"
    )

    @model_validator(mode="after")
    def _one(self) -> RewardSource:
        if sum(part is not None for part in (self.path, self.url, self.registry, self.rule)) != 1:
            raise ValueError("expected exactly one of path, url, registry, rule")
        return self


class AccessKeysSpec(Spec):
    """API keys, hashed, as `python -m services.common.access` makes the file."""

    secret: SecretKey = Field(description="The keys file. Read anew when it changes.")
    allow_plaintext: bool = Field(
        False, description="Take keys without TLS, because a mesh encrypts between the pods."
    )


class TlsSecretSpec(Spec):
    """A Secret of type kubernetes.io/tls, as cert-manager keeps it."""

    secret_name: Name
    client_ca: bool = Field(False, description="Ask every client for a certificate of the Secret's ca.crt.")


class ShadowSpec(Spec):
    """A second model that scores the same rows behind the answers; never seen by callers."""

    source: RewardSource
    digest: Digest | None = None


class RewardModelSpec(ServiceRole):
    """A reward model, its replicas and who may call it."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.accessKeys) || has(self.tls) || self.accessKeys.allowPlaintext",
                "accessKeys without tls would send keys in the clear: give tls, or accessKeys.allowPlaintext",
            ),
            (
                "!has(self.source.path) || !self.source.path.startsWith('/storage/') || has(self.volume)",
                "source.path lies in /storage, so volume must say what is mounted there",
            ),
        )
    )

    source: RewardSource
    digest: Digest | None = Field(
        None,
        description="The service is not Available unless it serves exactly this model; hex, or algorithm:hex.",
    )
    shadow: ShadowSpec | None = None
    access_keys: AccessKeysSpec | None = None
    tls: TlsSecretSpec | None = None
    volume: PvcSpec | None = Field(None, description="Mounted read-only at /storage.")
    credentials_secret: Name | None = Field(
        None, description="Secret whose keys become variables where it is fetched."
    )
    endpoint: Endpoint = Field("", description="Of an S3 that is not Amazon's.")
    service_account_name: Name | None = Field(
        None, description="For an identity at the object store; never its token."
    )
    model_cache: ModelCacheSpec = Field(ModelCacheSpec(), description="Where models of a hub are kept.")
    dtype: Dtype = Field("auto", description="auto: bfloat16 where it is quicker than float32, else that.")
    http: bool = Field(True, description="Answer HTTP beside gRPC.")
    token_budget: int = Field(4096, ge=16, description="Tokens in one forward pass.")
    allowed_namespaces: tuple[Name, ...] = Field(
        (),
        max_length=32,
        description="Namespaces that may call it beside its own.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )

    egress_cidrs: tuple[Cidr, ...] = Field(
        (),
        max_length=16,
        description="More that it may reach, beside where its model is fetched from.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )

    @model_validator(mode="after")
    def _safe(self) -> RewardModelSpec:
        keys = self.access_keys
        if keys is not None and self.tls is None and not keys.allow_plaintext:
            raise ValueError("accessKeys without tls would send keys in the clear")
        if (self.source.path or "").startswith("/storage/") and self.volume is None:
            raise ValueError("source.path lies in /storage, so volume must say what is mounted there")
        return self


class RewardModel(BaseModel):
    """Reward scoring as a service of its own, which any trainer may call and several runs may share."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, json_schema_extra=NAMED_WELL
    )

    api_version: Literal["trimtab.dev/v1alpha1"] = Field("trimtab.dev/v1alpha1", alias="apiVersion")
    kind: Literal["RewardModel"] = "RewardModel"
    metadata: ObjectMeta
    spec: RewardModelSpec
    status: RewardModelStatus = RewardModelStatus()
