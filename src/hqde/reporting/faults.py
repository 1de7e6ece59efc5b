"""What happened when, to whom, and how far each worker can be relied on."""

from __future__ import annotations

from collections import Counter

from hqde.reporting.panel import NUM_COLOURS, Figure, Key, Panel, Table, colour
from hqde.reporting.record import RunRecord
from hqde.reporting.scales import fixed, percent, short
from hqde.reporting.timeline import CROWD, Points, Series, curve_figure, group_style, timeline

# What can become of an update, from good to bad, with its colour.
STATUSES = (("admitted", "count"), ("left_out", "c4"), ("rejected", "c1"), ("failed", "bad"))
MOST_KINDS = 12
MOST_DOTS = 2000
MOST_NAMED_WORKERS = 16
LEFT = 92.0


def fault_figures(record: RunRecord) -> list[Figure]:
    """Events on the time line, what became of updates, and reliability; empty where all went well."""
    figures = [_events(record), _updates(record), _reliability(record)]
    return [figure for figure in figures if figure is not None]


def _events(record: RunRecord) -> Figure | None:
    """A row for each kind of event, a dot for each."""
    rounds = [line.round_index for line in record.rounds]
    told = [event for event in record.events if event.round_index is not None]
    if not told:
        return None
    counts = Counter(event.kind for event in told)
    kinds = [kind for kind, _ in counts.most_common(MOST_KINDS)]
    low, high = min([0, *rounds]), max([*rounds, *(event.round_index or 0 for event in told)])
    panel = Panel(
        (low - 0.5, high + 0.5), (-0.6, len(kinds) - 0.4), x_label="round", y_label="",
        y_ticks=[(row, kind.replace("_", " ")) for row, kind in enumerate(kinds)], left=LEFT,
        x_ticks=[(r, str(r)) for r in range(low, high + 1)] if high - low <= 10 else None,
    )  # fmt: skip
    places: dict[tuple[int, int], list[str]] = {}
    for event in told[-MOST_DOTS:]:
        if event.kind in kinds:
            who = "" if event.worker is None else f"worker {event.worker}: "
            key = (event.round_index or 0, kinds.index(event.kind))
            places.setdefault(key, []).append(f"{who}{event.reason}")
    for (at, row), reasons in places.items():
        more = f" and {len(reasons) - 3} more" if len(reasons) > 3 else ""
        words = f"round {at}, {kinds[row].replace('_', ' ')}: {'; '.join(reasons[:3])}{more}"
        bad = kinds[row] in ("rejected", "failed", "excluded", "alert", "skipped")
        panel.dot(at, row, "bad" if bad else colour(row), words, radius=3.5 if len(reasons) == 1 else 5.0)
    most, count = counts.most_common(1)[0]
    title = f"{len(told):,} event{'s' if len(told) != 1 else ''}"
    kind = f"'{most.replace('_', ' ')}'"
    title += f" {kind}" if len(counts) == 1 else f", most of them {kind} ({count:,})"
    return Figure(title, panel.render(title), "A larger dot is more than one event.")


def _updates(record: RunRecord) -> Figure | None:
    """Each worker's updates: what became of them."""
    found: dict[int, Counter[str]] = {}
    for line in record.rounds:
        for row in line.workers:
            found.setdefault(row.worker, Counter())[row.status] += 1
    if not any(counts.keys() - {"admitted", ""} for counts in found.values()):
        return None
    workers = sorted(found)
    few = len(workers) <= MOST_NAMED_WORKERS
    panel = Panel(
        (workers[0] - 0.5, workers[-1] + 0.5), (0.0, 1.0), x_label="worker", y_label="updates",
        percent_y=True, x_ticks=[(worker, str(worker)) for worker in workers] if few else None,
    )  # fmt: skip
    shown = {status for counts in found.values() for status in counts}
    for worker in workers:
        bottom, whole = 0.0, sum(found[worker].values())
        for status, style in STATUSES:
            count = found[worker][status]
            if count:
                top = bottom + count / whole
                words = f"worker {worker}: {count:,} of {whole:,} {status.replace('_', ' ')}"
                panel.box((worker - 0.4, bottom), (worker + 0.4, top), f"bar {style}", words)
                bottom = top
    reliability = _last_reliability(record)
    bad = {w: found[w]["rejected"] + found[w]["failed"] + found[w]["left_out"] for w in workers}
    worst = max(bad, key=lambda worker: bad[worker])
    share = percent(bad[worst] / sum(found[worst].values()), 0)
    title = f"Worker {worst} lost the most: {share} of its updates did not count"
    rows = tuple(
        (
            str(worker),
            *(f"{found[worker][status]:,}" for status, _ in STATUSES),
            fixed(reliability.get(worker)),
        )
        for worker in workers
    )
    head = ("worker", *(status.replace("_", " ") for status, _ in STATUSES), "reliability")
    legend = tuple(
        Key(style, "bar", status.replace("_", " ")) for status, style in STATUSES if status in shown
    )
    note = "Left out: the rule gave it no weight. Rejected: no rule saw it. Failed: none came."
    return Figure(title, panel.render(title), note, legend, Table("The updates in numbers", head, rows))


def _reliability(record: RunRecord) -> Figure | None:
    """Reliability round by round, where it is remembered."""
    last = _last_reliability(record)
    if not last:
        return None
    axis, num_groups = timeline(record), len(record.groups)
    group_of = {worker: g for g, group in enumerate(record.groups) for worker in group}
    faint = " faint" if len(record.worker_ids) > CROWD else ""
    points: dict[int, Points] = {worker: [] for worker in record.worker_ids}
    for x, line in zip(axis.positions, record.rounds, strict=True):
        here = {row.worker: row.reliability for row in line.workers}
        for worker, curve in points.items():
            curve.append((x, here.get(worker)))
    series = [
        Series(curve, group_style(group_of.get(worker, 0), num_groups) + faint, f"worker {worker}")
        for worker, curve in points.items()
    ]
    lowest = min(last, key=lambda worker: last[worker])
    title = (
        f"Worker {lowest} is relied on least: {short(last[lowest])}, the best at {short(max(last.values()))}"
    )
    keys = (Key(colour(g), "line", f"group {g}") for g in range(num_groups))
    legend = tuple(keys) if num_groups <= NUM_COLOURS else ()
    return curve_figure(title, series, axis, y_label="reliability", legend=legend)


def _last_reliability(record: RunRecord) -> dict[int, float]:
    """Of each worker, as it was remembered last."""
    rows = (row for line in record.rounds for row in line.workers)
    return {row.worker: row.reliability for row in rows if row.reliability is not None}
