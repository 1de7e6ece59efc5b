"""Readers, splits, normalisation, augmentation and partitioners."""

from __future__ import annotations

from hqde.data.augmentation import Augmentation
from hqde.data.conversion import as_examples, as_inputs
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
from hqde.data.holdout import hold_out
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
from hqde.data.splits import Splits, load_splits, make_splits

__all__ = [
    "Augmentation",
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
    "as_examples",
    "as_inputs",
    "hold_out",
    "infer_schema",
    "load_splits",
    "make_partitioner",
    "make_splits",
    "num_rows",
    "take_rows",
]
