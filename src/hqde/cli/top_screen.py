"""The live screen of ``hqde top`` (extra ``top``)."""

from __future__ import annotations

from typing import ClassVar

from rich.markup import escape
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widgets import DataTable, Footer, Static

from hqde.cli.top_view import (
    COLUMNS,
    ensemble_lines,
    event_lines,
    headline,
    resource_lines,
    row_of,
    sorted_workers,
    worker_lines,
)
from hqde.reporting.live import LiveRun

SHOWN_EVENTS = 60


class TopApp(App[None]):
    """Shows a run directory and follows it as it grows.

    Args:
        run: what to show.
        interval_s: seconds between two looks at the directory.
    """

    CSS = """
    #headline { height: 1; background: $primary; color: $text; padding: 0 1; }
    #body { height: 1fr; }
    #left { width: 1fr; }
    #right { width: 58; }
    #workers { height: 1fr; }
    #ensemble, #resources, #follow, #log {
        border: round $panel-lighten-2; border-title-color: $text; padding: 0 1; height: auto;
    }
    #follow { display: none; }
    #log { height: 8; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "quit"),
        Binding("s", "sort", "sort by the next column"),
        Binding("r", "reverse", "reverse"),
        Binding("f", "follow", "follow the worker"),
        Binding("escape", "unfollow", "all workers", show=False),
        Binding("p", "pause", "pause"),
    ]
    ENABLE_COMMAND_PALETTE = False

    def __init__(self, run: LiveRun, *, interval_s: float = 1.0) -> None:
        super().__init__()
        self.run_shown = run
        self.interval_s = interval_s
        self.sort_column = 0
        self.is_reversed = False
        self.followed: int | None = None
        self.is_paused = False

    def compose(self) -> ComposeResult:
        """The widgets, from top to bottom."""
        yield Static(id="headline")
        with Horizontal(id="body"):
            with Vertical(id="left"):
                yield DataTable(id="workers", cursor_type="row", zebra_stripes=True)
                yield Static(id="follow")
            with VerticalScroll(id="right"):
                yield Static(id="ensemble")
                yield Static(id="resources")
        with VerticalScroll(id="log"):
            yield Static(id="events")
        yield Footer()

    def on_mount(self) -> None:
        """Fill the screen, and look again at the interval."""
        for widget, title in (("follow", "worker"), ("ensemble", "ensemble"), ("resources", "machine")):
            self.query_one(f"#{widget}", Static).border_title = title
        self.query_one("#log").border_title = "events"
        self.table.focus()
        self.draw()
        self.set_interval(self.interval_s, self.look)

    @property
    def table(self) -> DataTable[str]:
        """The workers."""
        return self.query_one("#workers", DataTable)

    def look(self) -> None:
        """Read what was added to the directory, and show it."""
        # A last tick may come while the screen is being taken down.
        if not self.is_paused and self.query("#headline"):
            changed = self.run_shown.refresh()
            if changed:
                self.draw()
            else:
                self.draw_headline()

    def draw(self) -> None:
        """Show everything anew; the cursor stays on its worker."""
        run = self.run_shown
        self.draw_headline()
        views = sorted_workers(run, self.sort_column, reverse=self.is_reversed)
        under_cursor, table = self.worker_under_cursor(), self.table
        table.clear(columns=True)
        for index, (name, _, _) in enumerate(COLUMNS):
            arrow = (" ▼" if self.is_reversed else " ▲") if index == self.sort_column else ""
            table.add_column(name + arrow, key=name)
        for view in views:
            table.add_row(*(escape(cell) for cell in row_of(view)), key=str(view.worker))
        places = [view.worker for view in views]
        if under_cursor in places:
            table.move_cursor(row=places.index(under_cursor))
        self._show("ensemble", ensemble_lines(run))
        self._show("resources", resource_lines(run))
        self._show("events", event_lines(run, SHOWN_EVENTS))
        self.query_one("#log", VerticalScroll).scroll_end(animate=False)
        follow = self.query_one("#follow", Static)
        follow.display = self.followed in run.workers
        if self.followed in run.workers:
            self._show("follow", worker_lines(run.workers[self.followed]))

    def draw_headline(self) -> None:
        """The line on top, with how long ago the run was last heard of."""
        paused = " · [b]paused[/b]" if self.is_paused else ""
        self.query_one("#headline", Static).update(headline(self.run_shown) + paused)

    def worker_under_cursor(self) -> int | None:
        """The worker of the row that the cursor is on."""
        table = self.table
        if not table.is_valid_row_index(table.cursor_row):
            return None
        key = table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value
        return None if key is None else int(key)

    def action_sort(self) -> None:
        """Sort by the next column."""
        self.sort_column = (self.sort_column + 1) % len(COLUMNS)
        self.draw()

    def action_reverse(self) -> None:
        """Turn the order round."""
        self.is_reversed = not self.is_reversed
        self.draw()

    def action_follow(self) -> None:
        """Show the worker under the cursor in detail; once more, and it is gone."""
        worker = self.worker_under_cursor()
        self.followed = None if worker == self.followed else worker
        self.draw()

    def action_unfollow(self) -> None:
        """Show no worker in detail."""
        self.followed = None
        self.draw()

    def action_pause(self) -> None:
        """Stop looking at the directory, or go on."""
        self.is_paused = not self.is_paused
        self.draw_headline()

    def _show(self, widget: str, lines: list[str]) -> None:
        self.query_one(f"#{widget}", Static).update("\n".join(escape(line) for line in lines))
