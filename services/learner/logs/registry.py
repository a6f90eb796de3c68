"""The logs by name. Their libraries are imported where a log is opened, not here."""

from __future__ import annotations

from collections.abc import Mapping

from services.learner.logs.base import Open
from services.learner.logs.mlflow_log import MlflowLog
from services.learner.logs.tensorboard_log import TensorboardLog
from services.learner.logs.wandb_log import WandbLog

LOGS: Mapping[str, Open] = {"tensorboard": TensorboardLog, "wandb": WandbLog, "mlflow": MlflowLog}
