"""What each user of the queue server may do, and on which keys: a user per service, from the steps that it takes.

Pure: names, grants, and the lines of an ACL file as Redis 7.0 and Valkey read them. Knows no server and draws no
password. What is granted is what `scripts.py` and `redis_stages.py` send and nothing else: a test takes each right
away in turn and sees something refused.

    policy      its own stream (take, renew, hand back);   append to: the next stage, the learner's, dead letters
    learner     its own stream, epoch, sentinel, nonce;    append to: the first stage, dead letters;  look at: all
    viewer      look at all (backlogs, dead letters)
    operator    look at all, put dead letters back, remove the run's keys

A script runs under the rights of who sends it, command by command and key by key, so EVALSHA on all keys of the run
gives nothing by itself.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from services.common.errors import InvalidInput
from services.common.stages.base import LEARNER_STAGE
from services.common.stages.entry import RunKeys

VIEWER, OPERATOR = "viewer", "operator"
Access = Literal["read", "write", "both"]
_MARK: Mapping[Access, str] = {"read": "%R~", "write": "%W~", "both": "~"}
# They stand unquoted in a line of words, and in patterns: nothing of what these mean there.
_SAFE = re.compile(r"[A-Za-z0-9_./-]{1,128}")
_SAFE_UID = re.compile(r"[A-Za-z0-9_.-]{1,63}\*?")


@dataclass(frozen=True, slots=True)
class Grant:
    """Commands on keys: one selector of an ACL user. A key ending in `*` stands for all that begin so."""

    commands: tuple[str, ...]
    keys: tuple[str, ...]
    access: Access = "both"

    def selector(self) -> str:
        """As it stands in an ACL file."""
        keys = (f"{_MARK[self.access]}{key}" for key in self.keys)
        return f"({' '.join((*keys, *(f'+{command}' for command in self.commands)))})"


def grants(run_uid: str, slip: Sequence[str], others: Sequence[str] = ()) -> dict[str, tuple[Grant, ...]]:
    """The users of a run: each stage of its slip, the learner, `viewer`, `operator`.

    `run_uid` may end in `*`: all runs whose uid begins so. `others`: stages that work though no slip leads there.
    Raises InvalidInput for a name that an ACL file cannot hold.
    """
    if not _SAFE_UID.fullmatch(run_uid):
        raise InvalidInput(f"run_uid: {run_uid!r} is no uid, nor the beginning of one and a *")
    for stage in (*slip, *others):
        if not _SAFE.fullmatch(stage) or stage in (VIEWER, OPERATOR):
            raise InvalidInput(f"stage: {stage!r} cannot be the name of a user of the queue server")
    keys = RunKeys(run_uid)
    stages = [stage for stage in slip if stage != LEARNER_STAGE]
    steps = list(pairwise((*stages, LEARNER_STAGE)))
    following = {stage: [after for before, after in steps if before == stage] for stage in (*others, *stages)}
    return {
        **{stage: _worker(keys, stage, after) for stage, after in following.items()},
        LEARNER_STAGE: _learner(keys, stages),
        VIEWER: _viewer(keys),
        OPERATOR: _operator(keys),
    }


def user_name(run_uid: str, service: str) -> str:
    """The user of a service (or stage) of a run. Unique on a server that several runs share."""
    return f"{run_uid.rstrip('*')}.{service.replace('/', '-')}"


def acl_line(user: str, password: str, granted: Sequence[Grant]) -> str:
    """One user as it stands in an ACL file or in the server's settings. The password stands there as SHA-256."""
    hashed = hashlib.sha256(password.encode()).hexdigest()
    selectors = " ".join(grant.selector() for grant in granted)
    return f"user {user} reset on resetchannels #{hashed} +ping {selectors}"


def _scripts(keys: RunKeys) -> Grant:
    return Grant(("evalsha", "eval"), (keys.every,))


def _appends(*streams: str) -> Grant:
    return Grant(("type", "xadd"), tuple(dict.fromkeys(streams)), "write")


_MOVES = ("xreadgroup", "xpending", "xclaim", "xack", "xdel", "xgroup|create", "xgroup|delconsumer")


def _worker(keys: RunKeys, stage: str, following: Sequence[str]) -> tuple[Grant, ...]:
    own = ("type", "xadd", "xautoclaim", "xrange", "xinfo|consumers", *_MOVES)
    return (
        _scripts(keys),
        Grant(own, (keys.stage(stage),)),
        # What failed for good goes to the learner from any stage.
        _appends(*map(keys.stage, following), keys.stage(LEARNER_STAGE), keys.dead),
        Grant(("sadd",), (keys.stages,), "write"),
    )


def _learner(keys: RunKeys, slip: Sequence[str]) -> tuple[Grant, ...]:
    stages = tuple(keys.stage(stage) for stage in slip)
    return (
        _scripts(keys),
        Grant(_MOVES, (keys.stage(LEARNER_STAGE),)),
        # Streams that are not there yet are made, with their groups.
        Grant(("xgroup|create",), stages, "write"),
        _appends(*stages[:1], keys.dead),
        Grant(("get", "set"), (keys.epoch, keys.sentinel, keys.admitted)),
        Grant(("sadd",), (keys.stages,), "write"),
        *_looks(keys),
    )


def _viewer(keys: RunKeys) -> tuple[Grant, ...]:
    return (
        _scripts(keys),
        *_looks(keys),
        Grant(("xrange",), (keys.dead,), "read"),
    )


def _operator(keys: RunKeys) -> tuple[Grant, ...]:
    return (
        *_viewer(keys),
        Grant(("xadd",), (keys.stage("*"),), "write"),
        Grant(("xdel",), (keys.dead,), "write"),
        Grant(("sadd",), (keys.stages,), "write"),
        Grant(("unlink",), (keys.every,), "write"),
    )


def _looks(keys: RunKeys) -> tuple[Grant, ...]:
    """What a scan needs, whatever stages there are."""
    return (
        Grant(("smembers", "scard"), (keys.stages,), "read"),
        Grant(("exists",), (keys.epoch, keys.sentinel), "read"),
        Grant(("type", "xlen", "xrange", "xinfo|groups", "xinfo|consumers"), (keys.stage("*"),), "read"),
    )
