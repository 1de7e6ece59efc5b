"""The engine's state between two rounds: what a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

from hqde.aggregation import NormState, ReliabilityState, ServerState
from hqde.balance import BalanceState
from hqde.checkpoints import Bundle
from hqde.compression import Downlink
from hqde.errors import CheckpointError
from hqde.rounds.events import Totals
from hqde.topology import Groups
from hqde.training import WorkerState
from hqde.weights import Weights


@dataclass(frozen=True)
class Best:
    """The best ensemble seen, for early stopping.

    Attributes:
        loss: its validation loss.
        epoch: when.
        committed: its weights, by group.
    """

    loss: float
    epoch: int
    committed: tuple[Weights, ...]


@dataclass(frozen=True)
class Snapshot:
    """What the groups had committed after an epoch, kept as members.

    Attributes:
        epoch: when, counted from 1.
        committed: the weights, by group.
    """

    epoch: int
    committed: tuple[Weights, ...]


@dataclass(frozen=True)
class RunState:
    """Everything that decides how a run goes on.

    Attributes:
        round_index: rounds completed.
        groups: who stood together in the last round.
        committed: each group's weights.
        server: each group's server-optimizer state.
        fresh: workers whose optimizer must start anew because their last update was refused.
        trained: workers that have trained; those who have not own no buffers yet.
        excluded: workers that failed too often and get no more orders.
        owed: what a group's workers have not been sent yet of its weights, by group; error feedback's.
        downlinks: how workers get from the last round's start to the next, by worker; not in checkpoints.
        norms: the norm bound's state, by group; empty without one.
        reliability: what is remembered of each worker's updates; empty where nothing is.
        balance: what is known of the workers' speed.
        barren: rounds in a row without a single usable update.
        best: for early stopping.
        snapshots: kept so far, the oldest first.
        totals: what adds up.
    """

    round_index: int
    groups: Groups
    committed: tuple[Weights, ...]
    server: tuple[ServerState, ...]
    fresh: frozenset[int] = frozenset()
    trained: frozenset[int] = frozenset()
    excluded: frozenset[int] = frozenset()
    owed: Mapping[int, Tensor] = field(default_factory=dict)
    downlinks: Mapping[int, Downlink] = field(default_factory=dict)
    norms: Mapping[int, NormState] = field(default_factory=dict)
    reliability: ReliabilityState = field(default_factory=dict)
    balance: BalanceState = BalanceState()
    barren: int = 0
    best: Best | None = None
    snapshots: tuple[Snapshot, ...] = ()
    totals: Totals = field(default_factory=Totals)

    def committed_for(self, worker: int) -> Weights:
        """The weights last committed for a worker's group; a worker in no group yet follows the first."""
        own = (w for g, w in zip(self.groups, self.committed, strict=True) if worker in g)
        return next(own, self.committed[0])

    def exact_for(self, worker: int) -> Weights:
        """The same, with what the group's workers have not been sent yet."""
        own = next((i for i, group in enumerate(self.groups) if worker in group), 0)
        weights = self.committed[own]
        return weights if own not in self.owed else paid(weights, self.owed[own])


def paid(weights: Weights, owed: Tensor) -> Weights:
    """Weights with what error feedback owed: the first ``len(owed)`` of their coordinates."""
    vector = weights.vector.clone()
    vector[: len(owed)] += owed
    return replace(weights, vector=vector)


def pack_state(
    state: RunState, workers: Mapping[int, WorkerState]
) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """A run's state as the manifest and tensors of a bundle."""
    tensors: dict[str, dict[str, Tensor]] = {"groups": {}}
    for index, (weights, server) in enumerate(zip(state.committed, state.server, strict=True)):
        tensors["groups"] |= _pack_weights(f"{index}", weights)
        tensors["groups"] |= {f"{index}.server.{key}": value for key, value in server.items()}
        if index in state.owed:
            tensors["groups"][f"{index}.owed"] = state.owed[index]
    judging = {f"{i}.{name}": value for i, norms in state.norms.items() for name, value in norms.items()}
    judging |= {f"reliability.{name}": value for name, value in state.reliability.items()}
    if judging:
        tensors["judging"] = judging
    if state.best is not None:
        tensors["best"] = {}
        for index, weights in enumerate(state.best.committed):
            tensors["best"] |= _pack_weights(f"{index}", weights)
    for place, snapshot in enumerate(state.snapshots):
        tensors[f"snapshot-{place:03d}"] = {}
        for index, weights in enumerate(snapshot.committed):
            tensors[f"snapshot-{place:03d}"] |= _pack_weights(f"{index}", weights)
    for worker, own in workers.items():
        tensors[f"worker-{worker:03d}"] = own.tensors
    manifest = {
        "round_index": state.round_index,
        "groups": [list(group) for group in state.groups],
        "fresh": sorted(state.fresh),
        "trained": sorted(state.trained),
        "excluded": sorted(state.excluded),
        "balance": state.balance.to_dict(),
        "barren": state.barren,
        "best": None if state.best is None else {"loss": state.best.loss, "epoch": state.best.epoch},
        "snapshots": [snapshot.epoch for snapshot in state.snapshots],
        "totals": asdict(state.totals),
        "efficiency": {str(worker): own.efficiency for worker, own in workers.items()},
    }
    return manifest, tensors


def unpack_state(bundle: Bundle) -> tuple[RunState, dict[int, WorkerState]]:
    """The inverse of ``pack_state``.

    Raises:
        CheckpointError: something a run needs is not in the bundle.
    """
    manifest, tensors = bundle.manifest, bundle.tensors
    try:
        groups = tuple(tuple(group) for group in manifest["groups"])
        committed = tuple(_unpack_weights(str(i), tensors["groups"]) for i in range(len(groups)))
        server = tuple(
            {
                name.removeprefix(f"{i}.server."): value
                for name, value in tensors["groups"].items()
                if name.startswith(f"{i}.server.")
            }
            for i in range(len(groups))
        )
        best = manifest["best"]
        if best is not None:
            count = len({name.partition(".")[0] for name in tensors["best"]})
            kept = tuple(_unpack_weights(str(i), tensors["best"]) for i in range(count))
            best = Best(best["loss"], best["epoch"], kept)
        snapshots = tuple(
            Snapshot(
                epoch, tuple(_unpack_weights(str(i), tensors[name]) for i in range(len(tensors[name]) // 2))
            )
            for name, epoch in ((f"snapshot-{i:03d}", e) for i, e in enumerate(manifest.get("snapshots", [])))
        )
        owed = {
            int(name.removesuffix(".owed")): value
            for name, value in tensors["groups"].items()
            if name.endswith(".owed")
        }
        norms: dict[int, NormState] = {}
        reliability: ReliabilityState = {}
        for name, value in tensors.get("judging", {}).items():
            whose, _, key = name.partition(".")
            (reliability if whose == "reliability" else norms.setdefault(int(whose), {}))[key] = value
        workers = {
            int(worker): WorkerState(tensors[f"worker-{int(worker):03d}"], efficiency)
            for worker, efficiency in manifest["efficiency"].items()
        }
        state = RunState(
            round_index=manifest["round_index"],
            groups=groups,
            committed=committed,
            server=server,
            fresh=frozenset(manifest["fresh"]),
            trained=frozenset(manifest["trained"]),
            excluded=frozenset(manifest["excluded"]),
            owed=owed,
            norms=norms,
            reliability=reliability,
            balance=BalanceState.from_dict(manifest["balance"]),
            barren=manifest["barren"],
            best=best,
            snapshots=snapshots,
            totals=Totals(**manifest["totals"]),
        )
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"the checkpoint lacks {error}; it was written by another version") from error
    return state, workers


def _pack_weights(prefix: str, weights: Weights) -> dict[str, Tensor]:
    return {f"{prefix}.vector": weights.vector, f"{prefix}.integers": weights.integers}


def _unpack_weights(prefix: str, tensors: Mapping[str, Tensor]) -> Weights:
    return Weights(tensors[f"{prefix}.vector"], tensors[f"{prefix}.integers"])
