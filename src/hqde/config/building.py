"""From settings to an experiment, and the checks that need both."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from hqde.aggregation import make_server_optimizer
from hqde.backends import Backend, RaySettings, make_backend
from hqde.balance import make_balancer
from hqde.config.settings import Config, GroupConfig
from hqde.data import Splits, load_splits, make_partitioner
from hqde.ensemble import default_combiner, make_combiner
from hqde.models import ModelSpec, model_spec
from hqde.rounds import Experiment, GroupSettings
from hqde.training import Recipe, resolve_device


def load_data(config: Config) -> Splits:
    """Read the data that the configuration names.

    Raises:
        DataError: it cannot be read, or cannot be trained on.
    """
    data = config.data
    return load_splits(
        data.source,
        validation_fraction=data.validation_fraction,
        test_fraction=data.test_fraction,
        split_seed=data.split_seed,
        max_train=data.max_train,
        task=data.task,
        target=data.target,
    )


def resolve(config: Config, splits: Splits) -> Config:
    """Put in place of ``auto`` what it stands for here, so that the written configuration repeats the run."""
    model, run = config.model, config.run
    if model.name == "auto":
        model = replace(model, name="cnn" if splits.schema.kind == "image" else "mlp")
    run = replace(run, device=resolve_device(run.device))
    compression = config.compression
    if compression.codec == "auto":
        compression = replace(compression, codec=_codec_for(run.backend, config.ray))
    ensemble = config.ensemble
    if ensemble.combiner == "auto":
        combiner = default_combiner(
            splits.schema.task,
            num_members=config.topology.num_groups(run.workers) * (1 + ensemble.snapshots.num_joined),
            num_validation_rows=len(splits.validation),
            calibrate=ensemble.calibrate,
        )
        ensemble = replace(ensemble, combiner=combiner.name)
    return replace(config, model=model, run=run, compression=compression, ensemble=ensemble)


def build_experiment(config: Config, splits: Splits) -> Experiment:
    """The experiment that a resolved configuration describes.

    Raises:
        ConfigError: settings that contradict each other, or do not fit the data.

    Example:
        >>> from hqde.config import build_config
        >>> config = build_config({"run": {"epochs": 1}})
        >>> splits = load_data(config)
        >>> build_experiment(resolve(config, splits), splits).num_groups
        4
    """
    run, server = config.run, config.server
    recipe = config.training
    return Experiment(
        splits=splits,
        model=_spec(config, recipe, splits, config.model.name, config.model.options),
        num_workers=run.workers,
        epochs=run.epochs,
        recipe=recipe,
        topology=config.topology,
        diversity=config.diversity,
        dropout_rate=config.model.dropout_rate,
        partitioner=make_partitioner(config.data.partition, alpha=config.data.alpha),
        balancer=make_balancer(run.balance),
        augmentation=config.data.augmentation,
        server=make_server_optimizer(
            server.optimizer, learning_rate=server.learning_rate, momentum=server.momentum
        ),
        rule=config.aggregation.build_rule(),
        policy=config.aggregation.build_policy(),
        compression=config.compression.build(),
        buffers=server.buffers,
        groups={int(name): _group(config, recipe, splits, group) for name, group in config.group.items()},
        faults=config.faults,
        privacy=config.privacy,
        early_stopping=run.early_stopping,
        evaluate_every=run.evaluate_every,
        combiner=make_combiner(config.ensemble.combiner),
        snapshots=config.ensemble.snapshots,
        drop_outliers=config.ensemble.drop_outliers,
        calibrate=config.ensemble.calibrate,
        matrix_scaling=config.ensemble.matrix_scaling,
        seed=run.seed,
        device=resolve_device(run.device),
    )


def build_backend(config: Config) -> Backend:
    """The backend that a configuration names; nothing is started yet.

    Raises:
        ConfigError: no such backend.
        MissingExtraError: its extra is not installed.
    """
    return make_backend(
        config.run.backend,
        ray=config.ray,
        lanes=config.run.lanes,
        threads=config.run.threads,
        stacked=config.run.stacked,
        balancer=make_balancer(config.run.balance),
    )


def _codec_for(backend: str, ray: RaySettings) -> Literal["none", "packed", "entropy"]:
    """What ``auto`` stands for: bytes are worth computing time where they leave the machine."""
    if backend != "ray" or ray.address in (None, "local"):
        return "none"
    return "entropy" if ray.link_gbit < 1 else "packed"


def _spec(config: Config, recipe: Recipe, splits: Splits, name: str, options: dict[str, Any]) -> ModelSpec:
    schema = splits.schema
    loss = recipe.loss_for(schema.task)
    outputs = schema.num_classes if loss == "cross_entropy" else (1 if loss == "mse" else 2)
    return model_spec(
        name,
        input_shape=schema.input_shape,
        num_outputs=outputs,
        norm=config.model.norm,
        options=options,
    )


def _group(config: Config, recipe: Recipe, splits: Splits, group: GroupConfig) -> GroupSettings:
    model = None
    if group.model is not None:
        model = _spec(config, recipe, splits, group.model, group.options)
    elif group.options:
        model = _spec(config, recipe, splits, config.model.name, config.model.options | group.options)
    return GroupSettings(
        model=model,
        dropout_rate=group.dropout_rate,
        bootstrap=group.bootstrap,
        recipe=group.training,
    )
