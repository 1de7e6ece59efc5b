"""The members against the ensemble, and against each other, on the test split."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from hqde.reporting.document import Document
from hqde.reporting.panel import BOTTOM, TOP, WIDTH, Figure, Key, Panel, Table
from hqde.reporting.record import RunRecord
from hqde.reporting.scales import fixed, percent, short, span
from hqde.reporting.timeline import group_style

# So many members get a row each with their name; more stand in rank order.
NAMED_ROWS = 16
NUMBERED_CELLS = 12
SHADES = 24

CHART_HEIGHT = 340.0
SQUARE_SIDE = (WIDTH - (CHART_HEIGHT - TOP - BOTTOM)) / 2  # the room that makes the matrix square


def member_figures(record: RunRecord) -> list[Figure]:
    """Every member beside the ensemble, one chart for each figure that both have; then pair against pair."""
    if record.evaluation is None:
        return []
    members, ensemble = record.evaluation.documents("members"), record.evaluation.document("ensemble")
    if not members or ensemble is None:
        return []
    if record.task == "regression":
        wanted = [
            ("rmse", "RMSE", "test RMSE (target units)", True),
            ("crps", "CRPS", "test CRPS (target units)", True),
            ("nll", "NLL", "test NLL (nats)", True),
        ]
    else:
        wanted = [("accuracy", "accuracy", "test accuracy", False), ("nll", "NLL", "test NLL (nats)", True)]
    figures: list[Figure] = []
    for key, word, label, lower in wanted:
        scores = {row.count("member"): value for row in members if (value := row.number(key)) is not None}
        whole = ensemble.number(key)
        if scores and whole is not None:
            table = _members_table(record, members, ensemble) if not figures else None
            figures.append(_dots(scores, whole, key, word, label, lower, table))
    return [
        *figures,
        *(pairs for pairs in (_disagreement(record), _entanglement(record)) if pairs is not None),
    ]


def _dots(
    scores: dict[int, float], whole: float, key: str, word: str, label: str, lower: bool, table: Table | None
) -> Figure:
    def written(value: float) -> str:
        return percent(value, 2) if key == "accuracy" else short(value, 4)

    better = sum((whole < value) if lower else (whole > value) for value in scores.values())
    count = "its only member" if len(scores) == 1 else f"{better} of its {len(scores)} members"
    if better == len(scores) > 1:
        count = f"every one of its {better} members"
    verb = (
        f"beats {count}"
        if better
        else "does not beat any member"
        if len(scores) > 1
        else "equals its only member"
    )
    mean = fmean(scores.values())
    title = f"On test {word} the ensemble ({written(whole)}) {verb}"
    ranked = sorted(scores, key=lambda member: scores[member], reverse=lower)  # the best on top
    named = len(ranked) <= NAMED_ROWS
    ticks = [(i, f"member {m}") for i, m in enumerate(ranked)] if named else []
    panel = Panel(
        span([*scores.values(), whole], pad=0.12), (-0.7, len(ranked) - 0.3), x_label=label,
        y_label="" if named else "members, the best on top", percent_x=key == "accuracy", y_ticks=ticks,
        left=74 if named else 20, size=(WIDTH, CHART_HEIGHT),
    )  # fmt: skip
    x, foot = panel.x(whole), panel.y.start
    panel.rule((x, panel.y.end - 6), (x, foot), "whole")
    panel.rule((panel.x(mean), panel.y.end), (panel.x(mean), foot), "mean")
    right_side = x > (panel.x.start + panel.x.end) / 2
    panel.text(
        (x + (-4 if right_side else 4), panel.y.end - 8),
        "ensemble",
        "event ink end" if right_side else "event ink",
    )
    radius = 5.5 if named else max(2.6, min(4.0, 90 / len(ranked)))
    for i, member in enumerate(ranked):
        style = group_style(member, len(ranked))
        panel.dot(scores[member], i, style, f"member {member}: {written(scores[member])}", radius)
    legend = (
        Key("ink", "strong", f"ensemble {written(whole)}"),
        Key("ink", "dash", f"mean member {written(mean)}"),
        Key("c0" if len(ranked) <= 8 else "many", "dot", "one member"),
    )  # fmt: skip
    words = "; ".join(f"member {m}: {written(scores[m])}" for m in ranked[:NAMED_ROWS])
    return Figure(title, panel.render(f"{title}. {words}"), "", legend, table)


def _members_table(record: RunRecord, members: Sequence[Document], ensemble: Document) -> Table:
    wanted = ("rmse", "nll", "crps") if record.task == "regression" else ("accuracy", "nll", "brier", "ece")
    keys = tuple(key for key in wanted if any(row.number(key) is not None for row in [*members, ensemble]))

    def cells(row: Document) -> tuple[str, ...]:
        return tuple(percent(row.number(k), 2) if k == "accuracy" else fixed(row.number(k), 4) for k in keys)

    names = {
        "accuracy": "accuracy",
        "nll": "NLL",
        "brier": "Brier",
        "ece": "ECE",
        "rmse": "RMSE",
        "crps": "CRPS",
    }
    rows = [
        ("ensemble", *cells(ensemble)),
        *((f"member {row.count('member')}", *cells(row)) for row in members),
    ]
    return Table("The members in numbers", ("", *(names[key] for key in keys)), tuple(rows))


def _disagreement(record: RunRecord) -> Figure | None:
    """The share of test examples on which two members name different classes, for every pair."""
    matrix = record.evaluation.matrix("disagreement_matrix") if record.evaluation else []
    pairs = _pairs(matrix)
    if not pairs:
        return None
    top, first, second = max(pairs)
    mean = fmean(value for value, _, _ in pairs)
    title = (
        f"Two members disagree on {percent(mean)} of the test examples on average; "
        f"members {first} and {second} most, on {percent(top)}"
    )
    if len(matrix) == 2:
        title = f"The two members disagree on {percent(mean)} of the test examples"
    if top == 0:
        title = "All members predict the same class for every test example"
    note = "Numbers are per cent of the test examples. Averaging mends the errors that members do not share."
    return _matrix_figure(title, note, "The pairs in numbers", matrix, 0.0, top)


def _entanglement(record: RunRecord) -> Figure | None:
    """How much the probabilities of two members overlap, for every pair."""
    matrix = record.evaluation.matrix("entanglement_matrix") if record.evaluation else []
    pairs = _pairs(matrix)
    if not pairs:
        return None
    (low, first, second), (top, _, _) = min(pairs), max(pairs)
    mean = fmean(value for value, _, _ in pairs)
    title = f"Entanglement: two members' probabilities overlap by {percent(mean, 2)} on average"
    if len(matrix) > 2:
        title += f"; least those of members {first} and {second}, by {percent(low, 2)}"
    note = (
        "The entanglement matrix: the fidelity Σ √(p q) of two members, as a mean over the test examples in "
        "per cent. 100 would be equal members; its eigenvalues give the number of effective members."
    )
    floor = low - 0.25 * (top - low)  # the least cell is not blank
    return _matrix_figure(title, note, "The overlaps in numbers", matrix, floor, top)


def _pairs(matrix: Sequence[Sequence[float | None]]) -> list[tuple[float, int, int]]:
    """What is known of each two members, with their positions."""
    return [
        (value, i, j)
        for i, row in enumerate(matrix)
        for j, value in enumerate(row)
        if i < j and value is not None
    ]


def _matrix_figure(
    title: str, note: str, caption: str, matrix: Sequence[Sequence[float | None]], low: float, top: float
) -> Figure:
    """Member against member, the shade from ``low`` to ``top``."""
    size = len(matrix)
    step = 1 if size <= NAMED_ROWS else 8
    ticks = [(i + 0.5, str(i)) for i in range(0, size, step)]
    panel = Panel(
        (0, size), (size, 0), x_label="member", y_label="member", x_ticks=ticks, y_ticks=ticks,
        left=SQUARE_SIDE, right=SQUARE_SIDE, grid=False, size=(WIDTH, CHART_HEIGHT),
    )  # fmt: skip
    shares = [
        [
            0.0 if i == j or value is None or top <= low else (value - low) / (top - low)
            for j, value in enumerate(row)
        ]
        for i, row in enumerate(matrix)
    ]
    if size <= NAMED_ROWS:
        _cells(panel, matrix, shares)
    else:
        _shades(panel, shares)
    rows = tuple((str(i), *(percent(value) for value in row)) for i, row in enumerate(matrix))
    heads = ("member", *map(str, range(size)))
    table = Table(caption, heads, rows) if size <= NUMBERED_CELLS else None
    return Figure(title, panel.render(title), note, (), table)


def _cells(panel: Panel, matrix: Sequence[Sequence[float | None]], shares: Sequence[Sequence[float]]) -> None:
    numbered = len(matrix) <= NUMBERED_CELLS
    for i, row in enumerate(matrix):
        for j, value in enumerate(row):
            share = shares[i][j]
            panel.add('<g style="--share:{}">', f"{share:.2f}")
            panel.box((j, i), (j + 1, i + 1), "cell", f"members {i} and {j}: {percent(value)}")
            if numbered:
                at = (panel.x(j + 0.5), panel.y(i + 0.5) + 4)
                words = "–" if i == j else f"{100 * value:.1f}" if value is not None else "?"
                panel.text(at, words, "number on" if share > 0.7 else "number")
            panel.add("</g>")


def _shades(panel: Panel, shares: Sequence[Sequence[float]]) -> None:
    """Many cells: one path per shade instead of one element per cell keeps the page small."""
    paths: dict[int, list[str]] = {}
    side = (panel.x(1) - panel.x(0), panel.y(1) - panel.y(0))
    for i, row in enumerate(shares):
        for j, share in enumerate(row):
            shade = round(SHADES * share)
            corner = f"M{panel.x(j):.1f} {panel.y(i):.1f}"
            paths.setdefault(shade, []).append(f"{corner}h{side[0]:.2f}v{side[1]:.2f}h-{side[0]:.2f}z")
    for shade, parts in sorted(paths.items()):
        panel.add(
            '<path class="cell plain" style="--share:{}" d="{}"/>', f"{shade / SHADES:.2f}", "".join(parts)
        )
