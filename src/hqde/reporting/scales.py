"""From values to positions on a chart, round tick marks, and numbers written for people."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """A value axis: ``low`` is drawn at ``start``, ``high`` at ``end`` (chart units), linear or logarithmic.

    >>> Scale(0.0, 10.0, start=0.0, end=100.0)(2.5)
    25.0
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(max(value, low))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """About ``count`` round values between ``low`` and ``high``."""
        return log_ticks(self.low, self.high) if self.log else linear_ticks(self.low, self.high, count)


def linear_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values from ``low`` to ``high``, about ``count`` of them.

    >>> linear_ticks(0.0, 1.0)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    raw = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if raw <= m * magnitude * (1 + 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between ``low`` and ``high``, and 2 and 5 times them where there is room.

    >>> log_ticks(0.02, 3.0)
    [0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0]
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(decades) <= 4 else (1,)
    ticks = [float(f"{factor}e{decade}") for decade in decades for factor in factors]
    ticks = [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
    return ticks[:: 1 + len(ticks) // 8]


def span(
    values: Iterable[float | None], *, pad: float = 0.06, floor: float | None = None
) -> tuple[float, float]:
    """The lowest and highest value with some room, never an empty interval.

    Args:
        values: the data; ``None`` is passed over.
        pad: the room on each side, as a fraction of the interval.
        floor: a bound that the room does not cross unless the data do, e.g. 0 for times.

    >>> span([1.0, None, 2.0], pad=0.5)
    (0.5, 2.5)
    """
    present = [value for value in values if value is not None]
    if not present:
        return 0.0, 1.0
    low, high = min(present), max(present)
    room = (high - low) * pad or max(abs(high) * 0.1, 1e-9)
    padded = low - room
    return (max(padded, min(floor, low)) if floor is not None else padded), high + room


def worth_log(values: Iterable[float | None], *, ratio: float = 12.0) -> bool:
    """Whether positive values reach over so many times that a linear axis would hide the small ones."""
    present = [value for value in values if value is not None]
    return bool(present) and min(present) > 0 and max(present) / min(present) > ratio


def thin(points: Sequence[tuple[float, float | None]], limit: int = 160) -> list[tuple[float, float | None]]:
    """At most ``limit`` points: each the mean of as many neighbours; a stretch without values stays a gap.

    >>> thin([(1, 1.0), (2, 3.0), (3, None), (4, None)], limit=2)
    [(1.5, 2.0), (3.5, None)]
    """
    size = math.ceil(len(points) / limit)
    if size <= 1:
        return list(points)
    means: list[tuple[float, float | None]] = []
    for start in range(0, len(points), size):
        bucket = points[start : start + size]
        values = [y for _, y in bucket if y is not None]
        means.append((sum(x for x, _ in bucket) / len(bucket), sum(values) / len(values) if values else None))
    return means


def short(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits, without a tail of zeros.

    >>> short(0.07123), short(12345.6), short(0.00001), short(None), short(-3.0)
    ('0.0712', '12,346', '1e-5', '–', '−3')
    """
    if value is None:
        return "–"
    if value == 0:
        return "0"
    if value < 0:
        return f"\N{MINUS SIGN}{short(-value, digits)}"
    if value >= 1e9 or value < 1e-3:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{mantissa}e{int(exponent)}"
    decimals = max(0, digits - 1 - math.floor(math.log10(value)))
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def fixed(value: float | None, decimals: int = 3) -> str:
    """A number with so many decimals, for columns that are compared.

    >>> fixed(0.07), fixed(None)
    ('0.070', '–')
    """
    return "–" if value is None else f"{value:,.{decimals}f}"


def percent(value: float | None, decimals: int = 1) -> str:
    """A fraction as per cent; the sign stays on the number's line.

    >>> percent(0.98123), percent(None)
    ('98.1\\xa0%', '–')
    """
    return "–" if value is None else f"{100 * value:.{decimals}f}\N{NO-BREAK SPACE}%"


def byte_unit(largest: float) -> tuple[float, str]:
    """The unit in which sizes up to ``largest`` bytes read well: its size and name.

    >>> byte_unit(2_500_000)
    (1000000.0, 'MB')
    """
    for size, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(largest) >= size:
            return size, name
    return 1.0, "B"


def bytes_text(value: float | None) -> str:
    """A size in bytes for people (decimal units).

    >>> bytes_text(2_500_000), bytes_text(None)
    ('2.5 MB', '–')
    """
    if value is None:
        return "–"
    size, name = byte_unit(value)
    return f"{short(value / size)} {name}"


def seconds_text(value: float | None) -> str:
    """A duration for people.

    >>> seconds_text(0.0123), seconds_text(75), seconds_text(7322), seconds_text(None)
    ('12.3 ms', '1 min 15 s', '2 h 2 min', '–')
    """
    if value is None:
        return "–"
    if value < 1:
        return f"{short(value * 1000)} ms"
    if value < 60:
        return f"{short(value)} s"
    minutes, seconds = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s"
    return f"{minutes // 60} h {minutes % 60} min"
