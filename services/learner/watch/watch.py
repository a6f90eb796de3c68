"""Watches a run's batches: groups to completions, the annotator's rule, alarms, the file of worst samples.

    batch ─▶ Watched, one a completion ─▶ figures ─┐
                     └─▶ worst_samples.jsonl       ├─▶ the step's metrics ─▶ alarms
    the trainer's metrics ─────────────────────────┘

The one module here that reads protobuf and files; what is judged, and how, is beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import structlog
from prometheus_client import Gauge

from services.common.errors import TrimtabError
from services.common.rules.registry import make_rule
from services.common.spec.run import RunSpec
from services.learner.checkpoints import storage_errors
from services.learner.sample import Sample
from services.learner.watch.alarms import Alarms, Judged, alarm_metrics
from services.learner.watch.figures import Watched, figures, repetition
from services.learner.watch.worst import Row, Worst
from trimtab.rollout.v1.rollout_pb2 import Completion, RolloutGroup

WORST_FILE = "worst_samples.jsonl"
_LARGEST = 1e300  # JSON has whole numbers that no float is
ALARM = Gauge("trimtab_learner_alarm", "1 while the run's alarm is raised.", ["alarm"])
_log = structlog.get_logger(__name__)
_Group = tuple[RolloutGroup, Sequence[Sample]]


class Watch:
    """Of one run. Raises InvalidInput at once for a rule that is not known."""

    def __init__(self, spec: RunSpec, folder: Path) -> None:
        self._spec, self._watch = spec, spec.watch
        self._rule = make_rule(spec.watch.annotator_rule) if spec.watch.annotator_rule else None
        self._unweighted = _unweighted_stage(spec)
        # The trainer makes the reference's log-probs itself: what arrives has none.
        self._branch = spec.rollout.reference == "branch"
        self._alarms = Alarms(spec.watch)
        self._worst = Worst(spec.watch.worst_samples, spec.watch.window_steps)
        self._folder = folder
        self._judged: list[Judged] = []
        self._raised: dict[str, str] = {}

    @property
    def warnings(self) -> list[str]:
        """One line for each alarm that is raised now, the same as long as it is."""
        return list(self._raised.values())

    def resume(self, rows: Iterable[Mapping[str, float]]) -> None:
        """Go on after these rows of metrics.jsonl, from the first step on."""
        self._alarms, done = Alarms(self._watch), 0
        for row in rows:
            self._judge(row, told=False)
            done = int(row["step"])
        before = [row for row in _read(self._folder / WORST_FILE) if row["step"] <= done]
        self._worst = Worst(self._watch.worst_samples, self._watch.window_steps, before)

    def seen(self, step: int, batch: Sequence[_Group], metrics: Mapping[str, float]) -> dict[str, float]:
        """What is added to a step's metrics. Raises StorageFull."""
        watched = [
            self._watched(group, completion, sample)
            for group, samples in batch
            for completion, sample in zip(group.completions, samples, strict=True)
        ]
        found = figures(watched)
        self._judge({**metrics, **found, "step": step})
        if self._watch.worst_samples:
            self._write(self._worst.update(step, watched))
        return found | alarm_metrics(self._judged)

    def _judge(self, row: Mapping[str, float], *, told: bool = True) -> None:
        self._judged, before = self._alarms.update(row), self._raised
        self._raised = {}
        for one in self._judged:
            ALARM.labels(one.name).set(one.raised)
            if not one.raised:
                continue
            line = f"alarm {one.name} at step {row['step']:.0f}: {one.line}"
            self._raised[one.name] = before.get(one.name, line)
            if told and one.name not in before:
                _log.warning("alarm", alarm=one.name, step=int(row["step"]), why=one.line)

    def _watched(self, group: RolloutGroup, completion: Completion, sample: Sample) -> Watched:
        parts: dict[str, float] = {}
        for scored in completion.scores:
            name = scored.stage.removeprefix("reward/")
            parts[name] = scored.score.value
            parts |= {f"{name}.{part}": value for part, value in scored.score.components.items()}
        return Watched(
            prompt=group.prompt.text,
            text=completion.text,
            score=sample.score,
            parts=parts,
            annotator=self._opinion(group, completion, parts),
            length=int(sample.loss_mask.sum()),
            repetition=repetition(sample.completion_ids.tolist()),
            kl=None if self._branch else _kl(sample),
        )

    def _opinion(
        self, group: RolloutGroup, completion: Completion, parts: Mapping[str, float]
    ) -> float | None:
        if self._rule is None:
            return parts.get(self._unweighted) if self._unweighted else None
        try:
            return self._rule.score(group.prompt.text, completion.text, dict(group.prompt.columns))
        except TrimtabError:  # one row that cannot be scored: this step has no opinion
            return None

    def _write(self, rows: Sequence[Row]) -> None:
        path = self._folder / WORST_FILE
        aside = path.with_name(f".{path.name}.writing")
        with storage_errors(str(path)):
            path.parent.mkdir(parents=True, exist_ok=True)
            aside.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            aside.replace(path)


def _kl(sample: Sample) -> float:
    return float(((sample.behaviour_logprobs - sample.reference_logprobs) * sample.loss_mask).sum())


def _unweighted_stage(spec: RunSpec) -> str:
    """The first scoring stage that is asked and not learnt from."""
    weights = spec.rollout.reward_weights
    return next((stage.removeprefix("reward/") for stage in spec.rollout.slip if weights.get(stage) == 0), "")


def _read(path: Path) -> list[Row]:
    """Rows of a file that is for people: one that cannot be read is begun anew, a row that is none is left out."""
    try:
        rows = [json.loads(line) for line in path.read_text().split("\n") if line]
    except (OSError, ValueError, RecursionError):
        return []
    return [
        row for row in rows if isinstance(row, dict) and all(_is_number(row.get(n)) for n in ("step", "gap"))
    ]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < _LARGEST
