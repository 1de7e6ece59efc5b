"""Fewer members that predict as well: chosen on some rows, and compared on others."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hqde.data import as_examples
from hqde.ensemble.evaluation import classification_figures
from hqde.ensemble.fitting import calibrate_to_predictions, fit_to_predictions
from hqde.ensemble.pooling import FittableCombiner, shares_of
from hqde.ensemble.quantum_combiners import EntanglementCombiner
from hqde.errors import PreconditionError
from hqde.metrics import rmse
from hqde.quantum import Budget, caruana, choose_members, error_gram, subset_energy
from hqde.seeding import generator

if TYPE_CHECKING:
    from hqde.ensemble.ensemble import Ensemble

LATENCY_ROWS = 128
LATENCY_REPEATS = 7


@dataclass(frozen=True)
class SelectedMembers:
    """What `select_members` found.

    Attributes:
        ensemble: the selected members; combiner and calibration are fitted to the selecting rows.
        selected: their ids, in the order of the ensemble's members.
        energy: Brier score (mean squared error) of their equal-weight pool on the selecting rows.
        solver: who found the set; ``exact`` says whether every set was looked at.
        num_selecting_rows, num_judging_rows: how many rows either part has.
        comparison: a dict for each of ``selected``, ``best single``, ``top K``, ``greedy`` (Caruana's picks,
            with replacement), ``all``: ``members`` (ids), ``selecting_score`` (Brier or mean squared error of
            the equal-weight pool; picks weighted), ``bytes``, ``ms``, and the figures on the judging rows.
    """

    ensemble: Ensemble
    selected: tuple[int, ...]
    energy: float
    solver: str
    exact: bool
    num_selecting_rows: int
    num_judging_rows: int
    comparison: tuple[dict[str, Any], ...]


def select_members(
    ensemble: Ensemble,
    size: int,
    data: Any,
    *,
    judge: Any = None,
    max_bytes: float | None = None,
    max_ms: float | None = None,
    sampler: Any = "auto",
    matrix_scaling: bool | None = None,
    seed: int = 0,
) -> SelectedMembers:
    """The ``size`` members whose equal-weight pool errs least, beside what else one might take.

    They are chosen by `hqde.quantum.choose_members` on the selecting rows, to which the combiner and the
    calibration of every ensemble compared are fitted as well. The figures of the comparison are those on the
    judging rows, which play no part in any of it.

    Args:
        ensemble: the pool.
        size: how many members to keep.
        data: labelled rows that no member was trained on, such as the validation split.
        judge: other labelled rows; left out, ``data`` is divided at random, half to select and half to judge.
        max_bytes: of the selected members' parameters together.
        max_ms: milliseconds that the selected members take for a batch of 128 rows, one after the other, as
            measured here and now (`member_latencies_ms`).
        sampler: as for `hqde.quantum.choose_members`.
        matrix_scaling: calibrate by one too, where the rows speak for it; left out, if the pool has one.
        seed: of the division and of the annealers.

    Returns:
        The ensemble of the selected members, and the comparison.

    Raises:
        ConfigError: an unknown sampler.
        PreconditionError: size is not from 1 to the number of members, no set keeps to the budgets, or there
            are too few rows.
        DataError: there are no labels.
    """
    if not 1 <= size <= len(ensemble):
        raise PreconditionError(
            f"size={size} members cannot be chosen of {len(ensemble)}: use 1 to {len(ensemble)}."
        )
    rows = as_examples(data, task=ensemble.schema.task)
    predictions, targets = ensemble.predict_labelled(rows)
    if judge is None:
        if len(targets) < 2:
            raise PreconditionError(f"{len(targets)} rows cannot be divided to select and judge: give more.")
        order = torch.randperm(len(targets), generator=generator(seed, "selection"))
        ours, theirs = order[: len(order) // 2], order[len(order) // 2 :]
        judged = predictions[:, theirs], targets[theirs]
        predictions, targets = predictions[:, ours], targets[ours]
    else:
        judged = ensemble.predict_labelled(judge)
    if not len(targets) or not len(judged[1]):
        raise PreconditionError("there are 0 rows to select or to judge on: give at least one of each.")
    batch = rows.fetch(torch.arange(min(LATENCY_ROWS, len(rows)))).inputs
    times_ms, sizes = member_latencies_ms(ensemble, batch), member_bytes(ensemble)
    budgets = []
    if max_bytes is not None:
        budgets.append(Budget("bytes", tuple(map(float, sizes)), max_bytes))
    if max_ms is not None:
        budgets.append(Budget("ms", times_ms, max_ms))
    gram = error_gram(predictions, targets)
    chosen = choose_members(gram, size, budgets=budgets, sampler=sampler, seed=seed)
    ranking = gram.diagonal().argsort(stable=True).tolist()
    picks = caruana(predictions, targets, size)
    sets: dict[str, Sequence[int]] = {
        "selected": chosen.members,
        "best single": ranking[:1],
        f"top {size}": sorted(ranking[:size]),
        "greedy": [member for member, count in enumerate(picks) if count],
        "all": range(len(ensemble)),
    }
    scale = ensemble.matrix_scaling is not None if matrix_scaling is None else matrix_scaling
    comparison, fitted = [], {}
    for name, members in sets.items():
        weights = picks if name == "greedy" else None
        part = fitted[name] = _fitted(ensemble, members, weights, predictions, targets, scale)
        comparison.append(
            {
                "set": name,
                "members": [ensemble.member_ids[member] for member in members],
                "selecting_score": _score(gram, members, weights),
                "bytes": sum(sizes[member] for member in members),
                "ms": sum(times_ms[member] for member in members),
                **_figures(part, judged[0][list(members)], judged[1]),
            }
        )
    selected = tuple(ensemble.member_ids[member] for member in chosen.members)
    return SelectedMembers(
        ensemble=_remembering(fitted["selected"], ensemble, selected, chosen.solver),
        selected=selected,
        energy=chosen.energy,
        solver=chosen.solver,
        exact=chosen.exact,
        num_selecting_rows=len(targets),
        num_judging_rows=len(judged[1]),
        comparison=tuple(comparison),
    )


def member_bytes(ensemble: Ensemble) -> tuple[int, ...]:
    """Bytes of each member's parameters, as they are in memory; buffers do not count."""
    return tuple(
        sum(parameter.numel() * parameter.element_size() for parameter in member.model.parameters())
        for member in ensemble.members
    )


def member_latencies_ms(
    ensemble: Ensemble, inputs: Any, *, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, ...]:
    """Milliseconds that each member takes to predict these rows by itself, on its own device.

    The median of seven predictions after one to warm up, with everything that `Ensemble.predict_members`
    does. It holds for this machine and what else runs on it.

    Args:
        ensemble: members to time.
        inputs: rows as a batch of examples holds them.
        clock: seconds.
    """
    found = []
    for position in range(len(ensemble)):
        alone, seconds = ensemble.select([position]), []
        for _ in range(LATENCY_REPEATS + 1):
            began = clock()
            alone.predict_members(inputs)
            seconds.append(clock() - began)
        found.append(1000.0 * statistics.median(seconds[1:]))
    return tuple(found)


def _fitted(
    ensemble: Ensemble,
    members: Sequence[int],
    weights: Sequence[int] | None,
    predictions: Tensor,
    targets: Tensor,
    matrix_scaling: bool,
) -> Ensemble:
    """Some members with the ensemble's kind of combiner, fitted anew, or as picked."""
    members = list(members)
    combiner = ensemble.combiner
    if isinstance(combiner, FittableCombiner) and combiner.shares:
        combiner = replace(combiner, shares=())  # type: ignore[type-var]
    part = ensemble.with_combiner(combiner).select(members)
    if weights is None:
        return fit_to_predictions(
            part, combiner, predictions[members], targets, matrix_scaling=matrix_scaling
        )
    # A linear pool with given weights, whatever they are called.
    picked = EntanglementCombiner(shares_of([float(weights[m]) for m in members], range(len(members))))
    plain = part.with_combiner(picked)
    if ensemble.schema.task == "regression":
        return plain
    return calibrate_to_predictions(plain, predictions[members], targets, matrix_scaling=matrix_scaling)


def _score(gram: Tensor, members: Sequence[int], weights: Sequence[int] | None) -> float:
    if weights is None:
        return subset_energy(gram, list(members))
    shares = torch.tensor(weights, dtype=torch.float64, device=gram.device) / sum(weights)
    return float(shares @ gram @ shares)


def _figures(part: Ensemble, predictions: Tensor, targets: Tensor) -> dict[str, float]:
    combined = part.combine(predictions)
    if part.schema.task == "regression":
        return {"rmse": float(rmse(combined[:, 0], targets))}
    return classification_figures(combined, targets)


def _remembering(part: Ensemble, whole: Ensemble, selected: Sequence[int], solver: str) -> Ensemble:
    """With where it comes from in the provenance, and no figures, which were those of the whole."""
    story = {"members": list(selected), "of": list(whole.member_ids), "solver": solver}
    part.provenance, part.metrics = {**whole.provenance, "selection": story}, {}
    return part
