"""The reward service's HTTP API by its own OpenAPI page, by schemathesis: tests/fuzz/http.py in the driver's hands.

An input here is a survey of every operation or a slice of random requests; its outcome counts those that came back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from random import Random

from tests.fuzz.http import HttpFuzzer
from tests.fuzz.service import running
from tests.fuzz.surface import Surface

_EXAMPLES = 10


@contextmanager
def opened(folder: Path) -> Iterator[Surface]:
    """Everything but administration, which tests/fuzz/http.py surveys at its end."""
    with running(folder, server__http_port=0) as service:
        fuzzer = HttpFuzzer(service, folder)

        def run(seed: int) -> Mapping[str, int]:
            before = service.http_requests()
            fuzzer.survey(seed, _EXAMPLES)
            after = service.http_requests()
            return {status: count - before.get(status, 0) for status, count in after.items()}

        def good() -> None:
            fuzzer.check_models()
            fuzzer.check_log()

        yield Surface(_seed, run, good, elsewhere=service.cpu_seconds, cpu_seconds=600)


def _seed(rng: Random) -> int:
    return rng.randrange(2**31)
