"""Policy processes under faults of every kind while versions come: no completion names weights that did not make it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch

from services.common.arrays import to_numpy
from services.common.server import serving
from services.common.spec.service import ServiceSpec
from services.learner.weights import PublishedWeights
from services.models.loading import LoadedModel, serving_state
from services.models.logprobs import completion_logprobs
from services.models.manifest import Version
from services.models.wire import version_of
from tests.fakes.small_runs import ROOT
from tests.fakes.tiny_models import make_tiny_causal
from tests.fakes.tiny_runs import loaded_from
from tests.fakes.weight_proxy import HarmfulProxy
from tests.integration.test_weights import WeightsOnly
from trimtab import AsyncPolicyClient, TrimtabClientError

SECONDS = 60.0
# Between two questions to a replica that is not there yet: asked without pause it would not come up for being asked.
ASK_SECONDS = 0.2
PROMPT = [5, 6, 7, 8]
State = dict[str, torch.Tensor]


@dataclass
class Replica:
    """A policy process."""

    folder: Path
    model: Path
    learner: str
    swap: str
    process: subprocess.Popen[bytes] | None = None
    address: str = ""
    port: int = 0
    weights_folder: str = ""
    env: dict[str, str] = field(default_factory=dict)

    async def start(self) -> None:
        """As a user starts it, on the port that it had before."""
        endpoints = self.folder / "endpoints.json"
        endpoints.unlink(missing_ok=True)
        settings = (
            f"model.path={self.model}",
            "model.dtype=float32",
            "model.threads=1",
            f"server.port={self.port}",
            f"weights.address={self.learner}",
            f"weights.peer_address={'auto' if self.port else ''}",
            f"weights.swap={self.swap}",
            f"weights.folder={self.weights_folder}",
            "weights.retry_seconds=0.05",
            "weights.stall_seconds=1",
            f"endpoints_file={endpoints}",
            "log.level=warning",
        )
        flags = [part for setting in settings for part in ("--set", setting)]
        self.process = subprocess.Popen(  # noqa: ASYNC220 - returns at once
            [sys.executable, "-m", "services.policy", *flags],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **self.env},
        )
        async with asyncio.timeout(SECONDS):
            while not endpoints.is_file():  # noqa: ASYNC110 - another process writes it
                await asyncio.sleep(0.02)
        self.address = str(json.loads(endpoints.read_text())["grpc"])
        self.port = int(self.address.rpartition(":")[2])

    def signal(self, number: int) -> None:
        """Send it a signal."""
        assert self.process is not None
        os.kill(self.process.pid, number)

    def end(self) -> None:
        """For good."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@dataclass
class Scene:
    """A learner's weights, what was published by digest, and what the replicas said."""

    weights: PublishedWeights
    state: State
    published: dict[str, State] = field(default_factory=dict)
    completions: list[Any] = field(default_factory=list)
    step: int = -1

    def publish(self, learner: WeightsOnly, *, epoch: int = 1) -> Version:
        """Another version, of which some elements changed."""
        self.step += 1
        generator = torch.Generator().manual_seed(self.step)
        if self.step:
            for tensor in self.state.values():
                at = torch.randint(tensor.numel(), (max(1, tensor.numel() // 20),), generator=generator)
                tensor.view(-1)[at] *= 1.5
        version, _ = self.weights.publish(epoch, self.step, self.state)
        self.published[version.digest] = {name: value.clone() for name, value in self.state.items()}
        learner.servicer.announce()
        return version

    async def talk(self, replica: Replica) -> None:
        """Ask for completions as long as the replica answers, and again when it does."""
        while True:
            with contextlib.suppress(TrimtabClientError, OSError, grpc.aio.AioRpcError):
                async with AsyncPolicyClient(replica.address, attempts=1) as client:
                    while True:
                        [result] = await client.generate(
                            [PROMPT],
                            num_completions=4,
                            max_new_tokens=24,
                            seed=len(self.completions),
                            timeout_seconds=5,
                        )
                        self.completions.extend(result.completions)
            await asyncio.sleep(ASK_SECONDS)

    async def until_served(self, replica: Replica, version: Version) -> None:
        """The replica answers with this version."""
        async with asyncio.timeout(SECONDS):
            while True:
                with contextlib.suppress(TrimtabClientError):
                    async with AsyncPolicyClient(replica.address, attempts=1) as client:
                        [result] = await client.generate([PROMPT], max_new_tokens=1, timeout_seconds=5)
                        if version_of(result.completions[0].versions[-1].version) == version:
                            return
                await asyncio.sleep(ASK_SECONDS)


@asynccontextmanager
async def replicas(*several: Replica) -> AsyncIterator[None]:
    """Started together, ended whatever happens."""
    try:
        await asyncio.gather(*(one.start() for one in several))
        yield
    finally:
        for one in several:
            one.end()


def check_completions(loaded: LoadedModel, scene: Scene) -> set[str]:
    """Each token's log-prob is that of the version it names; the digests that were named."""
    named: set[str] = set()
    for one in scene.completions:
        ids = to_numpy(one.token_ids)
        ends = [span.start for span in one.versions[1:]] + [len(ids)]
        for span, end in zip(one.versions, ends, strict=True):
            digest = span.version.digest
            named.add(digest)
            loaded.model.load_state_dict(scene.published[digest], strict=False)
            [expected] = completion_logprobs(
                loaded.model, [(np.array(PROMPT, np.int32), ids)], temperature=1.0, token_budget=999
            )
            np.testing.assert_allclose(
                to_numpy(one.raw_logprobs)[span.start : end], expected[span.start : end], atol=1e-4, rtol=0
            )
    return named


@pytest.mark.timeout(240)
async def test_no_completion_names_weights_that_did_not_make_it(tmp_path: Path) -> None:
    """Bytes are flipped, the learner goes in the middle, replicas are killed and stopped: all come to the last version.

    And every token that any of them ever gave has the log-prob of the version it names.
    """
    model = make_tiny_causal(tmp_path / "model", context_length=64, width=32)
    loaded = loaded_from(model)
    state = {name: value.clone() for name, value in serving_state(loaded.model).items()}
    scene = Scene(PublishedWeights(tokenizer_fingerprint=loaded.facts.tokenizer_fingerprint), state)
    learner, proxy = WeightsOnly(scene.weights), HarmfulProxy(smallest=500)
    await proxy.open()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one = Replica(tmp_path / "one", model, proxy.address, "keep", port=_free_port())
    two = Replica(tmp_path / "two", model, proxy.address, "wait", port=_free_port())
    async with replicas(one, two):
        async with serving(ServiceSpec(), learner) as where:
            proxy.target = where.grpc
            talking = [asyncio.create_task(scene.talk(each)) for each in (one, two)]
            for _ in range(3):
                version = scene.publish(learner)
                await asyncio.gather(*(scene.until_served(each, version) for each in (one, two)))
            # Bytes are flipped on the way.
            proxy.flips = 2
            version = scene.publish(learner)
            await asyncio.gather(*(scene.until_served(each, version) for each in (one, two)))
            assert proxy.flipped
            # One is stopped; the other, its child or its parent, goes on; woken up it catches up.
            two.signal(signal.SIGSTOP)
            for _ in range(2):
                version = scene.publish(learner)
                await scene.until_served(one, version)
            two.signal(signal.SIGCONT)
            await scene.until_served(two, version)
            # One is killed in the middle of a swap.
            version = scene.publish(learner)
            one.end()
            await scene.until_served(two, version)
            await one.start()
            await scene.until_served(one, version)
            # The learner goes while it publishes.
            scene.publish(learner)
            proxy.cut()
        again = WeightsOnly(scene.weights)
        async with serving(ServiceSpec(), again) as where:
            proxy.target = where.grpc
            version = scene.publish(again, epoch=2)
            await asyncio.gather(*(scene.until_served(each, version) for each in (one, two)))
            for task in talking:
                task.cancel()
            await asyncio.wait(talking)
    await proxy.close()
    assert len(scene.completions) > 50
    assert len(check_completions(loaded, scene)) >= 5


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
