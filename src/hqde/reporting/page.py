"""A run directory -> one page that explains it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from hqde.errors import RunError
from hqde.reporting.costs import cost_figures
from hqde.reporting.faults import fault_figures
from hqde.reporting.headline import run_facts, run_title, sentences, tiles, warnings
from hqde.reporting.membership import member_figures
from hqde.reporting.panel import Figure, Table
from hqde.reporting.pictures import uncertain_examples
from hqde.reporting.reading import read_run
from hqde.reporting.record import Event, RunRecord
from hqde.reporting.regression import regression_figures
from hqde.reporting.reliability import reliability_figures
from hqde.reporting.resources import resource_figures
from hqde.reporting.validation_curves import rounds_table, validation_figures
from hqde.reporting.worker_curves import worker_figures

MOST_EVENTS = 200


@dataclass(frozen=True)
class Section:
    """A part of the page: its anchor, its heading, its figures, and a table under them."""

    anchor: str
    heading: str
    figures: tuple[Figure, ...]
    table: Table | None = None


def build_report(run_dir: Path, out: Path | None = None) -> Path:
    """Write ``report.html``: one self-contained page about a run, finished or not.

    Everything is inside the page (styles, drawings, pictures), so it can be mailed, printed and read without
    a network. The same run directory gives the same page, byte for byte.

    Args:
        run_dir: the directory that ``hqde train`` wrote.
        out: where to write; ``report.html`` in the run directory if not given.

    Returns:
        The path of the page.

    Raises:
        RunError: the directory is not a run, holds no finished round, or holds broken JSON.
    """
    out = Path(run_dir) / "report.html" if out is None else Path(out)
    if out.is_dir():
        raise _is_directory(out)
    return write_page(render_report(read_run(Path(run_dir))), out)


def write_page(page: str, out: Path) -> Path:
    """Write a page whole or not at all.

    Raises:
        RunError: ``out`` is a directory, or cannot be written.
    """
    if out.is_dir():
        raise _is_directory(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        # Class names may hold what UTF-8 cannot say (a lone surrogate from a JSON escape).
        _write_atomically(out, page.encode("utf-8", errors="xmlcharrefreplace"))
    except OSError as error:
        raise RunError(f"{out} cannot be written: {error}") from error
    return out


def render_report(record: RunRecord) -> str:
    """The page's HTML for a run. A pure function: no files, no clock."""
    return render_page(
        title=run_title(record),
        facts=run_facts(record),
        finished=record.finished,
        sentences=sentences(record),
        warnings=warnings(record),
        tiles=tiles(record),
        sections=_sections(record),
        examples=uncertain_examples(record),
        regression=record.task == "regression",
        calibrated=record.task == "classification"
        and (_temperature(record) not in (None, 1.0) or record.matrix_scaled),
        events=_event_table(record.events),
        config=record.config,
    )


def render_page(**parts: Any) -> str:
    """The template with its parts; those that are left out are empty."""
    environment = Environment(
        loader=PackageLoader("hqde.reporting", "."), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    empty = {
        "tiles": [],
        "examples": [],
        "regression": False,
        "calibrated": False,
        "events": None,
        "config": "",
    }
    return environment.get_template("template.html").render(empty | parts)


def _is_directory(out: Path) -> RunError:
    return RunError(f"{out} is a directory: name the file the report is to be written to.")


def _sections(record: RunRecord) -> list[Section]:
    learning = (*validation_figures(record), *worker_figures(record))
    found = [
        Section("members", "Members and ensemble", tuple(member_figures(record))),
        Section("learning", "Learning", learning, rounds_table(record)),
        Section("calibration", "Calibration", tuple(reliability_figures(record))),
        Section("predictions", "Predictions", tuple(regression_figures(record))),
        Section("costs", "Time and bytes", tuple(cost_figures(record))),
        Section("resources", "The machine", tuple(resource_figures(record))),
        Section("faults", "What happened", tuple(fault_figures(record))),
    ]
    return [section for section in found if section.figures]


def _temperature(record: RunRecord) -> float | None:
    return record.metrics.number("temperature") if record.metrics is not None else None


def _event_table(events: Sequence[Event]) -> Table | None:
    if not events:
        return None
    shown = events[-MOST_EVENTS:]
    summary = (
        f"the last {len(shown):,} of {len(events):,}"
        if len(shown) < len(events)
        else f"{len(events):,} in all"
    )
    rows = tuple(
        (
            event.time.replace("T", " ")[:19],
            "" if event.round_index is None else str(event.round_index),
            event.kind.replace("_", " "),
            "" if event.worker is None else str(event.worker),
            event.reason,
        )
        for event in shown
    )
    return Table(summary, ("time", "round", "what", "worker", "why"), rows)


def _write_atomically(path: Path, content: bytes) -> None:
    """Readers see the old page or the new one, never half of it."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(name, 0o644)  # mkstemp keeps it to its owner
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
