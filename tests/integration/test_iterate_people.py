"""Rounds of `trimtab iterate` that people label, over the real preference service. Models are played by a stand-in."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from orchestrator.demo.collect import Comparisons, DemoPrompt
from orchestrator.iterate import course, state
from orchestrator.iterate.course import Course
from orchestrator.iterate.drive import Material, begun
from orchestrator.iterate.options import IterateRun
from orchestrator.local.layout import RunLayout
from orchestrator.local.progress import LiveView
from services.common.errors import Expired
from services.common.spec.run import RunSpec
from tests.fakes.pages import Pages
from trimtab import AsyncPreferenceClient
from trimtab.clients.preference import PreferenceClient
from trimtab.common.v1 import common_pb2 as common
from trimtab.policy.v1 import policy_pb2 as policy
from trimtab.preference.v1 import preference_pb2 as preference
from trimtab.rollout.v1 import rollout_pb2 as rollout

TRAIN, HELD_OUT, ANSWERS, COMPLETIONS, ROUNDS = 6, 4, 3, 2, 2
PAIRS = TRAIN * 3
Fate = Callable[[str], None]


class Ended(Exception):
    """Somebody pulled the plug."""


class EveryPlaceOnce:
    """Pulls it once at each place that is passed."""

    def __init__(self) -> None:
        self.passed: set[str] = set()

    def __call__(self, place: str) -> None:
        if place not in self.passed:
            self.passed.add(place)
            raise Ended(place)


class FakePolicy:
    """Later versions write longer answers; the same question with the same seed gets the same answer."""

    def __init__(self, version: int, fate: Fate) -> None:
        self._version, self._fate = version, fate

    async def generate(self, prompts: Sequence[rollout.Prompt], **asked: Any) -> list[Any]:
        self._fate(f"generate {self._version} {asked['seed']}")
        required = asked["required_version"]
        assert required is None or required.digest == f"policy-{self._version}"
        span = rollout.VersionSpan(
            version=common.WeightsVersion(digest=f"policy-{self._version}", step=self._version)
        )
        return [
            policy.GeneratedCompletions(
                completions=[
                    rollout.Completion(
                        text="very good " * self._version + _word(one.prompt_id, asked["seed"], nth),
                        versions=[span],
                    )
                    for nth in range(asked["num_completions"])
                ]
            )
            for one in prompts
        ]


def _word(*parts: object) -> str:
    """Of 2 to 8 letters."""
    drawn = _drawn(*parts)
    return drawn[: 2 + int(drawn, 16) % 7]


def _drawn(*parts: object) -> str:
    return hashlib.blake2b(repr(parts).encode(), digest_size=4).hexdigest()


class FakeCrew:
    """What Course asks of its services, with the real preference service; `fate` may end it before and after each."""

    target = ""
    fate: Fate

    def __init__(self, *_: object) -> None:
        self.pages, self.link_command, self.stack, self._served = "http://pages", "people new NAME", self, ""

    async def __aenter__(self) -> FakeCrew:
        self._client = await AsyncPreferenceClient(self.target).__aenter__()
        return self

    async def __aexit__(self, *ended: object) -> None:
        await self._client.__aexit__(*ended)

    async def ready(self, _: str) -> str:
        return ""

    async def job(self, name: str, argv: Sequence[str]) -> None:
        told = dict(itertools.pairwise(argv))
        self.fate(f"before {name} {told['--out']}")
        pairs = Path(told["--pairs"]).read_text()
        Path(told["--out"]).mkdir(exist_ok=True)
        (Path(told["--out"]) / "digest").write_text(hashlib.blake2b(pairs.encode()).hexdigest())
        Path(told["--report"]).write_text(json.dumps({"accuracy": 0.75}))
        self.fate(f"after {name} {told['--out']}")

    async def use(self, name: str, model: str) -> None:
        self.fate(f"use {name} {model}")

    async def use_reward_model(self, folder: Path) -> str:
        self._served = (folder / "digest").read_text()
        self.fate(f"swap {folder}")
        return self._served

    async def reward_digest(self) -> str:
        return self._served

    async def learn(self, spec: Any, out: Path, _: object) -> None:
        self.fate(f"before {out}")
        (out / "model").mkdir(exist_ok=True)
        (out / "published.json").write_text(json.dumps({"digest": f"policy-{int(out.name)}"}))
        (out / "metrics.jsonl").write_text(json.dumps({"objective/kl": float(spec.seed)}) + "\n")
        self.fate(f"after {out}")

    async def policy_client(self, model: str) -> FakePolicy:
        return FakePolicy(int(Path(model).parent.name) if model.endswith("/model") else 0, self.fate)

    async def preference_client(self) -> AsyncPreferenceClient:
        return self._client

    async def comparisons(self) -> Comparisons:
        return Comparisons(self._client, lambda: self.ready(""))


@contextmanager
def annotator(target: str, campaigns: str = "") -> Iterator[None]:
    """Somebody who prefers the longer answer, is undecided between equals, and skips a task now and then."""
    gone = threading.Event()

    def work() -> None:
        with PreferenceClient(target) as client:
            while not gone.wait(0.01):
                tasks = client.next_tasks("ann", campaign=campaigns, max_tasks=50)
                client.record([_label(task) for task in tasks])

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        gone.set()
        thread.join()


def _label(
    task: preference.Task, name: str = "ann", choice: preference.Choice.ValueType | None = None
) -> preference.Comparison:
    return preference.Comparison(
        task_id=task.task_id,
        annotator=name,
        first_candidate_id=task.first_candidate_id,
        second_candidate_id=task.second_candidate_id,
        choice=_liked(task) if choice is None else choice,
    )


def _liked(task: preference.Task) -> preference.Choice.ValueType:
    lengths = {one.candidate_id: len(one.text) for one in task.item.candidates}
    first, second = lengths[task.first_candidate_id], lengths[task.second_candidate_id]
    if int(_drawn(task.task_id), 16) % 5 == 0:
        return preference.CHOICE_SKIP
    if first == second:
        return preference.CHOICE_TIE
    return preference.CHOICE_FIRST if first > second else preference.CHOICE_SECOND


def go(folder: Path, target: str, monkeypatch: pytest.MonkeyPatch, fate: Fate, **told: Any) -> None:
    """One start of the rounds in this folder, to wherever it goes; what was shown goes to `shown.txt` beside it."""
    tables = {
        "steps": 2,
        "seed": 3,
        "model": {"path": "initial"},
        "data": {"prompts": "prompts.jsonl"},
        "iterate": {
            "annotator_rule": "",
            "rounds": ROUNDS,
            "answers": ANSWERS,
            "call_prompts": 4,
            "completions": COMPLETIONS,
            "reward_base": "base",
            **told,
        },
    }
    spec = IterateRun.model_validate(tables)
    prompts = [DemoPrompt(f"p{at}", (("user", f"Question {at}"),), "") for at in range(TRAIN + HELD_OUT)]
    folder.mkdir(exist_ok=True)
    layout = RunLayout(folder)
    with monkeypatch.context() as patch, (folder / "shown.txt").open("a") as shown:
        patch.setattr(FakeCrew, "target", target)
        patch.setattr(FakeCrew, "fate", staticmethod(fate), raising=False)
        patch.setattr(course, "Crew", FakeCrew)
        patch.setattr(course, "make_ready", _as_it_is)
        patch.setattr(course, "fitted", _fits)
        patch.setattr(course, "_PEOPLE_POLL_SECONDS", 0.02)
        patch.setattr(Course, "_keep", _kept(Course._keep, fate))
        view = LiveView(Console(file=shown, width=200))
        material = Material(prompts[:TRAIN], prompts[TRAIN:], "digest")
        asyncio.run(Course(layout, spec, material, begun(layout, spec, material), view).run())


async def _as_it_is(name: str) -> str:
    return name


async def _fits(spec: RunSpec, *, halved: bool) -> RunSpec:
    assert not halved
    return spec


def _kept(keep: Callable[[Course], None], fate: Fate) -> Callable[[Course], None]:
    def kept(self: Course) -> None:
        done = [one.done for one in self._rounds.rounds]
        fate(f"before {done}")
        keep(self)
        fate(f"after {done}")

    return kept


def found(folder: Path) -> tuple[state.Rounds, list[set[str]]]:
    """How far the rounds are (without the time that they took), and each round's pairs."""
    rounds = state.read(folder / state.STATE_FILE)
    assert rounds is not None
    for one in rounds.rounds:
        one.seconds = {}
    paths = sorted((folder / "rounds").glob("*/pairs.jsonl"))
    return rounds, [set(path.read_text().splitlines()) for path in paths]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Pages]:
    pages = Pages(tmp_path)
    try:
        yield pages
    finally:
        ended = pages.stop()
    assert ended == 0


def test_a_round_waits_for_people_and_says_what_is_missing(
    tmp_path: Path, service: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is trained before the last label; what was labelled in between counts, and skipped ones are labels."""

    def wait(missing: str) -> None:
        with pytest.raises(Expired, match=missing):
            go(tmp_path / "run", target, monkeypatch, lambda _: None, label_timeout_seconds=0.05)
        rounds, pairs = found(tmp_path / "run")
        assert ([one.done for one in rounds.rounds], pairs) == ([["sampled"]], [])

    with service.start() as client:
        target = service.target
        wait(rf"campaign round-01: 0 of {PAIRS} compared, {PAIRS} missing; .* --resume")
        for name, choice in (("bob", preference.CHOICE_SKIP), ("ann", preference.CHOICE_FIRST)):
            tasks = client.next_tasks(name, campaign="round-01", max_tasks=5)
            client.record([_label(task, name, choice) for task in tasks])
        # 5 skipped and 5 others: more than half are missing, and counting skips twice would not see it.
        wait(rf"10 of {PAIRS} compared, 8 missing \(ann 5, bob 5\)")
        with annotator(target):
            go(tmp_path / "run", target, monkeypatch, lambda _: None, rounds=1)
    rounds, _ = found(tmp_path / "run")
    assert rounds.rounds[0].done == list(state.PHASES)
    assert (
        0
        < rounds.rounds[0].comparisons
        == len((tmp_path / "run/rounds/01/pairs.jsonl").read_text().splitlines())
    )
    shown = (tmp_path / "run" / "shown.txt").read_text()
    assert "campaign round-01 waits for people: http://pages" in shown
    assert "a personal link: people new NAME" in shown
    assert f"{PAIRS} of {PAIRS} compared, 0 missing (ann {PAIRS - 5}, bob 5)" in shown


def test_a_break_anywhere_changes_nothing(
    tmp_path: Path, service: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounds that are ended before and after every step of every phase end as those that were never ended."""
    fate = EveryPlaceOnce()
    with service.start(), annotator(service.target):
        while True:
            try:
                go(tmp_path / "broken", service.target, monkeypatch, fate)
            except Ended:
                continue
            break
    assert len(fate.passed) > 40
    (tmp_path / "other").mkdir()
    other = Pages(tmp_path / "other")
    with other.start(), annotator(other.target):
        go(tmp_path / "whole", other.target, monkeypatch, lambda _: None)
    assert other.stop() == 0
    broken, whole = found(tmp_path / "broken"), found(tmp_path / "whole")
    assert broken == whole
    rounds, pairs = whole
    assert rounds.stopped == f"all {ROUNDS} rounds are done"
    assert [one.done for one in rounds.rounds] == [list(state.PHASES)] * ROUNDS
    assert [one.win_rate for one in rounds.rounds[-1].against] == [1.0] * ROUNDS
    assert all(pairs)


def test_where_a_round_begins_and_what_holds_it(
    tmp_path: Path, service: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`policy_init` and `reference` are each the initial model or the round before's, and the run says which."""
    first = "rounds/01/model"
    with service.start(), annotator(service.target):
        for begins, policy_at, held, reference_at in (
            ("initial", "initial", "previous", first),
            ("previous", first, "initial", "initial"),
        ):
            folder = tmp_path / begins
            passed: list[str] = []
            told = {"policy_init": begins, "reference": held, "rounds": 2, "stop_on_plateau": False}
            go(folder, service.target, monkeypatch, passed.append, **told)
            used = [place.replace(f"{folder}/", "") for place in passed if place.startswith("use ")]
            assert used == [
                *("use policy initial", "use reference initial"),
                *(f"use policy {policy_at}", f"use reference {reference_at}"),
            ]
            summary = json.loads((folder / "summary.json").read_text())
            assert (summary["policy_init"], summary["reference"]) == (begins, held)
