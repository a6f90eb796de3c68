"""The preference service as real processes over loopback gRPC: label, stream, rate, survive kill -9."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from trimtab.clients.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from trimtab.clients.preference import PreferenceClient
from trimtab.common.v1 import common_pb2 as common
from trimtab.preference.v1 import preference_pb2 as wire

ANNOTATOR = """
[[annotators]]
name = "auto"
rule = "sentiment"
campaign = "demo"
"""


class Service:
    """One process of the service over a folder; started again it finds the same database."""

    def __init__(self, folder: Path, toml: str = "", database_url: str = "") -> None:
        self._folder = folder
        self._endpoints = folder / "endpoints.json"
        self._config = folder / "preference.toml"
        self._config.write_text(
            f'database_url = "{database_url or f"sqlite:///{folder}/p.db"}"\nendpoints_file = "{self._endpoints}"\n'
            f"lease_seconds = 60\n{toml}"
        )
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> PreferenceClient:
        self._endpoints.unlink(missing_ok=True)
        command = [sys.executable, "-m", "services.preference", "--config", str(self._config)]
        with (self._folder / "log").open("a") as log:
            self.process = subprocess.Popen(command, stderr=log, text=True)
        ends = time.monotonic() + 60
        while not self._endpoints.exists():
            assert self.process.poll() is None, (self._folder / "log").read_text()
            assert time.monotonic() < ends
            time.sleep(0.02)
        client = PreferenceClient(json.loads(self._endpoints.read_text())["grpc"], attempts=20)
        # Until the database is open calls are answered UNAVAILABLE, which the client tries again (streams not).
        client.statistics()
        return client

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        if self.process is None:
            return 0
        self.process.send_signal(number)
        return self.process.wait(30)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    services: list[Service] = []

    def make(toml: str = "", database_url: str = "") -> Service:
        services.append(Service(tmp_path, toml, database_url))
        return services[-1]

    yield make
    for service in services:
        if service.process is not None and service.process.poll() is None:
            service.stop(signal.SIGKILL)


def item(number: int, *, campaign: str = "demo") -> wire.Item:
    texts = ["Thank you, that is wonderful!", "That is terrible, I hate it."]
    return wire.Item(
        item_id=f"item-{number}",
        prompt=[common.ChatMessage(role="user", content=f"question {number}")],
        candidates=[
            wire.Candidate(
                candidate_id=f"c{n}",
                text=text,
                source=f"policy@{32 - 32 * n}",
                version=common.WeightsVersion(epoch=1, step=32 - 32 * n, digest="ab"),
            )
            for n, text in enumerate(texts)
        ],
        campaign=campaign,
        prompt_id=f"prompt-{number}",
    )


def answer(task: wire.Task, annotator: str, choice: wire.Choice.ValueType) -> wire.Comparison:
    return wire.Comparison(
        task_id=task.task_id,
        item_id=task.item.item_id,
        annotator=annotator,
        first_candidate_id=task.first_candidate_id,
        second_candidate_id=task.second_candidate_id,
        choice=choice,
    )


def until_labelled(client: PreferenceClient, count: int) -> wire.GetStatisticsResponse:
    ends = time.monotonic() + 60
    while (statistics := client.statistics(campaign="demo")).comparisons < count:
        assert time.monotonic() < ends, statistics
        time.sleep(0.02)
    return statistics


def test_upload_annotate_stream_rate_drain(start: Callable[..., Service]) -> None:
    """1,500 items in batches of 200 are labelled by the built-in annotator, streamed whole, rated; exit 0."""
    service = start(ANNOTATOR)
    items = [item(number) for number in range(1500)]
    with service.start() as client:
        for begin in range(0, len(items), 200):
            batch = items[begin : begin + 200]
            assert client.upload(batch).accepted == len(batch)
        again = client.upload(items[:200])
        assert (again.accepted, again.already_present) == (0, 200)
        statistics = until_labelled(client, 1500)
        assert (statistics.items, statistics.tasks_open, statistics.ties) == (1500, 0, 0)
        assert dict(statistics.comparisons_by_annotator) == {"auto": 1500}

        answers = list(client.comparisons(campaign="demo", include_items=True))
        assert len({answer.comparison.task_id for answer in answers}) == 1500
        times = [answer.comparison.recorded_at.ToNanoseconds() for answer in answers]
        assert times == sorted(times)
        originals = {one.item_id: one for one in items}
        for streamed in answers:
            assert streamed.item == originals[streamed.comparison.item_id]
            first = streamed.comparison.choice == wire.CHOICE_FIRST
            said = streamed.comparison
            assert (said.first_candidate_id if first else said.second_candidate_id) == "c0"

        ratings = client.ratings(campaign="demo", subject=wire.RATING_SUBJECT_SOURCE)
        assert [(rating.subject, rating.comparisons) for rating in ratings] == [
            ("policy@32", 1500),
            ("policy@0", 1500),
        ]
        assert ratings[0].low > ratings[1].high
        candidates = client.ratings(campaign="demo", subject=wire.RATING_SUBJECT_CANDIDATE)
        assert len(candidates) == 3000
        assert {rating.subject.partition("/")[2] for rating in candidates[:1500]} == {"c0"}
        assert candidates[0].rating == pytest.approx(1016)  # one win between equals, k = 32
        with pytest.raises(InvalidArgumentError):
            client.ratings(subject=wire.RATING_SUBJECT_UNSPECIFIED)
    assert service.stop() == 0


def test_people_s_tasks_and_their_mistakes(start: Callable[..., Service]) -> None:
    """Leases keep two people apart; what cannot be accepted has the status that the contract says."""
    service = start(ANNOTATOR)  # of another campaign
    with service.start() as client:
        client.upload([item(number, campaign="people") for number in range(3)])
        assert client.next_tasks("ann", campaign="demo", max_tasks=5) == []
        mine = client.next_tasks("ann", max_tasks=2)
        theirs = client.next_tasks("bob", max_tasks=2)
        assert len(mine) == 2
        assert len(theirs) == 1
        assert abs(mine[0].lease_until.seconds - time.time() - 60) < 30
        said = answer(mine[0], "ann", wire.CHOICE_TIE)
        said.confidence = 0.5
        assert client.record([said]) == 1
        assert client.record([said]) == 0
        with pytest.raises(FailedPreconditionError, match="someone else"):
            client.record([answer(theirs[0], "ann", wire.CHOICE_FIRST)])
        unknown = answer(mine[1], "ann", wire.CHOICE_FIRST)
        unknown.task_id = "nothing"
        with pytest.raises(NotFoundError, match="nothing"):
            client.record([unknown])
        with pytest.raises(InvalidArgumentError) as caught:
            client.record([answer(mine[1], "ann", wire.CHOICE_UNSPECIFIED)])
        assert list(caught.value.violations) == ["comparisons[0].choice"]
        with pytest.raises(InvalidArgumentError) as caught:
            client.upload([wire.Item(item_id="x", prompt=item(1).prompt)])
        assert list(caught.value.violations) == ["items[0].candidates"]
        [streamed] = client.comparisons(campaign="people")
        assert streamed.comparison.confidence == 0.5
        assert not streamed.HasField("item")


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_acknowledged_comparisons_survive_kill_9(
    start: Callable[..., Service], database: str, request: pytest.FixtureRequest
) -> None:
    """Killed right after the answer to RecordComparison, the service started again still has it."""
    url = "" if database == "sqlite" else request.getfixturevalue("postgres_server").url()
    service = start(database_url=url)
    for round_number in range(3):
        with service.start() as client:
            client.upload([item(round_number)])
            [task] = client.next_tasks("ann")
            assert client.record([answer(task, "ann", wire.CHOICE_FIRST)]) == 1
            assert service.stop(signal.SIGKILL) == -signal.SIGKILL
    with service.start() as client:
        said = [streamed.comparison.item_id for streamed in client.comparisons()]
        assert said == ["item-0", "item-1", "item-2"]
        assert client.statistics().tasks_open == 0
    assert service.stop() == 0


def test_gold_overlap_and_annotators_over_grpc(start: Callable[..., Service]) -> None:
    """Two annotators get an item that is for two, and each the gold item; the stream and statistics tell them apart."""
    service = start("[assignment]\ngold_every = 1\n")
    with service.start() as client:
        both, gold = item(1), item(2)
        both.annotators = 2
        gold.gold_order.extend(["c0", "c1"])
        client.upload([both, gold])
        for name, choice in (("ann", "c0"), ("bob", "c1")):
            while tasks := client.next_tasks(name):
                first = tasks[0].first_candidate_id == choice
                said = answer(tasks[0], name, wire.CHOICE_FIRST if first else wire.CHOICE_SECOND)
                said.seconds, said.ranking_id = 2.5, "r"
                assert client.record([said]) == 1
        statistics = client.statistics(annotators=True)
        assert (statistics.comparisons, statistics.tasks_open, statistics.agreement) == (2, 0, 0.0)
        assert not client.statistics().annotators
        assert len(list(client.comparisons(include_gold=True))) == 4
        right = {
            one.annotator: (one.gold, one.gold_right, one.median_seconds) for one in statistics.annotators
        }
        assert right == {"ann": (1, 1, 2.5), "bob": (1, 0, 2.5)}
        [first, _] = [streamed.comparison for streamed in client.comparisons()]
        assert (first.seconds, first.ranking_id, first.item_id) == (2.5, "r", "item-1")


def test_killed_while_annotating_it_labels_the_rest(start: Callable[..., Service]) -> None:
    """kill -9 in the middle of the built-in annotator's work loses no item and labels none twice."""
    service = start(ANNOTATOR)
    with service.start() as client:
        client.upload([item(number) for number in range(600)])
        until_labelled(client, 1)
        service.stop(signal.SIGKILL)
    with service.start() as client:
        assert until_labelled(client, 600).tasks_open == 0
        said = [streamed.comparison.task_id for streamed in client.comparisons()]
        assert len(said) == len(set(said)) == 600


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ('[[annotators]]\nname = "auto"\nrule = "nothing"', "annotators.0.rule: "),
        ("lease = 5", "lease: there is no such field"),
    ],
)
def test_mistakes_in_the_configuration_are_one_line(tmp_path: Path, toml: str, says: str) -> None:
    """Exit code 2 and one line that names file, line and field."""
    path = tmp_path / "preference.toml"
    path.write_text(toml)
    command = [sys.executable, "-m", "services.preference", "--config", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert f"{path}:" in done.stderr
    assert says in done.stderr


def test_files_in_and_out(start: Callable[..., Service], tmp_path: Path) -> None:
    """Import, import again, export: the same comparisons come out; a bad row stops it unless skipped."""
    service = start()
    rows = [
        {"prompt": f"question {n}", "chosen": f"good {n}", "rejected": f"bad {n}", "prompt_id": str(n % 7)}
        for n in range(450)
    ]
    source, bad, out = tmp_path / "in.jsonl", tmp_path / "bad.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    bad.write_text('{"prompt": "a", "chosen": "b"}\n')
    with service.start() as client:
        address = json.loads((tmp_path / "endpoints.json").read_text())["grpc"]
        assert client.statistics().items == 0

        def transfer(*arguments: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "services.preference.transfer", *arguments, "--target", address]
            return subprocess.run(command, capture_output=True, text=True, timeout=60)

        new = "450 comparisons, {} of them new to the service"
        assert new.format(450) in transfer("import", str(source), "--campaign", "old").stderr
        assert new.format(0) in transfer("import", str(source), "--campaign", "old").stderr
        failed = transfer("import", str(bad))
        assert failed.returncode == 2
        assert failed.stderr == (
            f"transfer: {bad}:1: rejected: expected text or a list of messages, there is none\n"
        )
        skipped = transfer("import", str(bad), "--skip-bad-rows")
        assert (skipped.returncode, "1 bad ones left out" in skipped.stderr) == (0, True)
        assert f"first {bad}:1: rejected: expected text" in skipped.stderr
        assert transfer("export", str(out), "--text", "--campaign", "old").returncode == 0
        exported = [json.loads(line) for line in out.read_text().splitlines()]
        assert sorted(row["chosen"] for row in exported) == sorted(row["chosen"] for row in rows)
        kept = {row["prompt"]: row for row in exported}
        assert all(kept[row["prompt"]]["prompt_id"] == row["prompt_id"] for row in rows)
