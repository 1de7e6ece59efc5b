"""Curves of the workers: training loss, training accuracy, learning rate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import fmean, median

from hqde.reporting.panel import NUM_COLOURS, TOP, Figure, Key, Panel, colour
from hqde.reporting.record import RunRecord, WorkerRound
from hqde.reporting.scales import percent, short
from hqde.reporting.timeline import CROWD, Points, Series, Timeline, curve_figure, group_style, timeline


def worker_figures(record: RunRecord) -> list[Figure]:
    """What the workers did, round by round."""
    axis = timeline(record)
    figures = [_training_loss(record, axis), _training_accuracy(record, axis), _learning_rate(record, axis)]
    return [figure for figure in figures if figure is not None]


def _worker_legend(record: RunRecord) -> tuple[Key, ...]:
    groups, crowd = record.groups, len(record.worker_ids) > CROWD
    if len(groups) > NUM_COLOURS:
        return (Key("many", "line", "one worker"), Key("ink", "strong", "mean of all workers"))
    if crowd:
        return tuple(
            Key(colour(g), "line", f"group {g} ({len(groups[g])} workers)") for g in range(len(groups))
        )
    return tuple(Key(colour(g), "line", f"group {g}: {_listed(groups[g])}") for g in range(len(groups)))


def _listed(workers: Sequence[int]) -> str:
    if not workers:
        return "no workers"
    if len(workers) == 1:
        return f"worker {workers[0]}"
    consecutive = len(workers) > 2 and list(workers) == list(range(workers[0], workers[0] + len(workers)))
    return "workers " + (f"{workers[0]} to {workers[-1]}" if consecutive else ", ".join(map(str, workers)))


def _worker_series(
    record: RunRecord, axis: Timeline, value: Callable[[WorkerRound], float | None]
) -> tuple[list[Series], dict[int, Points]]:
    """One curve per worker, and in a crowd the mean of each group (of all, with too many groups)."""
    group_of = {worker: g for g, group in enumerate(record.groups) for worker in group}
    num_groups = len(record.groups)
    curves: dict[int, Points] = {worker: [] for worker in record.worker_ids}
    for x, line in zip(axis.positions, record.rounds, strict=True):
        here = {row.worker: value(row) for row in line.workers}
        for worker, points in curves.items():
            points.append((x, here.get(worker)))
    faint = " faint" if len(curves) > CROWD else ""
    series = [
        Series(points, group_style(group_of.get(worker, 0), num_groups) + faint, f"worker {worker}")
        for worker, points in curves.items()
    ]
    if num_groups > NUM_COLOURS:
        means = _mean_points(list(curves.values()), axis)
        series.append(Series(means, "ink strong", "mean of all workers"))
    elif faint:
        for g, group in enumerate(record.groups):
            means = _mean_points([curves[worker] for worker in group if worker in curves], axis)
            series.append(Series(means, f"{colour(g)} strong", f"mean of group {g}"))
    return series, curves


def _mean_points(curves: Sequence[Points], axis: Timeline) -> Points:
    means: Points = []
    for i, x in enumerate(axis.positions):
        present = [y for points in curves if (y := points[i][1]) is not None]
        means.append((x, fmean(present) if present else None))
    return means


def _training_loss(record: RunRecord, axis: Timeline) -> Figure | None:
    series, curves = _worker_series(record, axis, lambda row: row.loss)
    last = [y for points in curves.values() for _, y in points[-1:] if y is not None]
    first = [y for points in curves.values() for _, y in points[:1] if y is not None]
    title = "The workers' training loss"
    if first and last and len(record.rounds) > 1:
        went = "falls" if median(last) < median(first) else "does not fall"
        start, end = short(median(first)), short(median(last))
        title = f"Training loss {went}: {start} in the first round, {end} in the last (median worker)"
    bad = [
        (x, row, line)
        for x, line in zip(axis.positions, record.rounds, strict=True)
        for row in line.workers
        if row.status in ("rejected", "failed")
    ]
    reasons = {(e.round_index, e.worker): e.reason for e in record.events}

    def crosses(panel: Panel) -> None:
        for x, row, line in bad:
            high = panel.y(row.loss) if row.loss is not None else TOP + 4
            reason = reasons.get((line.round_index, row.worker), "")
            words = f"round {line.round_index}: worker {row.worker} {row.status}"
            panel.cross((panel.x(x), high), "bad", f"{words}: {reason}" if reason else words)

    legend = _worker_legend(record) + (
        (Key("bad", "cross", "update rejected or worker failed"),) if bad else ()
    )
    note = "Each worker's mean loss over its own batches in the round."
    return curve_figure(
        title,
        series,
        axis,
        y_label="training loss",
        allow_log=True,
        note=note,
        legend=legend,
        decorate=crosses,
    )


def _training_accuracy(record: RunRecord, axis: Timeline) -> Figure | None:
    series, curves = _worker_series(record, axis, lambda row: row.accuracy)
    last = [y for points in curves.values() for _, y in points[-1:] if y is not None]
    title = "The workers' training accuracy"
    if last:
        reach = f"{percent(min(last))} to {percent(max(last))}"
        title = f"In the last round the workers get {reach} of their own batches right"
        if len(last) == 1:
            title = f"In the last round the worker gets {percent(last[0])} of its own batches right"
    note = "Counted while training, with augmentation, dropout and moving weights: lower than afterwards."
    legend = _worker_legend(record)
    return curve_figure(
        title, series, axis, y_label="training accuracy", percent_y=True, note=note, legend=legend
    )


def _learning_rate(record: RunRecord, axis: Timeline) -> Figure | None:
    series, curves = _worker_series(record, axis, lambda row: row.learning_rate)
    middle = [
        (x, median(present))
        for i, x in enumerate(axis.positions)
        if (present := [y for points in curves.values() if (y := points[i][1]) is not None])
    ]
    title = "The workers' learning rates"
    if middle:
        peak_x, peak = max(middle, key=lambda point: point[1])
        end = short(middle[-1][1])
        title = f"The learning rate peaks at {short(peak)} in {axis.label} {short(peak_x)} and ends at {end}"
        restarts = _restarts([y for _, y in middle])
        if restarts:
            title += f"; it restarts in {axis.label} {', '.join(short(middle[i][0]) for i in restarts[:3])}"
    return curve_figure(title, series, axis, y_label="learning rate", legend=_worker_legend(record))


def _restarts(rates: Sequence[float]) -> list[int]:
    """Where a rate that had been falling jumps up by a fifth or more."""
    found, falling = [], False
    for i, (before, now) in enumerate(pairwise(rates), start=1):
        if falling and now > 1.2 * before:
            found.append(i)
        falling = now < before
    return found
