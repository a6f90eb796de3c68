"""Which API server, and as whom: a kubeconfig, or the pod's own account. Knows no request."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from kubernetes import client, config
from kubernetes.client import ApiClient

from services.common.errors import ConfigError

CONNECTIONS = 64
_HOME = Path("~/.kube/config")


def connect(kubeconfig: Path | None = None, context: str | None = None) -> ApiClient:
    """A client. Without a file: KUBECONFIG, else the pod's own account, else ~/.kube/config. Raises ConfigError."""
    settings = client.Configuration()
    try:
        if kubeconfig is None and "KUBECONFIG" not in os.environ and _in_a_pod():
            config.load_incluster_config(client_configuration=settings)
        else:
            _from_file(kubeconfig, context, settings)
    except config.ConfigException as error:
        raise ConfigError(f"kubeconfig: {' '.join(str(error).split())}") from None
    settings.connection_pool_maxsize = CONNECTIONS
    # What was refused is decided anew by whoever asked; a second sending behind its back helps nobody.
    settings.retries = False
    # A connection that a middlebox has forgotten must not hold a watch up for minutes.
    settings.keep_alive = True
    return ApiClient(settings)


def namespace_of(kubeconfig: Path | None = None, context: str | None = None) -> str:
    """The namespace that the kubeconfig's context names, or the pod's own; else default."""
    inside = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
    if kubeconfig is None and "KUBECONFIG" not in os.environ and _in_a_pod():
        return inside.read_text(encoding="utf-8").strip() if inside.is_file() else "default"
    try:
        contexts, active = config.list_kube_config_contexts(_file(kubeconfig))
    except (config.ConfigException, OSError):
        return "default"
    chosen: dict[str, Any] = next((one for one in contexts if one["name"] == context), active)
    return str(chosen.get("context", {}).get("namespace") or "default")


def _from_file(kubeconfig: Path | None, context: str | None, settings: Any) -> None:
    path = kubeconfig or (_HOME.expanduser() if "KUBECONFIG" not in os.environ else None)
    if path is not None and not path.is_file():
        raise ConfigError(f"{path}: no such file: give --kubeconfig, or set KUBECONFIG")
    config.load_kube_config(_file(kubeconfig), context=context, client_configuration=settings)


def _file(kubeconfig: Path | None) -> str | None:
    # The client reads KUBECONFIG when it is imported; read again, so that it may be set later.
    return str(kubeconfig) if kubeconfig is not None else os.environ.get("KUBECONFIG")


def _in_a_pod() -> bool:
    return "KUBERNETES_SERVICE_HOST" in os.environ
