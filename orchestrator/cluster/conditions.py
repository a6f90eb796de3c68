"""From what is seen of a run or a reward model to its conditions. Pure: the time is handed in; reads no cluster.

| condition | True |
|---|---|
| Available | the queue is there, every stage has a replica that serves, and the learner trains |
| Progressing | something is still on its way: pods, a job, an update; its reason is the run's state in `kubectl get` |
| Degraded | something is wrong that somebody should look at; the message says what |
| Stalled | it does not go on by itself: a role that no node takes, a stage without a worker, pods that cannot start |
| ScalingReady | the scaler sees what it needs to decide |
| Finished | Succeeded or Failed; `kubectl wait --for=condition=Finished` |
| <Role>Ready | as many replicas serve as are wanted |

A transition time moves only when the status does, so a resync that finds nothing new writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from orchestrator.cluster.kinds import Condition
from orchestrator.cluster.kinds.base import MOST_MESSAGE
from services.common.digests import same_digest


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleFacts:
    """One role as it was seen."""

    name: str
    """policy, reference, reward, reward-<name>, learner."""
    desired: int
    ready: int = 0
    updated: int = 0
    draining: int = 0
    """Told to go, and not ready any more for it: still in the Deployment's number, and missed by nobody."""
    least: int = 1
    """Replicas without which it does nothing: all of a learner's, whose processes train one model together."""
    unschedulable: str = ""
    """The scheduler's words where a pod finds no node; empty: none waits."""
    failing: str = ""
    """What its pods end with (a wrong configuration, an image that is not there); empty: nothing."""
    unserved_seconds: float = 0.0
    """For how long groups have waited on its stage without anybody to take them."""

    @property
    def serves(self) -> bool:
        """Whether enough are there for anything to be done."""
        return self.ready >= self.least

    @property
    def missing(self) -> int:
        """Replicas that are to serve and do not."""
        return max(0, self.desired - self.draining - self.ready)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """A run as it was seen."""

    generation: int
    roles: tuple[RoleFacts, ...] = ()
    beside: tuple[RoleFacts, ...] = ()
    """Pods that are no role of the run, but that it waits for: its queue's server, the job before RL."""
    suspended: bool = False
    admitted: bool = True
    job: str = ""
    """The job before RL that is going on: sft, rewardModel; empty: RL."""
    finished: str = ""
    """Succeeded, Failed, or empty."""
    message: str = ""
    """About the end, in words."""
    invalid: str = ""
    """Why the spec cannot be carried out."""
    refused: str = ""
    """What the API server says of an object that it does not take: a quota, an admission webhook, a right."""
    kueue_unseen: str = ""
    """Why nobody knows whether Kueue admits it, in the server's words."""
    flavors_unread: str = ""
    """Kueue's flavors that may not be read, or are not there, in the server's words."""
    scaling_blind: str = ""
    """Why the scaler stands still."""
    scaled_at_rest: str = ""
    """What somebody else scales though the run is at rest, in words."""
    restarts: int = 0
    """Attempts of the learner since its last checkpoint that ended by failure."""
    stall_seconds: float = 60.0
    """A stage without a worker for so long is stalled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModelFacts:
    """A reward model as it was seen."""

    generation: int
    role: RoleFacts
    digest: str = ""
    """That its replicas say they serve; empty: not known yet."""
    pinned: str = ""
    invalid: str = ""
    refused: str = ""
    scaling: str = ""
    """About the scaler where it sees, in words; empty: the usual."""
    scaling_blind: str = ""


@dataclass(frozen=True, slots=True)
class _Claim:
    type: str
    status: bool | None
    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class _Trouble:
    reason: str
    message: str
    stalls: bool = field(default=True)


def run_conditions(facts: RunFacts, previous: Sequence[Condition], now: datetime) -> tuple[Condition, ...]:
    """The conditions of a run. `previous`: those it has. `now`: with a time zone."""
    troubles = _run_troubles(facts)
    claims = [
        _available(facts),
        _progressing(facts, troubles),
        _degraded(troubles),
        _stalled(troubles),
        _run_scaling(facts),
        _finished(facts),
        *(_role_ready(role) for role in facts.roles),
    ]
    return settled(claims, previous, facts.generation, now)


def reward_model_conditions(
    facts: RewardModelFacts, previous: Sequence[Condition], now: datetime
) -> tuple[Condition, ...]:
    """The conditions of a reward model. Another model than the pinned one is not Available, nor is an unknown one."""
    role = facts.role
    wrong = facts.pinned and facts.digest and not same_digest(facts.digest, facts.pinned)
    troubles = _role_troubles(role, 60.0)
    if facts.refused:
        troubles.insert(0, _Trouble("Refused", facts.refused))
    if facts.invalid:
        troubles.insert(0, _Trouble("SpecInvalid", facts.invalid))
    if wrong:
        troubles.insert(0, _Trouble("DigestMismatch", f"serves {facts.digest}, pinned is {facts.pinned}"))
    if wrong:
        available = _Claim("Available", False, "DigestMismatch", troubles[0].message)
    elif role.ready and facts.pinned and not facts.digest:
        unknown = f"no metrics page of a replica has said yet what it serves; pinned is {facts.pinned}"
        available = _Claim("Available", None, "DigestUnknown", unknown)
    elif role.ready:
        available = _Claim("Available", True, "Serving", f"{role.ready} of {role.desired} replicas serve")
    else:
        available = _Claim(
            "Available", False, "NoReplica" if role.desired else "ScaledToZero", "nobody serves"
        )
    moving = role.updated < role.desired or role.missing > 0
    progressing = _Claim("Progressing", moving, "RollingOut" if moving else "Settled", _counts(role))
    claims = [
        available,
        progressing,
        _degraded(troubles),
        _stalled(troubles),
        _scaling(facts.scaling_blind, idle=False, told=facts.scaling),
    ]
    return settled(claims, previous, facts.generation, now)


def settled(
    claims: Iterable[_Claim], previous: Sequence[Condition], generation: int, now: datetime
) -> tuple[Condition, ...]:
    """Claims as conditions; a transition time is kept where the status is the same as before.

    A message that is too long (an admission webhook may say anything) is cut, so that it can be told at all.
    """
    before: Mapping[str, Condition] = {condition.type: condition for condition in previous}
    time = now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    made = []
    for claim in claims:
        status = "Unknown" if claim.status is None else str(claim.status)
        old = before.get(claim.type)
        same = old is not None and old.status == status
        made.append(
            Condition.model_validate(
                {
                    "type": claim.type,
                    "status": status,
                    "reason": claim.reason,
                    "message": _cut(claim.message),
                    "lastTransitionTime": old.last_transition_time if old is not None and same else time,
                    "observedGeneration": generation,
                }
            )
        )
    return tuple(made)


def _cut(message: str) -> str:
    return message if len(message) <= MOST_MESSAGE else message[: MOST_MESSAGE - 1] + "…"


def role_condition(role: str) -> str:
    """The condition's type of a role: reward-hh has RewardHhReady."""
    return "".join(part.capitalize() for part in role.split("-")) + "Ready"


def _available(facts: RunFacts) -> _Claim:
    if facts.finished:
        return _Claim("Available", False, "Finished", facts.message)
    if facts.suspended:
        return _Claim("Available", False, "Suspended", "spec.suspend is true")
    if facts.invalid or not facts.admitted or facts.job or not facts.roles:
        return _Claim("Available", False, _state(facts), _waits_for(facts))
    if without := [role for role in (*facts.beside, *facts.roles) if not role.serves]:
        return _Claim("Available", False, "NoReplica", _without(without))
    return _Claim("Available", True, "Training", "every role serves")


def _without(roles: Sequence[RoleFacts]) -> str:
    nobody = ", ".join(role.name for role in roles if role.ready == 0)
    few = [_counts(role) for role in roles if role.ready]
    return "; ".join([*([f"nobody serves {nobody}"] if nobody else []), *few])


def _progressing(facts: RunFacts, troubles: Sequence[_Trouble]) -> _Claim:
    """Its reason is the state that `kubectl get` shows."""
    state = _state(facts)
    if state in ("Succeeded", "Failed", "Suspended", "SpecInvalid"):
        return _Claim("Progressing", False, state, facts.invalid or facts.message)
    stalled = next((trouble for trouble in troubles if trouble.stalls), None)
    if stalled is not None:
        return _Claim("Progressing", False, "Stalled", stalled.message)
    return _Claim("Progressing", True, state, _waits_for(facts))


def _state(facts: RunFacts) -> str:
    if facts.finished:
        return facts.finished
    if facts.invalid:
        return "SpecInvalid"
    if facts.suspended:
        return "Suspended"
    if not facts.admitted:
        return "Queued"
    if facts.job:
        return {"sft": "FineTuning", "rewardModel": "TrainingRewardModel"}.get(facts.job, "Job")
    if not all(role.serves for role in (*facts.beside, *facts.roles)) or not facts.roles:
        return "Starting"
    return "Updating" if any(role.updated < role.desired for role in facts.roles) else "Training"


def _waits_for(facts: RunFacts) -> str:
    if facts.invalid:
        return facts.invalid
    if not facts.admitted:
        return "waits for Kueue to admit all roles together"
    if facts.job:
        return f"the job {facts.job} goes first"
    waiting = (role for role in (*facts.beside, *facts.roles) if role.missing)
    return "; ".join(_counts(role) for role in waiting) or "all replicas serve"


def _counts(role: RoleFacts) -> str:
    drains = f", {role.draining} drain" if role.draining else ""
    return f"{role.name}: {role.ready} of {role.desired} serve, {role.updated} are up to date{drains}"


def _run_troubles(facts: RunFacts) -> list[_Trouble]:
    if facts.finished == "Failed":
        return [_Trouble("RunFailed", facts.message, stalls=False)]
    troubles = [_Trouble("SpecInvalid", facts.invalid)] if facts.invalid else []
    if facts.refused:
        troubles.append(_Trouble("Refused", facts.refused))
    if facts.finished or facts.suspended:
        return troubles
    if facts.kueue_unseen:
        told = f"left as it is, since what Kueue says of it cannot be seen: {facts.kueue_unseen}"
        troubles.append(_Trouble("KueueUnseen", told, stalls=False))
    for role in (*facts.beside, *facts.roles):
        troubles += _role_troubles(role, facts.stall_seconds)
    if facts.flavors_unread:
        told = f"pods may come up on other nodes than Kueue assigned: {facts.flavors_unread}"
        troubles.append(_Trouble("FlavorUnread", told, stalls=False))
    if facts.restarts:
        troubles.append(
            _Trouble(
                "LearnerRestarts", f"{facts.restarts} attempts failed since the last checkpoint", stalls=False
            )
        )
    return troubles


def _role_troubles(role: RoleFacts, stall_seconds: float) -> list[_Trouble]:
    troubles = []
    if role.failing:
        troubles.append(_Trouble("PodsFail", f"{role.name}: {role.failing}", stalls=not role.serves))
    if role.unschedulable:
        reason = f"{role.name}: no node: {role.unschedulable}"
        troubles.append(_Trouble("Unschedulable", reason, stalls=not role.serves))
    if role.unserved_seconds >= stall_seconds and not role.serves:
        waited = f"{role.name}: groups have waited for {role.unserved_seconds:.0f} s and nobody takes them"
        troubles.append(_Trouble("StageWithoutWorker", waited))
    return troubles


def _degraded(troubles: Sequence[_Trouble]) -> _Claim:
    if not troubles:
        return _Claim("Degraded", False, "AsExpected")
    more = f" (and {len(troubles) - 1} more)" if len(troubles) > 1 else ""
    return _Claim("Degraded", True, troubles[0].reason, troubles[0].message + more)


def _stalled(troubles: Sequence[_Trouble]) -> _Claim:
    """Of its own, since tools that wait for any object (kstatus) know this type."""
    stalled = next((trouble for trouble in troubles if trouble.stalls), None)
    if stalled is None:
        return _Claim("Stalled", False, "AsExpected")
    return _Claim("Stalled", True, stalled.reason, stalled.message)


def _run_scaling(facts: RunFacts) -> _Claim:
    if facts.scaled_at_rest:
        return _Claim("ScalingReady", False, "ScaledAtRest", facts.scaled_at_rest)
    return _scaling(facts.scaling_blind, idle=facts.suspended or bool(facts.finished))


def _scaling(blind: str, *, idle: bool, told: str = "") -> _Claim:
    if idle:
        return _Claim("ScalingReady", True, "Idle", "nothing to scale")
    if blind:
        return _Claim("ScalingReady", False, "StandsStill", blind)
    return _Claim("ScalingReady", True, "Seeing", told or "every rate that is needed is known")


def _finished(facts: RunFacts) -> _Claim:
    if facts.finished:
        return _Claim("Finished", True, facts.finished, facts.message)
    return _Claim("Finished", False, "Running")


def _role_ready(role: RoleFacts) -> _Claim:
    kind = role_condition(role.name)
    if role.desired == 0:
        return _Claim(kind, True, "ScaledToZero", "no replica is wanted")
    if not role.missing:
        return _Claim(kind, True, "Serving", _counts(role))
    reason = "Unschedulable" if role.unschedulable else ("PodsFail" if role.failing else "Starting")
    return _Claim(kind, False, reason, role.unschedulable or role.failing or _counts(role))
