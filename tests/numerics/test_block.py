"""A block's written-out gradient is the gradient, and the layers made of such blocks are the model's own."""

from __future__ import annotations

import gc
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    Ministral3Config,
    Ministral3Model,
    Qwen2Config,
    Qwen2Model,
    SmolLM3Config,
    SmolLM3Model,
)

from services.models import block
from services.models.block import Block, Layout
from services.models.sharing import tokens_of
from services.models.unrolled import unroll
from tests.fakes.tiny_models import make_tiny_causal
from tests.fakes.tiny_runs import loaded_from

WIDTH, HEADS, KEY_HEADS, HEAD, INNER = 6, 4, 2, 4, 10


def layout_of(lengths: list[int]) -> Layout:
    """Rows of these lengths in float64, with any rotation."""
    time, tokens = max(lengths), sum(lengths)
    angles = torch.linspace(0, 3, tokens * HEAD // 2, dtype=torch.float64).view(tokens, 1, -1)
    places = torch.cat([row * time + torch.arange(length) for row, length in enumerate(lengths)])
    source = torch.zeros(len(lengths) * time, dtype=torch.int64).index_copy(0, places, torch.arange(tokens))
    return Layout(
        len(lengths),
        time,
        None if min(lengths) == time else places,
        None if min(lengths) == time else source,
        None,
        torch.cat([angles.cos(), angles.cos()], -1),
        torch.cat([-angles.sin(), angles.sin()], -1),
        torch.full((1, time, time), float("-inf"), dtype=torch.float64).triu(1),
        heads=HEADS,
        key_heads=KEY_HEADS,
        width=HEAD,
        scale=0.5,
        eps=1e-5,
    )


def inputs(tokens: int) -> list[torch.Tensor]:
    """States and the nine weights."""
    generator = torch.Generator().manual_seed(1)
    shapes = [
        (tokens, WIDTH),
        (WIDTH,),
        (HEADS * HEAD, WIDTH),
        (KEY_HEADS * HEAD, WIDTH),
        (KEY_HEADS * HEAD, WIDTH),
        (WIDTH, HEADS * HEAD),
        (WIDTH,),
        (INNER, WIDTH),
        (INNER, WIDTH),
        (WIDTH, INNER),
    ]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


@pytest.fixture(params=["together", "in pieces"])
def _pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices and scores that hold everything, or little."""
    if request.param == "in pieces":
        monkeypatch.setattr(block, "SLICE", 2)
        monkeypatch.setattr(block, "SCORES", 40)
        monkeypatch.setattr(block, "ROWS", 3)


@pytest.mark.usefixtures("_pieces")
@pytest.mark.parametrize("lengths", [[3, 3], [4, 1, 2]])
def test_every_gradient_is_the_one_of_finite_differences(lengths: list[int]) -> None:
    """By the states and all nine weights, in float64, with padding and without."""
    layout = layout_of(lengths)
    x, *weights = inputs(sum(lengths))
    assert torch.autograd.gradcheck(lambda *given: Block.apply(given[0], layout, *given[1:]), (x, *weights))


def test_scores_stay_within_their_bound_however_long_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of 9 and 4 by two queries of all heads: as whole to the last digits, states and gradients."""
    layout = layout_of([9, 4])
    given = inputs(13)
    made, sizes = block._probabilities, list[int]()

    def noted(*told: Any) -> torch.Tensor:
        sizes.append(made(*told).numel())
        return made(*told)

    def passed() -> list[torch.Tensor]:
        states = Block.apply(given[0], layout, *given[1:])
        return [states, *torch.autograd.grad(states.square().sum(), given)]

    monkeypatch.setattr(block, "_probabilities", noted)
    whole = passed()
    assert max(sizes) == 2 * HEADS * 9 * 9
    sizes.clear()
    monkeypatch.setattr(block, "SCORES", 2 * HEADS * 9)
    for found, expected in zip(passed(), whole, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
    assert max(sizes) == 2 * HEADS * 9


@pytest.mark.usefixtures("_pieces")
def test_a_token_sees_its_own_row_up_to_itself() -> None:
    """Changing the last token of one row changes that token alone."""
    layout = layout_of([3, 2])
    x, *weights = inputs(5)
    other = x.detach().clone()
    other[2] += 1
    with torch.no_grad():
        changed = (Block.apply(x, layout, *weights) != Block.apply(other, layout, *weights)).any(1)
    assert changed.tolist() == [False, False, True, False, False]


@pytest.fixture
def model(tmp_path: Path) -> Any:
    return loaded_from(make_tiny_causal(tmp_path / "tiny", layers=3)).model


def test_unrolled_layers_are_the_models(model: Any) -> None:
    """States of rows of 7, 4 and 1 tokens and the gradients of all weights equal those of transformers' own pass.

    With and without gradient checkpointing.
    """
    lengths = [7, 4, 1]
    unrolled = unroll(model.base_model)
    assert unrolled is not None
    ids = torch.randint(263, (3, 7), generator=torch.Generator().manual_seed(1))
    hidden = model.base_model.embed_tokens(ids).detach()
    real = torch.arange(7) < torch.tensor(lengths)[:, None]
    direction = torch.randn((3, 7, 16), generator=torch.Generator().manual_seed(2)) * real[..., None]
    weights = [*model.base_model.layers.parameters(), *model.base_model.norm.parameters()]

    def gradients(states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad((states * direction).sum(), weights)

    expected = model.base_model(inputs_embeds=hidden, use_cache=False).last_hidden_state
    wanted = gradients(expected)
    for checkpointing in (False, True):
        for layer in model.base_model.layers:
            layer.gradient_checkpointing = checkpointing
        found = unrolled(hidden, lengths)
        torch.testing.assert_close(found[real], expected[real], atol=1e-5, rtol=1e-5)
        assert not found[~real].any()
        for ours, theirs in zip(gradients(found), wanted, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_what_rows_begin_with_is_computed_once(model: Any) -> None:
    """States and gradients, of the states before the layers too, equal those of rows computed apart.

    Three rows of one prompt, not side by side; one that begins alike; another that is the first one's beginning.
    """
    unrolled = unroll(model.base_model)
    assert unrolled is not None
    prompts = [np.array(one, np.int32) for one in ([5, 6, 7], [5, 9, 7], [5, 6, 7], [5, 6], [5, 6, 7])]
    lengths = [7, 4, 5, 7, 4]
    ids = torch.randint(263, (5, 7), generator=torch.Generator().manual_seed(1))
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.from_numpy(prompt)
    direction = torch.randn((5, 7, 16), generator=torch.Generator().manual_seed(2))
    weights = [model.base_model.embed_tokens.weight, *model.base_model.parameters()]

    def passed(*shared: Any) -> tuple[torch.Tensor, ...]:
        states = unrolled(model.base_model.embed_tokens(ids), lengths, *shared)
        return states, *torch.autograd.grad((states * direction).sum(), weights)

    assert tokens_of(lengths, 7, prompts).places.numel() == sum(lengths) - 2 * 3 - 2 - 1  # type: ignore[union-attr]
    for found, expected in zip(passed(prompts), passed(), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_models_of_another_form_are_left_alone(model: Any) -> None:
    """Biases, a gate that is not SiLU, and a pass that differs: None, and transformers' code trains them."""
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    biased = Qwen2Model(Qwen2Config(vocab_size=20, num_key_value_heads=1, **small))
    assert unroll(biased) is None
    backbone = model.base_model
    norm = backbone.norm.forward
    backbone.norm.forward = lambda x: 2 * norm(x) + 0.1 * backbone.layers[0].self_attn.scaling
    assert unroll(backbone) is not None  # the last norm is the model's own
    attention = backbone.layers[0].self_attn
    forward = attention.forward
    attention.forward = lambda *given, **named: (3 * forward(*given, **named)[0], None)
    assert unroll(backbone) is None


def test_layers_that_differ_are_left_alone() -> None:
    """SmolLM3's every fourth has no rotation, though its modules are those of the others."""
    small = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        backbone = SmolLM3Model(
            SmolLM3Config(vocab_size=20, num_hidden_layers=4, pad_token_id=0, initializer_range=0.2, **small)
        )
    assert [layer.self_attn.use_rope for layer in backbone.layers] == [1, 1, 1, 0]
    assert unroll(backbone) is None


@pytest.mark.parametrize("at", [0, 1, 2])
def test_every_layer_is_tried(model: Any, at: int) -> None:
    """One that computes something else, wherever it stands, leaves the model to transformers' code."""
    attention = model.base_model.layers[at].self_attn
    forward = attention.forward
    attention.forward = lambda *given, **named: (3 * forward(*given, **named)[0], None)
    assert unroll(model.base_model) is None


def test_queries_that_are_scaled_by_their_positions_are_left_alone() -> None:
    """Ministral 3 scales from 16,384 on: no trial would see it."""
    small = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = Ministral3Config(vocab_size=20, num_hidden_layers=1, head_dim=4, **small)
    assert config.rope_parameters["llama_4_scaling_beta"] > 0
    assert unroll(Ministral3Model(config)) is None


def test_lengths_that_are_not_the_rows_are_refused(model: Any) -> None:
    """A length for each row, none above the time."""
    unrolled = unroll(model.base_model)
    assert unrolled is not None
    hidden = torch.zeros(2, 3, 16)
    for lengths in ([3], [3, 4]):
        with pytest.raises(ValueError, match="for 2 rows of 3"):
            unrolled(hidden, lengths)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="told in another form there")
def test_a_block_keeps_a_length_that_is_taken_again(capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing stays of a hundred passes: CPython 3.11 keeps freed tuples of twenty and never takes them again."""
    layout = layout_of([3, 3])
    x, *weights = inputs(6)

    def left() -> int:
        gc.collect()
        for _ in range(100):
            Block.apply(x, layout, *weights).sum().backward()
        sys._debugmallocstats()
        found = re.search(r"^ *(\d+) free 20-sized PyTupleObjects", capfd.readouterr().err, re.MULTILINE)
        return int(found.group(1)) if found else 0

    assert left() < 50
