"""What benchmarks.recovery reads of logs and entry ids, and how its replicas are set up, by hand."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from benchmarks.recovery_looks import first_step_since, loading_seconds, milliseconds
from benchmarks.recovery_run import SERVICES, settings_of, spec_of


def _line(event: str, moment: float) -> str:
    return json.dumps({"event": event, "timestamp": datetime.fromtimestamp(moment, UTC).isoformat()})


def test_loading_is_from_listening_to_serving() -> None:
    """Of the process that began after the kill, not of the one before; half lines and other events say nothing."""
    lines = [_line("listening", 10.0), _line("serving", 12.5), '{"event": "list', _line("listening", 20.0)]
    lines += [_line("resumed", 22.0), _line("serving", 24.0)]
    assert loading_seconds(lines, 0.0) == pytest.approx(2.5)
    assert loading_seconds(lines, 15.0) == pytest.approx(4.0)
    with pytest.raises(ValueError, match="does not say"):
        loading_seconds(lines, 21.0)


def test_entry_ids_tell_when() -> None:
    """Milliseconds before the dash."""
    assert milliseconds("1700000000250-3") == 1700000000.25


def test_the_first_step_since_a_moment() -> None:
    """A line that a kill cut short says nothing, a step at the moment itself is none."""
    lines = ['{"step": 1, "time": 10.0}', '{"step": 2, "time": 12.0}', '{"step": 3, "ti', "[]"]
    assert first_step_since(lines, 9.0) == 10.0
    assert first_step_since(lines, 10.0) == 12.0
    assert first_step_since(lines, 12.0) is None


def test_replicas_share_a_stage_and_a_reward_model(tmp_path: Path) -> None:
    """The second of each role reads the first one's stage; both rewards serve one model under the stage's name."""
    spec = spec_of("model", tmp_path / "scorer", tmp_path / "prompts.jsonl", 1)
    settings = settings_of(spec, 4.0)
    assert list(settings) == list(SERVICES)
    assert settings["policy-2"]["queue"]["stage"] == "policy"
    assert settings["reward-2"]["models"] == settings["reward"]["models"]
    assert len(settings["reward"]["models"]) == 1
    assert all(one["queue"]["renew_seconds"] < one["queue"]["lease_seconds"] / 3 for one in settings.values())
