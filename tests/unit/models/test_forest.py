"""Rows that share a beginning: states and gradients are those of each row alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import MistralConfig, MistralModel

from services.models.forest import enable_forests, forest_states, plant, shared_beginning, trees_of
from services.models.unrolled import unroll
from tests.unit.models.test_packed import DECODER, FAMILIES, made

PROMPT = [3, 4, 5, 6, 7]
FAMILY_A = [[*PROMPT, 8, 9], [*PROMPT, 10], [*PROMPT, 8, 11, 12, 13]]
FAMILY_B = [[20, 21, 22], [20, 23]]


def test_a_beginning_is_shared_but_never_a_whole_row() -> None:
    """The last token of each row is its own, also where one row begins the other."""
    assert shared_beginning([1, 2, 3], [1, 2, 4]) == 2
    assert shared_beginning([1, 2, 3], [1, 2, 3, 4]) == 2
    assert shared_beginning([1, 2], [1, 2]) == 1
    assert shared_beginning([1], [1]) == 0


def test_trees_hold_whole_rows_within_the_limit() -> None:
    """Rows of 7, 6 and 9 tokens that share 5 or 6 make one tree of 11, or two where 9 is the limit."""
    assert [(t.rows, t.shared, t.tokens) for t in trees_of(FAMILY_A)] == [((0, 1, 2), (0, 5, 6), 11)]
    assert [(t.rows, t.tokens) for t in trees_of(FAMILY_A, 9)] == [((0, 1), 8), ((2,), 9)]
    assert [t.rows for t in trees_of(FAMILY_A, 1)] == [(0,), (1,), (2,)]


def gradients(model: Any, states: torch.Tensor) -> list[torch.Tensor]:
    """Of all parameters, by something that looks at each row in another way."""
    model.zero_grad()
    (states * torch.linspace(-1, 1, len(states))[:, None]).sin().sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("limit", [512, 9, 1])
def test_states_and_gradients_are_those_of_each_row_alone(limit: int) -> None:
    """In float32 to 1e-5, whatever is shared; each parameter's gradient too."""
    model = FAMILIES["llama"]()
    rows = [*FAMILY_A, *FAMILY_B]

    alone = torch.stack([model(input_ids=torch.tensor([row])).last_hidden_state[0, -1] for row in rows])
    expected = gradients(model, alone)
    assert enable_forests(model)
    together = forest_states(model, plant([FAMILY_A, FAMILY_B], limit))
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    for one, other in zip(gradients(model, together), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("limit", [512, 9, 1])
def test_trees_that_begin_alike_share_that_too(limit: int) -> None:
    """Layers that know of it give the states and gradients of each row alone, from fewer tokens."""
    model = FAMILIES["llama"]()
    layers = unroll(model)
    assert layers is not None
    families = [FAMILY_A, [[3, 4, 21, 22], [3, 4, 23]], [[3, 4, 21, 24]], FAMILY_B]
    rows = [row for family in families for row in family]
    forest = plant(families, limit, alike=True)
    assert len(forest.ids) <= len(plant(families, limit).ids) - 2 - 3

    alone = torch.stack([model(input_ids=torch.tensor([row])).last_hidden_state[0, -1] for row in rows])
    expected = gradients(model, alone)
    together = forest_states(model, forest, layers)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    for one, other in zip(gradients(model, together), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
    with pytest.raises(ValueError, match="layers that know of it"):
        forest_states(model, forest)


def test_a_model_with_a_window_stays_as_it_is() -> None:
    """A layer that sees only the last tokens is not asked to read trees."""
    model = made(MistralModel, MistralConfig(**DECODER, sliding_window=4))
    before = model.config._attn_implementation
    assert not enable_forests(model)
    assert model.config._attn_implementation == before


def test_an_encoder_is_left_to_padded_passes() -> None:
    """Its tokens see what comes after them, so nothing can be shared."""
    assert not enable_forests(FAMILIES["bert"]())
