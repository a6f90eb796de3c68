"""A decision in words: rows and sentences for a person, plain values for a program. Knows no terminal."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from orchestrator.planning.actions import Action, Drain, Remember, Scale, Undrain
from orchestrator.planning.decision import Decision, RoleDecision
from orchestrator.planning.observed import ServiceObserved
from orchestrator.planning.serving import CATCH_UP_SECONDS, ServiceDecision, ServiceSpec
from orchestrator.planning.sizing import bounded
from orchestrator.planning.spec import PipelineSpec

COLUMNS = (
    "role",
    "now",
    "want",
    "s/group",
    "±",
    "rate",
    "load",
    "least",
    "enough",
    "backlog",
    "start",
)


@dataclass(frozen=True, slots=True)
class Explained:
    """The parts of a page: the verdict, sums line by line, the table, a reason for each role, what is done."""

    verdict: str
    sums: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    """One a role, with the values of `COLUMNS`; `rate` is a replica's, in groups/s."""
    reasons: tuple[str, ...]
    actions: tuple[str, ...]


def explain(spec: PipelineSpec, decision: Decision) -> Explained:
    """`decision` for a person."""
    return Explained(
        verdict=decision.verdict,
        sums=tuple(_sums(spec, decision)),
        rows=tuple(_row(role) for role in decision.roles),
        reasons=tuple(f"{role.role}: {'; '.join((role.reason, *role.limits))}" for role in decision.roles),
        actions=tuple(in_words(action) for action in decision.actions if not isinstance(action, Remember)),
    )


def explain_service(spec: ServiceSpec, seen: ServiceObserved, decision: ServiceDecision) -> Explained:
    """The same of a service that is asked: it has no table, its sums say all."""
    verdict = f"{spec.name}: {decision.current} now, {decision.wanted} wanted: {decision.reason}"
    actions = [in_words(action) for action in decision.actions]
    return Explained(
        verdict=verdict,
        sums=tuple(_service_sums(seen, decision)),
        rows=(),
        reasons=(),
        actions=tuple(actions),
    )


def as_values(decision: Decision | ServiceDecision) -> dict[str, object]:
    """`decision` for a program: nested dictionaries of JSON's types."""
    actions = [
        {"kind": type(action).__name__} | asdict(action)
        for action in decision.actions
        if not isinstance(action, Remember)
    ]
    return asdict(decision) | {"actions": actions}


def in_words(action: Action) -> str:
    """One action, one line."""
    if isinstance(action, Scale):
        gone = f", without {', '.join(action.remove)}" if action.remove else ""
        return f"scale {action.role} to {action.replicas}{gone} ({action.reason})"
    if isinstance(action, Drain):
        return f"drain {action.replica} ({action.reason})"
    if isinstance(action, Undrain):
        return f"take {action.replica} back from draining ({action.reason})"
    return "remember what was learned"


def _service_sums(seen: ServiceObserved, decision: ServiceDecision) -> list[str]:
    rate, each, load = decision.rows_per_second, decision.seconds_per_row, decision.load
    if rate is None or each is None or load is None or seen.metrics is None:
        return []
    more = max(0.0, seen.runs_will - seen.runs_rows)
    waiting = f" + {seen.metrics.waiting} waiting / {CATCH_UP_SECONDS:.0f} s" if seen.metrics.waiting else ""
    return [
        f"asked      {rate - more:.4g} rows/s" + (f" + {more:.4g} that runs will send" if more else ""),
        f"each       {each:.4g} s of a replica whose passes are full",
        f"load       ({rate:.4g} rows/s{waiting}) * {each:.4g} s = {load:.3g} replicas",
        f"replicas   {decision.least} must be there, {decision.enough} last"
        + "".join(f"; {limit}" for limit in decision.limits),
    ]


def _sums(spec: PipelineSpec, decision: Decision) -> list[str]:
    flow, step = decision.flow, decision.step_seconds
    if flow is None or step is None:
        return []
    batch, window = spec.batch_groups, spec.window_groups
    again = f" * {1 + decision.discarded_share:.3f} (discards)" if decision.discarded_share else ""
    if spec.max_staleness:
        through = f"({window} - {batch} / 2) / ({step:.4g} s + {flow.latency_seconds:.4g} s)"
    else:
        through = f"{batch} / ({step:.4g} s + {flow.latency_seconds:.4g} s)"
    return [
        f"learner    {batch} groups / {step:.4g} s{again} = {flow.learner:.4g} groups/s",
        f"staleness  {through} = {flow.staleness:.4g} groups/s",
        f"planned    {flow.planned:.4g} groups/s, {bounded(flow)}",
        f"stock      {flow.stock_groups:.0f} groups of {flow.slack_groups:.0f}, reserve {flow.reserve_groups:.0f}",
    ]


def _row(role: RoleDecision) -> tuple[str, ...]:
    return (
        f"{role.role} ({role.mode})",
        str(role.current),
        str(role.wanted),
        _number(role.seconds_per_group),
        f"{role.error:.0%}" if role.seconds_per_group is not None else "-",
        _number(role.groups_per_second),
        _number(role.load),
        _number(role.least),
        _number(role.enough),
        _number(role.backlog_groups),
        f"{role.startup_seconds:.0f} s" if role.mode == "auto" else "-",
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
