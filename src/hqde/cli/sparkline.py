"""A row of numbers as a row of bars."""

from __future__ import annotations

from collections.abc import Sequence

BARS = "▁▂▃▄▅▆▇█"


def sparkline(
    values: Sequence[float | None], *, width: int = 24, low: float | None = None, high: float | None = None
) -> str:
    """The newest values, one character for each; what is not known is a blank.

    Args:
        values: oldest first.
        width: characters at most.
        low, high: what the lowest and the highest bar stand for; left out, the values' own.

    >>> sparkline([0, 1, None, 3], low=0, high=3)
    '▁▃ █'
    >>> sparkline([2.0, 2.0]), sparkline([])
    ('▄▄', '')
    """
    shown = list(values)[-width:]
    known = [value for value in shown if value is not None]
    if not known:
        return " " * len(shown)
    bottom, top = min(known) if low is None else low, max(known) if high is None else high
    if top <= bottom:
        flat = BARS[3] if low is None else BARS[0]
        return "".join(" " if value is None else flat for value in shown)

    def bar(value: float) -> str:
        place = (min(max(value, bottom), top) - bottom) / (top - bottom)
        return BARS[round(place * (len(BARS) - 1))]

    return "".join(" " if value is None else bar(value) for value in shown)
