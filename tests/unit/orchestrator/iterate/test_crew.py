"""Where people compare in a run of rounds, and with which links."""

from __future__ import annotations

import shlex
import socket
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from typer.testing import CliRunner

from orchestrator.iterate.crew import Crew
from orchestrator.iterate.options import IterateSpec
from orchestrator.local.layout import RunLayout
from services.common.spec.run import RunSpec
from services.preference import accounts
from services.preference.database import Database
from services.preference.people import app


def crew(folder: Path, heard: Callable[[str], None] = lambda _: None, **told: int) -> Crew:
    """Of a run that people label, its preference service configured as at its start."""
    spec = RunSpec.model_validate(
        {"model": {"path": "m"}, "data": {"prompts": "p"}, "reward_model": "rule:sentiment"}
    )
    layout = RunLayout.prepare(folder, resume=folder.exists())
    made = Crew(layout, spec, IterateSpec.model_validate({"annotator_rule": "", **told}), heard)
    made.stack.configure("preference")
    return made


def test_the_link_that_is_shown_opens_every_phase(tmp_path: Path) -> None:
    """The command makes a link to the run's pages, for the tasks of all its campaigns: rounds and evaluations."""
    shown = crew(tmp_path / "run")
    words = shlex.split(shown.link_command)
    assert words[:4] == ["python", "-m", "services.preference.people", "new"]
    done = CliRunner().invoke(app, words[3:])
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(f"{shown.pages}/join#")
    database = Database(f"sqlite:///{tmp_path / 'run' / 'preference.db'}")
    assert [person.campaign for person in database.transaction(accounts.everybody)] == [""]
    database.close()


def test_a_resume_finds_people_where_they_were(tmp_path: Path) -> None:
    """Its pages are at the port of before, which links and unsent answers are bound to; where somebody else has it
    by now that is said, and there is another one; a port that is asked for is taken."""
    heard: list[str] = []
    first = crew(tmp_path / "run").pages
    assert [crew(tmp_path / "run", heard.append).pages for _ in range(2)] == [first] * 2
    assert heard == []
    port = urlsplit(first).port
    with socket.create_server(("127.0.0.1", port or 0)):
        assert crew(tmp_path / "run", heard.append).pages != first
    [line] = heard
    assert line.startswith(f"port {port}, where people compared, is taken")
    assert crew(tmp_path / "run", label_port=12_345).pages == "http://127.0.0.1:12345"
