"""Names of metrics follow the conventions of Prometheus."""

from __future__ import annotations

from prometheus_client import REGISTRY

from services.reward import drift_monitor, metrics, request_log, shadow

REGISTERING = (drift_monitor, metrics, request_log, shadow)


def test_names_in_the_registry_end_in_their_unit() -> None:
    """Histograms and gauges of time are in seconds; nothing counts in milliseconds."""
    assert REGISTERING
    for family in REGISTRY.collect():
        if family.name.startswith("trimtab_"):
            assert not family.name.endswith(("_ms", "_milliseconds", "_time", "_latency"))
