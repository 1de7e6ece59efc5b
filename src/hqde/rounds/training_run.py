"""A whole training: engine, artefact, final figures, in one run directory."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hqde.backends import Backend, LocalBackend
from hqde.ensemble import describe_evaluation
from hqde.monitoring import Monitoring, peak_rss_bytes
from hqde.rounds.engine import Engine
from hqde.rounds.events import Event, Listener, Listeners
from hqde.rounds.experiment import Experiment
from hqde.rounds.finishing import Result
from hqde.rounds.observing import RunObserver
from hqde.rounds.run_directory import RunDirectory


def train_run(
    experiment: Experiment,
    directory: RunDirectory,
    *,
    config_toml: str,
    provenance: dict[str, Any],
    backend: Backend | None = None,
    checkpoint_every: int = 1,
    listeners: tuple[Listener, ...] = (),
    resume: bool = False,
    monitoring: Monitoring | None = None,
) -> tuple[Result, dict[str, Any]]:
    """Train, judge on the test split, and leave everything in ``directory``.

    Nothing is written before the experiment has been checked against the data and the models.

    Args:
        experiment: what to train.
        directory: must be empty, or hold the run to resume.
        config_toml: the resolved configuration, written as it is.
        provenance: plain JSON for the artefact's manifest.
        backend: where workers live; left out, in this process.
        checkpoint_every: epochs between checkpoints.
        listeners: told of rounds and events after the directory.
        resume: go on from the newest checkpoint.
        monitoring: what to measure of the machine, and whom to tell; left out, nothing and nobody.

    Returns:
        the engine's result, and what was written to ``metrics.json``.

    Raises:
        HqdeError: the sentence says what does not fit.
        KeyboardInterrupt: passed on after an ``interrupted`` event was recorded.
    """
    if resume:
        directory.require_run()
    else:
        directory.refuse_if_taken()
    backend = backend or LocalBackend()
    observer = RunObserver(
        monitoring or Monitoring(interval_s=0.0, alerts=False),
        directory,
        config_toml=config_toml,
        on_gpu=experiment.device.startswith("cuda"),
        children=backend.name == "ray",
        machines=backend.machines,
    )
    with observer:
        listener = Listeners((directory, *listeners, observer))
        observer.tell = listener.on_event
        engine = Engine(
            experiment,
            backend,
            listener=listener,
            store=directory.store,
            checkpoint_every=checkpoint_every,
            provenance=provenance,
        )
        engine.prepare()
        if not resume:
            directory.create(config_toml)
        try:
            result = engine.run(resume=resume)
        except KeyboardInterrupt:
            saved = directory.store.rounds()
            at = f"the checkpoint of round {saved[-1]} stays" if saved else "no round was finished"
            listener.on_event(Event("interrupted", saved[-1] if saved else 0, None, f"by the user; {at}"))
            raise
        observer.on_phase(result.state.round_index, "finish")
        result.ensemble.save(directory.artefact)
        if result.pool is not None:
            result.pool.save(directory.pool)
        test = experiment.splits.test
        predictions = result.ensemble.predict_labelled(test)
        metrics = final_metrics(experiment, result, predictions, backend=backend.name) | observer.figures()
        directory.write_evaluation(describe_evaluation(result.ensemble, test, predictions=predictions))
        directory.write_metrics(metrics)
        observer.on_end(metrics)
    return result, metrics


def final_metrics(
    experiment: Experiment, result: Result, predictions: tuple[Tensor, Tensor], *, backend: str
) -> dict[str, Any]:
    """The figures of ``metrics.json``: the uncalibrated ensemble on the test split, and what it cost.

    Args:
        experiment, result: the run.
        predictions: what ``Ensemble.predict_labelled`` returned for the test split.
        backend: its name.
    """
    ensemble, totals = result.ensemble, result.state.totals
    members, targets = predictions
    metrics = ensemble.with_temperature(1.0).evaluate_predictions(members, targets).to_dict()
    calibrated = ensemble.evaluate_predictions(members, targets).to_dict()
    kept = ("accuracy", "nll", "brier", "ece", "rmse", "crps")
    metrics["calibrated"] = {key: calibrated[key] for key in kept}
    metrics["temperature"] = ensemble.temperature
    metrics["matrix_scaling"] = ensemble.matrix_scaling is not None if experiment.matrix_scaling else None
    samples_per_s = totals.worker_samples / totals.train_s if totals.train_s else None
    metrics["train"] = {
        "wall_s": totals.wall_s,
        "worker_samples": totals.worker_samples,
        "worker_samples_per_s": samples_per_s,
        "peak_rss_bytes": peak_rss_bytes(),
        "rounds": result.state.round_index,
        "stopped_early_at_epoch": result.stopped_early,
    }
    sent, dense = totals.sent_bytes, totals.dense_bytes
    metrics["communication"] = {
        "rounds": totals.synchronisations,
        "sent_bytes": sent,
        "dense_bytes": dense,
        "ratio": dense / sent if sent else None,
    }
    metrics["faults"] = {
        "failures": totals.failures,
        "restarts": totals.restarts,
        "rejected": totals.rejected,
        "skipped": totals.skipped,
        "excluded": totals.excluded,
        "resumes": totals.resumes,
    }
    policy, rule = experiment.policy, experiment.rule
    scores = (
        None if policy.reliability is None else policy.reliability.scores(result.state.reliability).tolist()
    )
    metrics["aggregation"] = {
        "rule": rule.name,
        "left_out": totals.left_out,
        "reliability": scores,
        "uses_server_data": policy.uses_server_data,
    }
    privacy = experiment.privacy.figures(result.state.round_index, experiment.group_size)
    return metrics | {
        "privacy": privacy,
        "backend": backend,
        "workers": experiment.num_workers,
        "groups": experiment.num_groups,
        "seed": experiment.seed,
        "data": experiment.splits.name,
        "model": experiment.model.name,
    }
