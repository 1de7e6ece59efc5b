"""What ``wan.py`` measures, and the figures and the table that come of it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from hqde.topology import Links, cost_of
from namespaces import Counters

FAN_IN = 4


@dataclass(frozen=True)
class Sample:
    """One synchronisation.

    Attributes:
        plan: how the aggregation was spread.
        combine_s, start_s: seconds to combine, and for all workers to fetch the result and train one batch.
        train_s: seconds that the slowest worker says its batch took, part of ``start_s``.
        combined, started: bytes into and out of each host meanwhile.
    """

    plan: str
    combine_s: float
    start_s: float
    train_s: float
    combined: Counters
    started: Counters


@dataclass(frozen=True)
class Figures:
    """What the samples of one plan come to; bytes are medians over the samples.

    Attributes:
        seconds: of each synchronisation.
        combine_s, start_s: medians of its halves.
        train_s: median seconds of the slowest worker's batch.
        driver_in, driver_out: through the driver's host.
        busiest: in and out together, of the host where that is most.
        limit_s: what the bytes alone take: in each half, those of the busiest direction of any link.
        model_busiest, model_s: what ``cost_of`` says.
    """

    plan: str
    seconds: list[float]
    combine_s: float
    start_s: float
    train_s: float
    driver_in: float
    driver_out: float
    busiest: float
    limit_s: float
    model_busiest: float
    model_s: float


def moved(before: Counters, after: Counters) -> Counters:
    """Bytes that crossed each interface between two readings.

    >>> moved([(1, 2)], [(11, 5)])
    [(10, 3)]
    """
    return [(b[0] - a[0], b[1] - a[1]) for a, b in zip(before, after, strict=True)]


def limit_s(halves: Sequence[Counters], bytes_per_s: float) -> float:
    """Seconds that the bytes take on full-duplex links, if one half follows the other.

    >>> limit_s([[(10, 0), (0, 30)], [(0, 20), (5, 5)]], 10.0)
    5.0
    """
    return sum(max(max(pair) for pair in half) for half in halves) / bytes_per_s


def figures_of(plan: str, samples: Sequence[Sample], *, row_bytes: int, bytes_per_s: float) -> Figures:
    """The figures of one plan's samples."""
    hosts = len(samples[0].combined)
    sums = [[(a[0] + b[0], a[1] + b[1]) for a, b in zip(s.combined, s.started, strict=True)] for s in samples]
    links = Links(nodes=hosts, bytes_per_s=bytes_per_s)
    cost = cost_of(plan, num_rows=hosts, row_bytes=row_bytes, fan_in=FAN_IN, links=links)
    return Figures(
        plan=plan,
        seconds=[sample.combine_s + sample.start_s for sample in samples],
        combine_s=median(sample.combine_s for sample in samples),
        start_s=median(sample.start_s for sample in samples),
        train_s=median(sample.train_s for sample in samples),
        driver_in=median(total[0][0] for total in sums),
        driver_out=median(total[0][1] for total in sums),
        busiest=median(max(map(sum, total)) for total in sums),
        limit_s=median(limit_s([sample.combined, sample.started], bytes_per_s) for sample in samples),
        model_busiest=cost.busiest_bytes,
        model_s=cost.seconds,
    )


def table(rows: Sequence[Figures], row_bytes: int) -> str:
    """All plans as a Markdown table."""
    heads = (
        "plan",
        "sync s, median (min-max)",
        "combine + start s",
        "driver's host in / out MB",
        "busiest host in + out MB",
        "× model",
        "bytes / bandwidth s",
        "`cost_of`: busiest MB",
        "`cost_of`: s",
    )
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        cells = (
            row.plan,
            f"{median(row.seconds):.2f} ({min(row.seconds):.2f}-{max(row.seconds):.2f})",
            f"{row.combine_s:.2f} + {row.start_s:.2f}",
            f"{row.driver_in / 1e6:.1f} / {row.driver_out / 1e6:.1f}",
            f"{row.busiest / 1e6:.1f}",
            f"{row.busiest / row_bytes:.2f}",
            f"{row.limit_s:.2f}",
            f"{row.model_busiest / 1e6:.1f}",
            f"{row.model_s:.2f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def ratios(rows: Sequence[Figures]) -> str:
    """Flat against the others: above 1 the other one is better."""
    flat = next((row for row in rows if row.plan == "flat"), None)
    return "\n".join(
        f"flat / {row.plan}: {median(flat.seconds) / median(row.seconds):.2f} in seconds, "
        f"{flat.busiest / row.busiest:.2f} in bytes through the busiest host"
        for row in rows
        if flat is not None and row is not flat
    )


def missing_bytes(samples: Sequence[Sample], row_bytes: int) -> str | None:
    """A sentence if less crossed the links than must have: then they are not what was measured.

    However a plan goes about it, n rows become one vector, and one vector reaches n hosts: each of the two
    moves n-1 rows.
    """
    for sample in samples:
        expected = 2 * (len(sample.started) - 1) * row_bytes
        seen = sum(pair[0] for pair in (*sample.combined, *sample.started))
        if seen < 0.98 * expected:
            return f"{sample.plan}: {seen} bytes crossed the links, not {expected} or more"
    return None
