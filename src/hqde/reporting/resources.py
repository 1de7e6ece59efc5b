"""The machine over time, with the rounds and the events on the time line."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import pairwise
from statistics import median

from hqde.reporting.panel import TOP, Figure, Key, Panel, colour
from hqde.reporting.record import Event, ResourceSample, RunRecord
from hqde.reporting.scales import byte_unit, bytes_text, percent, seconds_text, short
from hqde.reporting.timeline import Mark, Series, Timeline, curve_figure

MOST_NODES = 8  # with a curve each
# A pause of more intervals than this is a run that was interrupted and resumed.
LONGEST_GAP = 20.0
MOST_ROUND_MARKS = 12
NOTE = "Faint uprights are where rounds begin"


@dataclass(frozen=True)
class Span:
    """The samples along the bottom axis: when each was, with long pauses cut out."""

    axis: Timeline
    rounds: tuple[tuple[float, int], ...]


def resource_figures(record: RunRecord) -> list[Figure]:
    """Processors, memory, GPUs, disks and network while the run went."""
    samples = record.resources
    if len(samples) < 2:
        return []
    span = _span(samples, record.events)
    figures = [
        _busy(samples, span),
        _memory(samples, span),
        _gpu_memory(samples, span),
        _traffic(samples, span),
        _nodes(record.nodes, samples, span),
    ]
    return [figure for figure in figures if figure is not None]


def _span(samples: Sequence[ResourceSample], events: Sequence[Event]) -> Span:
    steps = [max(0.0, b.timestamp - a.timestamp) for a, b in pairwise(samples)]
    longest = LONGEST_GAP * (median(steps) or 1.0)
    seconds = [0.0]
    for step in steps:
        seconds.append(seconds[-1] + min(step, longest))
    unit, word = (60.0, "minutes") if seconds[-1] > 180 else (1.0, "seconds")
    positions = tuple(at / unit for at in seconds)
    stamps = [sample.timestamp for sample in samples]
    begins, before = [], 0
    for at, sample in zip(positions, samples, strict=True):
        if sample.round_index is not None and sample.round_index > before:
            begins.append((at, sample.round_index))
            before = sample.round_index
    marks = _event_marks(events, stamps, positions)
    every = -(-len(begins) // MOST_ROUND_MARKS) if begins else 1
    return Span(Timeline(f"{word} since the start", positions, marks), tuple(begins[::every]))


def _event_marks(
    events: Sequence[Event], stamps: Sequence[float], positions: Sequence[float]
) -> tuple[Mark, ...]:
    found: dict[float, dict[str, str]] = {}
    for event in events:
        when = _unix_time(event.time)
        if when is not None and stamps[0] <= when <= stamps[-1]:
            at = positions[bisect_left(stamps, when)]
            found.setdefault(at, {}).setdefault(event.kind.replace("_", " "), event.reason)
    return tuple(Mark(at, ", ".join(kinds), "; ".join(kinds.values())) for at, kinds in sorted(found.items()))


def _unix_time(text: str) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def _figure(
    title: str,
    samples: Sequence[ResourceSample],
    span: Span,
    curves: Sequence[tuple[str, str, Callable[[ResourceSample], float | None]]],
    *,
    y_label: str,
    note: str = "",
    percent_y: bool = False,
) -> Figure | None:
    """Curves over time: name, style, and the figure of a sample."""
    series = [
        Series(
            [(at, figure(sample)) for at, sample in zip(span.axis.positions, samples, strict=True)],
            style,
            name,
        )
        for name, style, figure in curves
    ]
    drawn = [curve for curve in series if any(y is not None for _, y in curve.points)]
    legend = tuple(Key(curve.style, "line", curve.name) for curve in drawn)
    return curve_figure(
        title, drawn, span.axis, y_label=y_label, percent_y=percent_y, legend=legend,
        note=f"{NOTE}. {note}".strip(), decorate=partial(_draw_rounds, span=span),
    )  # fmt: skip


def _draw_rounds(panel: Panel, span: Span) -> None:
    for at, round_index in span.rounds:
        panel.add('<g class="mark"><title>{}</title>', f"round {round_index} begins")
        panel.rule((panel.x(at), TOP), (panel.x(at), panel.y.start), "grid")
        panel.add("</g>")


def _share(name: str) -> Callable[[ResourceSample], float | None]:
    def read(sample: ResourceSample) -> float | None:
        value = sample.figures.get(name)
        return None if value is None else value / 100.0

    return read


def _scaled(name: str, unit: float) -> Callable[[ResourceSample], float | None]:
    def read(sample: ResourceSample) -> float | None:
        value = sample.figures.get(name)
        return None if value is None else value / unit

    return read


def _known(samples: Sequence[ResourceSample], name: str) -> list[float]:
    return [value for sample in samples if (value := sample.figures.get(name)) is not None]


def _busy(samples: Sequence[ResourceSample], span: Span) -> Figure | None:
    cpu, gpu = _known(samples, "cpu_percent"), _known(samples, "gpu_utilization")
    if not cpu and not gpu:
        return None
    words = (
        f"The machine's processors are busy {percent(sum(cpu) / len(cpu) / 100, 0)} of the time"
        if cpu
        else ""
    )
    if gpu:
        of_gpu = f"its GPUs {percent(sum(gpu) / len(gpu) / 100, 0)}"
        words = f"{words}, {of_gpu}" if words else f"The machine is watched: {of_gpu} busy"
    own = _known(samples, "process_cpu_percent")
    note = f"The run itself keeps {short(sum(own) / len(own) / 100, 2)} cores busy on average." if own else ""
    curves = (
        ("all cores", colour(0), _share("cpu_percent")),
        ("memory", colour(1), _share("memory_percent")),
        ("GPUs", colour(2), _share("gpu_utilization")),
    )
    return _figure(words, samples, span, curves, y_label="share in use", note=note, percent_y=True)


def _memory(samples: Sequence[ResourceSample], span: Span) -> Figure | None:
    own = _known(samples, "process_rss_bytes")
    if not own:
        return None
    title = f"The run's processes take {bytes_text(max(own))} of memory at most"
    early = own[: max(1, len(own) // 4)]
    if len(own) > 40 and min(own[-len(early) :]) > 1.5 * max(early):
        title += "; it grows all the time"
    size, unit = byte_unit(max(own))
    curves = (("resident memory", colour(1), _scaled("process_rss_bytes", size)),)
    return _figure(title, samples, span, curves, y_label=f"resident memory ({unit})")


def _gpu_memory(samples: Sequence[ResourceSample], span: Span) -> Figure | None:
    found = _known(samples, "gpu_memory_used_gb")
    if not found or not max(found):
        return None
    title = f"The GPUs hold {bytes_text(max(found) * 2**30)} at most"
    curves = (("all GPUs", colour(2), _scaled("gpu_memory_used_gb", 1e9 / 2**30)),)
    return _figure(title, samples, span, curves, y_label="GPU memory (GB)")


def _traffic(samples: Sequence[ResourceSample], span: Span) -> Figure | None:
    last = samples[-1].figures
    written, sent = last.get("disk_io_write_mb"), last.get("network_sent_mb")
    if written is None and sent is None:
        return None
    took = seconds_text(samples[-1].timestamp - samples[0].timestamp)
    parts = []
    if written is not None:
        parts.append(f"wrote {bytes_text(written * 2**20)} to disk")
    if sent is not None:
        parts.append(f"sent {bytes_text(sent * 2**20)} over the network")
    curves = (
        ("disk written", colour(3), _scaled("disk_write_bytes_per_s", 1e6)),
        ("disk read", colour(4), _scaled("disk_read_bytes_per_s", 1e6)),
        ("network sent", colour(5), _scaled("network_sent_bytes_per_s", 1e6)),
        ("network received", colour(6), _scaled("network_recv_bytes_per_s", 1e6)),
    )
    title = f"In {took} the machine {' and '.join(parts)}"
    return _figure(title, samples, span, curves, y_label="MB/s", note="Everything on the machine counts.")


def _nodes(
    nodes: Mapping[str, Sequence[ResourceSample]], samples: Sequence[ResourceSample], span: Span
) -> Figure | None:
    """How busy each other machine of the cluster is; the curves of the least and the most busy, if many."""
    busy = {
        node: sum(known) / len(known)
        for node, seen in nodes.items()
        if (known := _known(seen, "cpu_percent"))
    }
    if not busy:
        return None
    ranked = sorted(busy, key=lambda node: busy[node])
    half = MOST_NODES // 2
    shown = ranked if len(ranked) <= MOST_NODES else [*ranked[:half], *ranked[-half:]]
    stamps = [sample.timestamp for sample in samples]
    series = [
        Series(
            [
                (_place(stamps, span, sample.timestamp), _share("cpu_percent")(sample))
                for sample in nodes[node]
            ],
            colour(i),
            node,
        )
        for i, node in enumerate(sorted(shown))
    ]
    title = f"The other machine is busy {percent(busy[ranked[0]] / 100, 0)} of the time"
    if len(ranked) > 1:
        title = (
            f"The {len(ranked)} other machines are busy {percent(busy[ranked[0]] / 100, 0)} ({ranked[0]}) to "
            f"{percent(busy[ranked[-1]] / 100, 0)} ({ranked[-1]}) of the time"
        )
    note = f"The {half} least and the {half} most busy." if len(shown) < len(ranked) else ""
    return curve_figure(
        title, series, span.axis, y_label="share of all cores", percent_y=True,
        legend=tuple(Key(curve.style, "line", curve.name) for curve in series),
        note=f"{NOTE}. {note}".strip(), decorate=partial(_draw_rounds, span=span),
    )  # fmt: skip


def _place(stamps: Sequence[float], span: Span, timestamp: float) -> float:
    """Where along the axis a moment of another machine's clock is: at the driver's next sample."""
    return span.axis.positions[min(bisect_left(stamps, timestamp), len(stamps) - 1)]
