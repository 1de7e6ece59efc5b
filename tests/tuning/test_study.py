"""Studies: together or apart, resumed to the same trials, and what they are worth."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

pytest.importorskip("optuna", reason="extra tune")

from hqde.backends import cores, torch_threads
from hqde.config import build_config, load_data, load_tree, resolve
from hqde.errors import ConfigError, MissingExtraError, RunError, WorkerError
from hqde.testing import Fault, FaultyBackend
from hqde.topology import Topology
from hqde.tuning import SAMPLERS, Dimension, Study, parse_space, runs_together, trial_values
from hqde.tuning import trials as trials_module

RATE = parse_space(["training.learning_rate=log:1e-4:0.3"])
BASE = {
    "run": {"epochs": 1, "workers": 2, "threads": 0},
    "data": {"max_train": 200},
    "model": {"name": "mlp", "options": {"hidden": [8]}},
}


@pytest.fixture(scope="module")
def base():
    config = build_config(BASE)
    splits = load_data(config)
    return resolve(config, splits), splits


def losses(result):
    return [record.loss for record in result.trials]


@pytest.mark.parametrize(
    ("search", "changes", "together"),
    [
        (["training.learning_rate=0.1:0.2", "training.batch_size=8:64"], {}, True),
        (["model.dropout_rate=0.1:0.2", "model.options.hidden=[[8], [16]]"], {}, True),
        (["model.name=['mlp', 'cnn']"], {}, True),
        (["training.loss=['cross_entropy', 'mse']"], {}, False),
        (["run.workers=2:4"], {}, False),
        (["training.learning_rate=0.1:0.2", "topology.global_every=0:1"], {}, False),
        (["training.learning_rate=0.1:0.2"], {"data": {"partition": "split"}}, False),
        (["training.learning_rate=0.1:0.2"], {"topology": {"groups": 1, "every": 3}}, False),
        (["training.learning_rate=0.1:0.2"], {"topology": {"branch_at": 0.5}}, False),
        (["training.learning_rate=0.1:0.2"], {"group": {"0": {"dropout_rate": 0.1}}}, False),
    ],
)
def test_trials_are_groups_of_one_run_where_only_groups_differ(search, changes, together):
    assert runs_together(parse_space(search), build_config(changes)) is together


def test_trials_side_by_side_are_worth_what_each_is_worth_alone_in_the_same_place(base):
    config, splits = base
    proposals = [{"training.learning_rate": rate} for rate in (1e-5, 0.03)]
    both = trial_values(config, splits, proposals, together=True)
    first = trial_values(config, splits, proposals[:1], together=True)
    assert both[0] == first[0], "a trial depends on its settings and its place, not on who is beside it"
    assert both[1] < both[0], "a rate that hardly moves the weights leaves a larger loss"


def test_the_last_trials_of_a_study_have_no_more_threads_than_the_first(base, monkeypatch, tmp_path):
    config, splits = base
    monkeypatch.setattr(cores, "usable_cores", lambda: 8)
    build, threads = trials_module.build_backend, []

    def noted(config):
        backend = build(config)
        threads.append((config.run.workers, config.run.threads))
        return backend

    monkeypatch.setattr(trials_module, "build_backend", noted)
    with torch_threads(4):
        study = Study(tmp_path / "s", config, RATE, num_trials=4, parallel=3, sampler="random")
        study.run(splits)
    assert threads == [(3, 2), (1, 2)]


def test_trials_apart_are_worth_their_ensemble(base):
    config, splits = base
    found = trial_values(config, splits, [{"run.workers": 1}, {"run.workers": 3}], together=False)
    assert len(found) == 2
    assert found[0] != found[1]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_study_that_was_interrupted_ends_as_one_that_was_not(base, tmp_path, monkeypatch, sampler):
    config, splits = base
    settings = {"num_trials": 6, "parallel": 2, "sampler": sampler}
    whole = Study(tmp_path / "whole", config, RATE, **settings).run(splits)
    calls = []

    def interrupted(*arguments, **keywords):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return trial_values(*arguments, **keywords)

    monkeypatch.setattr("hqde.tuning.study.trial_values", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Study(tmp_path / "broken", config, RATE, **settings).run(splits)
    monkeypatch.undo()
    told = []
    resumed = Study(tmp_path / "broken", config, RATE, **settings).run(splits, resume=True, tell=told.append)
    assert resumed.trials == whole.trials
    assert [record.index for record in told] == [2, 3, 4, 5]
    assert resumed.best == min(whole.trials, key=lambda record: record.loss)
    best = build_config(load_tree(tmp_path / "broken" / "best.toml"))
    assert best.training.learning_rate == pytest.approx(resumed.best.values["training.learning_rate"])


def test_a_finished_study_can_be_made_longer(base, tmp_path):
    config, splits = base
    short = Study(tmp_path / "s", config, RATE, num_trials=2, sampler="random").run(splits)
    longer = Study(tmp_path / "s", config, RATE, num_trials=4, sampler="random").run(splits, resume=True)
    assert longer.trials[:2] == short.trials
    assert len(longer.trials) == 4


def test_lists_are_choices_too(base, tmp_path):
    config, splits = base
    space = (Dimension("model.options.hidden", choices=([4], [8, 8])),)
    found = Study(tmp_path / "s", config, space, num_trials=4, sampler="tunnelling").run(splits)
    assert found.together
    assert {json.dumps(record.values["model.options.hidden"]) for record in found.trials} <= {"[4]", "[8, 8]"}


def test_a_run_that_fails_is_made_again_one_trial_at_a_time(base, monkeypatch, tmp_path):
    config, splits = base
    plain = trials_module._run

    def failing(experiment, backend, watcher):
        if any(group.recipe["learning_rate"] > 0.1 for group in experiment.groups.values()):
            raise WorkerError("all workers failed")
        plain(experiment, backend, watcher)

    monkeypatch.setattr(trials_module, "_run", failing)
    proposals = [{"training.learning_rate": rate} for rate in (0.01, 0.2, 0.03)]
    found = trial_values(config, splits, proposals, together=True)
    assert [isinstance(value, float) for value in found] == [True, False, True]
    assert found[1] == "all workers failed"
    hopeless = parse_space(["training.learning_rate=0.2:0.3"])
    with pytest.raises(WorkerError, match="training failed in all 2 trials, the last: all workers failed"):
        Study(tmp_path / "s", config, hopeless, num_trials=2).run(splits)


def test_a_trial_that_cannot_train_beside_others_is_worth_nothing_and_says_why(base):
    config, splits = base
    config = replace(config, model=replace(config.model, norm="batch"))
    proposals = [{"training.batch_size": size} for size in (1, 64)]
    alone, beside = (trial_values(config, splits, some, together=True) for some in (proposals[:1], proposals))
    assert "Expected more than 1 value per channel" in alone[0]
    assert beside[0].startswith("0 of 1 usable updates in the last round: ValueError: Expected more than 1")
    assert isinstance(beside[1], float)


@pytest.mark.parametrize(("kind", "together"), [("nan_loss", True), ("failure", True), ("nan_delta", False)])
def test_a_trial_that_fails_in_the_end_is_not_worth_what_it_was_before(base, monkeypatch, kind, together):
    config, splits = base
    config = replace(config, run=replace(config.run, epochs=2), topology=Topology(groups=1))
    faults = tuple(Fault(worker, 2, kind) for worker in (0, 1))
    build = trials_module.build_backend
    monkeypatch.setattr(trials_module, "build_backend", lambda config: FaultyBackend(build(config), faults))
    proposals = [{"training.learning_rate": 0.01}] * (2 if together else 1)
    found = trial_values(config, splits, proposals, together=together)
    assert found[0].startswith("0 of 1 usable updates in the last round: ")
    assert all(isinstance(value, float) for value in found[1:])


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"sampler": "tunneling"}, ConfigError, "unknown sampler 'tunneling'; did you mean 'tunnelling'"),
        ({"num_trials": 0}, ConfigError, "trials must be at least 1, got 0"),
        ({"parallel": 0}, ConfigError, "parallel must be at least 1, got 0"),
    ],
)
def test_bad_studies_are_refused(base, tmp_path, changes, error, sentence):
    with pytest.raises(error, match=sentence):
        Study(tmp_path / "s", base[0], RATE, **changes)


def test_directories_are_not_mixed_up(base, tmp_path):
    config, splits = base
    study = Study(tmp_path / "s", config, RATE, num_trials=1)
    with pytest.raises(RunError, match="holds no study to go on with"):
        study.run(splits, resume=True)
    study.run(splits)
    with pytest.raises(RunError, match="already holds a study; go on with it by --resume"):
        study.run(splits)
    other = Study(tmp_path / "s", replace(config, run=replace(config.run, epochs=2)), RATE, num_trials=1)
    with pytest.raises(RunError, match="is a study with another config"):
        other.run(splits, resume=True)


def test_without_validation_rows_nothing_can_be_judged(base):
    config, splits = base
    none = replace(splits, validation=type(splits.validation)(*_no_rows(splits.validation)))
    with pytest.raises(ConfigError, match="judged on validation rows and there are 0"):
        trial_values(config, none, [{"training.learning_rate": 0.1}], together=True)


def _no_rows(examples):
    import torch

    from hqde.data import SubsetExamples

    assert isinstance(examples, SubsetExamples)
    return examples, torch.zeros(0, dtype=torch.int64)


def test_without_optuna_a_study_says_what_to_install(base, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'hqde\[tune\]'"):
        Study(tmp_path / "s", base[0], RATE)
