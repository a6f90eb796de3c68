"""The schedule, the search for a shorter one, full disks, the counting of steps, report and page, without a run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from tests.chaos import disk
from tests.chaos.faults import GAP_SECONDS, PROCESSES, Fault, Kind, schedule, shortest
from tests.chaos.page import PAGE, methods, page
from tests.chaos.recoveries import recovered_by
from tests.chaos.report import add, entry, report_of
from tests.chaos.run import Outcome, Recovery
from tests.chaos.steps import Steps


def test_a_seed_is_a_schedule() -> None:
    """The same faults again for the same seed; 150 and more in 20 minutes; every kind and every service struck."""
    for seed in (1, 2, 3):
        faults = schedule(seed, 1200, gap=GAP_SECONDS)
        assert faults == schedule(seed, 1200, gap=GAP_SECONDS)
        assert len(faults) >= 150
        assert [one.at for one in faults] == sorted(one.at for one in faults)
        assert max(one.at for one in faults) < 1200
        assert {one.target for one in faults} == {*PROCESSES, "all"}
        assert {one.kind for one in faults} == set(get_args(Kind))
        # Losing everything is rare, or nothing else would be seen.
        assert 1 <= sum(one.kind == "lose" for one in faults) <= 10
    assert schedule(1, 1200, gap=GAP_SECONDS) != schedule(2, 1200, gap=GAP_SECONDS)


async def test_the_shortest_schedule_is_found() -> None:
    """Two faults of sixty that fail together and not alone are what is left."""
    faults = [Fault(float(at), "kill", "policy") for at in range(60)]
    bad = {faults[7], faults[41]}

    async def fails(part: list[Fault]) -> bool:
        return bad <= set(part)

    assert set(await shortest(faults, fails)) == bad


def test_steps_are_counted_over_a_resume(tmp_path: Path) -> None:
    """Rows that a resumed learner drops are not counted twice, those it trains again are; half a line is none."""
    file = tmp_path / "metrics.jsonl"
    steps = Steps(file)
    assert steps.look() == 0
    lines = [json.dumps({"step": step}) + "\n" for step in (1, 2, 3)]
    file.write_text("".join(lines) + '{"step"')
    assert steps.look() == 3
    kept = tmp_path / "kept"
    kept.write_text(lines[0])
    kept.replace(file)
    assert steps.look() == 3
    with file.open("a") as stream:
        stream.write(lines[1])
    assert steps.look() == 4
    assert steps.newest == {"step": 2}


def test_a_disk_is_full_for_one_process() -> None:
    """A write beyond the limit fails as on a full disk, one below it and one after it was freed do not."""
    program = """
import os, sys, tempfile
with tempfile.TemporaryFile() as file:
    for line in sys.stdin:
        try:
            os.pwrite(file.fileno(), b"x", int(line))
            print("written", flush=True)
        except OSError as error:
            print(error.strerror, flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None

        def write(place: int) -> str:
            print(place, file=child.stdin, flush=True)
            return child.stdout.readline().strip()  # type: ignore[union-attr]

        assert write(7000) == "written"
        disk.fill(child.pid, 5000)
        assert [write(7000), write(4000)] == ["File too large", "written"]
        disk.free(child.pid)
        assert write(7000) == "written"
        child.stdin.close()
    with pytest.raises(ProcessLookupError):
        disk.fill(child.pid, 5000)


def test_what_recovers() -> None:
    """By the process that has the target's name then: the same, another, or none."""
    assert "woke up" in recovered_by(Fault(0, "stop", "policy"), 7, 7)
    assert "from the last checkpoint" in recovered_by(Fault(0, "full", "learner"), 7, 8)
    assert "empty" in recovered_by(Fault(0, "lose", "queue"), 7, 8)
    assert "its file" in recovered_by(Fault(0, "kill", "queue"), 7, 8)
    assert "database" in recovered_by(Fault(0, "kill", "preference"), 7, 8)
    assert recovered_by(Fault(0, "kill", "policy"), 7, None) == "others went on without it"
    assert "already" in recovered_by(Fault(0, "kill", "policy"), None, 8)


def _outcome(*seconds: float) -> Outcome:
    names = ("steps", "admitted", "trained", "stale", "failed", "dead_letters", "labels")
    fault = Fault(1.0, "kill", "policy")
    outcome = Outcome(["x"], figures=dict.fromkeys(names, 7.0) | {"optimality": 0.98765})
    outcome.recoveries = [Recovery(fault, one, "a new process") for one in seconds]
    return outcome


def test_a_report_holds_a_run_for_each_seed(tmp_path: Path) -> None:
    """A seed's run takes the place of the one before, others stay; kinds are counted, recoveries summed up."""
    file, faults = (
        tmp_path / "report.json",
        [Fault(1.0, "kill", "policy")] * 2 + [Fault(3.0, "stop", "queue")],
    )
    assert report_of(file) == {}
    for seed, outcome in ((10, _outcome(1.0)), (2, _outcome(5.0)), (10, _outcome(1.0, 2.0, 9.0))):
        add(file, seed, entry(2.0, faults, outcome))
    report = report_of(file)
    assert list(report) == ["2", "10"]
    assert report["10"]["faults_by_kind"] == {"kill": 2, "stop": 1}
    assert report["10"]["recoveries"] == {
        "kill policy": {"times": 3, "median_seconds": 2.0, "worst_seconds": 9.0, "by": {"a new process": 3}}
    }
    told = page(report)
    assert "| 10 | 2 | 3 | 7 | 7 | 7 | 7 | 7 | 7 | 7 | 1 | 0.988 |" in told
    assert "Faults by kind: kill 4, stop 2." in told
    assert "| kill policy | 4 | 2.0 to 5.0 | 9.0 | a new process (4) |" in told


def test_the_page_is_that_of_the_results() -> None:
    """docs/reliability.md is what `python -m tests.chaos.page` writes; every method of the contract is in it."""
    assert PAGE.read_text() == page(report_of())
    assert len(methods()) == len(set(methods())) >= 26
