"""Curves on the validation split: the ensemble against its members, and how far the members differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isclose
from statistics import fmean

from hqde.reporting.panel import NUM_COLOURS, Figure, Key, Table, colour
from hqde.reporting.record import MemberScore, RunRecord, ValidationScore
from hqde.reporting.scales import fixed, percent, seconds_text, short
from hqde.reporting.timeline import CROWD, Points, Series, Timeline, curve_figure, group_style, timeline


def validation_figures(record: RunRecord) -> list[Figure]:
    """The ensemble's loss and quality, and the effective number of members."""
    axis = timeline(record)
    figures = [
        _validation_loss(record, axis),
        _validation_quality(record, axis),
        _effective_members(record, axis),
    ]
    return [figure for figure in figures if figure is not None]


def _member_legend(record: RunRecord, *first: Key) -> tuple[Key, ...]:
    groups = record.groups
    if len(groups) > NUM_COLOURS:
        return (*first, Key("many", "line", f"each of {len(groups)} members"))
    return (*first, *(Key(colour(g), "line", f"member {g}") for g in range(len(groups))))


def _validation_series(
    record: RunRecord,
    axis: Timeline,
    whole: Callable[[ValidationScore], float | None],
    part: Callable[[MemberScore], float | None],
) -> tuple[list[Series], Points]:
    ensemble: Points = []
    members: dict[int, Points] = {}
    for x, line in zip(axis.positions, record.rounds, strict=True):
        if line.validation is not None:
            ensemble.append((x, whole(line.validation)))
            for score in line.validation.members:
                members.setdefault(score.member, []).append((x, part(score)))
    num_groups = len(record.groups)
    faint = " faint" if len(members) > CROWD else ""
    series = [
        Series(points, group_style(m, num_groups) + faint, f"member {m}")
        for m, points in sorted(members.items())
    ]
    return [*series, Series(ensemble, "ink strong", "ensemble")], ensemble


def _against_members(whole: float, parts: Sequence[float], *, lower_is_better: bool) -> str:
    """The words that compare the ensemble's last figure with its members'."""
    if len(parts) < 2:
        return ""
    better = sum((whole < part) if lower_is_better else (whole > part) for part in parts)
    side = "below" if lower_is_better else "above"
    if better == len(parts):
        return f", {side} every member's"
    return f", {side} that of {better or 'none'} of its {len(parts)} members"


def _validation_loss(record: RunRecord, axis: Timeline) -> Figure | None:
    if all(_is_squared_error(line.validation) for line in record.rounds if line.validation is not None):
        return None  # the RMSE's chart shows it
    series, ensemble = _validation_series(record, axis, lambda score: score.loss, lambda score: score.nll)
    present = [(x, y) for x, y in ensemble if y is not None]
    if not present:
        return None
    last, score = present[-1][1], record.last_validation
    title = f"The ensemble's validation NLL ends at {short(last)}"
    if score is not None:
        title += _against_members(
            last, [m.nll for m in score.members if m.nll is not None], lower_is_better=True
        )
    best_x, best = min(present, key=lambda point: point[1])
    if last - best > 0.1 * abs(best) and len(present) > 2:
        title += f"; it was lowest in {axis.label} {short(best_x)} ({short(best)}), so the run overfits"
    legend = _member_legend(record, Key("ink", "strong", "ensemble"))
    return curve_figure(
        title,
        series,
        axis,
        y_label="validation NLL (nats)",
        allow_log=True,
        legend=legend,
    )


def _is_squared_error(score: ValidationScore) -> bool:
    """Whether the loss only repeats the RMSE."""
    return (
        score.rmse is not None and score.loss is not None and isclose(score.loss, score.rmse**2, rel_tol=1e-3)
    )


def _validation_quality(record: RunRecord, axis: Timeline) -> Figure | None:
    regression = record.task == "regression"
    if regression:
        series, ensemble = _validation_series(record, axis, lambda s: s.rmse, lambda s: s.rmse)
    else:
        series, ensemble = _validation_series(record, axis, lambda s: s.accuracy, lambda s: s.accuracy)
    last = next((y for _, y in reversed(ensemble) if y is not None), None)
    if last is None:
        return None
    score = record.last_validation
    parts = [m.rmse if regression else m.accuracy for m in score.members] if score else []
    compared = _against_members(last, [p for p in parts if p is not None], lower_is_better=regression)
    words = f"RMSE ends at {short(last)}" if regression else f"accuracy ends at {percent(last)}"
    return curve_figure(
        f"The ensemble's validation {words}{compared}",
        series, axis, y_label="validation RMSE (target units)" if regression else "validation accuracy",
        percent_y=not regression, allow_log=regression,
        legend=_member_legend(record, Key("ink", "strong", "ensemble")),
    )  # fmt: skip


def _effective_members(record: RunRecord, axis: Timeline) -> Figure | None:
    points: Points = [
        (x, line.validation.effective_members)
        for x, line in zip(axis.positions, record.rounds, strict=True)
        if line.validation is not None
    ]
    last = next((y for _, y in reversed(points) if y is not None), None)
    if last is None or max(len(line.groups) for line in record.rounds) < 2:
        return None
    title = f"The {len(record.groups)} members end up predicting like {short(last)} different ones"
    note = (
        "Effective members: 1 when all members predict the same, their number when they share nothing "
        "(exponential of the entropy of the members' overlap)."
    )
    return curve_figure(
        title,
        [Series(points, "ink strong", "effective members")],
        axis,
        y_label="effective members",
        note=note,
    )


def rounds_table(record: RunRecord, limit: int = 40) -> Table:
    """The rounds in numbers, evenly thinned where there are many; the last one is always there."""
    step = -(-len(record.rounds) // limit)
    chosen = [line for i, line in enumerate(reversed(record.rounds)) if i % step == 0][::-1]
    quality = "validation RMSE" if record.task == "regression" else "validation accuracy"
    rows = []
    for line in chosen:
        losses = [row.loss for row in line.workers if row.loss is not None]
        score = line.validation
        figure = None if score is None else (score.rmse if record.task == "regression" else score.accuracy)
        rows.append(
            (
                str(line.round_index),
                short(line.epoch),
                str(len(line.groups)),
                fixed(fmean(losses) if losses else None),
                fixed(score.loss if score else None),
                fixed(figure) if record.task == "regression" else percent(figure),
                seconds_text(line.wall_s),
            )
        )
    every = "" if step == 1 else f" (one of every {step})"
    head = ("round", "epoch", "groups", "mean training loss", "validation loss", quality, "wall time")
    return Table(f"The rounds in numbers{every}", head, tuple(rows))
