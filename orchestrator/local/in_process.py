"""All stages of a run in this process, over the in-memory twin of the queue: for a debugger, and to reproduce.

The one module of the orchestrator that may import services (a named exception of the import contract). One
thread does all model work, so the same spec gives the same numbers; breakpoints work anywhere.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from orchestrator.local.services import check_scored
from services.common.errors import ConfigError
from services.common.spec.rewards import reward_tables
from services.common.spec.run import RunSpec
from services.common.stages.memory_stages import MemoryServer, MemoryStages
from services.common.worker import StageProcessor, StageWorker
from services.learner.config import LearnerConfig
from services.learner.intake import Intake
from services.learner.offline.batches import NoQueue
from services.learner.offline.loading import offline_learner
from services.learner.pretraining import load_texts
from services.learner.prompts import load_prompts
from services.learner.run import Run
from services.learner.training import Trainer
from services.learner.weights import PublishedWeights
from services.models.loading import load_language_model
from services.policy.engines.decoding import decoding_of
from services.policy.engines.transformers_engine import TransformersEngine
from services.policy.generation import Policy, Update
from services.policy.worker import PolicyProcessor
from services.reference.logprobs import ReferenceModel
from services.reference.worker import ReferenceProcessor
from services.reward.config import RewardConfig
from services.reward.rewards.opening import SourceOpener
from services.reward.scoring import RewardModels
from services.reward.shadow import ShadowRunner
from services.reward.worker import RewardProcessor

RUN_UID = "in-process"
_MAX_NEW_TOKENS = 1 << 16
_TOKEN_BUDGET = 4096


def run_in_process(spec: RunSpec, out: Path) -> int:
    """Train to the end; 0. Raises the error tree."""
    check_scored(spec)
    asyncio.run(_train(spec, out))
    return 0


async def _train(spec: RunSpec, out: Path) -> None:
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="models") as executor:
        if spec.offline:
            return await _offline(spec, out, executor)
        server = MemoryServer()
        policy = _policy(spec)
        run = _learner(spec, out, server, policy, executor)
        rewards = ExitStack()
        workers = [
            _worker(server, stage, _processor(spec, stage, policy, rewards), executor, spec)
            for stage in dict.fromkeys(spec.rollout.slip)
        ]
        working = [asyncio.create_task(worker.run()) for worker in workers]
        try:
            await run.train()
        finally:
            await asyncio.gather(*(worker.drain() for worker in workers))
            await asyncio.gather(*working)
            rewards.close()  # functions run in processes of their own


async def _offline(spec: RunSpec, out: Path, executor: Executor) -> None:
    loaded, trainer, batches = offline_learner(spec)
    weights = PublishedWeights(tokenizer_fingerprint=loaded.facts.tokenizer_fingerprint)
    run = Run(
        LearnerConfig(run=spec, out=out),
        loaded=loaded,
        trainer=trainer,
        intake=batches,
        queue=NoQueue(),
        weights=weights,
        executor=executor,
        announce=lambda: None,
    )
    await run.train()


def _worker(
    server: MemoryServer, stage: str, processor: StageProcessor, executor: Executor, spec: RunSpec
) -> StageWorker:
    queue = MemoryStages(server, consumer=stage)
    return StageWorker(queue, stage, processor, executor, batch_groups=spec.rollout.batch_groups)


def _policy(spec: RunSpec) -> Policy:
    if spec.engine.kind != "transformers":
        raise ConfigError(
            f"--in-process generates in this process: engine.kind = {spec.engine.kind} is elsewhere"
        )
    loaded = load_language_model(spec.model)
    engine = TransformersEngine(loaded, decoding=decoding_of(loaded, spec.decoding))
    return Policy(engine, loaded.tokenizer)


def _processor(spec: RunSpec, stage: str, policy: Policy, rewards: ExitStack) -> StageProcessor:
    role, _, name = stage.partition("/")
    if role == "policy":
        return PolicyProcessor(
            policy, stage=stage, replica=stage, max_new_tokens=_MAX_NEW_TOKENS, wait_seconds=60
        )
    if role == "reference":
        model = ReferenceModel(load_language_model(spec.model), token_budget=_TOKEN_BUDGET)
        return ReferenceProcessor(model, stage=stage, replica=stage)
    if role == "reward":
        return _reward(spec, stage, name or "reward", rewards)
    raise ConfigError(f"rollout.slip: no stage {stage}: expected policy, reference, reward or reward/<name>")


def _reward(spec: RunSpec, stage: str, name: str, rewards: ExitStack) -> RewardProcessor:
    tables = reward_tables(name, spec.reward_model, spec.reward_sources)
    models, opened = RewardModels(), SourceOpener(RewardConfig())
    for entry in RewardConfig.model_validate({"models": tables}).models:  # a composite comes after its parts
        source = opened(entry, entry.name)
        rewards.callback(source.close)
        models.add(entry.name, source)
    return RewardProcessor(models, ShadowRunner(models), model=name, stage=stage, replica=stage)


def _learner(spec: RunSpec, out: Path, server: MemoryServer, policy: Policy, executor: Executor) -> Run:
    loaded = load_language_model(spec.model)
    # Nothing goes over a wire, so nobody asks for deltas.
    weights = PublishedWeights(tokenizer_fingerprint=loaded.facts.tokenizer_fingerprint, deltas=False)
    prompts = load_prompts(
        spec.data,
        loaded.tokenizer,
        context_length=loaded.facts.context_length,
        max_new_tokens=spec.sampling.max_new_tokens,
    )

    def announce() -> None:
        snapshot = weights.newest()
        served = policy.entries()
        changed = {
            entry.name: snapshot.tensors[entry.name]
            for entry in snapshot.manifest.tensors
            if served.get(entry.name) != entry
        }
        policy.offer(Update(snapshot.manifest, changed))

    queue = MemoryStages(server, consumer="learner", stages=spec.rollout.slip)
    config = LearnerConfig(run=spec, out=out)
    return Run(
        config,
        loaded=loaded,
        trainer=Trainer(loaded, spec, load_texts(spec.data, loaded.tokenizer)),
        intake=Intake(
            spec,
            run_uid=RUN_UID,
            prompts=prompts,
            queue=queue,
            watch_seconds=config.watch_seconds,
            vocabulary_size=loaded.facts.vocabulary_size,
        ),
        queue=queue,
        weights=weights,
        executor=executor,
        announce=announce,
    )
