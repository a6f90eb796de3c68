"""docs/reliability.md, from the authorisation table and the chaos report: `python -m tests.chaos.page`."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor

from orchestrator.mutual_tls import CALLERS
from services.common.access.scopes import scope_of
from tests.chaos.report import report_of
from tests.fuzz.page import fuzz_table
from trimtab.learner.v1 import learner_pb2
from trimtab.policy.v1 import policy_pb2
from trimtab.preference.v1 import preference_pb2
from trimtab.reference.v1 import reference_pb2
from trimtab.reward.v1 import reward_pb2
from trimtab.weights.v1 import weights_pb2

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
_FILES = (policy_pb2, reference_pb2, reward_pb2, learner_pb2, weights_pb2, preference_pb2)
_HEAD = """\
# Reliability

Made from results by `python -m tests.chaos.page`; a test holds it against them.

## Who may call what

A key, or a client certificate, has scopes; none implies another ([access](../services/common/access/README.md)).
Health and metrics have ports of their own and need none; reflection needs a known caller.

| method | scope |
|---|---|
"""
_RUN = """
Inside a run with mTLS ([`spec.tls`](../deploy/charts/trimtab/README.md), `--tls`) a caller's scopes follow from the
name of its certificate; whoever is not in the table is a stranger.

| service | caller's certificate | scopes |
|---|---|---|
"""
_CHAOS = """
## A run under faults

`make chaos SEED=… MINUTES=…`: random walks over the local stack and an annotator at the preference service, struck at
moments that the seed decides ([chaos](../tests/chaos/README.md)). Recovery is the time from a fault's end until two
steps more were trained (two comparisons more acknowledged, where the preference service was struck), faults
overlapping. Wrong: what an invariant did not explain.

| seed | minutes | faults | steps | admitted | trained | stale | failed | dead letters | labels | wrong | optimality |
|---|---|---|---|---|---|---|---|---|---|---|---|
"""


def page(report: dict[str, Any]) -> str:
    """The whole page."""
    lines = [f"| `{method}` | `{scope_of(method)}` |" for method in methods()]
    told = _HEAD + "\n".join(lines) + "\n" + _RUN + "\n".join(_callers()) + "\n"
    if report:
        told += _CHAOS + "\n".join(_run(seed, run) for seed, run in report.items()) + "\n\n" + _kinds(report)
    return told + fuzz_table()


def _callers() -> list[str]:
    return [
        f"| {role} | {who} | {', '.join(f'`{one}`' for one in scopes)} |"
        for role, callers in CALLERS.items()
        for who, scopes in callers.items()
    ]


def methods() -> list[str]:
    """package.Service/Method of every service in the contract."""
    services: list[ServiceDescriptor] = [
        service for file in _FILES for service in file.DESCRIPTOR.services_by_name.values()
    ]
    return [f"{service.full_name}/{method.name}" for service in services for method in service.methods]


def _run(seed: str, run: dict[str, Any]) -> str:
    names = ("steps", "admitted", "trained", "stale", "failed", "dead_letters", "labels")
    figures = [f"{run['figures'][name]:.0f}" for name in names]
    whole = [seed, f"{run['minutes']:g}", str(run["faults"]), *figures, str(len(run["wrong"]))]
    return f"| {' | '.join(whole)} | {run['figures']['optimality']:.3f} |"


def _kinds(report: dict[str, Any]) -> str:
    """Over all seeds, by kind: times, recoveries, what brought them about."""
    struck, found = Counter[str](), defaultdict[str, list[dict[str, Any]]](list)
    for run in report.values():
        struck.update(run["faults_by_kind"])
        for name, one in run["recoveries"].items():
            found[name].append(one)
    head = (
        "| fault | times | median recovery of a run, s | worst, s | recovered by |\n|---|---|---|---|---|\n"
    )
    told = ", ".join(f"{kind} {times}" for kind, times in struck.most_common())
    rows = [_kind(name, ones) for name, ones in sorted(found.items())]
    return f"Faults by kind: {told}.\n\n{head}" + "\n".join(rows) + "\n"


def _kind(name: str, ones: list[dict[str, Any]]) -> str:
    medians = sorted(one["median_seconds"] for one in ones)
    by = Counter[str]()
    for one in ones:
        by.update(one["by"])
    hows = "; ".join(f"{how} ({times})" for how, times in by.most_common())
    times, worst = sum(one["times"] for one in ones), max(one["worst_seconds"] for one in ones)
    return f"| {name} | {times} | {medians[0]:.1f} to {medians[-1]:.1f} | {worst:.1f} | {hows} |"


if __name__ == "__main__":
    PAGE.write_text(page(report_of()))
