"""Measures the reward service: texts scored over gRPC and HTTP against a direct loop, mosec, LitServe and vLLM.

SmolLM2-135M with a scalar head, bfloat16, 2 threads, the first 256 HH dialogues cut at 512 tokens, in their order.
Load: 64 clients with one text at a time (64x1), and 8 with 32 at once (8x32); a figure without either is the worse of
both. The limit sorts all texts by length and runs padded batches of its best size, in one process, nothing around it.
Servers run alone, in alternation, each round a ratio of its own, median over the rounds. Everyone's scores must be
as near to float32's as the limit's are.

    grpc_vs_limit, http_vs_limit      speed over the limit's
    vs_<peer>_batched                 ours over gRPC over the peer's with dynamic batching of 32, as it documents
    vs_<peer>_best                    the same with its best of batch sizes 1, 8, 32, found before the rounds
    <way>_tokens_per_second           tokens of the texts, no padding
    [<way>_]p50_milliseconds, …       latency at half of the way's own speed, calls of one text at random times
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

from benchmarks import harness
from benchmarks.peers.scalar_model import Settings
from benchmarks.public_data import data_file
from benchmarks.scoring_figures import (
    PATTERNS,
    Disagreement,
    Pass,
    check_agreement,
    complaints,
    headline,
    poisson_arrivals,
    quantile,
    rate,
    rates,
)
from benchmarks.scoring_load import Plan, Seen, Text
from benchmarks.scoring_servers import PeerFailed, Server, Servers, installed, load, servers
from benchmarks.scoring_setup import (
    THREADS,
    Limit,
    dialogues,
    end_text,
    exact_scores,
    model_folder,
    open_limit,
)

BATCHED_ROWS = 32
PEER_ROWS = (1, 8, BATCHED_ROWS)
PEERS = ("mosec", "litserve")
CLIENTS = {"64x1": (64, 1), "8x32": (8, 32)}
SEED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is measured. trial_texts: for the choice of a peer's batch size."""

    texts: int
    trial_texts: int
    rounds: int
    latency_seconds: float


FULL = Size(texts=256, trial_texts=48, rounds=3, latency_seconds=20.0)
QUICK = Size(texts=64, trial_texts=16, rounds=1, latency_seconds=8.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One row of the comparison: a server, asked in one manner. name: as in the figures."""

    name: str
    asked: str
    server: Server

    def plan(
        self,
        texts: Sequence[Text],
        *,
        clients: int = 1,
        rows_per_call: int = 1,
        arrivals: tuple[float, ...] = (),
    ) -> Plan:
        """What a load generator does to it."""
        return Plan(
            way=self.asked,
            address=self.server.addresses[self.asked],
            texts=tuple(texts),
            clients=clients,
            rows_per_call=rows_per_call,
            arrivals=arrivals,
        )


@dataclass(slots=True)
class Comparison:
    """The run so far: what was expected, every pass, and what could not be measured."""

    size: Size
    texts: tuple[Text, ...]
    limit: Limit
    expected: list[float]
    """float32's scores."""
    rounded: list[float]
    """The limit's."""
    ways: list[Way] = field(default_factory=list)
    passes: list[Pass] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)

    def run_limit(self, number: int) -> None:
        """One pass of the direct loop."""
        seconds, _ = self.limit.run()
        self._note("limit", "", number, seconds)

    def run_way(self, way: Way, pattern: str, number: int) -> None:
        """One pass of one server under one pattern of load. Disagreement where its scores are others."""
        seen = ask(way, self.texts, pattern)
        check_agreement(f"{way.name} {pattern}", self.expected, seen.scores, self.rounded)
        self._note(way.name, pattern, number, seen.seconds)

    def trial(self, way: Way) -> float:
        """Tokens a second over the first texts, after a warm-up: for choosing, no figure."""
        count = self.size.trial_texts
        ask(way, self.texts[-count // 2 :], "64x1")
        seen = ask(way, self.texts[:count], "64x1")
        away = check_agreement(way.name, self.expected[:count], seen.scores, self.rounded[:count])
        speed = sum(map(len, self.limit.rows[:count])) / seen.seconds
        harness.say(f"  {way.name}: {speed:,.0f} tokens/s in a short trial, scores {away:.3f} deviations off")
        return speed

    def latencies(self, way: Way) -> tuple[float, ...]:
        """Seconds of each call at half of the way's own speed."""
        half = 0.5 * rate(self.passes, way.name, "64x1") / fmean(map(len, self.limit.rows))
        arrivals = poisson_arrivals(half, self.size.latency_seconds, SEED)
        with way.server.at_work():
            return load(way.plan(self.texts, arrivals=arrivals)).latencies

    def _note(self, way: str, pattern: str, number: int, seconds: float) -> None:
        speed = self.limit.tokens / seconds
        self.passes.append(Pass(way=way, pattern=pattern, round=number, tokens_per_second=speed))
        harness.say(f"  round {number + 1}: {way} {pattern} {speed:,.0f} tokens/s")


def ask(way: Way, texts: Sequence[Text], pattern: str) -> Seen:
    """One pass of a server that is held before and after."""
    clients, rows = CLIENTS[pattern]
    with way.server.at_work():
        return load(way.plan(texts, clients=clients, rows_per_call=rows))


# ------------------------------------------------------------------ who takes part


def add_ours(comparison: Comparison, running: Servers) -> None:
    """gRPC and HTTP, of one service."""
    server = running.ours()
    for asked in ("grpc", "http"):
        if asked in server.addresses:
            way = Way(name=asked, asked=asked, server=server)
            comparison.trial(way)
            comparison.ways.append(way)
        else:
            comparison.missing[asked] = "the service has no such address"


def add_peer(comparison: Comparison, running: Servers, name: str) -> None:
    """A peer with batches of 32, and with its best size where that is another; or why it cannot take part."""
    if not installed(name):
        comparison.missing[name] = f"make peer-{name} has not been run"
        return
    try:
        ways = _vllm(comparison, running) if name == "vllm" else _batching(comparison, running, name)
    except (PeerFailed, Disagreement) as error:
        comparison.missing[name] = str(error)
    else:
        comparison.ways.extend(ways)


def _batching(comparison: Comparison, running: Servers, name: str) -> list[Way]:
    tried: dict[int, tuple[float, Server]] = {}
    for rows in PEER_ROWS:
        server = running.peer(name, rows)
        tried[rows] = (comparison.trial(Way(name=server.name, asked=name, server=server)), server)
    best = max(tried, key=lambda rows: tried[rows][0])
    for rows, (_, server) in tried.items():
        if rows not in (best, BATCHED_ROWS):
            running.end(server)
    ways = [Way(name=f"{name}_batched", asked=name, server=tried[BATCHED_ROWS][1])]
    if best != BATCHED_ROWS:
        ways.append(Way(name=f"{name}_best", asked=name, server=tried[best][1]))
    return ways


def _vllm(comparison: Comparison, running: Servers) -> list[Way]:
    way = Way(name="vllm", asked="vllm", server=running.peer("vllm", BATCHED_ROWS))
    comparison.trial(way)
    return [way]


# ------------------------------------------------------------------ the whole


def run_rounds(comparison: Comparison) -> None:
    """Everybody once a round under each pattern; who begins goes round, so that a drift favours nobody."""
    turns: list[Way | None] = [None, *comparison.ways]
    for number in range(comparison.size.rounds):
        first = number * len(turns) // comparison.size.rounds
        for way in turns[first:] + turns[:first]:
            if way is None:
                comparison.run_limit(number)
                continue
            # Nothing is asked of vLLM: one round of it is enough.
            for pattern in PATTERNS if way.name != "vllm" or number == 0 else ():
                comparison.run_way(way, pattern, number)


def figures_of(comparison: Comparison) -> dict[str, float]:
    """All figures of the rounds."""
    passes, names = comparison.passes, [way.name for way in comparison.ways]
    figures: dict[str, float] = {}
    for name in ("grpc", "http"):
        figures |= headline(passes, f"{name}_vs_limit", name, "limit")
    for peer in PEERS:
        best = f"{peer}_best" if f"{peer}_best" in names else f"{peer}_batched"
        figures |= headline(passes, f"vs_{peer}_batched", "grpc", f"{peer}_batched")
        figures |= headline(passes, f"vs_{peer}_best", "grpc", best)
    figures |= headline(passes, "vs_vllm", "grpc", "vllm")
    figures["limit_tokens_per_second"] = rate(passes, "limit", "")
    for name in names:
        figures |= rates(passes, name)
    return figures


def latency_figures(comparison: Comparison) -> dict[str, float]:
    """p50 and p99 of each way, of a peer at its best batch size; ours over gRPC has no prefix."""
    names = {way.name for way in comparison.ways}
    figures: dict[str, float] = {}
    for way in comparison.ways:
        if way.name.endswith("_batched") and way.name.replace("_batched", "_best") in names:
            continue
        prefix = "" if way.name == "grpc" else f"{way.name.partition('_')[0]}_"
        seen = comparison.latencies(way)
        for share in (50, 99):
            figures[f"{prefix}p{share}_milliseconds"] = 1000 * quantile(seen, share / 100)
        harness.say(f"  latency: {way.name}, {len(seen)} calls")
    return figures


def measure(quick: bool) -> dict[str, float]:
    """All figures, and `valid`: 1 where the comparison is one."""
    size = QUICK if quick else FULL
    path, folder = data_file("scoring"), model_folder()
    settings = Settings(folder=str(folder), threads=THREADS)
    texts = dialogues(path, size.texts, end_text(folder))
    limit = open_limit(settings, texts)
    _, rounded = limit.run()
    expected = exact_scores(settings, limit)
    harness.say(f"  {limit.tokens} tokens; the loop runs batches of {limit.batch_rows}")
    comparison = Comparison(size=size, texts=texts, limit=limit, expected=expected, rounded=rounded)
    with servers(settings, texts[0]) as running:
        add_ours(comparison, running)
        for name in (*PEERS, "vllm"):
            add_peer(comparison, running, name)
        run_rounds(comparison)
        figures = figures_of(comparison)
        figures |= latency_figures(comparison)
    for name, reason in comparison.missing.items():
        harness.say(f"benchmarks.scoring: {name} does not take part: {reason}")
    wrong = complaints(
        figures["limit_tokens_per_second"], [name for name in comparison.missing if name != "vllm"]
    )
    for complaint in wrong:
        harness.say(f"benchmarks.scoring: {complaint}")
    return figures | {
        "valid": float(not wrong),
        "tokens": float(limit.tokens),
        "limit_batch_rows": float(limit.batch_rows),
    }


BARS = {
    "grpc_vs_limit": harness.at_least(0.95),
    "http_vs_limit": harness.at_least(0.90),
    "vs_mosec_batched": harness.at_least(1.8),
    "vs_mosec_best": harness.at_least(1.25),
    "vs_litserve_batched": harness.at_least(1.8),
    "vs_litserve_best": harness.at_least(1.25),
    "limit_tokens_per_second": harness.at_least(1500),
    "valid": harness.at_least(1),
}

if __name__ == "__main__":
    harness.run("scoring", measure, BARS)
