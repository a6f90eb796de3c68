"""Where a run's metrics go beside metrics.jsonl: TensorBoard, Weights & Biases, MLflow, by name."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from services.common.spec.base import Spec

LogName = Literal["tensorboard", "wandb", "mlflow"]


class WandbSpec(Spec):
    """[logging.wandb]. Its key comes from the environment (WANDB_API_KEY), as its library has it."""

    project: str = Field("trimtab", min_length=1, max_length=128)
    entity: str = Field("", max_length=128, description="Team or user; left out: the key's own.")
    mode: Literal["offline", "online"] = Field(
        "offline", description="offline: into the run's folder, without network; wandb sync sends it later."
    )


class MlflowSpec(Spec):
    """[logging.mlflow]."""

    uri: str = Field(
        "", max_length=1024, description="Tracking URI; left out: mlruns/ in the run's folder, no server."
    )
    experiment: str = Field("trimtab", min_length=1, max_length=128)


class LoggingSpec(Spec):
    """[logging]: the same names as in metrics.jsonl. One that fails never stops a run; it is told once and counted."""

    to: tuple[LogName, ...] = Field((), max_length=3, description="tensorboard, wandb, mlflow.")
    wandb: WandbSpec = WandbSpec()
    mlflow: MlflowSpec = MlflowSpec()

    @field_validator("to")
    @classmethod
    def _once_each(cls, given: tuple[LogName, ...]) -> tuple[LogName, ...]:
        if len(set(given)) != len(given):
            raise ValueError("each of them once")
        return given
