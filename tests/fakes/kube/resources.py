"""What the server serves: built-in resources as a table, custom ones from their CRDs. Knows no objects."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tests.fakes.kube.shapes import Shape, builtin_shape, custom_shape


@dataclass(frozen=True, slots=True)
class ScalePaths:
    """Where the numbers of a Scale stand, as dotted paths; `selector` may be empty."""

    spec: tuple[str, ...]
    status: tuple[str, ...]
    selector: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Resource:
    """A resource in one version. Flags say where the real one differs from resource to resource."""

    group: str
    version: str
    plural: str
    kind: str
    singular: str = ""
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    namespaced: bool = True
    # Whether .status is written through the subresource alone.
    status: bool = False
    scale: ScalePaths | None = None
    # Whether metadata.generation counts changes of what is wanted.
    counted: bool = False
    # Whether an update may leave out resourceVersion, and may create.
    unconditional: bool = True
    creates_on_update: bool = False
    # Whether DELETE answers with the object, not with a Status.
    returns_deleted: bool = False
    # Fields beside the name that can be selected by.
    selectable: tuple[str, ...] = ()
    definition: str = ""
    custom_schema: dict[str, Any] | None = None
    # Printer columns, as in a CRD.
    columns: list[dict[str, Any]] | None = None
    # Another resource that holds the objects, in another form.
    stored_as: str = ""

    @property
    def api_version(self) -> str:
        """group/version, or the version alone for the core group."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def qualified(self) -> str:
        """deployments.apps"""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def storage(self) -> str:
        """Under which name objects are kept: one for all versions."""
        return self.stored_as or self.qualified

    @property
    def is_custom(self) -> bool:
        """Whether a CRD made it."""
        return self.custom_schema is not None

    @cached_property
    def shape(self) -> Shape:
        """Of its objects."""
        if self.custom_schema is not None:
            return custom_shape(self.custom_schema)
        return builtin_shape(self.definition)


_POD_FIELDS = ("spec.nodeName", "spec.restartPolicy", "spec.schedulerName", "spec.serviceAccountName",
               "spec.hostNetwork", "status.phase", "status.podIP", "status.nominatedNodeName")  # fmt: skip
_EVENT_FIELDS = (
    *(f"involvedObject.{name}" for name in ("kind", "namespace", "name", "uid", "apiVersion", "resourceVersion",
                                            "fieldPath")),
    "reason", "reportingComponent", "source", "type",
)  # fmt: skip
_REPLICAS = ScalePaths(("spec", "replicas"), ("status", "replicas"), ("spec", "selector"))
_CORE = "io.k8s.api.core.v1"


def _core(plural: str, kind: str, **flags: Any) -> Resource:
    return Resource(
        group="",
        version="v1",
        plural=plural,
        kind=kind,
        definition=f"{_CORE}.{kind}",
        singular=kind.lower(),
        **flags,
    )


def _grouped(group: str, plural: str, kind: str, **flags: Any) -> Resource:
    package = group.partition(".")[0]
    return Resource(
        group=group, plural=plural, kind=kind, singular=kind.lower(),
        **{"version": "v1", "definition": f"io.k8s.api.{package}.v1.{kind}"} | flags,
    )  # fmt: skip


BUILTIN = (
    _core("namespaces", "Namespace", namespaced=False, status=True, short_names=("ns",), selectable=("status.phase",)),
    _core("pods", "Pod", status=True, short_names=("po",), categories=("all",), returns_deleted=True,
          selectable=_POD_FIELDS),
    _core("services", "Service", status=True, short_names=("svc",), categories=("all",), returns_deleted=True,
          selectable=("spec.clusterIP", "spec.type")),
    _core("configmaps", "ConfigMap", short_names=("cm",)),
    _core("secrets", "Secret", selectable=("type",)),
    _core("serviceaccounts", "ServiceAccount", short_names=("sa",), returns_deleted=True),
    _core("events", "Event", short_names=("ev",), creates_on_update=True, selectable=_EVENT_FIELDS),
    _core("nodes", "Node", namespaced=False, status=True, short_names=("no",), selectable=("spec.unschedulable",)),
    _core("persistentvolumeclaims", "PersistentVolumeClaim", status=True, short_names=("pvc",), returns_deleted=True),
    _core("endpoints", "Endpoints", short_names=("ep",)),
    _core("resourcequotas", "ResourceQuota", status=True, short_names=("quota",), returns_deleted=True),
    _grouped("apps", "deployments", "Deployment", status=True, counted=True, scale=_REPLICAS, short_names=("deploy",),
             categories=("all",)),
    _grouped("apps", "statefulsets", "StatefulSet", status=True, counted=True, scale=_REPLICAS, short_names=("sts",),
             categories=("all",)),
    _grouped("apps", "replicasets", "ReplicaSet", status=True, counted=True, scale=_REPLICAS, short_names=("rs",),
             categories=("all",), selectable=("status.replicas",)),
    _grouped("batch", "jobs", "Job", status=True, counted=True, categories=("all",),
             selectable=("status.successful",)),
    _grouped("policy", "poddisruptionbudgets", "PodDisruptionBudget", status=True, counted=True, unconditional=False,
             short_names=("pdb",)),
    _grouped("networking.k8s.io", "networkpolicies", "NetworkPolicy", counted=True, short_names=("netpol",)),
    _grouped("coordination.k8s.io", "leases", "Lease", unconditional=False, creates_on_update=True),
    _grouped("apps", "daemonsets", "DaemonSet", status=True, counted=True, short_names=("ds",), categories=("all",)),
    _grouped("batch", "cronjobs", "CronJob", status=True, counted=True, short_names=("cj",), categories=("all",)),
    _grouped("autoscaling", "horizontalpodautoscalers", "HorizontalPodAutoscaler", version="v2", status=True,
             short_names=("hpa",), categories=("all",), definition="io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler"),
    _grouped("networking.k8s.io", "ingresses", "Ingress", status=True, counted=True, short_names=("ing",)),
    _grouped("discovery.k8s.io", "endpointslices", "EndpointSlice", counted=True),
    _grouped("scheduling.k8s.io", "priorityclasses", "PriorityClass", namespaced=False, counted=True,
             short_names=("pc",)),
    _grouped("storage.k8s.io", "storageclasses", "StorageClass", namespaced=False, short_names=("sc",)),
    _grouped("node.k8s.io", "runtimeclasses", "RuntimeClass", namespaced=False),
    _core("persistentvolumes", "PersistentVolume", namespaced=False, status=True, short_names=("pv",)),
    _core("limitranges", "LimitRange", short_names=("limits",)),
    _grouped("rbac.authorization.k8s.io", "roles", "Role"),
    _grouped("rbac.authorization.k8s.io", "rolebindings", "RoleBinding"),
    _grouped("rbac.authorization.k8s.io", "clusterroles", "ClusterRole", namespaced=False),
    _grouped("rbac.authorization.k8s.io", "clusterrolebindings", "ClusterRoleBinding", namespaced=False),
    _grouped("events.k8s.io", "events", "Event", short_names=("ev",), creates_on_update=True, stored_as="events",
             selectable=tuple(name.replace("involvedObject", "regarding") for name in _EVENT_FIELDS)),
    _grouped("apiextensions.k8s.io", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False,
             status=True, counted=True, unconditional=False, short_names=("crd", "crds"),
             definition="io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinition"),
)  # fmt: skip


def kept_as(resource: Resource) -> Resource:
    """The resource in whose form objects are kept."""
    if not resource.stored_as:
        return resource
    return next(each for each in BUILTIN if each.qualified == resource.stored_as)


def _dotted(path: str) -> tuple[str, ...]:
    return tuple(part for part in path.split(".") if part)


def custom_resources(crd: dict[str, Any]) -> list[Resource]:
    """The served versions of a CRD."""
    spec = crd["spec"]
    names = spec["names"]
    return [
        Resource(
            group=spec["group"],
            version=version["name"],
            plural=names["plural"],
            kind=names["kind"],
            singular=names.get("singular") or names["kind"].lower(),
            short_names=tuple(names.get("shortNames", ())),
            categories=tuple(names.get("categories", ())),
            namespaced=spec["scope"] == "Namespaced",
            status="status" in version.get("subresources", {}),
            scale=_scale_paths(version.get("subresources", {}).get("scale")),
            counted=True,
            unconditional=False,
            selectable=tuple(each["jsonPath"].lstrip(".") for each in version.get("selectableFields", ())),
            custom_schema=version["schema"]["openAPIV3Schema"],
            columns=version.get("additionalPrinterColumns"),
        )
        for version in spec["versions"]
        if version["served"]
    ]


def _scale_paths(scale: dict[str, str] | None) -> ScalePaths | None:
    if scale is None:
        return None
    return ScalePaths(
        _dotted(scale["specReplicasPath"]),
        _dotted(scale["statusReplicasPath"]),
        _dotted(scale.get("labelSelectorPath", "")),
    )
