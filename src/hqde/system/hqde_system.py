"""The seed's front door: a thin face over the experiment, the engine and the ensemble."""

from __future__ import annotations

import json
import os
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from hqde.aggregation import AggregationPolicy, FractionalRule, Mean, Rule, ServerOptimizer
from hqde.backends import Backend, RaySettings, make_backend
from hqde.balance import Balancer, RoundRobin, make_balancer
from hqde.compression import Compression
from hqde.config import dump_config, without_place
from hqde.data import Augmentation, Partitioner, Replicate, Splits, Task, make_partitioner
from hqde.ensemble import Combiner, Ensemble, Evaluation
from hqde.errors import ArtefactError, PreconditionError, RunError
from hqde.models import model_spec
from hqde.monitoring import Monitoring
from hqde.rounds import (
    Engine,
    Experiment,
    FaultPolicy,
    GroupSettings,
    Listener,
    Listeners,
    Privacy,
    RoundLog,
    RunDirectory,
    Snapshots,
    final_metrics,
    train_run,
)
from hqde.system.rows import recipe_for, splits_from
from hqde.system.settings import (
    combiner_for,
    describe,
    known_combiner,
    read_aggregation,
    read_quantization,
    refuse_other_settings,
)
from hqde.topology import Topology
from hqde.training import Diversity, Recipe, resolve_device

DEFAULT_DROPOUT_RATE = 0.1
_COST_KEYS = ("backend", "workers", "groups", "train", "communication", "faults")


class HQDESystem:
    """Trains workers in groups and holds the ensemble that comes out.

    Every method takes data as a ``DataLoader``, a ``Dataset``, ``(X, y)`` of tensors or arrays, or
    ``Examples``. Rounds are logged to the logger ``hqde`` at INFO, refused updates and failures at WARNING.

    Args:
        model_class: a torch module class (one defined in a script or notebook too), or ``"mlp"``, ``"cnn"``,
            ``"resnet18"`` or ``"module:Class"``. The built-in models learn their shape from the data.
        model_kwargs: further constructor arguments; JSON values, because they are saved.
        num_workers: training replicas.
        quantization_config: any of ``base_bits``, ``min_bits``, ``max_bits``: send deltas and weights packed.
        aggregation_config: server optimizer and buffers; see ``hqde.system.settings.read_aggregation``.
        topology: who is averaged with whom; by default every worker becomes a member of the ensemble.
        recipe: how workers train; by default ``Recipe()`` with the batch size of the training ``DataLoader``.
        diversity: how workers differ.
        dropout_rate: base rate, spread over the workers; by default that of ``model_kwargs``, else 0.1.
        partitioner: which rows each worker sees, as an object or by name.
        augmentation: of images while training.
        server: a server optimizer as an object, in place of the one in ``aggregation_config``.
        rule: from a group's deltas to one: ``Mean()``, a robust one (``make_rule``), or a ``FractionalRule``.
        policy: what is asked of updates beside being sound, and what is remembered of their senders.
        compression: how deltas and weights travel, in place of ``quantization_config``.
        groups: what single groups do differently, by their number.
        early_stopping: epochs without improvement of the ensemble's validation loss; 0 trains to the end.
        evaluate_every: epochs between two looks at the validation rows.
        combiner: how member predictions become one, or its name; ``"auto"``: what validation rows speak for.
        snapshots: members beside the groups' last weights, ``Snapshots(count=3, join=True)``.
        drop_outliers: leave members out whose loss on validation rows stands out at the end.
        calibrate: fit a temperature on the validation rows at the end.
        matrix_scaling: and a matrix scaling after it, where those rows speak for one.
        task: ``"classification"`` or ``"regression"``.
        classes: names by class id.
        norm: ``"batch"`` or ``"group"``, for the built-in models.
        seed: of every random stream; the same seed and data give the same bits.
        backend: where workers live: ``"local"``, ``"vectorised"`` or ``"ray"``.
        ray: the cluster, and what each worker takes of it.
        balancer: how many rows each worker gets: ``"round_robin"``, ``"least_loaded"``, ``"adaptive"``.
        faults: what a run puts up with.
        privacy: what the released weights may tell of a worker: ``Privacy(clip_norm=1.0, …)``.
        lanes, threads, stacked: workers side by side in this process, torch threads of each, workers in a
            stack of ``"vectorised"``; 0 follows from the machine.
        device: ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, …

    Raises:
        ConfigError: a setting is unknown, out of range, or contradicts another.

    Example:
        >>> import torch
        >>> rows = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
        >>> labels = (rows[:, 0] > 0).long()
        >>> system = HQDESystem("mlp", {"hidden": [16]}, num_workers=4, topology=Topology(groups=2))
        >>> metrics = system.train((rows, labels), num_epochs=10)
        >>> len(system.ensemble), len(metrics["history"])
        (2, 10)
        >>> system.predict(rows).shape
        torch.Size([200, 2])
    """

    def __init__(
        self,
        model_class: str | Callable[..., nn.Module],
        model_kwargs: Mapping[str, Any] | None = None,
        num_workers: int = 4,
        quantization_config: Mapping[str, Any] | None = None,
        aggregation_config: Mapping[str, Any] | None = None,
        *,
        topology: Topology = Topology(),
        recipe: Recipe | None = None,
        diversity: Diversity = Diversity(),
        dropout_rate: float | None = None,
        partitioner: Partitioner | str = Replicate(),
        augmentation: Augmentation = Augmentation(),
        server: ServerOptimizer | None = None,
        rule: Rule | FractionalRule = Mean(),
        policy: AggregationPolicy = AggregationPolicy(),
        compression: Compression = Compression(),
        groups: Mapping[int, GroupSettings] | None = None,
        early_stopping: int = 0,
        evaluate_every: int = 1,
        combiner: Combiner | str = "auto",
        snapshots: Snapshots = Snapshots(),
        drop_outliers: bool = False,
        calibrate: bool = True,
        matrix_scaling: bool = False,
        task: Task = "classification",
        classes: Sequence[str] | None = None,
        norm: Literal["batch", "group"] = "batch",
        seed: int = 0,
        backend: str = "local",
        ray: RaySettings = RaySettings(),
        balancer: Balancer | str = RoundRobin(),
        faults: FaultPolicy = FaultPolicy(),
        privacy: Privacy = Privacy(),
        lanes: int = 0,
        threads: int = 0,
        stacked: int = 0,
        device: str = "auto",
    ) -> None:
        topology.num_groups(num_workers)
        self._place: dict[str, Any] = {"ray": ray, "lanes": lanes, "threads": threads, "stacked": stacked}
        make_backend(backend, **self._place)
        aggregation = read_aggregation(aggregation_config, server)
        self.model_class = model_class
        self.model_kwargs = dict(model_kwargs or {})
        self.num_workers = num_workers
        self.task: Task = task
        self.classes = classes
        self.backend = backend
        self._norm = norm
        self._recipe = recipe
        if dropout_rate is None:
            dropout_rate = self.model_kwargs.get("dropout_rate", DEFAULT_DROPOUT_RATE)
        self._settings: dict[str, Any] = {
            "num_workers": num_workers,
            "topology": topology,
            "diversity": diversity,
            "dropout_rate": dropout_rate,
            "partitioner": make_partitioner(partitioner) if isinstance(partitioner, str) else partitioner,
            "augmentation": augmentation,
            "server": aggregation.server,
            "rule": rule,
            "policy": policy,
            "compression": read_quantization(quantization_config, compression),
            "buffers": aggregation.buffers,
            "groups": dict(groups or {}),
            "balancer": make_balancer(balancer) if isinstance(balancer, str) else balancer,
            "faults": faults,
            "privacy": privacy,
            "early_stopping": early_stopping,
            "evaluate_every": evaluate_every,
            "combiner": known_combiner(combiner),
            "snapshots": snapshots,
            "drop_outliers": drop_outliers,
            "calibrate": calibrate,
            "matrix_scaling": matrix_scaling,
            "seed": seed,
            "device": resolve_device(device),
        }
        self._ensemble: Ensemble | None = None
        self._metrics: dict[str, Any] | None = None

    @property
    def ensemble(self) -> Ensemble:
        """The ensemble that ``train`` or ``load_model`` left here.

        Raises:
            PreconditionError: there is none yet.
        """
        if self._ensemble is None:
            raise PreconditionError(
                "this system holds no ensemble yet; call train(…) or load_model(path) first"
            )
        return self._ensemble

    def train(
        self,
        train_data: Any,
        num_epochs: int = 10,
        validation_loader: Any = None,
        *,
        test_data: Any = None,
        validation_fraction: float = 0.1,
        split_seed: int = 0,
        run_dir: str | os.PathLike[str] | None = None,
        resume: bool = False,
        checkpoint_every: int = 1,
        progress: bool = False,
        listeners: Sequence[Listener] = (),
        monitoring: Monitoring | None = None,
    ) -> dict[str, Any]:
        """Train from the start; a second call forgets the first.

        Args:
            train_data: the rows to fit; ``Splits``, as ``load_splits`` gives them, bring validation and test
                rows along.
            num_epochs: passes of each worker over its rows.
            validation_loader: rows for early stopping, calibration and the figures on the way, in any form;
                without them ``validation_fraction`` of the training rows are held out.
            test_data: rows that only the final figures see; without them those are made on the validation
                rows, to which the calibration was fitted.
            validation_fraction, split_seed: of the rows held out, class by class.
            run_dir: leave a run directory there: configuration, history, events, checkpoints, artefact and
                figures, as ``hqde train`` does.
            resume: go on from the newest checkpoint in ``run_dir``, with the same data and settings.
            checkpoint_every: epochs between two checkpoints in ``run_dir``.
            progress: write a line per round to the standard error stream.
            listeners: told of rounds and events.
            monitoring: what to measure of the machine, into ``run_dir``, and whom to tell.

        Returns:
            The figures of the ensemble (``accuracy``, ``nll``, ``brier``, ``ece``, … before calibration, and
            ``calibrated``), on the rows that ``judged_on`` names; what the training cost (``train``,
            ``communication``, ``faults``); ``final_loss``, the last round's mean training loss, or ``None``
            if no worker had one; and ``history``, a dict per round.

        Raises:
            DataError: rows that cannot be trained on.
            ConfigError: settings that do not fit the data or each other.
            PreconditionError: a model whose output does not fit the task.
            RunError: ``run_dir`` is missing, taken, or holds no run to resume, or one with other settings.
            WorkerError: every worker failed in one round.
            QuorumError: no worker handed in a usable update for several rounds.
        """
        if run_dir is None and (resume or monitoring is not None):
            what = "nothing to resume" if resume else "nowhere to write samples to"
            raise RunError(f"there is {what} without a run directory; give run_dir")
        splits = splits_from(
            train_data,
            validation_loader,
            test_data,
            task=self.task,
            classes=self.classes,
            validation_fraction=validation_fraction,
            split_seed=split_seed,
        )
        experiment = self._experiment(splits, recipe_for(train_data, self._recipe), num_epochs)
        log = RoundLog(sys.stderr if progress else None)
        told = (log, *listeners)
        config = describe(
            experiment,
            backend=self.backend,
            **self._place,
            validation_fraction=validation_fraction,
            split_seed=split_seed,
            monitoring=monitoring,
        )
        config_toml = dump_config(config)
        provenance: dict[str, object] = {"config": without_place(tomllib.loads(config_toml))}
        if run_dir is None:
            engine = Engine(experiment, self._backend(), listener=Listeners(told), provenance=provenance)
            result = engine.run()
            predictions = result.ensemble.predict_labelled(splits.test)
            metrics = final_metrics(experiment, result, predictions, backend=self.backend)
            history = [record.to_dict() for record in log.records]
        else:
            directory = RunDirectory(os.fspath(run_dir))
            if resume:
                refuse_other_settings(directory, config_toml)
            result, metrics = train_run(
                experiment,
                directory,
                config_toml=config_toml,
                provenance=provenance,
                backend=self._backend(),
                checkpoint_every=checkpoint_every,
                listeners=told,
                resume=resume,
                monitoring=monitoring,
            )
            history = [json.loads(line) for line in directory.history_file.read_text().splitlines()]
        self._ensemble = result.ensemble
        self._metrics = {
            **metrics,
            "judged_on": "validation" if splits.test is splits.validation else "test",
            "final_loss": log.records[-1].mean_loss if log.records else None,
            "history": history,
        }
        return dict(self._metrics)

    def evaluate(self, data: Any) -> Evaluation:
        """Figures of the ensemble on labelled rows: its own, each member's, and their diversity."""
        return self.ensemble.evaluate(data)

    def predict(self, data: Any) -> Tensor:
        """Class probabilities (n, classes), calibrated; for regression the means (n,).

        Rows come in the data's own order, also from a ``DataLoader`` that shuffles; targets are left out.
        ``ensemble`` offers more: members, classes, uncertainty.
        """
        return self.ensemble.predict(data) if self.task == "regression" else self.ensemble.predict_proba(data)

    def save_model(self, path: str | os.PathLike[str]) -> None:
        """Write the ensemble as an artefact, a directory; ``Ensemble.load`` and ``load_model`` read it."""
        self.ensemble.save(path)

    def load_model(self, path: str | os.PathLike[str]) -> None:
        """Take the ensemble that was saved at ``path``, built from this system's model class.

        Raises:
            ArtefactError: it is damaged, does not fit the class, or is for another task.
        """
        ensemble = Ensemble.load(path, model_class=self._factories())
        if ensemble.schema.task != self.task:
            raise ArtefactError(
                f"{os.fspath(path)} is for {ensemble.schema.task}, and this system for {self.task}; "
                f"make the system with task='{ensemble.schema.task}'"
            )
        self._ensemble, self._metrics = ensemble, None

    def get_performance_metrics(self) -> dict[str, Any]:
        """``train``, ``communication``, ``faults``, ``backend``, ``workers``, ``groups`` of ``metrics.json``.

        Raises:
            PreconditionError: nothing was trained here.
        """
        if self._metrics is None:
            raise PreconditionError("nothing was trained in this system yet; call train(…) first")
        return {key: self._metrics[key] for key in _COST_KEYS}

    def cleanup(self) -> None:
        """Forget the figures of the last training; the ensemble stays. May be called twice."""
        self._metrics = None

    def _experiment(self, splits: Splits, recipe: Recipe, num_epochs: int) -> Experiment:
        schema = splits.schema
        loss = recipe.loss_for(schema.task)
        model = model_spec(
            self.model_class,
            input_shape=schema.input_shape,
            num_outputs={"cross_entropy": schema.num_classes, "mse": 1, "gaussian_nll": 2}[loss],
            norm=self._norm,
            options=self.model_kwargs,
        )
        settings = self._settings | {"combiner": combiner_for(self._settings, splits)}
        return Experiment(splits=splits, model=model, epochs=num_epochs, recipe=recipe, **settings)

    def _backend(self) -> Backend:
        return make_backend(self.backend, **self._place, balancer=self._settings["balancer"])

    def _factories(self) -> Callable[..., nn.Module] | dict[str, Callable[..., nn.Module]] | None:
        """The classes that were given in Python, for loading what cannot be imported by its name."""
        groups: Mapping[int, GroupSettings] = self._settings["groups"]
        given = [group.model for group in groups.values() if group.model is not None]
        classes = {spec.name: spec.factory for spec in given if spec.factory is not None}
        if not isinstance(self.model_class, str):
            classes[f"{self.model_class.__module__}:{self.model_class.__qualname__}"] = self.model_class
        return next(iter(classes.values())) if len(classes) == 1 else classes or None


def create_hqde_system(
    model_class: str | Callable[..., nn.Module],
    model_kwargs: Mapping[str, Any] | None = None,
    num_workers: int = 4,
    quantization_config: Mapping[str, Any] | None = None,
    aggregation_config: Mapping[str, Any] | None = None,
    **settings: Any,
) -> HQDESystem:
    """The seed's way to make an ``HQDESystem``; the same arguments.

    Example:
        >>> create_hqde_system("mlp", {"hidden": [16]}, num_workers=2).num_workers
        2
    """
    return HQDESystem(
        model_class, model_kwargs, num_workers, quantization_config, aggregation_config, **settings
    )
