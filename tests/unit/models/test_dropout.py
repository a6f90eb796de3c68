"""Dropout that is drawn quickly: the right share, the same mean, by torch's seed; attention as it is without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel

from services.models import dropout
from services.models.dropout import QuickDropout, dropped, dropping, mask
from services.models.reward_model import new_reward_model
from tests.fakes.tiny_models import make_tiny_encoder

ROWS = [[5, 6, 7, 8], [5, 6]]


@pytest.fixture
def backbone(tmp_path: Path) -> Any:
    return new_reward_model(str(make_tiny_encoder(tmp_path / "base")), dtype="float32", threads=1).backbone


def states(backbone: Any) -> torch.Tensor:
    """Last hidden states of two rows, one of them padded."""
    ids = torch.tensor([[*row, *[0] * (4 - len(row))] for row in ROWS])
    seen = torch.tensor([[1] * len(row) + [0] * (4 - len(row)) for row in ROWS])
    found: torch.Tensor = backbone(input_ids=ids, attention_mask=seen).last_hidden_state
    return found


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_so_many_are_dropped_and_the_mean_stays(share: float) -> None:
    """Of 400,000 the share is met within 5 standard deviations; what is kept is scaled by 1 / (1 - share)."""
    torch.manual_seed(1)
    found = mask(torch.Size([200, 2000]), share, torch.float32)
    error = 5 * (share * (1 - share) / found.numel()) ** 0.5
    assert float((found == 0).float().mean()) == pytest.approx(share, abs=error)
    assert float(found.max()) == pytest.approx(1 / (1 - share), rel=1e-3)
    assert float(found.mean()) == pytest.approx(1.0, abs=error / (1 - share))


def test_neighbours_are_dropped_independently() -> None:
    """Two elements side by side, or four apart (of one draw of 64 bits each), are lost together by chance alone."""
    torch.manual_seed(1)
    lost = (mask(torch.Size([400_000]), 0.5, torch.float32) == 0).float()
    for apart in (1, 2, 3, 4):
        both = float((lost[apart:] * lost[:-apart]).mean())
        assert both == pytest.approx(0.25, abs=0.005)


def test_torchs_seed_says_what_is_dropped() -> None:
    """The same seed the same, another one or the next draw another."""
    x = torch.ones(100)
    torch.manual_seed(1)
    first, second = dropped(x, 0.5), dropped(x, 0.5)
    torch.manual_seed(1)
    assert torch.equal(dropped(x, 0.5), first)
    assert not torch.equal(first, second)


def test_what_is_dropped_has_no_gradient() -> None:
    """And what is kept has its scale."""
    x = torch.ones(1000, requires_grad=True)
    y = dropped(x, 0.25)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, y.detach())


def test_a_module_drops_in_training_alone() -> None:
    """As torch's own."""
    module, x = QuickDropout(0.5), torch.ones(100)
    assert (module(x) == 0).any()
    assert torch.equal(module.eval()(x), x)


def test_without_a_share_attention_is_the_models_own(backbone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing lost: the states of both ways agree, whichever rows are padded, and so do they after."""
    expected = states(backbone)
    monkeypatch.setattr(dropout, "mask", lambda shape, share, dtype: torch.ones(shape, dtype=dtype))
    with dropping(backbone, backbone, 0.1):
        assert backbone.config._attn_implementation == dropout.ATTENTION
        within = states(backbone)
    seen = torch.tensor([[True] * 4, [True, True, False, False]])
    assert torch.allclose(within[seen], expected[seen], atol=1e-6)
    assert torch.equal(states(backbone), expected)


def test_every_place_drops_and_is_put_back(backbone: Any) -> None:
    """Embeddings, attention and both ends of each layer; none of ours is left, and the mode is eval."""
    expected, before = states(backbone), backbone.config._attn_implementation
    with dropping(backbone, backbone, 0.3):
        assert not torch.equal(states(backbone), states(backbone))
        kinds = {type(part) for part in backbone.modules() if isinstance(part, torch.nn.Dropout)}
        assert kinds == {QuickDropout}
    assert torch.equal(states(backbone), expected)
    assert backbone.config._attn_implementation == before
    assert QuickDropout not in {type(part) for part in backbone.modules()}
    assert not backbone.training


@pytest.mark.parametrize("kind", ["gemma2", "gpt_oss"])
def test_attention_that_does_more_than_torchs_is_left_alone(kind: str) -> None:
    """Capped scores, sinks: what such a model computes without a loss is what it computed before."""
    small = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1} if kind == "gpt_oss" else {}
    config = AutoConfig.for_model(kind, **small, **heads, **experts)
    model = AutoModel.from_config(config).eval()
    ids = torch.arange(12).view(2, 6)
    expected, before = model(input_ids=ids).last_hidden_state, model.config._attn_implementation
    with dropping(model, model, 0.1):
        assert model.config._attn_implementation == before
        assert torch.allclose(model(input_ids=ids).last_hidden_state, expected, atol=1e-5)


def test_what_breaks_on_the_way_in_leaves_nothing_behind(
    backbone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Modules and mode are as they were."""

    def refuse(_: str) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(backbone, "set_attn_implementation", refuse)
    with pytest.raises(RuntimeError, match="no"), dropping(backbone, backbone, 0.1):
        pass
    assert QuickDropout not in {type(part) for part in backbone.modules()}
    assert not backbone.training
