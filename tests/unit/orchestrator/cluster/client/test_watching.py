"""A watch that is ended from another thread, and one whose connection breaks."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from orchestrator.cluster.client.api import Watching
from orchestrator.cluster.control.resources import RESOURCES
from services.common.errors import Unavailable

LINE = json.dumps({"type": "ADDED", "object": {"metadata": {"name": "one"}}}).encode() + b"\n"


class Response:
    """An answer in pieces. Shut down, it gives what a TLS connection without its keys gives."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = [*pieces]

    def stream(self, **_: object) -> Iterator[bytes]:
        """The pieces, whichever there are when asked."""
        while self._pieces:
            yield self._pieces.pop(0)

    def shutdown(self) -> None:
        """What is left is ciphertext."""
        self._pieces = [b"\x17\x03\x03\x84\n", LINE]

    def close(self) -> None:
        """Nothing to give back."""


def test_a_stopped_watch_ends_without_reading_on() -> None:
    """What comes after the stop is neither parsed nor handed out."""
    watching = Watching(RESOURCES["Pod"], Response(LINE, LINE))
    seen = []
    for kind, item in watching:
        seen.append((kind, item["metadata"]["name"]))
        watching.stop()
    assert seen == [("ADDED", "one")]


@pytest.mark.parametrize("broken", [b'{"type": "ADD\n', b"\x84\xff\n"])
def test_half_a_line_is_a_connection_that_broke(broken: bytes) -> None:
    """It is waited out as any other, and ends no thread."""
    with pytest.raises(Unavailable, match="is no JSON"):
        list(Watching(RESOURCES["Pod"], Response(LINE, broken)))
