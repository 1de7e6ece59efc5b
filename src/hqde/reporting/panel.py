"""One chart as inline SVG, drawn by hand: its colours come from the page's style, so that it follows light,
dark and print, and every text in it is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from hqde.reporting.scales import Scale, short

WIDTH, HEIGHT = 400.0, 260.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 18.0, 36.0, 40.0
NUM_COLOURS = 8


@dataclass(frozen=True)
class Key:
    """One entry of a legend: the style class of its colour, its shape (line, dash, dot, bar) and its name."""

    style: str
    shape: str
    name: str


@dataclass(frozen=True)
class Table:
    """The numbers behind a figure, for those who cannot see it or want them exactly."""

    summary: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Figure:
    """A chart with what to read from it.

    Args:
        title: one sentence that says what to read from it.
        chart: the drawing; without one, the table stands in its place.
        note: how it was made, in small print.
        legend: what the colours mean.
        table: the numbers behind it.
    """

    title: str
    chart: Markup | None
    note: str = ""
    legend: tuple[Key, ...] = ()
    table: Table | None = None


def colour(index: int) -> str:
    """The style class of a group's, member's or phase's colour."""
    return f"c{index % NUM_COLOURS}"


def _position(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


class Panel:
    """A chart being drawn: axes first, then marks in the order they are given.

    Args:
        x: lowest and highest value along the bottom.
        y: lowest and highest value up the side.
        x_label: what runs along the bottom, with its unit.
        y_label: what runs up the side, with its unit.
        log_y: whether the side is logarithmic.
        percent_x, percent_y: whether the values are fractions to be written as per cent.
        x_ticks, y_ticks: places and words of the ticks, where round values would not do.
        left, right: the room beside the drawing (chart units).
        grid: whether a faint line marks each tick of the side.
        size: width and height in chart units.
    """

    def __init__(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        *,
        x_label: str,
        y_label: str,
        log_y: bool = False,
        percent_y: bool = False,
        percent_x: bool = False,
        x_ticks: Sequence[tuple[float, str]] | None = None,
        y_ticks: Sequence[tuple[float, str]] | None = None,
        left: float = LEFT,
        right: float = RIGHT,
        grid: bool = True,
        size: tuple[float, float] = (WIDTH, HEIGHT),
    ) -> None:
        self.width, self.height = size
        self.x = Scale(*x, start=left, end=self.width - right)
        self.y = Scale(*y, start=self.height - BOTTOM, end=TOP, log=log_y)
        self._parts: list[Markup] = []
        self._grid = "grid" if grid else "no-grid"
        self._draw_axes(x_label, y_label, percent_x, percent_y, x_ticks, y_ticks)

    def _draw_axes(
        self,
        x_label: str,
        y_label: str,
        percent_x: bool,
        percent_y: bool,
        x_ticks: Sequence[tuple[float, str]] | None,
        y_ticks: Sequence[tuple[float, str]] | None,
    ) -> None:
        def labelled(scale: Scale, percent: bool) -> list[tuple[float, str]]:
            ticks = scale.ticks()
            return [(tick, f"{short(100 * tick, 4)} %" if percent else short(tick, 4)) for tick in ticks]

        for tick, label in y_ticks if y_ticks is not None else labelled(self.y, percent_y):
            at = self.y(tick)
            self.rule((self.x.start, at), (self.x.end, at), self._grid)
            self.text((self.x.start - 6, at + 4), label, "tick end")
        for tick, label in x_ticks if x_ticks is not None else labelled(self.x, percent_x):
            self.text((self.x(tick), self.y.start + 16), label, "tick mid")
        self.rule((self.x.start, self.y.start), (self.x.end, self.y.start), "axis")
        self.text((4, 12), y_label, "label")
        self.text((self.x.end, self.height - 4), x_label, "label end")

    def add(self, template: str, *values: object) -> None:
        """Draw an element; every ``{}`` is filled with an escaped value."""
        self._parts.append(Markup(template).format(*values))

    def rule(self, start: tuple[float, float], end: tuple[float, float], style: str) -> None:
        """A straight line between two positions (chart units)."""
        (x1, y1), (x2, y2) = start, end
        ends = [_position(v) for v in (x1, y1, x2, y2)]
        self.add('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>', style, *ends)

    def text(self, at: tuple[float, float], words: str, style: str) -> None:
        """Words at a position (chart units)."""
        self.add('<text class="{}" x="{}" y="{}">{}</text>', style, _position(at[0]), _position(at[1]), words)

    def line(self, points: Iterable[tuple[float, float | None]], style: str, title: str = "") -> None:
        """A curve through values; ``None`` leaves a gap, and a value between gaps shows as a dot."""
        path, pen_down, alone = [], False, False
        for x, y in points:
            if y is None:
                pen_down = False
                continue
            alone = not pen_down
            path.append(f"{'L' if pen_down else 'M'}{_position(self.x(x))} {_position(self.y(y))}")
            path.append("h0" if alone else "")
            pen_down = True
        if path:
            self._titled('<path class="line {}" d="{}"{}', title, "path", style, "".join(path))

    def dots(self, points: Iterable[tuple[float, float]], style: str, title: str = "") -> None:
        """Many equal dots as one element."""
        path = "".join(f"M{_position(self.x(x))} {_position(self.y(y))}h0" for x, y in points)
        if path:
            self._titled('<path class="dots {}" d="{}"{}', title, "path", style, path)

    def dot(self, x: float, y: float, style: str, title: str = "", radius: float = 4.5) -> None:
        """One dot with its tooltip."""
        self._titled(
            '<circle class="dot {}" cx="{}" cy="{}" r="{}"{}', title, "circle",
            style, _position(self.x(x)), _position(self.y(y)), _position(radius),
        )  # fmt: skip

    def cross(self, at: tuple[float, float], style: str, title: str) -> None:
        """A cross at a position (chart units)."""
        x, y = at
        path = f"M{_position(x - 3.5)} {_position(y - 3.5)}l7 7m0-7l-7 7"
        self._titled('<path class="cross {}" d="{}"{}', title, "path", style, path)

    def box(self, start: tuple[float, float], end: tuple[float, float], style: str, title: str = "") -> None:
        """A filled rectangle between two corners given as values."""
        left, right = sorted((self.x(start[0]), self.x(end[0])))
        top, bottom = sorted((self.y(start[1]), self.y(end[1])))
        self._titled(
            '<rect class="{}" x="{}" y="{}" width="{}" height="{}"{}', title, "rect",
            style, *(f"{v:.2f}" for v in (left, top, right - left, bottom - top)),
        )  # fmt: skip

    def _titled(self, template: str, title: str, tag: str, *values: object) -> None:
        tooltip = Markup("><title>{}</title></{}>").format(title, Markup(tag)) if title else Markup("/>")
        self.add(template, *values, tooltip)

    def render(self, description: str) -> Markup:
        """The finished drawing, with its words for those who cannot see it."""
        body = Markup("").join(self._parts)
        return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
            _position(self.width), _position(self.height), description, body
        )
