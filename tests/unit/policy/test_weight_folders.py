"""A folder for a server that loads weights: the same model, a tied head written out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from services.models.loading import serving_state
from services.policy.engines.weight_folders import WeightFolders
from tests.fakes.tiny_models import make_tiny_causal
from tests.fakes.tiny_runs import loaded_from


def test_what_is_written_is_the_model_with_these_weights(tmp_path: Path) -> None:
    """Loaded again it gives the same logits, without the folder or hub that it came from; its head is its own."""
    folder = make_tiny_causal(tmp_path / "tiny")
    loaded = loaded_from(folder)
    shutil.rmtree(folder)
    state = dict(serving_state(loaded.model))
    assert "lm_head.weight" not in state
    folders = WeightFolders(tmp_path / "out", loaded)
    target = folders.write(state)
    assert json.loads((target / "config.json").read_text())["tie_word_embeddings"] is False
    again = loaded_from(target)
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        assert torch.equal(again.model(ids).logits, loaded.model(ids).logits)
    assert again.facts.tokenizer_fingerprint == loaded.facts.tokenizer_fingerprint
    assert "lm_head.weight" in serving_state(again.model)
    folders.drop()
    assert [path.name for path in (tmp_path / "out").iterdir()] == []
    assert folders.write(state).name != target.name


def test_what_may_still_be_read_is_kept_within_bounds(tmp_path: Path) -> None:
    """Of reloads that failed the last two folders stay, whole; they go once one has succeeded."""
    loaded = loaded_from(make_tiny_causal(tmp_path / "tiny"))
    folders, state = WeightFolders(tmp_path / "out", loaded), dict(serving_state(loaded.model))
    written = [folders.write(state) for _ in range(3)]
    assert [(path / "model.safetensors").is_file() for path in written] == [False, True, True]
    folders.drop()
    assert list((tmp_path / "out").iterdir()) == []


def test_those_who_share_a_folder_leave_each_others_alone(tmp_path: Path) -> None:
    """Each has names of its own: what another is about to read stays."""
    loaded = loaded_from(make_tiny_causal(tmp_path / "tiny"))
    state = dict(serving_state(loaded.model))
    one, two = (WeightFolders(tmp_path / "out", loaded, name) for name in ("policy", "policy-2"))
    first, second = one.write(state), two.write(state)
    one.drop()
    assert [path.is_dir() for path in (first, second)] == [False, True]
    two.drop()
    assert list((tmp_path / "out").iterdir()) == []
