"""Metrics of weights on their way to this replica."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

FETCHED_BYTES = Counter(
    "trimtab_weights_fetched_bytes", "Bytes of weights that arrived.", ["encoding", "source"]
)
PAIRED_BYTES = Counter("trimtab_weights_paired_bytes", "Bytes of them that came over a shared fabric.")
PAIR_FAILURES = Counter("trimtab_weights_pair_failures", "Pairs that broke, after which gRPC went on.")
FALLBACKS = Counter(
    "trimtab_weights_fallbacks",
    "Streams of weights that were wrong, after which the next source or whole tensors were asked for.",
)
SOURCE_FAILURES = Counter(
    "trimtab_weights_source_failures", "Peers that did not deliver, and shared files that were wrong."
)
BEHIND_STEPS = Gauge("trimtab_weights_behind_steps", "Steps that the held weights are behind the learner's.")
