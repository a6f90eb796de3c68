"""Which tokens of padded rows are computed: no padding, and a prompt that several rows begin with once.

    rows   [p p a a a]   tokens [p p a a a b b]      both rows' attention reads the keys of p,
           [p p b b ·]   source  0 1 2 3 4           and their gradients by them are summed
                                 0 1 5 6 ·

What comes before a token alone decides its state, so the completions of one prompt share the prompt's. Pure index
arithmetic; knows no model.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch


@dataclass(frozen=True, slots=True)
class Copies:
    """Tokens that stand in several rows.

    source: [rows * time] int64 into the tokens, whose state stands at each place; 0 where there is padding.
    shared: [shared] int64 into the tokens, those with copies. places: [shared, most] int64 into rows * time, all
    places of each; rows * time where it has fewer.
    """

    source: torch.Tensor
    shared: torch.Tensor
    places: torch.Tensor


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens to compute: places [tokens] int64 into rows * time, of each its first; positions [tokens] int64.

    places: None where every place is a token of its own. copies: None where no row shares anything.
    """

    positions: torch.Tensor
    places: torch.Tensor | None
    copies: Copies | None


def tokens_of(lengths: Sequence[int], time: int, prompts: Sequence[npt.NDArray[np.int32]] = ()) -> Tokens:
    """Of rows of these lengths, padded to `time`. prompts: what each row begins with; none: nothing is shared."""
    families = _families(prompts)
    first_places: list[npt.NDArray[np.int64]] = []
    positions: list[npt.NDArray[np.int64]] = []
    source = np.zeros((len(lengths), time), np.int64)
    count = 0
    for row, length in enumerate(lengths):
        first = families[row][0] if families else row
        known = 0 if first == row else len(prompts[row])
        source[row, :known] = source[first, :known]
        own = np.arange(known, length)
        source[row, known:length] = count + own - known
        count += len(own)
        first_places.append(row * time + own)
        positions.append(own)
    places = None if count == len(lengths) * time else torch.from_numpy(np.concatenate(first_places))
    shared = {family[0]: family for family in families if len(family) > 1}
    copies = _copies(source, time, prompts, list(shared.values())) if shared else None
    return Tokens(torch.from_numpy(np.concatenate(positions)), places, copies)


def _families(prompts: Sequence[npt.NDArray[np.int32]]) -> list[list[int]]:
    """For each row, the rows that begin as it does, itself among them."""
    by_prompt: dict[Hashable, list[int]] = {}
    for row, prompt in enumerate(prompts):
        by_prompt.setdefault(prompt.tobytes(), []).append(row)
    return [by_prompt[prompt.tobytes()] for prompt in prompts]


def _copies(
    source: npt.NDArray[np.int64],
    time: int,
    prompts: Sequence[npt.NDArray[np.int32]],
    families: Sequence[Sequence[int]],
) -> Copies:
    most = max(map(len, families))
    shared, places = [], []
    for family in families:
        columns = np.arange(len(prompts[family[0]]))
        shared.append(source[family[0], columns])
        here = np.full((len(columns), most), source.size, np.int64)
        here[:, : len(family)] = columns[:, None] + np.array(family)[None] * time
        places.append(here)
    arrays = (source.reshape(-1), np.concatenate(shared), np.concatenate(places))
    return Copies(*map(torch.from_numpy, arrays))
