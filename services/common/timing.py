"""Writes into rollout groups how long a stage's model worked on them. Knows no stage."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.rollout.v1 import rollout_pb2 as rollout


def record_timings(
    work: Sequence[tuple[rollout.RolloutGroup, int]], *, stage: str, replica: str, seconds: float
) -> None:
    """Append a StageTiming to each (group, tokens): the batch's seconds, shared out by tokens."""
    total = sum(tokens for _, tokens in work)
    for group, tokens in work:
        share = tokens / total if total else 1 / len(work)
        group.timings.append(
            rollout.StageTiming(stage=stage, replica=replica, model_seconds=seconds * share, tokens=tokens)
        )
