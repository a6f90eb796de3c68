"""Keeps the policy's weights current: watches the learner's versions, fetches what differs, verifies, offers.

WatchVersions ──▶ GetManifest ──▶ FetchWeights ──▶ verify ──▶ hold ──┬─▶ offer: swapped in by the model's thread
  ▲ newest, sources    (learner)    (the shared folder, else a peer,  ├─▶ peers that wait for it
  │                                  else the learner: a delta, or    └─▶ ReportVersion
  │                                  all that differs)
  └─────────────── the learner is away, or bytes were wrong: again after a pause ◀──────┘

The manifest always comes from the learner; bytes from anyone, since it says what they must be. What is held is a copy
of its own: deltas build on it and peers read it, whatever the engine does with the weights that it serves.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, cast

import grpc
import structlog

from services.common.channels import make_channel
from services.common.drain_mark import Flag
from services.common.errors import Corrupted, Mismatch, TrimtabError
from services.models.compute import apart
from services.models.manifest import Manifest, Version, whole_digest
from services.models.pairs import Fabric
from services.models.snapshots import Snapshot, WeightStore
from services.models.wire import manifest_of, version_message, version_of
from services.policy.config import WeightSourceSpec
from services.policy.fetching import Fetched
from services.policy.generation import Policy, Update
from services.policy.sources import Sources
from services.policy.weight_metrics import BEHIND_STEPS
from trimtab.weights.v1 import weights_pb2 as wire
from trimtab.weights.v1 import weights_pb2_grpc as wire_grpc

if TYPE_CHECKING:
    from trimtab.weights.v1.weights_pb2_grpc import WeightServiceAsyncStub

_MANIFEST_SECONDS = 30.0
_REPORT_SECONDS = 10.0
_UNSOUND = (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL)
_log = structlog.get_logger(__name__)


class WeightReader:
    """Follows one WeightService for as long as it runs. `rest` is raised while it is too far behind."""

    def __init__(
        self,
        policy: Policy,
        source: WeightSourceSpec,
        run_uid: str,
        *,
        store: WeightStore | None = None,
        peer_address: str = "",
        held: Callable[[], None] = lambda: None,
        rest: Flag | None = None,
        fabric: Fabric | None = None,
    ) -> None:
        self._policy, self._source, self._run_uid = policy, source, run_uid
        self._store = store or WeightStore(keep=1)
        self._peer_address, self._held, self.rest = peer_address, held, rest or Flag()
        self._sources = Sources(source, run_uid, fabric=fabric, passes_on=bool(peer_address))
        self._newest: tuple[Version, list[str]] | None = None
        self._told = False

    async def run(self) -> None:
        """Until cancelled. A learner that is away is waited for; wrong bytes are logged and fetched again.

        Raises Mismatch for weights of another model or tokenizer: they will never fit.
        """
        self._store.add(await apart(self._policy.snapshot))
        try:
            while True:
                async with make_channel(self._source.address, self._source) as channel:
                    stub = cast("WeightServiceAsyncStub", wire_grpc.WeightServiceStub(channel))
                    self._confess_to(stub)
                    await self._follow_while_sound(stub)
        finally:
            await self._sources.close()

    async def _follow_while_sound(self, stub: WeightServiceAsyncStub) -> None:
        """Return at an answer that no service of ours gives: then a new connection is needed.

        On one whose bytes were damaged, headers stay unreadable, since each builds on those before it.
        """
        sound = True
        while sound:
            try:
                await self._follow(stub)
            except grpc.aio.AioRpcError as error:
                self._tell(f"{error.code().name}: {error.details()}")
                sound = error.code() not in _UNSOUND
            except TrimtabError as error:
                _log.error("weights were refused", error=str(error))
                if isinstance(error, Mismatch):
                    raise
            await asyncio.sleep(self._source.retry_seconds)

    async def _follow(self, stub: WeightServiceAsyncStub) -> None:
        """Bring the newest version there is, and then the newest again: what was in between is passed over."""
        arrived = asyncio.Event()
        watching = asyncio.create_task(self._watch(stub, arrived))
        try:
            while True:
                waiting = asyncio.ensure_future(arrived.wait())
                await asyncio.wait((waiting, watching), return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                if not arrived.is_set():
                    return await watching
                arrived.clear()
                assert self._newest is not None  # noqa: S101 - the event says so
                await self._bring(stub, *self._newest)
                self._look_behind()
        finally:
            watching.cancel()

    async def _watch(self, stub: WeightServiceAsyncStub, arrived: asyncio.Event) -> None:
        request = wire.WatchVersionsRequest(run_uid=self._run_uid, peer_address=self._peer_address)
        async for message in stub.WatchVersions(request):
            self._told = False
            self._newest = (version_of(message.version), list(message.sources))
            self._look_behind()
            arrived.set()

    def _look_behind(self) -> None:
        """Weights that are too old make nothing that can be trained on."""
        assert self._newest is not None  # noqa: S101 - called after a version came
        held, newest = self._store.newest().manifest.version, self._newest[0]
        behind = 0 if held.digest == newest.digest else max(newest.step - held.step, 1)
        BEHIND_STEPS.set(behind)
        most = self._source.max_behind_steps
        # The first weights of a run are not late but new.
        raised = most is not None and held.epoch > 0 and behind > most
        if raised != self.rest.raised:
            self.rest.raised = raised
            _log.warning(
                "weights are too old: no new work" if raised else "weights are current", behind=behind
            )

    async def _bring(self, stub: WeightServiceAsyncStub, version: Version, sources: list[str]) -> None:
        try:
            answer = await stub.GetManifest(
                wire.GetManifestRequest(run_uid=self._run_uid, version=version_message(version)),
                timeout=_MANIFEST_SECONDS,
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                return  # passed over already: the next one has been announced
            raise
        manifest = manifest_of(answer.manifest)
        self._check(manifest, version)
        base = self._store.newest()
        own = base.manifest.by_name()
        lacking = [entry for entry in manifest.tensors if own.get(entry.name) != entry]
        fetched, failed = Fetched({}, None, 0), list[str]()
        if lacking:
            fetched, failed = await self._sources.take(stub, manifest, lacking, base, sources)
        snapshot = Snapshot(manifest, {**base.tensors, **fetched.tensors})
        self._hold(snapshot, base.manifest.version, fetched.delta)
        _log.info(
            "weights arrived",
            epoch=version.epoch,
            step=version.step,
            digest=version.digest,
            tensors=len(lacking),
            size=fetched.size,
            encoding=fetched.encoding,
        )
        await self._report(stub, version, failed)

    def _hold(self, snapshot: Snapshot, have: Version, delta: bytes | None) -> None:
        """For peers and as what the next delta builds on; and to be served."""
        link = None
        if delta is not None:
            made = Future[bytes]()
            made.set_result(delta)
            link = (have.digest, made)
        self._store.add(snapshot, link)
        self._policy.offer(Update(snapshot.manifest, snapshot.tensors))
        self._held()

    def _check(self, manifest: Manifest, version: Version) -> None:
        if whole_digest(manifest.tensors) != version.digest:
            raise Corrupted(f"the manifest of step {version.step} does not have the digest it claims")
        fingerprint = manifest.tokenizer_fingerprint
        if fingerprint and fingerprint != self._policy.facts.tokenizer_fingerprint:
            raise Mismatch(
                f"the learner trains with tokenizer {fingerprint[:16]}, the policy has "
                f"{self._policy.facts.tokenizer_fingerprint[:16]}"
            )
        # After the tokenizer: where that is another, so are the shapes, and it is what a person can mend.
        self._policy.check_manifest(manifest)

    async def _report(
        self, stub: WeightServiceAsyncStub, version: Version, failed: list[str], *, always: bool = False
    ) -> None:
        """Tell the learner; one that does not know the call, or is away, need not hear it."""
        if not (self._peer_address or failed or always):
            return
        request = wire.ReportVersionRequest(
            run_uid=self._run_uid,
            peer_address=self._peer_address,
            version=version_message(version),
            failed_sources=failed,
        )
        with contextlib.suppress(grpc.aio.AioRpcError):
            await stub.ReportVersion(request, timeout=_REPORT_SECONDS)

    def _confess_to(self, stub: WeightServiceAsyncStub) -> None:
        """Should the engine serve other weights than it was given, the learner hears of it: that ends the run."""
        loop, tasks = asyncio.get_running_loop(), set[asyncio.Task[None]]()

        def begin(served: Version) -> None:
            _log.error("the engine serves other weights than it was given", step=served.step)
            tasks.add(loop.create_task(self._report(stub, served, [], always=True)))

        def told(served: Version) -> None:
            loop.call_soon_threadsafe(begin, served)

        self._policy.on_other_weights = told

    def _tell(self, why: str) -> None:
        if not self._told:
            _log.info("the learner's weights are not there yet", address=self._source.address, why=why)
        self._told = True
