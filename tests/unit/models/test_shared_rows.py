"""Packed passes in which beginnings are read once, against each row alone, on small random models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services.models.packed import enable_packing
from services.models.reward_model import RewardModel, load_reward_model
from services.models.scorer import ScoreText
from services.models.shared_rows import SharedRows, laid_out, sharing_holds, states_at
from tests.fakes.tiny_models import make_tiny_reward_model
from tests.unit.models.test_packed import FAMILIES

DECODERS = ["llama", "qwen2"]
START = list(range(3, 23))
# Nested beginnings, two rows alike but for their last token, one that begins like none, one that another begins with.
ROWS = [
    [*START, 30, 31, 32],
    [40, 41, 42],
    [*START, 30, 31, 33, 34],
    [*START, 35],
    [*START[:18], 36, 37, 38],
    [*START, 30],
]


def every(rows: list[list[int]]) -> list[range]:
    return [range(len(row)) for row in rows]


def test_where_tokens_stand() -> None:
    """Rows in the order of their ids; each looks up what it shares with the one before, and reads the rest."""
    rows = [[7, 8, 9, 4], [5], [7, 8, 9], [7, 8, 6, 6]]
    assert laid_out(rows, least=1, share=0) == SharedRows(
        own=[[5], [7, 8, 6, 6], [9], [4]],
        shared=[0, 0, 2, 3],
        places=[[1, 2, 5, 6], [0], [1, 2, 5], [1, 2, 3, 4]],
        order=[1, 3, 2, 0],
    )


def test_the_same_row_twice_reads_its_last_token_twice() -> None:
    """A row's last token is its own, so that each has a state to be scored by."""
    laid = laid_out([[1, 2, 3], [1, 2, 3]], least=1, share=0)
    assert laid.places == [[0, 1, 2], [0, 1, 3]]
    assert laid.tokens == 4


@pytest.mark.parametrize(("least", "share", "tokens"), [(3, 0.75, 5), (4, 0.0, 8), (1, 0.8, 8)])
def test_short_beginnings_are_read_again(least: int, share: float, tokens: int) -> None:
    """Three tokens of four: shared if so many are enough and such a part of the row is, else read again."""
    assert laid_out([[1, 2, 3, 4], [1, 2, 3, 5]], least=least, share=share).tokens == tokens


@pytest.mark.parametrize("family", DECODERS)
def test_states_are_those_of_each_row_alone(family: str) -> None:
    """Every state, those that are shared too, equals the one of its row run alone, in float32 to 1e-5."""
    model = FAMILIES[family]()
    with torch.inference_mode():
        alone = torch.cat([model(input_ids=torch.tensor([row])).last_hidden_state[0] for row in ROWS])
        assert enable_packing(model)
        assert sharing_holds(model)
        found = states_at(model, ROWS, every(ROWS))
    assert laid_out(ROWS).tokens < sum(map(len, ROWS)) - 70
    torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", DECODERS)
def test_in_bfloat16_it_is_as_near_the_truth(family: str) -> None:
    """The error against float32 is at most a quarter above that of rows run alone."""
    exact, model = FAMILIES[family](), FAMILIES[family]().bfloat16()
    with torch.inference_mode():
        truth = torch.cat([exact(input_ids=torch.tensor([row])).last_hidden_state[0] for row in ROWS])
        alone = torch.cat([model(input_ids=torch.tensor([row])).last_hidden_state[0] for row in ROWS])
        assert enable_packing(model)
        found = states_at(model, ROWS, every(ROWS))
    assert (found.float() - truth).square().mean() <= 1.25**2 * (alone.float() - truth).square().mean()


def test_an_encoder_shares_nothing() -> None:
    """What comes after a beginning is seen from within it there."""
    model = FAMILIES["bert"]()
    assert enable_packing(model)
    assert not sharing_holds(model)


def loaded(folder: Path) -> RewardModel:
    return load_reward_model(str(folder), dtype="float32", threads=1, device="cpu")


def test_a_served_reward_model_reads_a_prompt_once(tmp_path: Path) -> None:
    """Eight answers to one prompt of 80 letters: the scores of each alone, by a pass over a fifth of the tokens."""
    folder = make_tiny_reward_model(tmp_path / "m", pooling="last")
    prompt = (("user", "what is to be said of it " * 3),)
    rows = [ScoreText(prompt, f"{number} said") for number in range(8)]
    plain, served = loaded(folder), loaded(folder)
    served.pack()
    assert served.shared_rows
    passes: list[int] = []

    def watch(_: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        passes.append(options["input_ids"].numel())

    served.backbone.register_forward_pre_hook(watch, with_kwargs=True)
    found = served.score(rows)
    np.testing.assert_allclose(found, [plain.score([row])[0] for row in rows], atol=1e-5)
    assert len(passes) == 1
    assert passes[0] < 0.25 * sum(len(served.encode(row).ids) for row in rows)
