"""The stage worker on a real queue server: groups that pass, and groups that fail."""

from __future__ import annotations

import threading

import redis

from orchestrator.local.queue_server import QueueServer
from services.common.errors import Overloaded, Unavailable
from services.common.failures import error_info
from services.common.stages.base import LEARNER_STAGE, NewEntry
from services.common.stages.entry import RunKeys
from services.common.worker import Outcome, outcome_of_error
from tests.integration.worker.kit import STAGE, Each, Run, mark, working
from trimtab.common.v1 import common_pb2 as common
from trimtab.rollout.v1.rollout_pb2 import RolloutGroup


async def test_groups_go_through_edited_in_place(run: Run) -> None:
    """Every group arrives once, as the processor left it, its slip at the learner, in batches."""
    await run.admit(10)
    processor = Each(mark)
    async with working(run.connect("w"), processor):
        groups = await run.receive(10)
    assert {name: group.prompt.text for name, group in groups.items()} == {
        f"g{number}": f"seen g{number}" for number in range(10)
    }
    assert all(list(group.slip) == [LEARNER_STAGE] for group in groups.values())
    assert not any(group.HasField("failure") for group in groups.values())
    assert max(len(call) for call in processor.calls) == 4
    assert await run.standing() == frozenset()


async def test_fields_of_a_newer_contract_survive_a_stage(run: Run) -> None:
    """A field of the message that this release does not know arrives untouched."""
    unknown = b"\x92\x3f\x05hello"
    group = RolloutGroup(group_id="g0", slip=[STAGE, LEARNER_STAGE]).SerializeToString() + unknown
    await run.learner.admit(STAGE, [NewEntry(group_id="g0", admission_number=0, payload=group)])
    async with working(run.connect("w"), Each(mark)):
        [arrived] = (await run.receive(1)).values()
    assert unknown in arrived.SerializeToString()


async def test_a_poison_group_fails_alone(run: Run) -> None:
    """A group that makes its batch raise is tried three times; the others pass after having failed once."""

    def poison(group: RolloutGroup) -> Outcome:
        if group.group_id == "g1":
            raise ValueError("cannot\ndigest this")
        return mark(group)

    await run.admit(4)
    processor = Each(poison)
    async with working(run.connect("w"), processor):
        groups = await run.receive(4)
    failed = groups.pop("g1")
    assert failed.failure == common.ErrorInfo(
        code="INTERNAL", message="ValueError: cannot digest this", origin=STAGE
    )
    assert list(failed.slip) == [LEARNER_STAGE]
    assert failed.prompt.text == ""
    assert all(group.prompt.text for group in groups.values())
    assert processor.calls[0] == ["g0", "g1", "g2", "g3"]
    assert all(len(call) == 1 for call in processor.calls[1:])
    assert sum(call == ["g1"] for call in processor.calls) == 2


async def test_a_failed_outcome_keeps_its_error(run: Run) -> None:
    """An error the processor names itself reaches the learner as it is, after three attempts."""
    told = error_info(Overloaded("no room"), origin="elsewhere")
    await run.admit(1)
    processor = Each(lambda _: Outcome("failed", told))
    async with working(run.connect("w"), processor):
        [group] = (await run.receive(1)).values()
    assert group.failure == common.ErrorInfo(code="RESOURCE_EXHAUSTED", message="no room", origin="elsewhere")
    assert processor.calls == [["g0"]] * 3


async def test_work_that_is_away_for_a_while_costs_no_attempt(run: Run) -> None:
    """Where what scores is full or away, groups wait for it, together, and arrive whole; the others are not redone."""
    asked: dict[str, int] = {}

    def comes_back(group: RolloutGroup) -> Outcome:
        asked[group.group_id] = asked.get(group.group_id, 0) + 1
        if group.group_id == "g0" or asked[group.group_id] > 3:
            return mark(group)
        return outcome_of_error(Overloaded("4 rows wait"), origin=STAGE)

    await run.admit(3)
    processor = Each(comes_back)
    async with working(run.connect("w"), processor):
        groups = await run.receive(3)
    assert not any(group.HasField("failure") for group in groups.values())
    assert asked == {"g0": 1, "g1": 4, "g2": 4}
    assert processor.calls[1:] == [["g1", "g2"]] * 3


async def test_patience_with_what_is_away_ends(run: Run) -> None:
    """After `patience_seconds` a group has failed once; after its last attempt the learner hears why."""

    def away(_: RolloutGroup) -> Outcome:
        raise Unavailable("nobody there")

    await run.admit(1)
    async with working(run.connect("w"), Each(away), patience_seconds=0.3):
        [group] = (await run.receive(1)).values()
    assert group.failure == common.ErrorInfo(code="UNAVAILABLE", message="nobody there", origin=STAGE)


async def test_a_payload_that_is_no_group_reaches_the_learner_as_a_failure(run: Run) -> None:
    """Rubbish never reaches the processor, and arrives as a fresh group with its identity and failure."""
    rubbish = NewEntry(group_id="g7", admission_number=7, payload=b"\xff\xff\xff rubbish")
    await run.learner.admit(STAGE, [rubbish])
    processor = Each(mark)
    async with working(run.connect("w"), processor):
        [group] = (await run.receive(1)).values()
    assert (group.group_id, group.admission_number, group.failure.code) == ("g7", 7, "DATA_LOSS")
    assert processor.calls == []


async def test_a_group_of_another_stage_fails(run: Run) -> None:
    """A slip that does not begin with this stage is an error, not a silent pass."""
    await run.admit(1, slip=("reward", LEARNER_STAGE))
    async with working(run.connect("w"), Each(mark)):
        [group] = (await run.receive(1)).values()
    assert "does not begin with policy" in group.failure.message


async def test_a_destination_that_is_no_stream_fails_the_group(run: Run, server: QueueServer) -> None:
    """A key of another type in the way costs attempts, never the group."""
    with redis.Redis.from_url(server.url) as raw:
        raw.set(RunKeys(run.run_uid).stage("broken"), "x")
    await run.admit(1, slip=(STAGE, "broken", LEARNER_STAGE))
    async with working(run.connect("w"), Each(mark)):
        [group] = (await run.receive(1)).values()
    assert group.failure.code == "DATA_LOSS"
    assert "not a stream" in group.failure.message


async def test_a_wrong_number_of_outcomes_fails_the_batch(run: Run) -> None:
    """Outcomes that cannot be matched to groups are an error of the processor."""

    class Short(Each):
        def process(self, groups: list[RolloutGroup], stopping: threading.Event) -> list[Outcome]:
            return super().process(groups, stopping)[1:]

    await run.admit(2)
    async with working(run.connect("w"), Short(mark)):
        groups = await run.receive(2)
    assert {group.failure.message for group in groups.values()} == {
        "the processor gave 0 outcomes for 1 groups"
    }
