"""Metrics on their way to the logs: one thread and one bounded queue each, so that none can hold up or end a run.

step ──write()──▶ queue of each log ──its thread──▶ library
                    full: dropped      raises: told once
                    └──────── both are counted ────────┘
"""

from __future__ import annotations

import functools
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import structlog
from prometheus_client import Counter

from services.common.spec.metric_logs import LoggingSpec
from services.learner.logs.base import MetricLog, Open, RunIdentity, numbers

WAITING_STEPS = 256
"""Steps that wait for a slow log at most; what comes then is dropped for it, and counted."""
CLOSE_SECONDS, DRAIN_SECONDS = 20.0, 4.0
"""How long the end waits for logs that are slow: of a run that is through, of one that drains."""
LOST = Counter("trimtab_metric_log_steps_lost", "Steps whose metrics a log did not take.", ["log"])
_log = structlog.get_logger(__name__)
_Row = tuple[int, float, dict[str, float]]


class Sink:
    """One log with its thread. Opened there too: importing such a library takes seconds, a server may not answer."""

    def __init__(self, name: str, opened: Callable[[], MetricLog]) -> None:
        self.name = name
        self.lost = 0
        self.trouble = ""
        """What went wrong first, in one line."""
        self._opened = opened
        self._rows: queue.Queue[_Row | None] = queue.Queue(WAITING_STEPS)
        self._thread = threading.Thread(target=self._run, name=f"log-{name}", daemon=True)
        self._thread.start()

    def write(self, row: _Row) -> None:
        """Hand over; never waits, never raises."""
        try:
            self._rows.put_nowait(row)
        except queue.Full:
            self._lose(f"it does not keep up: {WAITING_STEPS} steps wait")

    def close(self, until: float) -> None:
        """Let it finish what waits, at most until then (time.monotonic)."""
        try:
            self._rows.put(None, timeout=max(0.0, until - time.monotonic()))
        except queue.Full:
            self._lose("it did not take everything before the end")
            return
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            self._lose("it did not take everything before the end")

    def _run(self) -> None:
        log = self._guarded(self._opened)
        while (row := self._rows.get()) is not None:
            if log is None:
                self._lose(self.trouble)
            else:
                step, moment, metrics = row
                self._guarded(log.write, step, moment, metrics, counts=True)
        if log is not None:
            self._guarded(log.close)

    def _guarded(self, work: Callable[..., Any], *arguments: Any, counts: bool = False) -> Any:
        try:
            return work(*arguments)
        except ImportError as error:
            self._tell(f"{error.name or error} is not installed: pip install 'trimtab-platform[logging]'")
        # A library's failures are its own business: SystemExit of one of them must not pass either.
        except BaseException as error:
            self._tell(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        if counts:
            self._lose(self.trouble)
        return None

    def _lose(self, why: str) -> None:
        self.lost += 1
        LOST.labels(self.name).inc()
        self._tell(why)

    def _tell(self, why: str) -> None:
        if not self.trouble:
            self.trouble = why
            _log.warning("metrics do not reach a log; the run goes on", log=self.name, why=why)


class Sinks:
    """All logs of a run. Off: none, and nothing is done."""

    def __init__(
        self, opens: Mapping[str, Open], run: RunIdentity, spec: LoggingSpec, steps_done: int
    ) -> None:
        self._sinks = [Sink(name, functools.partial(opens[name], run, spec, steps_done)) for name in spec.to]

    @property
    def warnings(self) -> list[str]:
        """One line for each log that has failed, the same from then on."""
        return [f"logging to {one.name}: {one.trouble}" for one in self._sinks if one.trouble]

    def lost(self) -> dict[str, float]:
        """Steps that did not reach each log so far, as metrics."""
        return {f"logging/lost_{one.name}": float(one.lost) for one in self._sinks}

    def write(self, step: int, moment: float, metrics: Mapping[str, float]) -> None:
        """A step's metrics, a row of metrics.jsonl, to all of them."""
        if self._sinks:
            told = {name: value for name, value in metrics.items() if name not in ("step", "time")}
            row = (step, moment, numbers(told))
            for one in self._sinks:
                one.write(row)

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Let all finish, together for at most so long."""
        until = time.monotonic() + seconds
        for one in self._sinks:
            one.close(until)
