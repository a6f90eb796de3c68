"""One worker process of a user's function, seen from the service. Owns time limits; knows no rows and no scores."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from services.common.errors import Expired, ServiceError
from services.reward.rewards.function_child import HEADER, encode_frame

_CHILD = Path(__file__).with_name("function_child.py")
_MAX_REPLY_BYTES = 64 << 20
_GRACE_SECONDS = 5.0


class Died(ServiceError):
    """The process ended, or said something that cannot be read; only another one can go on."""


class FunctionProcess:
    """Starts at once and imports the function meanwhile. One call at a time; after Expired or Died only kill()."""

    def __init__(self, name: str) -> None:
        requests, self._requests = os.pipe()
        self._replies, replies = os.pipe()
        try:
            # -P: the folder of that file, which has names like base.py, is not searched for the user's modules.
            self._popen = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, "-P", str(_CHILD), str(requests), str(replies)],
                pass_fds=(requests, replies),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        except BaseException:
            os.close(self._requests)
            os.close(self._replies)
            raise
        finally:
            os.close(requests)
            os.close(replies)
        os.set_blocking(self._requests, False)
        self._name = name
        self._identity: dict[str, str] | None = None
        self._set_up = False

    @property
    def alive(self) -> bool:
        """Whether it could be called, as far as can be told without asking."""
        return self._popen.poll() is None

    def identity(self, *, seconds: float) -> dict[str, str]:
        """Wait until the function is imported; name, source, distribution. ServiceError where that failed."""
        if self._identity is None:
            ends = time.monotonic() + seconds
            try:
                if not self._set_up:
                    self._set_up = True
                    path = [entry for entry in sys.path if isinstance(entry, str)]
                    self._send({"name": self._name, "path": path}, ends)
                reply = self._receive(ends)
            except Expired:
                raise Died(f"its import took longer than {seconds:g} s") from None
            if "ready" not in reply:
                raise ServiceError(str(reply.get("failed")))
            self._identity = reply["ready"]
        return self._identity

    def call(self, message: Any, *, ends: float) -> dict[str, Any]:
        """Ask and wait for the reply until `ends`, of time.monotonic. Raises Expired or Died."""
        self._send(message, ends)
        return self._receive(ends)

    def kill(self) -> None:
        """End it and everything that it started."""
        with contextlib.suppress(OSError):
            os.close(self._requests)  # its guard does the rest
        try:
            self._popen.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        with contextlib.suppress(OSError):
            os.close(self._replies)

    def _send(self, message: Any, ends: float) -> None:
        data = memoryview(encode_frame(message))
        while data:
            _wait(self._requests, select.POLLOUT, ends)
            try:
                data = data[os.write(self._requests, data) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise Died(self._how_it_ended()) from None

    def _receive(self, ends: float) -> dict[str, Any]:
        size = HEADER.unpack(self._read(HEADER.size, ends))[0]
        if size > _MAX_REPLY_BYTES:
            raise Died(f"it answered with {size} bytes")
        try:
            reply = json.loads(self._read(size, ends))
        except ValueError:
            raise Died("its answer cannot be read") from None
        if not isinstance(reply, dict):
            raise Died("its answer cannot be read")
        return reply

    def _read(self, size: int, ends: float) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            _wait(self._replies, select.POLLIN, ends)
            part = os.read(self._replies, min(size - len(parts), 1 << 20))
            if not part:
                raise Died(self._how_it_ended())
            parts += part
        return bytes(parts)

    def _how_it_ended(self) -> str:
        try:
            code = self._popen.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            return "its process has closed its answers"
        if code > 128:
            with contextlib.suppress(ValueError):
                return f"its process was ended by {signal.Signals(code - 128).name}"
        return f"its process ended with status {code}"


def _wait(place: int, event: int, ends: float) -> None:
    poller = select.poll()
    poller.register(place, event)
    left = ends - time.monotonic()
    if left <= 0 or not poller.poll(left * 1000):
        raise Expired("the time limit has passed")
