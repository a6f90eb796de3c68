"""A small Kubernetes API server for tests. README.md says what it does and what it does not."""

from tests.fakes.kube.server import KubeServer

__all__ = ["KubeServer"]
