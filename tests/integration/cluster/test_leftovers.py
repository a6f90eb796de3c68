"""What a deleted run leaves on a queue server that is not its own."""

from __future__ import annotations

from datetime import timedelta

from orchestrator.cluster.control.resources import Ref
from orchestrator.cluster.operator.leftovers import PATIENCE_SECONDS
from tests.integration.cluster.harness import Harness, eventually
from tests.unit.orchestrator.cluster.objects import RUN, changed

URL = "redis://queue.shared:6379/0"
FOREIGN = changed(RUN, redis={"url": URL})


def delete(harness: Harness) -> str:
    """Ask for it; its uid."""
    uid = str(harness.get("TrainingRun", "helpful")["metadata"]["uid"])
    harness.api.delete(Ref("TrainingRun", harness.namespace, "helpful"))
    return uid


def gone(harness: Harness) -> bool:
    harness.reconcile()
    return harness.find("TrainingRun", "helpful") is None


def kept(harness: Harness) -> list[str]:
    return [note for reason, note in harness.events() if reason == "KeysLeft"]


def test_its_keys_go_with_it(harness: Harness) -> None:
    """Once its pods are gone, by the address that the run has, and of this run alone."""
    harness.submit(FOREIGN)
    harness.settle()
    uid = delete(harness)
    eventually(lambda: gone(harness))
    assert harness.probe.forgot == [(URL, f"helpful-{uid[:8]}")]
    assert kept(harness) == []


def test_a_server_of_its_own_goes_as_a_whole(harness: Harness) -> None:
    """Nobody asks it for anything."""
    harness.submit(RUN)
    harness.settle()
    delete(harness)
    eventually(lambda: gone(harness))
    assert harness.probe.forgot == []


def test_a_server_that_is_away_is_asked_again_and_does_not_hold_it_for_ever(harness: Harness) -> None:
    """For two minutes; then the run goes, and an Event says what stays and why."""
    harness.submit(FOREIGN)
    harness.settle()
    harness.probe.forget_fails = "the queue server is away"
    delete(harness)
    eventually(lambda: not gone(harness) and len(harness.probe.forgot) >= 2)
    assert kept(harness) == []
    harness.ahead = timedelta(seconds=PATIENCE_SECONDS + 1)
    eventually(lambda: gone(harness))
    [note] = kept(harness)
    assert note.startswith("trimtab:{helpful-")
    assert note.endswith("may still be on the queue server: the queue server is away")


def test_an_address_that_nobody_knows_any_more_is_told(harness: Harness) -> None:
    """Its Secret went first, as when a whole namespace is deleted."""
    harness.submit(changed(RUN, redis={"urlSecret": {"name": "gone", "key": "url"}}))
    harness.settle()
    delete(harness)
    harness.ahead = timedelta(seconds=PATIENCE_SECONDS + 1)
    eventually(lambda: gone(harness))
    assert harness.probe.forgot == []
    assert "the Secret with its address cannot be read" in kept(harness)[0]
