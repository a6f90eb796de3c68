"""The Secret of a run's own queue server: made once, never written again; and the URL in it, for scrapes.

Decision: Secrets are not watched. The operator needs `create` and `get`, and holds nobody's list of them in memory.
Rejected: a watch, which would notice a removed Secret sooner, for the right to read all of them at any time.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from orchestrator.cluster.client.api import Api
from orchestrator.cluster.client.errors import Conflict
from orchestrator.cluster.control.resources import Ref
from orchestrator.cluster.kinds import TrainingRun
from orchestrator.cluster.names import MANAGER, RunNames
from orchestrator.cluster.operator.applier import belongs_to
from orchestrator.cluster.render import redis_secret
from orchestrator.cluster.render.services import queue_secret
from orchestrator.queue_users import QueueUsers
from services.common.errors import NotFound, TrimtabError
from services.common.stages.rights import OPERATOR


class QueueSecrets:
    """Of all runs. Looked at once in the life of this process for each run."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._there: set[str] = set()
        self._urls: dict[str, str] = {}

    def ensure(self, run: TrainingRun, names: RunNames) -> bool:
        """Make it if it is not there; whether it was made."""
        if run.spec.redis.owned is None or run.metadata.uid in self._there:
            return False
        made = False
        try:
            self._api.get(Ref("Secret", names.namespace, names.redis))
        except NotFound:
            made = self._make(run, names)
        self._there.add(run.metadata.uid)
        return made

    def queue_url(self, run: TrainingRun, names: RunNames) -> str:
        """Of the run's server, for whoever looks at backlogs; empty where it cannot be told."""
        redis, uid = run.spec.redis, run.metadata.uid
        if redis.url is not None:
            return redis.url
        if uid not in self._urls:
            name, key = queue_secret(run, names, OPERATOR)
            try:
                self._urls[uid] = _value(self._api.get(Ref("Secret", names.namespace, name)), key)
            except TrimtabError:
                return ""
        return self._urls[uid]

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
        self._urls.pop(uid, None)

    def _make(self, run: TrainingRun, names: RunNames) -> bool:
        users = QueueUsers.draw(names.run_uid, run.spec.rollout.slip)
        secret = redis_secret(run, names, users)
        try:
            self._api.create(secret, MANAGER)
        except Conflict:
            return False
        return True


def _value(secret: Mapping[str, Any], key: str) -> str:
    return base64.b64decode((secret.get("data") or {}).get(key, "")).decode(errors="replace")
