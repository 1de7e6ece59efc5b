"""From a run's last state to what it leaves: the ensemble, and the pool it was taken from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hqde.ensemble import Ensemble, FittableCombiner, MeanCombiner
from hqde.rounds.events import Event
from hqde.rounds.experiment import Experiment
from hqde.rounds.members import MemberPool
from hqde.rounds.snapshots import pooled
from hqde.rounds.state import RunState


@dataclass(frozen=True)
class Result:
    """What a run ends with.

    Attributes:
        ensemble: the members, calibrated if asked for.
        state: the engine's last state, with the totals.
        stopped_early: the epoch that was kept, when early stopping ended the run.
        pool: the members and the snapshots beside them, where the ensemble does not have these already;
            combined by the mean.
    """

    ensemble: Ensemble
    state: RunState
    stopped_early: int | None
    pool: Ensemble | None = None


def finish_run(
    experiment: Experiment,
    members: MemberPool,
    state: RunState,
    *,
    efficiency: Mapping[int, float],
    stopped: int | None,
    tell: Callable[[Event], None],
) -> Result:
    """Pour the last weights, or the best, into members; combine and calibrate them on the validation split.

    Args:
        experiment: the run.
        members: models for its groups.
        state: after the last round.
        efficiency: score by worker id.
        stopped: the epoch that was kept, when early stopping ended the run.
        tell: of members that are left out.
    """
    groups, last = state.groups, state.committed if state.best is None else state.best.committed
    pool = None
    epochs: dict[int, int] = {}
    if experiment.snapshots.count:
        all_groups, weights, epochs = pooled(state, groups, last)
        if experiment.snapshots.join:
            groups, last = all_groups, weights
        else:
            pool = members.ensemble(all_groups, weights, efficiency).with_combiner(MeanCombiner())
            _note_epochs(pool, epochs)
    ensemble = members.ensemble(groups, last, efficiency)
    if experiment.drop_outliers:
        kept, dropped = members.sound_members(groups, last)
        ensemble = ensemble.select(kept)
        for reason in dropped:
            tell(Event("dropped", state.round_index, None, reason))
    combiner, rows = experiment.combiner, experiment.splits.validation
    if isinstance(combiner, FittableCombiner):
        ensemble = ensemble.fit_combiner(
            combiner, rows, calibrate=experiment.calibrate, matrix_scaling=experiment.matrix_scaling
        )
    elif experiment.calibrate and experiment.splits.schema.task == "classification":
        ensemble = ensemble.calibrate(rows, matrix_scaling=experiment.matrix_scaling)
    _note_epochs(ensemble, epochs)
    ensemble.to("cpu")
    if pool is not None:
        pool.to("cpu")  # not earlier: the ensemble shares its models, and predicts where they are
    return Result(ensemble, state, stopped, pool)


def _note_epochs(ensemble: Ensemble, epochs: Mapping[int, int]) -> None:
    """Put the epochs of the snapshots among its members into the provenance, by the members' ids."""
    there = {str(i): epochs[i] for i in ensemble.member_ids if i in epochs}
    if there:
        ensemble.provenance = {**ensemble.provenance, "snapshots": there}
