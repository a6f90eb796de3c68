"""MLflow: a tracking server by its URI, or mlruns/ in the run's folder. Needs the package `mlflow-skinny` (or mlflow).

The run's id is MLflow's to give; it is kept in mlflow_run.json, so that a resume continues it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from services.common.spec.metric_logs import LoggingSpec
from services.learner.logs.base import RunIdentity, flat

_MOST_IN_A_CALL = 100
"""Parameters in one call, by MLflow's own bound; of metrics it takes 1,000, and a step has fewer."""
_LONGEST_VALUE = 500


class MlflowLog:
    """A step that is trained again after a resume has two points: MLflow keeps both, the newer by its time."""

    def __init__(self, run: RunIdentity, spec: LoggingSpec, _steps_done: int) -> None:
        uri = spec.mlflow.uri
        if not uri:
            # Files need no server and no database; MLflow wants it said that one knows they are not developed further.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            uri = (run.folder / "mlruns").absolute().as_uri()
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=uri)
        self.run_id = self._taken_up(run, uri) or self._begun(run, spec, uri)

    def write(self, step: int, moment: float, metrics: Mapping[str, float]) -> None:
        """See MetricLog."""
        from mlflow.entities import Metric

        told = [Metric(name, value, int(moment * 1000), step) for name, value in metrics.items()]
        self._client.log_batch(self.run_id, metrics=told)

    def close(self) -> None:
        """See MetricLog."""
        self._client.set_terminated(self.run_id)

    def _taken_up(self, run: RunIdentity, uri: str) -> str:
        """The run that this one continues; empty where it begins, or goes to another server than before."""
        try:
            kept: dict[str, Any] = json.loads((run.folder / "mlflow_run.json").read_text())
        except (OSError, ValueError):
            return ""
        if kept.get("uri") != uri or kept.get("uid") != run.uid:
            return ""
        run_id = str(kept["run_id"])
        self._client.update_run(run_id, status="RUNNING")
        return run_id

    def _begun(self, run: RunIdentity, spec: LoggingSpec, uri: str) -> str:
        from mlflow.entities import Param

        found = self._client.get_experiment_by_name(spec.mlflow.experiment)
        experiment = found.experiment_id if found else self._client.create_experiment(spec.mlflow.experiment)
        made = self._client.create_run(experiment, run_name=run.name, tags={"trimtab.run_uid": run.uid})
        run_id = str(made.info.run_id)
        params = [Param(name, str(value)[:_LONGEST_VALUE]) for name, value in flat(run.settings).items()]
        for at in range(0, len(params), _MOST_IN_A_CALL):
            self._client.log_batch(run_id, params=params[at : at + _MOST_IN_A_CALL])
        kept = {"uri": uri, "uid": run.uid, "run_id": run_id}
        (run.folder / "mlflow_run.json").write_text(json.dumps(kept) + "\n")
        return run_id
