"""The run in a few figures and sentences."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from hqde.reporting.document import Document
from hqde.reporting.record import RunRecord
from hqde.reporting.scales import bytes_text, fixed, percent, seconds_text, short


@dataclass(frozen=True)
class Tile:
    """One headline figure: its name, its value, and what to hold it against."""

    name: str
    value: str
    note: str = ""


def run_title(record: RunRecord) -> str:
    """What was trained on what, as far as the run says."""
    if record.metrics is None:
        return record.name
    data, model = (_named(record.metrics, key) for key in ("data", "model"))
    return " on ".join(part for part in (model, data) if part) or record.name


def run_facts(record: RunRecord) -> list[str]:
    """Short facts under the title."""
    workers, groups = len(record.worker_ids), len(record.groups)
    facts = [_counted(workers, "worker"), _counted(groups, "group"), _counted(len(record.rounds), "round")]
    if record.metrics is not None:
        facts += [f"{key} {text}" for key in ("backend", "seed") if (text := _named(record.metrics, key))]
    return [*facts, f"run {record.name}"]


def tiles(record: RunRecord) -> list[Tile]:
    """The figures to see first: quality on the test split, then what it cost."""
    if record.metrics is None:
        return _unfinished_tiles(record)
    regression = record.task == "regression"
    quality = _regression_quality(record.metrics) if regression else _quality(record, record.metrics)
    return [tile for tile in quality + _cost(record, record.metrics) if tile.value != "–"]


def _quality(record: RunRecord, metrics: Document) -> list[Tile]:
    calibrated = metrics.document("calibrated") or Document("metrics.json", {})

    def after(key: str) -> str:
        value = calibrated.number(key)
        return "" if value is None else f"{fixed(value)} calibrated"

    accuracy, mean = metrics.number("accuracy"), metrics.number("mean_member_accuracy")
    gain = ""
    if accuracy is not None and mean is not None:
        gain = f"mean member {percent(mean)} ({_signed(100 * (accuracy - mean))} points)"
    if record.matrix_scaled:
        gain = f"{percent(calibrated.number('accuracy'))} calibrated; {gain}"
    members, disagreement = len(metrics.items("members")), metrics.number("diversity", "disagreement")
    return [
        Tile("accuracy", percent(accuracy), gain),
        Tile("NLL", fixed(metrics.number("nll")), after("nll")),
        Tile("Brier score", fixed(metrics.number("brier")), after("brier")),
        Tile("calibration error (ECE)", fixed(metrics.number("ece")), after("ece")),
        Tile(
            "effective members",
            short(metrics.number("diversity", "effective_members")),
            f"of {members}; two disagree on {percent(disagreement)}" if members else "",
        ),
    ]


def _regression_quality(metrics: Document) -> list[Tile]:
    rows = metrics.documents("members")
    errors = [value for row in rows if (value := row.number("rmse")) is not None]
    mean = f"mean member {short(sum(errors) / len(errors))}" if errors else ""
    return [
        Tile("RMSE", short(metrics.number("rmse")), mean or "in target units"),
        Tile("NLL", fixed(metrics.number("nll")), "Gaussian, nats"),
        Tile("CRPS", short(metrics.number("crps")), "in target units"),
    ]


def _cost(record: RunRecord, metrics: Document) -> list[Tile]:
    rate = metrics.number("train", "worker_samples_per_s")
    sent, dense = (
        metrics.number("communication", "sent_bytes"),
        metrics.number("communication", "dense_bytes"),
    )
    against = "as plain float32" if sent else "no group had anything to exchange"
    if sent is not None and dense and abs(sent / dense - 1) > 0.005:
        against = f"{short(sent / dense, 2)} × plain float32 ({bytes_text(dense)})"
    samples = metrics.number("train", "worker_samples")
    return [
        Tile(
            "wall time",
            seconds_text(metrics.number("train", "wall_s")),
            _counted(len(record.rounds), "round"),
        ),
        Tile(
            "throughput",
            "–" if rate is None else f"{short(rate)} /s",
            "worker-samples" if samples is None else f"{samples:,.0f} worker-samples in all",
        ),
        Tile("peak memory", bytes_text(metrics.number("train", "peak_rss_bytes")), "resident, this process"),
        Tile("bytes sent", bytes_text(sent), against),
    ]


def _unfinished_tiles(record: RunRecord) -> list[Tile]:
    last, score = record.rounds[-1], record.last_validation
    found = [
        Tile("rounds done", f"{len(record.rounds):,}", percent(last.progress, 0) if last.progress else "")
    ]
    if score is not None:
        if record.task == "regression":
            found.append(Tile("validation RMSE", short(score.rmse), "newest"))
        else:
            found.append(Tile("validation accuracy", percent(score.accuracy), "newest"))
            found.append(Tile("validation NLL", fixed(score.loss), "newest"))
    found.append(Tile("time in rounds", seconds_text(sum(line.wall_s or 0.0 for line in record.rounds))))
    return [tile for tile in found if tile.value != "–"]


def sentences(record: RunRecord) -> list[str]:
    """What a reader should know first, in words."""
    return [*_verdict(record), *_calibration(record)]


def _verdict(record: RunRecord) -> list[str]:
    metrics = record.metrics
    if metrics is None:
        return []
    members = len(metrics.items("members")) or len(record.groups)
    who = f"The ensemble of {members} members" if members > 1 else "The single member"
    accuracy, mean = metrics.number("accuracy"), metrics.number("mean_member_accuracy")
    if accuracy is None:
        error = metrics.number("rmse")
        return [] if error is None else [f"{who} misses the target by {short(error)} (root mean square)."]
    words = f"{who} classifies {percent(accuracy)} of the test examples correctly"
    if members > 1 and mean is not None:
        gain = round(100 * (accuracy - mean), 1)
        than = f"{abs(gain)} points {'more' if gain > 0 else 'fewer'} than" if gain else "as many as"
        words += f", {than} its members do on average"
    if record.matrix_scaled:
        words += f"; {percent(metrics.number('calibrated', 'accuracy'))} after matrix scaling"
    return [words + "."]


def _calibration(record: RunRecord) -> list[str]:
    metrics = record.metrics
    if metrics is None:
        return []
    temperature, scaled = metrics.number("temperature"), record.matrix_scaled
    moves = [
        _move(name, metrics.number(key), metrics.number("calibrated", key))
        for key, name in (("ece", "calibration error"), ("nll", "NLL"), ("accuracy", "accuracy"))
        if scaled or key != "accuracy"
    ]
    told = [move for move in moves if move]
    if temperature is None or (temperature == 1.0 and not scaled) or not told:
        return []
    what = f"Temperature {fixed(temperature, 2)}{' with a matrix scaling' if scaled else ''}"
    return [f"{what}, fitted on the validation split, {_listed(told)}."]


def _listed(pieces: list[str]) -> str:
    return " and ".join([", ".join(pieces[:-1]), pieces[-1]] if len(pieces) > 1 else pieces)


def _move(name: str, before: float | None, after: float | None) -> str:
    """How calibration moved a figure, as a piece of a sentence."""
    if before is None or after is None:
        return ""
    if fixed(before) == fixed(after):
        return f"leaves the {name} at {fixed(before)}"
    return f"{'lowers' if after < before else 'raises'} the {name} from {fixed(before)} to {fixed(after)}"


def warnings(record: RunRecord) -> list[str]:
    """What went wrong, or has not happened yet; empty for a clean, finished run."""
    found = []
    if not record.finished:
        last = record.rounds[-1]
        done = f" ({percent(last.progress, 0)} of the training)" if last.progress is not None else ""
        found.append(
            f"This run is unfinished: its newest round is {last.round_index}{done}. "
            "There are no test figures yet; hqde train --resume goes on from the last checkpoint."
        )
    elif record.evaluation is None:
        found.append("This run has no evaluation.json: charts of the test split are left out.")
    kinds = Counter(event.kind for event in record.events)
    faults = {
        kind: kinds[kind] or int(_faults(record, key))
        for kind, key in (("rejected", "rejected"), ("failed", "failures"))
    }
    parts = []
    if faults["rejected"]:
        parts.append(f"{_counted(faults['rejected'], 'update')} {_were(faults['rejected'])} rejected")
    if faults["failed"]:
        parts.append(f"a worker failed {_times(faults['failed'])}")
    if kinds["skipped"]:
        parts.append(f"{_counted(kinds['skipped'], 'round')} {_were(kinds['skipped'])} skipped")
    if parts:
        text = "; ".join(parts)
        where = ": the reasons are under Events." if record.events else "."
        found.append(f"{text[0].upper()}{text[1:]}{where}")
    return found


def _faults(record: RunRecord, key: str) -> float:
    return (record.metrics.number("faults", key) if record.metrics else None) or 0.0


def _named(metrics: Document, key: str) -> str:
    """A setting that may be a plain text or an object with a name."""
    value = metrics.value(key)
    if isinstance(value, dict):
        value = value.get("name", value.get("source"))
    return "" if value is None else str(value)


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _were(count: int) -> str:
    return "was" if count == 1 else "were"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")
