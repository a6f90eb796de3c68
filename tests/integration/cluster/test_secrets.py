"""What the operator reads of Secrets: for how long it believes it, and when it looks again."""

from __future__ import annotations

import base64

import pytest

from orchestrator.cluster.control.resources import Ref
from orchestrator.cluster.kinds import TrainingRun, read_object
from orchestrator.cluster.names import RunNames
from orchestrator.cluster.operator.secrets import KEPT_SECONDS, RunSecrets
from tests.integration.cluster.harness import Harness
from tests.unit.orchestrator.cluster.objects import RUN, changed


class Queue:
    """A Secret with the URL of a queue server, and what the operator takes it for."""

    def __init__(self, harness: Harness, **redis: object) -> None:
        self._harness, self._ref = harness, Ref("Secret", harness.namespace, "queue")
        self.secrets = RunSecrets(harness.api, harness.clock)
        self.run = self.named(**redis)

    def named(self, **redis: object) -> TrainingRun:
        metadata = {**RUN["metadata"], "namespace": self._harness.namespace}
        return read_object(TrainingRun, {**changed(RUN, redis=redis), "metadata": metadata})

    def holds(self, **values: str) -> None:
        data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
        metadata = {"name": "queue", "namespace": self._harness.namespace}
        self._harness.api.apply(
            {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data}, "test"
        )

    def goes(self) -> None:
        self._harness.api.delete(self._ref)

    @property
    def address(self) -> str:
        """Empty: none is known."""
        door = self.secrets.queue_door(self.run, RunNames.of(self.run))
        return "" if door is None else door.address


@pytest.fixture
def queue(harness: Harness) -> Queue:
    return Queue(harness, urlSecret={"name": "queue", "key": "url"})


def test_an_address_is_read_anew_after_a_while(queue: Queue, harness: Harness) -> None:
    """A password is changed while a run goes on; one that is away for a moment is kept as it was."""
    queue.holds(url="redis://old:6379/0")
    assert queue.address == "redis://old:6379/0"
    queue.holds(url="redis://new:6379/0")
    assert queue.address == "redis://old:6379/0"
    harness.clock.advance(KEPT_SECONDS)
    assert queue.address == "redis://new:6379/0"
    queue.goes()
    harness.clock.advance(KEPT_SECONDS)
    assert queue.address == "redis://new:6379/0"


def test_no_address_is_not_kept(queue: Queue) -> None:
    """A key that is not there yet is looked for again at the next look."""
    queue.holds(other="x")
    assert queue.address == ""
    queue.holds(url="redis://new:6379/0")
    assert queue.address == "redis://new:6379/0"


def test_another_key_is_another_address(queue: Queue) -> None:
    """A run that names another key of its Secret is asked there at once."""
    queue.holds(url="redis://old:6379/0", other="redis://new:6379/0")
    assert queue.address == "redis://old:6379/0"
    queue.run = queue.named(urlSecret={"name": "queue", "key": "other"})
    assert queue.address == "redis://new:6379/0"


def test_an_address_that_nobody_answers_at_is_read_anew(queue: Queue) -> None:
    """It may have been wrong, and mended since."""
    queue.holds(url="redis://wrong:6379/0")
    assert queue.address == "redis://wrong:6379/0"
    queue.holds(url="redis://right:6379/0")
    queue.secrets.forget_queue(queue.run.metadata.uid)
    assert queue.address == "redis://right:6379/0"
