"""Run directory -> one self-contained HTML page."""

from __future__ import annotations

from hqde.reporting.page import build_report, render_report
from hqde.reporting.reading import read_run
from hqde.reporting.record import Event, MemberScore, Round, RunRecord, ValidationScore, WorkerRound

__all__ = [
    "Event",
    "MemberScore",
    "Round",
    "RunRecord",
    "ValidationScore",
    "WorkerRound",
    "build_report",
    "read_run",
    "render_report",
]
