"""Score of a reward service in a process of its own, by hypothesis: tests/fuzz/score.py in the driver's hands.

An input here is a round of messages, which hypothesis shrinks where one fails.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from random import Random

from tests.fuzz.score import Fuzzer
from tests.fuzz.service import running
from tests.fuzz.surface import Surface

_MESSAGES = 100


@contextmanager
def opened(folder: Path) -> Iterator[Surface]:
    """The service's own memory is looked at after each round."""
    with running(folder) as service:
        fuzzer = Fuzzer(service)

        def run(number: int) -> Mapping[str, int]:
            before = Counter(fuzzer.tally.calls)
            fuzzer.round(number, _MESSAGES)
            return fuzzer.tally.calls - before

        try:
            yield Surface(_seed, run, fuzzer.check_log, cpu_seconds=600, elsewhere=service.cpu_seconds)
        finally:
            fuzzer.close()


def _seed(rng: Random) -> int:
    return rng.randrange(2**31)
