"""A thread that looks at keys one after the other, under the store's lock: what a controller is, without retries."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from tests.fakes.kube.store import Store

Key = TypeVar("Key", bound=Hashable)


class Worker(Generic[Key]):
    """`look` is called once for each key that was put in since it was last looked at."""

    def __init__(self, store: Store, name: str, look: Callable[[Key], None]) -> None:
        self.store = store
        self._look = look
        self._waiting: set[Key] = set()
        self._failed: Exception | None = None
        self._work: queue.SimpleQueue[Key | None] = queue.SimpleQueue()
        self._idle = threading.Condition(store.lock)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, and wait for it."""
        self._work.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def add(self, key: Key) -> None:
        """Look at a key soon. Under the store's lock."""
        if key not in self._waiting:
            self._waiting.add(key)
            self._work.put(key)

    def settle(self, seconds: float = 10) -> None:
        """Wait until nothing is left to look at. What went wrong in the thread is raised here."""
        with self._idle:
            idle = self._idle.wait_for(lambda: not self._waiting or self._failed is not None, seconds)
        if self._failed is not None:
            raise self._failed
        if not idle:
            raise TimeoutError(f"{self._thread.name} has not come to an end")

    def _run(self) -> None:
        while (key := self._work.get()) is not None:
            with self._idle:
                self._waiting.discard(key)
                try:
                    self._look(key)
                except Exception as wrong:  # told to whoever waits
                    self._failed = wrong
                self._idle.notify_all()
