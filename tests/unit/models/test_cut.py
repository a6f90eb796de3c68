"""Some layers of a model as a model of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from services.common.errors import InvalidInput
from services.models.cut import layer_numbers
from services.models.loading import resolve
from tests.fakes.tiny_models import make_tiny_causal, make_tiny_encoder
from tests.fakes.tiny_runs import loaded_from


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_layers_are_named_by_numbers_and_ranges() -> None:
    """In their order, each once."""
    assert layer_numbers("0-2, 5,7-8") == (0, 1, 2, 5, 7, 8)


@pytest.mark.parametrize("written", ["", "a", "3-1", "1,1", "2,1", "-1", "0-"])
def test_what_names_no_layers(written: str) -> None:
    """One line that says what was expected."""
    with pytest.raises(InvalidInput, match="layers="):
        layer_numbers(written)


def test_a_cut_model_is_the_model_without_the_other_layers(tmp_path: Path, cache: Path) -> None:
    """Its logits are the whole model's with the others taken out in memory; it is made once."""
    whole = make_tiny_causal(tmp_path / "tiny", layers=4)
    made = resolve(f"{whole}?layers=0,2-3")
    model, other = loaded_from(Path(made)).model, loaded_from(whole).model
    assert model.config.num_hidden_layers == 3
    kept = [other.model.layers[at] for at in (0, 2, 3)]
    for at, layer in enumerate(kept):
        layer.self_attn.layer_idx = at
    other.model.layers = torch.nn.ModuleList(kept)
    other.model.config.num_hidden_layers = 3
    ids = torch.arange(5)[None]
    with torch.inference_mode():
        assert torch.equal(
            model(input_ids=ids, use_cache=False).logits, other(input_ids=ids, use_cache=False).logits
        )
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    assert resolve(f"{whole}?layers=0,2-3") == made
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == before


def test_what_cannot_be_cut(tmp_path: Path, cache: Path) -> None:
    """Layers that are not there, a model of another form, one that lies on a hub; nothing half made stays."""
    with pytest.raises(InvalidInput, match="layers=0-2: tiny has layers 0 to 1"):
        resolve(f"{make_tiny_causal(tmp_path / 'tiny')}?layers=0-2")
    with pytest.raises(InvalidInput, match="no model of the Llama family"):
        resolve(f"{make_tiny_encoder(tmp_path / 'bert')}?layers=0")
    with pytest.raises(InvalidInput, match="not from a hub"):
        resolve("nobody/none?layers=0")
    assert not list(cache.glob("*"))
