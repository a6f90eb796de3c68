"""Measures what ten times the load does to each public API of a run, while the run trains.

    <api>_answered, _refused      calls a second in the storm
    <api>_calm                    answered a second by 16 callers, before it
    <api>_growth_mib              the service's memory at its most in the storm, over what it was before
    <api>_health_seconds          the slowest health answer in the storm; one that is not SERVING is in `health_wrong`
    <api>_recovered_seconds       from the storm's last answer until one more call is answered
    refused_without_hint          refusals that do not say when to come again
    wrong                         calls that ended otherwise than answered or refused
    rollouts_lost                 by the ledger, the kept rollouts and the streams together, as in benchmarks.recovery

Ten times as many calls at once as a service takes (server.max_queued_calls), each repeated as soon as it is answered or
refused: nobody waits as they are asked to. One API after the other, `--seconds` each (300), over random walks that
train meanwhile on the local stack.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks import harness
from benchmarks.overload_load import ANSWERED, HINTLESS, REFUSED, Plan, asking
from benchmarks.soak_files import accounted, rows_of
from benchmarks.soak_run import REWARD, left_on_streams, make_files, spec_of, stop_learner
from orchestrator.local.health import read_endpoints
from orchestrator.local.layout import RunLayout
from orchestrator.local.stack import Stack
from services.common.spec.service import ServerSpec
from services.common.tasks.randomwalks import random_walks

APIS = {
    "generate": "policy",
    "logprobs": "reference",
    "score": "reward",
    "score_http": "reward",
    "weights": "learner",
    "status": "learner",
    "statistics": "preference",
}
"""API to the service that has it."""
SERVICES = ("policy", "reference", "reward", "learner", "preference")
TIMES = 10
CALM_CALLERS, CALM_SECONDS = 16, 5.0
LOOK_SECONDS, HEALTH_SECONDS, PATIENCE_SECONDS = 0.25, 10.0, 120.0
MIB = 2**20
BARS = {
    **{f"{api}_growth_mib": harness.at_most(256) for api in APIS},
    **{f"{api}_health_seconds": harness.at_most(2.0) for api in APIS},
    **{f"{api}_recovered_seconds": harness.at_most(5.0) for api in APIS},
    "health_wrong": harness.at_most(0),
    "refused_without_hint": harness.at_most(0),
    "wrong": harness.at_most(0),
    "rollouts_lost": harness.at_most(0),
}


@dataclass(slots=True)
class Watched:
    """A service in a storm: the most memory, MiB, the slowest health answer, seconds, and how many were wrong."""

    memory: float = 0.0
    health: float = 0.0
    wrong: int = 0


def measure(quick: bool, seconds: float) -> dict[str, float]:
    """All figures."""
    with tempfile.TemporaryDirectory(prefix="trimtab-overload-") as name:
        return asyncio.run(stormed(Path(name), min(seconds, 10.0) if quick else seconds, harness.say))


async def stormed(folder: Path, seconds: float, say: Callable[[str], None]) -> dict[str, float]:
    """Figures of one run, each API struck for so long."""
    make_files(folder / "files")
    layout, spec = RunLayout.prepare(folder / "run"), spec_of(folder / "files", 1)
    env = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    settings = {"reward": {"models": [REWARD], "server": {"http_port": 0}}}
    figures: dict[str, float] = {}
    found = {"health_wrong": 0.0, "refused_without_hint": 0.0, "wrong": 0.0}
    async with Stack(layout, spec, SERVICES, settings=settings, env=env, on_event=say) as stack:
        for service in SERVICES:
            await stack.ready(service)
        for api, service in APIS.items():
            before = len(rows_of(layout.metrics_file)) if layout.metrics_file.exists() else 0
            told, more = await _storm(stack, layout, api, service, seconds, say)
            figures |= told
            figures[f"{api}_steps"] = float(len(rows_of(layout.metrics_file)) - before)
            found = {name: value + more[name] for name, value in found.items()}
        await stop_learner(stack)
        standing, dead = await left_on_streams(stack)
        restarts = sum(status.restarts for status in stack.status())
    return figures | found | {"restarts": float(restarts)} | accounted(layout, standing, dead)


async def _storm(
    stack: Stack, layout: RunLayout, api: str, service: str, seconds: float, say: Callable[[str], None]
) -> tuple[dict[str, float], dict[str, float]]:
    """Figures of an API, and what counts over all of them."""
    kind = "http" if api == "score_http" else "grpc"
    address = (read_endpoints(layout.service_endpoints(service)) or {})[kind]
    prompt = random_walks().prompts[0]
    calm = Plan(api=api, address=address, callers=CALM_CALLERS, seconds=CALM_SECONDS, prompt=prompt)
    quiet = await _load(calm)
    pid = next(status.pid for status in stack.status() if status.name == service)
    process = psutil.Process(pid)
    before, watched = process.memory_info().rss / MIB, Watched()
    watching = asyncio.create_task(_watch(process, stack.endpoint(service, "health"), watched))
    storm = replace(calm, callers=TIMES * ServerSpec().max_queued_calls, seconds=seconds)
    try:
        told = await _load(storm)
        recovered = await _until_answered(calm)
    finally:
        watching.cancel()
    ends, took = dict(told["ends"]), float(told["seconds"])
    answered, refused = ends.pop(ANSWERED, 0), ends.pop(REFUSED, 0)
    hintless = ends.pop(HINTLESS, 0)
    for end, times in sorted(ends.items(), key=lambda each: -each[1])[:5]:
        say(f"{api}: {times} calls ended with {end}")
    say(
        f"{api}: {answered / took:.0f} answered and {refused / took:.0f} refused a second, again {recovered:.2f} s"
    )
    return {
        f"{api}_calm": quiet["ends"].get(ANSWERED, 0) / quiet["seconds"],
        f"{api}_answered": answered / took,
        f"{api}_refused": refused / took,
        f"{api}_growth_mib": watched.memory - before,
        f"{api}_health_seconds": watched.health,
        f"{api}_recovered_seconds": recovered,
    }, {
        "health_wrong": float(watched.wrong),
        "refused_without_hint": float(hintless),
        "wrong": float(sum(ends.values())),
    }


async def _load(plan: Plan) -> dict[str, Any]:
    """By callers in a process of their own, so that ours can look on."""
    load = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "benchmarks.overload_load",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await load.communicate(json.dumps(asdict(plan)).encode())
    if load.returncode:
        raise RuntimeError(f"{plan.api}: the callers ended with status {load.returncode}")
    told: dict[str, Any] = json.loads(out)
    return told


async def _watch(process: psutil.Process, address: str, watched: Watched) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        while True:
            began = time.monotonic()
            try:
                answer = await check(health_pb2.HealthCheckRequest(), timeout=HEALTH_SECONDS)
                watched.wrong += answer.status != health_pb2.HealthCheckResponse.SERVING
            except grpc.aio.AioRpcError:
                watched.wrong += 1
            watched.health = max(watched.health, time.monotonic() - began)
            watched.memory = max(watched.memory, process.memory_info().rss / MIB)
            await asyncio.sleep(LOOK_SECONDS)


async def _until_answered(plan: Plan) -> float:
    began = time.monotonic()
    async with AsyncExitStack() as stack:
        ask = await asking(plan, stack)
        while await ask(0) != ANSWERED:
            if time.monotonic() - began > PATIENCE_SECONDS:
                break
            await asyncio.sleep(0.05)
    return time.monotonic() - began


def main() -> None:
    """Take our own flag, leave the rest to the harness."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overload", add_help=False)
    parser.add_argument("--seconds", type=float, default=300.0, help="of each API's storm")
    mine, rest = parser.parse_known_args()
    sys.argv[1:] = rest
    if not 1 <= mine.seconds <= 3600:
        parser.error("expected --seconds from 1 to 3600")
    harness.run("overload", functools.partial(measure, seconds=mine.seconds), BARS, own=parser)


if __name__ == "__main__":
    main()
