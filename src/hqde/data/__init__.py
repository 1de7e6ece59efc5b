"""Readers, splits, normalisation, augmentation and partitioners.

What ``--data`` (and `load_splits`) accepts:

| written               | read as                                                                         |
|-----------------------|---------------------------------------------------------------------------------|
| ``digits``            | 1797 grey 8×8 digits that come with scikit-learn                                |
| ``fashion-mnist:DIR`` | IDX files ``train-images-idx3-ubyte``, …, plain or ``.gz``                      |
| ``cifar10:DIR``       | ``train*.parquet``, ``test*.parquet`` with ``img`` or ``image`` and ``label``;  |
|                       | or the original ``data_batch_1`` … ``data_batch_5`` and ``test_batch``          |
| ``FILE.npz``          | ``x, y`` (``X, y``; ``data, labels``) or ``x_train, y_train, x_test, y_test``   |
| ``FILE.parquet``      | images in a column ``img`` or ``image``, else a table of numbers                |
| ``FILE.csv``          | a table of numbers, with a header or without; comma, semicolon or tab           |
| a folder              | images, one sub-folder per class; or these in ``train/`` with ``test/`` and     |
|                       | ``validation/`` beside it                                                       |
| ``module:function``   | what the function returns: `Splits`, ``(X, y)``, ``(train, test)``, a dataset … |

The target column of a table is the one named by ``target``, else ``label``, ``target``, ``class`` or ``y``,
else the last. Words as targets are classes in sorted order, whole numbers are class ids, other numbers make
it regression; ``task`` overrides that. Rows for testing are held out where the source has none of its own,
and rows for validation always are, unless an image folder or a function sets them apart.
"""

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
    cast_targets,
    move_inputs,
    num_rows,
    reads_side_by_side,
    take_rows,
)
from hqde.data.holdout import hold_out
from hqde.data.loading import load_inputs, load_rows, load_splits
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
from hqde.data.splits import Splits, make_splits

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
    "cast_targets",
    "hold_out",
    "infer_schema",
    "load_inputs",
    "load_rows",
    "load_splits",
    "make_partitioner",
    "make_splits",
    "move_inputs",
    "num_rows",
    "reads_side_by_side",
    "take_rows",
]
