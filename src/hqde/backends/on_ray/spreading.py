"""Aggregation plans carried out on a cluster: what is added up where, and what follows when it is lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import ray
import torch
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError
from torch import Tensor

from hqde.aggregation import (
    BLOCK,
    Combination,
    Combined,
    Delta,
    RemoteDelta,
    Update,
    check_shares,
    combine,
    gram_matrix,
    merge_parts,
    norm_of,
    step_columns,
)
from hqde.backends.on_ray import reducing
from hqde.backends.on_ray.board import Board
from hqde.backends.on_ray.failures import cause_of
from hqde.backends.on_ray.reducing import DamagedPieceError, verify
from hqde.backends.on_ray.shipping import as_array, as_delta, as_tensor, checksum
from hqde.backends.on_ray.worker_actor import Pieces
from hqde.errors import WorkerError
from hqde.topology import Plan, tree_blocks

MAX_ATTEMPTS = 4


class Hands(Protocol):
    """Processes out there that carry out the functions of ``reducing``, and workers that hand in updates."""

    def submit(self, place: int, function: Callable[..., Any], *arguments: Any, num_returns: int = 1) -> Any:
        """Run a function in one of the processes; neighbouring places are on different nodes.

        Returns:
            a reference, or a list of ``num_returns`` of them if that is more than one.
        """
        ...

    def roll_call(self) -> None:
        """Look who is still alive."""
        ...

    def send_again(self, worker: int) -> Update:
        """A worker's last update once more."""
        ...


def spread(task: Combination, plan: Plan, board: Board, workers: Sequence[int], hands: Hands) -> Combined:
    """Carry out a combination by a plan.

    Args:
        task: rows are remote, or here.
        plan: of the group.
        board: knows where the pieces of vectors are.
        workers: who handed in each row.
        hands: who does the work.

    Raises:
        WorkerError: a row stays damaged or lost however often it is asked for.
    """
    rows = [row if isinstance(row, RemoteDelta) else _as_remote(row, plan) for row in task.rows]
    for _ in range(MAX_ATTEMPTS):
        try:
            if plan.kind == "sharded":
                return _sharded(task, rows, plan, board, hands)
            if plan.kind == "tree":
                return _tree(task, rows, plan.fan_in, hands)
            return combine(replace(task, rows=[fetch(row, position) for position, row in enumerate(rows)]))
        except (RayTaskError, DamagedPieceError, ObjectLostError, RayActorError) as error:
            cause = cause_of(error) if isinstance(error, RayTaskError) else error
            if isinstance(cause, DamagedPieceError):
                bad = [cause.row]
            elif isinstance(cause, ObjectLostError | RayActorError):
                hands.roll_call()
                board.lose(task.base, *task.state.values())
                bad = [position for position, row in enumerate(rows) if _is_lost(row)]
            else:
                raise cause from None
            for position in bad:
                rows[position] = _again(task.rows[position], workers[position], plan, hands)
    raise WorkerError(f"updates of the round arrive damaged or not at all, after {MAX_ATTEMPTS} attempts")


def _again(row: Delta, worker: int, plan: Plan, hands: Hands) -> RemoteDelta:
    """A row that was damaged or lost: from its worker, or from here if that is where it was made."""
    if isinstance(row, Tensor):
        return _as_remote(row, plan)
    again = hands.send_again(worker).delta
    assert isinstance(again, RemoteDelta)
    return again


def fetch(delta: Delta, row: int = 0) -> Tensor:
    """A delta in this process, in the store's memory when it is in one piece: never write to it.

    Raises:
        DamagedPieceError: it is not what was sent.
    """
    if isinstance(delta, Tensor):
        return delta
    arrays = ray.get(list(delta.handle.refs))
    verify(arrays, delta.handle.checksums, [row] * len(arrays))
    pieces = [as_delta(array, delta.dtype) for array in arrays]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _tree(task: Combination, rows: Sequence[RemoteDelta], fan_in: int, hands: Hands) -> Combined:
    check_shares(len(rows), task.shares)
    decision = task.rule.decide(None, task.shares)
    assert decision.weights is not None
    weights, dtype = decision.weights.tolist(), rows[0].dtype
    level = [
        hands.submit(
            place,
            reducing.add_rows,
            weights[first:last],
            dtype,
            [(row, rows[row].handle.checksums[0]) for row in range(first, last)],
            *(rows[row].handle.refs[0] for row in range(first, last)),
        )
        for place, (first, last) in enumerate(tree_blocks(len(rows), fan_in))
    ]
    while len(level) > 1:
        level = [
            hands.submit(place, reducing.add_sums, dtype, *level[first:last])
            for place, (first, last) in enumerate(tree_blocks(len(level), fan_in))
        ]
    value = as_tensor(ray.get(level[0]), dtype)
    vector, state = step_columns(value, task.base, task.server, task.state, task.num_parameters)
    return Combined(vector, state, decision)


def _sharded(
    task: Combination, rows: Sequence[RemoteDelta], plan: Plan, board: Board, hands: Hands
) -> Combined:
    check_shares(len(rows), task.shares)
    dtype, shards = rows[0].dtype, range(len(plan.bounds))
    checks = [[(row, delta.handle.checksums[shard]) for row, delta in enumerate(rows)] for shard in shards]
    refs = [[delta.handle.refs[shard] for delta in rows] for shard in shards]
    gram = None
    if task.rule.basis == "gram":
        parts = [
            hands.submit(
                shard, reducing.inspect, plan.bounds[shard][0] // BLOCK, dtype, checks[shard], *refs[shard]
            )
            for shard in shards
        ]
        while len(parts) > plan.fan_in:
            blocks = enumerate(tree_blocks(len(parts), plan.fan_in))
            parts = [hands.submit(place, reducing.merge, *parts[a:b]) for place, (a, b) in blocks]
        gram = gram_matrix(merge_parts(ray.get(parts)))
    decision = task.rule.decide(gram, task.shares)
    names = sorted(task.state)
    known = [board.pieces(vector, plan.bounds) for vector in (task.base, *(task.state[n] for n in names))]
    made = []
    for shard, (first, last) in enumerate(plan.bounds):
        step = (task.rule, decision, task.server, max(0, min(task.num_parameters - first, last - first)))
        there = [pieces[shard] for pieces in known]
        result = hands.submit(
            shard,
            reducing.combine_shard,
            step,
            dtype,
            names,
            checks[shard],
            *there,
            *refs[shard],
            num_returns=1 + len(names),
        )
        made.append(result if names else [result])
    pieces = [[result[place] for result in made] for place in range(1 + len(names))]
    vector, *state = (_gather(those, dtype) for those in pieces)
    for tensor, those in zip((vector, *state), pieces, strict=True):
        board.remember(tensor, plan.bounds, those)
    return Combined(vector, dict(zip(names, state, strict=True)), decision)


def _gather(pieces: Sequence[Any], dtype: torch.dtype) -> Tensor:
    return torch.cat([as_tensor(array, dtype) for array in ray.get(list(pieces))])


def _as_remote(row: Tensor, plan: Plan) -> RemoteDelta:
    """A row that is here, put where others can read it."""
    arrays = [as_array(row[first:last]) for first, last in plan.bounds]
    pieces = Pieces(-1, plan.bounds, tuple(map(checksum, arrays)), tuple(map(ray.put, arrays)))
    return RemoteDelta(len(row), row.dtype, 0, norm_of(row), pieces)


def _is_lost(row: RemoteDelta) -> bool:
    refs = list(row.handle.refs)
    ready, _ = ray.wait(refs, num_returns=len(refs), timeout=5.0)
    if len(ready) < len(refs):
        return True
    try:
        ray.get(ready)
    except (ObjectLostError, RayActorError, RayTaskError):
        return True
    return False
