"""What is told of a trained reward model: lines for people, the card in its folder. Pure text; knows no training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PLOT_FILE = "reward_by_length.svg"
_ABOUT = """\
Trained by `trimtab reward-model` from `{base}` on comparisons of answers. It maps a prompt and an answer to one number:
higher is what the annotators would have preferred. Reference answers score mean 0 and standard deviation 1. It was
trained for differences between answers to one prompt; values across prompts say less.
"""
_MARGIN = """\
Margin is how much better an answer was said to be where the data say it, else how sure the model is (difference of
logits).
"""
_BIAS = """\
Held out are whole prompts, never rows. The comparisons' own bias is in the model: if the longer answer wins among them,
it likes length.
"""


def percent(share: float | None) -> str:
    """0.6412 as 64.1 %; a dash where there is none."""
    return "\N{EN DASH}" if share is None or share != share else f"{100 * share:.1f} %"


def lines(report: Mapping[str, Any]) -> list[str]:
    """The figures, for people at a terminal. report: as written to JSON."""
    low, high = percent(report["accuracy_low"]), percent(report["accuracy_high"])
    matched = int(report["length_matched_pairs"])
    told = [
        f"held-out pairs      {report['held_out_pairs']} (trained on {report['train_pairs']}, split by prompt)",
        f"accuracy            {percent(report['accuracy'])} ({low} to {high})",
        f"the longer wins     {percent(report['accuracy_longer_wins'])}: what length alone would reach",
        f"length-matched      {percent(report['accuracy_length_matched'])} on {matched} pairs",
        f"calibration error   {report['calibration_error']:.3f}",
        f"score with length   {report['length_correlation']:+.2f} (correlation)",
    ]
    told += [
        f"margin {row['least']:.2f} to {row['most']:.2f}".ljust(20)
        + f"{percent(row['accuracy'])} on {row['pairs']:.0f} pairs"
        for row in report["by_margin"]
    ]
    told += [
        f"{kind}".ljust(20) + f"{percent(row['accuracy'])} on {row['pairs']:.0f} pairs"
        for kind, row in report["by_agreement"].items()
    ]
    return told


def card(report: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """README.md of the model's folder, in the Hub's form. settings: name and value of what it was trained with."""
    rows = [
        ("Accuracy on held-out pairs", percent(report["accuracy"])),
        (
            "95 % interval (Wilson)",
            f"{percent(report['accuracy_low'])} to {percent(report['accuracy_high'])}",
        ),
        ("The longer answer wins (length alone)", percent(report["accuracy_longer_wins"])),
        (
            f"Accuracy on {report['length_matched_pairs']} length-matched pairs",
            percent(report["accuracy_length_matched"]),
        ),
        ("Expected calibration error", f"{report['calibration_error']:.3f}"),
        ("Correlation of score and length", f"{report['length_correlation']:+.2f}"),
        ("Training pairs", str(report["train_pairs"])),
        ("Pretraining pairs", str(report["pretraining_pairs"])),
        ("Held-out pairs", str(report["held_out_pairs"])),
    ]
    margin = [
        f"| {row['least']:.3g} to {row['most']:.3g} | {row['pairs']:.0f} | {percent(row['accuracy'])} |"
        for row in report["by_margin"]
    ]
    agreement = [
        f"| {kind} | {row['pairs']:.0f} | {percent(row['accuracy'])} |"
        for kind, row in report["by_agreement"].items()
    ]
    parts = [
        "---\ntags:\n- reward-model\n- trimtab\npipeline_tag: text-classification\n---\n",
        "# Reward model\n",
        _ABOUT.format(base=_code(report["model"])),
        "| | |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in rows),
        f"![Score against length of the held-out answers]({PLOT_FILE})\n",
        "## Where it is right\n",
        "| margin | pairs | accuracy |\n|---|---|---|\n" + "\n".join(margin) + "\n",
        "| annotators | pairs | accuracy |\n|---|---|---|\n" + "\n".join(agreement) + "\n",
        _MARGIN,
        "## Training\n",
        "| | |\n|---|---|\n"
        + "".join(f"| {name} | `{_code(value)}` |\n" for name, value in settings.items()),
        _BIAS,
    ]
    return "\n".join(parts)


def _code(value: object) -> str:
    """A value within backticks and a table's cell."""
    return str(value).replace("`", "'").replace("|", "/").replace("\n", " ")
