"""Workers on a queue: take a key, handle it, say when it comes again. Knows no run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import structlog

from orchestrator.cluster.client.errors import Conflict
from orchestrator.cluster.control.queue import WorkQueue
from orchestrator.cluster.control.resources import Ref
from orchestrator.cluster.operator.metrics import DEPTH, LAG, RECONCILES, SECONDS
from services.common.errors import LostOwnership, TrimtabError
from services.common.telemetry import bound

Handle = Callable[[Ref], float | None]
"""Brings one object to where it should be; seconds after which to look again, None: when something changes."""
_IDLE_SECONDS = 1.0
_log = structlog.get_logger(__name__)


class Controller:
    """One queue and its workers. They rest while `leads` says no; keys are kept meanwhile."""

    def __init__(
        self,
        name: str,
        handle: Handle,
        *,
        leads: Callable[[], bool],
        workers: int = 4,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._handle, self._leads, self._workers, self._clock = handle, leads, workers, clock
        self._queue: WorkQueue[Ref] = WorkQueue()
        self._condition = threading.Condition()
        self._stopping = False

    def add(self, key: Ref) -> None:
        """As soon as may be."""
        with self._condition:
            self._queue.add(key, self._clock())
            self._condition.notify()
        DEPTH.labels(self.name).set(len(self._queue))

    def add_after(self, key: Ref, seconds: float) -> None:
        """After some time, at the latest."""
        with self._condition:
            self._queue.add_after(key, seconds, self._clock())
            self._condition.notify()

    def start(self) -> list[threading.Thread]:
        """The workers, on threads of their own."""
        threads = [
            threading.Thread(target=self._work, name=f"{self.name} {number}", daemon=True)
            for number in range(self._workers)
        ]
        for thread in threads:
            thread.start()
        return threads

    def stop(self) -> None:
        """Workers end after what they do now."""
        with self._condition:
            self._stopping = True
            self._condition.notify_all()

    def wake(self) -> None:
        """The leadership has changed."""
        with self._condition:
            self._queue.wait_from(self._clock())
            self._condition.notify_all()

    def step(self) -> bool:
        """Handle one key that is ready; whether there was one."""
        with self._condition:
            key = self._queue.take(self._clock())
            waited = 0.0 if key is None else self._queue.waited(key)
        if key is None:
            return False
        LAG.labels(self.name).observe(waited)
        DEPTH.labels(self.name).set(len(self._queue))
        with bound(kind=key.kind, namespace=key.namespace, name=key.name):
            self._one(key)
        return True

    def _work(self) -> None:
        while True:
            with self._condition:
                if self._stopping:
                    return
                wait = self._queue.wait_seconds(self._clock()) if self._leads() else _IDLE_SECONDS
                if wait is None or wait > 0:
                    self._condition.wait(_IDLE_SECONDS if wait is None else min(wait, _IDLE_SECONDS))
                    continue
            self.step()

    def _one(self, key: Ref) -> None:
        began = time.perf_counter()
        outcome, again, failed = "done", None, False
        try:
            again = self._handle(key)
        except LostOwnership:
            outcome, failed = "not leading", True
        except Conflict as error:
            # Somebody was faster; the watch brings what they wrote.
            outcome, failed = "conflict", True
            _log.info("somebody else wrote meanwhile", error=str(error))
        except TrimtabError as error:
            outcome, failed = "error", True
            _log.warning("cannot reconcile, trying again", error=str(error))
        except Exception:
            outcome, failed = "bug", True
            _log.exception("reconcile raised, trying again")
        SECONDS.labels(self.name).observe(time.perf_counter() - began)
        RECONCILES.labels(self.name, outcome).inc()
        with self._condition:
            now = self._clock()
            self._queue.done(key)
            if failed:
                self._queue.failed(key, now)
            else:
                self._queue.succeeded(key)
            if again is not None:
                self._queue.add_after(key, again, now)
            self._condition.notify()
