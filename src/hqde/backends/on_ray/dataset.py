"""Rows of a Ray dataset with random access, read where they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import RayTaskError
from torch import Tensor

from hqde.backends.on_ray.failures import cause_of
from hqde.data import Batch, Inputs, Task, cast_targets
from hqde.errors import DataError

Block = dict[str, np.ndarray]


class RayDataset:
    """A ``ray.data.Dataset`` as examples that never gather in one process.

    The dataset is executed once, when this object is made. Its blocks then stay in the object stores of the
    cluster, which spill to disk what does not fit; only the targets come to the driver. A worker that wants
    a batch maps the blocks that hold its rows, one at a time, and copies those rows. Epochs are shuffled over
    the whole dataset, so a batch touches about as many blocks as it has rows, at some 0.2 ms each: a few
    large blocks (``dataset.repartition(16)``) are faster than many small ones.

    Args:
        dataset: of columns of numbers; all values of a column have one shape.
        target: the column of targets.
        inputs: a column, which becomes the model's input; or several, which become a dict of inputs. Left
            out: the one other column; or, where all others hold single numbers, a table ``(n, k)`` float32 of
            them in the dataset's order; or else a dict of them.
        task: ``"classification"`` or ``"regression"``.

    Raises:
        DataError: a column is missing, is no column of numbers, or there are no rows.

    Example:
        >>> # rows = ray.data.read_parquet("s3://bucket/rows").repartition(16)
        >>> # HQDESystem(backend="ray", …).fit(RayDataset(rows, target="label"))
    """

    def __init__(
        self,
        dataset: Any,
        *,
        target: str,
        inputs: str | Sequence[str] | None = None,
        task: Task = "classification",
    ) -> None:
        columns = list(dataset.columns() or ())
        given = [inputs] if isinstance(inputs, str) else columns if inputs is None else list(inputs)
        named = [name for name in given if name != target]
        missing = [name for name in (target, *named) if name not in columns]
        if missing or not named:
            wanted = f"no column '{missing[0]}'" if missing else "no column beside the target"
            raise DataError(f"the dataset has {wanted}; it has {', '.join(columns) or 'none'}")
        chosen = dataset.select_columns([*named, target])
        chosen.context.execution_options.preserve_order = True  # runs repeat only if the rows' order does
        self._blocks: list[ray.ObjectRef] = chosen.to_numpy_refs()
        try:
            looks = ray.get([_look.remote(block, target, named) for block in self._blocks])
        except RayTaskError as error:
            raise cause_of(error) from None
        sizes = [len(targets) for targets, _ in looks]
        if not sum(sizes):
            raise DataError("the dataset has no rows; give at least one")
        shapes = {shape for targets, shape in looks if len(targets)}
        if len(shapes) > 1:
            raise DataError(f"rows of the dataset differ in shape from block to block: {sorted(shapes)}")
        self._columns = named
        single_numbers = not any(shape for shape in shapes.pop())
        self._is_table = inputs is None and single_numbers and len(named) > 1
        self._starts = torch.tensor([0, *sizes]).cumsum(0)
        self.targets: Tensor = cast_targets(torch.from_numpy(np.concatenate([t for t, _ in looks])), task)

    def __len__(self) -> int:
        return len(self.targets)

    def fetch(self, index: Tensor) -> Batch:
        """The rows that ``index`` (k,) int64 names, in that order, repeats allowed."""
        owners = torch.searchsorted(self._starts, index, right=True) - 1
        order = owners.argsort(stable=True)
        taken: dict[str, list[Tensor]] = {name: [] for name in self._columns}
        for owner in owners.unique().tolist():
            places = (index[order[owners[order] == owner]] - self._starts[owner]).numpy()
            block = ray.get(self._blocks[owner])
            for name, parts in taken.items():
                parts.append(torch.from_numpy(block[name][places]))  # a copy: the block itself is let go
        back = order.argsort()
        columns = {name: torch.cat(parts)[back] for name, parts in taken.items()}
        return Batch(self._inputs(columns), self.targets[index])

    def _inputs(self, columns: dict[str, Tensor]) -> Inputs:
        if self._is_table:
            return torch.stack([column.float() for column in columns.values()], dim=1)
        return columns[self._columns[0]] if len(columns) == 1 else columns


@ray.remote(num_cpus=0)
def _look(block: Block, target: str, inputs: Sequence[str]) -> tuple[np.ndarray, tuple[tuple[int, ...], ...]]:
    """A block's targets, and the shape of a row of each column."""
    for name in (target, *inputs):
        if not np.issubdtype(block[name].dtype, np.number) and block[name].dtype != np.bool_:
            raise DataError(
                f"column '{name}' of the dataset holds {block[name].dtype}, not numbers of one shape; turn "
                f"it into numbers with dataset.map_batches, or name the inputs"
            )
    return np.array(block[target]), tuple(block[name].shape[1:] for name in inputs)
