"""Run directory -> one self-contained HTML page."""

from __future__ import annotations

from hqde.reporting.comparison import build_comparison, render_comparison
from hqde.reporting.live import LiveRun
from hqde.reporting.page import build_report, render_report
from hqde.reporting.reading import read_run
from hqde.reporting.record import (
    Event,
    MemberScore,
    ResourceSample,
    Round,
    RunRecord,
    ValidationScore,
    WorkerRound,
)

__all__ = [
    "Event",
    "LiveRun",
    "MemberScore",
    "ResourceSample",
    "Round",
    "RunRecord",
    "ValidationScore",
    "WorkerRound",
    "build_comparison",
    "build_report",
    "read_run",
    "render_comparison",
    "render_report",
]
