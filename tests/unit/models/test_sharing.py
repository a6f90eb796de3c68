"""Which tokens are computed of rows that begin alike: by hand, and against a search of all prefixes."""

from __future__ import annotations

import numpy as np
import pytest

from services.models.sharing import Tokens, tokens_of


def ids(*rows: list[int]) -> list[np.ndarray]:
    return [np.array(row, np.int32) for row in rows]


def lists(tokens: Tokens) -> tuple[list[int], list[int], list[int]]:
    assert tokens.places is not None
    assert tokens.source is not None
    return tokens.positions.tolist(), tokens.places.tolist(), tokens.source.tolist()


def test_completions_share_their_prompt_and_prompts_their_beginning() -> None:
    """The example of sharing.py: s p p a a a, s p p b b, s q c."""
    tokens = tokens_of([6, 5, 3], 6, ids([1, 2, 2], [1, 2, 2], [1, 3]))
    positions, places, source = lists(tokens)
    assert positions == [0, 1, 2, 3, 4, 5, 3, 4, 1, 2]
    assert places == [0, 1, 2, 3, 4, 5, 9, 10, 13, 14]
    assert source == [0, 1, 2, 3, 4, 5, 0, 1, 2, 6, 7, 0, 0, 8, 9, 0, 0, 0]
    assert tokens.copies is not None
    assert [each.tolist() for each in tokens.copies.shared] == [[1, 2], [0]]
    assert [each.tolist() for each in tokens.copies.places] == [[[1, 7], [2, 8]], [[0, 6, 12]]]


def test_rows_that_share_nothing_stand_in_their_order() -> None:
    """With padding they have places; without, each place is a token of its own."""
    tokens = tokens_of([3, 2], 3, ids([2, 1], [1]))
    assert lists(tokens) == ([0, 1, 2, 0, 1], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 0])
    assert tokens.copies is None
    whole = tokens_of([3, 3], 3, ids([2], [1]))
    assert whole.positions.tolist() == [0, 1, 2, 0, 1, 2]
    assert (whole.places, whole.source, whole.copies) == (None, None, None)
    assert tokens_of([2, 2], 3).copies is None


@pytest.mark.parametrize("seed", range(20))
def test_a_token_is_computed_once_for_all_rows_that_begin_as_far_alike(seed: int) -> None:
    """Places have one token exactly where the prompts are the same up to there; all of a token's places are known."""
    draw = np.random.default_rng(seed)
    prompts = [draw.integers(0, 2, draw.integers(1, 6)).astype(np.int32) for _ in range(7)]
    lengths = [len(prompt) + int(draw.integers(0, 4)) for prompt in prompts]
    tokens = tokens_of(lengths, max(lengths), prompts)
    seen: dict[object, list[int]] = {}
    for row, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        for at in range(length):
            known = tuple(prompt[: at + 1].tolist()) if at < len(prompt) else (row, at, "its own")
            seen.setdefault(known, []).append(row * max(lengths) + at)
    positions, first, source = lists(tokens)
    assert sorted(first) == sorted(places[0] for places in seen.values())
    for places in seen.values():
        assert len({source[place] for place in places}) == 1
        assert first[source[places[0]]] == places[0]
        assert positions[source[places[0]]] == places[0] % max(lengths)
    copies = {} if tokens.copies is None else dict(_copies(tokens))
    assert copies == {source[places[0]]: places for places in seen.values() if len(places) > 1}


def _copies(tokens: Tokens) -> list[tuple[int, list[int]]]:
    assert tokens.copies is not None
    pairs = zip(tokens.copies.shared, tokens.copies.places, strict=True)
    return [pair for shared, places in pairs for pair in zip(shared.tolist(), places.tolist(), strict=True)]
