"""What recovers a service from a fault, told from what was seen of its process. Pure."""

from __future__ import annotations

from tests.chaos.faults import LEARNER, PREFERENCE, QUEUE, Fault

_SAME_PROCESS = {
    "kill": "it was on its way back already",
    "stop": "it woke up; what others took over meanwhile it let go",
    "restart": "it was on its way back already",
    "cut": "connected again",
    "unheard": "asked again; the second time changed nothing",
    "delay": "waited for",
    "flip": "refused by its digest, fetched again",
    "twice": "refused by its offsets or the connection, fetched again",
    "full": "what could not be written was not acknowledged, and written later",
    "lose": "it was on its way back already",
    "clock": "nothing goes by it",
}


def recovered_by(fault: Fault, before: int | None, now: int | None) -> str:
    """In words. before, now: the process of the fault's target when it struck and when it had recovered, if any."""
    if before is not None and now is None:
        return "others went on without it"
    if now == before or before is None:
        return _SAME_PROCESS[fault.kind]
    if fault.target == LEARNER:
        return "a new learner, from the last checkpoint, in a new epoch"
    if fault.target == QUEUE and fault.kind == "lose":
        return "a new server, empty; the learner admitted again what was lost"
    if fault.target == QUEUE:
        return "a new server, with what its file holds"
    if fault.target == PREFERENCE:
        return "a new process, with what its database holds"
    return "a new process; what it held went to others or back"
