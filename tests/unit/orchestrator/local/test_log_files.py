"""Logs that are set aside while their writers go on."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator import cluster_cli
from orchestrator.cli import app
from orchestrator.local.layout import RunLayout
from orchestrator.local.log_files import keep_short, older, rotate
from orchestrator.local.processes import last_line
from orchestrator.local.show import show_logs


def test_a_long_log_is_set_aside_and_its_writer_goes_on(tmp_path: Path) -> None:
    """Every line stands once, in order, in the log or in what was set aside of it; the oldest are dropped."""
    log = tmp_path / "policy.log"
    with log.open("ab", buffering=0) as writer:
        for number in range(40):
            writer.write(f"line {number}\n".encode())
            rotated = rotate(log, most_bytes=60, keep=3)
            assert rotated == (log.stat().st_size == 0)
    files = [older(log, 3), older(log, 2), older(log, 1), log]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    lines = "".join(file.read_text() for file in files).splitlines()
    assert lines == [f"line {number}" for number in range(40 - len(lines), 40)]
    assert len(lines) > 20
    assert all(file.stat().st_size < 80 for file in files)
    assert not rotate(log, most_bytes=60)
    assert not rotate(tmp_path / "none.log", most_bytes=60)


def test_a_log_that_cannot_be_set_aside_stays(tmp_path: Path) -> None:
    """Nothing of it is lost, and nothing half-written is left."""
    log = tmp_path / "policy.log"
    log.write_text("x" * 100)
    older(log, 1).mkdir()
    with pytest.raises(OSError, match=r"policy\.log\.1"):
        rotate(log, most_bytes=60, keep=1)
    assert log.stat().st_size == 100
    assert sorted(path.name for path in tmp_path.iterdir()) == ["policy.log", "policy.log.1"]


async def test_all_logs_of_a_run_are_kept_short(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The services' and the queue server's; one that cannot be is told of and does not stop the others."""
    layout = RunLayout.prepare(tmp_path / "run")
    bad, good, queue = layout.log("bad"), layout.log("good"), layout.queue / "server.log"
    for log in (bad, good, queue):
        log.write_text("x" * 100)
    older(bad, 2).mkdir()
    older(bad, 1).write_text("before")
    with caplog.at_level(logging.WARNING):
        looking = asyncio.create_task(keep_short(layout.log_files, most_bytes=60))
        async with asyncio.timeout(10):
            while good.stat().st_size or queue.stat().st_size or not caplog.records:  # noqa: ASYNC110 - files
                await asyncio.sleep(0.01)
        looking.cancel()
    assert bad.stat().st_size == 100
    [record] = caplog.records
    assert record.getMessage().startswith(f"cannot set {bad} aside: ")


def test_readers_see_through_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The last line of a program that began before; the last lines, wherever they stand."""
    layout = RunLayout.prepare(tmp_path / "run")
    log = layout.log("policy")
    log.write_text("one\ntwo\n")
    start = log.stat().st_size
    assert last_line(log, start) == ""
    rotate(log, most_bytes=1)
    with log.open("a") as writer:
        writer.write("4\n")
    assert last_line(log, start) == "4"
    show_logs(layout, "policy", lines=2, follow=False)
    assert capsys.readouterr().out == "two\n4\n"


def test_all_names_all_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the help says, of a run on a cluster too; without a service it is the same."""
    layout = RunLayout.prepare(tmp_path / "run")
    for name in ("policy", "reward"):
        layout.log(name).write_text(f"of {name}\n")
    for words in (["all"], []):
        shown = CliRunner().invoke(app, ["logs", *words, "--out", str(layout.root)])
        assert shown.output == "policy     of policy\nreward     of reward\n"
    asked: list[str] = []
    monkeypatch.setattr(cluster_cli, "logs", lambda _run, service, *_args, **_more: asked.append(service))
    CliRunner().invoke(app, ["logs", "all", "--cluster", "helpful"])
    assert asked == [""]
