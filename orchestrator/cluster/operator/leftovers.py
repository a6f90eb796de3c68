"""What a run leaves on a queue server that is not its own: its keys, removed when the run is deleted. Knows no pods.

A server of the run's own goes with it. Elsewhere the keys would stay for ever, since nobody else knows that they are
of no use any more. A server that cannot be asked must not hold the run for ever either: an Event then says what stays.
"""

from __future__ import annotations

from orchestrator.cluster.control.pods import moment
from orchestrator.cluster.control.resources import Object
from orchestrator.cluster.kinds import TrainingRun, read_object
from orchestrator.cluster.names import RunNames
from orchestrator.cluster.operator.probe import Probe
from orchestrator.cluster.operator.secrets import RunSecrets
from orchestrator.cluster.operator.shared import Tools
from services.common.errors import InvalidInput

PATIENCE_SECONDS = 120.0
"""After its deletion was asked for: so long is tried again."""


class Leftovers:
    """Of all runs."""

    def __init__(self, tools: Tools, secrets: RunSecrets, probe: Probe) -> None:
        self._tools, self._secrets, self._probe = tools, secrets, probe

    def remove(self, item: Object) -> bool:
        """One try; whether the run may go: they are removed, there are none, or time is up."""
        try:
            run = read_object(TrainingRun, item)
        except InvalidInput as error:
            return self._give_up(item, f"its spec cannot be read: {error}")
        if run.spec.redis.owned is not None:
            return True
        names = RunNames.of(run)
        queue = self._secrets.queue_door(run, names)
        why = (
            "the Secret with its address cannot be read"
            if queue is None
            else self._probe.forget_keys(queue, names.run_uid)
        )
        if not why:
            return True
        asked = moment(item["metadata"].get("deletionTimestamp"))
        if asked is not None and (self._tools.now() - asked).total_seconds() < PATIENCE_SECONDS:
            return False
        return self._give_up(item, why, names.run_uid)

    def _give_up(self, item: Object, why: str, run_uid: str = "") -> bool:
        keys = f"trimtab:{{{run_uid}}}:*" if run_uid else "its keys"
        note = f"{keys} may still be on the queue server: {why}"
        self._tools.recorder.tell(item, "Delete", "KeysLeft", note, warning=True)
        return True
