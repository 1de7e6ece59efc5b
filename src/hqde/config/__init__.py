"""TOML to strict objects and back, and from those to an experiment."""

from hqde.config.building import build_backend, build_experiment, load_data, resolve
from hqde.config.settings import (
    AggregationSettings,
    CompressionSettings,
    Config,
    DataSettings,
    EnsembleSettings,
    GroupConfig,
    ModelSettings,
    RunSettings,
    ServerSettings,
)
from hqde.config.toml import (
    build_config,
    changed_settings,
    dump_config,
    load_tree,
    merge_trees,
    parse_assignment,
    without_place,
)

__all__ = [
    "AggregationSettings",
    "CompressionSettings",
    "Config",
    "DataSettings",
    "EnsembleSettings",
    "GroupConfig",
    "ModelSettings",
    "RunSettings",
    "ServerSettings",
    "build_backend",
    "build_config",
    "build_experiment",
    "changed_settings",
    "dump_config",
    "load_data",
    "load_tree",
    "merge_trees",
    "parse_assignment",
    "resolve",
    "without_place",
]
