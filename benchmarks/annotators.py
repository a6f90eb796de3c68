"""Fifty annotators at once: how long a label takes until it is on disk, and whether each is there, once.

    python -m benchmarks.annotators [--quick]

One service on loopback, with SQLite and then with PostgreSQL (a server of our own, syncing every commit as it does when
installed). Each annotator, signed in by a link, holds five tasks as the page does, thinks for about a second
(exponential, mean 1 s: much faster than people), answers, takes one answer in twenty back and gives it anew. A label's
time is from sending it to the acknowledgement. Afterwards the stream of comparisons must hold every acknowledged label,
none twice. Then the same for ten seconds without thinking, for the most that it can do (`saturated_…`, without a bar).
`cpu_ms_per_label` is the service's processor time, tasks included: it hardly depends on what else runs.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from benchmarks.harness import at_least, at_most, run, say
from tests.fakes.campaign import item
from tests.fakes.pages import Pages
from tests.fakes.postgres import postgres, programs

ANNOTATORS = 50
SECONDS, QUICK_SECONDS, FULL_SECONDS = 60.0, 10.0, 10.0
THINK_SECONDS = 1.0
UNDONE = 0.05
ITEMS = 12_000
AHEAD = 5


@dataclass(slots=True)
class Seen:
    """Seconds of each label; the last word of each annotator on each task: a choice, or None if taken back."""

    seconds: list[float] = field(default_factory=list)
    said: dict[tuple[str, str], tuple[int, ...] | None] = field(default_factory=dict)


class Annotator:
    """One page, without a browser."""

    def __init__(self, name: str, client: httpx.AsyncClient, seen: Seen, think: float) -> None:
        self._name = name
        self._client = client
        self._seen = seen
        self._think = think
        self._draw = random.Random(name)
        self._revision = 0

    async def sign_in(self, token: str) -> None:
        """Open the link and the page."""
        await self._post("/api/sign-in", {"token": token})
        page = (await self._client.get("/label")).text
        self._client.headers["x-csrf-token"] = page.partition('data-csrf="')[2].partition('"')[0]

    async def work(self, until: float) -> None:
        """Label until then (monotonic seconds)."""
        held: list[dict[str, Any]] = []
        await asyncio.sleep(self._draw.uniform(0, self._think))
        while time.monotonic() < until:
            if len(held) < AHEAD / 2:
                given = (await self._post("/api/tasks", {"limit": AHEAD}))["units"]
                known = {unit["unit"] for unit in held}
                held += [unit for unit in given if unit["unit"] not in known]
            if self._think:
                await asyncio.sleep(self._draw.expovariate(1 / self._think))
            unit = held.pop(0)
            await self._say(unit, ranks=self._draw.choice([(1, 2), (2, 1), (1, 1)]))
            if self._draw.random() < UNDONE:
                await self._say(unit, withdrawn=True)
                await self._say(unit, ranks=(2, 1))

    async def _say(
        self, unit: Mapping[str, Any], *, ranks: tuple[int, ...] = (), withdrawn: bool = False
    ) -> None:
        self._revision += 1
        answer = {
            "unit": unit["unit"],
            "kind": unit["kind"],
            "revision": self._revision,
            "ranks": list(ranks),
            "withdrawn": withdrawn,
            "seconds": 1.0,
        }
        began = time.perf_counter()
        [outcome] = (await self._post("/api/answers", {"answers": [answer]}))["outcomes"]
        self._seen.seconds.append(time.perf_counter() - began)
        if outcome["refused"] or outcome["new"] != 1:
            raise RuntimeError(f"{self._name}: a label was not kept: {outcome}")
        self._seen.said[self._name, unit["unit"]] = None if withdrawn else ranks

    async def _post(self, path: str, body: dict[str, Any]) -> Any:
        answered = await self._client.post(path, json=body)
        if answered.status_code != 200:
            raise RuntimeError(f"{path}: {answered.status_code}: {answered.text[:300]}")
        return answered.json()


async def label(pages: Pages, links: Mapping[str, str], seconds: float, think: float) -> Seen:
    """All of them at once for so long."""
    seen = Seen()
    clients = [httpx.AsyncClient(base_url=pages.url, timeout=60, trust_env=False) for _ in links]
    people = [Annotator(name, client, seen, think) for name, client in zip(links, clients, strict=True)]
    tokens = [link.partition("#")[2] for link in links.values()]
    try:
        for person, token in zip(people, tokens, strict=True):
            await person.sign_in(token)
        ends = time.monotonic() + seconds
        await asyncio.gather(*(person.work(ends) for person in people))
    finally:
        await asyncio.gather(*(client.aclose() for client in clients))
    return seen


def measure_database(database: str, url: str, seconds: float) -> dict[str, float]:
    """All figures of one database."""
    more = "[web]\nrequests_per_minute = 100000\nsign_ins_per_minute = 1000\n"
    with tempfile.TemporaryDirectory() as folder:
        pages = Pages(Path(folder), more, url)
        with pages.start() as client:
            for begin in range(0, ITEMS, 500):
                client.upload([item(number) for number in range(begin, begin + 500)])
            links = {f"ann{number}": pages.link(f"ann{number}") for number in range(ANNOTATORS)}
            assert pages.process is not None  # noqa: S101 - it was started
            service = psutil.Process(pages.process.pid)
            before = service.cpu_times()
            calm = asyncio.run(label(pages, links, seconds, THINK_SECONDS))
            after = service.cpu_times()
            full = asyncio.run(label(pages, links, FULL_SECONDS, 0.0))
            kept: dict[tuple[str, str], int] = {}
            for one in client.comparisons():
                key = (one.comparison.annotator, one.comparison.task_id)
                kept[key] = kept.get(key, 0) + 1
        pages.stop()
    wanted = {key for seen in (calm, full) for key, ranks in seen.said.items() if ranks is not None}
    figures = {
        "p50_ms": 1000 * float(np.percentile(calm.seconds, 50)),
        "p99_ms": 1000 * float(np.percentile(calm.seconds, 99)),
        "labels_per_second": len(calm.seconds) / seconds,
        "cpu_ms_per_label": 1000
        * (after.user + after.system - before.user - before.system)
        / len(calm.seconds),
        "lost": len(wanted - set(kept)),
        "twice": sum(count - 1 for count in kept.values()) + len(set(kept) - wanted),
        "saturated_p99_ms": 1000 * float(np.percentile(full.seconds, 99)),
        "saturated_labels_per_second": len(full.seconds) / FULL_SECONDS,
    }
    say(f"{database}: {len(calm.seconds)} labels with thinking, {len(full.seconds)} without")
    return {f"{name}_{database}": value for name, value in figures.items()}


@contextmanager
def database_url(database: str) -> Iterator[str]:
    """A database with nothing in it; an empty URL for the service's own SQLite file."""
    if database == "sqlite":
        yield ""
        return
    with postgres(durable=True) as server:
        yield server.url()


def measure(quick: bool) -> dict[str, float]:
    """The figures of both databases."""
    figures: dict[str, float] = {}
    for database in ("sqlite", "postgresql"):
        if database == "postgresql" and programs() is None:
            say("PostgreSQL is not installed: its figures are missing (apt-get install postgresql)")
            continue
        with database_url(database) as url:
            figures |= measure_database(database, url, QUICK_SECONDS if quick else SECONDS)
    return figures


def main() -> None:
    """Command line."""
    bars = {
        f"{name}_{database}": bar
        for database in ("sqlite", "postgresql")
        for name, bar in (
            ("p99_ms", at_most(150)),
            ("lost", at_most(0)),
            ("twice", at_most(0)),
            ("labels_per_second", at_least(30)),
        )
    }
    run("annotators", measure, bars)


if __name__ == "__main__":
    main()
