"""A drill's table as one self-contained page: accuracy by rule and attack, shaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from hqde.drills.drill import Cell, Trial

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; display: block; overflow-x: auto; }
th, td { padding: .35rem .6rem; text-align: right; white-space: nowrap; }
th:first-child { text-align: left; }
td { color: #111; border: 1px solid #8884; }
td.broke { background: #888; color: #fff; }
small { display: block; opacity: .75; }
"""


def render_heatmap(title: str, results: Mapping[Cell, Trial]) -> str:
    """One HTML document: a table for each skew and f, a row for each rule, a column for each attack.

    A cell holds the accuracy and, below it, precision and recall of finding the bad workers. Its shade runs
    from the lowest accuracy of the page to the highest.
    """
    values = [trial.accuracy for trial in results.values() if trial.accuracy is not None]
    low, high = min(values, default=0.0), max(values, default=1.0)
    parts = []
    for skew, faults in dict.fromkeys((cell.skew, cell.num_byzantine) for cell in results):
        there = {cell: t for cell, t in results.items() if (cell.skew, cell.num_byzantine) == (skew, faults)}
        attacks = list(dict.fromkeys(cell.attack for cell in there))
        rules = list(dict.fromkeys(cell.rule for cell in there))
        head = "".join(f"<th>{escape(attack)}</th>" for attack in attacks)
        rows = "".join(_row(rule, attacks, skew, faults, there, (low, high)) for rule in rules)
        table = f"<table><tr><th>rule</th>{head}</tr>{rows}</table>"
        parts.append(f"<h2>{escape(skew)}, f = {faults}</h2>{table}")
    legend = (
        "Accuracy on the test rows. Below it precision and recall: of the updates that were refused, left "
        "out or given less than half of an equal weight, how many came from bad workers; and of theirs, how "
        "many were. Grey: the run broke."
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>'
        f"<body><h1>{escape(title)}</h1><p>{legend}</p>{''.join(parts)}</body></html>\n"
    )


def _row(
    rule: str,
    attacks: Sequence[str],
    skew: str,
    faults: int,
    results: Mapping[Cell, Trial],
    bounds: tuple[float, float],
) -> str:
    cells = (results.get(Cell(rule, attack, faults, skew)) for attack in attacks)
    return f"<tr><th>{escape(rule)}</th>{''.join(_cell(trial, *bounds) for trial in cells)}</tr>"


def _cell(trial: Trial | None, low: float, high: float) -> str:
    if trial is None:
        return "<td></td>"
    if trial.accuracy is None:
        return f'<td class="broke" title="{escape(trial.broke)}">–</td>'
    part = (trial.accuracy - low) / (high - low) if high > low else 1.0
    shade = f"background: hsl({round(120 * part)} 55% {round(62 + 16 * part)}%)"
    said = "; ".join(f"worker {worker}: {reason}" for worker, reason in trial.reasons.items())
    found = f"<small>{trial.detection}</small>" if trial.detection else ""
    return f'<td style="{shade}" title="{escape(said)}">{trial.accuracy:.3f}{found}</td>'
