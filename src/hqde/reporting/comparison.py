"""Several runs on one page: their figures, what was set differently, and their curves over each other."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from hqde.errors import RunError
from hqde.reporting.document import Document
from hqde.reporting.page import Section, render_page, write_page
from hqde.reporting.panel import NUM_COLOURS, Figure, Key, Panel, Table, colour
from hqde.reporting.reading import read_run
from hqde.reporting.record import Round, RunRecord
from hqde.reporting.scales import bytes_text, percent, seconds_text, short, span, thin, worth_log

MOST_RUNS = NUM_COLOURS
Value = Callable[[Round], float | None]


def build_comparison(run_dirs: Sequence[Path], out: Path) -> Path:
    """Write one self-contained page about several runs, finished or not.

    Args:
        run_dirs: two or more directories that ``hqde train`` wrote; at most eight have colours of their own.
        out: where to write.

    Returns:
        The path of the page.

    Raises:
        RunError: fewer than two runs, or more than eight; a directory that is no run; ``out`` is a directory.
    """
    if not 2 <= len(run_dirs) <= MOST_RUNS:
        raise RunError(f"a comparison takes 2 to {MOST_RUNS} runs, got {len(run_dirs)}")
    records = [read_run(Path(path)) for path in run_dirs]
    return write_page(render_comparison(records, _names(run_dirs)), Path(out))


def render_comparison(records: Sequence[RunRecord], names: Sequence[str]) -> str:
    """The page's HTML. A pure function: no files, no clock.

    Args:
        records: of the runs.
        names: what to call them.
    """
    figures = [figure for figure in _curves(records, names) if figure is not None]
    tables = [Figure("The runs in figures", None, table=_figures_table(records, names))]
    settings = _settings_table(records, names)
    if settings is not None:
        tables.append(Figure("What was set differently", None, table=settings))
    sections = [Section("figures", "Figures", tuple(tables)), Section("curves", "Curves", tuple(figures))]
    unfinished = [name for name, record in zip(names, records, strict=True) if not record.finished]
    warnings = [f"Not finished yet: {', '.join(unfinished)}."] if unfinished else []
    return render_page(
        title=f"{len(records)} runs compared",
        facts=list(names),
        finished=not unfinished,
        sentences=_sentences(records, names),
        warnings=warnings,
        sections=[section for section in sections if section.figures],
    )


def _names(paths: Sequence[Path]) -> list[str]:
    """The directories' names; with as much of the path in front as tells them apart."""
    resolved = [Path(path).resolve() for path in paths]
    for depth in range(1, max(len(path.parts) for path in resolved) + 1):
        names = ["/".join(path.parts[-depth:]) for path in resolved]
        if len(set(names)) == len(names):
            return names
    raise RunError(f"a run is named twice: {', '.join(map(str, paths))}")


def _quality(record: RunRecord) -> tuple[str, str, bool]:
    """The figure to compare by: its key, its name, whether lower is better."""
    return ("rmse", "RMSE", True) if record.task == "regression" else ("accuracy", "accuracy", False)


def _sentences(records: Sequence[RunRecord], names: Sequence[str]) -> list[str]:
    key, word, lower = _quality(records[0])
    scores = {
        name: value
        for name, record in zip(names, records, strict=True)
        if record.metrics is not None and (value := record.metrics.number(key)) is not None
    }
    if len(scores) < 2:
        return []
    best = (min if lower else max)(scores, key=lambda name: scores[name])
    told = short(scores[best]) if lower else percent(scores[best])
    cost = {
        name: value
        for name, record in zip(names, records, strict=True)
        if record.metrics is not None and (value := record.metrics.number("train", "wall_s")) is not None
    }
    words = f"{best} has the best test {word}: {told}."
    if len(cost) == len(records):
        quickest = min(cost, key=lambda name: cost[name])
        words += f" {quickest} was the quickest: {seconds_text(cost[quickest])}."
    return [words]


def _figures_table(records: Sequence[RunRecord], names: Sequence[str]) -> Table:
    columns: list[tuple[str, Callable[[Document], str]]] = [
        ("NLL", lambda m: short(m.number("nll"))),
        ("ECE", lambda m: short(m.number("ece"))),
        ("mean member", lambda m: percent(m.number("mean_member_accuracy"))),
        ("effective members", lambda m: short(m.number("diversity", "effective_members"))),
        ("wall time", lambda m: seconds_text(m.number("train", "wall_s"))),
        ("samples/s", lambda m: short(m.number("train", "worker_samples_per_s"))),
        ("sent", lambda m: bytes_text(m.number("communication", "sent_bytes"))),
        ("peak memory", lambda m: bytes_text(_peak(m))),
        ("mean CPU", lambda m: percent(_share(m.number("resources", "mean_cpu_percent")), 0)),
        ("lost", lambda m: short(_sum(m.number("faults", "rejected"), m.number("faults", "failures")))),
        ("seed", lambda m: m.text("seed")),
    ]
    key, word, _ = _quality(records[0])
    show = short if key == "rmse" else percent
    empty = Document("metrics.json", {})
    rows = []
    for name, record in zip(names, records, strict=True):
        metrics = record.metrics or empty
        shape = f"{len(record.worker_ids)} / {len(record.groups)} / {len(record.rounds)}"
        rows.append((name, show(metrics.number(key)), *(show_it(metrics) for _, show_it in columns), shape))
    kept = [i for i in range(len(rows[0])) if i == 0 or any(row[i] not in ("–", "") for row in rows)]
    head = ("run", f"test {word}", *(title for title, _ in columns), "workers / groups / rounds")
    return Table(
        "The runs in figures",
        tuple(head[i] for i in kept),
        tuple(tuple(row[i] for i in kept) for row in rows),
    )


def _peak(metrics: Document) -> float | None:
    found = [metrics.number("resources", "peak_rss_bytes"), metrics.number("train", "peak_rss_bytes")]
    return max((value for value in found if value is not None), default=None)


def _share(value: float | None) -> float | None:
    return None if value is None else value / 100


def _sum(*values: float | None) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _settings_table(records: Sequence[RunRecord], names: Sequence[str]) -> Table | None:
    """Settings in which the runs differ; a configuration that cannot be read has none."""
    trees = [_flat(_tree(record.config)) for record in records]
    keys = sorted({key for tree in trees for key in tree})
    rows = tuple(
        (key, *(_word(tree.get(key)) for tree in trees))
        for key in keys
        if not key.startswith("monitoring.") and any(tree.get(key) != trees[0].get(key) for tree in trees)
    )
    return Table("What was set differently", ("setting", *names), rows) if rows else None


def _tree(config: str) -> Mapping[str, Any]:
    try:
        return tomllib.loads(config)
    except tomllib.TOMLDecodeError:
        return {}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _word(value: Any) -> str:
    return "–" if value is None else str(value)


def _curves(records: Sequence[RunRecord], names: Sequence[str]) -> list[Figure | None]:
    regression = records[0].task == "regression"

    def quality(line: Round) -> float | None:
        score = line.validation
        return None if score is None else (score.rmse if regression else score.accuracy)

    word = "RMSE" if regression else "accuracy"
    epochs = [[line.epoch for line in record.rounds] for record in records]
    hours = [[*accumulate(line.wall_s or 0.0 for line in record.rounds)] for record in records]
    sent = [[*accumulate((line.sent_bytes or 0.0) / 1e6 for line in record.rounds)] for record in records]
    plain = not regression
    return [
        _overlay(records, names, epochs, quality, f"Validation {word} by epoch", "epoch", word, plain),
        _overlay(records, names, hours, quality, f"Validation {word} by time", "seconds", word, plain),
        _overlay(
            records, names, epochs, lambda line: line.validation.loss if line.validation else None,
            "Validation loss by epoch", "epoch", "validation loss",
        ),
        _overlay(records, names, epochs, _train_loss, "Training loss by epoch", "epoch", "training loss"),
        _overlay(
            records, names, epochs,
            lambda line: line.validation.effective_members if line.validation else None,
            "Effective members by epoch", "epoch", "effective members",
        ),
        _overlay(records, names, sent, quality, f"Validation {word} by what was sent", "MB sent", word, plain)
        if any(row[-1] > 0 for row in sent)
        else None,
        _overlay(records, names, epochs, lambda line: line.wall_s, "Time of a round", "epoch", "seconds"),
    ]  # fmt: skip


def _train_loss(line: Round) -> float | None:
    losses = [row.loss for row in line.workers if row.loss is not None]
    return sum(losses) / len(losses) if losses else None


def _overlay(
    records: Sequence[RunRecord],
    names: Sequence[str],
    positions: Sequence[Sequence[float]],
    value: Value,
    title: str,
    x_label: str,
    y_label: str,
    percent_y: bool = False,
) -> Figure | None:
    """One curve for each run; ``None`` where there is nothing to draw."""
    curves = []
    for record, xs in zip(records, positions, strict=True):
        points = [(x, value(line)) for x, line in zip(xs, record.rounds, strict=True)]
        curves.append([point for point in points if point[1] is not None])
    ys = [y for points in curves for _, y in points if y is not None]
    if not ys:
        return None
    log_y = not percent_y and worth_log(ys)
    low, high = (min(ys) / 1.15, max(ys) * 1.15) if log_y else span(ys, floor=0.0)
    x_low, x_high = span([x for points in curves for x, _ in points], pad=0.0, floor=0.0)
    panel = Panel(
        (x_low, x_high), (low, min(high, 1.0) if percent_y else high), x_label=x_label, log_y=log_y,
        y_label=y_label + (", log scale" if log_y else ""), percent_y=percent_y,
    )  # fmt: skip
    legend = []
    for index, (name, points) in enumerate(zip(names, curves, strict=True)):
        if points:
            solo = " solo" if len(points) == 1 else ""
            panel.line(thin(points), colour(index) + solo, name)
            legend.append(Key(colour(index), "line", name))
    return Figure(title, panel.render(title), "", tuple(legend))
