"""Owns the ways of generating that benchmarks.generation compares: ours, transformers.generate, vLLM. Measures nothing
but how long each took. Each is warmed up when it is opened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import psutil
import torch

from benchmarks.scoring_servers import PEERS, ROOT, PeerFailed
from services.models.loading import LoadedModel
from services.policy.engines.base import Request, Sampling
from services.policy.engines.transformers_engine import TransformersEngine

START_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Load:
    """Prompts [rows][tokens] and how many tokens each completion is to have."""

    prompts: Sequence[Sequence[int]]
    lengths: Sequence[int]

    @property
    def tokens(self) -> int:
        """Wanted of all completions together."""
        return sum(self.lengths)


class Way(Protocol):
    """One way of generating."""

    def seconds(self, load: Load) -> float:
        """How long it takes. RuntimeError where it made fewer tokens than were wanted."""
        ...


class Ours:
    """The default engine, as the policy service calls it, both log-probs included."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._engine = TransformersEngine(loaded, max_rows=64)

    def seconds(self, load: Load) -> float:
        """See Way."""
        requests = [
            Request(
                prompt_ids=np.array(prompt, np.int32),
                sampling=Sampling(max_new_tokens=count, min_new_tokens=count, seed=1),
                index=index,
            )
            for index, (prompt, count) in enumerate(zip(load.prompts, load.lengths, strict=True))
        ]
        began = time.perf_counter()
        drafts = self._engine.generate(requests, threading.Event())
        seconds = time.perf_counter() - began
        _check_count(sum(len(draft.token_ids) for draft in drafts), load)
        return seconds


class Generate:
    """transformers.generate with sampling: all rows in one batch until the longest is done."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._model = loaded.model

    def seconds(self, load: Load) -> float:
        """See Way. Rows that are done go on being computed: that is how it works."""
        ids = torch.tensor([list(prompt) for prompt in load.prompts])
        longest = max(load.lengths)
        began = time.perf_counter()
        with torch.inference_mode():
            made = self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                min_new_tokens=longest,
                max_new_tokens=longest,
                pad_token_id=0,
            )
        seconds = time.perf_counter() - began
        _check_count(sum(min(count, made.shape[1] - ids.shape[1]) for count in load.lengths), load)
        return seconds


class Vllm:
    """vLLM in its own environment and process; held still (SIGSTOP) while others are measured."""

    def __init__(self, folder: str, mode: str, log: Path) -> None:
        command = [str(PEERS / "vllm" / "bin" / "python"), "-m", "benchmarks.peers.vllm_generate"]
        # Its own cores and threads: it binds them itself. Its compiler is found beside its Python.
        ours = ("OMP_", "GLIBC_TUNABLES")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        environment |= {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
        self._log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(  # noqa: S603 - our own
                [*command, folder, mode],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self._answer()
        self._signal(signal.SIGSTOP)

    def seconds(self, load: Load) -> float:
        """See Way."""
        self._signal(signal.SIGCONT)
        try:
            job = {"prompts": [list(prompt) for prompt in load.prompts], "lengths": list(load.lengths)}
            assert self._process.stdin is not None  # noqa: S101 - made with a pipe
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
            answer = self._answer()
        finally:
            self._signal(signal.SIGSTOP)
        _check_count(int(answer["tokens"]), load)
        return float(answer["seconds"])

    def end(self) -> None:
        """End it and what it started."""
        processes = self._processes()
        for process in processes:
            process.kill()
        psutil.wait_procs(processes)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None  # noqa: S101 - made with a pipe
        guard = threading.Timer(START_SECONDS, self._process.kill)
        guard.start()
        try:
            line = self._process.stdout.readline()
        finally:
            guard.cancel()
        if not line:
            words = " ".join(self._log.read_text(errors="replace").split())[-400:]
            raise PeerFailed(f"vLLM ended: {words}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _processes(self) -> list[psutil.Process]:
        try:
            parent = psutil.Process(self._process.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _signal(self, number: signal.Signals) -> None:
        for process in self._processes():
            process.send_signal(number)


@contextmanager
def vllm(folder: str, modes: Sequence[str]) -> Iterator[dict[str, Vllm]]:
    """vLLM in each of the modes; ended at the end, whatever happens."""
    running: dict[str, Vllm] = {}
    with tempfile.TemporaryDirectory(prefix="trimtab-bench-") as logs:
        try:
            for mode in modes:
                running[mode] = Vllm(folder, mode, Path(logs) / f"{mode}.log")
            yield running
        finally:
            for each in running.values():
                each.end()


def _check_count(made: int, load: Load) -> None:
    if made != load.tokens:
        raise RuntimeError(f"{made} tokens were made, {load.tokens} were wanted: a broken comparison")
