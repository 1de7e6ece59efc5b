"""What the history says of each worker's round."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from hqde.backends import Failure, Outcome
from hqde.rounds.commit import Commit
from hqde.rounds.events import WorkerRecord
from hqde.topology import Groups


def worker_records(
    outcomes: Sequence[Outcome], groups: Groups, commits: Sequence[Commit], scores: Mapping[int, float]
) -> tuple[WorkerRecord, ...]:
    """One record for each outcome.

    Args:
        outcomes: of the round.
        groups: who stood together.
        commits: how each group's round ended.
        scores: reliability after the round, by worker id; empty where nothing is remembered.
    """
    return tuple(_record(outcome, groups, commits, scores) for outcome in outcomes)


def _record(
    outcome: Outcome, groups: Groups, commits: Sequence[Commit], scores: Mapping[int, float]
) -> WorkerRecord:
    worker = outcome.worker_id
    group = next(i for i, members in enumerate(groups) if worker in members)
    reliability = scores.get(worker)
    if isinstance(outcome, Failure):
        return WorkerRecord(
            worker, group, None, None, None, 0, 0.0, None, "failed", outcome.reason, reliability=reliability
        )
    commit = commits[group]
    rejected = {r.worker_id: r.reason for r in commit.rejected}
    left_out = {r.worker_id: r.reason for r in commit.left_out}
    status = "rejected" if worker in rejected else "left_out" if worker in left_out else "admitted"
    return WorkerRecord(
        worker=worker,
        group=group,
        loss=outcome.loss if math.isfinite(outcome.loss) else None,
        accuracy=outcome.accuracy,
        lr=outcome.learning_rate,
        samples=outcome.num_samples,
        seconds=outcome.seconds,
        efficiency=outcome.efficiency,
        status=status,
        reason=(rejected | left_out).get(worker, ""),
        weight=commit.row_weights.get(worker),
        reliability=reliability,
        outliers={
            name: score if math.isfinite(score) else None
            for name, score in commit.outliers.get(worker, {}).items()
        },
        data_s=outcome.data_s,
        encode_s=outcome.encode_s,
        cpu_s=outcome.cpu_s,
        peak_rss_bytes=outcome.peak_rss_bytes,
    )
