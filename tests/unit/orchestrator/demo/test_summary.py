"""`summary.json`: which figures it takes, which it refuses, and how it reaches the disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from orchestrator.demo.summary import RolloutCounts, Summary, read_summary, write_summary
from services.common.errors import Corrupted, NotFound
from tests.unit.orchestrator.demo.made_up import summary_fields


def test_a_summary_survives_the_disk(tmp_path: Path) -> None:
    """What was written is what is read, and nothing else is left in the folder."""
    summary = Summary(**summary_fields())
    assert write_summary(tmp_path, summary) == tmp_path / "summary.json"
    assert read_summary(tmp_path) == summary
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_the_file_has_every_promised_figure(tmp_path: Path) -> None:
    """The names that other programs read stand in the file as they were promised."""
    write_summary(tmp_path, Summary(**summary_fields()))
    promised = {
        "seconds", "steps", "win_rate", "win_rate_low", "comparisons", "distinct_ratio", "length_ratio",
        "score_before", "score_after", "sequence_kl", "reward_model_accuracy", "rollouts", "overhead_share",
        "peak_memory_gib", "tokens_per_second", "versions", "seed", "phases",
    }  # fmt: skip
    written = json.loads((tmp_path / "summary.json").read_text())
    assert promised <= set(written)
    assert set(written["rollouts"]) == {"admitted", "trained", "stale", "failed", "in_flight"}


def test_rollouts_must_add_up() -> None:
    """A group that is neither trained, stale, failed nor in flight was lost, and the summary says so."""
    assert RolloutCounts(admitted=10, trained=6, stale=2, failed=1, in_flight=1).admitted == 10
    with pytest.raises(ValidationError, match="10 groups were admitted but 9 are accounted for"):
        RolloutCounts(admitted=10, trained=6, stale=2, failed=1, in_flight=0)


@pytest.mark.parametrize(
    "change",
    [
        {"win_rate": 1.2},
        {"win_rate": 0.5, "win_rate_low": 0.6},
        {"score_after": float("nan")},
        {"sequence_kl": float("inf")},
        {"seconds": -1},
        {"comparisons": 0},
        {"unknown": 1},
    ],
)
def test_impossible_figures_are_refused(change: dict[str, Any]) -> None:
    """Shares outside 0 to 1, an interval beside its rate, NaN, negative times, unknown names: errors."""
    with pytest.raises(ValidationError):
        Summary(**summary_fields(**change))


def test_reading_says_what_is_wrong(tmp_path: Path) -> None:
    """A missing file and a broken one are told apart, each in one line."""
    with pytest.raises(NotFound, match=r"summary\.json: no such file"):
        read_summary(tmp_path)
    fields = summary_fields(steps=-3)
    (tmp_path / "summary.json").write_text(json.dumps(fields))
    with pytest.raises(Corrupted, match=r"summary\.json: steps: ") as caught:
        read_summary(tmp_path)
    assert "\n" not in str(caught.value)


def test_writing_into_no_folder_is_a_clear_error(tmp_path: Path) -> None:
    """The error names the folder that is not there."""
    with pytest.raises(NotFound, match="absent: no such folder"):
        write_summary(tmp_path / "absent", Summary(**summary_fields()))


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the rename fails, the reader still has the old summary, and no scrap stays behind."""
    write_summary(tmp_path, Summary(**summary_fields(seed=1)))

    def refuse(self: Path, target: Path) -> Path:
        raise PermissionError(13, "no", str(target))

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(PermissionError):
        write_summary(tmp_path, Summary(**summary_fields(seed=2)))
    assert read_summary(tmp_path).seed == 1
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
