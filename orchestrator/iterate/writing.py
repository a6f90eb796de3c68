"""How each version writes: variety, length, and what it answers to the first held-out prompts. Pure but for its file.

A policy that wins may win by repeating what the annotator likes: win rates alone do not show that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from pydantic import BaseModel, ConfigDict

from orchestrator.demo.evaluation import distinct_n
from orchestrator.demo.files import read_model, write_atomically

FILE = "writing.json"
SAMPLES = 4


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Version(_Part):
    """A version's answers to all held-out prompts. distinct: distinct-2 of words; characters: an answer's mean."""

    version: int
    distinct: float
    characters: float


class Sample(_Part):
    """A prompt, and the first answer of each version, oldest version first."""

    prompt: str
    answers: list[str]


class Writing(_Part):
    """Of all versions so far, oldest first."""

    versions: list[Version]
    samples: list[Sample]

    def variety(self) -> float:
        """The newest version's distinct-2 over the initial model's; 1 where that one wrote nothing."""
        first, last = self.versions[0].distinct, self.versions[-1].distinct
        return last / first if first else 1.0


def writing(prompts: Sequence[str], answers: Mapping[int, Sequence[Sequence[str]]]) -> Writing:
    """Of held-out prompts and, by version, the answers to each of them."""
    versions = sorted(answers)
    texts = {version: [text for one in answers[version] for text in one] for version in versions}
    return Writing(
        versions=[
            Version(
                version=version,
                distinct=distinct_n(texts[version]),
                characters=fmean(map(len, texts[version])),
            )
            for version in versions
        ],
        samples=[
            Sample(prompt=prompt, answers=[answers[version][at][0] for version in versions])
            for at, prompt in enumerate(prompts[:SAMPLES])
        ],
    )


def write(folder: Path, found: Writing) -> None:
    """Whole or not at all."""
    write_atomically(folder / FILE, found.model_dump_json(indent=2) + "\n")


def read(folder: Path) -> Writing | None:
    """None where there is no such file. Raises Corrupted."""
    return read_model(folder / FILE, Writing)
