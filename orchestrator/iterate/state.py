"""How far a run of rounds is: rounds.json. Pure but for reading and writing that file.

A phase is entered here only after what it leaves behind is on disk, so a run that was ended anywhere takes up at the
phase that it was in, and that phase at what it had (answers by call, RL by checkpoint).
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.demo.files import read_model, write_atomically

STATE_FILE = "rounds.json"
PHASES = ("sampled", "compared", "rewarded", "trained", "evaluated")
"""In their order; a round of demonstrations has only the last two."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Against(_Part):
    """How a policy did against an earlier one, by the annotator: a tie is half; a bootstrap over prompts, 95 %."""

    version: int
    win_rate: float
    low: float
    high: float
    comparisons: int


class Round(_Part):
    """One round."""

    number: int
    done: list[str] = Field(default_factory=list)
    seconds: dict[str, float] = Field(default_factory=dict)
    comparisons: int = 0
    reward_accuracy: float | None = None
    reward_digest: str = ""
    policy_digest: str = ""
    against: list[Against] = Field(default_factory=list)
    kl: float | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing of it is missing."""
        return PHASES[-1] in self.done

    def previous(self) -> Against | None:
        """The result against the version before."""
        return next((one for one in self.against if one.version == self.number - 1), None)


class Rounds(_Part):
    """All rounds; `made_with`: settings that all files of the run fit; `stopped`: why there are no more."""

    reference: str
    policy_init: str
    made_with: dict[str, int | float | str] = Field(default_factory=dict)
    rounds: list[Round] = Field(default_factory=list)
    stopped: str = ""

    def current(self) -> Round:
        """The round that is not at its end, begun if the last one is."""
        if not self.rounds or self.rounds[-1].ended:
            self.rounds.append(Round(number=len(self.rounds) + 1))
        return self.rounds[-1]


def plateau(one: Round) -> bool:
    """Whether a round did not beat the one before: half is within its interval or above it."""
    result = one.previous()
    return result is not None and result.low <= 0.5


def why_stopped(rounds: Rounds, limit: int, *, plateaus: bool) -> str:
    """Why there is no round after those that are there; empty where there is one, or one is under way."""
    last = rounds.rounds[-1] if rounds.rounds else None
    if last is None or not last.ended:
        return ""
    if plateaus and plateau(last):
        return f"a plateau: round {last.number} does not beat the one before"
    return f"all {last.number} rounds are done" if last.number >= limit else ""


def write(path: Path, rounds: Rounds) -> None:
    """Whole or not at all."""
    write_atomically(path, rounds.model_dump_json(indent=2) + "\n")


def rounds_of(folder: Path) -> Rounds | None:
    """Those of a run's folder; None where it is no run of rounds. Raises Corrupted."""
    return read(folder / STATE_FILE)


def read(path: Path) -> Rounds | None:
    """None where there is no such file. Raises Corrupted."""
    return read_model(path, Rounds)
