"""The rounds over the services. Owns the order of things; every service is asked by its public API alone.

    round r   current policy (and earlier ones) ─▶ answers ─▶ preference: comparisons, ratings
                                                                  │ all comparisons so far
              reward service ◀─ swap, while nothing is in flight ─┴─ reward-model job
                    │
              policy, reference, learner: RL from `policy_init`, held to `reference` ─▶ policy@r
                    │
              held-out prompts: policy@r against every earlier version ─▶ plateau, or round r + 1

The swap is a barrier because of where it stands: the learner of the round before has ended with nothing in flight, the
next one has not begun, so every rollout of a round is scored by one model. What is asked of the service afterwards
must be that model's digest, at the start of RL and at its end.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from orchestrator.demo.collect import Sampler, item_of, persist
from orchestrator.demo.files import write_atomically
from orchestrator.demo.progress import Phases, share_done
from orchestrator.demo.ready import fitted, make_ready
from orchestrator.demo.steps import job_command, reward_model_arguments
from orchestrator.iterate import contest, places, state
from orchestrator.iterate.answers import Answered, answered
from orchestrator.iterate.crew import Crew
from orchestrator.iterate.drive import Material
from orchestrator.iterate.labels import Standing, Tenths, wait_for_labels
from orchestrator.iterate.options import IterateRun
from orchestrator.iterate.report import write_report
from orchestrator.iterate.writing import write as write_writing
from orchestrator.iterate.writing import writing
from orchestrator.local.layout import RunLayout
from orchestrator.local.progress import LiveView
from services.common.errors import Corrupted
from services.common.jsonl import json_rows
from services.common.spec.run import RunSpec
from trimtab.common.v1 import common_pb2 as common

EVALUATION = "evaluation"
# Draws for different purposes lie this far apart.
_TRAIN_DRAWS, _HELD_DRAWS = 10_000_000, 500_000_000
_POLL_SECONDS, _PEOPLE_POLL_SECONDS = 0.3, 2.0


class Course:
    """All rounds of one run, from wherever it is."""

    def __init__(
        self,
        layout: RunLayout,
        spec: IterateRun,
        material: Material,
        rounds: state.Rounds,
        view: LiveView,
        *,
        halved: bool = False,
    ) -> None:
        """halved: of whatever model it is the lower half is frozen, if the run file freezes layers at all."""
        self._layout, self._iterate, self._material = layout, spec.iterate, material
        self._spec, self._halved = spec.run(), halved
        self._rounds, self._view = rounds, view
        self._crew: Crew

    async def run(self) -> int:
        """Until the last round or a plateau; the report is written after each round."""
        if self._iterate.learn == "comparisons":
            self._spec = await fitted(self._spec, halved=self._halved)
            await make_ready(self._iterate.reward_base)
        else:
            model = self._spec.model
            made = model.model_copy(update={"path": await make_ready(model.path)})
            self._spec = self._spec.model_copy(update={"model": made})
        async with Crew(self._layout, self._spec, self._iterate, self._view.say) as self._crew:
            while not self._stopped():
                await self._round(self._rounds.current())
        path = write_report(self._layout.root, self._rounds)
        self._view.say(f"{self._rounds.stopped}; report: {path}")
        return 0

    def _stopped(self) -> bool:
        """Looked at before each round, also after a break: it follows from what is on file and what was asked for."""
        told = self._iterate
        self._rounds.stopped = state.why_stopped(self._rounds, told.rounds, plateaus=told.stop_on_plateau)
        self._keep()
        return bool(self._rounds.stopped)

    async def _round(self, one: state.Round) -> None:
        steps: dict[str, Callable[[state.Round, Any], Awaitable[None]]] = {
            "sampled": self._sample,
            "compared": self._compare,
            "rewarded": self._fit_reward_model,
            "trained": self._reinforce,
            "evaluated": self._evaluate,
        }
        if self._iterate.learn == "demonstrations":
            steps = {"trained": self._imitate, "evaluated": self._evaluate}
        self._view.say(f"round {one.number}: policy@{one.number}")
        phases = Phases(self._view, len(steps))
        for name, step in steps.items():
            if name in one.done:
                phases.seconds[name] = one.seconds.get(name, 0.0)
                continue
            with phases.phase(name) as moving:
                await step(one, moving)
            one.seconds[name] = phases.seconds[name]
            one.done.append(name)
            self._keep()

    def _keep(self) -> None:
        state.write(self._layout.root / state.STATE_FILE, self._rounds)

    # ------------------------------------------------------------ sample, compare

    async def _sample(self, one: state.Round, moving: Callable[[str], None]) -> None:
        """The current policy's answers to each training prompt, and some by earlier ones."""
        for version, count in self._shares(one.number):
            await self._answers(version, one.number, count, moving)
        # Now, while it serves: after RL it would have to be started once more.
        await self._held_out(one.number - 1, moving)

    def _shares(self, number: int) -> list[tuple[int, int]]:
        """(version, answers to each prompt): the current one last, since it is what RL goes on with.

        Earlier answers are shared out among earlier versions, the latest first.
        """
        told, current = self._iterate, number - 1
        earlier = min(told.earlier_answers, told.answers - 1) if current else 0
        versions = [current - 1 - nth % current for nth in range(earlier)]
        shares = [(version, versions.count(version)) for version in sorted(set(versions))]
        return [*shares, (current, told.answers - earlier)]

    async def _answers(
        self, version: int, number: int, count: int, moving: Callable[[str], None]
    ) -> list[Answered]:
        prompts, began = self._material.train, time.monotonic()
        path = self._round_folder(number) / f"answers-{version}.jsonl"
        at_once = self._iterate.prompts_in_call(count)
        return await answered(
            path,
            lambda: self._sampler(version, at_once),
            prompts,
            call_prompts=at_once,
            count=count,
            seed=self._spec.seed + _TRAIN_DRAWS * (number + 1) + version,
            heard=lambda done: moving(
                f"{contest.source(version)}: {share_done(done, len(prompts), began, time.monotonic())} prompts"
            ),
        )

    async def _compare(self, one: state.Round, moving: Callable[[str], None]) -> None:
        """Each answer with each other one of its prompt, whoever gave it; decided ones go into pairs.jsonl."""
        told, campaign = self._iterate, f"round-{one.number:02d}"
        by_version = [
            (version, await self._answers(version, one.number, count, moving))
            for version, count in self._shares(one.number)
        ]
        items = [
            item_of(
                prompt,
                f"{campaign}-{at:05d}",
                campaign,
                [
                    (text, contest.source(version), found[at].version)
                    for version, found in by_version
                    for text in found[at].texts
                ],
            )
            for at, prompt in enumerate(self._material.train)
        ]
        each = math.comb(told.answers, 2)
        if told.labels:
            items = items[: max(1, told.labels // each)]
        comparisons = await self._crew.comparisons()
        await comparisons.upload(items)
        await self._labelled(campaign, each * len(items), moving)
        one.comparisons = await comparisons.export(campaign, self._pairs(one.number))

    async def _labelled(self, campaign: str, tasks: int, moving: Callable[[str], None]) -> None:
        """Wait until nothing of a campaign is missing; people are told where they are waited for."""
        told, tell = self._iterate, Tenths(self._view.say)
        if told.by_people:
            self._view.say(f"      campaign {campaign} waits for people: {self._crew.pages}")
            self._view.say(f"      a personal link: {self._crew.link_command}")

        def heard(standing: Standing) -> None:
            moving(str(standing))
            if told.by_people:
                tell(standing)

        await wait_for_labels(
            await self._crew.preference_client(),
            lambda: self._crew.stack.ready("preference"),
            campaign,
            tasks,
            heard,
            timeout_seconds=told.label_seconds(),
            poll_seconds=_PEOPLE_POLL_SECONDS if told.by_people else _POLL_SECONDS,
        )

    # ------------------------------------------------------------ learn

    async def _fit_reward_model(self, one: state.Round, moving: Callable[[str], None]) -> None:
        """A reward model on the comparisons of all rounds so far."""
        told, folder = self._iterate, self._round_folder(one.number)
        together = folder / "all_pairs.jsonl"
        parts = [self._pairs(number).read_text(encoding="utf-8") for number in range(1, one.number + 1)]
        write_atomically(together, "".join(parts))
        moving(f"{sum(part.count(chr(10)) for part in parts)} comparisons")
        await self._job(
            "reward-model",
            *reward_model_arguments(
                together, folder, told, seed=self._spec.seed, train_embeddings=told.train_embeddings
            ),
        )
        report = json.loads((folder / "reward_model.json").read_text())
        one.reward_accuracy = report["accuracy"]

    async def _reinforce(self, one: state.Round, _moving: Callable[[str], None]) -> None:
        """RL with the round's reward model, between the two looks at which model that is."""
        number, folder = one.number, self._round_folder(one.number)
        spec = self._round_spec(number)
        # What the learner begins with, or its first rollouts would be of a version that it does not know.
        await self._crew.use("policy", spec.model.path)
        held_to = 0 if self._iterate.reference == "initial" else number - 1
        await self._crew.use("reference", self._model(held_to))
        one.reward_digest = await self._crew.use_reward_model(folder / "reward_model")
        await self._crew.learn(spec, folder, self._view)
        if await self._crew.reward_digest() != one.reward_digest:
            raise Corrupted(f"round {number}: the reward model was changed while the round was trained")
        one.policy_digest = json.loads((folder / "published.json").read_text())["digest"]
        rows = [row for _, row in json_rows(folder / "metrics.jsonl")]
        one.kl = statistics.fmean(row["objective/kl"] for row in rows[-5:]) if rows else None

    async def _imitate(self, one: state.Round, moving: Callable[[str], None]) -> None:
        """Supervised fine-tuning on demonstrations instead of steps two and three."""
        told, folder = self._iterate, self._round_folder(one.number)
        folder.mkdir(parents=True, exist_ok=True)
        # Not splitlines: a text may have the other ends of lines in it that Unicode knows.
        lines = Path(told.demonstrations).read_text(encoding="utf-8").split("\n")
        chosen = [line for line in lines if line.strip()][: told.labels or None]
        write_atomically(folder / "demonstrations.jsonl", "".join(f"{line}\n" for line in chosen))
        one.comparisons = len(chosen)
        moving(f"{len(chosen)} demonstrations")
        await self._job(
            "sft",
            *("--data", str(folder / "demonstrations.jsonl")),
            *("--model", self._round_spec(one.number).model.path, "--out", str(folder / "model")),
            *("--report", str(folder / "sft.json"), "--epochs", str(told.sft_epochs)),
            *("--learning-rate", str(told.sft_learning_rate), "--seed", str(self._spec.seed)),
        )

    async def _job(self, name: str, *arguments: str) -> None:
        await self._crew.stack.job(name, job_command(name, *arguments))

    # ------------------------------------------------------------ evaluate

    async def _evaluate(self, one: state.Round, moving: Callable[[str], None]) -> None:
        """The new version against every earlier one on the held-out prompts, and everybody's ratings."""
        versions = list(range(one.number + 1))
        held = {version: await self._held_out(version, moving) for version in versions}
        items = [
            item_of(
                prompt,
                f"held-{one.number}v{older}-{at:05d}-{nth}",
                EVALUATION,
                [
                    (before, contest.source(older), held[older][at].version),
                    (after, contest.source(one.number), held[one.number][at].version),
                ],
            )
            for older in versions[:-1]
            for at, prompt in enumerate(self._material.held_out)
            for nth, (before, after) in enumerate(
                zip(held[older][at].texts, held[one.number][at].texts, strict=True)
            )
        ]
        comparisons = await self._crew.comparisons()
        await comparisons.upload(items)
        each = len(self._material.held_out) * self._iterate.completions
        await self._labelled(EVALUATION, each * math.comb(one.number + 1, 2), moving)
        one.against = contest.results(await self._verdicts(), one.number)
        ratings = await comparisons.ratings(EVALUATION)
        write_atomically(self._layout.root / "ratings.json", json.dumps(ratings, indent=2) + "\n")
        prompts = [prompt.text for prompt in self._material.held_out]
        wrote = writing(prompts, {version: [one.texts for one in held[version]] for version in versions})
        write_writing(self._layout.root, wrote)
        write_report(self._layout.root, self._rounds)
        previous = one.previous()
        if previous is not None:
            self._view.say(
                f"      beats the version before in {previous.win_rate:.3f} "
                f"({previous.low:.3f} to {previous.high:.3f}) of {previous.comparisons} comparisons; "
                f"{wrote.variety():.2f} of the initial model's variety"
            )

    async def _held_out(self, version: int, moving: Callable[[str], None]) -> list[Answered]:
        """A version's answers to the held-out prompts: asked for once, then on file."""
        prompts, began = self._material.held_out, time.monotonic()
        count = self._iterate.completions
        at_once = self._iterate.prompts_in_call(count)
        return await answered(
            self._layout.root / "held_out" / f"answers-{version}.jsonl",
            lambda: self._sampler(version, at_once),
            prompts,
            call_prompts=at_once,
            count=count,
            seed=self._spec.seed + _HELD_DRAWS + version,
            heard=lambda done: moving(
                f"{contest.source(version)}: {share_done(done, len(prompts), began, time.monotonic())} prompts"
            ),
        )

    async def _verdicts(self) -> list[contest.Verdict]:
        client = await self._crew.preference_client()

        async def call() -> list[contest.Verdict]:
            found = []
            async for answer in client.comparisons(campaign=EVALUATION, include_items=True):
                one = contest.verdict(answer)
                if one is not None:
                    found.append(one)
            return found

        return await persist(call, lambda: self._crew.stack.ready("preference"))

    # ------------------------------------------------------------ where things are

    def _round_spec(self, number: int) -> RunSpec:
        return places.round_spec(self._layout.root, self._spec, number, self._iterate.policy_init)

    def _round_folder(self, number: int) -> Path:
        return places.round_folder(self._layout.root, number)

    def _pairs(self, number: int) -> Path:
        return self._round_folder(number) / "pairs.jsonl"

    def _model(self, version: int) -> str:
        return places.model_of(self._layout.root, self._spec, version)

    async def _sampler(self, version: int, at_once: int) -> Sampler:
        """The policy service with this version, and a sampler of so many prompts at once that no other answers."""
        digest = self._rounds.rounds[version - 1].policy_digest if version else ""
        client = await self._crew.policy_client(self._model(version))
        return Sampler(
            client,
            lambda: self._crew.stack.ready("policy"),
            at_once,
            self._spec.sampling.max_new_tokens,
            common.WeightsVersion(digest=digest) if digest else None,
        )
