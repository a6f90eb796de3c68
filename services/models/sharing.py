"""Which tokens of padded rows are computed: no padding, and once what several rows begin with.

    rows   [s p p a a a]   tokens [s p p a a a b b q c]      both rows of p read its keys, all three rows those of s,
           [s p p b b ·]   source  0 1 2 3 4 5               and their gradients by them are summed
           [s q c · · ·]           0 1 2 6 7 ·
                                   0 8 9 · · ·

What comes before a token alone decides its state, so the completions of one prompt share the prompt's, and prompts
under one system message share the message's. Pure index arithmetic; knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

Ids = npt.NDArray[np.int32]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Copies:
    """Tokens that stand in several rows: at two places, at three, …

    shared: [shared] int64 into the tokens, of each number. places: [shared, number] int64 into rows * time, the first
    place first.
    """

    shared: tuple[torch.Tensor, ...]
    places: tuple[torch.Tensor, ...]


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens to compute: positions [tokens] int64; places [tokens] int64 into rows * time, of each its first.

    source: [rows * time] int64 into the tokens, whose state stands at each place, 0 where there is padding. Both None
    where every place is a token of its own. copies: None where no row shares anything.
    """

    positions: torch.Tensor
    places: torch.Tensor | None
    source: torch.Tensor | None
    copies: Copies | None


def tokens_of(lengths: Sequence[int], time: int, prompts: Sequence[Ids] = ()) -> Tokens:
    """Of rows of these lengths, padded to `time`. prompts: what each row begins with; none: nothing is shared."""
    order, same = _beginnings(prompts) if prompts else (range(len(lengths)), [0] * len(lengths))
    source = np.zeros((len(lengths), time), np.int64)
    count, before = 0, 0
    for row, alike in zip(order, same, strict=True):
        known = min(alike, lengths[row], lengths[before])
        own = lengths[row] - known
        source[row, :known] = source[before, :known]
        source[row, known : lengths[row]] = np.arange(count, count + own)
        count, before = count + own, row
    real = np.flatnonzero(np.arange(time) < np.array(lengths)[:, None])
    # The places of each token one after the other, in order.
    by_token = real[np.argsort(source.reshape(-1)[real], kind="stable")]
    times = np.bincount(source.reshape(-1)[real], minlength=count)
    starts = np.cumsum(times) - times
    first = by_token[starts]
    positions = torch.from_numpy(first % time)
    if count == source.size:
        return Tokens(positions, None, None, None)
    copies = _copies(by_token, starts, times) if count < len(real) else None
    return Tokens(positions, torch.from_numpy(first), torch.from_numpy(source.reshape(-1)), copies)


def _beginnings(prompts: Sequence[Ids]) -> tuple[Sequence[int], list[int]]:
    """The rows in an order in which each shares with the one before it as much as with any, and how much that is.

    As they are where none shares anything.
    """
    # Bytes from the highest on are in the order of the ids, which are not negative.
    order = sorted(range(len(prompts)), key=lambda row: prompts[row].astype(">i4").tobytes())
    same = [0, *(beginning(prompts[one], prompts[other]) for one, other in pairwise(order))]
    return (order, same) if any(same) else (range(len(prompts)), same)


def beginning(one: Ids | Sequence[int], other: Ids | Sequence[int]) -> int:
    """How many first ids are the same."""
    most = min(len(one), len(other))
    differing = np.flatnonzero(np.asarray(one[:most]) != np.asarray(other[:most]))
    return int(differing[0]) if len(differing) else most


def _copies(by_token: Indices, starts: Indices, times: Indices) -> Copies:
    shared = [np.flatnonzero(times == many) for many in np.unique(times) if many > 1]
    places = [by_token[starts[tokens][:, None] + np.arange(times[tokens[0]])] for tokens in shared]
    return Copies(tuple(map(torch.from_numpy, shared)), tuple(map(torch.from_numpy, places)))
