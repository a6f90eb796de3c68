"""The model card of a run, README.md in the Hub's form: origin, figures, alarms, settings, use. Pure text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.demo.run_folder import RunFiles
from orchestrator.demo.scales import finite, number
from orchestrator.demo.watching import alarm_rows
from services.common.spec.run import RunSpec

WINDOW = 5
"""Steps whose mean stands for the first and the last of a run."""
_ABOUT = """\
Trained by Trimtab with {kind} for {steps} steps from `{base}`. The reward came from {reward}; its
KL penalty refers to {reference}.
"""
_MEASURED = (
    ("Reward", "objective/scores"),
    ("Annotator's score", "annotator/mean"),
    ("KL to the reference, nats", "objective/kl"),
    ("Entropy of a token, nats", "policy/entropy_avg"),
    ("Length, tokens", "completions/mean_length"),
    ("Repeated 3-grams", "completions/repetition"),
)
_USE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}")
model = AutoModelForCausalLM.from_pretrained("{folder}")
ids = tokenizer("{prompt}", return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens={tokens})[0]))
```
"""
_LIMITS = """\
What a model has learnt from a reward is what that reward measures, its mistakes included. Figures are of the prompts
that it was trained on, if not said otherwise.
"""


@dataclass(frozen=True, slots=True)
class Origin:
    """Which weights these are: steps done, and the digest under which they were published, if they were."""

    step: int
    digest: str


def card(spec: RunSpec, run: RunFiles, origin: Origin, *, reference: str = "") -> str:
    """The whole text. reference: the model that KL is held to, where it is not the one that training began from."""
    rows = [row for row in run.metrics if row.get("step", 0) <= origin.step]
    parts = [
        _front(spec),
        f"# {spec.name}\n",
        _ABOUT.format(
            kind=f"`{spec.algorithm.kind}`",
            steps=origin.step,
            base=_code(spec.model.path),
            reference=f"`{_code(reference)}`" if reference else "that same model",
            reward=f"`{_code(spec.reward_model)}`" if spec.reward_model else _stages(spec),
        ),
        *_evaluation(run, origin, spec),
        *_course(rows),
        *_alarms(rows, run),
        "## Settings\n",
        _table(_settings(spec, origin)),
        "## Use\n",
        _USE.format(folder=_code(spec.name), prompt="Once upon a time", tokens=spec.sampling.max_new_tokens),
        "## Limits\n",
        _LIMITS,
    ]
    return "\n".join(parts)


def _front(spec: RunSpec) -> str:
    """YAML, every value as JSON, which YAML takes."""
    lines = ["library_name: transformers", "pipeline_tag: text-generation", "tags:"]
    lines += [f"- {json.dumps(tag)}" for tag in ("trimtab", "rlhf", spec.algorithm.kind)]
    if _on_the_hub(spec.model.path):
        lines.append(f"base_model: {json.dumps(spec.model.path)}")
    return "---\n" + "\n".join(lines) + "\n---\n"


def _on_the_hub(path: str) -> bool:
    """owner/name, and neither a folder nor a package: the Hub refuses a base_model that it does not know."""
    return (
        path.count("/") == 1
        and not path.startswith((".", "/", "~", "package:"))
        and not path.endswith(".gguf")
    )


def _stages(spec: RunSpec) -> str:
    stages = [stage for stage in spec.rollout.slip if stage.split("/")[0] == "reward"]
    return "data" if spec.offline else "the stages " + ", ".join(f"`{_code(stage)}`" for stage in stages)


def _evaluation(run: RunFiles, origin: Origin, spec: RunSpec) -> list[str]:
    """On held-out prompts, where the run has ended and was evaluated."""
    summary = run.summary
    if summary is None or origin.step != spec.steps:
        return []
    low, high = summary.win_rate_low, summary.win_rate_high
    interval = f"at least {low:.3f}" if high is None else f"{low:.3f} to {high:.3f}"
    rows = [
        ("Win rate against the model before", f"{summary.win_rate:.3f} (95 % interval {interval})"),
        ("Comparisons", str(summary.comparisons)),
        ("Judge", summary.annotator or "not named"),
        ("Its score, before and after", f"{number(summary.score_before)}, {number(summary.score_after)}"),
        ("Sequence KL, nats", number(summary.sequence_kl)),
        ("Distinct-2, of that before", number(summary.distinct_ratio)),
        ("Length, of that before", number(summary.length_ratio)),
    ]
    return ["## On held-out prompts\n", _table(rows)]


def _course(rows: Sequence[dict[str, float]]) -> list[str]:
    """First and last steps of training."""
    lines = []
    for label, name in _MEASURED:
        values = finite(row[name] for row in rows if name in row)
        if values:
            first, last = values[:WINDOW], values[-WINDOW:]
            lines.append(
                f"| {label} | {number(sum(first) / len(first))} | {number(sum(last) / len(last))} |\n"
            )
    if not lines:
        return []
    head = f"| mean over {WINDOW} steps | first | last |\n|---|---|---|\n"
    return ["## In training\n", head + "".join(lines)]


def _alarms(rows: Sequence[dict[str, float]], run: RunFiles) -> list[str]:
    """Those that were raised at any step; that none was is worth saying too."""
    found = alarm_rows(rows, run.watch)
    if not found:
        return []
    raised = [f"- **{one.name}** ({one.state}; {one.when}): {one.meaning}\n" for one in found if one.when]
    return ["## Alarms\n", "".join(raised) if raised else "None was raised.\n"]


def _settings(spec: RunSpec, origin: Origin) -> list[tuple[str, str]]:
    changed = spec.algorithm.model_dump(mode="json", exclude_unset=True, exclude={"kind"})
    rows = [
        ("Algorithm", f"`{spec.algorithm.kind}`"),
        *((f"`algorithm.{_code(name)}`", f"`{_code(value)}`") for name, value in changed.items()),
        ("Learning rate", f"`{spec.optimiser.learning_rate:g}`, {spec.optimiser.schedule}"),
        ("Prompts a step, completions each", f"{spec.rollout.batch_groups}, {spec.group_size}"),
        ("Temperature, top-p", f"{spec.sampling.temperature:g}, {spec.sampling.top_p:g}"),
        ("New tokens at most", str(spec.sampling.max_new_tokens)),
        ("Steps done", f"{origin.step} of {spec.steps}"),
        ("Seed", str(spec.seed)),
    ]
    return [*rows, ("Digest of the weights", f"`{origin.digest}`")] if origin.digest else rows


def _table(rows: Sequence[tuple[str, str]]) -> str:
    return "| | |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in rows)


def _code(value: object) -> str:
    """A value within backticks and a table's cell."""
    return str(value).replace("`", "'").replace("|", "/").replace("\n", " ")
