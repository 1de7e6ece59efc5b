"""What ``hqde top`` shows, as text: the same on the live screen and for ``--once``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.markup import escape

from hqde.cli.sparkline import sparkline
from hqde.reporting.live import LiveRun, WorkerView
from hqde.reporting.scales import bytes_text, percent, seconds_text, short

Cell = tuple[str, Callable[[WorkerView], float | str | None], Callable[[WorkerView], str]]


def _figure(
    name: str, digits: int = 4
) -> tuple[Callable[[WorkerView], float | None], Callable[[WorkerView], str]]:
    return (lambda view: view.last.get(name)), (lambda view: short(view.last.get(name), digits))


MOST_NODES = 8  # other machines with a line each

# Name, what to sort by, what to show.
COLUMNS: tuple[Cell, ...] = (
    ("worker", lambda view: float(view.worker), lambda view: str(view.worker)),
    ("group", lambda view: view.last.get("group"), lambda view: str(view.last.get("group", ""))),
    ("loss", *_figure("loss")),
    ("accuracy", lambda view: view.last.get("accuracy"), lambda view: percent(view.last.get("accuracy"))),
    ("LR", *_figure("lr", 3)),
    ("time", lambda view: view.last.get("seconds"), lambda view: seconds_text(view.last.get("seconds"))),
    ("samples/s", lambda view: view.samples_per_s, lambda view: short(view.samples_per_s)),
    ("data", lambda view: view.data_share, lambda view: percent(view.data_share, 0)),
    ("reliability", *_figure("reliability", 3)),
    ("lost", lambda view: float(view.rejected + view.failed), lambda view: str(view.rejected + view.failed)),
    ("status", lambda view: str(view.last.get("status", "")), lambda view: str(view.last.get("status", ""))),
    ("losses", lambda view: view.last.get("loss"), lambda view: sparkline(tuple(view.losses), width=16)),
)


def sorted_workers(run: LiveRun, column: int, *, reverse: bool = False) -> list[WorkerView]:
    """The workers by a column; those without a figure there come last."""
    key = COLUMNS[column][1]
    views = sorted(run.workers.values(), key=lambda view: view.worker)
    known = [(found, view) for view in views if (found := key(view)) is not None]
    known.sort(key=lambda pair: pair[0], reverse=reverse)
    there = [view for _, view in known]
    return there + [view for view in views if all(view is not other for other in there)]


def row_of(view: WorkerView) -> tuple[str, ...]:
    """A worker's row of the table."""
    return tuple(show(view) for _, _, show in COLUMNS)


def headline(run: LiveRun) -> str:
    """One line: name, status, round, epoch, progress."""
    record = run.record
    parts = [f"[b]{escape(run.name)}[/b]", escape(run.status())]
    if record:
        total = run.num_rounds
        parts.append(f"round {record['round']}{f'/{total}' if total else ''}")
        parts.append(f"epoch {record.get('epoch')}")
        parts.append(f"{len(run.workers)} workers in {len(record.get('groups', ()))} groups")
        done = record.get("progress") or 0.0
        parts.append(f"{'█' * round(20 * done)}{'░' * (20 - round(20 * done))} {percent(done, 0)}")
    if run.broken_lines:
        parts.append(f"{run.broken_lines} lines could not be read")
    return " · ".join(parts)


def ensemble_lines(run: LiveRun) -> list[str]:
    """The ensemble and its members on the validation split, diversity, bytes and faults."""
    score, lines = run.validation, []
    if score:
        if score.get("accuracy") is not None:
            lines.append(f"accuracy   {percent(score['accuracy'], 2):>9} {sparkline(tuple(run.ensemble))}")
            lines.append(f"NLL        {short(score.get('loss'), 4):>9}")
        else:
            lines.append(f"RMSE       {short(score.get('rmse'), 4):>9} {sparkline(tuple(run.ensemble))}")
        if score.get("effective_members") is not None and len(score.get("members", ())) > 1:
            effective = short(score["effective_members"], 4)
            lines.append(f"effective  {effective:>9} {sparkline(tuple(run.effective))}")
            lines.append(f"disagree   {percent(score.get('disagreement')):>9}")
        lines += _member_lines(score.get("members") or ())
    lines.append(f"sent       {bytes_text(run.sent_bytes):>9} {_ratio(run)}")
    faults = {
        k: n for k, n in run.counts.items() if k not in ("branched", "resumed", "cleared", "early_stop")
    }
    lines.append("events     " + (", ".join(f"{n} {k}" for k, n in sorted(faults.items())) or "none"))
    whole = sum(run.phases.values())
    if whole:
        shares = sorted(run.phases.items(), key=lambda item: -item[1])
        lines.append("time       " + ", ".join(f"{k} {percent(s / whole, 0)}" for k, s in shares[:4]))
    return lines


def _member_lines(members: Sequence[dict[str, float]], most: int = 8) -> list[str]:
    lines = []
    for score in members[:most]:
        figure = percent(score["accuracy"], 2) if "accuracy" in score else short(score.get("rmse"), 4)
        lines.append(f"member {score['member']:<3} {figure:>9}")
    return [*lines, f"… and {len(members) - most} more"] if len(members) > most else lines


def _ratio(run: LiveRun) -> str:
    if not run.dense_bytes or run.dense_bytes == run.sent_bytes:
        return ""
    return f"({short(run.dense_bytes / max(1, run.sent_bytes))} times less than float32)"


def resource_lines(run: LiveRun) -> list[str]:
    """The machine's figures with sparklines; what was never read is left out."""
    lines = []
    for label, name, show, high in (
        ("CPU", "cpu_percent", lambda v: f"{v:.0f} %", 100.0),
        ("memory", "memory_percent", lambda v: f"{v:.0f} %", 100.0),
        ("run CPU", "process_cpu_percent", lambda v: f"{v / 100:.1f} cores", None),
        ("run memory", "process_rss_bytes", bytes_text, None),
        ("GPU", "gpu_utilization", lambda v: f"{v:.0f} %", 100.0),
        ("GPU memory", "gpu_memory_used_gb", lambda v: bytes_text(v * 2**30), None),
        ("disk write", "disk_write_bytes_per_s", lambda v: f"{bytes_text(v)}/s", None),
        ("disk read", "disk_read_bytes_per_s", lambda v: f"{bytes_text(v)}/s", None),
        ("sent", "network_sent_bytes_per_s", lambda v: f"{bytes_text(v)}/s", None),
        ("received", "network_recv_bytes_per_s", lambda v: f"{bytes_text(v)}/s", None),
        ("load", "load_average", lambda v: f"{v:.1f}", None),
    ):
        values = run.series(name)
        newest = next((value for value in reversed(values) if value is not None), None)
        if newest is not None:
            lines.append(f"{label:<11}{show(newest):>12} {sparkline(values, low=0.0, high=high)}")
    for node, sample in sorted(run.nodes.items())[:MOST_NODES]:
        busy, full = sample.get("cpu_percent"), sample.get("memory_percent")
        figures = [
            f"{name} {value:.0f} %" for name, value in (("CPU", busy), ("memory", full)) if value is not None
        ]
        lines.append(f"{node}: {', '.join(figures)}")
    if len(run.nodes) > MOST_NODES:
        lines.append(f"… and {len(run.nodes) - MOST_NODES} more machines")
    return lines or ["no samples: monitoring.interval_s is 0, or the run is of an older version"]


def worker_lines(view: WorkerView) -> list[str]:
    """One worker in detail."""
    last = view.last
    lines = [
        f"worker {view.worker} of group {last.get('group')}: {last.get('status')}",
        f"loss       {short(last.get('loss'), 4):>9} {sparkline(tuple(view.losses), width=48)}",
        f"time       {seconds_text(last.get('seconds')):>9} {sparkline(tuple(view.seconds), width=48)}",
        f"data       {seconds_text(last.get('data_s')):>9}",
        f"encoding   {seconds_text(last.get('encode_s')):>9}",
        f"processor  {seconds_text(last.get('cpu_s')):>9}",
        f"memory     {bytes_text(last.get('peak_rss_bytes')):>9}",
        f"rejected   {view.rejected:>9}",
        f"failed     {view.failed:>9}",
    ]
    return [*lines, str(last["reason"])] if last.get("reason") else lines


def event_lines(run: LiveRun, count: int) -> list[str]:
    """The newest events, newest last."""
    found = []
    for event in list(run.events)[-count:]:
        who = "" if event.get("worker") is None else f" worker {event['worker']}:"
        clock = str(event.get("time", ""))[11:19]
        found.append(
            f"{clock} round {event.get('round')}: {event.get('kind')}:{who} {event.get('reason', '')}"
        )
    return found or ["no events"]
