"""Admission: how much work there may be, which prompts come next, and what a resumed learner may still use. Pure.

Only the learner creates work: at most (max_staleness + 1) * batch - in flight. That bounds every queue.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from services.common.errors import Corrupted
from services.common.spec.run import RolloutSpec
from services.models.manifest import Version


def room(spec: RolloutSpec, *, in_flight: int, steps_left: int) -> int:
    """Groups that may be admitted now; never more than the remaining steps can use."""
    wanted = min(spec.max_staleness + 1, steps_left) * spec.batch_groups
    return max(0, wanted - in_flight)


def prompt_index(position: int, prompts: int, *, seed: int, shuffle: bool) -> int:
    """Which prompt stands at a position of the endless data order: one permutation per pass over the data."""
    lap, at = divmod(position, prompts)
    if not shuffle:
        return at
    return int(_order(seed, lap, prompts)[at])


@functools.lru_cache(maxsize=2)
def _order(seed: int, lap: int, prompts: int) -> npt.NDArray[np.int64]:
    """The permutation of one pass. Kept: of a million prompts it takes long, and each group asks for a place in it."""
    return np.random.default_rng((seed, 77, lap)).permutation(prompts)


@dataclass(slots=True)
class DataOrder:
    """The place in the endless data order."""

    prompts: int
    seed: int
    shuffle: bool
    position: int = 0

    def prompt(self, ahead: int = 0) -> int:
        """Which prompt stands at the place, or so many positions beyond it."""
        return prompt_index(self.position + ahead, self.prompts, seed=self.seed, shuffle=self.shuffle)

    def take(self) -> int:
        """The next prompt."""
        prompt = self.prompt()
        self.position += 1
        return prompt

    def take_up(self, prompt: int, *, within: int) -> list[int] | None:
        """Go past this prompt, at most so many positions beyond; those before it. None where it stands elsewhere."""
        before: list[int] = []
        for ahead in range(within + 1):
            found = self.prompt(ahead)
            if found == prompt:
                self.position += ahead + 1
                return before
            before.append(found)
        return None


@dataclass(slots=True)
class Versions:
    """Which step each published digest belongs to; a rollout is judged by the digest that made it.

    Whatever its epoch: after a resume, what the checkpoint's weights made is as good as before.
    """

    step_of: dict[str, int]
    remembered: int = 64
    """Versions kept: more than a rollout may be behind."""
    digest_of: dict[tuple[int, int], str] = field(default_factory=dict, compare=False)
    """By (epoch, step), of what this learner published."""

    def publish(self, version: Version) -> None:
        """Note a version; a digest that is published again keeps its newest step."""
        self.step_of.pop(version.digest, None)
        self.step_of[version.digest] = version.step
        self.digest_of[version.epoch, version.step] = version.digest
        for kept in (self.step_of, self.digest_of):
            while len(kept) > self.remembered:
                del kept[next(iter(kept))]  # type: ignore[arg-type]

    def check(self, claimed: Version) -> None:
        """Raises Corrupted for other weights under a published version's name."""
        published = self.digest_of.get((claimed.epoch, claimed.step), claimed.digest)
        if published != claimed.digest:
            raise Corrupted(
                f"a rollout names weights {claimed.digest[:12]} as epoch {claimed.epoch}, step {claimed.step}; "
                f"published were {published[:12]}"
            )

    def staleness(self, digests: list[str], step: int) -> int | None:
        """Steps that the oldest of these weights are behind `step`; None when one of them is unknown."""
        known = [self.step_of.get(digest) for digest in digests]
        if not known or any(one is None for one in known):
            return None
        return step - min(one for one in known if one is not None)
