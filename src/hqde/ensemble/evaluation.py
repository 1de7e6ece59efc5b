"""How good an ensemble and each of its members are on labelled rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from hqde.ensemble.prediction import Loss
from hqde.metrics import (
    accuracy,
    brier,
    crps_gaussian,
    disagreement,
    double_fault,
    ece,
    effective_members,
    gaussian_nll,
    mutual_information,
    nll,
    pairwise_kl,
    q_statistic,
    rmse,
)


@dataclass(frozen=True)
class Evaluation:
    """Figures of an ensemble on labelled rows; those that the task does not have are None.

    Attributes:
        accuracy, nll, brier, ece: of the combined probabilities (calibration included); NLL in nats, ECE over
            15 bins. For regression ``nll`` is the Gaussian NLL of the combined mean and variance, in nats.
        rmse, crps: regression, in target units. Models trained on MSE give points, without a variance: their
            ``nll`` is None, and the CRPS of a point is the absolute error.
        mean_member_accuracy: mean over members.
        members: per member ``{"member": id, ...}`` with its own figures (raw, without temperature).
        diversity: classification: ``disagreement``, ``effective_members``, ``q_statistic``, ``double_fault``,
            ``pairwise_kl`` (nats), as means over pairs, and ``mutual_information`` (nats); a lone member is
            compared with itself.
    """

    num_rows: int
    accuracy: float | None = None
    nll: float | None = None
    brier: float | None = None
    ece: float | None = None
    rmse: float | None = None
    crps: float | None = None
    mean_member_accuracy: float | None = None
    members: list[dict[str, Any]] = field(default_factory=list)
    diversity: dict[str, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return asdict(self)


def evaluate_classification(
    member_probs: Tensor, combined: Tensor, targets: Tensor, *, member_ids: Sequence[int]
) -> Evaluation:
    """Figures of a classification ensemble from predictions at hand.

    Args:
        member_probs: (m, n, c) raw probabilities of the members.
        combined: (n, c) the ensemble's.
        targets: (n,) int64 class ids.
        member_ids: m ids, in the order of ``member_probs``.
    """
    members = [
        {"member": member_id, **classification_figures(probs, targets)}
        for member_id, probs in zip(member_ids, member_probs, strict=True)
    ]
    return Evaluation(
        num_rows=len(targets),
        **classification_figures(combined, targets),
        mean_member_accuracy=sum(member["accuracy"] for member in members) / len(members),
        members=members,
        diversity=diversity_figures(member_probs, targets),
    )


def evaluate_regression(
    member_normals: Tensor, combined: Tensor, targets: Tensor, *, member_ids: Sequence[int], loss: Loss
) -> Evaluation:
    """Figures of a regression ensemble from predictions at hand.

    Args:
        member_normals: (m, n, 2) mean and variance of the members, in target units.
        combined: (n, 2) the ensemble's.
        targets: (n,) in target units.
        member_ids: m ids, in the order of ``member_normals``.
        loss: ``mse`` or ``gaussian_nll``.
    """
    figures = _regression_figures(combined, targets, loss)
    return Evaluation(
        num_rows=len(targets),
        rmse=figures["rmse"],
        nll=figures["nll"],
        crps=figures["crps"],
        members=[
            {"member": member_id, **_regression_figures(normals, targets, loss)}
            for member_id, normals in zip(member_ids, member_normals, strict=True)
        ],
    )


def classification_figures(probs: Tensor, targets: Tensor) -> dict[str, float]:
    """Accuracy, NLL, Brier score and ECE of one set of probabilities (n, c)."""
    return {
        "accuracy": float(accuracy(probs, targets)),
        "nll": float(nll(probs, targets)),
        "brier": float(brier(probs, targets)),
        "ece": float(ece(probs, targets)),
    }


def diversity_figures(member_probs: Tensor, targets: Tensor) -> dict[str, float]:
    """How different the members (m, n, c) are; pairwise figures are means over pairs."""
    num_members = len(member_probs)
    return {
        "disagreement": float(disagreement(member_probs)),
        "effective_members": float(effective_members(member_probs)),
        "q_statistic": float(q_statistic(member_probs, targets)),
        "double_fault": float(double_fault(member_probs, targets)),
        "pairwise_kl": float(pairwise_kl(member_probs).sum()) / max(1, num_members * (num_members - 1)),
        "mutual_information": float(mutual_information(member_probs)),
    }


def _regression_figures(normals: Tensor, targets: Tensor, loss: Loss) -> dict[str, float | None]:
    mean, variance = normals.unbind(dim=1)
    figures: dict[str, float | None] = {"rmse": float(rmse(mean, targets))}
    if loss == "mse":
        return {**figures, "nll": None, "crps": float((mean - targets).abs().mean())}
    return {
        **figures,
        "nll": float(gaussian_nll(mean, variance, targets)),
        "crps": float(crps_gaussian(mean, variance, targets)),
    }
