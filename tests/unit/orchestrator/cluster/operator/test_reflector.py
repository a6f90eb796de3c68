"""What the watch tells, and whom it tells of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from orchestrator.cluster.client.api import Api, Listing
from orchestrator.cluster.control.resources import Object, Ref
from orchestrator.cluster.control.store import Store
from orchestrator.cluster.operator.reflector import Reflector

RUN = Ref("TrainingRun", "ns", "helpful")
JOB = Ref("Job", "ns", "helpful-learner-1")


def job(version: int) -> Object:
    metadata = {
        "name": JOB.name,
        "namespace": JOB.namespace,
        "uid": "u",
        "resourceVersion": str(version),
        "labels": {"trimtab.dev/run": RUN.name},
    }
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata}


class OneWatch:
    """A server with one Job, which our own delete takes out of the store before its only watch tells the end."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def list(self, *_: object) -> Listing:
        return Listing([job(1)], "1")

    def watch(self, *_: object) -> OneWatch:
        return self

    def __iter__(self) -> Iterator[tuple[str, Object]]:
        self._store.remove(JOB, "u")
        yield "DELETED", job(2)

    def close(self) -> None:
        """Nothing is open."""


def test_the_end_of_what_we_deleted_ourselves_is_told() -> None:
    """Our own delete takes it out of the store at once; what follows its end must not wait for another event."""
    store, told = Store(), list[Ref]()
    Reflector(cast(Api, OneWatch(store)), store, told.append, kind="Job").once()
    assert told == [RUN, RUN]
    assert store.get(JOB) is None
