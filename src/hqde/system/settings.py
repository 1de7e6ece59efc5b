"""The seed's two configuration dictionaries, and a system's settings as a configuration."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, cast

from hqde.aggregation import (
    RULES,
    Adaptive,
    AggregationPolicy,
    FedAvg,
    FractionalRule,
    Momentum,
    Rule,
    ServerOptimizer,
    make_server_optimizer,
)
from hqde.backends import RaySettings
from hqde.compression import Compression, PackedCodec
from hqde.config import (
    AggregationSettings,
    CompressionSettings,
    Config,
    DataSettings,
    EnsembleSettings,
    GroupConfig,
    ModelSettings,
    RunSettings,
    ServerSettings,
    build_config,
    changed_settings,
    load_tree,
)
from hqde.data import Bootstrap, Dirichlet, Iid, Partitioner, Replicate, Split, Splits
from hqde.ensemble import Combiner, default_combiner, make_combiner
from hqde.errors import ConfigError, RunError, did_you_mean
from hqde.models import BUILT_IN
from hqde.monitoring import Monitoring
from hqde.rounds import Experiment, RunDirectory

Buffers = Literal["average", "local"]

QUANTIZATION_KEYS = ("base_bits", "min_bits", "max_bits")
AGGREGATION_KEYS = ("server_optimizer", "learning_rate", "momentum", "buffers")
_PARTITIONERS = {Replicate: "replicate", Split: "split", Iid: "iid", Bootstrap: "bootstrap"}


@dataclass(frozen=True)
class Aggregation:
    """How a group's updates become its new weights: what ``aggregation_config`` says, read.

    Attributes:
        server: from aggregated delta to new weights.
        buffers: ``"average"`` shares BatchNorm statistics inside a group, ``"local"`` keeps them per worker.
    """

    server: ServerOptimizer = FedAvg()
    buffers: Buffers = "average"


def read_aggregation(config: Mapping[str, Any] | None, server: ServerOptimizer | None = None) -> Aggregation:
    """Read ``aggregation_config``.

    Args:
        config: any of ``server_optimizer`` (``"fedavg"``, ``"momentum"``, ``"nesterov"``, ``"fedadagrad"``,
            ``"fedadam"`` or ``"fedyogi"``), its ``learning_rate`` and ``momentum``, and ``buffers``.
        server: a server optimizer as an object, in place of the first three.

    Raises:
        ConfigError: an unknown key or value, or the server optimizer is given twice.

    Example:
        >>> read_aggregation({"server_optimizer": "nesterov", "buffers": "local"})
        Aggregation(server=Momentum(learning_rate=0.7, momentum=0.9, nesterov=True), buffers='local')
        >>> read_aggregation({"server_optimiser": "fedadam"})
        Traceback (most recent call last):
        hqde.errors.ConfigError: unknown key 'server_optimiser' of aggregation_config; did you mean
        'server_optimizer'?
    """
    if config is not None and not isinstance(config, Mapping):
        raise ConfigError(
            f"aggregation_config must be a dict of {', '.join(AGGREGATION_KEYS)}, got {config!r}"
        )
    given = dict(config or {})
    for name in given:
        if name not in AGGREGATION_KEYS:
            raise ConfigError(
                f"unknown key '{name}' of aggregation_config; {did_you_mean(str(name), AGGREGATION_KEYS)}"
            )
    buffers = given.pop("buffers", "average")
    if buffers not in ("average", "local"):
        raise ConfigError(f"buffers of aggregation_config must be 'average' or 'local', got {buffers!r}")
    if server is not None:
        if given:
            raise ConfigError(
                f"the server optimizer is given twice: as server= and by {', '.join(given)} of "
                "aggregation_config; leave one out"
            )
        return Aggregation(server, cast(Buffers, buffers))
    name = given.pop("server_optimizer", "fedavg")
    return Aggregation(make_server_optimizer(name, **given), cast(Buffers, buffers))


def read_quantization(
    config: Mapping[str, Any] | None, compression: Compression = Compression()
) -> Compression:
    """Read ``quantization_config``: every block of weights gets between ``min_bits`` and ``max_bits``.

    Args:
        config: any of ``base_bits`` (8, the average), ``min_bits`` (4) and ``max_bits`` (16); ``None`` leaves
            ``compression`` as it is.
        compression: the same as an object.

    Raises:
        ConfigError: an unknown key, a value out of range, or both arguments are given.

    Example:
        >>> read_quantization({"base_bits": 6}).codec
        PackedCodec(bits=6, min_bits=4, max_bits=16, allocation='adaptive', ...)
    """
    if config is None:
        return compression
    if not isinstance(config, Mapping):
        raise ConfigError(
            f"quantization_config must be a dict of {', '.join(QUANTIZATION_KEYS)}, got {config!r}"
        )
    if compression != Compression():
        raise ConfigError("quantization_config and compression say the same thing; leave one out")
    for name in config:
        if name not in QUANTIZATION_KEYS:
            raise ConfigError(
                f"unknown key '{name}' of quantization_config; {did_you_mean(str(name), QUANTIZATION_KEYS)}"
            )
    given = {"base_bits": 8, "min_bits": 4, "max_bits": 16} | dict(config)
    return Compression(
        PackedCodec(bits=given["base_bits"], min_bits=given["min_bits"], max_bits=given["max_bits"])
    )


def describe(
    experiment: Experiment,
    *,
    backend: str,
    ray: RaySettings,
    lanes: int,
    threads: int,
    stacked: int,
    validation_fraction: float,
    split_seed: int,
    monitoring: Monitoring | None,
) -> Config:
    """A system's settings as a configuration, for the run directory and the artefact.

    What has no name in a configuration file, such as a data set in memory or a partitioner of your own, is
    written as Python shows it.
    """
    partitioner, splits = experiment.partitioner, experiment.splits
    rows = f"{len(splits.train)} training and {len(splits.validation)} validation rows"
    return Config(
        data=DataSettings(
            source=f"in memory: {splits.name}, {rows}",
            task=splits.schema.task,
            validation_fraction=validation_fraction,
            split_seed=split_seed,
            partition=_partition_name(partitioner),
            alpha=partitioner.alpha if isinstance(partitioner, Dirichlet) else DataSettings.alpha,
            augmentation=experiment.augmentation,
        ),
        model=_model_settings(experiment),
        training=experiment.recipe,
        diversity=experiment.diversity,
        topology=experiment.topology,
        aggregation=_aggregation_settings(experiment.rule, experiment.policy),
        server=_server_settings(experiment.server, experiment.buffers),
        compression=_compression_settings(experiment.compression),
        ensemble=EnsembleSettings(
            combiner=experiment.combiner.name,
            drop_outliers=experiment.drop_outliers,
            calibrate=experiment.calibrate,
            matrix_scaling=experiment.matrix_scaling,
            snapshots=experiment.snapshots,
        ),
        run=RunSettings(
            workers=experiment.num_workers,
            epochs=experiment.epochs,
            seed=experiment.seed,
            backend=backend,
            balance=experiment.balancer.name,
            lanes=lanes,
            threads=threads,
            stacked=stacked,
            device=experiment.device,
            early_stopping=experiment.early_stopping,
            evaluate_every=experiment.evaluate_every,
        ),
        faults=experiment.faults,
        privacy=experiment.privacy,
        ray=ray,
        monitoring=monitoring or Monitoring(interval_s=0.0, alerts=False),
        group={
            str(number): GroupConfig(
                model=None if group.model is None else group.model.name,
                options={} if group.model is None else dict(group.model.options),
                dropout_rate=group.dropout_rate,
                bootstrap=group.bootstrap,
                training=dict(group.recipe),
            )
            for number, group in experiment.groups.items()
        },
    )


def _model_settings(experiment: Experiment) -> ModelSettings:
    """What a built-in model is told by the data is left out."""
    model, options = experiment.model, dict(experiment.model.options)
    settings = ModelSettings(name=model.name, options=options)
    if model.name in BUILT_IN:
        norm = cast(Literal["batch", "group"], options.pop("norm"))
        del options["input_shape"], options["num_outputs"]
        settings = ModelSettings(name=model.name, norm=norm, options=options)
    if experiment.dropout_rate is None:
        return settings
    return replace(settings, dropout_rate=experiment.dropout_rate)


def known_combiner(combiner: Combiner | str) -> Combiner | None:
    """The combiner that is meant; None for ``"auto"``, which depends on the data.

    Raises:
        ConfigError: no combiner has the name.
    """
    if combiner == "auto":
        return None
    return make_combiner(combiner) if isinstance(combiner, str) else combiner


def combiner_for(settings: Mapping[str, Any], splits: Splits) -> Combiner:
    """The combiner of a system's settings, for these data."""
    known: Combiner | None = settings["combiner"]
    return known or default_combiner(
        splits.schema.task,
        num_members=settings["topology"].num_groups(settings["num_workers"])
        * (1 + settings["snapshots"].num_joined),
        num_validation_rows=len(splits.validation),
        calibrate=settings["calibrate"],
    )


def _partition_name(partitioner: Partitioner) -> str:
    if type(partitioner) is Dirichlet:
        return "dirichlet"
    return _PARTITIONERS.get(type(partitioner), repr(partitioner))


def _aggregation_settings(rule: Rule | FractionalRule, policy: AggregationPolicy) -> AggregationSettings:
    """The settings that make rule and policy again, or how Python shows a rule where there are none."""
    bound, held_out = policy.norm_bound, policy.held_out
    settings = AggregationSettings(
        rule=repr(rule),
        on_breach=policy.on_breach,
        norm_bound=0.0 if bound is None else bound.factor,
        max_loss_increase=None if held_out is None else held_out.max_increase,
        learn_shares=policy.learnt_shares is not None,
        reliability="off" if policy.reliability is None else policy.use,
    )
    if isinstance(rule, FractionalRule):
        return replace(
            settings,
            rule=rule.name,
            num_byzantine=rule.fraction,
            mixing=list(rule.mixing),
            options=dict(rule.options),
        )
    if type(rule) in RULES.values():
        options = {f.name: getattr(rule, f.name) for f in fields(rule)}  # type: ignore[arg-type]
        count = options.pop("num_byzantine", 0)
        return replace(settings, rule=rule.name, num_byzantine=count, options=options)
    return settings


def _compression_settings(compression: Compression) -> CompressionSettings:
    shared = {f.name: getattr(compression, f.name) for f in fields(compression) if f.name != "codec"}
    codec = compression.codec
    if codec is None:
        return CompressionSettings(**shared)
    options = {f.name: getattr(codec, f.name) for f in fields(codec) if f.name != "bits"}
    return CompressionSettings(codec.name, codec.bits, options=options, **shared)  # type: ignore[arg-type]


def _server_settings(server: ServerOptimizer, buffers: Buffers) -> ServerSettings:
    """The settings that make ``server`` again, or how Python shows it where there are none."""
    if isinstance(server, FedAvg):
        return ServerSettings("fedavg", server.learning_rate, buffers=buffers)
    if isinstance(server, Momentum):
        name = "nesterov" if server.nesterov else "momentum"
        return ServerSettings(name, server.learning_rate, server.momentum, buffers)
    if isinstance(server, Adaptive) and server == Adaptive(server.kind, server.learning_rate):
        return ServerSettings(f"fed{server.kind}", server.learning_rate, buffers=buffers)
    return ServerSettings(repr(server), buffers=buffers)


def refuse_other_settings(directory: RunDirectory, config_toml: str) -> None:
    """Refuse to resume a run with settings that make another one, with RunError."""
    directory.require_run()
    old, new = build_config(load_tree(directory.config_file)), build_config(tomllib.loads(config_toml))
    if changed := changed_settings(old, new):
        raise RunError(
            f"{directory.path} was made with other settings ({', '.join(changed)}); resume it unchanged, or "
            "start a new run in another directory"
        )
