"""How a failure travels with a group: one line, a status, its origin. Knows no worker and no queue."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from services.common.errors import TrimtabError
from services.common.stages.base import LEARNER_STAGE, Entry
from trimtab.common.v1 import common_pb2 as common
from trimtab.rollout.v1.rollout_pb2 import RolloutGroup

_MESSAGE_LIMIT = 500


def error_info(error: Exception, *, origin: str) -> common.ErrorInfo:
    """An exception in the form that travels with a group: one line, the status of our tree or INTERNAL."""
    if isinstance(error, TrimtabError):
        code, text = error.status, str(error)
    else:
        code, text = "INTERNAL", f"{type(error).__name__}: {error}"
    return common.ErrorInfo(code=code, message=" ".join(text.split())[:_MESSAGE_LIMIT], origin=origin)


def failed_payload(entry: Entry, error: common.ErrorInfo) -> bytes:
    """The group as the learner gets it when it failed for good: as taken, with failure, slip at its end.

    A payload that is no RolloutGroup is replaced by one with the identity alone.
    """
    try:
        group = RolloutGroup.FromString(entry.payload)
    except DecodeError:
        # What was damaged may be no text: protobuf's strings are.
        name = entry.group_id.encode(errors="surrogateescape").decode(errors="replace")
        group = RolloutGroup(group_id=name, admission_number=entry.admission_number)
    group.failure.CopyFrom(error)
    del group.slip[:]
    group.slip.append(LEARNER_STAGE)
    return group.SerializeToString()
