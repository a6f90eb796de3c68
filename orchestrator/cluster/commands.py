"""What `trimtab submit`, `runs`, `suspend`, `resume`, `scale`, `delete` do with a cluster. Knows no flags.

Everything goes through the API server: the operator sees it as it sees kubectl's, and need not be reachable.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.cluster.client.api import Api
from orchestrator.cluster.client.connect import connect, namespace_of
from orchestrator.cluster.client.errors import Refused
from orchestrator.cluster.control.pods import moment
from orchestrator.cluster.control.resources import Object, Ref
from orchestrator.cluster.documents import read_documents
from orchestrator.cluster.kinds import TrainingRun, read_object
from orchestrator.cluster.names import RUN, SERVICE, RunNames, service_of
from orchestrator.cluster.render.services import stage_role, stages_of
from services.common.errors import InvalidInput, NotFound

MANAGER = "trimtab-cli"
WAIT_SECONDS = 900.0


def to_submit(
    file: Path, kubeconfig: Path | None, context: str | None, namespace: str | None
) -> list[Object]:
    """The documents of a file, checked whole, before any cluster is asked: the file's mistakes come first."""
    home = namespace or namespace_of(kubeconfig, context)
    return [document for _, document in read_documents(file, home)]


class Cluster:
    """One API server and namespace."""

    def __init__(self, kubeconfig: Path | None, context: str | None, namespace: str | None) -> None:
        self.api = Api(connect(kubeconfig, context))
        self.namespace = namespace or namespace_of(kubeconfig, context)

    def run(self, name: str) -> Object:
        """A TrainingRun. Raises NotFound, with the command that shows which there are."""
        try:
            return self.api.get(Ref("TrainingRun", self.namespace, name))
        except NotFound:
            raise NotFound(
                f"there is no TrainingRun {name} in namespace {self.namespace}: `trimtab runs -A` shows all"
            ) from None

    # ------------------------------------------------------------ changing

    def submit(self, documents: Sequence[Object]) -> list[Object]:
        """Make or change what documents describe that `to_submit` has checked."""
        return [self.api.apply(document, MANAGER) for document in documents]

    def suspend(self, name: str, suspended: bool) -> Object:
        """Set spec.suspend."""
        item = self.run(name)
        return self.api.merge(Ref.of(item), {"spec": {"suspend": suspended}}, MANAGER)

    def scale(self, name: str, counts: Mapping[str, int]) -> list[str]:
        """Set the replicas of services of a run; what was done, a line each."""
        item = self.run(name)
        run = read_object(TrainingRun, item)
        services = {service_of(stage): stage for stage in stages_of(run)}
        for service in counts:
            if service not in services:
                raise InvalidInput(f"{name} has no role {service}: {', '.join(services)}")
            if stage_role(run, services[service]).scaling.mode == "Auto":
                raise InvalidInput(
                    f"{name}: {service} is scaled by the planner: set its scaling.mode to Static or External first"
                )
        return [self._scale(item, run, services[service], count) for service, count in counts.items()]

    def delete(self, name: str, *, wait: bool) -> None:
        """Delete a run; with `wait` until nothing is left of it."""
        item = self.run(name)
        ref, uid = Ref.of(item), item["metadata"]["uid"]
        self.api.delete(ref, uid)
        ends = time.monotonic() + WAIT_SECONDS
        while wait:
            try:
                if self.api.get(ref)["metadata"]["uid"] != uid:
                    return
            except NotFound:
                return
            if time.monotonic() > ends:
                raise InvalidInput(
                    f"{name} is still there after {WAIT_SECONDS:.0f} s: is an operator running?"
                )
            time.sleep(0.5)

    # ------------------------------------------------------------ looking

    def runs(self, *, everywhere: bool) -> list[Object]:
        """The TrainingRuns, by namespace and name."""
        found = self.api.list("TrainingRun", "" if everywhere else self.namespace).items
        return sorted(found, key=lambda item: (item["metadata"]["namespace"], item["metadata"]["name"]))

    def logs(self, name: str, service: str, lines: int, tell: Callable[[str, str], None]) -> None:
        """The last lines of each pod of a run, or of one service of it; `tell(pod, line)`.

        Of a pod that has none, since it has not begun or is gone meanwhile, why.
        """
        self.run(name)
        selector = f"{RUN}={name}" + (f",{SERVICE}={service}" if service else "")
        pods = self.api.list("Pod", self.namespace, selector).items
        if not pods:
            raise NotFound(f"{name} has no pods" + (f" of {service}" if service else ""))
        for pod in sorted(pods, key=lambda item: item["metadata"]["name"]):
            container = pod["spec"]["containers"][0]["name"]
            try:
                text = self.api.log(Ref.of(pod), container, lines)
            except (Refused, NotFound) as error:
                text = str(error)
            for line in text.splitlines():
                tell(pod["metadata"]["name"], line)

    def _scale(self, item: Object, run: TrainingRun, stage: str, count: int) -> str:
        role, service = stage_role(run, stage), service_of(stage)
        if role.scaling.mode == "External":
            deployment = Ref("Deployment", self.namespace, RunNames.of(run).service(service))
            self.api.merge(deployment, {"spec": {"replicas": count}}, MANAGER, "scale")
            return f"{service} of {run.metadata.name} is at {count}"
        self.api.merge(Ref.of(item), {"spec": _replicas_patch(item, run, stage, count)}, MANAGER)
        return f"{service} of {run.metadata.name} is held at {count}"


def _replicas_patch(item: Object, run: TrainingRun, stage: str, count: int) -> dict[str, Any]:
    if stage.partition("/")[0] == "reward" and run.spec.reward_of(stage).role is not None:
        entries = [
            entry | {"role": entry["role"] | {"replicas": count}} if entry["stage"] == stage else entry
            for entry in item["spec"]["rewards"]
        ]
        return {"rewards": entries}
    return {"roles": {stage.partition("/")[0]: {"replicas": count}}}


# ---------------------------------------------------------------- in words

COLUMNS = ("NAME", "STATE", "STAGE", "STEP", "REWARD", "KL", "POLICY", "REFERENCE", "REWARDS", "AGE")


def table(runs: Sequence[Object], now: datetime, *, everywhere: bool) -> list[str]:
    """Runs as lines, a heading first."""
    rows = [COLUMNS, *(_row(run, now) for run in runs)]
    if everywhere:
        spaces = ("NAMESPACE", *(run["metadata"]["namespace"] for run in runs))
        rows = [(space, *row) for space, row in zip(spaces, rows, strict=True)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def described(run: Object, now: datetime) -> list[str]:
    """One run: what `kubectl describe` would tell, without the spec."""
    status = run.get("status") or {}
    lines = [*table([run], now, everywhere=True), ""]
    lines += [
        f"{one['type']:<16} {one['status']:<8} {one['reason']:<18} {one.get('message', '')}".rstrip()
        for one in status.get("conditions") or ()
    ]
    for role in status.get("roles") or ():
        more = {
            "backlog": role.get("backlogGroups"),
            "idle": role.get("idleShare"),
            "wanted": role.get("wanted"),
        }
        told = "".join(f", {name} {_number(value)}" for name, value in more.items() if value is not None)
        lines.append(f"{role['name']:<16} {role.get('ready', 0)} of {role.get('desired', 0)} serve{told}")
    checkpoint = status.get("lastCheckpoint")
    if checkpoint:
        lines.append(f"last checkpoint  step {checkpoint['step']} {checkpoint.get('path', '')}".rstrip())
    return lines


def as_json(value: object) -> str:
    """For a program."""
    return json.dumps(value, ensure_ascii=False)


def read_counts(words: Sequence[str]) -> dict[str, int]:
    """role=N as a map. Raises InvalidInput."""
    counts = {}
    for word in words:
        role, equals, number = word.partition("=")
        if not equals or not role or not number.isdecimal():
            raise InvalidInput(f"{word}: expected role=number, for example policy=4")
        counts[role] = int(number)
    return counts


def _row(run: Object, now: datetime) -> tuple[str, ...]:
    status = run.get("status") or {}
    conditions = {one["type"]: one for one in status.get("conditions") or ()}
    serving = {role["name"]: role for role in status.get("roles") or ()}
    rewards = [role for name, role in serving.items() if name.partition("-")[0] == "reward"]
    return (
        run["metadata"]["name"],
        conditions.get("Progressing", {}).get("reason", "Unknown"),
        status.get("stage") or "-",
        f"{status.get('step', 0)}/{status.get('steps', 0)}",
        _number(status.get("reward")),
        _number(status.get("kl")),
        _served([serving["policy"]] if "policy" in serving else []),
        _served([serving["reference"]] if "reference" in serving else []),
        _served(rewards),
        _age(run, now),
    )


def _served(roles: Sequence[Mapping[str, Any]]) -> str:
    if not roles:
        return "-"
    return f"{sum(role.get('ready', 0) for role in roles)}/{sum(role.get('desired', 0) for role in roles)}"


def _number(value: object) -> str:
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def _age(run: Object, now: datetime) -> str:
    made = moment(run["metadata"].get("creationTimestamp"))
    if made is None:
        return "-"
    seconds = max(0, int((now.astimezone(UTC) - made).total_seconds()))
    for size, letter in ((86_400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds // size}{letter}"
    return f"{seconds}s"
