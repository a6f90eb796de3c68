"""A run's queue server and services as one thing: real server, real bootstrap, fake content."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import sys
import tomllib
from pathlib import Path

import psutil
import pytest
import redis
from rich.console import Console

from orchestrator.local import memory, services, shared_memory
from orchestrator.local.health import GrpcProbe, Health
from orchestrator.local.layout import RunLayout
from orchestrator.local.progress import LiveView
from orchestrator.local.services import Role
from orchestrator.local.stack import Stack
from orchestrator.local.state import read_state
from orchestrator.local.train import run_training
from orchestrator.planning.processes import Limits
from services.common.errors import AlreadyExists, NotFound, ServiceError, UserError
from services.common.spec.run import RunSpec
from tests.fakes.cli import fake_roles
from tests.integration.test_supervisor import alive, until

QUICK = Limits(backoff_first_seconds=0.1, backoff_most_seconds=0.4)


@pytest.fixture
def spec(monkeypatch: pytest.MonkeyPatch) -> RunSpec:
    monkeypatch.setattr(services, "ROLES", fake_roles())
    values = {"model": {"path": "m"}, "data": {"prompts": "p.jsonl"}, "reward_model": "rule:sentiment"}
    return RunSpec.model_validate(values)


@pytest.fixture
def layout(tmp_path: Path) -> RunLayout:
    return RunLayout.prepare(tmp_path / "run")


def stack_of(layout: RunLayout, spec: RunSpec, names: list[str], told: list[str] | None = None) -> Stack:
    return Stack(layout, spec, names, limits=QUICK, on_event=(told if told is not None else []).append)


async def test_services_come_up_where_they_said_and_go(
    layout: RunLayout, spec: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Addresses are settled before the start, published while up; nothing is left afterwards, nor of killed runs."""
    monkeypatch.setattr(shared_memory, "SHARED_MEMORY", tmp_path)
    own, killed = tmp_path / f"trimtab-{layout.run_uid()}", tmp_path / "trimtab-killed-1"
    killed.mkdir()
    async with stack_of(layout, spec, ["policy", "preference"]) as stack:
        assert not killed.exists()
        own.mkdir()
        (own / ("0" * 64)).touch()
        assert await stack.ready("policy") == stack.endpoint("policy")
        await stack.ready("preference")
        probe = GrpcProbe(layout.service_endpoints("policy"))
        assert await probe.check(5) is Health.SERVING
        await probe.close()
        await until(lambda: _all_serve(layout))
        state = read_state(layout)
        assert state is not None
        assert state.pid == os.getpid()
        assert state.services["policy"].addresses["grpc"] == stack.endpoint("policy")
        assert stack.queue_url not in json.dumps(state.as_json())
        assert layout.endpoints_file.stat().st_mode & 0o077 == 0  # the queue's password stands in it
        with pytest.raises(AlreadyExists):
            RunLayout.prepare(layout.root, overwrite=True)
        pids = [status.pid for status in stack.status()]
    assert not any(alive(pid) for pid in pids if pid is not None)
    assert not own.exists()
    after = read_state(layout)
    assert after is not None
    assert {service.phase for service in after.services.values()} == {"stopped"}


def _all_serve(layout: RunLayout) -> bool:
    state = read_state(layout)
    return state is not None and all(service.phase == "serving" for service in state.services.values())


async def test_killed_service_returns_on_its_port(layout: RunLayout, spec: RunSpec) -> None:
    """kill -9 of a service: it is back under the same address."""
    async with stack_of(layout, spec, ["policy"]) as stack:
        before = await stack.ready("policy")
        _kill(stack, "policy")
        await until(lambda: _restarts(stack, "policy") == 1)
        assert await stack.ready("policy") == before
        probe = GrpcProbe(layout.service_endpoints("policy"))
        assert await probe.check(5) is Health.SERVING
        await probe.close()


async def test_a_learner_that_somebody_ends_is_not_done(layout: RunLayout, spec: RunSpec) -> None:
    """SIGTERM of somebody else before the last step: it is started again, as after a crash. Own drains are quiet."""
    told: list[str] = []
    async with stack_of(layout, spec, ["learner"], told) as stack:
        await stack.ready("learner")
        _kill(stack, "learner", signal.SIGTERM)
        await until(lambda: _restarts(stack, "learner") == 1)
        await stack.ready("learner")
        await stack.remove("learner")
        await stack.add("learner")
        await stack.ready("learner")
    [ended] = [line for line in told if "143" in line]
    assert ended.startswith("learner ended with status 143")


async def test_killed_queue_returns_with_its_data(layout: RunLayout, spec: RunSpec) -> None:
    """kill -9 of the queue server: it is back under the same URL, and what was synced is there."""
    async with stack_of(layout, spec, ["policy"]) as stack:
        await stack.ready("policy")
        with redis.Redis.from_url(stack.queue_url) as client:
            client.set("kept", "yes")
            client.execute_command("WAITAOF", 1, 0, 5000)
        _kill(stack, "queue")
        await until(lambda: _restarts(stack, "queue") == 1)
        await stack.supervisor.until_serving("queue", 60)
        with redis.Redis.from_url(stack.queue_url) as client:
            assert client.get("kept") == b"yes"
        assert _restarts(stack, "policy") == 0


async def test_services_are_added_and_removed_later(layout: RunLayout, spec: RunSpec) -> None:
    """The policy is told the learner's address before there is one; settings win over the spec's."""
    async with stack_of(layout, spec, ["policy"]) as stack:
        config = tomllib.loads(layout.service_config("policy").read_text())
        assert config["weights"]["address"] == stack.endpoint("learner")
        await stack.add("reward", settings={"models": [{"name": "hh", "path": "somewhere"}]})
        await stack.ready("reward")
        config = tomllib.loads(layout.service_config("reward").read_text())
        assert config["models"] == [{"name": "hh", "path": "somewhere"}]
        await stack.remove("reward")
        assert [status.name for status in stack.status()] == ["queue", "policy"]
        with pytest.raises(NotFound):
            await stack.remove("reward")
        await stack.add("reward")
        await stack.ready("reward")


async def test_jobs_run_to_their_end(layout: RunLayout, spec: RunSpec) -> None:
    """A job's failure is its last line, and the user's mistake is told apart."""
    async with stack_of(layout, spec, []) as stack:
        await stack.job("good", [sys.executable, "-c", "print('done')"])
        assert layout.log("good").read_text() == "done\n"
        with pytest.raises(ServiceError, match=r"^bad: too bad$"):
            await stack.job("bad", [sys.executable, "-c", "import sys; sys.exit('too bad')"])
        with pytest.raises(UserError, match=r"^wrong: ended with status 2$"):
            await stack.job("wrong", [sys.executable, "-c", "import sys; sys.exit(2)"])
        assert [status.name for status in stack.status()] == ["queue"]


async def test_cancelled_job_leaves_nothing(layout: RunLayout, spec: RunSpec) -> None:
    """Ctrl-C while a job runs ends the job, too."""
    async with stack_of(layout, spec, []) as stack:
        script = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
        job = asyncio.create_task(stack.job("long", [sys.executable, "-c", script]))
        await until(lambda: layout.log("long").exists() and layout.log("long").read_text().endswith("\n"))
        pid = int(layout.log("long").read_text())
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        assert not alive(pid)


async def test_memory_is_that_of_all_processes(
    layout: RunLayout, spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sum grows by what a process takes, and the peak stays when it has ended."""
    # Not of the tests' own process, nor of what other tests have started: these move by half a GiB when one ends.
    strangers, everyone = set(memory.tree(os.getpid())), memory.pss_bytes
    monkeypatch.setattr(memory, "pss_bytes", lambda pid: (0, 0) if pid in strangers else everyone(pid))
    monkeypatch.setattr(memory, "CHANGED", 0)  # each look walks
    async with stack_of(layout, spec, []) as stack:

        def now() -> float:
            stack.memory.sample()
            return stack.memory_gib()

        # A child between its fork and its program still counts for its parent's pages.
        await until(lambda: now() < 0.1)
        before = now()
        script = "import time; held = b'x' * (1 << 30); print('held', flush=True); time.sleep(600)"
        job = asyncio.create_task(stack.job("big", [sys.executable, "-c", script]))
        await until(lambda: layout.log("big").exists() and "held" in layout.log("big").read_text())
        await until(lambda: 0.9 <= now() - before <= 1.1, told=lambda: f"{before} {now()}")
        held = now()
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        await until(lambda: now() <= held - 0.9)
        assert stack.peak_memory_gib >= held


async def test_training_shows_its_way_and_its_account(layout: RunLayout, spec: RunSpec) -> None:
    """Progress while the learner steps, its warnings once, the final account; then everything is gone."""
    out = io.StringIO()
    with LiveView(Console(file=out, width=200)) as view:
        assert await run_training(layout, spec, view) == 0
    text = out.getvalue()
    assert "step 1/3" in text
    assert text.count("warning: no worker on stage reward") == 1
    assert "24 groups admitted = 24 trained + 0 stale + 0 failed + 0 in flight" in text
    assert RunSpec.model_validate(tomllib.loads(layout.run_file.read_text())) == spec
    assert not [child for child in psutil.Process().children() if "tests.fakes" in " ".join(child.cmdline())]


async def test_training_ends_with_what_a_service_was_given_up_for(
    layout: RunLayout, spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage whose configuration is wrong ends the run with its one line."""
    # The preference service reads no [queue] and no [model], and says so.
    monkeypatch.setattr(
        services, "ROLES", {**fake_roles(), "policy": Role(module="services.preference", drain_rank=1)}
    )
    with (
        LiveView(Console(file=io.StringIO())) as view,
        pytest.raises(UserError, match=r"^policy: .*policy\.toml:\d+: "),
    ):
        await run_training(layout, spec, view)


def _kill(stack: Stack, name: str, by: signal.Signals = signal.SIGKILL) -> None:
    pid = next(status.pid for status in stack.status() if status.name == name)
    assert pid is not None
    os.kill(pid, by)


def _restarts(stack: Stack, name: str) -> int:
    return next(status.restarts for status in stack.status() if status.name == name)
