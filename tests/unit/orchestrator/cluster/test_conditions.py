"""From what is seen to conditions."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.cluster.conditions import (
    RewardModelFacts,
    RoleFacts,
    RunFacts,
    reward_model_conditions,
    role_condition,
    run_conditions,
)
from orchestrator.cluster.kinds import Condition

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
POLICY = RoleFacts(name="policy", desired=2, ready=2, updated=2)
LEARNER = RoleFacts(name="learner", desired=1, ready=1, updated=1)
FINE, NO_NODE = ("False", "AsExpected"), ("True", "Unschedulable")
TRAINING = RunFacts(generation=3, roles=(POLICY, LEARNER))


def by_type(conditions: tuple[Condition, ...]) -> dict[str, tuple[str, str]]:
    return {condition.type: (condition.status, condition.reason) for condition in conditions}


def test_a_run_that_trains() -> None:
    """All serve: Available and Progressing, nothing degraded, each role ready."""
    conditions = run_conditions(TRAINING, (), NOW)
    assert by_type(conditions) == {
        "Available": ("True", "Training"),
        "Progressing": ("True", "Training"),
        "Degraded": ("False", "AsExpected"),
        "Stalled": ("False", "AsExpected"),
        "ScalingReady": ("True", "Seeing"),
        "Finished": ("False", "Running"),
        "PolicyReady": ("True", "Serving"),
        "LearnerReady": ("True", "Serving"),
    }
    assert {condition.observed_generation for condition in conditions} == {3}
    assert {condition.last_transition_time for condition in conditions} == {"2026-01-02T03:04:05Z"}


def test_transition_time_moves_with_the_status_alone() -> None:
    """A resync that finds nothing new gives the same bytes; a status that turns gets the new time."""
    first = run_conditions(TRAINING, (), NOW)
    later = NOW + timedelta(hours=1)
    assert run_conditions(TRAINING, first, later) == first
    turned = run_conditions(replace(TRAINING, roles=(replace(POLICY, ready=0), LEARNER)), first, later)
    times = {condition.type: condition.last_transition_time for condition in turned}
    assert times["Available"] == times["PolicyReady"] == "2026-01-02T04:04:05Z"
    assert times["LearnerReady"] == times["Finished"] == "2026-01-02T03:04:05Z"


def test_a_learner_trains_with_all_its_pods_or_not_at_all() -> None:
    """Its processes train one model together: a part of them waits for the rest."""
    half = replace(LEARNER, desired=2, ready=1, updated=2, least=2, unschedulable="0/6 nodes are available")
    conditions = run_conditions(replace(TRAINING, roles=(POLICY, half)), (), NOW)
    seen = by_type(conditions)
    assert seen["Available"] == ("False", "NoReplica")
    assert seen["Progressing"] == ("False", "Stalled")
    assert seen["Stalled"] == NO_NODE
    assert conditions[0].message == "learner: 1 of 2 serve, 2 are up to date"
    whole = replace(half, ready=2, unschedulable="")
    assert run_conditions(replace(TRAINING, roles=(POLICY, whole)), (), NOW)[0].status == "True"


def test_without_its_queue_a_run_does_not_train() -> None:
    """Services answer while the queue's server is away, and nothing moves."""
    redis = RoleFacts(name="redis", desired=1)
    conditions = run_conditions(replace(TRAINING, beside=(redis,)), (), NOW)
    assert by_type(conditions)["Available"] == ("False", "NoReplica")
    assert by_type(conditions)["Progressing"] == ("True", "Starting")
    assert conditions[0].message == "nobody serves redis"
    there = replace(TRAINING, beside=(replace(redis, ready=1),))
    assert by_type(run_conditions(there, (), NOW))["Available"] == ("True", "Training")


def test_a_role_is_ready_while_one_of_it_drains() -> None:
    """A scale-down is no alarm, and its message says what goes on."""
    drains = replace(POLICY, desired=3, updated=3, draining=1)
    conditions = run_conditions(replace(TRAINING, roles=(drains, LEARNER)), (), NOW)
    assert by_type(conditions)["PolicyReady"] == ("True", "Serving")
    told = {condition.type: condition.message for condition in conditions}
    assert told["PolicyReady"] == "policy: 2 of 3 serve, 3 are up to date, 1 drain"
    one_more = replace(drains, desired=4, updated=4)
    conditions = run_conditions(replace(TRAINING, roles=(one_more, LEARNER)), (), NOW)
    assert by_type(conditions)["PolicyReady"] == ("False", "Starting")


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (
            replace(TRAINING, suspended=True),
            {"Available": ("False", "Suspended"), "Progressing": ("False", "Suspended"), "Degraded": FINE},
        ),
        (replace(TRAINING, admitted=False), {"Available": ("False", "Queued"), "Progressing": ("True", "Queued")}),
        (replace(TRAINING, job="sft"), {"Progressing": ("True", "FineTuning"), "Available": ("False", "FineTuning")}),
        (
            replace(TRAINING, roles=(replace(POLICY, ready=0, unschedulable="0/3 nodes"), LEARNER)),
            {"Progressing": ("False", "Stalled"), "Stalled": NO_NODE, "PolicyReady": ("False", "Unschedulable")},
        ),
        (
            replace(TRAINING, roles=(replace(POLICY, ready=1, unschedulable="0/3 nodes"), LEARNER)),
            {"Available": ("True", "Training"), "Degraded": NO_NODE, "Stalled": FINE},
        ),
        (
            replace(TRAINING, roles=(replace(POLICY, ready=0, unserved_seconds=90.0), LEARNER)),
            {"Progressing": ("False", "Stalled"), "Stalled": ("True", "StageWithoutWorker")},
        ),
        (replace(TRAINING, roles=(replace(POLICY, updated=1), LEARNER)), {"Progressing": ("True", "Updating")}),
        (replace(TRAINING, scaling_blind="metrics are 200 s old"), {"ScalingReady": ("False", "StandsStill")}),
        (replace(TRAINING, restarts=2), {"Degraded": ("True", "LearnerRestarts"), "Progressing": ("True", "Training")}),
        (
            replace(TRAINING, job="sft", roles=(), beside=(RoleFacts(name="sft", desired=1, unschedulable="0/3"),)),
            {"Progressing": ("False", "Stalled"), "Degraded": NO_NODE, "Stalled": NO_NODE},
        ),
        (
            replace(TRAINING, beside=(RoleFacts(name="redis", desired=1, failing="ImagePullBackOff"),)),
            {"Degraded": ("True", "PodsFail"), "Stalled": ("True", "PodsFail")},
        ),
        (
            replace(TRAINING, suspended=True, beside=(RoleFacts(name="redis", desired=1, failing="x"),)),
            {"Degraded": FINE},
        ),
        (
            replace(TRAINING, invalid="no"),
            {"Degraded": ("True", "SpecInvalid"), "Progressing": ("False", "SpecInvalid")},
        ),
        (
            replace(TRAINING, finished="Succeeded"),
            {"Finished": ("True", "Succeeded"), "Available": ("False", "Finished"), "Degraded": FINE},
        ),
        (
            replace(TRAINING, finished="Failed"),
            {"Finished": ("True", "Failed"), "Degraded": ("True", "RunFailed"), "Stalled": FINE},
        ),
    ],
)  # fmt: skip
def test_states(facts: RunFacts, expected: dict[str, tuple[str, str]]) -> None:
    """Each thing that is seen has its conditions."""
    assert expected.items() <= by_type(run_conditions(facts, (), NOW)).items()


def test_condition_names() -> None:
    """A role's condition is named after it; no two are named alike."""
    assert role_condition("reward-hh") == "RewardHhReady"
    kinds = [condition.type for condition in run_conditions(TRAINING, (), NOW)]
    assert len(set(kinds)) == len(kinds)


def test_another_model_than_the_pinned_one_is_not_available() -> None:
    """A reward model that serves other weights than its digest says is degraded, whatever its replicas do."""
    role = RoleFacts(name="reward", desired=1, ready=1, updated=1)
    facts = RewardModelFacts(generation=1, role=role, digest="blake3:aa", pinned="blake3:bb")
    found = by_type(reward_model_conditions(facts, (), NOW))
    assert found["Available"] == ("False", "DigestMismatch")
    assert found["Degraded"] == ("True", "DigestMismatch")
    unknown = by_type(reward_model_conditions(replace(facts, digest=""), (), NOW))
    assert unknown["Available"] == ("Unknown", "DigestUnknown")
    assert by_type(reward_model_conditions(replace(facts, digest="bb"), (), NOW))["Available"][0] == "True"
    served = by_type(reward_model_conditions(replace(facts, digest="blake3:bb"), (), NOW))
    assert served["Available"] == ("True", "Serving")
    assert served["Progressing"] == ("False", "Settled")


def test_words_that_are_too_long_are_cut() -> None:
    """A webhook may say anything; it must not keep the status from being told."""
    for length, end in ((8192, "x"), (8193, "…"), (100_000, "…")):
        conditions = run_conditions(replace(TRAINING, refused="x" * length), (), NOW)
        message = next(one.message for one in conditions if one.type == "Degraded")
        assert (len(message), message[-1]) == (8192, end)
