"""How versions write, and what of it the page shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.iterate import state
from orchestrator.iterate.report import write_report
from orchestrator.iterate.writing import FILE, SAMPLES, read, write, writing
from services.common.errors import Corrupted

PROMPTS = [f"prompt {at}" for at in range(SAMPLES + 1)]
FIRST = [["a b c", "d e"]] * len(PROMPTS)
"""Three different pairs of words, five times each."""
LAST = [["a b a b", "<script>x</script>"]] * len(PROMPTS)


def test_variety_is_distinct_pairs_of_words_pooled_over_a_versions_answers() -> None:
    """3 of 15 pairs at first, 2 of 15 later: two thirds of the variety. Lengths are in characters."""
    found = writing(PROMPTS, {1: LAST, 0: FIRST})
    assert [one.version for one in found.versions] == [0, 1]
    assert [one.distinct for one in found.versions] == pytest.approx([3 / 15, 2 / 15])
    assert found.variety() == pytest.approx(2 / 3)
    assert [one.characters for one in found.versions] == [4.0, 12.5]
    assert [one.prompt for one in found.samples] == PROMPTS[:SAMPLES]
    assert found.samples[0].answers == ["a b c", "a b a b"]


def test_the_page_shows_variety_and_answers_as_text(tmp_path: Path) -> None:
    """A model's markup is shown, never read; the summary has the figures."""
    answers = {0: FIRST, 1: [["<script>x</script> <b>y"]] * len(PROMPTS)}
    write(tmp_path, writing(PROMPTS, answers))
    rounds = state.Rounds(reference="initial", policy_init="previous", rounds=[state.Round(number=1)])
    page = write_report(tmp_path, rounds).read_text()
    assert "&lt;script&gt;x&lt;/script&gt; &lt;b&gt;y" in page
    assert "<script" not in page
    assert page.count("prompt 0") == 1
    assert json.loads((tmp_path / "summary.json").read_text())["distinct"] == pytest.approx([0.2, 0.2])


def test_the_report_command_writes_the_page_of_rounds(tmp_path: Path) -> None:
    """Of a run of rounds, one of them under way, it is the page that the run itself writes, and no other summary."""
    begun = state.Round(number=2, done=["sampled"])
    rounds = state.Rounds(
        reference="initial",
        policy_init="previous",
        rounds=[state.Round(number=1, done=[*state.PHASES]), begun],
    )
    state.write(tmp_path / state.STATE_FILE, rounds)
    (tmp_path / "run_uid").write_text("u")
    names = ("report.html", "summary.json")
    write_report(tmp_path, rounds)
    before = [(tmp_path / name).read_text() for name in names]
    told = CliRunner().invoke(app, ["report", str(tmp_path)], catch_exceptions=False)
    assert told.output.strip() == str(tmp_path / "report.html")
    assert [(tmp_path / name).read_text() for name in names] == before


def test_a_run_without_answers_yet_has_a_page_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    """Demonstration runs that ended early have no such file; a torn one is an error in one line."""
    rounds = state.Rounds(reference="initial", policy_init="previous")
    assert "How they write" not in write_report(tmp_path, rounds).read_text()
    (tmp_path / FILE).write_text('{"versions": [')
    with pytest.raises(Corrupted, match=r"writing\.json is damaged"):
        read(tmp_path)
