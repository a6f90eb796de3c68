"""Checkpoints: whole or not at all, on a disk that may be full."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from services.common.errors import Corrupted, StorageFull
from services.learner.checkpoints import Checkpoints, write_model
from services.learner.training import Trainer
from services.models.loading import LoadedModel, serving_state
from tests.fakes.tiny_models import make_tiny_causal
from tests.fakes.tiny_runs import loaded_from, run_spec


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return loaded_from(make_tiny_causal(tmp_path_factory.mktemp("models") / "tiny", width=32))


@pytest.fixture(scope="module")
def trainer_state(loaded: LoadedModel) -> dict[str, Any]:
    return Trainer(loaded, run_spec(Path(loaded.folder))).state_dict()


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_what_is_written_is_what_is_read(
    tmp_path: Path, loaded: LoadedModel, trainer_state: dict[str, Any]
) -> None:
    """State and trainer come back exactly; model/ is a plain Hugging Face folder of the same weights."""
    kept = Checkpoints(tmp_path / "checkpoints", keep=3)
    state = {"epoch": 2, "ledger": {"in_flight": [["g", 1, 2, 0, ""]]}}
    path = kept.write(12, loaded, trainer_state, state)
    assert path == tmp_path / "checkpoints" / "step-000012"
    assert {"state.json", "trainer/state.pt", "model/config.json", "model/model.safetensors"} <= files_below(
        path
    )
    trainer, read = kept.read(path)
    assert read == state
    assert trainer.keys() == trainer_state.keys()
    for one, two in zip(trainer["optimiser"]["masters"], trainer_state["optimiser"]["masters"], strict=True):
        assert torch.equal(one, two)
    again = loaded_from(path / "model")
    assert again.facts.model_digest == loaded.facts.model_digest
    assert again.facts.tokenizer_fingerprint == loaded.facts.tokenizer_fingerprint


def test_the_last_few_are_kept(tmp_path: Path, loaded: LoadedModel, trainer_state: dict[str, Any]) -> None:
    """The newest by number, also past a million; there is none before the first."""
    kept = Checkpoints(tmp_path, keep=2)
    assert kept.latest() is None
    for step in (999_998, 999_999, 1_000_000):
        kept.write(step, loaded, trainer_state, {"step": step})
        assert kept.latest() == tmp_path / f"step-{step}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1000000", "step-999999"]


def test_the_same_step_is_replaced(
    tmp_path: Path, loaded: LoadedModel, trainer_state: dict[str, Any]
) -> None:
    """Written twice, the second stands, alone."""
    kept = Checkpoints(tmp_path, keep=3)
    kept.write(5, loaded, trainer_state, {"which": 1})
    path = kept.write(5, loaded, trainer_state, {"which": 2})
    assert kept.read(path)[1] == {"which": 2}
    assert [item.name for item in tmp_path.iterdir()] == ["step-000005"]


def test_unfinished_ones_are_ignored_and_swept(
    tmp_path: Path, loaded: LoadedModel, trainer_state: dict[str, Any]
) -> None:
    """What a crash left behind is never the latest, and is gone after the next write, whatever its step."""
    kept = Checkpoints(tmp_path, keep=3)
    kept.write(5, loaded, trainer_state, {})
    for left in (".writing-step-000007", "step-000009"):
        (tmp_path / left / "model").mkdir(parents=True)
    assert kept.latest() == tmp_path / "step-000005"
    kept.write(10, loaded, trainer_state, {})
    assert kept.latest() == tmp_path / "step-000010"
    assert not (tmp_path / ".writing-step-000007").exists()


def test_one_that_was_being_written_over_is_put_back(
    tmp_path: Path, loaded: LoadedModel, trainer_state: dict[str, Any]
) -> None:
    """Killed between the two renames, the old one has another name: it is the latest all the same."""
    kept = Checkpoints(tmp_path, keep=1)
    path = kept.write(5, loaded, trainer_state, {"which": 1})
    path.rename(tmp_path / ".writing-over-step-000005")
    assert kept.latest() == path
    path.rename(tmp_path / ".writing-over-step-000005")
    kept.write(6, loaded, trainer_state, {})
    assert [item.name for item in tmp_path.iterdir()] == ["step-000006"]


def test_a_rename_that_fails_leaves_the_old_one(
    tmp_path: Path, loaded: LoadedModel, trainer_state: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last one is intact, as the error says."""
    kept = Checkpoints(tmp_path, keep=3)
    path = kept.write(5, loaded, trainer_state, {"which": 1})
    rename = Path.rename

    def full(self: Path, target: Path) -> Path:
        if self.name == ".writing-step-000005":
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(StorageFull, match="the last one is intact"):
        kept.write(5, loaded, trainer_state, {"which": 2})
    assert kept.read(path)[1] == {"which": 1}


def test_other_folders_are_left_alone(
    tmp_path: Path, loaded: LoadedModel, trainer_state: dict[str, Any]
) -> None:
    """A copy that somebody made beside them is neither read nor dropped."""
    kept = Checkpoints(tmp_path, keep=1)
    shutil.copytree(kept.write(5, loaded, trainer_state, {}), tmp_path / "step-000005-good")
    assert kept.write(6, loaded, trainer_state, {}) == kept.latest()
    assert sorted(item.name for item in tmp_path.iterdir()) == ["step-000005-good", "step-000006"]


def test_what_was_just_written_is_never_dropped(
    tmp_path: Path, loaded: LoadedModel, trainer_state: dict[str, Any]
) -> None:
    """A learner that was replaced while it wrote may have left one of more steps."""
    kept = Checkpoints(tmp_path, keep=1)
    kept.write(20, loaded, trainer_state, {})
    assert kept.write(15, loaded, trainer_state, {}).is_dir()


def test_the_epoch_that_wrote_it(tmp_path: Path, loaded: LoadedModel, trainer_state: dict[str, Any]) -> None:
    """Read without the model; what cannot be read says so."""
    kept = Checkpoints(tmp_path, keep=2)
    assert kept.epoch_of(kept.write(1, loaded, trainer_state, {"epoch": 7})) == 7
    with pytest.raises(Corrupted, match="cannot be read"):
        kept.epoch_of(kept.write(2, loaded, trainer_state, {}))


def test_unreadable_checkpoints_say_so(
    tmp_path: Path, loaded: LoadedModel, trainer_state: dict[str, Any]
) -> None:
    """Cut short, overwritten or missing: one line with the path."""
    kept = Checkpoints(tmp_path, keep=9)
    path = kept.write(1, loaded, trainer_state, {})
    whole = (path / "trainer" / "state.pt").read_bytes()
    for content in (whole[: len(whole) // 2], b"not a checkpoint", b"", None):
        (path / "trainer" / "state.pt").unlink(missing_ok=True)
        if content is not None:
            (path / "trainer" / "state.pt").write_bytes(content)
        with pytest.raises(Corrupted, match=f"checkpoint {path} cannot be read: ") as caught:
            kept.read(path)
        assert len(str(caught.value).splitlines()) == 1
    (path / "trainer" / "state.pt").write_bytes(whole)
    (path / "state.json").write_text('{"epoch":')
    with pytest.raises(Corrupted, match="cannot be read"):
        kept.read(path)


def test_nothing_is_unpickled(tmp_path: Path, loaded: LoadedModel, trainer_state: dict[str, Any]) -> None:
    """A state that carries code is refused, and the code does not run."""

    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "ran"),))

    kept = Checkpoints(tmp_path, keep=3)
    path = kept.write(1, loaded, trainer_state, {})
    torch.save({"step": Code()}, path / "trainer" / "state.pt")
    with pytest.raises(Corrupted, match="cannot be read"):
        kept.read(path)
    assert not (tmp_path / "ran").exists()


@pytest.fixture(params=[0.1, 0.5, 0.8])
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, float]]:
    """A real file system for one checkpoint and that share of a second one, where one may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    yield folder, request.param
    # Lazily: a failed write's traceback may still hold its file open.
    subprocess.run(["umount", "--lazy", str(folder)], capture_output=True)


def test_a_full_disk_leaves_the_last_one_intact(
    small_disk: tuple[Path, float], tmp_path: Path, loaded: LoadedModel, trainer_state: dict[str, Any]
) -> None:
    """Wherever in a checkpoint the room ends: StorageFull, the one before can be read, nothing half-made remains."""
    folder, share = small_disk
    pages = sum(
        -(-path.stat().st_size // 4096)
        for path in Checkpoints(tmp_path / "whole", keep=1).write(1, loaded, trainer_state, {}).rglob("*")
        if path.is_file()
    )
    size = f"size={4 * (pages + int(pages * share) + 3)}k"
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "none", str(folder)], capture_output=True
    ).returncode:
        pytest.skip("a file system can be mounted by root alone")
    kept = Checkpoints(folder, keep=3)
    kept.write(1, loaded, trainer_state, {"step": 1})
    with pytest.raises(
        StorageFull, match=f"no room on disk for checkpoint step-000002 in {folder}"
    ) as caught:
        kept.write(2, loaded, trainer_state, {"step": 2})
    assert len(str(caught.value).splitlines()) == 1
    assert [item.name for item in folder.iterdir()] == ["step-000001"]
    latest = kept.latest()
    assert latest is not None
    assert kept.read(latest)[1] == {"step": 1}


@pytest.mark.parametrize("where", ["save", "fsync"])
def test_a_disk_that_reports_itself_full(
    where: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    loaded: LoadedModel,
    trainer_state: dict[str, Any],
) -> None:
    """The same by the system's own error, where nothing can be mounted; other errors stay what they are."""
    kept = Checkpoints(tmp_path, keep=3)
    kept.write(1, loaded, trainer_state, {})

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(*((torch, "save") if where == "save" else (os, "fsync")), full)
        with pytest.raises(StorageFull, match=r"no room on disk for checkpoint step-000002"):
            kept.write(2, loaded, trainer_state, {})
    assert kept.latest() == tmp_path / "step-000001"
    assert [item.name for item in tmp_path.iterdir()] == ["step-000001"]


def test_everything_is_synced_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: LoadedModel, trainer_state: dict[str, Any]
) -> None:
    """When the final name appears, every file and folder below it has been given to the disk."""
    synced: set[str] = set()
    real = os.fsync

    def fsync(descriptor: int) -> None:
        target = Path(f"/proc/self/fd/{descriptor}").readlink()
        if not (tmp_path / "step-000003").exists():
            synced.add(str(target.relative_to(tmp_path / ".writing-step-000003")))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    path = Checkpoints(tmp_path, keep=3).write(3, loaded, trainer_state, {})
    assert synced >= {str(item.relative_to(path)) for item in path.rglob("*")}


def test_the_model_is_written_whole(tmp_path: Path, loaded: LoadedModel) -> None:
    """The folder of the trained model holds every served tensor."""
    write_model(loaded, tmp_path / "model")
    again = serving_state(loaded_from(tmp_path / "model").model)
    own = serving_state(loaded.model)
    assert again.keys() == own.keys()
    assert all(torch.equal(value, own[name]) for name, value in again.items())
