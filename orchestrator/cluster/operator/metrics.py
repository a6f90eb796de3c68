"""What the operator counts of itself, for Prometheus."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

RECONCILES = Counter(
    "trimtab_operator_reconciles", "Reconciles, by controller and outcome.", ["controller", "outcome"]
)
SECONDS = Histogram(
    "trimtab_operator_reconcile_seconds",
    "Time of a reconcile, its requests included, seconds.",
    ["controller"],
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
)
LAG = Histogram(
    "trimtab_operator_queue_seconds",
    "Time that a key stood in the queue, seconds.",
    ["controller"],
    buckets=(0.001, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 60),
)
DEPTH = Gauge("trimtab_operator_queue_depth", "Keys that wait to be worked on.", ["controller"])
WRITES = Counter("trimtab_operator_writes", "Writes to the API server, by kind and verb.", ["kind", "verb"])
LISTS = Counter(
    "trimtab_operator_lists",
    "Full lists, by kind: one at the start, one whenever a watch is too old.",
    ["kind"],
)
LEADER = Gauge("trimtab_operator_leader", "1 while this replica leads.")
OBJECTS = Gauge("trimtab_operator_cached_objects", "Objects in the cache.")
RUNS = Gauge("trimtab_operator_runs", "TrainingRuns in the cache.")
BLIND = Counter(
    "trimtab_operator_scrapes_lost", "Scrapes of runs that came back without what was asked for.", ["what"]
)
