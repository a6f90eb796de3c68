"""What reads files that a crash, a full disk or a hand may have damaged: JSON lines, metrics, mask bits, rollouts.

json_rows: NotFound or InvalidInput with file and line. A run's own metrics.jsonl and worst_samples.jsonl: lines that
cannot be read are left out. Mask bits: InvalidInput. Kept rollouts: Corrupted. A checkpoint's folder: Corrupted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from services.common import mask_bits
from services.common.errors import Corrupted, InvalidInput
from services.common.jsonl import json_rows
from services.common.spec.run import RunSpec
from services.learner.checkpoints import STATE_FILE, Checkpoints
from services.learner.kept_rollouts import keep_rollouts, read_rollouts
from services.learner.metrics import keep_metrics, metrics_rows
from services.learner.rollouts import samples_of
from services.learner.watch.watch import WORST_FILE, Watch
from tests.fuzz import groups, odd
from tests.fuzz.surface import Surface, documented

_ROW = {"step": 3, "prompt": "a", "objective/kl": 0.5, "nested": {"a": [1, 2]}}
_MASKS = mask_bits.to_wire(np.full((5, 33), 255, np.uint8))
_SPEC = RunSpec.model_validate(
    {"model": {"path": "/m"}, "data": {"prompts": "p"}, "reward_model": "rule:length:target=4"}
)
Sent = tuple[str, bytes, int]


@contextmanager
def opened(folder: Path) -> Iterator[Surface]:
    """Each reader has a file that is written anew for each input."""
    group = groups.group()
    rollouts = folder / "step-000001.parquet"
    keep_rollouts(rollouts, [(group, samples_of(group, _SPEC))])
    sound = {"rollouts": rollouts.read_bytes(), **_checkpoint(folder / "step-000003")}
    readers = _Readers(folder)

    def draw(rng: Random) -> Sent:
        kind = rng.choice(
            ("rows", "rows", "metrics", "metrics", "worst", "masks", "rollouts", "state", "trainer")
        )
        if kind in ("rows", "metrics", "worst"):
            return kind, lines(rng), 0
        if kind == "masks":
            return kind, odd.damaged(rng, _MASKS), rng.choice((0, 1, 4, 5, 6, 165))
        return kind, odd.damaged(rng, sound[kind]), 0

    def run(sent: Sent) -> str:
        kind, data, length = sent
        return f"{kind} {getattr(readers, kind)(data, length)}"

    def good() -> None:
        readers.rows(json.dumps(_ROW).encode(), 0)
        assert mask_bits.from_wire(_MASKS, 5, field="x").shape == (5, 33)
        for kind in ("rollouts", "state", "trainer"):
            assert getattr(readers, kind)(sound[kind], 0) == "accepted", f"{kind} that is sound"

    good()
    yield Surface(draw, run, good)


class _Readers:
    """One method a reader: its file's bytes in, the outcome out."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def rows(self, data: bytes, _: int) -> str:
        path = self._folder / "rows.jsonl"
        path.write_bytes(data)
        return documented(lambda: _placed(path), InvalidInput)

    def metrics(self, data: bytes, _: int) -> str:
        path = self._folder / "metrics.jsonl"
        path.write_bytes(data)
        keep_metrics(path, 5)
        for row in metrics_rows(path):
            assert 1 <= int(row["step"]) <= 5, "a step that was to be dropped"
        return "accepted"

    def worst(self, data: bytes, _: int) -> str:
        (self._folder / WORST_FILE).write_bytes(data)
        Watch(_SPEC, self._folder).resume([])
        return "accepted"

    def masks(self, data: bytes, length: int) -> str:
        def read() -> None:
            bits = mask_bits.from_wire(data, length, field="masks")
            assert len(bits) == length, "masks of other tokens"
            mask_bits.allows(bits, np.full(length, 2**31 - 1, np.int32)) if bits.size else None

        return documented(read, InvalidInput)

    def rollouts(self, data: bytes, _: int) -> str:
        path = self._folder / "step-000001.parquet"
        path.write_bytes(data)
        return documented(lambda: read_rollouts(path), Corrupted)

    def state(self, data: bytes, _: int) -> str:
        return self._checkpoint("state.json", data)

    def trainer(self, data: bytes, _: int) -> str:
        return self._checkpoint(f"trainer/{STATE_FILE}", data)

    def _checkpoint(self, name: str, data: bytes) -> str:
        folder = self._folder / "step-000003"
        sound = (folder / name).read_bytes()
        (folder / name).write_bytes(data)
        try:
            return documented(lambda: Checkpoints(self._folder, keep=1).read(folder), Corrupted)
        finally:
            (folder / name).write_bytes(sound)


def _placed(path: Path) -> None:
    try:
        for place, row in json_rows(path):
            assert place.startswith(f"{path}:") and isinstance(row, dict), "a row that is no object"
    except InvalidInput as error:
        assert re.match(rf"{re.escape(str(path))}(:\d+)?: ", str(error)), f"no file and line: {error}"
        raise


def lines(rng: Random) -> bytes:
    """JSON lines, of which some are odd or cut, as bytes."""
    rows = [json.dumps(_ROW)] + [_line(rng) for _ in range(rng.randrange(4))]
    data = "\n".join(rows).encode("utf-8", "surrogatepass")
    return odd.damaged(rng, data) if rng.random() < 0.3 else data


def _line(rng: Random) -> str:
    how = rng.randrange(6)
    if how == 0:
        return rng.choice(
            ("[" * 100_000, '{"a":' * 50_000, "9" * 5_000, '{"step": 1e999}', "null", "\ufeff{}", '"\\ud800"')
        )
    tree: Any = odd.changed(rng, _ROW)
    return json.dumps(tree)[: rng.choice((5, 10**6, 10**6, 10**6))]


def _checkpoint(folder: Path) -> dict[str, bytes]:
    (folder / "trainer").mkdir(parents=True)
    torch.save({"step": 3, "moments": torch.ones(4)}, folder / "trainer" / STATE_FILE)
    (folder / "state.json").write_text(json.dumps({"step": 3, "ledger": {"trained": 1}}))
    return {
        "state": (folder / "state.json").read_bytes(),
        "trainer": (folder / "trainer" / STATE_FILE).read_bytes(),
    }
