"""Hierarchical quantum-inspired distributed ensemble learning.

Names are imported when they are first used, so that ``import hqde`` costs nothing and nobody waits for what
they do not use.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hqde.aggregation import Adaptive, FedAvg, Momentum
    from hqde.compression import AdaptiveQuantizer, Compression, EntropyCodec, PackedCodec
    from hqde.data import (
        Augmentation,
        Bootstrap,
        Dirichlet,
        Iid,
        Replicate,
        Split,
        Splits,
        as_examples,
        load_splits,
    )
    from hqde.ensemble import (
        EfficiencyCombiner,
        Ensemble,
        Evaluation,
        LogPoolCombiner,
        MeanCombiner,
    )
    from hqde.errors import HqdeError
    from hqde.estimators import HQDEClassifier, HQDERegressor
    from hqde.models import ModelSpec, model_spec
    from hqde.monitoring import PerformanceMonitor, SystemMetrics
    from hqde.rounds import GroupSettings, Privacy, Snapshots
    from hqde.system import HQDESystem, create_hqde_system
    from hqde.topology import Elastic, Topology
    from hqde.training import Diversity, Recipe

__all__ = [
    "Adaptive",
    "AdaptiveQuantizer",
    "Augmentation",
    "Bootstrap",
    "Compression",
    "Dirichlet",
    "Diversity",
    "EfficiencyCombiner",
    "Elastic",
    "Ensemble",
    "EntropyCodec",
    "Evaluation",
    "FedAvg",
    "GroupSettings",
    "HQDEClassifier",
    "HQDERegressor",
    "HQDESystem",
    "HqdeError",
    "Iid",
    "LogPoolCombiner",
    "MeanCombiner",
    "ModelSpec",
    "Momentum",
    "PackedCodec",
    "PerformanceMonitor",
    "Privacy",
    "Recipe",
    "Replicate",
    "Snapshots",
    "Split",
    "Splits",
    "SystemMetrics",
    "Topology",
    "__version__",
    "as_examples",
    "create_hqde_system",
    "load_splits",
    "model_spec",
]

__version__ = version("hqde")

_NAMES_BY_ROOM = {
    "aggregation": ("Adaptive", "FedAvg", "Momentum"),
    "compression": ("AdaptiveQuantizer", "Compression", "EntropyCodec", "PackedCodec"),
    "data": (
        "Augmentation",
        "Bootstrap",
        "Dirichlet",
        "Iid",
        "Replicate",
        "Split",
        "Splits",
        "as_examples",
        "load_splits",
    ),
    "ensemble": ("EfficiencyCombiner", "Ensemble", "Evaluation", "LogPoolCombiner", "MeanCombiner"),
    "errors": ("HqdeError",),
    "estimators": ("HQDEClassifier", "HQDERegressor"),
    "models": ("ModelSpec", "model_spec"),
    "monitoring": ("PerformanceMonitor", "SystemMetrics"),
    "rounds": ("GroupSettings", "Privacy", "Snapshots"),
    "system": ("HQDESystem", "create_hqde_system"),
    "topology": ("Elastic", "Topology"),
    "training": ("Diversity", "Recipe"),
}
_ROOM_OF = {name: room for room, names in _NAMES_BY_ROOM.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name the first time it is asked for."""
    if name not in _ROOM_OF:
        raise AttributeError(f"module 'hqde' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"hqde.{_ROOM_OF[name]}"), name)
    return value


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return sorted({*__all__, *globals()})
