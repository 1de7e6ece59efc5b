"""What the run cost: time by phase and by worker, and bytes sent, round by round."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median

from hqde.reporting.panel import Figure, Key, Panel, Table, colour
from hqde.reporting.record import Round, RunRecord
from hqde.reporting.scales import byte_unit, bytes_text, percent, seconds_text, short
from hqde.reporting.timeline import group_style

KNOWN_PHASES = ("train", "aggregate", "encode", "commit", "evaluate", "checkpoint")
MANY_BARS = 60
MOST_NAMED_WORKERS = 16


def cost_figures(record: RunRecord) -> list[Figure]:
    """Time and bytes per round."""
    figures = [_time(record), _workers_time(record), _workers_parts(record), _bytes(record)]
    return [figure for figure in figures if figure is not None]


def _bars(rounds: Sequence[Round]) -> list[Sequence[Round]]:
    """Neighbouring rounds put together, so that a chart holds at most ``MANY_BARS`` bars."""
    size = -(-len(rounds) // MANY_BARS)
    return [rounds[start : start + size] for start in range(0, len(rounds), size)]


def _named(bar: Sequence[Round]) -> str:
    first, last = bar[0].round_index, bar[-1].round_index
    return f"round {first}" if first == last else f"rounds {first} to {last}, mean"


def _axis(rounds: Sequence[Round]) -> tuple[float, float]:
    return rounds[0].round_index - 0.5, rounds[-1].round_index + 0.5


def _edges(bar: Sequence[Round]) -> tuple[float, float]:
    return bar[0].round_index - 0.42, bar[-1].round_index + 0.42


def _ticks(rounds: Sequence[Round]) -> list[tuple[float, str]] | None:
    few = len(rounds) <= 10
    return [(line.round_index, str(line.round_index)) for line in rounds] if few else None


def _time(record: RunRecord) -> Figure | None:
    rounds = record.rounds
    names = [*KNOWN_PHASES, *sorted({name for line in rounds for name in line.phases} - set(KNOWN_PHASES))]
    names = [name for name in names if any(line.phases.get(name) for line in rounds)]
    rest = [max(0.0, (line.wall_s or 0.0) - sum(line.phases.values())) for line in rounds]
    whole = sum(sum(line.phases.values()) for line in rounds) + sum(rest)
    if whole <= 0:
        return None
    totals = {name: sum(line.phases.get(name, 0.0) for line in rounds) for name in names}
    if sum(rest) > 0.01 * whole:
        totals["other"] = sum(rest)
    order = list(totals)
    of_round = {
        line.round_index: {**line.phases, "other": other} for line, other in zip(rounds, rest, strict=True)
    }
    bars = [
        (bar, {name: fmean(of_round[line.round_index].get(name, 0.0) for line in bar) for name in order})
        for bar in _bars(rounds)
    ]
    tallest = max(sum(parts.values()) for _, parts in bars)
    milli = tallest < 1
    unit = 1e3 if milli else 1.0
    panel = Panel(
        _axis(rounds), (0, 1.05 * tallest * unit), x_label="round", x_ticks=_ticks(rounds),
        y_label=f"time per round ({'ms' if milli else 's'})",
    )  # fmt: skip
    for bar, parts in bars:
        left, right = _edges(bar)
        bottom = 0.0
        for name in order:
            top = bottom + parts[name] * unit
            words = (
                f"{_named(bar)}: {name} {seconds_text(parts[name])} of {seconds_text(sum(parts.values()))}"
            )
            panel.box((left, bottom), (right, top), f"bar {phase_style(name, order)}", words)
            bottom = top
    leading = max(totals, key=lambda name: totals[name])
    verb = {
        "train": "Training",
        "aggregate": "Aggregation",
        "encode": "Encoding",
        "commit": "Committing",
        "evaluate": "Evaluation",
        "checkpoint": "Checkpointing",
    }
    share = percent(totals[leading] / whole, 0)
    title = f"{verb.get(leading, leading)} takes {share} of the {seconds_text(whole)} in rounds"
    legend = tuple(
        Key(phase_style(name, order), "bar", f"{name} {percent(totals[name] / whole)}") for name in order
    )
    rows = tuple((name, seconds_text(totals[name]), percent(totals[name] / whole)) for name in order)
    table = Table("The phases in numbers", ("phase", "total", "share"), rows)
    return Figure(title, panel.render(title), "", legend, table)


def phase_style(name: str, order: Sequence[str]) -> str:
    """A phase's colour; what no phase accounts for is grey."""
    return "many" if name == "other" else colour(order.index(name))


def _workers_time(record: RunRecord) -> Figure | None:
    """Each worker's own seconds per round: a group waits for its slowest."""
    times: dict[int, list[float]] = {}
    for line in record.rounds:
        for row in line.workers:
            if row.seconds is not None:
                times.setdefault(row.worker, []).append(row.seconds)
    if len(times) < 2:
        return None
    means = {worker: fmean(seconds) for worker, seconds in sorted(times.items())}
    usual, slowest = median(means.values()), max(means, key=lambda worker: means[worker])
    unit = 1e3 if max(means.values()) < 1 else 1.0
    few = len(means) <= MOST_NAMED_WORKERS
    panel = Panel(
        (min(means) - 0.5, max(means) + 0.5), (0, 1.05 * max(means.values()) * unit),
        x_label="worker", x_ticks=[(worker, str(worker)) for worker in means] if few else None,
        y_label=f"mean time per round ({'ms' if unit > 1 else 's'})",
    )  # fmt: skip
    group_of = {worker: g for g, group in enumerate(record.groups) for worker in group}
    for worker, seconds in means.items():
        style = group_style(group_of.get(worker, 0), len(record.groups))
        words = f"worker {worker}: {seconds_text(seconds)} per round"
        panel.box((worker - 0.4, 0), (worker + 0.4, seconds * unit), f"bar {style}", words)
    panel.rule((panel.x.start, panel.y(usual * unit)), (panel.x.end, panel.y(usual * unit)), "mean")
    title = "No worker holds the others up: the slowest is within 5\N{NO-BREAK SPACE}% of the median"
    if usual and means[slowest] > 1.05 * usual:
        times_longer = short(means[slowest] / usual, 2)
        title = f"Worker {slowest} is the slowest: {times_longer} times the median worker's time"
    legend = (Key("ink", "dash", f"median worker {seconds_text(usual)}"),)
    return Figure(title, panel.render(title), "Colours are groups, as above.", legend)


def _workers_parts(record: RunRecord) -> Figure | None:
    """What each worker's time goes to: waiting for data, encoding, and computing."""
    sums: dict[int, list[float]] = {}
    for line in record.rounds:
        for row in line.workers:
            if row.seconds is not None and row.data_s is not None:
                parts = sums.setdefault(row.worker, [0.0, 0.0, 0.0, 0.0])
                encode_s = row.encode_s or 0.0
                computing = max(0.0, row.seconds - row.data_s - encode_s)
                for i, seconds in enumerate((computing, row.data_s, encode_s, 1.0)):
                    parts[i] += seconds
    if not sums:
        return None
    names = ("computing", "waiting for data", "encoding")
    means = {worker: [part / parts[3] for part in parts[:3]] for worker, parts in sorted(sums.items())}
    tallest = max(sum(parts) for parts in means.values())
    unit = 1e3 if tallest < 1 else 1.0
    few = len(means) <= MOST_NAMED_WORKERS
    panel = Panel(
        (min(means) - 0.5, max(means) + 0.5), (0, 1.05 * tallest * unit or 1.0),
        x_label="worker", x_ticks=[(worker, str(worker)) for worker in means] if few else None,
        y_label=f"mean time per round ({'ms' if unit > 1 else 's'})",
    )  # fmt: skip
    for worker, parts in means.items():
        bottom = 0.0
        for index, (name, seconds) in enumerate(zip(names, parts, strict=True)):
            top = bottom + seconds * unit
            words = f"worker {worker}: {name} {seconds_text(seconds)} per round"
            panel.box((worker - 0.4, bottom), (worker + 0.4, top), f"bar {colour(index)}", words)
            bottom = top
    whole = sum(sum(parts) for parts in means.values()) or 1.0
    shares = [sum(parts[i] for parts in means.values()) / whole for i in range(3)]
    title = f"Workers wait for data {percent(shares[1], 0)} of their time, and encode {percent(shares[2], 0)}"
    legend = tuple(Key(colour(i), "bar", f"{name} {percent(shares[i])}") for i, name in enumerate(names))
    return Figure(title, panel.render(title), "", legend)


def _bytes(record: RunRecord) -> Figure | None:
    rounds = record.rounds
    sent, dense = sum(line.sent_bytes or 0 for line in rounds), sum(line.dense_bytes or 0 for line in rounds)
    if not sent and not dense:
        return None
    bars = [
        (bar, sum(r.sent_bytes or 0 for r in bar) / len(bar), sum(r.dense_bytes or 0 for r in bar) / len(bar))
        for bar in _bars(rounds)
    ]
    tallest = max(max(s, d) for _, s, d in bars)
    size, unit = byte_unit(tallest)
    panel = Panel(
        _axis(rounds), (0, 1.05 * tallest / size), x_label="round", x_ticks=_ticks(rounds),
        y_label=f"sent per round ({unit})",
    )  # fmt: skip
    for bar, sent_here, dense_here in bars:
        left, right = _edges(bar)
        words = f"{_named(bar)}: {bytes_text(sent_here)} sent, {bytes_text(dense_here)} as plain float32"
        panel.box((left, 0), (right, dense_here / size), "dense", words)
        panel.box((left, 0), (right, sent_here / size), "bar c0", words)
    title = f"Workers sent {bytes_text(sent)} in {len(rounds):,} rounds"
    if dense:
        ratio = f"{short(sent / dense, 2)} times" if abs(sent / dense - 1) > 0.005 else "the same as"
        title += f", {ratio} what plain float32 takes"
    legend = (
        Key("c0", "bar", f"sent {bytes_text(sent)}"),
        Key("dense", "bar", f"plain float32 {bytes_text(dense)}"),
    )
    return Figure(title, panel.render(title), "", legend)
