"""Aggregation plans carried out as Ray tasks: stateless, so that Ray may run any of them again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError
from torch import Tensor

from hqde.aggregation import (
    BLOCK,
    Combination,
    Combined,
    Decision,
    Delta,
    GramParts,
    RemoteDelta,
    Rule,
    ServerOptimizer,
    Update,
    check_shares,
    combine,
    gram_matrix,
    gram_parts,
    merge_parts,
    step_columns,
    weighted_sum,
)
from hqde.backends.on_ray.board import Board
from hqde.backends.on_ray.shipping import as_array, as_tensor, checksum
from hqde.backends.on_ray.worker_actor import Pieces
from hqde.errors import WorkerError
from hqde.topology import Plan, tree_blocks

SendAgain = Callable[[int], Update]
MAX_RESENDS = 3


class DamagedPieceError(Exception):
    """A piece of a delta does not check to what its worker wrote. ``row``: position in the aggregation."""

    def __init__(self, row: int) -> None:
        super().__init__(row)
        self.row = row


def spread(
    task: Combination, plan: Plan, board: Board, workers: Sequence[int], send_again: SendAgain
) -> Combined:
    """Carry out a combination by a plan.

    Args:
        task: rows are remote, or here.
        plan: of the group.
        board: knows where the pieces of vectors are.
        workers: who handed in each row.
        send_again: asks a worker for its update once more.

    Raises:
        WorkerError: a row stays damaged or lost however often it is asked for.
    """
    rows = [row if isinstance(row, RemoteDelta) else _as_remote(row, plan) for row in task.rows]
    for _ in range(MAX_RESENDS):
        try:
            if plan.kind == "sharded":
                return _sharded(task, rows, plan, board)
            if plan.kind == "tree":
                return _tree(task, rows, plan.fan_in)
            return combine(replace(task, rows=[fetch(row, position) for position, row in enumerate(rows)]))
        except (RayTaskError, DamagedPieceError, ObjectLostError, RayActorError) as error:
            cause = error.cause if isinstance(error, RayTaskError) else error
            if isinstance(cause, DamagedPieceError):
                bad = [cause.row]
            elif isinstance(cause, ObjectLostError | RayActorError):
                bad = [position for position, row in enumerate(rows) if _is_lost(row)]
            else:
                raise cause from None
            for position in bad:
                again = send_again(workers[position]).delta
                assert isinstance(again, RemoteDelta)
                rows[position] = again
    raise WorkerError(f"updates of the round arrive damaged or not at all, after {MAX_RESENDS} attempts")


def fetch(delta: Delta, row: int = 0) -> Tensor:
    """A delta in this process, in the store's memory when it is in one piece: never write to it.

    Raises:
        DamagedPieceError: it is not what was sent.
    """
    if isinstance(delta, Tensor):
        return delta
    arrays = ray.get(list(delta.handle.refs))
    _verify(arrays, delta.handle.checksums, [row] * len(arrays))
    return as_tensor(arrays[0] if len(arrays) == 1 else np.concatenate(arrays), delta.dtype)


def _tree(task: Combination, rows: Sequence[RemoteDelta], fan_in: int) -> Combined:
    check_shares(len(rows), task.shares)
    decision = task.rule.decide(None, task.shares)
    assert decision.weights is not None
    weights, dtype = decision.weights.tolist(), rows[0].dtype
    blocks = tree_blocks(len(rows), fan_in)
    level = [
        _add_rows.remote(
            weights[first:last],
            dtype,
            [(row, rows[row].handle.checksums[0]) for row in range(first, last)],
            *(rows[row].handle.refs[0] for row in range(first, last)),
        )
        for first, last in blocks
    ]
    while len(level) > 1:
        blocks = tree_blocks(len(level), fan_in)
        level = [_add_sums.remote(dtype, *level[first:last]) for first, last in blocks]
    value = as_tensor(ray.get(level[0]), dtype)
    vector, state = step_columns(value, task.base, task.server, task.state, task.num_parameters)
    return Combined(vector, state, decision)


def _sharded(task: Combination, rows: Sequence[RemoteDelta], plan: Plan, board: Board) -> Combined:
    check_shares(len(rows), task.shares)
    dtype = rows[0].dtype
    checks = [
        [(row, delta.handle.checksums[s]) for row, delta in enumerate(rows)] for s in range(len(plan.bounds))
    ]
    refs = [[delta.handle.refs[s] for delta in rows] for s in range(len(plan.bounds))]
    gram = None
    if task.rule.basis == "gram":
        parts = [
            _inspect.remote(first // BLOCK, dtype, checks[shard], *refs[shard])
            for shard, (first, _) in enumerate(plan.bounds)
        ]
        while len(parts) > plan.fan_in:
            parts = [_merge.remote(*parts[a:b]) for a, b in tree_blocks(len(parts), plan.fan_in)]
        gram = gram_matrix(merge_parts(ray.get(parts)))
    decision = task.rule.decide(gram, task.shares)
    names = sorted(task.state)
    known = [
        board.pieces(tensor, plan.bounds) for tensor in (task.base, *(task.state[name] for name in names))
    ]
    made = []
    for shard, (first, last) in enumerate(plan.bounds):
        step = (task.rule, decision, task.server, max(0, min(task.num_parameters - first, last - first)))
        call = _combine_shard.options(num_returns=1 + len(names))
        result = call.remote(
            step, dtype, names, checks[shard], *(refs[shard] for refs in known), *refs[shard]
        )
        made.append(result if names else [result])
    vector, *state = (_gather([result[place] for result in made], dtype) for place in range(1 + len(names)))
    for tensor, place in zip((vector, *state), range(1 + len(names)), strict=True):
        board.remember(tensor, plan.bounds, [result[place] for result in made])
    return Combined(vector, dict(zip(names, state, strict=True)), decision)


def _gather(pieces: Sequence[Any], dtype: torch.dtype) -> Tensor:
    return torch.cat([as_tensor(array, dtype) for array in ray.get(list(pieces))])


def _as_remote(row: Tensor, plan: Plan) -> RemoteDelta:
    """A row that is here, put where tasks can read it."""
    arrays = [as_array(row[first:last]) for first, last in plan.bounds]
    pieces = Pieces(-1, plan.bounds, tuple(map(checksum, arrays)), tuple(map(ray.put, arrays)))
    return RemoteDelta(len(row), row.dtype, 0, pieces)


def _is_lost(row: RemoteDelta) -> bool:
    ready, _ = ray.wait(
        list(row.handle.refs), num_returns=len(row.handle.refs), timeout=5.0, fetch_local=True
    )
    if len(ready) < len(row.handle.refs):
        return True
    try:
        ray.get(ready)
    except (ObjectLostError, RayActorError, RayTaskError):
        return True
    return False


def _verify(arrays: Sequence[np.ndarray], checksums: Sequence[int], rows: Sequence[int]) -> None:
    for array, expected, row in zip(arrays, checksums, rows, strict=True):
        if checksum(array) != expected:
            raise DamagedPieceError(row)


# -- tasks: no CPU of their own, because the actors, idle now, hold them all --------------------------------


def _rows(
    dtype: torch.dtype, checks: Sequence[tuple[int, int]], arrays: Sequence[np.ndarray]
) -> list[Tensor]:
    _verify(arrays, [expected for _, expected in checks], [row for row, _ in checks])
    return [as_tensor(array, dtype) for array in arrays]


@ray.remote(num_cpus=0, max_retries=3)
def _add_rows(
    weights: Sequence[float], dtype: torch.dtype, checks: Sequence[tuple[int, int]], *arrays: np.ndarray
) -> np.ndarray:
    rows = _rows(dtype, checks, arrays)
    return as_array(weighted_sum(rows, weights))


@ray.remote(num_cpus=0, max_retries=3)
def _add_sums(dtype: torch.dtype, *arrays: np.ndarray) -> np.ndarray:
    return as_array(weighted_sum([as_tensor(array, dtype) for array in arrays], [1.0] * len(arrays)))


@ray.remote(num_cpus=0, max_retries=3)
def _inspect(
    first_block: int, dtype: torch.dtype, checks: Sequence[tuple[int, int]], *arrays: np.ndarray
) -> GramParts:
    return gram_parts(_rows(dtype, checks, arrays), first_block=first_block)


@ray.remote(num_cpus=0, max_retries=3)
def _merge(*parts: GramParts) -> GramParts:
    return merge_parts(parts)


@ray.remote(num_cpus=0, max_retries=3)
def _combine_shard(
    step: tuple[Rule, Decision, ServerOptimizer, int],
    dtype: torch.dtype,
    names: Sequence[str],
    checks: Sequence[tuple[int, int]],
    base: np.ndarray,
    *arrays: np.ndarray,
) -> Any:
    rule, decision, server, num_parameters = step
    state = {name: as_tensor(array, dtype) for name, array in zip(names, arrays, strict=False)}
    value = rule.combine(_rows(dtype, checks, arrays[len(names) :]), decision)
    vector, state = step_columns(value, as_tensor(base, dtype), server, state, num_parameters)
    made = [as_array(vector), *(as_array(state[name]) for name in names)]
    return made if names else made[0]
