"""Packed passes for serving in which rows that begin alike read their beginning once. Knows no head.

    rows   [p p p a a]  [p p p b]  [q]      answers to one prompt, and a row of another
    pass   [p p p a a][b][q]                positions 0 1 2 3 4  3  0
    b      attends to p p p, where the row before it has them, and to itself

Rows are laid out in the order of their ids, so that each begins most like the one before it; what it shares with that
one may be shared by that one in its turn. Causal models only: what comes after a beginning is not seen from within it.
`sharing_holds` tries it against the packed pass. Training has forests (forest.py), whose way back is quick.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import structlog
import torch

from services.models.packed import Before, packed_states, probe_rows, same_states
from services.models.sharing import beginning

# A beginning shorter than this, or than this part of its row, costs more to look up than to read again.
LEAST_TOKENS, LEAST_SHARE = 16, 0.2
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SharedRows:
    """One pass. Of each row in the order of the pass: ids that it reads itself, and how many it shares.

    places: of each row as given, where its tokens stand in the pass.
    """

    own: list[Sequence[int]]
    shared: list[int]
    places: list[list[int]]
    order: list[int]

    @property
    def tokens(self) -> int:
        """That are read."""
        return sum(map(len, self.own))


def laid_out(
    rows: Sequence[Sequence[int]], *, least: int = LEAST_TOKENS, share: float = LEAST_SHARE
) -> SharedRows:
    """Rows of token ids, none empty, for one pass. A row's last token is always its own."""
    order = sorted(range(len(rows)), key=lambda number: tuple(rows[number]))
    own: list[Sequence[int]] = []
    shared: list[int] = []
    places: list[list[int]] = [[] for _ in rows]
    tokens = 0
    before: int | None = None
    for number in order:
        row = rows[number]
        same = 0 if before is None else min(beginning(rows[before], row), len(row) - 1)
        if before is None or same < max(least, share * len(row)):
            same = 0
        read = len(row) - same
        own.append(row[same:])
        shared.append(same)
        places[number] = [
            *(places[before][:same] if before is not None else ()),
            *range(tokens, tokens + read),
        ]
        tokens += read
        before = number
    return SharedRows(own, shared, places, order)


def states_at(
    backbone: Any,
    rows: Sequence[Sequence[int]],
    places: Sequence[Sequence[int]],
    *,
    least: int = LEAST_TOKENS,
    share: float = LEAST_SHARE,
) -> torch.Tensor:
    """Last hidden states of the named tokens of each row, row after row, [tokens, width]. Options: see laid_out."""
    laid = laid_out(rows, least=least, share=share)
    device = backbone.device
    before = [
        Before.of(laid.places[number][:same], len(own), device) if same else None
        for number, own, same in zip(laid.order, laid.own, laid.shared, strict=True)
    ]
    positions = [
        at for own, same in zip(laid.own, laid.shared, strict=True) for at in range(same, same + len(own))
    ]
    ids = [token for own in laid.own for token in own]
    states = backbone(
        input_ids=torch.tensor([ids], dtype=torch.long, device=device),
        position_ids=torch.tensor([positions], dtype=torch.long, device=device),
        packed_lengths=[len(own) for own in laid.own],
        packed_before=before,
        use_cache=False,
    ).last_hidden_state[0]
    wanted = [where[at] for where, named in zip(laid.places, places, strict=True) for at in named]
    return states[torch.tensor(wanted, device=device)]


def sharing_holds(backbone: Any) -> bool:
    """Whether a backbone that is packed has the same states with shared beginnings."""
    try:
        first, second, third = probe_rows(backbone)
        rows = [first, [*first[:6], *third], [*first[:6], *third[:3], *second]]
        every = [range(len(row)) for row in rows]
        with torch.inference_mode():
            expected, found = (
                packed_states(backbone, rows),
                states_at(backbone, rows, every, least=1, share=0),
            )
        return same_states(expected, found)
    except Exception as error:  # whatever a model raises that knows no such positions or arguments
        _log.info(
            "shared beginnings do not suit this model", model=type(backbone).__name__, reason=str(error)
        )
        return False
