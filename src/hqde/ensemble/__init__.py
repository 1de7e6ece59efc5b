"""The trained ensemble: members, combiners, calibration, evaluation, and the artefact it is saved as."""

from hqde.ensemble.calibration import apply_temperature, fit_temperature
from hqde.ensemble.combiners import (
    COMBINERS,
    Combiner,
    EfficiencyCombiner,
    LogPoolCombiner,
    MeanCombiner,
    MedianCombiner,
    TrimmedMeanCombiner,
    drop_outliers,
    make_combiner,
)
from hqde.ensemble.compressing import Compressed, compress_ensemble
from hqde.ensemble.description import describe_evaluation, encode_images
from hqde.ensemble.ensemble import BATCH_SIZE, Ensemble
from hqde.ensemble.evaluation import Evaluation
from hqde.ensemble.inference import InferencePrecision, ready_for_inference
from hqde.ensemble.members import Member
from hqde.ensemble.module import EnsembleModule
from hqde.ensemble.packed_weights import PackedWeights, pack_weights
from hqde.ensemble.storage import Storage, describe_storage

__all__ = [
    "BATCH_SIZE",
    "COMBINERS",
    "Combiner",
    "Compressed",
    "EfficiencyCombiner",
    "Ensemble",
    "EnsembleModule",
    "Evaluation",
    "InferencePrecision",
    "LogPoolCombiner",
    "MeanCombiner",
    "MedianCombiner",
    "Member",
    "PackedWeights",
    "Storage",
    "TrimmedMeanCombiner",
    "apply_temperature",
    "compress_ensemble",
    "describe_evaluation",
    "describe_storage",
    "drop_outliers",
    "encode_images",
    "fit_temperature",
    "make_combiner",
    "pack_weights",
    "ready_for_inference",
]
