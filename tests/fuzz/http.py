"""Fuzzing of the HTTP API by its own OpenAPI page: python -m tests.fuzz.http --minutes 10 --seed 1

Schemathesis draws requests from the page, sound and unsound ones, against a real service on loopback. Held to: no
server error but 503 and 504 (the caller's own time limit), no status, content type or body that the page does not
document, the service lives, its log has no error and its memory stays within a bound.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz.score import GROWTH_MIB, growth_mib
from tests.fuzz.service import MODELS, Service, running

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)
# A look at the memory after each of these.
_SLICE_SECONDS = 60
_ADMIN = "^/v1/admin/"
# Names that exist, so that most requests get as far as a score.
_SETTINGS = f"""
request-timeout = 60
[dictionaries.models]
values = {json.dumps(list(MODELS))}
[parameters]
"query.model" = {{ dictionary = "models", probability = 0.8 }}
"body.model" = {{ dictionary = "models", probability = 0.8 }}
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", 503, 504]
"""


class HttpFuzzer:
    """Schemathesis as a program of its own, against one service."""

    def __init__(self, service: Service, folder: Path) -> None:
        self._service = service
        self._settings = folder / "schemathesis.toml"
        self._settings.write_text(_SETTINGS)
        self._page = f"http://{service.endpoints['http']}/openapi.json"
        self.memory_mib: list[float] = []

    def survey(self, seed: int, examples: int, *, admin: bool = False) -> None:
        """Every operation: its examples, the edges of each field, and so many random requests.

        admin: of administration alone, which takes models away; else of everything but that.
        """
        which = f"--{'include' if admin else 'exclude'}-path-regex={_ADMIN}"
        phases = "--phases=examples,coverage,fuzzing"
        self._run("run", f"--seed={seed}", f"--max-examples={examples}", phases, which)

    def slice(self, seed: int, seconds: int) -> None:
        """Random requests for so long, none of administration."""
        self._run("fuzz", f"--seed={seed}", f"--max-time={seconds}", f"--exclude-path-regex={_ADMIN}")

    def check_models(self) -> None:
        """AssertionError where a model has gone."""
        page = self._page.replace("/openapi.json", "/v1/models")
        with urllib.request.urlopen(page, timeout=60) as answer:  # noqa: S310 - our own service
            names = {model["name"] for model in json.load(answer)["models"]}
        assert set(MODELS) <= names, f"of the models only {sorted(names)} are left"

    def check_log(self) -> None:
        """AssertionError where the service logged an error of its own."""
        found = self._service.log_lines("error")
        assert not found, json.dumps(found[0])[:3000]

    def _run(self, command: str, *options: str) -> None:
        tool = Path(sys.executable).with_name("schemathesis")
        checks = f"--checks={','.join(CHECKS)}"
        done = subprocess.run(
            [tool, "--config-file", self._settings, command, self._page, checks, "--no-color", *options],
            capture_output=True,
            text=True,
            cwd=self._settings.parent,
        )
        self._service.check_alive()
        assert done.returncode == 0, (
            f"schemathesis {command} {' '.join(options)}\n{_short(done.stdout + done.stderr)}"
        )
        self.memory_mib.append(self._service.memory_mib())


def _short(report: str) -> str:
    """The failures of a report; lines of thousands of characters are cut."""
    start = max(0, report.find("= FAILURES ="))
    return "\n".join(line[:400] for line in report[start:].splitlines()[:200])


def fuzz(minutes: float, seed: int) -> Sequence[float]:
    """A survey, random requests until the time is out, administration last; memory after each slice, MiB."""
    ends = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory() as name, running(Path(name), server__http_port=0) as service:
        fuzzer = HttpFuzzer(service, Path(name))
        fuzzer.survey(seed, examples=50)
        while (left := ends - time.monotonic()) > 1:
            seed += 1
            fuzzer.slice(seed, seconds=max(1, round(min(left, _SLICE_SECONDS))))
            print(f"seed {seed}: {fuzzer.memory_mib[-1]:.0f} MiB", file=sys.stderr)
        fuzzer.check_models()
        fuzzer.survey(seed, examples=200, admin=True)
        fuzzer.check_log()
    grown = growth_mib(fuzzer.memory_mib)
    assert grown < GROWTH_MIB, f"memory grew by {grown:.0f} MiB: {[round(mib) for mib in fuzzer.memory_mib]}"
    return fuzzer.memory_mib


def main() -> int:
    """Fuzz for a while; 1 and schemathesis' own report where something fails."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz.http", description="Fuzz the HTTP API of a real service."
    )
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    try:
        memory = fuzz(options.minutes, options.seed)
    except AssertionError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps({"slices": len(memory), "memory_mib": [round(mib) for mib in memory]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
