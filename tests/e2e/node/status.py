"""The status that a pod is given: phase, conditions, containers. Pure; times are handed in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Object = Mapping[str, Any]
OURS = ("PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready")


@dataclass(slots=True)
class ContainerState:
    """One container as its node sees it."""

    name: str
    image: str = ""
    waiting: str = "ContainerCreating"
    message: str = ""
    started_at: str = ""
    finished_at: str = ""
    exit_code: int | None = None
    reason: str = ""
    """Of the end, where it is neither Completed nor Error."""
    started: bool = False
    ready: bool = False
    restarts: int = 0
    last: dict[str, Any] = field(default_factory=dict)
    container_id: str = ""

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return bool(self.started_at) and self.exit_code is None

    def begin(self, now: str, container_id: str) -> None:
        """A process has started."""
        if self.exit_code is not None:
            self.last, self.restarts = {"terminated": self.terminated()}, self.restarts + 1
        self.waiting = self.message = self.reason = self.finished_at = ""
        self.started_at, self.exit_code, self.container_id = now, None, container_id
        self.started = self.ready = False

    def end(self, code: int, now: str, reason: str = "", message: str = "") -> None:
        """Its process has ended."""
        self.exit_code, self.finished_at, self.reason, self.message = code, now, reason, message
        self.started_at = self.started_at or now
        self.started = self.ready = False

    def terminated(self) -> dict[str, Any]:
        """state.terminated."""
        code = self.exit_code or 0
        told = {"message": self.message} if self.message else {}
        return {
            "exitCode": code,
            "reason": self.reason or ("Completed" if code == 0 else "Error"),
            "startedAt": self.started_at,
            "finishedAt": self.finished_at,
            "containerID": self.container_id,
            **told,
        }

    def to_status(self) -> dict[str, Any]:
        """An entry of containerStatuses."""
        if self.waiting:
            state: dict[str, Any] = {
                "waiting": {"reason": self.waiting} | ({"message": self.message} if self.message else {})
            }
            last = {"terminated": self.terminated()} if self.exit_code is not None else self.last
        elif self.exit_code is not None:
            state, last = {"terminated": self.terminated()}, self.last
        else:
            state, last = {"running": {"startedAt": self.started_at}}, self.last
        return {
            "name": self.name, "image": self.image, "imageID": self.image, "containerID": self.container_id,
            "state": state, "lastState": last, "ready": self.ready, "started": self.started,
            "restartCount": self.restarts,
        }  # fmt: skip


def restarts_after(policy: str, code: int) -> bool:
    """Whether a container that ended comes again."""
    return policy == "Always" or (policy == "OnFailure" and code != 0)


def phase_of(policy: str, containers: Sequence[ContainerState], *, initialised: bool, stopped: bool) -> str:
    """Pending, Running, Succeeded, Failed. `stopped`: none of them will come again."""
    ended = [one for one in containers if one.exit_code is not None]
    final = stopped or all(not restarts_after(policy, one.exit_code or 0) for one in ended)
    if containers and len(ended) == len(containers) and final:
        return "Failed" if any(one.exit_code for one in ended) else "Succeeded"
    if not initialised or not any(one.started_at for one in containers):
        return "Pending"
    return "Running"


def conditions_of(
    before: Sequence[Object], now: str, *, initialised: bool, ready: bool, phase: str, networked: bool
) -> list[dict[str, Any]]:
    """Ours anew, with the time of their last change kept; others' as they are."""
    over = phase in ("Succeeded", "Failed")
    not_ready = {
        "reason": "PodCompleted" if phase == "Succeeded" else "PodFailed" if over else "ContainersNotReady"
    }
    wanted = {
        "PodReadyToStartContainers": (networked and not over, {}),
        "Initialized": (initialised, {} if initialised else {"reason": "ContainersNotInitialized"}),
        "ContainersReady": (ready, {} if ready else not_ready),
        "Ready": (ready, {} if ready else not_ready),
    }
    old = {one["type"]: one for one in before}
    made = [dict(one) for one in before if one["type"] not in OURS]
    for kind, (holds, why) in wanted.items():
        status = str(holds)
        same = kind in old and old[kind].get("status") == status
        since = old[kind].get("lastTransitionTime", now) if same else now
        made.append({"type": kind, "status": status, "lastTransitionTime": since, **why})
    return made
