"""The rounds as the bottom axis of a chart: where each stands, what happened there, and curves over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from hqde.reporting.panel import LEFT, NUM_COLOURS, RIGHT, TOP, WIDTH, Figure, Key, Panel, Table, colour
from hqde.reporting.record import RunRecord
from hqde.reporting.scales import short, span, thin, worth_log

Points = list[tuple[float, float | None]]

# Beyond so many curves the single ones turn faint.
CROWD = 16
MANY_MARKS = 10


@dataclass(frozen=True)
class Series:
    """One curve: its points, its style classes and its name."""

    points: Points
    style: str
    name: str


@dataclass(frozen=True)
class Mark:
    """Something that happened to the whole run, at a place on the axis."""

    x: float
    word: str
    reason: str


@dataclass(frozen=True)
class Timeline:
    """Where each round stands along the bottom, and what happened there."""

    label: str
    positions: tuple[float, ...]
    marks: tuple[Mark, ...]


def timeline(record: RunRecord) -> Timeline:
    """Epochs where they tell the rounds apart, round numbers where they do not."""
    epochs = [line.epoch for line in record.rounds]
    by_epoch = all(a < b for a, b in pairwise(epochs))
    positions = tuple(epochs) if by_epoch else tuple(float(line.round_index) for line in record.rounds)
    return Timeline("epoch" if by_epoch else "round", positions, tuple(_marks(record, positions)))


def _marks(record: RunRecord, positions: Sequence[float]) -> list[Mark]:
    place = {line.round_index: x for x, line in zip(positions, record.rounds, strict=True)}
    marks = []
    for event in record.events:
        x = None if event.round_index is None else place.get(event.round_index)
        if event.worker is None and x is not None and event.kind not in ("rejected", "failed", "cleared"):
            marks.append(Mark(x, event.kind.replace("_", " "), event.reason))
    told = {mark.x for mark in marks if mark.word.startswith("branch")}
    for (_, before), (x, now) in pairwise(zip(positions, record.rounds, strict=True)):
        if len(now.groups) != len(before.groups) and x not in told:
            marks.append(
                Mark(x, f"{len(now.groups)} groups", f"from {len(before.groups)} to {len(now.groups)} groups")
            )
    together: dict[float, dict[str, str]] = {}
    for mark in sorted(marks, key=lambda mark: mark.x):
        together.setdefault(mark.x, {}).setdefault(mark.word, mark.reason)
    return [
        Mark(x, ", ".join(found), "; ".join(reason for reason in found.values() if reason))
        for x, found in together.items()
    ]


def draw_marks(panel: Panel, marks: Sequence[Mark]) -> None:
    """Dashed uprights where something happened; their words stand on top where there is room."""
    free_from = LEFT
    for mark in marks:
        x = panel.x(mark.x)
        panel.add(
            '<g class="mark"><title>{}</title>', f"{mark.word}: {mark.reason}" if mark.reason else mark.word
        )
        panel.rule((x, TOP - 6), (x, panel.y.start), "upright")
        needed = 5.6 * len(mark.word)
        at_end = x + needed > WIDTH - RIGHT
        if len(marks) <= MANY_MARKS and x - (needed if at_end else 0) >= free_from:
            panel.text((x, TOP - 9), mark.word, "event end" if at_end else "event")
            free_from = x + (6 if at_end else needed + 6)
        panel.add("</g>")


def curve_figure(
    title: str, series: Sequence[Series], axis: Timeline, *, y_label: str, percent_y: bool = False,
    allow_log: bool = False, note: str = "", legend: tuple[Key, ...] = (), table: Table | None = None,
    decorate: Callable[[Panel], None] | None = None,
) -> Figure | None:  # fmt: skip
    """One chart of curves over the rounds; ``None`` where there is not a single value to draw."""
    values = [y for curve in series for _, y in curve.points if y is not None]
    if not values:
        return None
    log_y = allow_log and worth_log(values)
    low, high = span(values, floor=0.0)
    if log_y:
        low, high = min(values) / 1.15, max(values) * 1.15
    if percent_y:
        high = min(high, 1.0 + 0.03 * (1.0 - low))
    x = (min(axis.positions), max(axis.positions))
    x = x if x[0] < x[1] else (x[0] - 0.5, x[1] + 0.5)
    panel = Panel(
        x, (low, high), x_label=axis.label, y_label=y_label + (", log scale" if log_y else ""),
        log_y=log_y, percent_y=percent_y, x_ticks=_whole_ticks(axis),
    )  # fmt: skip
    draw_marks(panel, axis.marks)
    for curve in series:
        solo = " solo" if sum(y is not None for _, y in curve.points) == 1 else ""
        panel.line(thin(curve.points), curve.style + solo, curve.name)
    if decorate is not None:
        decorate(panel)
    return Figure(title, panel.render(f"{title} {note}"), note, legend, table)


def _whole_ticks(axis: Timeline) -> list[tuple[float, str]] | None:
    """Every round its own tick where there are few; fractions of a round would mean nothing."""
    if len(axis.positions) <= 8:
        return [(at, short(at)) for at in axis.positions]
    return None


def group_style(group: int, num_groups: int) -> str:
    """A group's colour, or one quiet colour for all where there are too many to tell apart."""
    return colour(group) if num_groups <= NUM_COLOURS else "many"
