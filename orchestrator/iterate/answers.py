"""Answers of a policy version, kept as they arrive: JSON lines, one prompt each. Resumes after the last whole line."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.demo.collect import DemoPrompt, Sampler
from trimtab.common.v1 import common_pb2 as common


@dataclass(frozen=True, slots=True)
class Answered:
    """A prompt's answers and the version that gave them."""

    texts: tuple[str, ...]
    version: common.WeightsVersion


async def answered(
    path: Path,
    sampler: Callable[[], Awaitable[Sampler]],
    prompts: Sequence[DemoPrompt],
    *,
    call_prompts: int,
    count: int,
    seed: int,
    heard: Callable[[int], None],
) -> list[Answered]:
    """`count` answers to each prompt, in order: those on file, and the missing ones asked for and added to it.

    A call's draws depend on which prompts it holds, so calls begin where they would have begun without a break.
    `sampler` is called only where something is missing: it may have to start a service.
    """
    rows = read(path)
    if len(rows) >= len(prompts):
        return [_answered(row) for row in rows[: len(prompts)]]
    rows = rows[: len(rows) - len(rows) % call_prompts]
    asked = await sampler()
    for start in range(len(rows), len(prompts), call_prompts):
        part = prompts[start : start + call_prompts]
        results = await asked.sample(part, count=count, seed=seed + (start << 8), heard=lambda _: None)
        rows += [
            {
                "texts": [one.text for one in result.completions],
                "digest": result.completions[0].versions[0].version.digest,
                "step": result.completions[0].versions[0].version.step,
                "epoch": result.completions[0].versions[0].version.epoch,
            }
            for result in results
        ]
        _write(path, rows)
        heard(len(rows))
    return [_answered(row) for row in rows]


def read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file; none where there is none."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".new")
    aside.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    aside.replace(path)


def _answered(row: dict[str, Any]) -> Answered:
    version = common.WeightsVersion(digest=row["digest"], step=row["step"], epoch=row["epoch"])
    return Answered(tuple(row["texts"]), version)
