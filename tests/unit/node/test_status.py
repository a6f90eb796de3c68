"""What a pod's status says, and when a container comes again."""

from __future__ import annotations

import pytest

from tests.e2e.node.probes import Count, Probe
from tests.e2e.node.status import ContainerState, conditions_of, phase_of, restarts_after


def state(code: int | None = None, *, begun: bool = True) -> ContainerState:
    made = ContainerState("c")
    if begun:
        made.begin("t1", "id")
    if code is not None:
        made.end(code, "t2")
    return made


@pytest.mark.parametrize(
    ("policy", "containers", "stopped", "phase"),
    [
        ("Always", [state(begun=False)], False, "Pending"),
        ("Always", [state()], False, "Running"),
        ("Always", [state(1)], False, "Running"),
        ("Always", [state(0)], True, "Succeeded"),
        ("Never", [state(0), state()], False, "Running"),
        ("Never", [state(0), state(0)], False, "Succeeded"),
        ("Never", [state(0), state(3)], False, "Failed"),
        ("OnFailure", [state(3)], False, "Running"),
        ("OnFailure", [state(0)], False, "Succeeded"),
        ("Always", [state(0), state(137)], True, "Failed"),
    ],
)
def test_phase(policy: str, containers: list[ContainerState], stopped: bool, phase: str) -> None:
    """A pod has ended when no container of it comes again; it has failed when one of them has."""
    assert phase_of(policy, containers, initialised=True, stopped=stopped) == phase


def test_nothing_runs_before_the_init_containers_are_through() -> None:
    """Whatever the containers say."""
    assert phase_of("Always", [state()], initialised=False, stopped=False) == "Pending"


@pytest.mark.parametrize(
    ("policy", "code", "again"),
    [("Always", 0, True), ("OnFailure", 0, False), ("OnFailure", 1, True), ("Never", 1, False)],
)
def test_restart_policy(policy: str, code: int, again: bool) -> None:
    """As Kubernetes has it."""
    assert restarts_after(policy, code) is again


def test_a_restarted_container_tells_of_its_last_end() -> None:
    """restartCount, lastState with exit code and reason, and the present state."""
    one = state(137)
    assert one.to_status()["state"]["terminated"]["reason"] == "Error"
    one.begin("t3", "id2")
    told = one.to_status()
    assert told["restartCount"] == 1
    assert told["lastState"]["terminated"]["exitCode"] == 137
    assert told["state"] == {"running": {"startedAt": "t3"}}
    assert (told["ready"], told["started"]) == (False, False)


def test_a_condition_keeps_its_time_while_it_holds() -> None:
    """Only what changes has a new transition time; what others write stays."""
    before = [{"type": "PodScheduled", "status": "True", "lastTransitionTime": "t0"}]
    first = conditions_of(before, "t1", initialised=True, ready=False, phase="Running", networked=True)
    second = conditions_of(first, "t2", initialised=True, ready=True, phase="Running", networked=True)
    times = {one["type"]: (one["status"], one["lastTransitionTime"]) for one in second}
    assert times["PodScheduled"] == ("True", "t0")
    assert times["Initialized"] == ("True", "t1")
    assert times["Ready"] == ("True", "t2")


def test_thresholds_count_answers_in_a_row() -> None:
    """Two failures in a row with a success between them are not three."""
    count = Count(Probe.of({"failureThreshold": 3, "successThreshold": 2}))
    answers = [False, False, True, False, False, False, False, True, True]
    assert [count.take(passed) for passed in answers] == [
        None, None, None, None, None, False, False, None, True
    ]  # fmt: skip
