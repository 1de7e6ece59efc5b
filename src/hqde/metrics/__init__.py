"""Figures of merit: pure functions of tensors.

Every scalar comes back as a float64 tensor without dimensions.
"""

from hqde.metrics.calibration import ReliabilityBins, ece, reliability_bins
from hqde.metrics.classification import accuracy, auroc, brier, nll
from hqde.metrics.decomposition import Uncertainty, uncertainty
from hqde.metrics.diversity import (
    disagreement,
    disagreement_matrix,
    double_fault,
    effective_members,
    fidelity_matrix,
    mutual_information,
    pairwise_kl,
    q_statistic,
)
from hqde.metrics.regression import crps_gaussian, gaussian_nll, rmse

__all__ = [
    "ReliabilityBins",
    "Uncertainty",
    "accuracy",
    "auroc",
    "brier",
    "crps_gaussian",
    "disagreement",
    "disagreement_matrix",
    "double_fault",
    "ece",
    "effective_members",
    "fidelity_matrix",
    "gaussian_nll",
    "mutual_information",
    "nll",
    "pairwise_kl",
    "q_statistic",
    "reliability_bins",
    "rmse",
    "uncertainty",
]
