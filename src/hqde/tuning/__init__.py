"""Search for settings: spaces, samplers, trials as groups of one run, studies that can be resumed."""

from hqde.tuning.space import Dimension, parse_search, parse_space
from hqde.tuning.study import SAMPLERS, Study, StudyResult, TrialRecord
from hqde.tuning.trials import runs_together, trial_values

__all__ = [
    "SAMPLERS",
    "Dimension",
    "Study",
    "StudyResult",
    "TrialRecord",
    "parse_search",
    "parse_space",
    "runs_together",
    "trial_values",
]
