"""The load generator of benchmarks.scoring, with a server that is a function."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from benchmarks.scoring_load import Plan, Text, closed_loop, from_json, open_loop, to_json

TEXTS = tuple(Text(str(number), "", str(number)) for number in range(10))


class Counting:
    """Scores a text by its number; notes which calls came, and how many were in flight at most."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.in_flight = 0
        self.most = 0

    async def __call__(self, texts: Sequence[Text]) -> list[float]:
        self.calls.append([text.whole for text in texts])
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        await asyncio.sleep(0)
        self.in_flight -= 1
        return [float(text.whole) for text in texts]


def plan(**changes: object) -> Plan:
    return Plan(way="grpc", address="nowhere:1", texts=TEXTS, **changes)  # type: ignore[arg-type]


async def test_clients_share_the_texts_in_their_order() -> None:
    """Every text is sent once, calls begin in the texts' order, and no more clients are busy than there are."""
    server = Counting()
    seen = await closed_loop(server, plan(clients=3))
    assert server.calls == [[str(number)] for number in range(10)]
    assert server.most == 3
    assert seen.scores == tuple(float(number) for number in range(10))
    assert len(seen.latencies) == 10
    assert seen.seconds >= max(seen.latencies)


async def test_a_call_may_hold_many_texts() -> None:
    """With four texts a call the last call holds the rest, and scores keep the texts' order."""
    server = Counting()
    seen = await closed_loop(server, plan(clients=2, rows_per_call=4))
    assert sorted(len(call) for call in server.calls) == [2, 4, 4]
    assert seen.scores == tuple(float(number) for number in range(10))


async def test_arrivals_do_not_wait_for_answers() -> None:
    """In an open loop all calls of one moment are in flight together, and a late answer counts from the arrival."""
    server = Counting()
    seen = await open_loop(server, plan(arrivals=(0.0,) * 12))
    assert server.most == 12
    assert seen.scores[10:] == (0.0, 1.0)
    assert all(latency > 0 for latency in seen.latencies)


def test_a_plan_survives_its_way_to_the_other_process() -> None:
    """What one process writes, the other reads as the same plan."""
    sent = plan(clients=8, rows_per_call=32, arrivals=(0.25, 1.5))
    assert from_json(to_json(sent)) == sent
