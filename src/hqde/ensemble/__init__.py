"""The trained ensemble: members, combiners, calibration, evaluation, and the artefact it is saved as."""

from hqde.ensemble.auto import AutoCombiner
from hqde.ensemble.calibration import apply_temperature, fit_temperature
from hqde.ensemble.combiners import (
    COMBINERS,
    EfficiencyCombiner,
    LogPoolCombiner,
    MeanCombiner,
    MedianCombiner,
    TrimmedMeanCombiner,
    combiner_settings,
    default_combiner,
    drop_outliers,
    make_combiner,
)
from hqde.ensemble.compressing import Compressed, compress_ensemble
from hqde.ensemble.description import describe_evaluation, encode_images
from hqde.ensemble.ensemble import BATCH_SIZE, Ensemble
from hqde.ensemble.evaluation import Evaluation
from hqde.ensemble.fitting import fit_to_predictions
from hqde.ensemble.inference import InferencePrecision, ready_for_inference
from hqde.ensemble.matrix_scaling import MatrixScaling, check_can_scale, fit_matrix_scaling
from hqde.ensemble.members import Member
from hqde.ensemble.module import EnsembleModule
from hqde.ensemble.packed_weights import PackedWeights, pack_weights
from hqde.ensemble.pooling import Combiner, FittableCombiner
from hqde.ensemble.quantum_combiners import EntanglementCombiner, SuperpositionCombiner
from hqde.ensemble.selection import SelectedMembers, member_bytes, member_latencies_ms, select_members
from hqde.ensemble.side_by_side import predict_side_by_side
from hqde.ensemble.stacking import StackingCombiner, fit_exponents
from hqde.ensemble.storage import Storage, describe_storage
from hqde.ensemble.voting import PluralityCombiner, WeightedVoteCombiner

__all__ = [
    "BATCH_SIZE",
    "COMBINERS",
    "AutoCombiner",
    "Combiner",
    "Compressed",
    "EfficiencyCombiner",
    "Ensemble",
    "EnsembleModule",
    "EntanglementCombiner",
    "Evaluation",
    "FittableCombiner",
    "InferencePrecision",
    "LogPoolCombiner",
    "MatrixScaling",
    "MeanCombiner",
    "MedianCombiner",
    "Member",
    "PackedWeights",
    "PluralityCombiner",
    "SelectedMembers",
    "StackingCombiner",
    "Storage",
    "SuperpositionCombiner",
    "TrimmedMeanCombiner",
    "WeightedVoteCombiner",
    "apply_temperature",
    "check_can_scale",
    "combiner_settings",
    "compress_ensemble",
    "default_combiner",
    "describe_evaluation",
    "describe_storage",
    "drop_outliers",
    "encode_images",
    "fit_exponents",
    "fit_matrix_scaling",
    "fit_temperature",
    "fit_to_predictions",
    "make_combiner",
    "member_bytes",
    "member_latencies_ms",
    "pack_weights",
    "predict_side_by_side",
    "ready_for_inference",
    "select_members",
]
