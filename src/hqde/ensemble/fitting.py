"""Fitting an ensemble's combiner and calibration to predictions on held-out rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from hqde.ensemble.calibration import fit_temperature
from hqde.ensemble.combiners import make_combiner
from hqde.ensemble.matrix_scaling import fit_matrix_scaling
from hqde.ensemble.pooling import Combiner, FittableCombiner
from hqde.errors import PreconditionError

if TYPE_CHECKING:
    from hqde.ensemble.ensemble import Ensemble


def fit_to_predictions(
    ensemble: Ensemble,
    combiner: str | Combiner,
    member_predictions: Tensor,
    targets: Tensor,
    *,
    calibrate: bool = True,
    matrix_scaling: bool = False,
) -> Ensemble:
    """``Ensemble.fit_combiner`` from predictions at hand, as ``Ensemble.predict_labelled`` returns them.

    First the combiner, if it has anything to fit; then the calibration of what it gives.

    Args:
        ensemble: whose members predicted.
        combiner: by name or as an object.
        member_predictions: (m, n, c) probabilities, or (m, n, 2) means and variances.
        targets: (n,) of rows that no member was trained on.
        calibrate: fit the temperature too; regression has none.
        matrix_scaling: and after it a matrix scaling, where the rows speak for one.

    Raises:
        ConfigError: no such combiner, or it is not for this task.
        PreconditionError: there are no rows.
    """
    if len(targets) == 0:
        raise PreconditionError("there are 0 rows to fit a combiner on: give at least one.")
    chosen = make_combiner(combiner) if isinstance(combiner, str) else combiner
    ensemble.with_combiner(chosen)  # refuses one that is not for this task before it is fitted
    if isinstance(chosen, FittableCombiner):
        chosen = chosen.fit(member_predictions, targets)
    if not calibrate or ensemble.schema.task == "regression":
        return ensemble.with_combiner(chosen)
    fitted = ensemble.with_combiner(chosen)
    return calibrate_to_predictions(fitted, member_predictions, targets, matrix_scaling=matrix_scaling)


def calibrate_to_predictions(
    ensemble: Ensemble, member_predictions: Tensor, targets: Tensor, *, matrix_scaling: bool = False
) -> Ensemble:
    """``Ensemble.calibrate`` from predictions at hand, as ``Ensemble.predict_labelled`` returns them."""
    probs = ensemble.combiner.combine(member_predictions, ensemble.scores)
    tempered = ensemble.with_temperature(fit_temperature(probs, targets))
    if not matrix_scaling:
        return tempered
    scaling = fit_matrix_scaling(tempered.calibrated(probs), targets)
    return ensemble.with_temperature(tempered.temperature, scaling)
