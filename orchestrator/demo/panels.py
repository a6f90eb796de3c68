"""Which curves the report draws: metrics by TRL's names, with title, unit and a line on how to read them.

Knows neither SVG nor HTML.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.demo.charts import Plot, Rule, Series
from orchestrator.demo.run_folder import RewardModelFile
from orchestrator.demo.scales import finite

Metrics = Sequence[dict[str, float]]


@dataclass(frozen=True)
class Panel:
    """A chart to be: which metrics it shows (name, label), their unit, factor, and how to read it."""

    title: str
    curves: tuple[tuple[str, str], ...]
    unit: str
    note: str
    factor: float = 1.0
    include: tuple[float, ...] = ()


MAIN = (
    Panel(
        "Reward",
        (("objective/scores", "score"), ("objective/rlhf_reward", "score less KL penalty")),
        "reward",
        "Mean over each step's completions, by the reward model.",
    ),
    Panel(
        "Distance from the reference",
        (("objective/kl", "sequence KL"),),
        "nats",
        "KL of policy to reference, summed over a completion's tokens.",
        include=(0.0,),
    ),
)

DETAIL = (
    Panel(
        "Length",
        (("completions/mean_length", "length"),),
        "tokens",
        "Mean tokens of a completion.",
        include=(0.0,),
    ),
    Panel(
        "Entropy",
        (("objective/entropy", "entropy"),),
        "nats",
        "Near 0 the policy repeats itself.",
    ),
    Panel(
        "Clip fraction",
        (("policy/clipfrac_avg", "clip fraction"),),
        "% of tokens",
        "Tokens whose ratio left the trust region.",
        100.0,
        (0.0,),
    ),
    Panel(
        "Update size",
        (("policy/approxkl_avg", "approximate KL"),),
        "nats per token",
        "KL between the policy before and after a step.",
        include=(0.0,),
    ),
    Panel(
        "Policy loss", (("loss/policy_avg", "policy loss"),), "loss", "Clipped surrogate, mean over epochs."
    ),
    Panel(
        "Value loss",
        (("loss/value_avg", "value loss"),),
        "loss",
        "Squared error of the predicted returns.",
        include=(0.0,),
    ),
    Panel(
        "Explained variance",
        (("val/var_explained", "explained variance"),),
        "share",
        "Of the returns, by the value head; 1 is perfect.",
        include=(0.0, 1.0),
    ),
    Panel(
        "KL coefficient",
        (("objective/kl_coef", "coefficient"),),
        "reward per nat",
        "What a nat of distance costs.",
        include=(0.0,),
    ),
    Panel("Learning rate", (("lr", "learning rate"),), "rate", "Of the policy's optimiser.", include=(0.0,)),
)


def plot_of(panel: Panel, metrics: Metrics, *, width: int = 360, height: int = 210) -> Plot | None:
    """The plot of `panel`, or None if no step recorded any of its metrics."""
    series = []
    for tone, (name, label) in enumerate(panel.curves):
        points = [
            (row.get("step", float(index)), row[name] * panel.factor)
            for index, row in enumerate(metrics, 1)
            if name in row
        ]
        if finite(y for _, y in points):
            series.append(Series(label, points, tone))
    if not series:
        return None
    return Plot(panel.title, series, panel.unit, include=panel.include, width=width, height=height)


def reward_model_plots(file: RewardModelFile, *, width: int, height: int) -> list[tuple[Plot, str]]:
    """Accuracy and loss of the reward model over its own steps, each with a line on how to read it."""
    accuracy = [(float(point.step), point.accuracy) for point in file.history if point.accuracy is not None]
    loss = [(float(point.step), point.loss) for point in file.history if point.loss is not None]
    rules = [Rule(file.accuracy, "held out, at the end", "left")]
    if file.accuracy_longer_wins is not None:
        rules.append(Rule(file.accuracy_longer_wins, "the longer answer wins"))
    plots: list[tuple[Plot, str]] = []
    if accuracy:
        series = [Series("accuracy", accuracy, 2)]
        plots.append(
            (
                Plot("Accuracy", series, "share of pairs", "step", rules, (0.5, 1.0), width, height),
                "Pairs that it ranks as the annotator did; chance is 0.5.",
            )
        )
    if loss:
        series = [Series("loss", loss, 2)]
        plots.append(
            (
                Plot("Loss", series, "nats", "step", (), (0.0,), width, height),
                "Of choosing the preferred answer of a pair; chance is 0.69.",
            )
        )
    return plots


def seconds_of_a_step(metrics: Metrics) -> dict[str, float]:
    """Mean seconds of a step by part, from `time/…`, largest first; sums over parts are left out."""
    sums = {"total", "step", "wall", "elapsed"}
    found: dict[str, list[float]] = {}
    for row in metrics:
        for name, value in row.items():
            part = name.removeprefix("time/")
            if part != name and part not in sums:
                found.setdefault(part, []).append(value)
    means = {
        part.replace("_", " "): sum(kept) / len(kept)
        for part, values in found.items()
        if (kept := finite(values))
    }
    return dict(sorted(means.items(), key=lambda item: -item[1]))
