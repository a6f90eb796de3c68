"""What `status`, `logs`, `generate` and `score` print. Decides nothing."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator import calls
from orchestrator.local.layout import RunLayout
from orchestrator.local.log_files import older
from orchestrator.local.options import Format
from orchestrator.local.progress import counts, describe
from orchestrator.local.run_tls import watching
from orchestrator.local.state import RunState, ServiceState, read_state
from services.common.errors import NotFound, ServiceError, TrimtabError
from trimtab.common.v1 import common_pb2 as common
from trimtab.learner.v1 import learner_pb2 as learner

if TYPE_CHECKING:
    from trimtab.clients.access import AccessOptions

_FOLLOW_SECONDS = 0.2
_FINISH = {common.FINISH_REASON_STOP: "stop", common.FINISH_REASON_LENGTH: "length"}


def show_status(layout: RunLayout, output: Format) -> None:
    """Print who runs and how the run stands."""
    state = read_state(layout)
    if state is None:
        raise NotFound(f"{layout.root} was never up")
    run = _run_status(state, layout)
    if output is Format.JSON:
        told = {"folder": str(layout.root), **state.as_json(), "run": _run_json(run)}
        print(json.dumps(told, indent=1))
        return
    console = Console()
    console.print(Text(f"{layout.root}: {'up' if state.pid else 'down'}"))
    console.print(_table(state))
    if run is not None:
        console.print(Text("  ".join(f"{label} {word}" for label, word in describe(run, None).items())))
        console.print(Text(counts(run)))


def show_logs(layout: RunLayout, service: str, *, lines: int, follow: bool) -> None:
    """Print the last lines of one log or of all, and with `follow` what comes. Raises NotFound."""
    logs = _logs(layout)
    if service and service not in logs:
        raise NotFound(f"no log of {service} in {layout.logs}: there are {', '.join(sorted(logs)) or 'none'}")
    positions: dict[str, int] = {}
    for name in [service] if service else sorted(logs):
        text = _text(logs[name], lines)
        positions[name] = logs[name].stat().st_size
        _print_lines(name, text.splitlines()[-lines:] if lines else [], prefixed=not service)
    while follow:
        time.sleep(_FOLLOW_SECONDS)
        for name, path in _logs(layout).items():
            if not service or name == service:
                _print_new(name, path, positions, prefixed=not service)


def show_generated(
    address: str,
    prompts: list[str],
    *,
    max_new_tokens: int,
    temperature: float,
    completions: int,
    seed: int,
    by: calls.Approach,
    output: Format,
) -> None:
    """Print what a policy service completes."""
    answer = calls.generate(
        address,
        prompts,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        completions=completions,
        seed=seed,
        by=by,
    )
    rows = [
        {
            "prompt": prompt,
            "completion": completion.text,
            "finish_reason": _FINISH.get(completion.finish_reason, "unfinished"),
            "tokens": completion.token_ids.shape[0] if completion.token_ids.shape else 0,
            "version": completion.versions[-1].version.step if completion.versions else None,
        }
        for prompt, result in zip(prompts, answer.results, strict=True)
        for completion in result.completions
    ]
    if output is Format.JSON:
        print(json.dumps(rows, ensure_ascii=False))
        return
    for row in rows:
        print(row["completion"])


def show_scores(
    address: str,
    model: str,
    prompt: str,
    completions: list[str],
    *,
    by: calls.Approach,
    output: Format,
) -> None:
    """Print one score per completion. Raises ServiceError if one could not be scored, after the others."""
    pairs = [(prompt, completion) for completion in completions]
    scores = calls.score(address, model, pairs, by=by)
    if output is Format.JSON:
        print(json.dumps([_score_json(one) for one in scores]))
    else:
        for one in scores:
            print(f"{one.value:.6g}" if one.HasField("value") else "error")
    failed = [one.error.message for one in scores if not one.HasField("value")]
    if failed:
        raise ServiceError(f"{len(failed)} of {len(scores)} not scored: {failed[0]}")


def _score_json(score: common.Score) -> dict[str, Any]:
    value = score.value if score.HasField("value") else None
    error = score.error.message if score.HasField("error") else None
    told = {"value": value, "error": error, "model": score.model, "model_digest": score.model_digest}
    return {**told, "components": dict(score.components), "truncated_tokens": score.truncated_tokens}


def _run_status(state: RunState, layout: RunLayout) -> learner.GetRunStatusResponse | None:
    service = state.services.get("learner")
    if service is None or service.phase != "serving" or "grpc" not in service.addresses:
        return None
    address = service.addresses["grpc"]
    try:
        return calls.run_status(address, by=_watching(layout, address) if state.tls else calls.PLAIN)
    except TrimtabError:
        return None  # just ended or busy: its phase says more


def _watching(layout: RunLayout, address: str) -> calls.Approach:
    spec = watching(layout.tls, "learner")
    files = spec.model_dump(include={"ca_file", "certificate_file", "private_key_file"})
    return calls.Approach.of(address, cast("AccessOptions", files), spec.server_name)


def _run_json(run: learner.GetRunStatusResponse | None) -> dict[str, Any] | None:
    if run is None:
        return None
    of = run.rollouts
    return {
        "phase": learner.RunPhase.Name(run.phase).removeprefix("RUN_PHASE_").lower(),
        "step": run.step,
        "total_steps": run.total_steps,
        "metrics": dict(run.metrics),
        "rollouts": {
            "admitted": of.admitted,
            "trained": of.trained,
            "stale": of.stale,
            "failed": of.failed,
            "in_flight": of.in_flight,
        },
        "warnings": list(run.warnings),
    }


def _table(state: RunState) -> Table:
    table = Table("service", "phase", "pid", "restarts", "gRPC", "message", box=None)
    for service in state.services.values():
        table.add_row(*_row(service))
    return table


def _row(service: ServiceState) -> list[str | Text]:
    pid = "" if service.pid is None else str(service.pid)
    address = service.addresses.get("grpc", "")
    return [
        service.name,
        service.phase,
        pid,
        str(service.restarts),
        address,
        Text(service.message[:100]),
    ]


def _logs(layout: RunLayout) -> dict[str, Path]:
    return {layout.log_name(path): path for path in layout.log_files()}


def _text(log: Path, lines: int) -> str:
    """At least so many lines, if there are, of it and of what was set aside of it."""
    text, number = log.read_text(encoding="utf-8", errors="replace"), 1
    while text.count("\n") < lines and (before := older(log, number)).exists():
        text, number = before.read_text(encoding="utf-8", errors="replace") + text, number + 1
    return text


def _print_new(name: str, path: Path, positions: dict[str, int], *, prefixed: bool) -> None:
    """Whole lines that came since the last look; a log that became shorter is read from its start."""
    start, size = positions.get(name, 0), path.stat().st_size
    start = 0 if size < start else start
    with path.open("rb") as file:
        file.seek(start)
        data = file.read()
    whole = data[: data.rfind(b"\n") + 1]
    positions[name] = start + len(whole)
    _print_lines(name, whole.decode("utf-8", "replace").splitlines(), prefixed=prefixed)


def _print_lines(name: str, lines: list[str], *, prefixed: bool) -> None:
    for line in lines:
        print(f"{name:<10} {line}" if prefixed else line, flush=True)
