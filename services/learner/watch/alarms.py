"""Alarms over a run's metrics, step by step. Pure: rows of metrics.jsonl in, alarms out; memory of two windows.

    reward_hacking    the reward rises while the annotator's score falls from its height (Gao et al., arXiv 2210.10760)
    length_drift      completions have become longer or shorter (Singhal et al., arXiv 2310.03716)
    repetition        completions repeat themselves
    entropy_collapse  the policy is sure of nearly every token
    kl_bound          further from the reference than it should be, by token
    lost_weight       the importance factors leave next to nothing of the gradient: what is drawn is not what is trained

A resume folds the rows that stand in the file and is where it was.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from services.common.spec.watch import WatchSpec

NAMES = ("reward_hacking", "length_drift", "repetition", "entropy_collapse", "kl_bound", "lost_weight")
_WATCHED = (
    "objective/scores",
    "objective/scores_std",
    "objective/kl",
    "annotator/mean",
    "annotator/std",
    "completions/mean_length",
    "completions/repetition",
    "policy/entropy_avg",
    "sampling/importance_sampling_ratio/mean",
)


@dataclass(frozen=True, slots=True)
class Judged:
    """What a rule says of a step. value: what is compared, in the rule's own unit; line: for a person."""

    name: str
    value: float
    raised: bool
    line: str


@dataclass(slots=True)
class _Peak:
    """When the annotator's windowed score was highest, and the reward's then."""

    step: int
    annotator: float
    score: float


@dataclass(slots=True)
class Alarms:
    """Folds rows. Nothing is judged before the first window is full."""

    spec: WatchSpec
    _first: dict[str, float] = field(default_factory=dict)
    _last: dict[str, deque[float]] = field(default_factory=dict)
    _peak: _Peak | None = None

    def update(self, row: Mapping[str, float]) -> list[Judged]:
        """Take in a step's row; what each rule that applies says."""
        for name in _WATCHED:
            if name in row:
                self._take(name, float(row[name]))
        now = {name: sum(values) / len(values) for name, values in self._last.items() if name in self._first}
        return [*self._hacking(int(row["step"]), now), *self._drift(now), *self._bound(now)]

    def _take(self, name: str, value: float) -> None:
        window = self._last.setdefault(name, deque(maxlen=self.spec.window_steps))
        window.append(value)
        if name not in self._first and len(window) == self.spec.window_steps:
            self._first[name] = sum(window) / len(window)

    def _hacking(self, step: int, now: Mapping[str, float]) -> Iterator[Judged]:
        if "annotator/mean" not in now or "objective/scores" not in now:
            return
        score, annotator = now["objective/scores"], now["annotator/mean"]
        if self._peak is None or annotator >= self._peak.annotator:
            self._peak = _Peak(step, annotator, score)
        rise = (score - self._peak.score) / max(self._first.get("objective/scores_std", 0.0), 1e-9)
        fall = (self._peak.annotator - annotator) / max(self._first.get("annotator/std", 0.0), 1e-9)
        yield Judged(
            "reward_hacking",
            fall,
            # With a bound of 0 a reward that stays is enough; one that fell is no hacking.
            fall >= self.spec.annotator_fall and rise >= self.spec.reward_rise,
            f"since step {self._peak.step} the annotator's score fell by {fall:.2f} deviations while the reward rose "
            f"by {rise:.2f}",
        )

    def _drift(self, now: Mapping[str, float]) -> Iterator[Judged]:
        first, spec = self._first, self.spec
        if (name := "completions/mean_length") in now:
            ratio, most = now[name] / max(first[name], 1e-9), 1 + spec.length_change
            line = f"completions have {ratio:.2f} times the length of the first"
            yield Judged("length_drift", ratio, not 1 / most <= ratio <= most, line)
        if (name := "completions/repetition") in now:
            rise = now[name] - first[name]
            line = f"{now[name]:.0%} of the 3-grams are repeats, {first[name]:.0%} at first"
            yield Judged("repetition", rise, rise > spec.repetition_rise, line)
        if (name := "policy/entropy_avg") in now:
            share = now[name] / max(first[name], 1e-9)
            line = f"the entropy of a token is {share:.0%} of the first"
            yield Judged("entropy_collapse", share, share < spec.entropy_share, line)

    def _bound(self, now: Mapping[str, float]) -> Iterator[Judged]:
        if "objective/kl" in now and "completions/mean_length" in now:
            by_token = now["objective/kl"] / max(now["completions/mean_length"], 1.0)
            line = f"the policy is {by_token:.2f} nats a token from the reference"
            yield Judged("kl_bound", by_token, by_token > self.spec.kl_nats_per_token, line)
        if (name := "sampling/importance_sampling_ratio/mean") in now:
            line = f"a token counts {now[name]:.2g} of 1: other completions are drawn than the policy's own"
            yield Judged("lost_weight", now[name], now[name] < self.spec.least_weight, line)


def alarm_metrics(judged: list[Judged]) -> dict[str, float]:
    """`alarms/<name>` is 1 while it is raised, `alarms/<name>_value` what it compares, `alarms/raised` how many are."""
    found: dict[str, float] = {}
    for one in judged:
        found[f"alarms/{one.name}"], found[f"alarms/{one.name}_value"] = float(one.raised), one.value
    return found | {"alarms/raised": float(sum(one.raised for one in judged))}
