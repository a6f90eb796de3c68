"""The clients' rules: what is retried, what an error tells, how arrays travel."""

from __future__ import annotations

import subprocess
import sys
from array import array
from typing import Any

import grpc
import pytest

from services.common import errors as service_errors
from services.common.status import wire_status
from trimtab.clients import errors
from trimtab.clients.base import pause_before_retry
from trimtab.clients.errors import client_error
from trimtab.clients.inputs import prompt_message
from trimtab.clients.reward import RowError, text_inputs, values_or_raise
from trimtab.clients.tensors import ids_tensor, values_of
from trimtab.common.v1 import common_pb2 as common


class Failed:
    """A failed call as grpc gives it, made from what the service puts on the wire."""

    def __init__(self, error: Exception) -> None:
        self._status = wire_status(error)

    def code(self) -> grpc.StatusCode:
        return self._status.code

    def details(self) -> str:
        return self._status.message

    def trailing_metadata(self) -> Any:
        return self._status.trailing


PAIRS = [
    (service_errors.InvalidInput("x", {"a.b": "expected c"}), errors.InvalidArgumentError),
    (service_errors.NotFound("x"), errors.NotFoundError),
    (service_errors.AlreadyExists("x"), errors.AlreadyExistsError),
    (service_errors.Mismatch("x"), errors.FailedPreconditionError),
    (service_errors.Unauthenticated("x"), errors.UnauthenticatedError),
    (service_errors.Forbidden("x"), errors.PermissionDeniedError),
    (service_errors.Overloaded("x", 2.5), errors.OverloadedError),
    (service_errors.TooLarge("x"), errors.ResourceExhaustedError),
    (service_errors.StorageFull("x"), errors.ResourceExhaustedError),
    (service_errors.Unavailable("x"), errors.UnavailableError),
    (service_errors.Expired("x"), errors.DeadlineExceededError),
    (service_errors.LostOwnership("x"), errors.AbortedError),
    (service_errors.Corrupted("x"), errors.DataLossError),
    (service_errors.TrimtabError("x"), errors.InternalError),
]


@pytest.mark.parametrize(("raised", "kind"), PAIRS, ids=[type(raised).__name__ for raised, _ in PAIRS])
def test_service_error_becomes_typed_error(raised: Exception, kind: type[errors.TrimtabClientError]) -> None:
    """Every error of the services has one type on the caller's side, and keeps its text and its reason."""
    error = client_error(Failed(raised))
    assert type(error) is kind
    assert (error.message, error.reason) == ("x", type(raised).__name__)
    assert error.retry_seconds == (2.5 if kind is errors.OverloadedError else None)
    assert error.violations == ({"a.b": "expected c"} if kind is errors.InvalidArgumentError else {})


def test_unexpected_error_keeps_its_incident() -> None:
    """An internal error tells the id to look for in the log."""
    error = client_error(Failed(RuntimeError("secret")))
    assert isinstance(error, errors.InternalError)
    assert len(error.incident) == 8
    assert error.incident in error.message


def pause(error: Exception, *, attempt: int = 1, seconds_left: float = 60.0) -> float | None:
    return pause_before_retry(
        client_error(Failed(error)), attempt=attempt, attempts=4, seconds_left=seconds_left, jitter=0.0
    )


def test_only_safe_errors_are_retried() -> None:
    """UNAVAILABLE backs off by doubling, RetryInfo is obeyed, anything else is final."""
    unavailable = service_errors.Unavailable("x")
    assert [pause(unavailable, attempt=number) for number in (1, 2, 3, 4)] == [0.1, 0.2, 0.4, None]
    assert pause(service_errors.Overloaded("x", 3.0)) == 3.0
    for error in (service_errors.TooLarge("x"), service_errors.InvalidInput("x"), RuntimeError("x")):
        assert pause(error) is None


def test_no_retry_beyond_the_deadline() -> None:
    """Where the pause would outlast the deadline the error is given at once."""
    assert pause(service_errors.Overloaded("x", 3.0), seconds_left=2.9) is None


def test_arrays_travel_little_endian() -> None:
    """Ids become int32 little-endian bytes, and come back; floats come back as array('f')."""
    tensor = ids_tensor([1, 258, -1])
    assert tensor.data == bytes([1, 0, 0, 0, 2, 1, 0, 0, 255, 255, 255, 255])
    assert list(tensor.shape) == [3]
    assert values_of(tensor) == array("i", [1, 258, -1])
    floats = common.Tensor(dtype=common.DTYPE_FLOAT32, shape=[1], data=bytes([0, 0, 0, 63]))
    assert values_of(floats) == array("f", [0.5])
    with pytest.raises(ValueError, match="DTYPE_BFLOAT16"):
        values_of(common.Tensor(dtype=common.DTYPE_BFLOAT16, shape=[1], data=b"\0\0"))


def test_prompts_of_every_kind() -> None:
    """Text, chat messages and token ids are told apart."""
    assert prompt_message("hi").text == "hi"
    assert prompt_message([{"role": "user", "content": "hi"}]).messages[0].content == "hi"
    assert values_of(prompt_message([5, 6]).token_ids) == array("i", [5, 6])


def test_rows_without_a_value_raise_with_their_place() -> None:
    """values() never lets an error pass as a number."""
    scores = [common.Score(value=0.0), common.Score(error=common.ErrorInfo(code="DATA_LOSS", message="m"))]
    with pytest.raises(RowError, match=r"inputs\[1\]: DATA_LOSS: m"):
        values_or_raise(scores)
    assert values_or_raise(scores[:1]) == [0.0]
    with pytest.raises(ValueError, match="same length"):
        text_inputs(["a"], [])


def test_importing_the_package_stays_light() -> None:
    """`import trimtab` alone loads no grpc; a client is there when it is asked for."""
    code = (
        "import sys, trimtab\n"
        "assert 'grpc' not in sys.modules and 'numpy' not in sys.modules\n"
        "from trimtab import AsyncRewardClient, LearnerClient, PolicyClient, PreferenceClient\n"
        "assert 'grpc' in sys.modules and 'numpy' not in sys.modules\n"
        "import trimtab.clients.reference\n"
        "assert not {'services', 'pydantic', 'structlog'} & set(sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
