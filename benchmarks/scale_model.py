"""What `scale.py` makes of its measurements: tables, a fit of the cost model's rates, and predictions."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from itertools import product
from statistics import median
from typing import Any

import numpy as np
from scipy.optimize import nnls

from hqde.topology import Cost, Links, cost_of, tree_depth

Record = dict[str, Any]
FAN_IN = 8
PLANS = ("flat", "tree", "sharded", "sharded-n")
TITLES = {"flat": "flat", "tree": "tree", "sharded": "2 shards", "sharded-n": "n shards"}
BYTES_SIZE = 1_000_000  # coordinates of the table of bytes
# Links of the predictions: bytes per second, and what a step waits for the network, in seconds.
NETWORKS = {"10 Gbit/s": (1.25e9, 5e-4), "100 Mbit/s": (1.25e7, 2e-2)}
PREDICTED_SIZE = 11_173_962
PREDICTED_WORKERS = (16, 1_000, 10_000)
BITS = (32, 8, 4)


def report(result: dict[str, Any]) -> str:
    """Everything as Markdown."""
    parts = [seconds_table(result["measured"]), bytes_table(result["measured"])]
    if result["skipped"]:
        parts.append("Left out:\n\n" + "\n".join(f"- {line}" for line in result["skipped"]))
    if result["paired"]:
        parts.append(paired_table(result["paired"]))
    links, told = fit(result["measured"], result["cores"])
    parts += [told, prediction_tables(links)]
    return "\n\n".join(parts)


def seconds_table(records: list[Record]) -> str:
    """Median seconds of a synchronisation, by workers, coordinates and plan."""
    found = {_key(record): median(record["seconds"]) for record in records}
    sizes = sorted({record["coordinates"] for record in records})
    lines = ["### Seconds of a synchronisation, median", ""]
    lines.append(f"| coordinates | workers | {' | '.join(TITLES[plan] for plan in PLANS)} |")
    lines.append("|---" * (2 + len(PLANS)) + "|")
    for size, number in product(sizes, sorted({record["workers"] for record in records})):
        cells = [found.get((number, size, plan)) for plan in PLANS]
        if any(cells):
            row = " | ".join("—" if cell is None else f"{cell:.3g}" for cell in cells)
            lines.append(f"| {size:,} | {number} | {row} |")
    return "\n".join(lines)


def bytes_table(records: list[Record]) -> str:
    """Bytes through the busiest process, in units of one row (4 d bytes)."""
    sizes = {record["coordinates"] for record in records}
    size = BYTES_SIZE if BYTES_SIZE in sizes else max(sizes)
    lines = [
        f"### Rows' worth of bytes through the busiest process (d = {size:,}; one row is {4 * size:,} bytes)"
    ]
    lines += ["", f"| workers | {' | '.join(TITLES[plan] for plan in PLANS)} | depth of the tree |"]
    lines.append("|---" * (2 + len(PLANS)) + "|")
    found = {_key(record): record for record in records if record["coordinates"] == size}
    for number in sorted({record["workers"] for record in records}):
        cells = []
        for plan in PLANS:
            record = found.get((number, size, plan))
            if record is None:
                cells.append("—")
                continue
            role, most = max(record["bytes"].items(), key=lambda item: item[1])
            shards = f", {record['shards']} shards" if plan == "sharded-n" else ""
            cells.append(f"{most / (4 * size):.2f} ({role}{shards})")
        lines.append(f"| {number} | {' | '.join(cells)} | {tree_depth(number, FAN_IN)} |")
    return "\n".join(lines)


def paired_table(records: list[Record]) -> str:
    """Plans in turns: medians, and each plan's ratio to flat round by round."""
    flat = next(record["seconds"] for record in records if record["plan"] == "flat")
    number, size = records[0]["workers"], records[0]["coordinates"]
    lines = [f"### {number} workers, {size:,} coordinates, plans in turns, {len(flat)} rounds", ""]
    lines += ["| plan | median s | least to most | flat / plan, median | least to most |", "|---" * 5 + "|"]
    for record in records:
        own = record["seconds"]
        ratios = [a / b for a, b in zip(flat, own, strict=True)]
        lines.append(
            f"| {TITLES[record['plan']]} | {median(own):.3f} | {min(own):.3f} to {max(own):.3f} | "
            f"{median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f} |"
        )
    return "\n".join(lines)


def fit(records: list[Record], cores: int) -> tuple[Links, str]:
    """The rates with which the model's counts come nearest to the measured seconds, relative to them.

    Least squares with coefficients that are not negative (Lawson & Hanson), each row divided by its seconds.
    """
    here = Links(nodes=1, cores=cores)
    counts = np.array([_counts(_cost(record, here)) for record in records])
    seconds = np.array([median(record["seconds"]) for record in records])
    scale = counts.max(axis=0)
    found, _ = nnls(counts / scale / seconds[:, None], np.ones(len(seconds)))
    latency, call, handled, combine, store = found / scale
    links = replace(
        here,
        latency_s=float(latency),
        call_s=float(call),
        object_s=float(handled),
        combine_bytes_per_s=1 / combine if combine else 1e12,
        store_bytes_per_s=1 / store if store else 1e12,
    )
    errors = np.abs(np.array([_cost(record, links).seconds for record in records]) / seconds - 1)
    chosen, regret = _choices(records, links)
    lines = ["### The fit", "", "| rate | fitted |", "|---|---|"]
    lines.append(f"| `latency_s` | {links.latency_s * 1e3:.2f} ms |")
    lines.append(f"| `call_s` | {links.call_s * 1e3:.3f} ms |")
    lines.append(f"| `object_s` | {links.object_s * 1e6:.1f} µs |")
    lines.append(f"| `combine_bytes_per_s` | {links.combine_bytes_per_s / 1e9:.2f} GB/s |")
    lines.append(f"| `store_bytes_per_s` | {links.store_bytes_per_s / 1e9:.2f} GB/s |")
    lines.append("")
    lines.append(
        f"{len(records)} medians; relative error: median {np.median(errors):.0%}, nine of ten below "
        f"{np.quantile(errors, 0.9):.0%}, largest {errors.max():.0%}. The model's choice among flat, tree "
        f"and two shards is the fastest measured in {chosen} cases; where it is not, it costs up to "
        f"{max(regret) - 1:.0%} more (median over all cases {median(regret) - 1:.0%})."
    )
    return links, "\n".join(lines)


def prediction_tables(fitted: Links) -> str:
    """Seconds of a synchronisation for many workers, one to a machine; shards as many as cost least."""
    parts = [f"### Predicted seconds, {PREDICTED_SIZE:,} coordinates, a worker on each machine"]
    wide = 4.0 * PREDICTED_SIZE
    for name, (rate, wait_s) in NETWORKS.items():
        lines = [f"{name}:", "", "| workers | bits | flat | tree | sharded | shards | one shard per worker |"]
        lines.append("|---" * 7 + "|")
        for number, bits in product(PREDICTED_WORKERS, BITS):
            links = replace(fitted, nodes=number, bytes_per_s=rate, latency_s=fitted.latency_s + wait_s)
            row = wide * bits / 32
            given: dict[str, Any] = {
                "num_rows": number,
                "row_bytes": row,
                "vector_bytes": wide,
                "fan_in": FAN_IN,
                "links": links,
            }
            flat, tree = (cost_of(kind, **given).seconds for kind in ("flat", "tree"))
            shards = {
                2**power: cost_of("sharded", num_shards=2**power, **given).seconds
                for power in range(1, 15)
                if 2**power <= number
            }
            best = min(shards, key=lambda count: shards[count])
            every = cost_of("sharded", **given).seconds
            times = " | ".join(f"{value:,.3g}" for value in (flat, tree, shards[best]))
            lines.append(f"| {number:,} | {bits} | {times} | {best:,} | {every:,.3g} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _cost(record: Record, links: Links) -> Cost:
    return cost_of(
        record["plan"].removesuffix("-n"),
        num_rows=record["workers"],
        row_bytes=4.0 * record["coordinates"],
        fan_in=FAN_IN,
        links=links,
        num_shards=record["shards"],
    )


def _counts(cost: Cost) -> list[float]:
    """The model's counts, in the order of its rates."""
    return [cost.steps, cost.calls, cost.objects, cost.combined_bytes, cost.stored_bytes]


def _choices(records: list[Record], links: Links) -> tuple[str, list[float]]:
    """How often the model's cheapest plan is the fastest measured, and what its choice costs beside it."""
    cases: dict[tuple[int, int], list[Record]] = defaultdict(list)
    for record in records:
        if record["plan"] != "sharded-n":
            cases[record["workers"], record["coordinates"]].append(record)
    regret, right = [], 0
    for case in cases.values():
        choice = min(case, key=lambda record: _cost(record, links).seconds)
        best = min(case, key=lambda record: median(record["seconds"]))
        right += choice is best
        regret.append(median(choice["seconds"]) / median(best["seconds"]))
    return f"{right} of {len(cases)}", regret


def _key(record: Record) -> tuple[int, int, str]:
    return record["workers"], record["coordinates"], record["plan"]
