"""An evaluation in full, as plain JSON: what reports draw from."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hqde.data import Examples, as_examples
from hqde.ensemble.evaluation import classification_figures
from hqde.errors import PreconditionError
from hqde.metrics import disagreement_matrix, fidelity_matrix, reliability_bins

if TYPE_CHECKING:
    from hqde.ensemble.ensemble import Ensemble

MAX_RESIDUALS = 2000
_FULL_RANGE = 128  # uint8 pictures that stay below this are taken for another scale, as the digits' 0..16


def describe_evaluation(
    ensemble: Ensemble,
    examples: Any,
    *,
    num_uncertain: int = 12,
    batch_size: int = 512,
    predictions: tuple[Tensor, Tensor] | None = None,
) -> dict[str, Any]:
    """Reliability, disagreement and the most uncertain rows of an ensemble on labelled rows.

    Args:
        ensemble: classification or regression.
        examples: labelled rows in any form that ``as_examples`` takes.
        num_uncertain: how many rows of the highest total uncertainty to list.
        batch_size: rows at once.
        predictions: what ``ensemble.predict_labelled(examples)`` returned, if it is at hand already.

    Returns:
        Plain JSON values. ``reliability`` is that of the combined probabilities without calibration,
        ``reliability_calibrated`` with it; ``ensemble`` and ``ensemble_calibrated`` likewise. An entry of
        ``uncertain`` has the row's ``index``, ``target``, ``predicted``, the ``probability`` of the predicted
        class with calibration, ``total``, ``aleatoric``, ``epistemic``, and ``image`` (``shape``
        [h, w, c] and base64 ``pixels``, uint8, row by row) or ``features``, whichever the inputs are.
        Regression has ``residuals`` instead of what needs probabilities: at most 2000 pairs of ``predicted``
        and ``target``, spread evenly over the rows.

    Raises:
        PreconditionError: there are no rows.
    """
    rows = as_examples(examples, task=ensemble.schema.task)
    if predictions is None:
        predictions = ensemble.predict_labelled(rows, batch_size=batch_size)
    members, targets = predictions
    if len(targets) == 0:
        raise PreconditionError("there are 0 rows to describe: give at least one.")
    evaluation = ensemble.evaluate_predictions(members, targets).to_dict()
    figures = {key: value for key, value in evaluation.items() if key != "members"}
    described: dict[str, Any] = {
        "task": ensemble.schema.task,
        "classes": list(ensemble.schema.classes),
        "members": evaluation["members"],
        "uncertain": _uncertain_rows(ensemble, rows, members, targets, num_uncertain),
    }
    if ensemble.schema.task == "regression":
        mean = ensemble.combine(members)[:, 0]
        chosen = _spread_evenly(len(targets), MAX_RESIDUALS)
        residuals = {"predicted": mean[chosen].tolist(), "target": targets[chosen].tolist()}
        return {**described, "ensemble": figures, "residuals": residuals}
    plain = ensemble.combiner.combine(members, ensemble.scores)
    calibrated = ensemble.calibrated(plain)
    return {
        **described,
        "temperature": ensemble.temperature,
        "matrix_scaling": ensemble.matrix_scaling is not None,
        "ensemble": {**figures, **classification_figures(plain, targets)},
        "ensemble_calibrated": classification_figures(calibrated, targets),
        "reliability": _reliability(plain, targets),
        "reliability_calibrated": _reliability(calibrated, targets),
        "disagreement_matrix": disagreement_matrix(members).tolist(),
        "entanglement_matrix": fidelity_matrix(members).tolist(),
    }


def encode_images(images: Tensor) -> list[dict[str, Any]]:
    """Pictures (n, c, h, w) for display: ``{"shape": [h, w, c], "pixels": base64}`` each, uint8.

    Full-range uint8 is kept as it is. Floats, and integers on another scale (such as 0..16), are spread over
    0..255 by the lowest (at most 0) and highest value among all of ``images``.

    >>> encode_images(torch.tensor([[[[0.0, 2.0]]]]))
    [{'shape': [1, 2, 1], 'pixels': 'AP8='}]
    """
    if images.dtype != torch.uint8 or int(images.max()) < _FULL_RANGE:
        values = images.to(torch.float64)
        low, high = min(0.0, float(values.min())), float(values.max())
        values = (values - low) / (high - low) * 255.0 if high > low else torch.zeros_like(values)
        images = values.round().to(torch.uint8)
    rows = images.permute(0, 2, 3, 1).contiguous()
    return [
        {"shape": list(row.shape), "pixels": base64.b64encode(row.numpy().tobytes()).decode("ascii")}
        for row in rows
    ]


def _reliability(probs: Tensor, targets: Tensor) -> dict[str, list[float]]:
    bins = reliability_bins(probs, targets)
    return {
        "confidence": bins.confidence.tolist(),
        "accuracy": bins.accuracy.tolist(),
        "count": bins.count.tolist(),
    }


def _uncertain_rows(
    ensemble: Ensemble, examples: Examples, members: Tensor, targets: Tensor, count: int
) -> list[dict[str, Any]]:
    split = ensemble.split_uncertainty(members)
    order = torch.argsort(split.total, descending=True, stable=True)[:count]
    if len(order) == 0:
        return []
    combined = ensemble.combine(members[:, order])
    regression = ensemble.schema.task == "regression"
    predicted = combined[:, 0] if regression else combined.argmax(dim=1)
    inputs = examples.fetch(order).inputs
    images = features = None
    if isinstance(inputs, Tensor):
        images = encode_images(inputs) if ensemble.schema.kind == "image" else None
        features = inputs.tolist() if ensemble.schema.kind == "tabular" else None
    return [
        {
            "index": int(row),
            "target": targets[row].item(),
            "predicted": predicted[place].item(),
            "probability": None if regression else float(combined[place].max()),
            "total": float(split.total[row]),
            "aleatoric": float(split.aleatoric[row]),
            "epistemic": float(split.epistemic[row]),
            "image": None if images is None else images[place],
            "features": None if features is None else features[place],
        }
        for place, row in enumerate(order)
    ]


def _spread_evenly(num_rows: int, most: int) -> Tensor:
    """At most ``most`` of the row numbers 0..num_rows−1, evenly spread."""
    count = min(num_rows, most)
    return torch.arange(count) * num_rows // count
