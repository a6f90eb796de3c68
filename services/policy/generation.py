"""The current policy: an engine, the version of its weights, and the one place where they change.

Owns which weights answer. Knows neither grpc, redis, rewards nor optimisers. Everything but `offer` runs on
the one thread that owns the model.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from services.common.errors import Corrupted, InvalidInput, Mismatch, Unavailable, UserError
from services.common.spec.run import SwapMode
from services.models.facts import ModelFacts, digest_of
from services.models.loading import encode_prompt
from services.models.low_rank import check_factors, is_factor
from services.models.manifest import (
    Manifest,
    TensorEntry,
    Version,
    component_of,
    entries_of,
    policy_digest,
    whole_digest,
)
from services.models.snapshots import Snapshot
from services.policy.engines.base import Draft, Emit, Engine, Ids, Request

_POLL_SECONDS = 0.2
_TABLES = {"q_heads": "values", "mask_model": "mask"}
"""Which table of [decoding] takes which component of the weights."""
CHECKED_SHARE = 8
"""Of the tensors that a swap changed, every eighth is read back, so that eight swaps look at all of them."""
Spans = list[tuple[int, Version]]


@dataclass(frozen=True, slots=True)
class Update:
    """Verified weights, waiting for the model's thread: the tensors that changed and the whole manifest."""

    manifest: Manifest
    tensors: Mapping[str, torch.Tensor]


def joined(older: Update, newer: Update | None) -> Update:
    """Neither applied yet: what the older update brought and the newer one did not repeat still counts."""
    return older if newer is None else Update(newer.manifest, {**older.tensors, **newer.tensors})


class EitherSet(threading.Event):
    """Set when another event is, or a condition holds: an engine then returns what it has so far."""

    def __init__(self, event: threading.Event, holds: Callable[[], bool]) -> None:
        super().__init__()
        self._event, self._holds = event, holds

    def is_set(self) -> bool:
        """See threading.Event."""
        return self._event.is_set() or self._holds()


class Policy:
    """An engine and the version it serves."""

    def __init__(self, engine: Engine, tokenizer: Any, *, swap: SwapMode = "wait") -> None:
        self.engine = engine
        self.swap = swap
        self._tokenizer = tokenizer
        self._swaps = 0
        self._broken: Corrupted | None = None
        # Told of weights that the engine serves under a name that is not theirs, on the model's thread.
        self.on_other_weights: Callable[[Version], None] = lambda _: None
        entries = entries_of(engine.weights())
        self._entries = {entry.name: entry for entry in entries}
        self.version = Version(0, 0, whole_digest(entries))
        self._offered: Update | None = None
        # A load broke off: which tensors the engine has is not known, and the next one brings all that it can.
        self._half_loaded = False
        self._arrived = threading.Condition()

    @property
    def facts(self) -> ModelFacts:
        """Identity of the model as loaded."""
        return self.engine.facts

    def entries(self) -> Mapping[str, TensorEntry]:
        """What is served or already offered, by tensor name: a reader asks only for what differs."""
        with self._arrived:
            offered = self._offered
            return offered.manifest.by_name() if offered else dict(self._entries)

    def check_manifest(self, manifest: Manifest) -> None:
        """Raises Mismatch for weights that this model cannot take over whole, before a byte of them is fetched.

        An adapter's factors may stand beside the tensors that the model has.
        """
        named, own = manifest.by_name(), dict(self.entries())
        self._check_components(set(named), set(own))
        own |= self._adapter_of(named, own)
        if odd := sorted(named.keys() ^ own.keys()):
            side = "the learner lacks" if odd[0] in own else "this model does not have"
            raise Mismatch(f"the weights are of another model: {side} {odd[0]}")
        for name, entry in named.items():
            if (entry.dtype, entry.shape) != (own[name].dtype, own[name].shape):
                raise Mismatch(
                    f"{name}: weights bring {entry.dtype} {list(entry.shape)}, the model has "
                    f"{own[name].dtype} {list(own[name].shape)}"
                )

    def _check_components(self, named: set[str], own: set[str]) -> None:
        """Raises Mismatch where one side has a component that the other has not: its decoding is another."""
        theirs, here = ({component_of(name) for name in names} for names in (named, own))
        if more := sorted(theirs - here):
            table = _TABLES.get(more[0], "")
            told = f"this policy does not decode with: set decoding.{table}" if table else "is not known here"
            raise Mismatch(f"the learner publishes {more[0]}, which {told}")
        if lacking := sorted(here - theirs):
            raise Mismatch(f"this policy decodes with {lacking[0]}, which the learner does not publish")

    def _adapter_of(
        self, named: Mapping[str, TensorEntry], own: Mapping[str, TensorEntry]
    ) -> dict[str, TensorEntry]:
        """Factors that are new here and fit. Raises Mismatch where they do not, or the engine merges none."""
        new = {name: one for name, one in named.items() if is_factor(name) and name not in own}
        if new and "adapters" not in self.engine.capabilities:
            raise Mismatch(
                f"the learner delivers an adapter, which the {self.engine.name} engine does not merge: "
                "optimiser.lora.deliver = merged"
            )
        factors = {name: one.shape for name, one in named.items() if is_factor(name)}
        check_factors(factors, {name: one.shape for name, one in own.items()})
        return new

    def offer(self, update: Update) -> None:
        """Hand over verified weights from any thread; they are swapped in before the next batch."""
        with self._arrived:
            self._offered = update if self._offered is None else joined(self._offered, update)
            self._arrived.notify_all()

    def has_offer(self) -> bool:
        """Whether weights wait to be swapped in."""
        with self._arrived:
            return self._offered is not None

    def snapshot(self) -> Snapshot:
        """A copy of what is served now, for deltas to build on and for peers. Before anything is offered."""
        tensors = {
            name: tensor.detach().to("cpu", copy=True) for name, tensor in self.engine.weights().items()
        }
        return Snapshot(Manifest(self.version, tuple(self._entries.values())), tensors)

    def apply_offered(self) -> None:
        """Swap in what was offered, if anything: all tensors of a version or none.

        What could not be loaded at the moment stays offered, and the next call tries it again.
        """
        with self._arrived:
            update, self._offered = self._offered, None
            if update is None:
                return
            # Named before they are loaded: what is offered meanwhile builds on them.
            before, self._entries = self._entries, update.manifest.by_name()
        changed = {
            name: tensor
            for name, tensor in update.tensors.items()
            if self._half_loaded or before.get(name) != self._entries[name]
        }
        try:
            self._load(update.manifest, changed)
        except BaseException as error:
            with self._arrived:
                self._entries = before
                if not isinstance(error, UserError | Corrupted):
                    self._half_loaded = True
                    self._offered = joined(update, self._offered)
            raise
        self.version, self._half_loaded = update.manifest.version, False

    def _load(self, manifest: Manifest, changed: Mapping[str, torch.Tensor]) -> None:
        """Swap. After a swap that was none, or half of one, nothing is generated any more."""
        self._swaps += 1
        try:
            self.engine.load_weights(changed)
            check_loaded(self.engine, manifest, list(changed), turn=self._swaps)
        except Corrupted as error:
            self._broken = error
            served = whole_digest(entries_of(self.engine.weights()))
            self.on_other_weights(Version(manifest.version.epoch, manifest.version.step, served))
            raise

    def await_version(self, wanted: Version, *, stopping: threading.Event, wait_seconds: float) -> bool:
        """Wait until the weights are at least `wanted`; False when stopping was set first.

        Raises Unavailable when they do not arrive in time.
        """
        deadline = time.monotonic() + wait_seconds
        self.apply_offered()
        while not self.version.at_least(wanted):
            if stopping.is_set():
                return False
            if time.monotonic() > deadline:
                raise Unavailable(f"weights of epoch {wanted.epoch}, step {wanted.step} did not arrive")
            with self._arrived:
                if self._offered is None:
                    self._arrived.wait(_POLL_SECONDS)
            self.apply_offered()
        return True

    def require(self, wanted: Version) -> None:
        """Raises Mismatch unless exactly these weights are loaded: by digest, or without one by epoch and step.

        The digest is of all that is served, or of the policy's own tensors.
        """
        self.apply_offered()
        own = self.version
        digests = (own.digest, policy_digest(self._entries.values()))
        same = wanted.digest in digests if wanted.digest else wanted.at_least(own) and own.at_least(wanted)
        if not same:
            raise Mismatch(
                f"weights {wanted.digest[:12]} (epoch {wanted.epoch}, step {wanted.step}) are asked for, those "
                f"loaded are {own.digest[:12]} (epoch {own.epoch}, step {own.step})"
            )

    def generate(
        self, requests: Sequence[Request], stopping: threading.Event, emit: Emit | None = None
    ) -> list[Draft]:
        """A draft for each request under the newest weights that have arrived."""
        return self.generate_noted(requests, stopping, emit)[0]

    def generate_noted(
        self,
        requests: Sequence[Request],
        stopping: threading.Event,
        emit: Emit | None = None,
        *,
        resume: bool = True,
        fixed: bool = False,
    ) -> tuple[list[Draft], list[Spans]]:
        """The drafts, and for each where the tokens of which version begin.

        With swap `keep` new weights are taken at the next token, and the sequences go on under them; with
        `abort_and_resume` too, unless the caller hands them back instead (`resume` is false). `fixed`: under the
        weights that are loaded now, to the end.
        """
        if not fixed:
            self.apply_offered()
        if self._broken is not None:
            raise self._broken
        swaps = self.swap != "wait" and not fixed
        drafts = [request.draft for request in requests]
        spans: list[Spans] = [[] for _ in requests]
        while True:
            before, drafts = (
                drafts,
                self.engine.generate(
                    [replace(request, draft=draft) for request, draft in zip(requests, drafts, strict=True)],
                    EitherSet(stopping, self.has_offer) if swaps else stopping,
                    emit,
                ),
            )
            for noted, old, new in zip(spans, before, drafts, strict=True):
                if len(new.token_ids) > len(old.token_ids):
                    noted.append((len(old.token_ids), self.version))
            unfinished = any(draft.finish is None for draft in drafts)
            if stopping.is_set() or not unfinished or (self.swap == "abort_and_resume" and not resume):
                return drafts, spans
            # The prefix is computed anew: a cache of the old weights would make log-probs of no version.
            self.apply_offered()

    def encode(self, *, messages: Sequence[dict[str, str]], text: str) -> Ids:
        """Token ids of a prompt given as messages or text, [length] int32."""
        return np.array(encode_prompt(self._tokenizer, messages=messages, text=text), np.int32)

    def check_fingerprint(self, fingerprint: str) -> None:
        """Raises Mismatch when the caller's ids are of another tokenizer; an empty one is not checked."""
        if fingerprint and fingerprint != self.facts.tokenizer_fingerprint:
            raise Mismatch(
                f"the ids are of tokenizer {fingerprint[:16]}, the policy {self.facts.name} has "
                f"{self.facts.tokenizer_fingerprint[:16]}"
            )


def check_loaded(engine: Engine, manifest: Manifest, changed: Sequence[str], *, turn: int) -> None:
    """Read back some of the tensors that were swapped, others each turn; Corrupted where they are not the manifest's.

    An engine whose update silently does nothing, or half of it, would generate under a version that is not its own.
    """
    served, named = engine.weights(), manifest.by_name()
    for name in sorted(changed)[turn % CHECKED_SHARE :: CHECKED_SHARE]:
        if name in served and digest_of(served[name]) != named[name].digest:
            raise Corrupted(
                f"{name}: the engine does not serve the weights of epoch {manifest.version.epoch}, step "
                f"{manifest.version.step} that it was given"
            )


def check_limits(prompts: int, completions_each: int, *, most: int) -> None:
    """Raises InvalidInput when there is nothing to do or too much for one call."""
    if not prompts:
        raise InvalidInput("there is no prompt", {"prompts": "at least one"})
    if prompts * completions_each > most:
        raise InvalidInput(
            f"{prompts * completions_each} completions are asked for, at most {most} in one call",
            {"prompts": f"at most {most}"},
        )
