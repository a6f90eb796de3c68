"""What can be said of a run once it is over: reads what it left behind, and asks invariants.py."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.soak_account import account
from benchmarks.soak_files import kept, ledger_of, rows_of, taken
from tests.chaos.faults import LEARNER, PROCESSES, QUEUE, WEIGHTS
from tests.chaos.invariants import (
    clear_lines,
    dead_letters_told,
    epochs_rise,
    full_disk_told,
    groups_whole,
    labels_kept,
    losses_counted,
    losses_noticed,
    resumes_rise,
    trained_on_known,
    versions_rise,
)
from tests.chaos.labels import Said
from tests.chaos.world import COMPLETIONS, World

# What a run without faults has by then; a shorter one is not judged by it.
LEAST_OPTIMALITY, ENOUGH_STEPS = 0.9, 200
KNOWN_TRACEBACKS: tuple[str, ...] = ()
"""Words of tracebacks that a log may have. None so far."""
_BURIED = ("group goes to the dead letters", "entry is damaged, moved to the dead letters")
_EMPTY, _BEGINS = "the queue server came back empty", "training begins"


def judged(
    struck: World, standing: frozenset[str], dead: int, labels: tuple[Sequence[Said], int]
) -> tuple[list[str], dict[str, float]]:
    """What is wrong, and figures (without the optimality, which the caller asks the policy for).

    standing: groups on any stream. dead: letters. labels: what the preference service holds, and its items.
    """
    root = struck.layout.root
    rows = rows_of(struck.layout.metrics_file)
    found = account(ledger_of(root), taken(root, len(rows)), standing, rows)
    wrong = [f"{name} = {value:.0f}" for name, value in found.items() if name.startswith("wrong_") and value]
    figures = found | {"dead_letters": float(dead), "steps": float(len(rows))}
    figures |= {"labels": float(struck.labels.count), "losses": float(len(struck.losses))}
    wrong += _versions(struck, len(rows))
    wrong += _learners(struck)
    wrong += _labels(struck, *labels)
    for name in PROCESSES:
        if name != QUEUE:
            wrong += clear_lines(name, _lines(struck, name), KNOWN_TRACEBACKS)
    told = sum(one.get("event") in _BURIED for name in PROCESSES for one in _events(struck, name))
    wrong += dead_letters_told(dead, told, emptied=bool(struck.losses))
    wrong += _checkpoint(root)
    return wrong, figures


def _versions(struck: World, steps: int) -> list[str]:
    """Of what arrived at the policies and what was trained on."""
    wrong: list[str] = []
    arrived: dict[tuple[int, int], set[str]] = {}
    for name in WEIGHTS:
        events = _named(_events(struck, name), "weights arrived")
        for one in events:
            arrived.setdefault((one["epoch"], one["step"]), set()).add(one["digest"])
        # A replica that was killed begins anew; its versions rise all the same.
        wrong += versions_rise(name, [(one["epoch"], one["step"]) for one in events])
    for step in range(1, steps + 1):
        took = kept(struck.layout.root, step, ["group", "versions"])
        wrong += groups_whole(step, took, COMPLETIONS)
        read = [{**row, "versions": json.loads(row["versions"])} for row in took]
        wrong += trained_on_known(step, read, arrived)
    return wrong


def _learners(struck: World) -> list[str]:
    """Of their epochs, their checkpoints, what they say of a lost queue and of a full disk."""
    events = _events(struck, LEARNER)
    wrong = epochs_rise([one["epoch"] for one in _named(events, _BEGINS)])
    wrong += resumes_rise([one["step"] for one in _named(events, "resumed")])
    noticed = [one["place"] for name in (_EMPTY, _BEGINS) for one in _named(events, name)]
    wrong += losses_noticed(struck.losses, noticed)
    wrong += losses_counted(events)
    log = struck.layout.log(LEARNER).read_bytes()
    ends = [
        (who, log[begin:end].decode(errors="replace").splitlines()) for who, begin, end in struck.ended_full
    ]
    return wrong + full_disk_told(ends)


def _labels(struck: World, there: Sequence[Said], items: int) -> list[str]:
    labels = struck.labels
    kept_ = labels_kept(labels.sent, labels.acknowledged, there, uploaded=labels.uploaded, items=items)
    return labels.wrong + kept_


def _checkpoint(root: Path) -> list[str]:
    """In a process of its own: this one has no torch."""
    from tests.chaos.checkpoint import wrong_with_checkpoints

    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(wrong_with_checkpoints, root).result()


def _lines(struck: World, service: str) -> list[str]:
    file = struck.layout.log(service)
    return file.read_text(errors="replace").splitlines() if file.exists() else []


def _events(struck: World, service: str) -> list[dict[str, Any]]:
    """Structured lines, each with its `place`: where it begins, bytes."""
    found, place = [], 0
    file = struck.layout.log(service)
    for line in file.read_bytes().split(b"\n") if file.exists() else []:
        found.append(_json(line) | {"place": place})
        place += len(line) + 1
    return found


def _named(events: Iterable[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [one for one in events if one.get("event") == name]


def _json(line: bytes) -> dict[str, Any]:
    """A line that a kill cut short says nothing."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
