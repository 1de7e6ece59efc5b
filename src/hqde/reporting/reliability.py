"""Reliability diagrams: does what the ensemble is sure of come true as often as it says?"""

from __future__ import annotations

import math

from hqde.reporting.document import Document
from hqde.reporting.panel import WIDTH, Figure, Key, Panel, Table
from hqde.reporting.record import RunRecord
from hqde.reporting.scales import fixed, percent

# The lower part of the chart, under accuracy 0, holds the counts.
COUNT_BAND = 0.26
FLOOR = -0.34
CHART_HEIGHT = 330.0
FEW = 10


def reliability_figures(record: RunRecord) -> list[Figure]:
    """One diagram as trained and one after calibration, where they were recorded."""
    if record.evaluation is None:
        return []
    temperature = record.metrics.number("temperature") if record.metrics else None
    after = "after temperature" if temperature is None else f"after temperature {fixed(temperature, 2)}"
    after += " with matrix scaling" if record.matrix_scaled else ""
    found = [
        (record.evaluation.document("reliability"), "as trained"),
        (record.evaluation.document("reliability_calibrated"), after),
    ]
    figures = [figure for bins, when in found if bins and (figure := _diagram(bins, when)) is not None]
    return [*figures, *_before_and_after(record)]


def _before_and_after(record: RunRecord) -> list[Figure]:
    """Every figure as trained and after calibration, side by side."""
    metrics = record.metrics
    if metrics is None or record.task == "regression" or metrics.document("calibrated") is None:
        return []
    rows = []
    for key, name in (("accuracy", "accuracy"), ("nll", "NLL"), ("brier", "Brier score"), ("ece", "ECE")):
        before, after = metrics.number(key), metrics.number("calibrated", key)
        if before is not None and after is not None:
            shown = [percent(v, 2) if key == "accuracy" else fixed(v, 4) for v in (before, after)]
            better = after > before if key == "accuracy" else after < before
            verdict = "same" if shown[0] == shown[1] else "better" if better else "worse"
            rows.append((name, *shown, verdict))
    if not rows:
        return []
    won = sum(row[-1] == "better" for row in rows)
    title = f"Calibration improves {won} of {len(rows)} test figures"
    note = "NLL, Brier score and ECE are better when lower."
    if not record.matrix_scaled:
        note += " Temperature never changes which class comes first."
    return [Figure(title, None, note, (), Table("", ("", "as trained", "after", ""), tuple(rows)))]


def _diagram(bins: Document, when: str) -> Figure | None:
    confidence, accuracy, count = bins.numbers("confidence"), bins.numbers("accuracy"), bins.numbers("count")
    rows = [
        (c, a, int(n)) for c, a, n in zip(confidence, accuracy, count, strict=False)
        if c is not None and a is not None and n
    ]  # fmt: skip
    if not rows:
        return None
    total = sum(n for _, _, n in rows)
    gap = sum(n * (c - a) for c, a, n in rows) / total
    ece = sum(n * abs(c - a) for c, a, n in rows) / total
    lean = f"over-confident by {percent(gap)}" if gap > 0.0005 else f"under-confident by {percent(-gap)}"
    if abs(gap) <= 0.0005:
        lean = "neither over- nor under-confident"
    title = f"{when[0].upper()}{when[1:]}: {lean} on average, ECE {fixed(ece)}"
    panel = Panel(
        (0, 1), (FLOOR, 1),
        x_label="confidence (probability of the predicted class)", y_label="share that is right",
        percent_x=True, y_ticks=[(v / 100, f"{v} %") for v in range(0, 101, 20)],
        size=(WIDTH, CHART_HEIGHT),
    )  # fmt: skip
    panel.line([(0, 0), (1, 1)], "ideal", "perfectly calibrated")
    width, most = 1 / max(len(count), 1), max(n for _, _, n in rows)
    for c, a, n in rows:
        left = min(int(c / width + 1e-9), len(count) - 1) * width
        words = f"confidence {percent(c)}: right {percent(a)} of {n:,} examples"
        height = max(COUNT_BAND * n / most, 0.006)
        panel.box((left + 0.08 * width, FLOOR), (left + 0.92 * width, FLOOR + height), "count", words)
    panel.text(
        (panel.x.start + 4, panel.y(FLOOR + COUNT_BAND) + 4), f"examples per bin (tallest: {most:,})", "event"
    )
    for c, a, n in rows:
        low, high = wilson_interval(a, n)
        panel.rule((panel.x(c), panel.y(low)), (panel.x(c), panel.y(high)), f"whisker {_weight(n)}")
    for c, a, n in rows:
        panel.dot(c, a, _weight(n), f"confidence {percent(c)}: right {percent(a)} of {n:,} examples", 4)
    legend = (
        Key("c0", "dot", "one bin, with its 95 % interval"), Key("ink", "dash", "perfectly calibrated"),
        Key("count", "bar", "examples per bin"),
    )  # fmt: skip
    cells = tuple((percent(c), percent(a), f"{n:,}") for c, a, n in rows)
    table = Table("The bins in numbers", ("confidence", "right", "examples"), cells)
    note = f"Dots under the dashed line claim more than they keep; pale ones hold fewer than {FEW} examples."
    return Figure(title, panel.render(f"{title}. {note}"), note, legend, table)


def _weight(count: int) -> str:
    """Bins of few examples say little, and are drawn pale."""
    return "c0" if count >= FEW else "c0 pale"


def wilson_interval(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Where the true share lies, given ``share`` of ``count`` trials (95 % for z = 1.96).

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", 1927.

    >>> [round(bound, 3) for bound in wilson_interval(0.5, 100)]
    [0.404, 0.596]
    """
    spread = z * z / count
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)
