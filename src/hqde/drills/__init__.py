"""Trainings under attack: what a rule is worth before it is needed."""

from hqde.drills.adversary import AnyAttack, BadWorkers, LabelFlip, ReplayFirst, bad_workers
from hqde.drills.drill import Cell, Trial, drill_rule, run_trial
from hqde.drills.heatmap import render_heatmap

__all__ = [
    "AnyAttack",
    "BadWorkers",
    "Cell",
    "LabelFlip",
    "ReplayFirst",
    "Trial",
    "bad_workers",
    "drill_rule",
    "render_heatmap",
    "run_trial",
]
