"""Readers, splits, normalisation, augmentation and partitioners."""

from __future__ import annotations

from hqde.data.examples import (
    Batch,
    Examples,
    Inputs,
    MapExamples,
    SubsetExamples,
    Task,
    TensorExamples,
    num_rows,
    take_rows,
)
from hqde.data.normalization import Normalization, TargetScale
from hqde.data.partition import (
    Bootstrap,
    Dirichlet,
    Iid,
    Partitioner,
    Replicate,
    Split,
    make_partitioner,
)
from hqde.data.schema import Schema, infer_schema
from hqde.data.splits import Splits, hold_out, load_splits, make_splits

__all__ = [
    "Batch",
    "Bootstrap",
    "Dirichlet",
    "Examples",
    "Iid",
    "Inputs",
    "MapExamples",
    "Normalization",
    "Partitioner",
    "Replicate",
    "Schema",
    "Split",
    "Splits",
    "SubsetExamples",
    "TargetScale",
    "Task",
    "TensorExamples",
    "hold_out",
    "infer_schema",
    "load_splits",
    "make_partitioner",
    "make_splits",
    "num_rows",
    "take_rows",
]
