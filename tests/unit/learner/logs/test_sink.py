"""A log that fails, hangs or is not installed never stops a run: it is told once, and what it lost is counted."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from services.common.spec.metric_logs import LoggingSpec
from services.learner.logs import sink
from services.learner.logs.base import Open, RunIdentity, flat
from services.learner.logs.sink import Sinks


class Kept:
    """A log in memory that refuses some steps."""

    def __init__(self, refuse: tuple[int, ...] = ()) -> None:
        self.rows: list[tuple[int, float, dict[str, float]]] = []
        self.refuse, self.closed = refuse, False

    def write(self, step: int, moment: float, metrics: Mapping[str, float]) -> None:
        if step in self.refuse:
            raise ConnectionError(f"step {step}:\n no server")
        self.rows.append((step, moment, dict(metrics)))

    def close(self) -> None:
        self.closed = True


def sinks_of(tmp_path: Path, **logs: Any) -> Sinks:
    """Named logs, each a MetricLog or what opening it raises."""

    def opening(given: Any) -> Open:
        def opened(*_: Any) -> Any:
            if isinstance(given, BaseException):
                raise given
            return given

        return opened

    spec = LoggingSpec.model_validate({"to": list(logs)})
    identity = RunIdentity(uid="u", name="n", folder=tmp_path)
    return Sinks({name: opening(given) for name, given in logs.items()}, identity, spec, 0)


def test_a_row_goes_to_all_under_its_names(tmp_path: Path) -> None:
    """Names and values of the metrics file; step and time are not metrics, and NaN is no point."""
    one, two = Kept(), Kept()
    sinks = sinks_of(tmp_path, tensorboard=one, mlflow=two)
    sinks.write(3, 12.5, {"step": 3, "time": 12.5, "objective/kl": 1.5, "lr": float("nan")})
    sinks.close()
    assert one.rows == two.rows == [(3, 12.5, {"objective/kl": 1.5})]
    assert one.closed
    assert sinks.lost() == {"logging/lost_tensorboard": 0, "logging/lost_mlflow": 0}
    assert sinks.warnings == []


def test_a_failing_log_is_told_once_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two of four steps are refused: the others arrive, the other log has all, one line tells the first cause."""
    bad, good = Kept(refuse=(2, 3)), Kept()
    sinks = sinks_of(tmp_path, wandb=bad, tensorboard=good)
    for step in (1, 2, 3, 4):
        sinks.write(step, 0.0, {"lr": 1.0})
    sinks.close()
    assert [step for step, _, _ in bad.rows] == [1, 4]
    assert [step for step, _, _ in good.rows] == [1, 2, 3, 4]
    assert sinks.lost() == {"logging/lost_wandb": 2, "logging/lost_tensorboard": 0}
    assert sinks.warnings == ["logging to wandb: ConnectionError: step 2: no server"]
    told = capsys.readouterr().out + caplog.text
    assert told.count("metrics do not reach a log") == 1


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ModuleNotFoundError("No module", name="wandb"), "wandb is not installed: pip install"),
        (SystemExit("give me a key"), "SystemExit: give me a key"),
    ],
)
def test_a_log_that_does_not_open_loses_all(tmp_path: Path, error: BaseException, line: str) -> None:
    """A library that is not there, or one that would end the process, costs its own rows alone."""
    sinks = sinks_of(tmp_path, wandb=error)
    sinks.write(1, 0.0, {"lr": 1.0})
    sinks.write(2, 0.0, {"lr": 1.0})
    sinks.close()
    assert sinks.lost() == {"logging/lost_wandb": 2}
    assert line in sinks.warnings[0]


def test_a_log_that_hangs_holds_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows beyond the bound are dropped and counted, and the end waits no longer than it is told to."""
    monkeypatch.setattr(sink, "WAITING_STEPS", 2)
    taken, release = threading.Event(), threading.Event()

    class Hanging(Kept):
        def write(self, step: int, moment: float, metrics: Mapping[str, float]) -> None:
            taken.set()
            release.wait(30)

    sinks = sinks_of(tmp_path, mlflow=Hanging())
    sinks.write(1, 0.0, {})
    assert taken.wait(10)
    for step in (2, 3, 4, 5):
        sinks.write(step, 0.0, {})
    assert sinks.lost() == {"logging/lost_mlflow": 2}
    sinks.close(seconds=0.05)
    assert sinks.lost() == {"logging/lost_mlflow": 3}
    release.set()


def test_settings_are_flat_by_their_names() -> None:
    """A nested table's fields are a.b.c."""
    assert flat({"a": 1, "b": {"c": 2, "d": {"e": [3]}}}) == {"a": 1, "b.c": 2, "b.d.e": [3]}


@pytest.mark.parametrize("given", [["tensorbord"], ["wandb", "wandb"]])
def test_a_wrong_name_is_refused(given: list[str]) -> None:
    """Before anything is loaded."""
    with pytest.raises(ValidationError):
        LoggingSpec.model_validate({"to": given})
