"""A run directory -> a RunRecord."""

from __future__ import annotations

import json
from pathlib import Path

from hqde.errors import RunError
from hqde.reporting.document import Document
from hqde.reporting.record import (
    Event,
    MemberScore,
    ResourceSample,
    Round,
    RunRecord,
    ValidationScore,
    WorkerRound,
)

# A chart shows fewer points than this.
MOST_SAMPLES = 4000


def read_run(run_dir: Path) -> RunRecord:
    """Read what a training run left: history, events, metrics, evaluation, configuration.

    An unfinished run is welcome: ``metrics.json`` and ``evaluation.json`` may be missing, and the last line
    of ``history.jsonl`` or ``events.jsonl`` may be half written. A round that was run again after a resume
    counts once, as it came out last.

    Args:
        run_dir: the directory that ``hqde train`` wrote.

    Raises:
        RunError: the directory is not a run, holds no finished round, or holds broken JSON (naming the line).
    """
    run_dir = Path(run_dir)
    check_run(run_dir)
    history, config = run_dir / "history.jsonl", run_dir / "config.toml"
    rounds = {line.round_index: line for line in map(_round, _read_lines(history))}
    if not rounds:
        raise RunError(
            f"{run_dir} has no finished round yet: nothing to report. Let hqde train run one round."
        )
    return RunRecord(
        name=run_dir.resolve().name,
        config=_read_text(config) if config.exists() else "",
        rounds=tuple(rounds[index] for index in sorted(rounds)),
        events=tuple(_event(line) for line in _read_lines(run_dir / "events.jsonl")),
        metrics=_read_object(run_dir / "metrics.json"),
        evaluation=_read_object(run_dir / "evaluation.json"),
        resources=_resources(_read_lines(run_dir / "resources.jsonl")),
        nodes=_nodes(_read_lines(run_dir / "nodes.jsonl")),
    )


def check_run(run_dir: Path) -> None:
    """Refuse a directory that no run was written to, with RunError."""
    if not run_dir.is_dir():
        raise RunError(
            f"{run_dir} is not a run: there is no such directory. Name what hqde train --out wrote."
        )
    if not any((run_dir / name).exists() for name in ("config.toml", "history.jsonl")):
        raise RunError(
            f"{run_dir} is not a run: it holds neither history.jsonl nor config.toml. "
            "Name the directory that hqde train --out wrote."
        )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path} cannot be read as text: {error}.") from error


def _read_object(path: Path) -> Document | None:
    if not path.exists():
        return None
    try:
        data = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise RunError(f"{path} is not valid JSON (line {error.lineno}): {error.msg}.") from error
    if not isinstance(data, dict):
        raise RunError(f"{path} must hold one JSON object, got a {type(data).__name__}.")
    return Document(path.name, data)


def _read_lines(path: Path) -> list[Document]:
    """The objects of a JSON-lines file. A last line without its newline was cut off while being written."""
    if not path.exists():
        return []
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error}.") from error
    lines = raw.split(b"\n")
    documents = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
        except ValueError as error:  # broken JSON, or bytes that are not UTF-8
            if number == len(lines):
                break
            raise RunError(f"{path} line {number} is not valid JSON: {error}.") from error
        if not isinstance(data, dict):
            raise RunError(f"{path} line {number} must hold a JSON object, got a {type(data).__name__}.")
        documents.append(Document(f"{path.name} line {number}", data))
    return documents


def _round(line: Document) -> Round:
    phases = line.document("phases") or Document(line.where, {})
    round_index = line.count("round")
    epoch = line.number("epoch")
    return Round(
        round_index=round_index,
        epoch=float(round_index) if epoch is None else epoch,
        progress=line.number("progress"),
        groups=_groups(line),
        scope=line.text("scope"),
        wall_s=line.number("wall_s"),
        phases={name: phases.number(name) or 0.0 for name in phases.data},
        workers=tuple(_worker(row) for row in line.documents("workers")),
        validation=_validation(line.document("validation")),
        sent_bytes=line.number("sent_bytes"),
        dense_bytes=line.number("dense_bytes"),
    )


def _groups(line: Document) -> tuple[tuple[int, ...], ...]:
    groups = line.items("groups")
    if any(not isinstance(group, list) or not all(isinstance(w, int) for w in group) for group in groups):
        raise RunError(f"{line.where}: groups must be a list of lists of worker ids.")
    return tuple(tuple(group) for group in groups)


def _worker(row: Document) -> WorkerRound:
    return WorkerRound(
        worker=row.count("worker"),
        group=row.count("group"),
        loss=row.number("loss"),
        accuracy=row.number("accuracy"),
        learning_rate=row.number("lr"),
        samples=int(row.number("samples") or 0),
        seconds=row.number("seconds"),
        efficiency=row.number("efficiency"),
        status=row.text("status"),
        data_s=row.number("data_s"),
        encode_s=row.number("encode_s"),
        reliability=row.number("reliability"),
    )


def _validation(score: Document | None) -> ValidationScore | None:
    if score is None:
        return None
    members = tuple(
        MemberScore(row.count("member"), row.number("nll"), row.number("accuracy"), row.number("rmse"))
        for row in score.documents("members")
    )
    return ValidationScore(
        loss=score.number("loss"),
        accuracy=score.number("accuracy"),
        rmse=score.number("rmse"),
        disagreement=score.number("disagreement"),
        effective_members=score.number("effective_members"),
        members=members,
    )


def _event(line: Document) -> Event:
    round_index, worker = line.number("round"), line.number("worker")
    return Event(
        time=line.text("time"),
        round_index=None if round_index is None else int(round_index),
        kind=line.text("kind") or "event",
        worker=None if worker is None else int(worker),
        reason=line.text("reason"),
    )


def _resources(lines: list[Document]) -> tuple[ResourceSample, ...]:
    """At most ``MOST_SAMPLES`` of the samples, evenly; the last one is always there."""
    step = -(-len(lines) // MOST_SAMPLES) if lines else 1
    chosen = lines[::-1][::step][::-1]
    found = []
    for line in chosen:
        timestamp = line.number("timestamp")
        if timestamp is not None:
            round_index = line.number("round")
            numbers = {
                name: float(value)
                for name, value in line.data.items()
                if isinstance(value, int | float) and not isinstance(value, bool)
            }
            where = None if round_index is None else int(round_index)
            found.append(ResourceSample(timestamp, where, line.text("phase"), numbers))
    return tuple(found)


def _nodes(lines: list[Document]) -> dict[str, tuple[ResourceSample, ...]]:
    by_node: dict[str, list[Document]] = {}
    for line in lines:
        by_node.setdefault(line.text("node"), []).append(line)
    return {node: _resources(found) for node, found in sorted(by_node.items())}
