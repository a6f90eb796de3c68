"""What two processes tell each other to connect: torch.distributed's store, held on both sides of a call. No wire here.

    group ──set──▶ here ──tell──▶ the call ──told──▶ the other side's here ◀──wait, get── group

torch's own TCPStore listens for whoever comes; this one knows only what came through a call that was let in.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta

import torch.distributed as dist

from services.common.errors import InvalidInput

_MOST_KEYS, _MOST_BYTES = 64, 2**16


class Rendezvous(dist.Store):  # type: ignore[name-defined, misc]
    """Keys and values of both sides. `tell` passes one on, from any thread; a wait ends after `seconds`.

    check: of a value of the other side's and this side's own; raises InvalidInput for one that may not be used.
    """

    def __init__(
        self, tell: Callable[[str, bytes], None], seconds: float, check: Callable[[bytes, bytes], None]
    ) -> None:
        super().__init__()
        self._tell, self._seconds, self._check = tell, seconds, check
        self._values: dict[str, bytes] = {}
        self._theirs: set[str] = set()
        self._own = b""
        self._closed = False
        self._changed = threading.Condition()

    def told(self, key: str, value: bytes) -> None:
        """The other side has set this. Raises InvalidInput for more than any group needs, and for what is set."""
        if len(self._theirs) >= _MOST_KEYS or len(key) + len(value) > _MOST_BYTES:
            raise InvalidInput("more came than two processes need to find each other")
        with self._changed:
            if key in self._values:
                raise InvalidInput("the other side would change what is said already")
            self._theirs.add(key)
            self._values[key] = value
            self._changed.notify_all()

    def close(self) -> None:
        """Nobody is to be found any more: whoever waits hears of it."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def set(self, key: str, value: bytes) -> None:
        """See torch.distributed.Store, here and below."""
        with self._changed:
            self._values[key] = self._own = bytes(value)
            self._theirs.discard(key)
            self._changed.notify_all()
        self._tell(key, bytes(value))

    def get(self, key: str) -> bytes:
        """Waits until one of both has set it. Raises RuntimeError where none does in time, or it may not be used."""
        self.wait([key])
        value = self._values[key]
        if key in self._theirs:
            try:
                self._check(value, self._own)
            except InvalidInput as error:
                raise RuntimeError(str(error)) from error
        return value

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        """Until all are set. Raises RuntimeError where they are not in time."""
        seconds = self._seconds if timeout is None else timeout.total_seconds()
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self.check(keys), seconds)
            if self._closed or not self.check(keys):
                raise RuntimeError("the other side did not say where it is")

    def check(self, keys: list[str]) -> bool:
        """Whether all are set by now."""
        return all(key in self._values for key in keys)

    def add(self, key: str, amount: int) -> int:
        """A count of this side's own: no group of two counts together."""
        with self._changed:
            count = int(self._values.get(key, b"0")) + amount
            self._values[key] = str(count).encode()
            return count

    def delete_key(self, key: str) -> bool:
        """On this side alone."""
        with self._changed:
            return self._values.pop(key, None) is not None

    def set_timeout(self, timeout: timedelta) -> None:
        """How long a wait may take from now on."""
        self._seconds = timeout.total_seconds()

    def has_extended_api(self) -> bool:
        """Nothing but the above."""
        return False
