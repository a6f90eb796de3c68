"""Scoring as a trainer needs it: whole batches, split to the service's limits, through outages, in any process.

A scorer is only settings until its first call. So it can be pickled, and a forked process makes a channel of
its own (a gRPC channel does not survive a fork). Knows no trainer by name.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast
from weakref import WeakKeyDictionary

from trimtab.clients.access import AccessOptions, access_of
from trimtab.clients.batching import DEFAULT_MAX_BYTES, AsyncBatcher, Batcher, Inputs, Limits, Scores
from trimtab.clients.errors import TrimtabClientError
from trimtab.clients.patience import DEFAULT_PATIENCE_SECONDS, Patience
from trimtab.clients.reward import AsyncRewardClient, RewardClient
from trimtab.clients.rows import split_inputs
from trimtab.reward.v1 import reward_pb2 as wire

# Longer than a client's own: 256 long texts take a reward model on a processor some time.
DEFAULT_TIMEOUT_SECONDS = 300.0
DEFAULT_MAX_ROWS = 256
DEFAULT_CALLS_IN_FLIGHT = 4
_CLIENT_OPTIONS = {"timeout_seconds", "attempts", "max_message_mib", "credentials", "metadata"}


class _Settings:
    """What a scorer is made of, and all that is left of it in a pickle."""

    def __init__(
        self,
        target: str,
        *,
        model: str = "",
        patience_seconds: float = DEFAULT_PATIENCE_SECONDS,
        max_rows: int = DEFAULT_MAX_ROWS,
        calls_in_flight: int = DEFAULT_CALLS_IN_FLIGHT,
        **options: Any,
    ) -> None:
        self.target = target
        self.model = model
        self.limits = Limits(calls_in_flight=calls_in_flight, max_rows=max_rows, max_bytes=DEFAULT_MAX_BYTES)
        self.patience = Patience(patience_seconds, target)
        # One quick retry of the client's own hides the renewal of a connection; then patience speaks.
        self.options = {"timeout_seconds": DEFAULT_TIMEOUT_SECONDS, "attempts": 2, **options}
        _check_options(target, self.options)
        self._forget()

    def _forget(self) -> None:
        """Begin with no connection."""

    def __getstate__(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "model": self.model,
            "patience_seconds": self.patience.seconds,
            "max_rows": self.limits.max_rows,
            "calls_in_flight": self.limits.calls_in_flight,
            **self.options,
        }

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def _parts(self, inputs: Inputs) -> list[list[wire.ScoreInput]]:
        return split_inputs(inputs, max_rows=self.limits.max_rows, max_bytes=self.limits.max_bytes)


def _check_options(target: str, options: Mapping[str, Any]) -> None:
    """TypeError or ValueError now for what the client would refuse at the first call, after a generation."""
    own = {name for name in options if name in AccessOptions.__annotations__}
    unknown = sorted(set(options) - own - _CLIENT_OPTIONS)
    if unknown:
        raise TypeError(f"unexpected option {', '.join(unknown)}")
    access = access_of(target, cast("AccessOptions", {name: options[name] for name in own}))
    access.check_target(target, secure=access.tls.wanted or options.get("credentials") is not None)


class Scorer(_Settings):
    """Blocking; from any thread. `options` are RewardClient's.

    A failed call is tried again until `patience_seconds` after its first failure, where trying can help:
    a service that restarts costs the run nothing but the wait. Larger batches go as several calls of
    `max_rows` rows, `calls_in_flight` at once, so that every replica of the service has work.
    """

    def _forget(self) -> None:
        self._opened: tuple[int, RewardClient] | None = None
        self._opening = threading.Lock()

    def score(self, inputs: Inputs) -> Scores:
        """One score for each input, in order. TrimtabClientError where there is no answer in the end."""
        parts = self._parts(inputs)
        stop = threading.Event()
        if len(parts) < 2:
            return [score for part in parts for score in self._call(part, stop)]
        pool = ThreadPoolExecutor(min(len(parts), self.limits.calls_in_flight))
        try:
            calls = [pool.submit(self._call, part, stop) for part in parts]
            return [score for call in calls for score in call.result()]
        finally:
            # After an error, or Ctrl-C, nobody waits for the rest.
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _call(self, part: list[wire.ScoreInput], stop: threading.Event) -> Scores:
        failed = 0
        since = 0.0
        while True:
            try:
                scores = self._client().score(part, model=self.model)
            except TrimtabClientError as error:
                failed += 1
                since = since if failed > 1 else time.monotonic()
                pause = self.patience.failed(error, since=since, attempt=failed)
                if stop.wait(pause):
                    raise
            else:
                self.patience.answered()
                return scores

    def _client(self) -> RewardClient:
        with self._opening:
            if self._opened is None or self._opened[0] != os.getpid():
                self._opened = (os.getpid(), RewardClient(self.target, **self.options))
            return self._opened[1]

    def close(self) -> None:
        """Close the channel. The next call opens another."""
        with self._opening:
            if self._opened is not None and self._opened[0] == os.getpid():
                self._opened[1].close()
            self._opened = None


class AsyncScorer(_Settings):
    """The same for asyncio. Each event loop has a channel of its own."""

    def _forget(self) -> None:
        self._opened: WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncRewardClient] = WeakKeyDictionary()

    async def score(self, inputs: Inputs) -> Scores:
        """One score for each input, in order. TrimtabClientError where there is no answer in the end."""
        places = asyncio.Semaphore(self.limits.calls_in_flight)
        calls = [asyncio.ensure_future(self._call(part, places)) for part in self._parts(inputs)]
        try:
            return [score for scores in await asyncio.gather(*calls) for score in scores]
        finally:
            for call in calls:
                call.cancel()

    async def _call(self, part: list[wire.ScoreInput], places: asyncio.Semaphore) -> Scores:
        failed = 0
        since = 0.0
        async with places:
            while True:
                try:
                    scores = await self._client().score(part, model=self.model)
                except TrimtabClientError as error:
                    failed += 1
                    since = since if failed > 1 else time.monotonic()
                    pause = self.patience.failed(error, since=since, attempt=failed)
                else:
                    self.patience.answered()
                    return scores
                await asyncio.sleep(pause)

    def _client(self) -> AsyncRewardClient:
        loop = asyncio.get_running_loop()
        if loop not in self._opened:
            _forget_ended(self._opened)
            self._opened[loop] = AsyncRewardClient(self.target, **self.options)
        return self._opened[loop]

    async def close(self) -> None:
        """Close this loop's channel. The next call opens another."""
        client = self._opened.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.close()


def _forget_ended(of_loops: WeakKeyDictionary[asyncio.AbstractEventLoop, Any]) -> None:
    """A channel holds its loop, so that no entry would ever go by itself: with a loop for each step, one a step."""
    for loop in [one for one in of_loops if one.is_closed()]:
        of_loops.pop(loop, None)


# TRIMTAB_KEY is read by the clients themselves.
_ENVIRONMENT = {
    "target": "TRIMTAB_TARGET",
    "model": "TRIMTAB_MODEL",
    "key_file": "TRIMTAB_KEY_FILE",
    "ca_file": "TRIMTAB_CA_FILE",
}


def with_environment(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a scorer, those that are not given taken from the environment. ValueError without a target.

    None is not given, nor is an empty text where the environment has the setting; 0, False and key="" are.
    """
    merged: dict[str, Any] = {
        name: value for name, variable in _ENVIRONMENT.items() if (value := os.environ.get(variable))
    }
    merged |= {
        name: value
        for name, value in settings.items()
        if value is not None and not (value == "" and name in _ENVIRONMENT)
    }
    if "target" not in merged:
        raise ValueError('which reward service? Give target="host:port" or set TRIMTAB_TARGET')
    return merged


_batchers: dict[Any, Batcher] = {}
_async_batchers: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, AsyncBatcher]] = WeakKeyDictionary()


def shared_batcher(settings: Mapping[str, Any]) -> Batcher:
    """The batcher of this process for such settings; made when it is first asked for."""
    key = (os.getpid(), repr(sorted(settings.items())))
    if key not in _batchers:
        scorer = Scorer(**settings)
        # setdefault, in case that another thread was faster.
        return _batchers.setdefault(key, Batcher(scorer.score, scorer.limits))
    return _batchers[key]


def shared_async_batcher(settings: Mapping[str, Any]) -> AsyncBatcher:
    """The batcher of the running event loop for such settings; made when it is first asked for."""
    loop = asyncio.get_running_loop()
    if loop not in _async_batchers:
        _forget_ended(_async_batchers)
    of_loop = _async_batchers.setdefault(loop, {})
    key = repr(sorted(settings.items()))
    if key not in of_loop:
        scorer = AsyncScorer(**settings)
        of_loop[key] = AsyncBatcher(scorer.score, scorer.limits)
    return of_loop[key]
