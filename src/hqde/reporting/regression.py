"""Predictions against targets, for runs that predict a number."""

from __future__ import annotations

import math
from statistics import fmean

from hqde.reporting.panel import Figure, Key, Panel
from hqde.reporting.record import RunRecord
from hqde.reporting.scales import percent, short, span


def regression_figures(record: RunRecord) -> list[Figure]:
    """Scatter, residuals over the prediction, and the residuals' histogram."""
    residuals = record.evaluation.document("residuals") if record.evaluation else None
    if residuals is None:
        return []
    predicted, targets = residuals.numbers("predicted"), residuals.numbers("target")
    pairs = [(p, t) for p, t in zip(predicted, targets, strict=False) if p is not None and t is not None]
    return [_scatter(pairs), _residuals(pairs), _histogram([p - t for p, t in pairs])] if pairs else []


def _scatter(pairs: list[tuple[float, float]]) -> Figure:
    targets = [t for _, t in pairs]
    mean = fmean(targets)
    spread = sum((t - mean) ** 2 for t in targets)
    error = sum((p - t) ** 2 for p, t in pairs)
    title = "Predictions against targets"
    if spread > 0:
        title = f"The ensemble explains {percent(1 - error / spread)} of the targets' variance"
        if error >= spread:
            title = "The ensemble predicts no better than the targets' mean would"
    low, high = span([v for pair in pairs for v in pair])
    panel = Panel(
        (low, high), (low, high), x_label="target (its own units)", y_label="predicted", size=(400, 330)
    )
    panel.line([(low, low), (high, high)], "ideal", "prediction equals target")
    panel.dots([(t, p) for p, t in pairs], _dots_style(pairs), f"{len(pairs):,} test examples")
    legend = (Key("c0", "dot", "one test example"), Key("ink", "dash", "prediction equals target"))
    return Figure(title, panel.render(title), "Dots above the dashed line were predicted too high.", legend)


def _dots_style(pairs: list[tuple[float, float]]) -> str:
    return "c0 few" if len(pairs) < 300 else "c0"


def _residuals(pairs: list[tuple[float, float]]) -> Figure:
    errors = [p - t for p, t in pairs]
    rmse = math.sqrt(fmean([e * e for e in errors]))
    bias = fmean(errors)
    lean = "high" if bias > 0 else "low"
    title = f"Predictions are too {lean} by {short(abs(bias), 2)} on average (RMSE {short(rmse)})"
    if abs(bias) < 0.01 * rmse:
        title = f"Predictions are neither too high nor too low on average (RMSE {short(rmse)})"
    bound = 1.06 * max(max(map(abs, errors)), 1e-12)
    panel = Panel(
        span([p for p, _ in pairs]), (-bound, bound), x_label="predicted (target units)",
        y_label="predicted − target", size=(400, 330),
    )  # fmt: skip
    panel.rule((panel.x.start, panel.y(0)), (panel.x.end, panel.y(0)), "ideal")
    panel.dots([(p, p - t) for p, t in pairs], _dots_style(pairs), f"{len(pairs):,} test examples")
    note = "A slope or a funnel says that the error depends on the size of the prediction."
    return Figure(title, panel.render(f"{title}. {note}"), note)


def _histogram(errors: list[float], num_bins: int = 31) -> Figure:
    ordered = sorted(abs(e) for e in errors)
    half, most = ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    title = (
        f"Half of the predictions are within ±{short(half, 2)} of the target, 95 % within ±{short(most, 2)}"
    )
    bound = max(ordered[-1], 1e-12)
    width = 2 * bound / num_bins
    counts = [0] * num_bins
    for error in errors:
        counts[min(int((error + bound) / width), num_bins - 1)] += 1
    panel = Panel(
        (-bound, bound), (0, 1.05 * max(counts)), x_label="predicted − target (target units)",
        y_label="test examples", size=(400, 330),
    )  # fmt: skip
    for i, count in enumerate(counts):
        left = -bound + i * width
        words = f"{short(left)} to {short(left + width)}: {count:,} examples"
        if count:
            panel.box((left + 0.04 * width, 0), (left + 0.96 * width, count), "bar c0", words)
    panel.rule((panel.x(0), panel.y.start), (panel.x(0), panel.y.end), "ideal")
    return Figure(title, panel.render(title))
