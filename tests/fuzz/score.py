"""Fuzzing of `Score`: python -m tests.fuzz.score --minutes 10 --seed 1

Sends random messages to a real service on loopback and holds it to this, whatever they are: the status is one of the
documented ones, each score is a finite value or an error that is no fault of the service, a known row keeps its score,
the service lives, its log has no error and its memory stays within a bound.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz.score_messages import metadata, requests
from tests.fuzz.service import MODELS, Service, running
from trimtab.reward.v1 import reward_pb2 as wire
from trimtab.reward.v1 import reward_pb2_grpc

METHOD = "/trimtab.reward.v1.RewardService/Score"
# Of a call. CANCELLED is grpcio's own for a deadline that passes at once.
STATUSES = {
    "OK",
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "FAILED_PRECONDITION",
    "RESOURCE_EXHAUSTED",
    "DEADLINE_EXCEEDED",
}
# Of a row: what a caller can be at fault for, and a score that is not finite.
ROW_STATUSES = {"INVALID_ARGUMENT", "FAILED_PRECONDITION", "DATA_LOSS"}
GROWTH_MIB = 64.0
_KNOWN = [wire.ScoreInput(prompt="How are you?", completion="I am wonderful, thank you!")]


@dataclass(slots=True)
class Tally:
    """What came of the messages so far."""

    calls: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    memory_mib: list[float] = field(default_factory=list)


class Fuzzer:
    """Sends what hypothesis makes up, and checks every answer."""

    def __init__(self, service: Service, pass_over: Sequence[str] = ()) -> None:
        self._service = service
        self._pass_over = tuple(pass_over)
        options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        self._channel = grpc.insecure_channel(service.endpoints["grpc"], options=options)
        # Bytes as they are: a client's stubs would refuse most of them.
        self._send = self._channel.unary_unary(METHOD)
        self._stub = reward_pb2_grpc.RewardServiceStub(self._channel)
        self.tally = Tally()
        models = self._stub.ListModels(wire.ListModelsRequest(), timeout=60).models
        [tiny] = [info for info in models if info.name == "tiny"]
        self._fingerprint = tiny.model.tokenizer_fingerprint.encode()
        self._known = self._known_scores()

    def close(self) -> None:
        """Let go of the channel."""
        self._channel.close()

    def round(self, number: int, examples: int) -> None:
        """So many messages, drawn from this seed. AssertionError with the smallest message that fails."""

        @seed(number)
        @settings(
            max_examples=examples,
            database=None,
            deadline=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        @given(requests(self._fingerprint), metadata, st.integers(0, 49))
        def one(data: bytes, headers: Sequence[tuple[str, str]], patience: int) -> None:
            self.check(data, headers, timeout_seconds=0.002 if patience == 0 else 60.0)

        one()
        self._service.check_alive()
        assert self._known_scores() == self._known, "a known row has another score than at the beginning"
        self.tally.memory_mib.append(self._service.memory_mib())

    def check(
        self, data: bytes, headers: Sequence[tuple[str, str]] = (), timeout_seconds: float = 60.0
    ) -> None:
        """Send one message and hold the answer to what the module says."""
        code, answer, details = self._ask(data, headers, timeout_seconds)
        self.tally.calls[code] += 1
        assert code in STATUSES or self._is_known(details), f"{code}: {details}\n{_shown(data)}"
        if code == "OK":
            self._check_scores(data, wire.ScoreResponse.FromString(answer))

    def _ask(self, data: bytes, headers: Sequence[tuple[str, str]], timeout: float) -> tuple[str, bytes, str]:
        try:
            return "OK", self._send(data, timeout=timeout, metadata=tuple(headers)), ""
        except grpc.RpcError as error:
            failed: Any = error
            return failed.code().name, b"", str(failed.details())

    def _check_scores(self, data: bytes, response: wire.ScoreResponse) -> None:
        sent = wire.ScoreRequest.FromString(data)
        assert len(response.scores) == len(sent.inputs), _shown(data)
        for score in response.scores:
            assert score.HasField("value") != score.HasField("error"), _shown(data)
            self.tally.rows[score.error.code if score.HasField("error") else "OK"] += 1
            if score.HasField("value"):
                assert math.isfinite(score.value) and score.model_digest, _shown(data)
            elif not self._is_known(score.error.message):
                assert score.error.code in ROW_STATUSES, f"{score.error}\n{_shown(data)}"

    def _known_scores(self) -> list[float]:
        return [
            self._stub.Score(wire.ScoreRequest(model=model, inputs=_KNOWN), timeout=60).scores[0].value
            for model in MODELS
        ]

    def _is_known(self, text: str) -> bool:
        return any(part in text for part in self._pass_over)

    def check_log(self) -> None:
        """AssertionError where the service logged an error of its own."""
        found = [line for line in self._service.log_lines("error") if not self._is_known(json.dumps(line))]
        assert not found, json.dumps(found[0])[:3000]


def growth_mib(memory_mib: Sequence[float]) -> float:
    """Memory at the end over what it was after the first quarter, when caches and pools are filled."""
    return memory_mib[-1] - max(memory_mib[: max(1, len(memory_mib) // 4)])


def _shown(data: bytes) -> str:
    try:
        text = str(wire.ScoreRequest.FromString(data))[:2000]
    except DecodeError as error:
        text = f"(no ScoreRequest: {error})"
    return f"bytes.fromhex({data.hex()[:4000]!r})\n{text}"


def fuzz(minutes: float, first_seed: int, examples: int = 500, pass_over: Sequence[str] = ()) -> Tally:
    """Rounds until the time is out; AssertionError with what failed first."""
    ends = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as service:
        fuzzer = Fuzzer(service, pass_over)
        number = first_seed
        while time.monotonic() < ends:
            fuzzer.round(number, examples)
            calls = sum(fuzzer.tally.calls.values())
            print(f"seed {number}: {calls} calls, {fuzzer.tally.memory_mib[-1]:.0f} MiB", file=sys.stderr)
            number += 1
        fuzzer.check_log()
        fuzzer.close()
        tally = fuzzer.tally
    grown = growth_mib(tally.memory_mib)
    assert grown < GROWTH_MIB, f"memory grew by {grown:.0f} MiB: {[round(mib) for mib in tally.memory_mib]}"
    return tally


def main() -> int:
    """Fuzz for a while; 1 and the smallest message where something fails."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz.score", description="Fuzz Score of a real service."
    )
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--pass-over",
        action="append",
        default=[],
        metavar="TEXT",
        help="go on past a known defect: errors with this text",
    )
    options = parser.parse_args()
    try:
        tally = fuzz(options.minutes, options.seed, pass_over=options.pass_over)
    except AssertionError as error:
        print(error, file=sys.stderr)
        return 1
    memory = [round(mib) for mib in tally.memory_mib]
    print(json.dumps({"calls": tally.calls, "rows": tally.rows, "memory_mib": memory}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
