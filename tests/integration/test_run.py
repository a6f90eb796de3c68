"""Whole runs of a tiny model: real processes, real gRPC, a real queue server."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.local.in_process import run_in_process
from orchestrator.local.layout import RunLayout
from orchestrator.local.shared_memory import weights_folder
from orchestrator.local.stack import Stack
from orchestrator.planning.processes import Limits
from services.common.errors import ConfigError, Corrupted
from services.common.spec.run import RunSpec
from services.common.stages.tools import RedisTools
from services.learner import run as run_module
from services.learner.intake import Intake
from services.learner.run import Run
from services.models.loading import load_causal, serving_state
from services.models.manifest import entries_of, whole_digest
from services.models.wire import version_of
from services.policy import worker
from tests.fakes.small_runs import (
    BATCH,
    make_files,
    program,
    rows_of,
    run_tables,
    small_spec,
    without_times,
    write_run,
)
from tests.fakes.tiny_runs import model_spec
from tests.integration.test_supervisor import until
from trimtab import AsyncLearnerClient, AsyncPolicyClient, TrimtabClientError
from trimtab.learner.v1 import learner_pb2 as learner

QUICK = Limits(backoff_first_seconds=0.1, backoff_most_seconds=0.4)
ENDLESS = "steps=1000000"
TRL_NAMES = {
    "objective/kl",
    "objective/entropy",
    "objective/non_score_reward",
    "objective/rlhf_reward",
    "objective/scores",
    "policy/approxkl_avg",
    "policy/clipfrac_avg",
    "policy/entropy_avg",
    "loss/policy_avg",
    "loss/value_avg",
    "val/clipfrac_avg",
    "val/ratio",
    "val/num_eos_tokens",
    "lr",
    "episode",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model and prompts."""
    return make_files(tmp_path_factory.mktemp("files"))


def run_here(spec: RunSpec, out: Path) -> list[dict[str, float]]:
    """Train in this process; the rows."""
    out.mkdir(exist_ok=True)
    assert run_in_process(spec, out) == 0
    return rows_of(out)


def check_whole(rows: list[dict[str, float]], steps: int) -> None:
    """Every step once, in order, and what was trained is what the steps took."""
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    for row in rows:
        assert row["rollouts/trained"] == BATCH * row["step"]
        ended = sum(row[f"rollouts/{name}"] for name in ("trained", "stale", "failed", "in_flight"))
        assert row["rollouts/admitted"] == ended


def test_in_process_is_reproducible(files: Path, tmp_path: Path) -> None:
    """The same spec gives the same numbers, also when the run was interrupted and resumed between."""
    spec = small_spec(files)
    rows = run_here(spec, tmp_path / "one")
    check_whole(rows, 4)
    assert rows[0]["objective/kl"] == pytest.approx(0, abs=1e-4)
    assert rows[-1]["objective/kl"] != 0
    assert without_times(run_here(spec, tmp_path / "two")) == without_times(rows)
    run_here(small_spec(files, "steps=2"), tmp_path / "three")
    assert without_times(run_here(spec, tmp_path / "three")) == without_times(rows)


@pytest.mark.parametrize(
    ("algorithm", "group"),
    [
        ({"kind": "grpo", "num_generations": 4, "beta": 0.1}, 4),
        ({"kind": "rloo"}, 2),
        ({"kind": "reinforce++", "epochs": 2}, 1),
        ({"kind": "a2c"}, 1),
        ({"kind": "rft", "num_generations": 2}, 2),
        ({"preset": "openai-2019"}, 1),
        ({"kind": "trpo", "critic_passes": 2, "cg_steps": 3}, 1),
        ({"kind": "nlpo", "refresh_every": 2}, 1),
    ],
    ids=["grpo", "rloo", "reinforce++", "a2c", "rft", "preset", "trpo", "nlpo"],
)
def test_each_algorithm_trains_a_run(
    files: Path, tmp_path: Path, algorithm: dict[str, object], group: int
) -> None:
    """Groups of the size that the algorithm asks for go round, and every figure of the steps is finite."""
    spec = RunSpec.model_validate({**run_tables(files), "steps": 2, "algorithm": algorithm})
    rows = run_here(spec, tmp_path / "run")
    check_whole(rows, 2)
    assert [row["episode"] for row in rows] == [BATCH * group, 2 * BATCH * group]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert ("reward_std" in rows[0]) == (group > 1)


def test_what_waits_on_the_queue_server_has_a_bound(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where trained rollouts are too many bytes, the checkpoint that lets them go comes before it is due, though not
    after each step: a step may have as many alone."""
    monkeypatch.setattr(run_module, "UNACKNOWLEDGED_BYTES", 1)
    monkeypatch.setattr(run_module, "EARLY_STEPS", 2)
    spec = small_spec(files, "steps=5", "checkpoint.every_steps=100", "checkpoint.keep=9")
    run_here(spec, tmp_path / "run")
    written = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert written == ["step-000002", "step-000004", "step-000005"]


def test_a_replica_that_serves_other_weights_than_it_says_ends_the_run(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line names what was claimed and what was published; nothing is trained on it."""
    real = worker.write_draft

    def lying(completion: Any, draft: Any, text: str, made_by: Any) -> None:
        real(completion, draft, text, [(at, replace(version, digest="0" * 64)) for at, version in made_by])

    monkeypatch.setattr(worker, "write_draft", lying)
    with pytest.raises(
        Corrupted, match="a rollout names weights 000000000000 as epoch 1, step 0; published were"
    ):
        run_here(small_spec(files), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists() or rows_of(tmp_path / "run") == []


def test_what_a_reader_reports_wrongly_ends_the_run(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the next boundary, with the line that the weight service had for it; the step before it stands."""
    real = Run._train_on

    async def then_refused(run: Run, batch: Any, started: float) -> None:
        await real(run, batch, started)
        run.refuse(Corrupted("p:1 serves other weights"))

    monkeypatch.setattr(Run, "_train_on", then_refused)
    with pytest.raises(Corrupted, match="p:1 serves other weights"):
        run_here(small_spec(files), tmp_path / "run")
    assert [row["step"] for row in rows_of(tmp_path / "run")] == [1]


def test_stop_while_paused_does_no_further_step(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it is stopped no batch is asked for, which may be there already."""
    real_step, real_batch = Run._train_on, Intake.batch
    stopping, asked = list[asyncio.Task[None]](), list[bool]()

    async def stop_once_held(run: Run) -> None:
        while run.state.phase != "paused":  # noqa: ASYNC110 - a phase rings no bell
            await asyncio.sleep(0.01)
        run.stop()

    async def then_paused(run: Run, batch: Any, started: float) -> None:
        await real_step(run, batch, started)
        run.pause()
        stopping.append(asyncio.create_task(stop_once_held(run)))

    async def noted(intake: Intake, interrupted: Callable[[], bool]) -> Any:
        asked.append(interrupted())
        return await real_batch(intake, interrupted)

    monkeypatch.setattr(Run, "_train_on", then_paused)
    monkeypatch.setattr(Intake, "batch", noted)
    run_here(small_spec(files), tmp_path / "run")
    assert asked == [False]
    assert [row["step"] for row in rows_of(tmp_path / "run")] == [1]


def test_an_algorithm_that_there_is_not_is_refused(files: Path, tmp_path: Path) -> None:
    """One line says what there is."""
    done = program(
        "orchestrator",
        "train",
        str(write_run(files)),
        "--out",
        str(tmp_path / "run"),
        "--set",
        "algorithm.kind=npg",
    )
    assert done.returncode == 2
    assert "algorithm.kind = npg" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_an_engine_elsewhere_is_refused_in_process(files: Path, tmp_path: Path) -> None:
    """One line: nothing of it would run in this process."""
    engine = {"kind": "vllm", "url": "http://127.0.0.1:1", "weights_folder": "/w"}
    spec = RunSpec.model_validate({**run_tables(files), "engine": engine})
    with pytest.raises(ConfigError, match=r"engine\.kind = vllm is elsewhere"):
        run_here(spec, tmp_path / "run")


@pytest.mark.timeout(240)
def test_over_the_services(files: Path, tmp_path: Path) -> None:
    """`trimtab train` and `--resume` over processes: the numbers of the run in one process, and all its files."""
    run_file, out = write_run(files), tmp_path / "run"
    for flags in (["--steps", "3"], ["--resume"]):
        done = program("orchestrator", "train", str(run_file), "--out", str(out), *flags)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr + done.stdout
    assert "32 groups admitted = 32 trained + 0 stale + 0 failed + 0 in flight" in done.stderr
    rows = rows_of(out)
    check_whole(rows, 4)
    assert all(row.keys() >= TRL_NAMES for row in rows)
    expected = run_here(small_spec(files), tmp_path / "here")
    for name in ("objective/scores", "objective/kl", "loss/policy_avg"):
        for row, here in zip(rows, expected, strict=True):
            assert row[name] == pytest.approx(here[name], abs=1e-3), name
    # Made under the versions that they name: the learner's own log-probs of them agree.
    assert max(row["sampling/logprob_difference"] for row in rows) < 1e-4
    arrived = _weights_that_arrived(out)
    assert {one["encoding"] for one in arrived if one["tensors"]} == {"shared"}
    assert not Path(weights_folder(RunLayout(out).run_uid())).exists()
    versions = [(one["epoch"], one["step"]) for one in arrived]
    assert versions == sorted(set(versions))
    assert {epoch for epoch, _ in versions} == {1, 2}
    assert {step for _, step in versions} >= {0, 1, 2, 3}
    published = json.loads((out / "published.json").read_text())
    assert (published["epoch"], published["step"]) == (2, 4)
    loaded = load_causal(model_spec(out / "model"))
    assert whole_digest(entries_of(serving_state(loaded.model))) == published["digest"]


def _weights_that_arrived(out: Path) -> list[dict[str, Any]]:
    """What the policy logged of the weights that it took over, in order."""
    lines = (out / "logs" / "policy.log").read_text().splitlines()
    events = [json.loads(line) for line in lines if line.startswith("{")]
    return [one for one in events if one["event"] == "weights arrived"]


@pytest.mark.timeout(240)
async def test_control(files: Path, tmp_path: Path) -> None:
    """Pause holds, Checkpoint writes, Resume goes on, Stop ends; a later learner goes on from there."""
    layout, spec = RunLayout.prepare(tmp_path / "run"), small_spec(files, ENDLESS)
    async with Stack(layout, spec, limits=QUICK) as stack:
        async with AsyncLearnerClient(await stack.ready("learner")) as client:
            await _until_step(client, 2)
            step = await _check_pause(client, stack, layout)
            await client.resume()
            await _until_step(client, step + 2)
            written = await client.checkpoint()
            state = json.loads((Path(written.path) / "state.json").read_text())
            assert state["step"] > step
            await client.stop()
            assert await stack.ended("learner") == 0
        stopped = len(rows_of(layout.root))
        check_whole(rows_of(layout.root), stopped)
        assert (layout.root / "model" / "model.safetensors").is_file()
        # What was in flight is where it was, and is used by the learner that comes next.
        assert await _groups_in_queue(stack) == _in_flight(layout, stopped)
        steps = stopped + 4
        await _train_on(stack, small_spec(files, f"steps={steps}", "rollout.max_staleness=1"))
        rows = rows_of(layout.root)
        check_whole(rows, steps)
        staleness = [row["staleness/max"] for row in rows[stopped:]]
        assert max(staleness) == 1
        assert await _groups_in_queue(stack) == set()
        told = await _train_on(stack, small_spec(files, f"steps={steps}"))
        assert f"nothing to train: the last checkpoint is at step {steps} of {steps}" in told
        assert without_times(rows_of(layout.root)) == without_times(rows)


async def _check_pause(client: AsyncLearnerClient, stack: Stack, layout: RunLayout) -> int:
    """Pause, and see that nothing moves while others are still answered; the step."""
    await client.pause()
    await _until(client, lambda status: status.phase == learner.RUN_PHASE_PAUSED)
    held = await client.status()
    rows = len(rows_of(layout.root))
    assert rows == held.step
    written = await client.checkpoint()
    assert written.step == held.step
    assert written.path.endswith(f"step-{held.step:06d}")
    async with AsyncPolicyClient(stack.endpoint("policy")) as policy:
        for _ in range(3):
            (result,) = await policy.generate(["Go on"], max_new_tokens=64)
            assert version_of(result.completions[0].versions[0].version) == version_of(held.version)
    after = await client.status()
    assert (after.step, after.phase) == (held.step, learner.RUN_PHASE_PAUSED)
    assert after.rollouts.awaiting_checkpoint == 0
    assert len(rows_of(layout.root)) == rows
    return int(held.step)


async def _train_on(stack: Stack, spec: RunSpec) -> list[str]:
    """Another learner in the same stack, to its end; the warnings it gave."""
    told: list[str] = []
    await stack.remove("learner")
    await stack.add("learner", spec=spec)
    async with AsyncLearnerClient(await stack.ready("learner")) as client:
        await _until(client, lambda status: status.phase == learner.RUN_PHASE_FINISHED)
        told += (await client.status()).warnings
    assert await stack.ended("learner") == 0
    return told


@pytest.mark.timeout(300)
async def test_every_process_is_killed_once(files: Path, tmp_path: Path) -> None:
    """kill -9 of each process in the middle: all are back, no group is lost, no step is missing or twice."""
    layout, spec = RunLayout.prepare(tmp_path / "run"), small_spec(files, ENDLESS)
    short = {"queue": {"lease_seconds": 2, "renew_seconds": 0.5}}
    settings: dict[str, dict[str, Any]] = dict.fromkeys(("policy", "reference", "reward"), short)
    settings["learner"] = {**short, "watch_seconds": 1}
    async with Stack(layout, spec, settings=settings, limits=QUICK) as stack:
        async with AsyncLearnerClient(await stack.ready("learner")) as client:
            await _until_step(client, 3)
            for victims in (("policy", "reference"), ("reward", "queue"), ("learner",)):
                await _kill(stack, victims)
                step = max(len(rows_of(layout.root)), 3)
                await _until_step(client, step + 3)
            await client.stop()
            await stack.ended("learner")
        assert not Path(weights_folder(stack.run_uid)).exists()
        assert {one.name: one.restarts for one in stack.status()} == dict.fromkeys(
            ("queue", "policy", "reference", "reward", "learner"), 1
        )
        rows = rows_of(layout.root)
        check_whole(rows, len(rows))
        assert await _groups_in_queue(stack) == _in_flight(layout, len(rows))


async def _kill(stack: Stack, names: tuple[str, ...]) -> None:
    for name in names:
        pid = next(one.pid for one in stack.status() if one.name == name)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    for name in names:
        await until(lambda name=name: _restarts(stack, name) == 1)
        await stack.supervisor.until_serving(name, 90)


def _restarts(stack: Stack, name: str) -> int:
    return next(one.restarts for one in stack.status() if one.name == name)


async def _groups_in_queue(stack: Stack) -> set[str]:
    tools = RedisTools(stack.queue_url, stack.run_uid)
    try:
        assert await tools.dead_letters(limit=5) == []
        return set((await tools.view()).group_ids)
    finally:
        await tools.close()


def _in_flight(layout: RunLayout, step: int) -> set[str]:
    """Groups in flight by the ledger of the step's checkpoint."""
    state = json.loads((layout.checkpoints / f"step-{step:06d}" / "state.json").read_text())
    return {row[0] for row in state["ledger"]["in_flight"]}


async def _until_step(client: AsyncLearnerClient, step: int) -> None:
    await _until(client, lambda status: status.step >= step)


async def _until(
    client: AsyncLearnerClient, holds: Callable[[learner.GetRunStatusResponse], bool], seconds: float = 90
) -> None:
    """Ask until the answer is so; a learner that is away is asked again."""
    status: learner.GetRunStatusResponse | None = None

    async def asked() -> bool:
        nonlocal status
        try:
            status = await client.status(timeout_seconds=5)
        except TrimtabClientError:
            return False
        return holds(status)

    await _until_true(asked, seconds)


async def _until_true(asked: Callable[[], Awaitable[bool]], seconds: float) -> None:
    ends = time.monotonic() + seconds
    while not await asked():
        assert time.monotonic() < ends, "waited in vain"
        await asyncio.sleep(0.02)
