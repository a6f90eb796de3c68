"""A learner of two processes in a whole run: real torchrun, real services, a process that dies, an end by SIGTERM."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import grpc
import pytest

from orchestrator.local.in_process import run_in_process
from orchestrator.local.layout import RunLayout
from orchestrator.local.stack import Stack
from orchestrator.planning.processes import Limits
from services.common.channels import make_channel
from services.models.wire import manifest_of, version_message
from services.policy.fetching import Arriving
from tests.fakes.small_runs import make_files, program, rows_of, small_spec, without_times
from tests.integration.test_supervisor import until
from trimtab.weights.v1 import weights_pb2 as wire
from trimtab.weights.v1.weights_pb2_grpc import WeightServiceStub

QUICK = Limits(backoff_first_seconds=0.1, backoff_most_seconds=0.4)
STEPS = 4


def steps_of(out: Path) -> int:
    file = out / "metrics.jsonl"
    return int(rows_of(out)[-1]["step"]) if file.is_file() and file.read_text() else 0


def follower_of(launcher: int) -> int:
    """Process id of the second process that torchrun started."""
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if b"RANK=1" in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise LookupError(f"no second process below {launcher}")


async def until_both_publish(learner: str) -> None:
    """The first process names the other for its part; asked there, the tensors come with the digests they must have."""
    async with make_channel(learner) as channel:
        answer = await WeightServiceStub(channel).GetManifest(wire.GetManifestRequest(), timeout=10)
    manifest = manifest_of(answer.manifest)
    [(own, _), (other, theirs)] = manifest.of_parts()
    assert own == ""
    assert theirs.tensors
    names, body = [entry.name for entry in theirs.tensors], Arriving(list(theirs.tensors))
    request = wire.FetchWeightsRequest(want=version_message(manifest.version), tensors=names, wait=True)
    try:
        async with make_channel(other) as channel:
            async for piece in WeightServiceStub(channel).FetchWeights(request, timeout=10):
                if piece.data:
                    body.take(piece.offset, piece.data)
    except grpc.aio.AioRpcError as error:
        # It trains on meanwhile: that version is no more.
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
        await until_both_publish(learner)
        return
    assert list(await body.whole()) == names


@pytest.mark.timeout(240)
async def test_a_run_survives_a_process_that_dies_and_ends_when_told(tmp_path: Path) -> None:
    """The steps are those of one process that nobody disturbed; the death is told in one line; SIGTERM ends with 0."""
    make_files(tmp_path)
    out, said = tmp_path / "two", list[str]()
    layout = RunLayout.prepare(out, resume=False, overwrite=False)
    spec = small_spec(tmp_path, "steps=100000", "checkpoint.every_steps=1")
    settings = {"learner": {"processes": 2, "cut_off_status": 0}}  # who sends SIGTERM here means the end
    async with Stack(layout, spec, settings=settings, limits=QUICK, on_event=said.append) as stack:

        def launcher() -> int:
            return next(one.pid for one in stack.status() if one.name == "learner" and one.pid) or 0

        def happened() -> str:
            logs = (f"{name}: {layout.log(name).read_text()[-2000:]}" for name in ("learner", "policy"))
            return "\n".join([*said, *logs])

        await until(lambda: steps_of(out) >= 2, 100, happened)
        await until_both_publish(stack.endpoint("learner"))
        first = launcher()
        os.kill(follower_of(first), signal.SIGKILL)
        await until(lambda: any("started again" in line for line in said), 60)
        seen = steps_of(out)
        await until(lambda: steps_of(out) >= max(STEPS, seen + 1), 100)
        os.kill(launcher(), signal.SIGTERM)
        assert await asyncio.wait_for(stack.ended("learner"), 30) == 0
    [told] = [line for line in said if "ended with status" in line]
    assert "process 1 was ended by SIGKILL, so all of them stop" in told

    alone = tmp_path / "one"
    alone.mkdir()
    # In a thread: it has an event loop of its own.
    done = await asyncio.to_thread(run_in_process, small_spec(tmp_path, f"steps={STEPS}"), alone)
    assert done == 0
    for one, two in zip(without_times(rows_of(alone)), without_times(rows_of(out)), strict=False):
        assert one == pytest.approx(two, abs=1e-4, rel=1e-4)


def test_what_one_process_must_train_is_refused_for_two(tmp_path: Path) -> None:
    """One line and exit status 2, from the command and from the service, before anything is started."""
    make_files(tmp_path)
    run_file = tmp_path / "run.toml"
    small_spec(tmp_path, "algorithm={kind='trpo'}")
    trained = program(
        "orchestrator", "train", str(run_file), "--processes", "2", "--out", str(tmp_path / "out")
    )
    assert trained.returncode == 2
    assert "--processes 2: algorithm.kind = trpo trains in one process" in trained.stderr
    assert not (tmp_path / "out").exists()
