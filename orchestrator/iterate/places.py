"""Owns where a run of rounds keeps its models, and so each round's run: where its policy begins. Pure."""

from __future__ import annotations

from pathlib import Path

from services.common.spec.run import RunSpec


def round_folder(root: Path, number: int) -> Path:
    """Where a round keeps what it makes."""
    return root / "rounds" / f"{number:02d}"


def model_of(root: Path, spec: RunSpec, version: int) -> str:
    """The folder of a version; 0 is the initial model."""
    return str(round_folder(root, version) / "model") if version else spec.model.path


def round_spec(root: Path, spec: RunSpec, number: int, policy_init: str) -> RunSpec:
    """A round's run: its seed, its reward model, and where its policy begins."""
    begins = 0 if policy_init == "initial" else number - 1
    model = spec.model.model_copy(update={"path": model_of(root, spec, begins)})
    return spec.model_copy(
        update={
            "model": model,
            "seed": spec.seed + number - 1,
            "reward_model": str(round_folder(root, number) / "reward_model"),
        }
    )
