"""The request log: what is written, what never is, and that nobody waits for it."""

from __future__ import annotations

import json
import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from pydantic import ValidationError
from structlog.testing import capture_logs

from services.common.errors import ConfigError, Corrupted
from services.reward.request_log import RequestLog, RequestLogSpec, RotatedFile
from services.reward.rewards.base import ScoreOutcome, ScoreRow, TokenIds

ROWS = [
    ScoreRow(
        messages=(("user", "call me on 0123 456789"),), completion="Sure, Zoë!\n", columns={"answer": "42"}
    ),
    ScoreRow(messages=(), completion="", ids=TokenIds(prompt=(1, 2, 3), completion=(4,), fingerprint="f")),
]
OUTCOMES = [
    ScoreOutcome(value=0.5, truncated_tokens=7, components={"a": 1.0}, steps=(0.5, 0.25)),
    ScoreOutcome(error=Corrupted("the score of 'call me' is nan")),
]


def written(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]


def dropped(cause: str) -> float:
    return REGISTRY.get_sample_value("trimtab_reward_request_log_dropped_rows_total", {"cause": cause}) or 0.0


def log_once(spec: RequestLogSpec) -> list[dict[str, Any]]:
    assert spec.path is not None
    log = RequestLog(spec)
    log.offer("hh", "d1", ROWS, OUTCOMES, client="team", request_id="r-1")
    log.close()
    return written(spec.path)


def until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < ends, "waited in vain"
        time.sleep(0.002)


def test_lines_by_default_hold_no_text(tmp_path: Path) -> None:
    """Each row is a line of ids, lengths and result; texts, columns and errors' words are not in it."""
    first, second = log_once(RequestLogSpec(path=tmp_path / "log.jsonl"))
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "request_id": "r-1",
        "client": "team",
        "model": "hh",
        "digest": "d1",
        "row": 0,
        "prompt_characters": 22,
        "completion_characters": 11,
        "truncated_tokens": 7,
        "value": 0.5,
        "components": {"a": 1.0},
        "steps": [0.5, 0.25],
    }
    assert (second["row"], second["prompt_tokens"], second["completion_tokens"]) == (1, 3, 1)
    assert second["error"] == "DATA_LOSS"
    assert "value" not in second
    assert "call me" not in (tmp_path / "log.jsonl").read_text()


def test_a_row_names_what_scored_it(tmp_path: Path) -> None:
    """Where an outcome names a digest, as behind a remote that was swapped, the line has that one."""
    log = RequestLog(RequestLogSpec(path=tmp_path / "log"))
    outcomes = [ScoreOutcome(value=0.5, digest="d2"), ScoreOutcome(error=Corrupted("no"))]
    log.offer("m", "d1", ROWS, outcomes)
    log.close()
    assert [line["digest"] for line in written(tmp_path / "log")] == ["d2", "d1"]


def test_texts_can_be_kept_with_patterns_replaced(tmp_path: Path) -> None:
    """Kept texts are whole but for what a pattern matches, cut at the limit; a line stays a line."""
    spec = RequestLogSpec(
        path=tmp_path / "log.jsonl", texts="keep", patterns=(r"\d{4} \d{6}",), max_characters=20
    )
    first, second = log_once(spec)
    assert first["messages"] == [{"role": "user", "content": "call me on [redacted"}]
    assert first["completion"] == "Sure, Zoë!\n"
    assert "completion" not in second


def test_a_text_that_a_pattern_does_not_finish_is_replaced_as_a_whole(tmp_path: Path) -> None:
    """A caller's text that makes a pattern exponential costs its own words and a second, counted, nothing else."""
    before = REGISTRY.get_sample_value("trimtab_reward_request_log_unread_texts_total")
    assert before is not None
    log = RequestLog(RequestLogSpec(path=tmp_path / "log", texts="keep", patterns=("(a|aa)+$",)))
    rows = [ScoreRow(messages=(), completion=text) for text in ("a" * 5000 + "!", "baa")]
    log.offer("m", "d", rows, [ScoreOutcome(value=0.0)] * 2)
    log.close(30)
    assert [line["completion"] for line in written(tmp_path / "log")] == ["[redacted]", "b[redacted]"]
    assert REGISTRY.get_sample_value("trimtab_reward_request_log_unread_texts_total") == before + 1


def test_hashes_join_only_under_the_same_key(tmp_path: Path) -> None:
    """Equal texts have equal hashes under one key; without a key another start has others."""
    one, two, three, four = (
        log_once(RequestLogSpec.model_validate({"path": tmp_path / name, "texts": "hash", "hash_key": key}))[
            0
        ]
        for name, key in (("a", "k"), ("b", "k"), ("c", None), ("d", None))
    )
    assert one["completion"] == two["completion"]
    assert len({one["completion"], three["completion"], four["completion"]}) == 3
    assert len(one["completion"]) == 32


def test_half_a_character_is_no_obstacle(tmp_path: Path) -> None:
    """A lone surrogate, which JSON bodies may bring, is written and hashed like any text."""
    row = [ScoreRow(messages=(), completion="\ud83d")]
    for texts in ("keep", "hash"):
        log = RequestLog(RequestLogSpec.model_validate({"path": tmp_path / texts, "texts": texts}))
        log.offer("m", "d", row, [ScoreOutcome(value=1.0)])
        log.close()
        assert len(written(tmp_path / texts)) == 1


def test_whole_calls_are_sampled(tmp_path: Path) -> None:
    """With share 0.25 a call is written when its draw is below that, with all of its rows."""
    draws = iter([0.9, 0.1, 0.25, 0.24])
    log = RequestLog(RequestLogSpec(path=tmp_path / "log", share=0.25), chance=lambda: next(draws))
    for number in range(4):
        log.offer("m", "d", ROWS, OUTCOMES, request_id=str(number))
    log.close()
    assert [line["request_id"] for line in written(tmp_path / "log")] == ["1", "1", "3", "3"]


def test_files_rotate_and_the_oldest_goes(tmp_path: Path) -> None:
    """Full files move to .1 and .2; with three in all nothing else is left, and no line is cut."""
    path = tmp_path / "log"
    file = RotatedFile(path, max_bytes=100, files=3)
    file.open()
    for number in range(10):
        file.write([json.dumps({"n": number, "fill": "x" * 25})])
    file.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log", "log.1", "log.2"]
    numbers = [[line["n"] for line in written(tmp_path / name)] for name in ("log.2", "log.1", "log")]
    assert numbers == [[4, 5], [6, 7], [8, 9]]


def test_one_file_alone_begins_anew(tmp_path: Path) -> None:
    """With one file in all a full one is begun again."""
    file = RotatedFile(tmp_path / "log", max_bytes=40, files=1)
    file.open()
    for number in range(5):
        file.write([json.dumps({"n": number, "fill": "x" * 20})])
    file.close()
    assert [line["n"] for line in written(tmp_path / "log")] == [4]


def test_a_restart_appends(tmp_path: Path) -> None:
    """A second start adds to the file that is there."""
    spec = RequestLogSpec(path=tmp_path / "log")
    assert len(log_once(spec)) == 2
    assert len(log_once(spec)) == 4


def test_its_owner_alone_can_read_it(tmp_path: Path) -> None:
    """The file holds what users wrote: nobody else of the machine may read it."""
    log_once(RequestLogSpec(path=tmp_path / "log"))
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o600


def test_a_full_queue_drops_and_counts(tmp_path: Path) -> None:
    """While the disk hangs, offers return at once: what fits waits and is written later, the rest is counted."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader: list[bytes] = []
    opened = threading.Event()

    def read() -> None:
        with pipe.open("rb") as file:
            opened.wait(30)
            reader.append(file.read())

    thread = threading.Thread(target=read)
    thread.start()
    log = RequestLog(RequestLogSpec(path=pipe, max_queued_rows=20, texts="keep", max_characters=10**7))
    # More than a pipe holds: the writer hangs in it.
    big = [ScoreRow(messages=(), completion="x" * 300_000)]
    before = dropped("full")
    log.offer("m", "d", big, [ScoreOutcome(value=0.0)])
    for _ in range(15):
        log.offer("m", "d", ROWS, OUTCOMES)
    # 19 places are left beside the one in the pipe: 9 calls of 2 rows.
    assert dropped("full") == before + 2 * 6
    opened.set()
    log.close(30)
    thread.join(30)
    assert reader[0].count(b"\n") == 1 + 2 * 9


@pytest.mark.parametrize(
    "row",
    [
        ScoreRow(messages=(), completion="x" * 2000),
        ScoreRow(messages=(("user", "x" * 2000),), completion=""),
        ScoreRow(messages=(), completion="", columns={"answer": "x" * 2000}),
        ScoreRow(messages=(), completion="", ids=TokenIds(prompt=(7,) * 50, completion=(), fingerprint="f")),
        ScoreRow(messages=(), completion="", completion_ids=[7] * 500),
    ],
    ids=["completion", "messages", "columns", "ids", "completion_ids"],
)
def test_what_waits_is_bounded(tmp_path: Path, row: ScoreRow) -> None:
    """A call that holds more than may wait is dropped at once, however few its rows; what is not written counts too."""
    before = dropped("full")
    log = RequestLog(RequestLogSpec(path=tmp_path / "log", max_queued_mib=0.001))
    log.offer("m", "d", [row], [ScoreOutcome(value=0.0)])
    log.close()
    assert dropped("full") == before + 1
    assert written(tmp_path / "log") == []


def test_a_full_disk_costs_lines_and_nothing_else() -> None:
    """On a device without room rows are counted as dropped, and the log goes on."""
    before = dropped("write")
    log = RequestLog(RequestLogSpec(path=Path("/dev/full")))
    for _ in range(3):
        log.offer("m", "d", ROWS, OUTCOMES)
    until(lambda: dropped("write") == before + 6)
    log.close()


def test_after_a_failure_lines_are_whole_again(tmp_path: Path) -> None:
    """Half a line that a failure left is ended before the next one is written."""
    path = tmp_path / "log"
    path.write_bytes(b'{"half": ')
    file = RotatedFile(path, max_bytes=1000, files=2)
    with capture_logs() as lines:
        file.failed(OSError("no room"))
        file.failed(OSError("no room"))
    file.write(['{"n": 1}'])
    file.write(['{"n": 2}'])
    file.close()
    assert path.read_text().splitlines() == ['{"half": ', '{"n": 1}', '{"n": 2}']
    assert len(lines) == 1


def test_off_and_closed_logs_do_nothing(tmp_path: Path) -> None:
    """Without a path nothing is made; after close() rows are counted as dropped."""
    off = RequestLog(RequestLogSpec())
    off.offer("m", "d", ROWS, OUTCOMES)
    off.close()
    log = RequestLog(RequestLogSpec(path=tmp_path / "log"))
    log.close()
    before = dropped("closed")
    log.offer("m", "d", ROWS, OUTCOMES)
    assert dropped("closed") == before + 2


def test_mistakes_are_told_at_the_start(tmp_path: Path) -> None:
    """A folder that is not there and a pattern that is none are one clear line each."""
    with pytest.raises(ConfigError, match=r"request_log.path .*nowhere.*: No such file"):
        RequestLog(RequestLogSpec(path=tmp_path / "nowhere" / "log"))
    with pytest.raises(ValidationError, match="no regular expression"):
        RequestLogSpec(patterns=("(",))
