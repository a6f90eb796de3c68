"""Wall clocks that jump by hours, forwards and back, while weights go round: nothing hangs, nothing is lost."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

import pytest

from services.common.server import serving
from services.common.spec.service import ServiceSpec
from services.learner.weights import PublishedWeights
from services.models.loading import serving_state
from tests.fakes.jumping_clock import JumpingClock
from tests.fakes.small_runs import make_files, program, rows_of, write_run
from tests.fakes.tiny_models import make_tiny_causal
from tests.fakes.tiny_runs import loaded_from
from tests.integration.test_run import check_whole
from tests.integration.test_weight_faults import Replica, Scene, check_completions, replicas
from tests.integration.test_weights import WeightsOnly

HOUR = 3600
JUMPS = (HOUR, -HOUR, 24 * HOUR, -365 * 24 * HOUR, 0)
STEPS = 12

pytestmark = pytest.mark.skipif(JumpingClock.library() is None, reason="Debian's faketime is not installed")


@pytest.mark.timeout(120)
async def test_a_replica_whose_clock_jumps_serves_what_it_names(tmp_path: Path) -> None:
    """Every version arrives after every jump, and each token has the log-prob of the version that it names."""
    model = make_tiny_causal(tmp_path / "model", context_length=64, width=32)
    loaded = loaded_from(model)
    state = {name: value.clone() for name, value in serving_state(loaded.model).items()}
    scene = Scene(PublishedWeights(tokenizer_fingerprint=loaded.facts.tokenizer_fingerprint), state)
    learner, clock = WeightsOnly(scene.weights), JumpingClock(tmp_path / "offset")
    async with serving(ServiceSpec(), learner) as where:
        one = Replica(tmp_path, model, where.grpc, "keep", env=clock.env)
        async with replicas(one):
            talking = asyncio.create_task(scene.talk(one))
            for offset in JUMPS:
                clock.jump(offset)
                await scene.until_served(one, scene.publish(learner))
            talking.cancel()
            await asyncio.wait([talking])
    assert len(check_completions(loaded, scene)) >= 3


@pytest.mark.timeout(240)
def test_a_run_whose_clocks_jump_loses_nothing(tmp_path: Path) -> None:
    """Queue server, services and orchestrator alike: a run to its end, every group trained once, none given up."""
    clock, run_file, out = (
        JumpingClock(tmp_path / "offset"),
        write_run(make_files(tmp_path)),
        tmp_path / "run",
    )
    with jumping(clock, out):
        flags = ["--steps", str(STEPS), "--set", "rollout.max_staleness=1", "--out", str(out)]
        done = program("orchestrator", "train", str(run_file), *flags, env=clock.env)
    assert done.returncode == 0, done.stderr
    rows = rows_of(out)
    check_whole(rows, STEPS)
    last = rows[-1]
    assert (last["rollouts/stale"], last["rollouts/failed"]) == (0, 0)
    # It did jump while the run trained.
    times = [row["time"] - time.time() for row in rows]
    assert min(times) < -24 * HOUR < HOUR / 2 < max(times)


@contextmanager
def jumping(clock: JumpingClock, out: Path) -> Iterator[None]:
    """Another jump at every other step of a run."""
    ended = threading.Event()

    def watch() -> None:
        offsets, seen = cycle(JUMPS), 0
        while not ended.wait(0.02):
            steps = len(rows_of(out)) if (out / "metrics.jsonl").exists() else 0
            if steps >= seen + 2:
                seen = steps
                clock.jump(next(offsets))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
