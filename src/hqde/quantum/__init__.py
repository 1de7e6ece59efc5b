"""What HQDE calls quantum, each name with the plain mathematics that it stands for.

Pure functions of tensors: superposition (pools by the square of summed roots), entanglement (correlated
errors and the weights that follow), measurement (draws from probabilities), noise (of a temperature, that
cancels, that hides), and selection as a quadratic binary problem. dimod, scipy and opacus are imported where
they are first needed.
"""

from hqde.quantum.annealing import annealed_sets, constrained_sets
from hqde.quantum.entanglement import error_gram, minimum_variance_weights, shrinkage
from hqde.quantum.measurement import measure
from hqde.quantum.noise import (
    RDP_ORDERS,
    decohered,
    entangled_coefficients,
    epsilon_from_rdp,
    gaussian_rdp,
    langevin_gradient_std,
    langevin_step,
    privacy_spent,
)
from hqde.quantum.qubo import Budget, selection_bqm, selection_cqm, subset_energy
from hqde.quantum.selection import SAMPLERS, Selection, caruana, choose_members
from hqde.quantum.superposition import confidence_weights, fit_coherence, superpose
from hqde.quantum.tunnelling import Tunnelling

__all__ = [
    "RDP_ORDERS",
    "SAMPLERS",
    "Budget",
    "Selection",
    "Tunnelling",
    "annealed_sets",
    "caruana",
    "choose_members",
    "confidence_weights",
    "constrained_sets",
    "decohered",
    "entangled_coefficients",
    "epsilon_from_rdp",
    "error_gram",
    "fit_coherence",
    "gaussian_rdp",
    "langevin_gradient_std",
    "langevin_step",
    "measure",
    "minimum_variance_weights",
    "privacy_spent",
    "selection_bqm",
    "selection_cqm",
    "shrinkage",
    "subset_energy",
    "superpose",
]
