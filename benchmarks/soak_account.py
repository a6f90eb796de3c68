"""Rollout accounting of a run that has ended, from three sources that know nothing of each other. Pure.

the ledger      counts, groups in flight and groups that ended, as in the last checkpoint
the rollouts    which groups each step took, as kept in rollouts/*.parquet
the streams     which groups stand on any stage of the queue

admitted = trained + stale + failed + in flight, no group twice, no number left out
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any


def account(
    ledger: Mapping[str, Any],
    taken: Mapping[int, Sequence[str]],
    standing: frozenset[str],
    rows: Sequence[Mapping[str, float]],
) -> dict[str, float]:
    """Figures of the account; every one that begins with `wrong_` is 0 where it is exact.

    ledger: as Ledger.state(). taken: groups by step, for every step of the run. standing: on any stream. rows: of
    metrics.jsonl.
    """
    in_flight = {row[0] for row in ledger["in_flight"]}
    ended = how_each_ended(ledger["ended"])
    counts = {name: int(ledger[name]) for name in ("trained", "stale", "failed")}
    known = sum(counts.values()) + len(in_flight)
    times = Counter(group for groups in taken.values() for group in groups)
    names = {_name(group) for group in times}
    trained_twice = sum(count - 1 for count in times.values())
    # The ledger knows how each ended: what a step took must have ended as trained.
    otherwise = sum(1 for group in times if ended.get(_name(group)) != "trained" or group in in_flight)
    remembered_trained = sum(how == "trained" and name not in names for name, how in ended.items())
    return {
        "admitted": float(ledger["next_number"]),
        **{name: float(count) for name, count in counts.items()},
        "in_flight": float(len(in_flight)),
        "wrong_sum": float(abs(int(ledger["next_number"]) - known)),
        "wrong_twice": float(trained_twice + len({_name(group) for group in in_flight} & ended.keys())),
        "wrong_trained": float(abs(counts["trained"] - len(times)) + otherwise + remembered_trained),
        "wrong_streams": float(len(in_flight ^ standing)),
        "wrong_rows": float(wrong_rows(rows, len(taken))),
    }


def how_each_ended(ended: Mapping[str, Sequence[Sequence[int]]]) -> dict[tuple[int, int], str]:
    """By epoch and number; ended: of each kind the ranges [epoch, first, last]. Twice ended is wrong, and said so."""
    found: dict[tuple[int, int], str] = {}
    for how, ranges in ended.items():
        for epoch, first, last in ranges:
            for number in range(first, last + 1):
                found[epoch, number] = "twice" if (epoch, number) in found else how
    return found


def _name(group_id: str) -> tuple[int, int]:
    epoch, number, _prompt = group_id.split("-")
    return int(epoch), int(number)


def wrong_rows(rows: Sequence[Mapping[str, float]], steps: int) -> int:
    """Rows of metrics.jsonl whose counts do not add up or whose step is not the next one, and rows that lack."""
    wrong = abs(len(rows) - steps)
    for at, row in enumerate(rows):
        parts = sum(row[f"rollouts/{name}"] for name in ("trained", "stale", "failed", "in_flight"))
        wrong += row["step"] != at + 1 or row["rollouts/admitted"] != parts
    return wrong
