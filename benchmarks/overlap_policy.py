"""`python -m benchmarks.overlap_policy`: the policy service, each generation of a batch a device's time long."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.common.entry import service_main

if TYPE_CHECKING:
    from services.common.server import Application
    from services.policy.config import PolicyConfig


def build(config: PolicyConfig) -> Application:
    """The service itself; only its engine takes longer."""
    from benchmarks.overlap_device import on_device
    from services.policy.application import PolicyApplication
    from services.policy.engines.transformers_engine import TransformersEngine

    TransformersEngine.generate = on_device(TransformersEngine.generate)  # type: ignore[method-assign]
    return PolicyApplication(config)


if __name__ == "__main__":
    service_main("policy", "services.policy.config:PolicyConfig", "benchmarks.overlap_policy:build")
