"""A run's Secrets: that of its own queue server, made once, never written again; and what opens doors, for scrapes.

Decision: Secrets are not watched. The operator needs `create` and `get`, and holds nobody's list of them in memory.
Rejected: a watch, which would notice a removed Secret sooner, for the right to read all of them at any time.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.cluster.client.api import Api
from orchestrator.cluster.client.errors import Conflict
from orchestrator.cluster.control.resources import Ref
from orchestrator.cluster.kinds import TrainingRun
from orchestrator.cluster.names import MANAGER, RunNames
from orchestrator.cluster.operator.applier import belongs_to, taken
from orchestrator.cluster.operator.probe import Door, Pem
from orchestrator.cluster.render import redis_secret
from orchestrator.cluster.render.services import queue_secret
from orchestrator.cluster.render.tls import secret_of
from orchestrator.mutual_tls import WATCHER
from orchestrator.queue_users import QueueUsers
from services.common.errors import NotFound, TrimtabError
from services.common.stages.base import LEARNER_STAGE
from services.common.stages.rights import OPERATOR

KEPT_SECONDS = 600.0
"""What a Secret holds is read anew after this long: certificates are renewed, passwords changed."""


class RunSecrets:
    """Of all runs. A queue's is made once in the life of this process for each run, doors are read now and then."""

    def __init__(self, api: Api, clock: Callable[[], float] = time.monotonic) -> None:
        self._api, self._clock = api, clock
        self._there: set[str] = set()
        self._urls: dict[tuple[str, str, str], tuple[str, float]] = {}
        self._pems: dict[tuple[str, str], tuple[Pem, float]] = {}

    def ensure(self, run: TrainingRun, names: RunNames) -> bool:
        """Make it if it is not there; whether it was made."""
        if run.spec.redis.owned is None or run.metadata.uid in self._there:
            return False
        made = not self._is_there(run, names) and self._make(run, names)
        self._there.add(run.metadata.uid)
        return made

    def queue_door(self, run: TrainingRun, names: RunNames) -> Door | None:
        """To the run's server, for whoever looks at backlogs; None where its address cannot be told."""
        url = self._queue_url(run, names)
        return Door(url, self._queue_pem(run, names)) if url else None

    def learner_door(self, run: TrainingRun, names: RunNames, address: str) -> Door:
        """To the learner at host:port."""
        own = secret_of(run, names, WATCHER)
        if not own:
            return Door(address)
        return Door(address, self._pem(run, names, own), secret_of(run, names, LEARNER_STAGE))

    def _queue_pem(self, run: TrainingRun, names: RunNames) -> Pem | None:
        ca = run.spec.redis.ca_secret
        if ca is not None:
            return self._pem(run, names, ca.name, ca.key)
        own = secret_of(run, names, WATCHER) if run.spec.redis.owned is not None else ""
        return self._pem(run, names, own) if own else None

    def _pem(self, run: TrainingRun, names: RunNames, name: str, authority: str = "ca.crt") -> Pem | None:
        """Of a Secret of type kubernetes.io/tls; what it held before, or None, where it cannot be read."""
        place = run.metadata.uid, name
        kept, at = self._pems.get(place, (None, 0.0))
        if kept is not None and self._clock() - at < KEPT_SECONDS:
            return kept
        try:
            secret = self._api.get(Ref("Secret", names.namespace, name))
        except TrimtabError:
            return kept
        texts = [_value(secret, key) for key in (authority, "tls.crt", "tls.key")]
        if not texts[0]:
            return kept
        pem = Pem(authority=texts[0], certificate=texts[1], private_key=texts[2])
        self._pems[place] = pem, self._clock()
        return pem

    def _queue_url(self, run: TrainingRun, names: RunNames) -> str:
        """Of its Secret; what that held before, or nothing, where it cannot be read or holds none."""
        if run.spec.redis.url is not None:
            return run.spec.redis.url
        name, key = queue_secret(run, names, OPERATOR)
        place = run.metadata.uid, name, key
        kept, at = self._urls.get(place, ("", 0.0))
        if kept and self._clock() - at < KEPT_SECONDS:
            return kept
        try:
            url = _value(self._api.get(Ref("Secret", names.namespace, name)), key)
        except TrimtabError:
            return kept
        if not url:
            return kept
        self._urls[place] = url, self._clock()
        return url

    def remove(self, namespace: str, name: str, uid: str) -> None:
        """Delete it, if it is the one that was made for this run. Owner references would, later."""
        self.forget(uid)
        ref = Ref("Secret", namespace, name)
        try:
            found = self._api.get(ref)
            if belongs_to(found, uid):
                self._api.delete(ref, found["metadata"].get("uid", ""))
        except (NotFound, Conflict):
            return

    def forget(self, uid: str) -> None:
        """The run is gone, or its Secret does not fit any more."""
        self._there.discard(uid)
        self.forget_queue(uid)
        for place in [place for place in list(self._pems) if place[0] == uid]:
            self._pems.pop(place, None)

    def forget_queue(self, uid: str) -> None:
        """Nobody answers at the run's address: what it is now is read before it is asked again."""
        for place in [place for place in list(self._urls) if place[0] == uid]:
            self._urls.pop(place, None)

    def _make(self, run: TrainingRun, names: RunNames) -> bool:
        users = QueueUsers.draw(names.run_uid, run.spec.rollout.slip)
        secret = redis_secret(run, names, users)
        try:
            self._api.create(secret, MANAGER)
        except Conflict:
            # Somebody was faster; or nothing was made, since a quota was busy.
            if not self._is_there(run, names):
                raise
            return False
        return True

    def _is_there(self, run: TrainingRun, names: RunNames) -> bool:
        """Whether the run has its Secret. Raises Refused for another's under its name, which goes with that other."""
        try:
            found = self._api.get(Ref("Secret", names.namespace, names.redis))
        except NotFound:
            return False
        if not belongs_to(found, run.metadata.uid):
            raise taken(found)
        return True


def _value(secret: Mapping[str, Any], key: str) -> str:
    return base64.b64decode((secret.get("data") or {}).get(key, "")).decode(errors="replace")
