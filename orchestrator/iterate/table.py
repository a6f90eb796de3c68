"""`python -m orchestrator.iterate.table RUN…`: runs of rounds side by side, by their summaries."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from orchestrator.iterate import state
from orchestrator.iterate.drive import TOLD_FILE
from orchestrator.iterate.report import SUMMARY_FILE

_HEAD = (
    "| run | learns from | labels | reward model's accuracy | win rate over the initial model (95 %) | minutes |\n"
    "|---|---|---|---|---|---|"
)


def row(folder: Path) -> str:
    """One run as a row of Markdown. Raises FileNotFoundError for a folder that has no finished round."""
    rounds = state.read(folder / state.STATE_FILE)
    finished = [one for one in rounds.rounds if one.against] if rounds else []
    if not finished:
        raise FileNotFoundError(f"{folder}: no finished round")
    summary = json.loads((folder / SUMMARY_FILE).read_text())
    last = finished[-1]
    result = last.against[0]
    told = json.loads((folder / TOLD_FILE).read_text())
    learns = "demonstrations" if told["learn"] == "demonstrations" else f"comparisons, {told['reward_base']}"
    labels = sum(one.comparisons for one in finished)
    reward = "" if last.reward_accuracy is None else f"{last.reward_accuracy:.3f}"
    won = f"{result.win_rate:.3f} ({result.low:.3f} to {result.high:.3f})"
    return f"| {folder.name} | {learns} | {labels} | {reward} | {won} | {summary['seconds'] / 60:.1f} |"


def main() -> None:
    """Print the table of the folders that were named."""
    try:
        print("\n".join([_HEAD, *(row(Path(name)) for name in sys.argv[1:])]))
    except FileNotFoundError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
