"""A run as an MLflow run (extra ``mlflow``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hqde.errors import MissingExtraError
from hqde.monitoring.scalars import resource_scalars, round_scalars
from hqde.monitoring.tables import flatten


class MlflowExporter:
    """Logs settings as parameters and rounds as metrics, where ``MLFLOW_TRACKING_URI`` says.

    Raises:
        MissingExtraError: mlflow is not installed.
    """

    def __init__(self) -> None:
        try:
            import mlflow
        except ImportError as error:
            raise MissingExtraError("exporter 'mlflow'", extra="mlflow") from error
        self._client: Any = mlflow.MlflowClient()
        self._run_id = ""
        self._began: float | None = None

    def on_start(self, run: Mapping[str, Any]) -> None:
        """Begin an MLflow run in the experiment ``hqde``."""
        found = self._client.get_experiment_by_name("hqde")
        experiment = self._client.create_experiment("hqde") if found is None else found.experiment_id
        self._run_id = self._client.create_run(experiment, run_name=run["name"]).info.run_id
        for name, value in flatten(run["config"]).items():
            self._client.log_param(self._run_id, name, value)

    def on_round(self, record: Mapping[str, Any]) -> None:
        """Losses, accuracies, diversity, bytes and phases of a round."""
        for name, value in round_scalars(record).items():
            self._client.log_metric(self._run_id, name, value, step=record["round"])

    def on_sample(self, sample: Mapping[str, Any]) -> None:
        """The machine's figures; steps are seconds."""
        if not self._run_id:
            return
        began = self._began = sample["monotonic_s"] if self._began is None else self._began
        for name, value in resource_scalars(sample).items():
            self._client.log_metric(self._run_id, name, value, step=int(sample["monotonic_s"] - began))

    def on_node_sample(self, sample: Mapping[str, Any]) -> None:
        """Another machine's figures, over the same clock."""
        self.on_sample(sample)

    def on_end(self, metrics: Mapping[str, Any] | None) -> None:
        """Log the final figures and end the MLflow run."""
        for name in ("accuracy", "nll", "brier", "ece", "rmse", "crps"):
            if metrics is not None and isinstance(metrics.get(name), int | float):
                self._client.log_metric(self._run_id, f"test/{name}", metrics[name])
        self._client.set_terminated(self._run_id, "FINISHED" if metrics is not None else "FAILED")
